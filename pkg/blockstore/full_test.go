package blockstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// used is how much of the disk is taken.
func used(t testing.TB, fsys *vfs.Mem) int64 {
	t.Helper()
	fsys.SetCapacity(1 << 40)
	sp := must(fsys.Space(testDir))(t)
	return sp.Total - sp.Free
}

// ballast is a volume of n noise bytes that is detached and folded.
func ballast(t testing.TB, s *Store, name string, seed uint64, n int64) (id string, image []byte) {
	t.Helper()
	v := newVolume(t, s, name, n)
	image = noise(seed, int(v.Size()))
	for off := int64(0); off < v.Size(); off += 256 << 10 {
		writeAt(t, v, image[off:off+256<<10], off)
	}
	ok(t, v.Close())
	return v.ID(), image
}

// waitFor polls until cond holds.
func waitFor(t testing.TB, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
	}
}

func fullOptions() Options {
	o := smallOptions()
	o.JournalBytes, o.SegmentBytes, o.FoldBytes = 2<<20, 128<<10, 256<<10
	o.ReserveBytes = 512 << 10
	return o
}

// fullWriter rewrites its volume with noise until told to stop.
type fullWriter struct {
	v     *Volume
	id    uint64
	image []byte
	acked atomic.Int64 // writes
	lock  sync.Mutex   // of image
}

func (w *fullWriter) run(t *testing.T, stop <-chan struct{}) {
	const piece = 32 << 10
	for n := uint64(0); ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		off := int64(n*7%uint64(len(w.image)/piece)) * piece
		p := noise(w.id<<32|n, piece)
		if _, err := w.v.WriteAt(p, off); err != nil {
			t.Errorf("write on a full disk: %v", err)
			return
		}
		w.lock.Lock()
		copy(w.image[off:], p)
		w.lock.Unlock()
		w.acked.Add(1)
	}
}

// TestFull fills the disk while writers write, at various points, and lets space return
// by deletion, by growth of the disk, or by overwriting: I9.
func TestFull(t *testing.T) {
	leaktest.Check(t)
	for _, spare := range []int64{0, 64 << 10, 300 << 10, 1 << 20, 3 << 20} {
		for _, relief := range []string{"delete volume", "delete snapshot", "grow disk"} {
			t.Run(fmt.Sprintf("%d KiB left, %s", spare>>10, relief), func(t *testing.T) {
				t.Parallel()
				testFull(t, spare, relief)
			})
		}
	}
}

// TestCreateAboveTheReserve: as long as the reserve is whole a volume can be made, however
// little there is beside it.
func TestCreateAboveTheReserve(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, fullOptions())
	fsys.SetCapacity(used(t, fsys))
	for i := range 20 {
		must(s.CreateVolume(VolumeSpec{Name: fmt.Sprint("v", i), SizeBytes: 1 << 30}))(t)
	}
	if s.isFull() {
		t.Error("the store is full of volumes that hold nothing")
	}
	ok(t, s.Close())
}

