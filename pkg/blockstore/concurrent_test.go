package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// The writers of TestConcurrent: writer w writes its operations one behind the other to
// blocks of its own, so that an image of the volume shows of each writer a prefix of its
// operations, and which one.
const (
	loadVolumes = 3
	loadWriters = 8
	loadBlocks  = 96 // of each writer
)

// loadOp is what operation n (from 1 on) of a writer does.
func loadOp(writer int, n uint64) (block int64, discard bool) {
	x := (n*0x9e3779b97f4a7c15 + uint64(writer)*0xbf58476d1ce4e5b9) >> 20
	return int64(writer/loadVolumes)*loadBlocks + int64(x%loadBlocks), x/loadBlocks%7 == 0
}

// loadContent is what it writes: who, which, and bytes of which every second sector
// compresses; some of it is the same for other operations.
func loadContent(writer int, n uint64) []byte {
	p := make([]byte, BlockSize)
	x := n*0x2545f4914f6cdd1d + uint64(writer)
	for i := 0; i < BlockSize; i += 8 {
		if i/512%2 == 0 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		binary.LittleEndian.PutUint64(p[i:], x|1)
	}
	binary.LittleEndian.PutUint64(p, uint64(writer)+1)
	binary.LittleEndian.PutUint64(p[8:], n)
	return p
}

// loadWriter is one writer and how far it is.
type loadWriter struct {
	id           int
	begun, acked atomic.Uint64
	longest      atomic.Int64 // ns, beside a snapshot
	alone        atomic.Int64 // ns, otherwise
}

