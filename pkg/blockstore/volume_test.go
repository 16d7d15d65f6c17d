package blockstore

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// A write whose volume is closed after it was let in, and before it has its place in the
// journal, is refused: nobody would make it durable. It owes nothing to the reserve then.
func TestWriteOfAVolumeClosedMeanwhile(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	o := smallOptions()
	o.ReserveBytes = 1 // what a write needs has to be allocated first
	s := openStore(t, fsys, o)
	v := newVolume(t, s, "v", 1<<20)
	for i := range int64(15) { // little journal, and much to fold
		ok(t, v.Discard(i*BlockSize+512, 512))
	}
	before, last := s.reserve.debt.Load(), v.mu.next
	closed := false
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpCreate && strings.Contains(op.Name, "/"+dirReserve+"/") && !closed {
			closed = true
			ok(t, v.Close())
		}
		return nil
	})
	if _, err := v.WriteAt(noise(2, 30*BlockSize), 0); !errors.Is(err, ErrClosed) || !closed {
		t.Errorf("write: %v, want ErrClosed", err)
	}
	fsys.SetHook(nil)
	if now := s.reserve.debt.Load(); now != before {
		t.Errorf("a debt of %d bytes after the write, %d before", now, before)
	}
	v = attach(t, s, v.ID())
	if v.mu.next > last+1 { // the mark of Close
		t.Errorf("the journal goes on at %d, it ended at %d", v.mu.next, last)
	}
	wantImage(t, readAll(t, v), make([]byte, v.Size()), "volume")
	ok(t, s.Close())
}

// Everybody who waits for records in flight hears of an append that fails.
func TestFailedAppendEndsWhoWaits(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	first := must(v.begin(wal.TypeWrite, 0, BlockSize, noise(1, BlockSize)))(t)
	later := must(v.begin(wal.TypeWrite, BlockSize, BlockSize, noise(2, BlockSize)))(t)
	v.append(later)
	writer, cut := make(chan error, 1), make(chan error, 1)
	go func() { writer <- v.acknowledge(later) }()
	go func() { cut <- v.syncUpTo(later.seq) }()
	waitLocked(t, v, func() bool { return later.wait != nil })
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && strings.HasSuffix(op.Name, ".seg") {
			return syscall.EIO
		}
		return nil
	})
	v.append(first)
	within(t, 10*time.Second, "the writer and the cut", func() {
		if err := <-writer; !errors.Is(err, ErrFailed) {
			t.Errorf("write behind a gap: %v", err)
		}
		if err := <-cut; !errors.Is(err, ErrFailed) {
			t.Errorf("cut behind a gap: %v", err)
		}
	})
	if err := v.acknowledge(first); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Errorf("the write that failed: %v", err)
	}
}

// TestFailedByAFullDisk: a copy-on-write file system may have no space for a journal's
// block that is allocated. The volume has failed then: it does not wait for space.
func TestFailedByAFullDisk(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpWrite, vfs.OpDatasync} {
		fsys := vfs.NewFaulty(vfs.NewMem())
		s := openStore(t, fsys, smallOptions())
		v := newVolume(t, s, "v", 1<<20)
		writeAt(t, v, noise(1, BlockSize), 0)
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == kind && strings.HasSuffix(op.Name, ".seg") {
				return vfs.ErrNoSpace
			}
			return nil
		})
		_, err := v.WriteAt(noise(2, BlockSize), 0)
		if err == nil {
			err = v.Flush()
		}
		again := v.Flush()
		for _, err := range []error{err, again} {
			if !errors.Is(err, ErrFailed) || errors.Is(err, ErrNoSpace) {
				t.Errorf("%v of a segment on a full disk: %v", kind, err)
			}
		}
		fsys.SetHook(nil)
	}
}