func testFull(t *testing.T, spare int64, relief string) {
	ctx := context.Background()
	fsys := vfs.NewMem()
	s := openStore(t, fsys, fullOptions())
	stopRun := runStore(t, s)
	doomed, doomedImage := ballast(t, s, "doomed", 1, 4<<20)
	sn := must(s.CreateSnapshot(ctx, doomed, "sn", nil))(t)
	must(s.WaitSnapshot(ctx, sn.ID))(t)
	if relief == "delete snapshot" {
		ok(t, s.DeleteVolume(doomed))
	} else {
		ok(t, s.DeleteSnapshot(sn.ID))
	}
	writers := []*fullWriter{}
	for i := range 3 {
		v := newVolume(t, s, fmt.Sprint("w", i), 1<<20)
		writers = append(writers, &fullWriter{v: v, id: uint64(i + 10), image: make([]byte, v.Size())})
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, w := range writers {
		wg.Go(func() { w.run(t, stop) })
	}
	time.Sleep(100 * time.Millisecond)
	capacity := used(t, fsys) + spare
	fsys.SetCapacity(capacity)
	total := func() (n int64) {
		for _, w := range writers {
			n += w.acked.Load()
		}
		return n
	}
	// The writers overwrite themselves, so collection could keep them going for ever;
	// they must never fail, and reads go on.
	stalledAt := int64(-1)
	for range 6 {
		before := total()
		time.Sleep(50 * time.Millisecond)
		for _, w := range writers {
			p := make([]byte, BlockSize)
			within(t, 10*time.Second, "read on a full disk", func() {
				if _, err := w.v.ReadAt(p, 0); err != nil {
					t.Errorf("read on a full disk: %v", err)
				}
			})
		}
		if total() == before {
			stalledAt = before
		}
	}
	if s.isFull() {
		_, err := s.CreateVolume(VolumeSpec{Name: "more", SizeBytes: 1 << 20})
		if err == nil && s.isFull() || err != nil && (!errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "full")) {
			t.Errorf("create on a full disk: %v", err)
		}
	}
	switch relief {
	case "delete volume":
		if s.loaded(doomed) == nil { // still there, whatever the disk
			v := attach(t, s, doomed)
			wantImage(t, readAll(t, v), doomedImage, "volume on a full disk")
			ok(t, v.Close())
		}
		within(t, 10*time.Second, "delete volume", func() { ok(t, s.DeleteVolume(doomed)) })
	case "delete snapshot":
		within(t, 10*time.Second, "delete snapshot", func() { ok(t, s.DeleteSnapshot(sn.ID)) })
	case "grow disk":
		fsys.SetCapacity(capacity + 64<<20)
	}
	before := total()
	waitFor(t, 20*time.Second, "writers go on", func() bool { return total() > before+60 })
	close(stop)
	within(t, 20*time.Second, "writers end", wg.Wait)
	within(t, 20*time.Second, "collect", func() { must(s.Collect(ctx))(t) })
	waitFor(t, 20*time.Second, "the store is not full any more", func() bool { return !s.isFull() })
	must(s.CreateVolume(VolumeSpec{Name: "after", SizeBytes: 1 << 20}))(t)
	waitFor(t, 20*time.Second, "reserve is whole", func() bool {
		return s.reserve.bytes() >= int64(s.reserve.base)*s.reserve.fileBytes
	})
	t.Logf("stalled at %d of %d writes", stalledAt, total())
	for _, w := range writers {
		wantImage(t, readAll(t, w.v), w.image, "volume")
	}
	wantClean(t, s)
	stopRun()
	ok(t, s.Close())
	s = openStore(t, fsys, fullOptions())
	for _, w := range writers {
		v := attach(t, s, w.v.ID())
		wantImage(t, readAll(t, v), w.image, "volume after reopening")
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// TestFullStops fills the disk with data that nothing can collect: writers wait and get
// no error, the full store can be read, stopped and started, and deletion frees it.
func TestFullStops(t *testing.T) {
	leaktest.Check(t)
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("kill=", kill), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			fsys := vfs.NewMem()
			s := openStore(t, fsys, fullOptions())
			stopRun := runStore(t, s)
			doomed, doomedImage := ballast(t, s, "doomed", 1, 4<<20)
			waitFor(t, 10*time.Second, "fold", func() bool { return s.loaded(doomed) == nil })
			fsys.SetCapacity(used(t, fsys) + 6<<20)
			v := newVolume(t, s, "w", 16<<20)
			want := make([]byte, v.Size())
			const piece = 64 << 10
			var at atomic.Int64
			ended := make(chan struct{})
			var last error
			go func() {
				defer close(ended)
				for off := int64(0); off < v.Size() && last == nil; off += piece {
					p := noise(uint64(off)+1, piece)
					if _, last = v.WriteAt(p, off); last == nil {
						copy(want[off:], p)
						at.Store(off + piece)
					}
				}
			}()
			still := 0
			waitFor(t, 30*time.Second, "the writer waits", func() bool {
				before := at.Load()
				time.Sleep(50 * time.Millisecond)
				if still++; at.Load() != before {
					still = 0
				}
				return still > 20
			})
			select {
			case <-ended:
				t.Fatalf("the writer has ended at %d: %v", at.Load(), last)
			default:
			}
			if !s.isFull() || !s.Stats(false).Full {
				t.Error("the store does not say that it is full")
			}
			if n := at.Load(); n < 3<<20 {
				t.Errorf("the disk had room for 6 MiB, the writer waits after %d", n)
			}
			_, err := s.CreateVolume(VolumeSpec{Name: "more", SizeBytes: 1 << 20})
			if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "full") {
				t.Errorf("create on a full disk: %v", err)
			}
			got := make([]byte, at.Load())
			must(v.ReadAt(got, 0))(t)
			wantImage(t, got, want[:len(got)], "volume on a full disk")
			within(t, 10*time.Second, "flush on a full disk", func() { ok(t, v.Flush()) })
			d := attach(t, s, doomed)
			wantImage(t, readAll(t, d), doomedImage, "other volume on a full disk")
			ok(t, d.Close())
			wantClean(t, s)
			acked := at.Load()
			if kill {
				stopRun()
				s.abandon()
				fsys.Kill()
				_ = v.Close() // on a dead disk: only so that the writer ends
				within(t, 10*time.Second, "writer of the dead process ends", func() { <-ended })
			} else {
				within(t, 10*time.Second, "detach on a full disk", func() { ok(t, v.Close()) })
				within(t, 10*time.Second, "writer ends", func() { <-ended })
				if !errors.Is(last, ErrClosed) {
					t.Errorf("the waiting write ended with %v, want ErrClosed", last)
				}
				acked = at.Load()
				stopRun()
				within(t, 20*time.Second, "close on a full disk", func() { ok(t, s.Close()) })
			}
			within(t, 20*time.Second, "open on a full disk", func() { s = openStore(t, fsys, fullOptions()) })
			stopRun = runStore(t, s)
			v2 := attach(t, s, v.ID())
			got = make([]byte, acked)
			must(v2.ReadAt(got, 0))(t)
			wantImage(t, got, want[:acked], "volume after reopening the full store")
			ok(t, s.DeleteVolume(doomed))
			image := append(got, make([]byte, v.Size()-acked)...)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for off := acked; off < acked+2<<20; off += piece {
					p := noise(uint64(off)+99, piece)
					if _, err := v2.WriteAt(p, off); err != nil {
						t.Errorf("write after the deletion: %v", err)
						return
					}
					copy(image[off:], p)
				}
			}()
			within(t, 30*time.Second, "writing goes on after a deletion", func() { <-done })
			if t.Failed() {
				return
			}
			wantImage(t, readAll(t, v2), image, "volume")
			must(s.Collect(ctx))(t)
			wantClean(t, s)
			stopRun()
			ok(t, s.Close())
		})
	}
}