type load struct {
	t        *testing.T
	s        *Store
	vols     [loadVolumes]*Volume
	writers  [loadWriters]*loadWriter
	stop     chan struct{}
	cuts     atomic.Int64 // snapshots being taken
	verified atomic.Int64
	pending  atomic.Int64 // clones made of a snapshot that was not ready
	layers   atomic.Int64 // throw-away layers written to
	checks   atomic.Int64
	names    atomic.Int64
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// fail reports an error of a goroutine.
func (l *load) fail(format string, args ...any) { l.t.Errorf(format, args...) }

func (l *load) write(w *loadWriter) {
	v := l.vols[w.id%loadVolumes]
	for n := uint64(1); !l.stopped(); n++ {
		block, discard := loadOp(w.id, n)
		w.begun.Store(n)
		cuts, began := l.cuts.Load(), time.Now()
		var err error
		if discard {
			err = v.Discard(block*BlockSize, BlockSize)
		} else {
			_, err = v.WriteAt(loadContent(w.id, n), block*BlockSize)
		}
		took := int64(time.Since(began))
		if err != nil {
			l.fail("writer %d: operation %d: %v", w.id, n, err)
			return
		}
		w.acked.Store(n)
		if longest := &w.alone; cuts > 0 || l.cuts.Load() > 0 {
			w.longest.Store(max(w.longest.Load(), took))
		} else {
			longest.Store(max(longest.Load(), took))
		}
	}
}

// state is how far the writers of a volume are.
func (l *load) state(vol int, of func(*loadWriter) uint64) map[int]uint64 {
	out := make(map[int]uint64)
	for _, w := range l.writers {
		if w.id%loadVolumes == vol {
			out[w.id] = of(w)
		}
	}
	return out
}

func (l *load) acked(vol int) map[int]uint64 {
	return l.state(vol, func(w *loadWriter) uint64 { return w.acked.Load() })
}

func (l *load) begun(vol int) map[int]uint64 {
	return l.state(vol, func(w *loadWriter) uint64 { return w.begun.Load() })
}

// checkImage verifies that an image shows, of each writer, all operations up to one
// that is not below lo nor above hi.
func checkImage(image []byte, lo, hi map[int]uint64) error {
	for w := range lo {
		most := uint64(0) // highest operation that is seen
		blocks := image[w/loadVolumes*loadBlocks*BlockSize:][:loadBlocks*BlockSize]
		for b := range loadBlocks {
			p := blocks[b*BlockSize:][:BlockSize]
			who, n := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
			if who == 0 {
				if !isZero(p) {
					return fmt.Errorf("writer %d: block %d is neither zeros nor tagged", w, b)
				}
				continue
			}
			if who != uint64(w)+1 || !bytes.Equal(p, loadContent(w, n)) {
				return fmt.Errorf("writer %d: block %d holds something else (tags %d, %d)", w, b, who, n)
			}
			most = max(most, n)
		}
		if err := checkPrefix(w, blocks, most, lo[w], hi[w]); err != nil {
			return err
		}
	}
	return nil
}

// checkPrefix looks for the operation after which the writer's blocks look like this.
func checkPrefix(w int, blocks []byte, most, lo, hi uint64) error {
	if most > hi {
		return fmt.Errorf("writer %d: operation %d is in it, only %d were begun", w, most, hi)
	}
	first := max(most, lo)
	last := make(map[int64]uint64)
	for n := uint64(1); n <= first; n++ {
		b, discard := loadOp(w, n)
		if last[b] = n; discard {
			last[b] = 0
		}
	}
	var differs error
	for n := first; n <= hi; n++ {
		if n > first {
			b, discard := loadOp(w, n)
			if !discard {
				break // would be seen
			}
			last[b] = 0
		}
		if differs = sameAs(w, blocks, last); differs == nil {
			return nil
		}
	}
	return fmt.Errorf("writer %d: no state between operations %d and %d: shows up to %d, %v", w, lo, hi, most, differs)
}

func sameAs(w int, blocks []byte, last map[int64]uint64) error {
	base := int64(w / loadVolumes * loadBlocks)
	for b := range int64(loadBlocks) {
		if n := binary.LittleEndian.Uint64(blocks[b*BlockSize+8:]); n != last[base+b] {
			return fmt.Errorf("block %d has operation %d, should have %d", b, n, last[base+b])
		}
	}
	return nil
}

func (l *load) read(rng *rand.Rand) {
	p := make([]byte, 4*BlockSize)
	for !l.stopped() {
		w := l.writers[rng.IntN(loadWriters)]
		v := l.vols[w.id%loadVolumes]
		b := int64(w.id/loadVolumes*loadBlocks) + rng.Int64N(loadBlocks-4)
		lo := w.acked.Load()
		if _, err := v.ReadAt(p, b*BlockSize); err != nil {
			l.fail("read: %v", err)
			return
		}
		hi := w.begun.Load()
		for i := range int64(4) {
			l.checkBlock(w.id, b+i, p[i*BlockSize:][:BlockSize], lo, hi)
		}
	}
}

// checkBlock verifies what one read showed of a block.
func (l *load) checkBlock(w int, block int64, p []byte, lo, hi uint64) {
	n := binary.LittleEndian.Uint64(p[8:])
	if n == 0 {
		if !isZero(p) {
			l.fail("block %d of writer %d is neither zeros nor tagged", block, w)
		}
		return // which discard made it, or none, cannot be seen
	}
	if n > hi || !bytes.Equal(p, loadContent(w, n)) {
		l.fail("block %d of writer %d holds operation %d of %d, or not all of it", block, w, n, hi)
		return
	}
	for k := n + 1; k <= lo; k++ {
		if b, _ := loadOp(w, k); b == block {
			l.fail("block %d of writer %d shows operation %d, but %d was acknowledged before", block, w, n, k)
			return
		}
	}
}

// taken is a snapshot or clone and what must be in it.
type taken struct {
	snapshot, clone string
	lo, hi          map[int]uint64
}

// takeSnapshots takes snapshots and clones under load and hands them on.
func (l *load) takeSnapshots(rng *rand.Rand, out chan<- taken) {
	ctx := context.Background()
	for !l.stopped() {
		vol := rng.IntN(loadVolumes)
		name := fmt.Sprintf("x%d", l.names.Add(1))
		tk := taken{lo: l.acked(vol)}
		l.cuts.Add(1)
		var err error
		if rng.IntN(3) == 0 {
			var info VolumeInfo
			info, err = l.s.CreateVolume(VolumeSpec{Name: name, FromVolume: l.vols[vol].ID()})
			tk.clone = info.ID
		} else {
			var info SnapshotInfo
			info, err = l.s.CreateSnapshot(ctx, l.vols[vol].ID(), name, nil)
			tk.snapshot = info.ID
			if err == nil && rng.IntN(2) == 0 { // a clone at once, most likely of a pending cut
				var c VolumeInfo
				c, err = l.s.CreateVolume(VolumeSpec{Name: name, FromSnapshot: info.ID})
				tk.clone = c.ID
				if !info.Ready {
					l.pending.Add(1)
				}
			}
		}
		l.cuts.Add(-1)
		tk.hi = l.begun(vol)
		if err != nil {
			l.fail("take %s: %v", name, err)
			return
		}
		select {
		case out <- tk:
		case <-l.stop:
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
	}
}

// verify compares what was taken, and deletes it in some order.
func (l *load) verify(rng *rand.Rand, in <-chan taken) {
	var kept []taken
	for {
		select {
		case tk := <-in:
			kept = append(kept, tk)
		case <-l.stop:
			return
		}
		for len(kept) > rng.IntN(6) && !l.stopped() {
			i := rng.IntN(len(kept))
			tk := kept[i]
			kept = append(kept[:i], kept[i+1:]...)
			if err := l.verifyOne(rng, tk); err != nil {
				l.fail("snapshot %s, clone %s: %v", tk.snapshot, tk.clone, err)
			}
		}
	}
}

func (l *load) verifyOne(rng *rand.Rand, tk taken) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	early := rng.IntN(2) == 0 // delete what it came from as soon as the clone is made
	if tk.snapshot != "" && tk.clone == "" {
		if rng.IntN(2) == 0 {
			if _, err := l.s.WaitSnapshot(ctx, tk.snapshot); err != nil {
				return err
			}
		}
		c, err := l.s.CreateVolume(VolumeSpec{Name: fmt.Sprintf("x%d", l.names.Add(1)), FromSnapshot: tk.snapshot})
		if err != nil {
			return err
		}
		tk.clone = c.ID
	}
	if tk.snapshot != "" && early {
		if err := l.s.DeleteSnapshot(tk.snapshot); err != nil {
			return err
		}
	}
	if rng.IntN(3) == 0 {
		if err := l.throwAway(ctx, rng, tk); err != nil {
			return fmt.Errorf("with a throw-away layer: %w", err)
		}
	}
	v, err := l.s.OpenVolume(ctx, tk.clone)
	if err != nil {
		return err
	}
	image := make([]byte, v.Size())
	if _, err := v.ReadAt(image, 0); err != nil {
		return err
	}
	if err := checkImage(image, tk.lo, tk.hi); err != nil {
		return err
	}
	if rng.IntN(2) == 0 { // a clone is written to like any volume
		if _, err := v.WriteAt(noise(rng.Uint64(), BlockSize), 0); err != nil {
			return err
		}
	}
	if err := v.Close(); err != nil {
		return err
	}
	if err := l.s.DeleteVolume(tk.clone); err != nil {
		return err
	}
	l.verified.Add(1)
	if tk.snapshot != "" && !early {
		return l.s.DeleteSnapshot(tk.snapshot)
	}
	return nil
}

// throwAway reads a clone through a throw-away layer, and writes to that what nobody is to
// see later.
func (l *load) throwAway(ctx context.Context, rng *rand.Rand, tk taken) error {
	c, err := l.s.OpenScratch(ctx, tk.clone)
	if err != nil {
		return err
	}
	image, again := make([]byte, c.Size()), make([]byte, c.Size())
	if _, err := c.ReadAt(image, 0); err != nil {
		return err
	}
	if err := checkImage(image, tk.lo, tk.hi); err != nil {
		return err
	}
	for range 8 {
		off, n := scratchSpan(rng, c.Size())
		p := noise(rng.Uint64(), int(n))
		if _, err := c.WriteAt(p, off); err != nil {
			return err
		}
		copy(image[off:], p)
		off, n = scratchSpan(rng, c.Size())
		if err := c.Discard(off, n); err != nil {
			return err
		}
		clear(image[off : off+n])
	}
	if _, err := c.ReadAt(again, 0); err != nil || !bytes.Equal(again, image) {
		return fmt.Errorf("reads otherwise than it was written: %w", err)
	}
	l.layers.Add(1)
	return c.Close()
}

// check verifies the store while all else goes on.
func (l *load) check() {
	for n := 0; !l.stopped(); n++ {
		err := l.s.Check(context.Background(), CheckOptions{ReadData: n%2 == 0, Workers: 1}, func(p Problem) {
			l.fail("check under load: %v", p)
		})
		if err != nil {
			l.fail("check: %v", err)
			return
		}
		l.checks.Add(1)
		time.Sleep(100 * time.Millisecond) // no collection beside one
	}
}

// attachDetach uses a volume of its own: write, detach, snapshot, attach, compare.
func (l *load) attachDetach(rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	info, err := l.s.CreateVolume(VolumeSpec{Name: "detached", SizeBytes: 1 << 20})
	if err != nil {
		l.fail("%v", err)
		return
	}
	want := make([]byte, info.SizeBytes)
	for round := 0; !l.stopped(); round++ {
		v, err := l.s.OpenVolume(ctx, info.ID)
		if err != nil {
			l.fail("attach: %v", err)
			return
		}
		if _, err := l.s.OpenVolume(ctx, info.ID); !errors.Is(err, ErrInUse) {
			l.fail("second attach: %v", err)
		}
		got := make([]byte, len(want))
		if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			l.fail("detached volume differs in round %d: %v", round, err)
			return
		}
		for range rng.IntN(20) {
			off, p := rng.Int64N(int64(len(want)/sectorBytes-8))*sectorBytes, noise(rng.Uint64(), 8*sectorBytes)
			if _, err := v.WriteAt(p, off); err != nil {
				l.fail("%v", err)
			}
			copy(want[off:], p)
		}
		if err := v.Close(); err != nil {
			l.fail("detach: %v", err)
		}
		sn, err := l.s.CreateSnapshot(ctx, info.ID, fmt.Sprintf("d%d", round), nil)
		if err != nil {
			l.fail("snapshot of a detached volume: %v", err)
			return
		}
		if rng.IntN(2) == 0 {
			if err := l.s.DeleteSnapshot(sn.ID); err != nil {
				l.fail("%v", err)
			}
		}
	}
}

