package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// faultVolume is what the workload knows of a volume: images that it may have.
type faultVolume struct {
	id      string
	flushed []byte // the image as of the last flush that was answered well
	writes  []simWrite
	frozen  bool // nothing more is known: operations failed half way
}

// allowed tells whether an image is flushed plus a prefix of the writes since. A write
// that failed may or may not be there.
func (f *faultVolume) allowed(image []byte) bool {
	st := bytes.Clone(f.flushed)
	if bytes.Equal(st, image) {
		return true
	}
	for _, w := range f.writes {
		w.apply(st)
		if bytes.Equal(st, image) {
			return true
		}
	}
	return false
}

// workload is a fixed sequence of operations that goes on after errors as a user would.
type workload struct {
	t     *testing.T
	s     *Store
	vols  map[string]*faultVolume
	snaps map[string][][]byte // ID -> images that it may have
	errs  []string
}

func (w *workload) failed(what string, err error) bool {
	if err != nil {
		w.errs = append(w.errs, what+": "+err.Error())
	}
	return err != nil
}

func (w *workload) create(spec VolumeSpec, image []byte) (*faultVolume, *Volume) {
	info, err := w.s.CreateVolume(spec)
	if w.failed("create", err) {
		return nil, nil
	}
	f := &faultVolume{id: info.ID, flushed: image}
	w.vols[info.ID] = f
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	v, err := w.s.OpenVolume(ctx, info.ID)
	if w.failed("open", err) {
		return f, nil
	}
	return f, v
}

// put writes without waiting for space, as there is nobody who makes some.
func (w *workload) put(f *faultVolume, v *Volume, p []byte, off int64) {
	if v == nil {
		return
	}
	op, err := v.begin(wal.TypeWrite, off, int64(len(p)), p)
	if w.failed("begin", err) {
		return
	}
	f.writes = append(f.writes, simWrite{off: off, n: int64(len(p)), data: p})
	v.append(op)
	w.failed("write", v.acknowledge(op))
}

func (w *workload) flush(f *faultVolume, v *Volume) {
	if v == nil || w.failed("flush", v.Flush()) {
		return
	}
	for _, wr := range f.writes {
		wr.apply(f.flushed)
	}
	f.writes = nil
}

func (w *workload) fold(id string) {
	if v := w.s.loaded(id); v != nil {
		_, err := w.s.foldOnce(v)
		w.failed("fold", err)
	}
}

// images lists what a volume may look like now.
func (f *faultVolume) images() [][]byte {
	st := bytes.Clone(f.flushed)
	out := [][]byte{bytes.Clone(st)}
	for _, w := range f.writes {
		w.apply(st)
		out = append(out, bytes.Clone(st))
	}
	return out
}

func (w *workload) snapshot(f *faultVolume, name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	info, err := w.s.CreateSnapshot(ctx, f.id, name, nil)
	if w.failed("snapshot", err) {
		return ""
	}
	images := f.images()
	w.snaps[info.ID] = images
	// It holds everything acknowledged before, durably; writes that failed may be in it.
	return info.ID
}

func (w *workload) run() {
	t0 := make([]byte, 1<<20)
	a, av := w.create(VolumeSpec{Name: "a", SizeBytes: 1 << 20}, bytes.Clone(t0))
	b, bv := w.create(VolumeSpec{Name: "b", SizeBytes: 1 << 20}, bytes.Clone(t0))
	if a == nil || b == nil {
		return
	}
	for i := range int64(4) {
		w.put(a, av, noise(uint64(i)+1, 3*BlockSize), i*5*BlockSize)
		w.put(b, bv, noise(uint64(i)+11, 2*BlockSize+512), i*7*BlockSize+512)
	}
	w.flush(a, av)
	sn := w.snapshot(a, "s1")
	w.put(a, av, noise(31, 9*BlockSize), BlockSize)
	w.flush(b, bv)
	w.fold(a.id)
	w.fold(b.id)
	if sn != "" {
		info, err := w.s.Snapshot(sn)
		if err == nil && info.Ready && len(w.snaps[sn]) == 1 {
			c, cv := w.create(VolumeSpec{Name: "c", FromSnapshot: sn}, bytes.Clone(w.snaps[sn][0]))
			if c != nil {
				w.put(c, cv, noise(41, BlockSize), 3*BlockSize)
				w.flush(c, cv)
			}
		}
	}
	_, err := w.s.ResizeVolume(b.id, 2<<20)
	if !w.failed("resize", err) {
		b.flushed = append(b.flushed, make([]byte, 1<<20)...)
	} else {
		b.frozen = true // its size is not known
	}
	if av != nil {
		op, err := av.begin(wal.TypeHole, 0, 2*BlockSize, nil)
		if !w.failed("begin discard", err) {
			a.writes = append(a.writes, simWrite{off: 0, n: 2 * BlockSize})
			av.append(op)
			w.failed("discard", av.acknowledge(op))
		}
	}
	w.flush(a, av)
	w.fold(a.id)
	_, err = w.s.Collect(context.Background())
	w.failed("collect", err)
	for _, v := range []*Volume{av, bv} {
		if v != nil {
			w.failed("detach", v.Close())
		}
	}
	w.fold(a.id)
	w.fold(b.id)
	if sn != "" {
		err := w.s.DeleteSnapshot(sn)
		if w.failed("delete snapshot", err) {
			w.snaps[sn] = append(w.snaps[sn], nil) // may be gone
		} else {
			delete(w.snaps, sn)
		}
	}
	_, err = w.s.Collect(context.Background())
	w.failed("collect", err)
	w.failed("close", w.s.Close())
}