// TestFullSteps does the same without goroutines, by the step functions.
func TestFullSteps(t *testing.T) {
	for _, left := range []int64{0, 32 << 10, 200 << 10, 500 << 10, 1 << 20, 2 << 20} {
		t.Run(fmt.Sprintf("%d KiB left", left>>10), func(t *testing.T) {
			fsys := vfs.NewMem()
			s := openStore(t, fsys, fullOptions())
			doomed, _ := ballast(t, s, "doomed", 1, 1<<20)
			foldAll(t, s)
			v := newVolume(t, s, "v", 8<<20)
			want := make([]byte, v.Size())
			fsys.SetCapacity(used(t, fsys) + left)
			n := int64(0)
			step := func() bool {
				off := n % (v.Size() / BlockSize) * BlockSize
				p := noise(uint64(n)+5, BlockSize)
				op, err := v.begin(wal.TypeWrite, off, BlockSize, p)
				if errors.Is(err, errWait) {
					return false
				}
				ok(t, err)
				v.append(op)
				ok(t, v.acknowledge(op))
				copy(want[off:], p)
				n++
				return true
			}
			waits := 0
			for waits < 5 && n < 4000 {
				if step() {
					waits = 0
					continue
				}
				waits++
				for { // with the reserve every fold goes through
					did, err := s.foldOnce(v)
					if err != nil {
						t.Fatalf("fold on a full disk after %d writes: %v", n, err)
					}
					if !did {
						break
					}
				}
				if waits < 3 {
					continue
				}
				must(s.Collect(context.Background()))(t)
			}
			if n >= 4000 {
				t.Fatal("the disk does not fill")
			}
			wantImage(t, readAll(t, v), want, "volume on a full disk")
			wantClean(t, s)
			ok(t, v.Flush())
			crashed := crashedClone(t, fsys, fullOptions())
			cv := attach(t, crashed, v.ID())
			wantImage(t, readAll(t, cv), want, "volume after a power cut on a full disk")
			_, err := s.CreateVolume(VolumeSpec{Name: "more", SizeBytes: 1 << 20})
			if !errors.Is(err, ErrNoSpace) {
				t.Errorf("create on a full disk: %v", err)
			}
			sn := must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t) // costs no space
			ok(t, s.DeleteVolume(doomed))
			res := must(s.Collect(context.Background()))(t)
			if res.FreedBytes < 900<<10 {
				t.Errorf("collection freed %d bytes of a deleted volume of 1 MiB", res.FreedBytes)
			}
			full := n
			for n < full+64 && step() {
			}
			if n < full+32 {
				t.Errorf("after deleting 1 MiB only %d blocks could be written", n-full)
			}
			foldAll(t, s)
			wantImage(t, readAll(t, v), want, "volume")
			ok(t, s.DeleteSnapshot(sn.ID))
			must(s.Collect(context.Background()))(t)
			fsys.SetCapacity(used(t, fsys) + 8<<20)
			if !step() { // asks for space again
				foldAll(t, s)
				if !step() {
					t.Error("no write on a disk that has grown")
				}
			}
			foldAll(t, s)
			if got := s.reserve.bytes(); got < int64(s.reserve.base)*s.reserve.fileBytes {
				t.Errorf("reserve of %d bytes is not refilled", got)
			}
			s.probeSpace() // as is done each second
			must(s.CreateVolume(VolumeSpec{Name: "again", SizeBytes: 1 << 20}))(t)
			wantClean(t, s)
			ok(t, s.Close())
			s = openStore(t, fsys, fullOptions())
			wantImage(t, readAll(t, attach(t, s, v.ID())), want, "volume after reopening")
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// Space that returns while nobody writes makes the store admit volumes again.
func TestFullEndsWithoutWriters(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, fullOptions())
	stopRun := runStore(t, s)
	doomed, _ := ballast(t, s, "doomed", 1, 4<<20)
	waitFor(t, 10*time.Second, "fold", func() bool { return s.loaded(doomed) == nil })
	s.noSpace() // as a fold that met a full disk
	if !s.isFull() {
		t.Fatal("not full")
	}
	ok(t, s.DeleteVolume(doomed))
	must(s.Collect(context.Background()))(t)
	waitFor(t, 10*time.Second, "the store is not full any more", func() bool { return !s.isFull() })
	must(s.CreateVolume(VolumeSpec{Name: "more", SizeBytes: 1 << 20}))(t)
	stopRun()
	ok(t, s.Close())
}

// Holes go on where a write waits, on the same volume too: the kernel's thread that makes
// them hands over the reads as well.
func TestFullTakesHoles(t *testing.T) {
	leaktest.Check(t)
	ctx := context.Background()
	fsys := vfs.NewMem()
	s := openStore(t, fsys, fullOptions())
	stopRun := runStore(t, s)
	v := newVolume(t, s, "v", 4<<20)
	image := noise(1, int(v.Size()))
	writeAt(t, v, image, 0)
	sn := must(s.CreateSnapshot(ctx, v.ID(), "sn", nil))(t) // so that no hole gives space back
	must(s.WaitSnapshot(ctx, sn.ID))(t)
	fsys.SetCapacity(used(t, fsys) + 300<<10)

	w := &fullWriter{v: newVolume(t, s, "w", 4<<20), id: 2, image: make([]byte, 4<<20)}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { w.run(t, stop) })
	wg.Go(func() { // and one more on the volume of the holes, behind them
		writeAt(t, v, noise(3, 1<<20), 3<<20)
	})
	copy(image[3<<20:], noise(3, 1<<20))
	for _, volume := range []*Volume{v, w.v} {
		waitFor(t, 20*time.Second, "the volume waits", func() bool { return waitsSince(volume) })
	}
	n := 0
	for ; n < 500; n++ {
		off := int64(n*7%(3<<20/sectorBytes-2)) * sectorBytes
		size := int64(1+n%2) * 2 * sectorBytes // parts of blocks too
		var err error
		within(t, 20*time.Second, "a hole on a full disk", func() { err = v.Discard(off, size) })
		if n >= 6 && errors.Is(err, ErrNoSpace) { // what is kept for holes is used up
			break
		}
		ok(t, err)
		clear(image[off : off+size])
	}
	t.Logf("%d holes", n)
	for _, volume := range []*Volume{v, w.v} {
		waitFor(t, 10*time.Second, "the volume still says that it waits", func() bool { return waitsSince(volume) })
	}
	ok(t, v.Flush())
	wantImage(t, readAll(t, v)[:3<<20], image[:3<<20], "volume with holes on a full disk")
	fsys.SetCapacity(1 << 40)
	done := w.acked.Load()
	waitFor(t, 20*time.Second, "the writer goes on", func() bool { return w.acked.Load() > done })
	close(stop)
	wg.Wait()
	waitFor(t, 20*time.Second, "the store is not full any more", func() bool { return !s.isFull() })
	wantImage(t, readAll(t, v), image, "volume with holes")
	wantImage(t, readAll(t, w.v), w.image, "the writer's volume")
	wantClean(t, s)
	stopRun()
	ok(t, s.Close())
}

// A hole that has waited for a fold and is refused then waits no more, nor does its volume.
func TestRefusedHoleDoesNotWait(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, fullOptions())
	v := newVolume(t, s, "v", 1<<20)
	fsys.SetCapacity(used(t, fsys))
	s.setFull(true, ErrNoSpace)
	const much = 1 << 40
	s.reserve.debt.Add(much)
	ended := make(chan error, 1)
	go func() { ended <- v.Discard(0, BlockSize) }()
	waitFor(t, 10*time.Second, "the hole waits", func() bool { return waitsSince(v) })
	s.reserve.debt.Add(-much)
	s.reserve.covered.Add(-much)
	s.pool.Wake()
	within(t, 10*time.Second, "the hole is refused", func() {
		if err := <-ended; !errors.Is(err, ErrNoSpace) {
			t.Errorf("hole: %v", err)
		}
	})
	if waitsSince(v) {
		t.Error("the volume says that it waits")
	}
}