// TestConcurrent runs everything at once on one store: I1, I4, I5 and I6 under load.
func TestConcurrent(t *testing.T) {
	fsys := vfs.NewMem()
	o := smallOptions()
	o.GarbageBytes = 1 << 20
	s := openStore(t, fsys, o)
	stopRun := runStore(t, s)
	l := &load{t: t, s: s, stop: make(chan struct{})}
	for i := range l.vols {
		l.vols[i] = newVolume(t, s, fmt.Sprint("load", i), 2<<20)
	}
	for i := range l.writers {
		l.writers[i] = &loadWriter{id: i}
	}
	var wg sync.WaitGroup
	var collections atomic.Int64
	for _, w := range l.writers {
		wg.Go(func() { l.write(w) })
	}
	for i := range 2 {
		wg.Go(func() { l.read(rand.New(rand.NewPCG(uint64(i), 1))) })
	}
	out := make(chan taken, 16)
	wg.Go(func() { l.takeSnapshots(rand.New(rand.NewPCG(1, 2)), out) })
	wg.Go(func() { l.verify(rand.New(rand.NewPCG(1, 3)), out) })
	wg.Go(func() { l.verify(rand.New(rand.NewPCG(2, 3)), out) })
	wg.Go(func() { l.attachDetach(rand.New(rand.NewPCG(1, 4))) })
	wg.Go(l.views)
	wg.Go(l.check)
	wg.Go(func() {
		for ; !l.stopped(); collections.Add(1) {
			if _, err := s.Collect(context.Background()); err != nil {
				l.fail("collect: %v", err)
				return
			}
		}
	})
	wg.Go(func() {
		for i := int64(3); !l.stopped() && i < 40; i++ {
			if _, err := s.ResizeVolume(l.vols[i%loadVolumes].ID(), i<<20); err != nil && !errors.Is(err, ErrRange) {
				l.fail("resize: %v", err)
			}
			if err := l.vols[(i+1)%loadVolumes].Flush(); err != nil {
				l.fail("flush: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	enough := func() bool {
		return l.verified.Load() >= 20 && l.pending.Load() > 0 && l.layers.Load() > 0 && collections.Load() > 0 && l.checks.Load() > 1
	}
	for began := time.Now(); time.Since(began) < 4*time.Second || !enough() && time.Since(began) < time.Minute; {
		time.Sleep(50 * time.Millisecond)
	}
	close(l.stop)
	within(t, time.Minute, "all goroutines end", wg.Wait)
	if t.Failed() {
		return
	}
	ops := uint64(0)
	beside, alone := int64(0), int64(0)
	for _, w := range l.writers {
		ops += w.acked.Load()
		beside, alone = max(beside, w.longest.Load()), max(alone, w.alone.Load())
	}
	t.Logf("%d writes, %d images verified (%d made of a pending snapshot, %d with a throw-away layer), %d collections, %d checks; "+
		"longest write beside a snapshot %v, otherwise %v", ops, l.verified.Load(), l.pending.Load(), l.layers.Load(),
		collections.Load(), l.checks.Load(), time.Duration(beside), time.Duration(alone))
	if !enough() || ops < 1000 {
		t.Errorf("too little happened to prove anything")
	}
	compare := func(s *Store, vols [loadVolumes]*Volume) {
		for i, v := range vols {
			image := readAll(t, v)
			if err := checkImage(image, l.acked(i), l.acked(i)); err != nil {
				t.Errorf("volume %d: %v", i, err)
			}
			if rest := image[(loadWriters/loadVolumes+1)*loadBlocks*BlockSize:]; strings.Trim(string(rest), "\x00") != "" {
				t.Errorf("volume %d: there is something where nobody wrote", i)
			}
		}
		wantClean(t, s)
	}
	compare(s, l.vols)
	stopRun()
	ok(t, s.Close())
	s = openStore(t, fsys, o)
	for i, v := range l.vols {
		l.vols[i] = attach(t, s, v.ID())
	}
	compare(s, l.vols)
	foldAll(t, s)
	compare(s, l.vols)
	ok(t, s.Close())
}

// TestConcurrentCrash copies the disk at moments of the load and lets the copy lose its
// process or its power: I1, I3 and I4 whatever runs.
func TestConcurrentCrash(t *testing.T) {
	fsys := vfs.NewMem()
	o := smallOptions()
	o.GarbageBytes = 1 << 20
	s := openStore(t, fsys, o)
	stopRun := runStore(t, s)
	l := &load{t: t, s: s, stop: make(chan struct{})}
	for i := range l.vols {
		l.vols[i] = newVolume(t, s, fmt.Sprint("load", i), 2<<20)
	}
	for i := range l.writers {
		l.writers[i] = &loadWriter{id: i}
	}
	var wg sync.WaitGroup
	for _, w := range l.writers {
		wg.Go(func() { l.write(w) })
	}
	out := make(chan taken, 16)
	wg.Go(func() { l.takeSnapshots(rand.New(rand.NewPCG(5, 2)), out) })
	wg.Go(func() { l.verify(rand.New(rand.NewPCG(5, 3)), out) })
	wg.Go(func() {
		for !l.stopped() {
			if _, err := s.Collect(context.Background()); err != nil {
				l.fail("collect: %v", err)
				return
			}
		}
	})
	type moment struct {
		disk               *vfs.Mem
		flushed, acked, hi [loadVolumes]map[int]uint64
		kept               []taken
	}
	var moments []moment
	var kept []taken
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range 10 {
		var m moment
		vol := i % loadVolumes
		tk := taken{lo: l.acked(vol)}
		info := must(s.CreateSnapshot(context.Background(), l.vols[vol].ID(), fmt.Sprint("kept", i), nil))(t)
		tk.snapshot, tk.hi = info.ID, l.begun(vol)
		kept = append(kept, tk)
		for i, v := range l.vols {
			m.flushed[i] = l.acked(i)
			ok(t, v.Flush())
		}
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		m.kept = append(m.kept, kept...)
		for i := range l.vols {
			m.acked[i] = l.acked(i)
		}
		m.disk = fsys.Clone()
		for i := range l.vols {
			m.hi[i] = l.begun(i)
		}
		moments = append(moments, m)
	}
	close(l.stop)
	within(t, time.Minute, "all goroutines end", wg.Wait)
	stopRun()
	if t.Failed() {
		return
	}
	ok(t, s.Close())
	for i, m := range moments {
		for _, keep := range []float64{-1, 0, 0.5, 1} {
			disk, lo := m.disk.Clone(), m.flushed
			if keep < 0 {
				disk.Kill()
				lo = m.acked
			} else {
				disk.Crash(rng, keep)
			}
			what := fmt.Sprintf("moment %d, keep %v", i, keep)
			s := openStore(t, disk, o)
			for _, info := range s.Volumes() {
				if info.Failed != "" {
					t.Fatalf("%s: volume %s failed: %s", what, info.Name, info.Failed)
				}
			}
			for k, v := range l.vols {
				v2 := attach(t, s, v.ID())
				if err := checkImage(readAll(t, v2), lo[k], m.hi[k]); err != nil {
					t.Fatalf("%s: volume %d: %v", what, k, err)
				}
				ok(t, v2.Close())
			}
			foldAll(t, s)
			for _, tk := range m.kept {
				c := must(s.CreateVolume(VolumeSpec{Name: "look", FromSnapshot: tk.snapshot}))(t)
				v := attach(t, s, c.ID)
				if err := checkImage(readAll(t, v), tk.lo, tk.hi); err != nil {
					t.Fatalf("%s: snapshot: %v", what, err)
				}
				ok(t, v.Close())
				ok(t, s.DeleteVolume(c.ID))
			}
			wantClean(t, s)
			ok(t, s.Close())
		}
	}
}

// crashedClone is a store opened on what a power cut now would leave.
func crashedClone(t *testing.T, fsys *vfs.Mem, o Options) *Store {
	t.Helper()
	c := fsys.Clone()
	c.Crash(nil, 0)
	return openStore(t, c, o)
}

// wantSnapshot verifies that a snapshot gets ready and has this image.
func wantSnapshot(t *testing.T, s *Store, id string, want []byte) {
	t.Helper()
	info := must(s.Snapshot(id))(t)
	for i := 0; !info.Ready && i < 5; i++ {
		foldAll(t, s)
		info = must(s.Snapshot(id))(t)
	}
	if !info.Ready {
		t.Fatalf("snapshot %s does not get ready; volumes: %+v", id, s.Volumes())
	}
	c := must(s.CreateVolume(VolumeSpec{Name: "clone of " + id[:8], FromSnapshot: id}))(t)
	v := attach(t, s, c.ID)
	wantImage(t, readAll(t, v), want, "snapshot")
	ok(t, v.Close())
	ok(t, s.DeleteVolume(c.ID))
}

// A write is acknowledged when every record before its own is in the journal too: else
// the death of the process could lose it behind a gap (I1).
func TestAcknowledgeWaitsForEarlierRecords(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	first := must(v.begin(wal.TypeWrite, 0, BlockSize, noise(1, BlockSize)))(t)
	done := make(chan error, 1)
	go func() {
		_, err := v.WriteAt(noise(2, BlockSize), BlockSize)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("acknowledged with a gap before it: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	v.append(first)
	within(t, 10*time.Second, "acknowledge", func() { ok(t, <-done) })
	killed := fsys.Clone()
	killed.Kill()
	got := readAll(t, attach(t, openStore(t, killed, smallOptions()), v.ID()))
	wantImage(t, got[BlockSize:2*BlockSize], noise(2, BlockSize), "acknowledged block after a kill")
}

// A snapshot's answer must not come before the records up to its mark are durable,
// those of writes in flight too: otherwise a power cut leaves a cut without a journal.
func TestSnapshotWaitsForWritesInFlight(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("kill=", kill), func(t *testing.T) {
			fsys := vfs.NewMem()
			s := openStore(t, fsys, smallOptions())
			v := newVolume(t, s, "v", 1<<20)
			want := make([]byte, v.Size())
			copy(want, noise(1, BlockSize))
			writeAt(t, v, want[:BlockSize], 0)
			op := must(v.begin(wal.TypeWrite, BlockSize, BlockSize, noise(2, BlockSize)))(t)
			var id string
			done := make(chan error, 1)
			go func() {
				info, err := s.CreateSnapshot(context.Background(), v.ID(), "s", nil)
				id = info.ID
				done <- err
			}()
			finished := false
			select {
			case err := <-done:
				ok(t, err)
				finished = true
			case <-time.After(100 * time.Millisecond):
			}
			image := fsys
			if finished {
				image = fsys.Clone()
			}
			v.append(op)
			ok(t, v.acknowledge(op))
			if !finished {
				within(t, 10*time.Second, "snapshot", func() { ok(t, <-done) })
			}
			if kill {
				image = image.Clone()
				image.Kill()
			} else {
				image = image.Clone()
				image.Crash(nil, 0)
			}
			s2 := openStore(t, image, smallOptions())
			for _, info := range s2.Volumes() {
				if info.Failed != "" {
					t.Fatalf("volume failed closed after the snapshot: %s", info.Failed)
				}
			}
			if info := must(s2.Snapshot(id))(t); !info.Ready {
				foldAll(t, s2)
			}
			c := must(s2.CreateVolume(VolumeSpec{Name: "c", FromSnapshot: id}))(t)
			got := readAll(t, attach(t, s2, c.ID))
			wantImage(t, got[:BlockSize], want[:BlockSize], "write acknowledged before the snapshot")
		})
	}
}

// A snapshot taken while the layer that it names is being folded, at any moment of the
// fold, gets its root.
func TestSnapshotDuringFold(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpWrite, vfs.OpDatasync} {
		for _, dir := range []string{"chunks", "catalog"} {
			for _, more := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v in %s, more=%v", kind, dir, more), func(t *testing.T) {
					snapshotDuringFold(t, kind, dir, more)
				})
			}
		}
	}
}

