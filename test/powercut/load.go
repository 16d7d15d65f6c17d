package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/test/rig"
)

const (
	volumes     = 2
	volumeBytes = 4 << 20
	images      = 3 // snapshots and clones kept at a time
)

// storeOptions make a small store that folds, seals and collects all the time.
func storeOptions() blockstore.Options {
	return blockstore.Options{
		JournalBytes: 4 << 20, SegmentBytes: 1 << 20, FoldBytes: 256 << 10, ChunkFileBytes: 1 << 20,
		CatalogBytes: 64 << 10, ReserveBytes: 8 << 20, CacheBytes: 8 << 20, GarbageBytes: 2 << 20,
		IdleBytes: 64 << 10, IdleAfter: 100 * time.Millisecond,
	}
}

// load works on a store and notes, by the number of log entries, when what was
// acknowledged.
type load struct {
	dir     string // the store's
	entries func() (int, error)

	store   *blockstore.Store
	stop    func() error // ends the store
	writers [volumes]*writer
	serial  int
	rand    *rand.Rand // of everything but the writers

	mu struct {
		sync.Mutex
		marks  []mark
		images []*image
	}
}

// mark is a moment: what was acknowledged before the log had so many entries, and issued
// when it had them.
type mark struct {
	entries       int
	made          [volumes]bool
	acked, issued [volumes]int
}

// image is a snapshot or a clone that is never written to.
type image struct {
	name       string
	isSnapshot bool
	span       *rig.Span
	from       int // entries when it was acknowledged
	to         int // entries before its deletion was begun; -1 if it never was
}

// writer is the only one who writes to a volume, one write after the other.
type writer struct {
	name   string
	id     string
	ledger *rig.Ledger
	rand   *rand.Rand
	volume *blockstore.Volume
	made   atomic.Bool  // its creation has returned
	done   atomic.Int64 // operations that have returned
}

func newLoad(dir string, seed uint64, entries func() (int, error)) *load {
	l := &load{dir: dir, entries: entries, rand: rand.New(rand.NewPCG(seed, 0))}
	for i := range l.writers {
		l.writers[i] = &writer{
			name: fmt.Sprintf("volume-%d", i), ledger: rig.NewLedger(volumeBytes, uint16(i+1)),
			rand: rand.New(rand.NewPCG(seed, uint64(i+1))),
		}
	}
	return l
}