// A hole that needs a journal segment when none is free, on a full disk, and with nothing to
// fold, is refused after some seconds: nobody else would ever end its wait, and reads wait
// behind it. Wakings do not make it longer.
func TestHoleWithNothingToFold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := vfs.NewMem()
		s := openStore(t, fsys, fullOptions())
		stop := runStore(t, s)
		v := newVolume(t, s, "v", 1<<20)
		synctest.Wait() // segments are made ahead
		fsys.SetCapacity(used(t, fsys))
		s.setFull(true, ErrNoSpace)
		var taken []*journal.Segment
		for seg, err := s.pool.GetFree(); err == nil; seg, err = s.pool.GetFree() {
			taken = append(taken, seg)
		}
		began, ended := time.Now(), make(chan error, 1)
		go func() { ended <- v.Discard(0, BlockSize) }()
		for range 3 {
			time.Sleep(holeWait / 4)
			s.pool.Wake()
			synctest.Wait()
			if !waitsSince(v) || len(ended) > 0 {
				t.Errorf("after %v the hole does not wait", time.Since(began))
			}
		}
		select {
		case err := <-ended:
			if !errors.Is(err, ErrNoSpace) || time.Since(began) != holeWait {
				t.Errorf("hole: %v after %v", err, time.Since(began))
			}
		case <-time.After(10 * holeWait):
			t.Fatal("the hole waits on") // and the bubble says where
		}
		if waitsSince(v) {
			t.Error("the volume says that it waits")
		}
		for _, seg := range taken {
			seg.Release()
		}
		ok(t, v.Discard(0, BlockSize))
		ok(t, v.Close())
		stop()
		ok(t, s.Close())
	})
}