func snapshotDuringFold(t *testing.T, kind vfs.OpKind, dir string, more bool) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	want := make([]byte, v.Size())
	copy(want, noise(1, 8*BlockSize))
	writeAt(t, v, want[:8*BlockSize], 0)
	type answer struct {
		info SnapshotInfo
		err  error
	}
	answers := make(chan answer, 1)
	var once sync.Once
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == kind && strings.HasPrefix(op.Name, testDir+"/"+dir+"/") {
			once.Do(func() {
				fsys.SetHook(nil)
				if more { // another layer above the one being folded
					copy(want[BlockSize:], noise(7, BlockSize))
					if _, err := v.WriteAt(want[BlockSize:2*BlockSize], BlockSize); err != nil {
						t.Error(err)
					}
				}
				began := make(chan struct{})
				done := make(chan struct{})
				go func() {
					close(began)
					info, err := s.CreateSnapshot(context.Background(), v.ID(), "s", nil)
					answers <- answer{info, err}
					close(done)
				}()
				<-began
				select { // the snapshot may or may not wait for the fold
				case <-done:
				case <-time.After(50 * time.Millisecond):
				}
			})
		}
		return nil
	})
	if _, err := s.foldOnce(v); err != nil {
		t.Fatal(err)
	}
	var a answer
	within(t, 10*time.Second, "snapshot", func() { a = <-answers })
	ok(t, a.err)
	crashed := crashedClone(t, mem, smallOptions())
	foldAll(t, s)
	wantSnapshot(t, s, a.info.ID, want)
	wantClean(t, s)
	ok(t, s.Close())
	s = openStore(t, mem, smallOptions())
	wantSnapshot(t, s, a.info.ID, want)
	ok(t, s.Close())
	foldAll(t, crashed)
	wantSnapshot(t, crashed, a.info.ID, want)
}