// verify opens what is left on a healthy file system and compares.
func (w *workload) verify(fsys vfs.FS, what string) {
	t := w.t
	t.Helper()
	s, err := Open(fsys, testDir, smallOptions())
	if err != nil {
		t.Fatalf("%s: reopening: %v\nerrors before: %s", what, err, strings.Join(w.errs, "\n"))
	}
	for id, f := range w.vols {
		if f.frozen {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		for _, info := range s.Volumes() {
			if v := s.loaded(info.ID); v != nil {
				if _, err := s.foldOnce(v); err != nil {
					t.Fatalf("%s: fold after reopening: %v\nerrors before: %s", what, err, strings.Join(w.errs, "\n"))
				}
			}
		}
		v, err := s.OpenVolume(ctx, id)
		cancel()
		if err != nil {
			t.Fatalf("%s: open volume after reopening: %v\nerrors before: %s", what, err, strings.Join(w.errs, "\n"))
		}
		got := make([]byte, v.Size())
		if _, err := v.ReadAt(got, 0); err != nil {
			t.Fatalf("%s: read after reopening: %v\nerrors before: %s", what, err, strings.Join(w.errs, "\n"))
		}
		if !f.allowed(got) {
			same := "what was flushed is not there"
			if len(got) != len(f.flushed) {
				same = fmt.Sprintf("%d bytes, want %d", len(got), len(f.flushed))
			}
			t.Fatalf("%s: volume %s: %s\nerrors before: %s", what, id[:8], same, strings.Join(w.errs, "\n"))
		}
		ok(t, v.Close())
	}
	for id, images := range w.snaps {
		w.verifySnapshot(s, id, images, what)
	}
	for _, p := range problems(t, s) {
		t.Errorf("%s: check: %v\nerrors before: %s", what, p, strings.Join(w.errs, "\n"))
	}
	if err := s.Close(); err != nil {
		t.Errorf("%s: close: %v", what, err)
	}
}

func (w *workload) verifySnapshot(s *Store, id string, images [][]byte, what string) {
	t := w.t
	mayBeGone := images[len(images)-1] == nil
	c, err := s.CreateVolume(VolumeSpec{Name: "verify", FromSnapshot: id})
	if errors.Is(err, ErrNotFound) && mayBeGone {
		return
	}
	if err != nil {
		t.Fatalf("%s: clone of snapshot: %v\nerrors before: %s", what, err, strings.Join(w.errs, "\n"))
	}
	foldAll(t, s)
	v := attach(t, s, c.ID)
	got, found := readAll(t, v), false
	for _, img := range images {
		found = found || bytes.Equal(img, got)
	}
	if !found {
		t.Fatalf("%s: snapshot differs\nerrors before: %s", what, strings.Join(w.errs, "\n"))
	}
	ok(t, v.Close())
	ok(t, s.DeleteVolume(c.ID))
}

// faultRun runs the workload with one kind of fault from the n-th operation on. It
// returns how many operations there were.
func faultRun(t *testing.T, n int64, fault error, persistent bool, what string) int64 {
	mem := vfs.NewMem()
	ok(t, openStore(t, mem, smallOptions()).Close()) // faults of making a store are another matter
	fsys := vfs.NewFaulty(mem)
	if n >= 0 {
		fsys.FailNth(n, fault, persistent)
	}
	w := &workload{t: t, vols: map[string]*faultVolume{}, snaps: map[string][][]byte{}}
	within(t, 20*time.Second, what, func() {
		s, err := Open(fsys, testDir, smallOptions())
		if w.failed("open store", err) {
			return
		}
		w.s = s
		w.run()
		s.abandon()
	})
	if n < 0 && len(w.errs) > 0 {
		t.Fatalf("without faults: %v", w.errs)
	}
	count := fsys.Count()
	fsys.SetHook(nil)
	killed := mem.Clone()
	mem.Crash(nil, 0)
	w.verify(mem, what+", power cut")
	killed.Kill()
	w.verify(killed, what+", kill")
	return count
}

// TestFaults fails every single I/O of a workload in every way: no panic, no hang, and
// what was acknowledged as flushed is there on a healthy file system.
func TestFaults(t *testing.T) {
	leaktest.Check(t)
	total := faultRun(t, -1, nil, false, "without faults")
	t.Logf("%d operations", total)
	stride := int64(1)
	if testing.Short() || raceEnabled {
		stride = 7
	}
	for _, f := range []struct {
		name string
		err  error
	}{
		{"EIO", syscall.EIO},
		{"no space", vfs.ErrNoSpace},
		{"short write", vfs.ShortWrite{N: 700, Err: syscall.EIO}},
		{"short write, no space", vfs.ShortWrite{N: 5000, Err: vfs.ErrNoSpace}},
	} {
		for _, persistent := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, persistent=%v", f.name, persistent), func(t *testing.T) {
				t.Parallel()
				for n := int64(0); n < total && !t.Failed(); n += stride {
					faultRun(t, n, f.err, persistent, fmt.Sprintf("%s at operation %d", f.name, n))
				}
			})
		}
	}
}