// waitsSince tells whether the volume says that its records wait for space.
func waitsSince(v *Volume) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return !v.mu.starved.IsZero()
}

// Each record that is taken from a writer is covered by files of the reserve, and no
// segment goes to a writer while something of it is missing (I9).
func TestReserveCoversEachRecord(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, fullOptions())
	v := newVolume(t, s, "v", 1<<20)
	for n := range int64(20) {
		writeAt(t, v, noise(uint64(n), BlockSize), n*BlockSize)
		if debt, covered := s.reserve.debt.Load(), s.reserve.covered.Load(); debt > covered {
			t.Fatalf("after %d writes folding may append %d bytes, and the reserve covers %d", n+1, debt, covered)
		}
	}
	foldAll(t, s)
	for s.reserve.bytes() >= int64(s.reserve.base)*s.reserve.fileBytes {
		if !s.reserve.release() {
			t.Fatal("no reserve")
		}
	}
	room := used(t, fsys)
	fsys.SetCapacity(room) // somebody else took what was given up
	if seg, err := s.pool.Get(); !errors.Is(err, ErrNoSpace) {
		t.Errorf("segment %v, %v", seg, err)
	}
	fsys.SetCapacity(2 * room)
	seg, err := s.pool.Get()
	ok(t, err)
	seg.Release()
	ok(t, v.Close())
	ok(t, s.Close())
}