// However eager the folds are, a snapshot is of its first mark: no fold gets above that
// before the cut is recorded, for then it would have to mark again, and again.
func TestSnapshotIsNotOvertaken(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	want := make([]byte, v.Size())
	copy(want, noise(1, 8*BlockSize))
	writeAt(t, v, want[:8*BlockSize], 0)
	marks := 0
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpDatasync || !strings.HasPrefix(op.Name, testDir+"/journal/") || marks == 10 {
			return nil // a later mark finds all folded, and syncs nothing
		}
		marks++
		if _, err := v.WriteAt(noise(uint64(100+marks), BlockSize), 0); err != nil {
			t.Error(err)
		}
		for range 3 {
			if _, err := s.foldOnce(v); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	info, err := s.CreateSnapshot(context.Background(), v.ID(), "s", nil)
	ok(t, err)
	fsys.SetHook(nil)
	if marks != 1 {
		t.Errorf("the journal was synced for %d marks, want 1", marks)
	}
	foldAll(t, s)
	wantSnapshot(t, s, info.ID, want)
	wantClean(t, s)
	ok(t, s.Close())
}

// A fold whose commit comes between a snapshot's mark and its record, or between the
// record and what tells the layer of it, leaves no snapshot without a root.
func TestFoldDuringSnapshot(t *testing.T) {
	for _, held := range []struct {
		kind vfs.OpKind
		dir  string
	}{{vfs.OpDatasync, "journal"}, {vfs.OpWrite, "catalog"}} {
		t.Run(fmt.Sprintf("%v in %s", held.kind, held.dir), func(t *testing.T) {
			mem := vfs.NewMem()
			fsys := vfs.NewFaulty(mem)
			s := openStore(t, fsys, smallOptions())
			v := newVolume(t, s, "v", 1<<20)
			want := make([]byte, v.Size())
			copy(want, noise(1, 8*BlockSize))
			writeAt(t, v, want[:8*BlockSize], 0)
			var foldStep, cutStep sync.Once
			var id string
			reached, folded, taken := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			wait := func(ch <-chan struct{}) {
				select {
				case <-ch:
				case <-time.After(150 * time.Millisecond): // one waits for the other: as good
				}
			}
			fsys.SetHook(func(op vfs.Op) error {
				switch {
				case op.Kind == vfs.OpDatasync && strings.HasPrefix(op.Name, testDir+"/chunks/"):
					foldStep.Do(func() {
						go func() {
							info, err := s.CreateSnapshot(context.Background(), v.ID(), "s", nil)
							id = info.ID
							taken <- err
						}()
						wait(reached)
					})
				case op.Kind == held.kind && strings.HasPrefix(op.Name, testDir+"/"+held.dir+"/"):
					cutStep.Do(func() {
						close(reached)
						wait(folded)
					})
				}
				return nil
			})
			if _, err := s.foldOnce(v); err != nil {
				t.Fatal(err)
			}
			close(folded)
			within(t, 10*time.Second, "snapshot", func() { ok(t, <-taken) })
			fsys.SetHook(nil)
			crashed := crashedClone(t, mem, smallOptions())
			foldAll(t, crashed)
			wantSnapshot(t, crashed, id, want)
			foldAll(t, s)
			wantSnapshot(t, s, id, want)
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}