// waitLocked waits until cond, which is called with v.mu held, is true.
func waitLocked(t *testing.T, v *Volume, cond func() bool) {
	t.Helper()
	for range 10000 {
		v.mu.Lock()
		done := cond()
		v.mu.Unlock()
		if done {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it does not come to that")
}

// A writer and a cut can wait for the same record.
func TestWriterAndCutWaitTogether(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	first := must(v.begin(wal.TypeWrite, 0, BlockSize, noise(1, BlockSize)))(t)
	later := must(v.begin(wal.TypeWrite, BlockSize, BlockSize, noise(2, BlockSize)))(t)
	v.append(later)
	ended := make(chan error, 3)
	go func() { ended <- v.acknowledge(later) }()
	waitLocked(t, v, func() bool { return later.wait != nil })
	go func() { ended <- v.syncUpTo(later.seq) }()
	go func() { ended <- v.Close() }()
	waitLocked(t, v, func() bool { return v.mu.closing })
	time.Sleep(10 * time.Millisecond) // the cut may have come to its wait, too
	v.append(first)
	within(t, 10*time.Second, "all who wait", func() {
		for range 3 {
			ok(t, <-ended)
		}
	})
	if info := must(s.Volume(v.ID()))(t); info.Open || info.Failed != "" {
		t.Errorf("%+v", info)
	}
	ok(t, s.Close())
}

// Payloads that are not synced stay in memory, and no more of them than is allowed: then
// the writer syncs.
func TestUnsyncedMemoryIsBounded(t *testing.T) {
	o := smallOptions()
	o.UnsyncedBytes = 64 << 10
	s := openStore(t, vfs.NewMem(), o)
	v := newVolume(t, s, "v", 4<<20)
	for i := range int64(64) {
		writeAt(t, v, noise(uint64(i), 4*BlockSize), i*4*BlockSize)
		if v.mu.memory > o.UnsyncedBytes+4*BlockSize {
			t.Fatalf("%d bytes in memory after %d writes, %d are allowed", v.mu.memory, i+1, o.UnsyncedBytes)
		}
	}
	ok(t, v.Flush())
	if v.mu.memory != 0 || len(v.mu.unsynced) != 0 {
		t.Errorf("%d bytes of %d payloads in memory after a flush", v.mu.memory, len(v.mu.unsynced))
	}
	ok(t, v.Close())
	if err := v.Flush(); !errors.Is(err, ErrClosed) {
		t.Errorf("flush of a closed volume: %v", err)
	}
	ok(t, s.Close())
}

// Ranges are whole sectors of the volume, for every kind of access, exact to the last one.
func TestVolumeRanges(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := noise(1, 1<<20)
	writeAt(t, v, image, 0)
	const end = 1 << 20
	calls := map[string]func(off, n int64) error{
		"read":         func(off, n int64) error { _, err := v.ReadAt(make([]byte, max(0, n)), off); return err },
		"write":        func(off, n int64) error { _, err := v.WriteAt(make([]byte, max(0, n)), off); return err },
		"discard":      v.Discard,
		"write zeroes": v.WriteZeroes,
	}
	for what, call := range calls {
		for _, c := range []struct {
			off, n int64
			want   error
		}{
			{-512, 512, ErrInvalid}, {1, 512, ErrInvalid}, {256, 512, ErrInvalid}, {0, 511, ErrInvalid}, {512, 1, ErrInvalid},
			{end, 512, ErrRange}, {end - 512, 1024, ErrRange}, {2 * end, 512, ErrRange}, {1 << 62, 1 << 30, ErrRange},
		} {
			if c.n > end {
				continue
			}
			if err := call(c.off, c.n); !errors.Is(err, c.want) {
				t.Errorf("%s of %d bytes at %d: %v, want %v", what, c.n, c.off, err, c.want)
			}
		}
		ok(t, call(end, 0))
	}
	for what, call := range map[string]func(off, n int64) error{"discard": v.Discard, "write zeroes": v.WriteZeroes} {
		if err := call(512, -512); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s of less than nothing: %v", what, err)
		}
		if err := call(512, 1<<62); !errors.Is(err, ErrRange) {
			t.Errorf("%s of more than there is: %v", what, err)
		}
	}
	wantImage(t, readAll(t, v), image, "volume after refused calls")
	ok(t, v.Discard(512, 1024))
	ok(t, v.WriteZeroes(end-512, 512))
	clear(image[512:1536])
	clear(image[end-512:])
	wantImage(t, readAll(t, v), image, "volume with holes")
	foldAll(t, s)
	wantImage(t, readAll(t, v), image, "volume with holes, folded")
	ok(t, v.Close())
	ok(t, s.Close())
}

// blockFirst blocks the first operation for which is holds until goOn is closed; entered
// is closed when it has come.
func blockFirst(fsys *vfs.Faulty, is func(vfs.Op) bool) (entered, goOn chan struct{}) {
	entered, goOn = make(chan struct{}), make(chan struct{})
	var came atomic.Bool
	fsys.SetHook(func(op vfs.Op) error {
		if is(op) && !came.Swap(true) {
			close(entered)
			<-goOn
		}
		return nil
	})
	return entered, goOn
}

func syncsSegment(op vfs.Op) bool {
	return op.Kind == vfs.OpDatasync && strings.HasSuffix(op.Name, ".seg")
}

// wantsToWait fails the test if a call ends before something that it has to wait for is
// let go on, or does not end then.
func wantsToWait(t *testing.T, what string, entered, goOn chan struct{}, call func() error) {
	t.Helper()
	<-entered
	ended := make(chan error, 1)
	go func() { ended <- call() }()
	select {
	case err := <-ended:
		t.Errorf("%s ended too early: %v", what, err)
		close(goOn)
		return
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	within(t, 10*time.Second, what, func() { ok(t, <-ended) })
}

// A flush beside another one that has taken the journal's segments to sync is answered
// when that one's sync has ended, not before.
func TestFlushWaitsForAnother(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	ok(t, v.Flush())
	writeAt(t, v, noise(2, BlockSize), 0)
	entered, goOn := blockFirst(fsys, syncsSegment)
	first := make(chan error, 1)
	go func() { first <- v.Flush() }()
	wantsToWait(t, "the second flush", entered, goOn, v.Flush)
	ok(t, <-first)
	fsys.SetHook(nil)
	ok(t, v.Close())
	ok(t, s.Close())
}

// So is a flush beside the header of a new log, which makes durable what it builds on.
func TestFlushWaitsForANewLog(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	id := v.ID()
	writeAt(t, v, noise(1, BlockSize), 0)
	mem.Kill()
	s.abandon()
	fsys := vfs.NewFaulty(mem)
	s = openStore(t, fsys, smallOptions())
	v = attach(t, s, id)
	entered, goOn := blockFirst(fsys, syncsSegment)
	written := make(chan error, 1)
	go func() {
		_, err := v.WriteAt(noise(2, BlockSize), BlockSize)
		written <- err
	}()
	wantsToWait(t, "a flush of what was read back", entered, goOn, v.Flush)
	ok(t, <-written)
	fsys.SetHook(nil)
	ok(t, v.Close())
	ok(t, s.Close())
}

// A flush makes durable what was appended, and counts nothing else as durable: a record
// whose mark said more would turn a torn tail into damage.
func TestFlushCoversWhatIsAppended(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	op := must(v.begin(wal.TypeWrite, BlockSize, BlockSize, noise(2, BlockSize)))(t)
	ok(t, v.Flush())
	if v.mu.synced != op.seq-1 {
		t.Errorf("records up to %d count as durable, %d is not written yet", v.mu.synced, op.seq)
	}
	v.append(op)
	ok(t, v.acknowledge(op))
	ok(t, v.Close())
	ok(t, s.Close())
}

// While a segment is made for a volume's journal nobody takes a place in it, nor has
// another one made: it says which sequence comes first.
func TestWritersWaitForASegment(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	entered, goOn := blockFirst(fsys, func(op vfs.Op) bool {
		return op.Kind == vfs.OpCreate && strings.Contains(op.Name, "/"+dirJournal+"/")
	})
	first := make(chan error, 1)
	write := func(seed uint64) error {
		_, err := v.WriteAt(noise(seed, BlockSize), int64(seed)*BlockSize)
		return err
	}
	go func() { first <- write(1) }()
	wantsToWait(t, "the second write", entered, goOn, func() error { return write(2) })
	ok(t, <-first)
	if st := s.pool.Stats(); st.InUse != 1 {
		t.Errorf("segments: %+v", st)
	}
	want := make([]byte, v.Size())
	copy(want[BlockSize:], noise(1, BlockSize))
	copy(want[2*BlockSize:], noise(2, BlockSize))
	wantImage(t, readAll(t, v), want, "volume")
	ok(t, v.Close())
	ok(t, s.Close())
}

// Two folds of a volume run one after the other, each on a layer of its own.
func TestFoldWaitsForAnother(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	entered, goOn := blockFirst(fsys, func(op vfs.Op) bool {
		return op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/"+dirChunks+"/")
	})
	first := make(chan error, 1)
	go func() {
		_, err := s.foldOnce(v)
		first <- err
	}()
	wantsToWait(t, "the second fold", entered, goOn, func() error {
		_, err := s.foldOnce(v)
		return err
	})
	ok(t, <-first)
	fsys.SetHook(nil)
	wantClean(t, s)
	ok(t, v.Close())
	ok(t, s.Close())
}