// A failed fsync of the journal is data loss (I8): the volume refuses everything from
// then on, what it holds is folded into new files, and another volume goes on.
func TestJournalSyncFails(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpDatasync, vfs.OpWrite} {
		t.Run(kind.String(), func(t *testing.T) {
			mem := vfs.NewMem()
			fsys := vfs.NewFaulty(mem)
			s := openStore(t, fsys, smallOptions())
			v, other := newVolume(t, s, "v", 1<<20), newVolume(t, s, "other", 1<<20)
			image, otherImage := make([]byte, v.Size()), make([]byte, other.Size())
			put := func(v *Volume, image []byte, seed uint64, off int64) {
				p := noise(seed, 2*BlockSize)
				writeAt(t, v, p, off)
				copy(image[off:], p)
			}
			put(v, image, 1, 0)
			put(other, otherImage, 2, 0)
			ok(t, v.Flush())
			put(v, image, 3, 4*BlockSize)
			mine := segmentsOf(t, mem, v.ID())[0]
			once := false
			fsys.SetHook(func(op vfs.Op) error {
				if op.Name != mine {
					return nil
				}
				if once && (op.Kind == vfs.OpDatasync || op.Kind == vfs.OpSync) {
					t.Errorf("%v of %s, whose %v failed", op.Kind, mine, kind)
				}
				if op.Kind == kind && !once {
					once = true
					return syscall.EIO
				}
				return nil
			})
			if kind == vfs.OpWrite {
				if _, err := v.WriteAt(noise(5, BlockSize), 0); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
					t.Errorf("write: %v", err)
				}
			}
			for range 3 {
				if err := v.Flush(); !errors.Is(err, ErrFailed) {
					t.Errorf("flush: %v", err)
				}
				if _, err := v.WriteAt(noise(4, BlockSize), 0); !errors.Is(err, ErrFailed) {
					t.Errorf("write: %v", err)
				}
				if err := v.Discard(0, BlockSize); !errors.Is(err, ErrFailed) {
					t.Errorf("discard: %v", err)
				}
			}
			if info := must(s.Volume(v.ID()))(t); info.Failed == "" {
				t.Error("the volume does not say that it has failed")
			}
			if _, err := s.CreateSnapshot(context.Background(), v.ID(), "s", nil); !errors.Is(err, ErrFailed) {
				t.Errorf("snapshot: %v", err)
			}
			put(other, otherImage, 6, 8*BlockSize)
			ok(t, other.Flush())
			if err := v.Close(); !errors.Is(err, ErrFailed) {
				t.Errorf("close: %v", err)
			}
			if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrFailed) {
				t.Errorf("attached again before what it holds is in new files: %v", err)
			}
			foldAll(t, s) // what is in memory goes to new files
			v = attach(t, s, v.ID())
			got := readAll(t, v)
			if kind == vfs.OpWrite { // the write that failed may be there or not
				copy(got[:BlockSize], image[:BlockSize])
			}
			wantImage(t, got, image, "volume attached anew after the failure")
			put(v, image, 7, 16*BlockSize)
			ok(t, v.Flush())
			crashed := crashedClone(t, mem, smallOptions())
			got = readAll(t, attach(t, crashed, v.ID()))
			if kind == vfs.OpWrite {
				copy(got[:BlockSize], image[:BlockSize])
			}
			wantImage(t, got, image, "volume after a power cut")
			wantImage(t, readAll(t, attach(t, crashed, other.ID())), otherImage, "other volume after a power cut")
			wantImage(t, readAll(t, other), otherImage, "other volume")
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// A sync of a chunk file that fails costs the fold, which is repeated into a new file.
func TestChunkSyncFails(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	copy(image, noise(1, 20*BlockSize))
	writeAt(t, v, image[:20*BlockSize], 0)
	n := 0
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/chunks/") && n < 2 {
			n++
			return syscall.EIO
		}
		return nil
	})
	for range 2 {
		if did, err := s.foldOnce(v); err == nil || did {
			t.Fatalf("fold over a failed sync: %v, %v", did, err)
		}
		wantImage(t, readAll(t, v), image, "volume after a failed fold")
	}
	foldAll(t, s)
	crashed := crashedClone(t, mem, smallOptions())
	wantImage(t, readAll(t, attach(t, crashed, v.ID())), image, "volume after a power cut")
	wantImage(t, readAll(t, v), image, "volume")
	ok(t, v.Close())
	ok(t, s.Close())
}

