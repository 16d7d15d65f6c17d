package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/driver"
	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/pkg/vfs"
)

const (
	volumes   = 10_000
	snapshots = 100_000
	callers   = 256 // at the same time: they share the syncs of the catalog
)

// each calls fn for [from, to) from many goroutines and returns the time per call.
func each(from, to int, fn func(i int) error) (time.Duration, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, callers)
	next.Store(int64(from))
	began := time.Now()
	for c := range callers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= to {
					return
				}
				if err := fn(i); err != nil {
					errs[c] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began) / time.Duration(max(1, to-from)), errors.Join(errs...)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func makeRecords(dir string) ([]figure, error) {
	s, err := blockstore.Open(vfs.NewOS(), dir, blockstore.Options{})
	if err != nil {
		return nil, err
	}
	ids := make([]string, volumes)
	create := func(i int) error {
		info, err := s.CreateVolume(blockstore.VolumeSpec{Name: fmt.Sprintf("pvc-%08d", i), SizeBytes: 1 << 30})
		ids[i] = info.ID
		return err
	}
	snapshot := func(i int) error {
		_, err := s.CreateSnapshot(context.Background(), ids[i%volumes], fmt.Sprintf("snapshot-%08d", i), nil)
		return err
	}
	// The first and the last tenth of a thousand that are alike: beginning and end.
	tenth := volumes / 10
	first, err1 := each(0, tenth, create)
	_, err2 := each(tenth, volumes-tenth, create)
	last, err3 := each(volumes-tenth, volumes, create)
	firstSnap, err4 := each(0, tenth, snapshot)
	_, err5 := each(tenth, snapshots-tenth, snapshot)
	lastSnap, err6 := each(snapshots-tenth, snapshots, snapshot)
	if err := errors.Join(err1, err2, err3, err4, err5, err6, s.Close()); err != nil {
		return nil, err
	}
	return []figure{
		{What: "create a volume, 1,000 in the store", Value: micros(first), Unit: "us"},
		{What: "create a volume, 10,000 in the store", Value: micros(last), Unit: "us", Limit: 5000},
		{What: "create a snapshot, 1,000 in the store", Value: micros(firstSnap), Unit: "us"},
		{What: "create a snapshot, 100,000 in the store", Value: micros(lastSnap), Unit: "us", Limit: 5000},
	}, nil
}

func startRecords(dir string) ([]figure, error) {
	took := time.Duration(math.MaxInt64)
	for range tries {
		began := time.Now()
		s, err := blockstore.Open(vfs.NewOS(), dir, blockstore.Options{})
		took = min(took, time.Since(began))
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			return nil, err
		}
	}
	peak, err := peakMemory()
	if err != nil {
		return nil, err
	}
	return []figure{
		{What: "start with 10,000 volumes and 100,000 snapshots", Value: took.Seconds(), Unit: "s", Limit: 10},
		{What: "memory of that start (peak RSS)", Value: peak / (1 << 20), Unit: "MiB", Limit: 1024},
	}, nil
}

// tries are made of what is short or disturbed by other work; the best one counts.
const tries = 3

// lister times the pages of a list, each several times.
type lister struct {
	worst   time.Duration
	entries int
}

// all asks for every page.
func (l *lister) all(ask func(token string) (entries int, next string, err error)) error {
	for token := ""; ; {
		best, n, next := time.Duration(math.MaxInt64), 0, ""
		for range tries {
			began := time.Now()
			var err error
			if n, next, err = ask(token); err != nil {
				return err
			}
			best = min(best, time.Since(began))
		}
		l.worst = max(l.worst, best)
		l.entries += n
		if token = next; token == "" {
			return nil
		}
	}
}

func (l *lister) figure(what string) figure {
	return figure{What: what, Value: millis(l.worst), Unit: "ms", Limit: 50}
}

