package blockstore_test

import (
	"context"
	"slices"
	"strconv"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/blockstore"
)

// staged is one of the volumes that have a device; nil if there is none.
func (w *csiWorld) staged() *csiVolume {
	var with []*csiVolume
	for _, m := range w.vols {
		if m.device != "" {
			with = append(with, m)
		}
	}
	if len(with) == 0 {
		return nil
	}
	return pick(w.rng, with...)
}

// write is a pod that writes a block.
func (w *csiWorld) write() {
	m := w.staged()
	if m == nil {
		return
	}
	wr := csiWrite{slot: w.rng.IntN(csiSlots), tag: byte(w.rng.IntN(256))}
	m.data.writes = append(m.data.writes, wr)
	last := len(m.data.writes) - 1
	w.do(operation{
		what: "write to " + m.name, once: true,
		call: func() error {
			if err := w.room(); err != nil {
				return err
			}
			return w.host.WriteAt(m.device, blockOf(wr.tag), int64(wr.slot+1)*csiStride)
		},
		happened: func() { m.data.writes[last].acked = true },
		asked:    func() bool { return false },
	})
}

// flush is a pod that calls fsync.
func (w *csiWorld) flush() {
	m := w.staged()
	if m == nil {
		return
	}
	w.do(operation{
		what: "flush of " + m.name, once: true,
		call:     func() error { return w.host.FlushDevice(m.device) },
		happened: func() { m.data.flushed = len(m.data.writes) },
		asked:    func() bool { return false },
	})
}

func (w *csiWorld) fold() {
	ids := w.s.InMemory()
	if len(ids) == 0 {
		return
	}
	id := pick(w.rng, ids...)
	w.do(operation{what: "fold", once: true, call: func() error { _, err := w.s.Fold(id); return err }})
}

func (w *csiWorld) collect() {
	w.do(operation{what: "collect", once: true, call: func() (err error) {
		for range 1 + w.rng.IntN(5) {
			if w.coll, err = w.s.CollectStep(w.coll); err != nil {
				return err
			}
		}
		return nil
	}})
}

// check compares all that the CO can see with what it was told, and everything below:
// nothing is lost, half made or left over.
func (w *csiWorld) check() {
	w.checkMachine()
	w.checkVolumes()
	w.checkSnapshots()
	err := w.s.Check(context.Background(), blockstore.CheckOptions{ReadData: w.rng.IntN(8) == 0}, func(p blockstore.Problem) {
		w.fail("check: %v", p)
	})
	w.ok(err, "check")
	for _, m := range w.vols {
		got := w.readVolume(m)
		if want := m.data.now(); m.device != "" && got != want {
			w.fail("volume %s reads %v, want %v", m.name, got, want)
		}
		if !m.data.anchor(got) {
			w.fail("volume %s reads %v, which is no prefix of %+v (I1)", m.name, got, m.data)
		}
	}
	for _, sn := range w.snaps {
		if w.rng.IntN(3) > 0 {
			continue
		}
		w.ok(w.resolve(engineID(sn.handle)), "snapshot %s", sn.name)
		got := w.readImage("snapshot "+sn.name, func(p []byte, off int64) error { return w.s.ReadSnapshot(engineID(sn.handle), p, off) })
		if got != sn.image {
			w.fail("snapshot %s reads %v, want %v (I4)", sn.name, got, sn.image)
		}
	}
}

// readVolume reads a volume, through its device if it has one.
func (w *csiWorld) readVolume(m *csiVolume) csiImage {
	if m.device != "" {
		return w.readImage(m.name, func(p []byte, off int64) error { return w.host.ReadAt(m.device, p, off) })
	}
	w.ok(w.resolve(m.id()), "volume %s", m.name)
	v, err := w.s.OpenVolume(context.Background(), m.id())
	w.ok(err, "open volume %s", m.name)
	img := w.readImage(m.name, func(p []byte, off int64) error { _, err := v.ReadAt(p, off); return err })
	w.ok(v.Close(), "close volume %s", m.name)
	return img
}

// checkMachine compares devices, mounts and records with what was asked for.
func (w *csiWorld) checkMachine() {
	var devices []string
	mounts := 0
	for _, m := range w.vols {
		if m.device != "" {
			devices = append(devices, m.device)
			if !m.raw {
				mounts++
			}
			if m.target != "" {
				mounts++
			}
		}
	}
	slices.Sort(devices)
	if got := w.host.Attached(); !slices.Equal(got, devices) {
		w.fail("devices %v, want %v", got, devices)
	}
	if got, _ := w.host.Mounts(); len(got) != mounts {
		w.fail("%d mounts, want %d: %v", len(got), mounts, got)
	}
	if got := w.s.Attachments(); len(got) != len(devices) {
		w.fail("%d attachments on record, want %d: %+v", len(got), len(devices), got)
	}
	pubs := w.s.Publications()
	for _, m := range w.vols {
		if _, has := pubs[m.id()]; has != m.published {
			w.fail("volume %s: a publication on record %v, want %v", m.name, has, m.published)
		}
		delete(pubs, m.id())
	}
	if len(pubs) > 0 {
		w.fail("publications of volumes that are gone: %v", pubs)
	}
}

// checkVolumes pages through ListVolumes.
func (w *csiWorld) checkVolumes() {
	n := 0
	for token := ""; ; {
		resp, err := w.ListVolumes(context.Background(), &csi.ListVolumesRequest{MaxEntries: 3, StartingToken: token})
		w.ok(err, "ListVolumes from %q", token)
		for _, e := range resp.Entries {
			n++
			m := w.volume(e.Volume.VolumeId)
			if m == nil {
				w.fail("volume %s is listed, and was deleted or never made", e.Volume.VolumeId)
			}
			if e.Volume.CapacityBytes != m.size {
				w.fail("volume %s has %d bytes, want %d", m.name, e.Volume.CapacityBytes, m.size)
			}
			if (len(e.Status.PublishedNodeIds) > 0) != m.published {
				w.fail("volume %s is published to %v, want %v", m.name, e.Status.PublishedNodeIds, m.published)
			}
		}
		if token = resp.NextToken; token == "" {
			break
		}
	}
	if n != len(w.vols) {
		w.fail("%d volumes are listed, want %d", n, len(w.vols))
	}
}

// checkSnapshots pages through ListSnapshots.
func (w *csiWorld) checkSnapshots() {
	n := 0
	for token := ""; ; {
		resp, err := w.ListSnapshots(context.Background(), &csi.ListSnapshotsRequest{MaxEntries: 3, StartingToken: token})
		w.ok(err, "ListSnapshots from %q", token)
		for _, e := range resp.Entries {
			n++
			i := slices.IndexFunc(w.snaps, func(sn *csiSnapshot) bool { return sn.handle == e.Snapshot.SnapshotId })
			if i < 0 {
				w.fail("snapshot %s is listed, and was deleted or never made", e.Snapshot.SnapshotId)
			}
			if sn := w.snaps[i]; e.Snapshot.SizeBytes != sn.size || e.Snapshot.SourceVolumeId != sn.source {
				w.fail("snapshot %s is %s bytes of %s, want %d of %s", sn.name, strconv.FormatInt(e.Snapshot.SizeBytes, 10), e.Snapshot.SourceVolumeId, sn.size, sn.source)
			}
		}
		if token = resp.NextToken; token == "" {
			break
		}
	}
	if n != len(w.snaps) {
		w.fail("%d snapshots are listed, want %d", n, len(w.snaps))
	}
}