// Records that a power cut tore off never come back, whatever of them is left in
// segments that were not used again: the log that took their place is not needed any
// more, so only the position tells.
func TestTornTailStaysCut(t *testing.T) {
	o := smallOptions()
	o.SegmentBytes = 64 << 10
	fsys := vfs.NewMem()
	s := openStore(t, fsys, o)
	v, busy := newVolume(t, s, "v", 1<<20), newVolume(t, s, "busy", 1<<20)
	id := v.ID()
	put := func(v *Volume, seed int64) { writeAt(t, v, noise(uint64(seed), BlockSize), seed*BlockSize) }
	// Segment A holds records 1 to 7, B those from 8 on; nothing is flushed.
	for i := range int64(12) {
		put(v, i)
	}
	put(busy, 0)
	segs := segmentsOf(t, fsys, id)
	if len(segs) != 2 {
		t.Fatal(segs)
	}
	a, b := segs[0], segs[1]
	// The power cut takes record 4 of A; B is whole.
	s.abandon()
	fsys.Crash(nil, 1)
	fsys.Corrupt(a, 4096+3*8192, func(p []byte) { clear(p[:8192]) })
	s = openStore(t, fsys, o)
	if _, err := s.foldOnce(s.loaded(busy.ID())); err != nil { // its segment is free, after B
		t.Fatal(err)
	}
	v = attach(t, s, id)
	image := make([]byte, v.Size())
	for i := range int64(3) {
		copy(image[i*BlockSize:], noise(uint64(i), BlockSize))
	}
	wantImage(t, readAll(t, v), image, "volume after the power cut")
	// New records take the numbers up to B's first. They are folded, and their segment
	// goes to the other volume.
	for i := int64(100); i < 104; i++ {
		put(v, i)
		copy(image[i*BlockSize:], noise(uint64(i), BlockSize))
	}
	foldAll(t, s)
	put(attach(t, s, busy.ID()), 1)
	if left := segmentsOf(t, fsys, id); len(left) == 0 || left[len(left)-1] != b {
		t.Fatalf("segments %v, want %s to be the last: the test does not show anything", left, b)
	}
	s.abandon()
	fsys.Kill()
	s = openStore(t, fsys, o)
	wantImage(t, readAll(t, attach(t, s, id)), image, "volume after the kill")
}

// A flush that comes while a new log syncs what the recovery read back does not answer
// before that is durable.
func TestFlushCoversWhatWasRecovered(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	id := v.ID()
	image := make([]byte, v.Size())
	copy(image, noise(1, BlockSize))
	writeAt(t, v, image[:BlockSize], 0) // acknowledged, not flushed
	s.abandon()
	mem.Kill()
	fsys := vfs.NewFaulty(mem)
	s = openStore(t, fsys, smallOptions())
	v = attach(t, s, id)
	wantImage(t, readAll(t, v), image, "volume after the kill")
	old := segmentsOf(t, mem, id)[0]
	flushed := make(chan error, 1)
	var early *vfs.Mem // the disk when the flush was answered, if before the sync
	first := true
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpDatasync || op.Name != old || !first {
			return nil
		}
		first = false
		go func() { flushed <- v.Flush() }()
		select {
		case err := <-flushed:
			early = mem.Clone()
			flushed <- err
		case <-time.After(100 * time.Millisecond):
		}
		return nil
	})
	writeAt(t, v, noise(2, BlockSize), BlockSize)
	if first {
		t.Fatal("the first write did not sync what the recovery read back")
	}
	within(t, 10*time.Second, "flush", func() { ok(t, <-flushed) })
	if early == nil {
		early = mem.Clone()
	}
	early.Crash(nil, 0)
	got := readAll(t, attach(t, openStore(t, early, smallOptions()), id))
	wantImage(t, got[:BlockSize], image[:BlockSize], "flushed block after a power cut")
}