func lists(dir string) (figures []figure, err error) {
	s, err := blockstore.Open(vfs.NewOS(), dir, blockstore.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	host := export.NewHost()
	metrics := prometheus.NewRegistry()
	d, err := driver.New(s, attach.New(attach.Engine(s), host, attach.Options{}), host, driver.Options{NodeID: "node", Metrics: metrics})
	if err != nil {
		return nil, err
	}
	defer d.Stop(context.Background())
	ctx := context.Background()
	for _, size := range []int32{100, 0} {
		name := fmt.Sprint(size)
		if size == 0 {
			name = "1,000"
		}
		var vols, snaps lister
		if err := vols.all(func(token string) (int, string, error) {
			r, err := d.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: size, StartingToken: token})
			return len(r.GetEntries()), r.GetNextToken(), err
		}); err != nil {
			return nil, err
		}
		if err := snaps.all(func(token string) (int, string, error) {
			r, err := d.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: size, StartingToken: token})
			return len(r.GetEntries()), r.GetNextToken(), err
		}); err != nil {
			return nil, err
		}
		if vols.entries != volumes || snaps.entries != snapshots {
			return nil, fmt.Errorf("the lists have %d volumes and %d snapshots", vols.entries, snaps.entries)
		}
		figures = append(figures,
			vols.figure("slowest page of ListVolumes, "+name+" entries"),
			snaps.figure("slowest page of ListSnapshots, "+name+" entries"))
	}
	more, err := filtered(ctx, d)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if _, err := metrics.Gather(); err != nil {
		return nil, err
	}
	return append(append(figures, more...), figure{What: "metrics scrape", Value: millis(time.Since(began)), Unit: "ms", Limit: 50}), nil
}

// filtered lists by snapshot and by source volume.
func filtered(ctx context.Context, d *driver.Driver) ([]figure, error) {
	r, err := d.ListSnapshots(ctx, &csi.ListSnapshotsRequest{})
	if err != nil {
		return nil, err
	}
	var one, ofVolume lister
	for i := range 200 {
		snap := r.GetEntries()[i].GetSnapshot()
		for l, req := range map[*lister]*csi.ListSnapshotsRequest{
			&one:      {SnapshotId: snap.GetSnapshotId()},
			&ofVolume: {SourceVolumeId: snap.GetSourceVolumeId(), MaxEntries: 7},
		} {
			if err := l.all(func(token string) (int, string, error) {
				req.StartingToken = token
				r, err := d.ListSnapshots(ctx, req)
				return len(r.GetEntries()), r.GetNextToken(), err
			}); err != nil {
				return nil, err
			}
		}
	}
	if one.entries != 200 || ofVolume.entries != 200*snapshots/volumes {
		return nil, fmt.Errorf("filters give %d and %d snapshots", one.entries, ofVolume.entries)
	}
	return []figure{
		one.figure("slowest ListSnapshots of one snapshot"),
		ofVolume.figure("slowest page of ListSnapshots of one volume"),
	}, nil
}

func deletes(dir string) ([]figure, error) {
	s, err := blockstore.Open(vfs.NewOS(), dir, blockstore.Options{})
	if err != nil {
		return nil, err
	}
	infos := s.Snapshots("")
	tenth := volumes / 10
	remove := func(i int) error { return s.DeleteSnapshot(infos[i].ID) }
	many, err1 := each(0, tenth, remove)
	_, err2 := each(tenth, len(infos)-tenth, remove)
	few, err3 := each(len(infos)-tenth, len(infos), remove)
	vols := slices.Clone(s.Volumes())
	removeVolume := func(i int) error { return s.DeleteVolume(vols[i].ID) }
	manyVols, err4 := each(0, tenth, removeVolume)
	_, err5 := each(tenth, len(vols)-tenth, removeVolume)
	fewVols, err6 := each(len(vols)-tenth, len(vols), removeVolume)
	if err := errors.Join(err1, err2, err3, err4, err5, err6, s.Close()); err != nil {
		return nil, err
	}
	return []figure{
		{What: "delete a snapshot, 100,000 in the store", Value: micros(many), Unit: "us", Limit: 5000},
		{What: "delete a snapshot, 1,000 in the store", Value: micros(few), Unit: "us"},
		{What: "delete a volume, 10,000 in the store", Value: micros(manyVols), Unit: "us", Limit: 5000},
		{What: "delete a volume, 1,000 in the store", Value: micros(fewVols), Unit: "us"},
	}, nil
}