// note adds a mark. What is acknowledged is read before the log's length, what is issued
// behind it.
func (l *load) note() (int, error) {
	var m mark
	for i, w := range l.writers {
		m.made[i] = w.made.Load()
		m.acked[i], _ = w.ledger.Bounds()
	}
	var err error
	if m.entries, err = l.entries(); err != nil {
		return 0, err
	}
	for i, w := range l.writers {
		_, m.issued[i] = w.ledger.Bounds()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.marks = append(l.mu.marks, m)
	return m.entries, nil
}

// run works in rounds until the log has so many entries more.
func (l *load) run(ctx context.Context, entries int) error {
	begun, err := l.entries()
	if err != nil {
		return err
	}
	for round := 0; ; round++ {
		n, err := l.entries()
		if err != nil || n-begun >= entries {
			return err
		}
		if err := l.open(ctx); err != nil {
			return err
		}
		err = l.round(ctx, begun+entries*(round+1)/2)
		if err := errors.Join(err, l.stop()); err != nil {
			return err
		}
	}
}

// open opens the store and its volumes, which it makes the first time.
func (l *load) open(ctx context.Context) (err error) {
	l.store, l.stop, err = openStore(l.dir)
	if err != nil {
		return err
	}
	for _, w := range l.writers {
		if w.id == "" {
			info, err := l.store.CreateVolume(blockstore.VolumeSpec{Name: w.name, SizeBytes: volumeBytes})
			if err != nil {
				return errors.Join(err, l.stop())
			}
			w.id = info.ID
			w.made.Store(true)
			if _, err := l.note(); err != nil {
				return errors.Join(err, l.stop())
			}
		}
		if w.volume, err = l.store.OpenVolume(ctx, w.id); err != nil {
			return errors.Join(err, l.stop())
		}
	}
	return nil
}

// openStore opens a store and starts its background work.
func openStore(dir string) (s *blockstore.Store, stop func() error, err error) {
	locked := func(err error) bool { return errors.Is(err, blockstore.ErrLocked) }
	err = settled(locked, func() (err error) {
		s, err = blockstore.Open(vfs.NewOS(), dir, storeOptions())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	work, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(work) })
	return s, func() error {
		cancel()
		running.Wait()
		return s.Close()
	}, nil
}

// round lets everybody work until the log is so long.
func (l *load) round(ctx context.Context, until int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var running sync.WaitGroup
	failed := make([]error, volumes+1)
	work := func(i int, step func(context.Context) error) {
		running.Go(func() {
			for failed[i] == nil && ctx.Err() == nil {
				n, err := l.entries()
				if err == nil && n >= until {
					return
				}
				failed[i] = errors.Join(err, step(ctx))
			}
			if failed[i] != nil {
				cancel()
			}
		})
	}
	for i, w := range l.writers {
		work(i, func(context.Context) error { return l.write(w) })
	}
	work(volumes, l.manage)
	running.Wait()
	for _, w := range l.writers {
		failed = append(failed, w.volume.Close())
	}
	return errors.Join(append(failed, context.Cause(ctx))...)
}

// write writes a few times and flushes.
func (l *load) write(w *writer) error {
	n := 0
	for range 1 + w.rand.IntN(12) {
		op, number := w.ledger.Issue(w.rand)
		if err := do(w.volume, op, w.rand); err != nil {
			return err
		}
		n = number
		w.done.Store(int64(n))
	}
	if err := w.volume.Flush(); err != nil {
		return err
	}
	w.ledger.Ack(n)
	_, err := l.note()
	return err
}

// do does an operation to a volume.
func do(v *blockstore.Volume, op rig.Op, r *rand.Rand) error {
	if op.Sample == 0 {
		if r.IntN(2) == 0 {
			return v.Discard(op.Off(), op.Len())
		}
		return v.WriteZeroes(op.Off(), op.Len())
	}
	p := make([]byte, op.Len())
	op.Fill(p)
	_, err := v.WriteAt(p, op.Off())
	return err
}

// manage does one of the things that are no writes.
func (l *load) manage(ctx context.Context) error {
	time.Sleep(time.Duration(l.rand.IntN(20)) * time.Millisecond)
	switch k := l.rand.IntN(10); {
	case k < 4:
		return l.copy(ctx, true)
	case k < 6:
		return l.copy(ctx, false)
	case k < 7:
		_, err := l.store.Collect(ctx)
		return err
	}
	return l.drop()
}

// copy takes a snapshot or a clone of a volume while it is written to.
func (l *load) copy(ctx context.Context, isSnapshot bool) error {
	i := l.rand.IntN(volumes)
	w := l.writers[i]
	l.serial++
	im := &image{name: fmt.Sprintf("image-%d", l.serial), isSnapshot: isSnapshot, to: -1}
	before := int(w.done.Load())
	var err error
	if isSnapshot {
		_, err = l.store.CreateSnapshot(ctx, w.id, im.name, nil)
	} else {
		_, err = l.store.CreateVolume(blockstore.VolumeSpec{Name: im.name, FromVolume: w.id})
	}
	if err != nil {
		return err
	}
	_, issued := w.ledger.Bounds()
	if im.span, err = w.ledger.Span(before, issued); err != nil {
		return err
	}
	if im.from, err = l.note(); err != nil {
		return err
	}
	l.mu.Lock()
	l.mu.images = append(l.mu.images, im)
	l.mu.Unlock()
	if len(l.kept()) > images {
		return l.drop()
	}
	return nil
}

// kept are the images that are there.
func (l *load) kept() []*image {
	l.mu.Lock()
	defer l.mu.Unlock()
	var there []*image
	for _, im := range l.mu.images {
		if im.to < 0 {
			there = append(there, im)
		}
	}
	return there
}

// drop deletes an image.
func (l *load) drop() error {
	there := l.kept()
	if len(there) == 0 {
		return nil
	}
	im := there[l.rand.IntN(len(there))]
	n, err := l.entries()
	if err != nil {
		return err
	}
	im.to = n
	if !im.isSnapshot {
		info, err := l.store.Volume(im.name)
		if err != nil {
			return err
		}
		return l.store.DeleteVolume(info.ID)
	}
	info, err := l.store.Snapshot(im.name)
	if err != nil {
		return err
	}
	return l.store.DeleteSnapshot(info.ID)
}
