package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

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
				if _, err := v.ReadAt(make([]byte, BlockSize), 8*BlockSize); !errors.Is(err, ErrFailed) {
					t.Errorf("read: %v", err)
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

// A segment whose header cannot be written, or not be synced where it begins a log, fails its
// volume closed (I8): nobody knows what of it the disk has.
func TestHeaderFails(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpWrite, vfs.OpDatasync} {
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		s := openStore(t, fsys, tightOptions())
		v, other := newVolume(t, s, "v", 1<<20), newVolume(t, s, "other", 1<<20)
		writeAt(t, other, noise(1, BlockSize), 0)
		failed := ""
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == kind && strings.HasSuffix(op.Name, ".seg") && (kind == vfs.OpDatasync || op.Off == 0) && failed == "" {
				failed = op.Name
				return syscall.EIO
			}
			return nil
		})
		for range 2 {
			if _, err := v.WriteAt(noise(2, BlockSize), 0); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
				t.Errorf("%v: write: %v", kind, err)
			}
			if err := v.Flush(); !errors.Is(err, ErrFailed) {
				t.Errorf("%v: flush: %v", kind, err)
			}
		}
		if failed == "" {
			t.Fatalf("no %v of a header", kind)
		}
		writeAt(t, other, noise(3, BlockSize), BlockSize)
		ok(t, other.Flush())
		ok(t, other.Close())
		s.abandon()
	}
}

// The sync of the mark that a detach leaves fails: nothing is lost, and the file is neither
// synced nor written again (I8). The volume attaches again when no fold is owed any more,
// not before: it would go on behind a mark that the disk may not have.
func TestMarkSyncFails(t *testing.T) {
	for _, tt := range []struct {
		what  string
		owe   func(s *Store, v *Volume) // what is left to fold
		folds int                       // until it attaches
	}{
		{"the mark alone", func(s *Store, v *Volume) {
			ok(t, v.Flush())
			foldAll(t, s)
		}, 1},
		{"the mark in a layer of its own", func(s *Store, v *Volume) {
			must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
		}, 2},
	} {
		t.Run(tt.what, func(t *testing.T) {
			mem := vfs.NewMem()
			fsys := vfs.NewFaulty(mem)
			s := openStore(t, fsys, tightOptions())
			v := newVolume(t, s, "v", 1<<20)
			image := make([]byte, v.Size())
			writeBlocks(t, v, image, 0, 1, "write")
			tt.owe(s, v)
			failed := ""
			fsys.SetHook(func(op vfs.Op) error {
				sync := op.Kind == vfs.OpDatasync || op.Kind == vfs.OpSync
				switch {
				case failed == "" && sync && strings.HasSuffix(op.Name, ".seg"):
					failed = op.Name
					return syscall.EIO
				case op.Name == failed && (sync || op.Kind == vfs.OpWrite):
					t.Errorf("%v of %s after its sync failed", op.Kind, failed)
				}
				return nil
			})
			if err := v.Close(); !errors.Is(err, ErrFailed) || failed == "" {
				t.Fatalf("detach: %v, of %q", err, failed)
			}
			for n := range tt.folds {
				if info := must(s.Volume(v.ID()))(t); info.Failed == "" {
					t.Errorf("after %d folds: the volume does not say that it has failed", n)
				}
				if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrFailed) {
					t.Fatalf("attached again after %d folds: %v", n, err)
				}
				if did, err := s.foldOnce(v); err != nil || !did {
					t.Fatalf("fold: %v, %v", did, err)
				}
			}
			v = attach(t, s, v.ID())
			writeBlocks(t, v, image, 4*BlockSize, 2, "write after the failure")
			ok(t, v.Flush())
			fsys.SetHook(nil)
			crashed := crashedClone(t, mem, tightOptions())
			wantImage(t, readAll(t, attach(t, crashed, v.ID())), image, "volume after a power cut")
			ok(t, v.Close())
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

// I8, I9: a catalog that has failed because a write of it met a full disk has failed for
// good. It was taken for a full disk: the whole reserve was given up for what cannot go on,
// and callers were told to make room.
func TestCatalogFailedByFullDisk(t *testing.T) {
	mem, events := vfs.NewMem(), &heard{}
	fsys := vfs.NewFaulty(mem)
	o := smallOptions()
	o.Events = events.hear
	s := openStore(t, fsys, o)
	gone := must(s.CreateVolume(VolumeSpec{Name: "gone", SizeBytes: 1 << 20}))(t).ID
	v, w := newVolume(t, s, "v", 1<<20), newVolume(t, s, "w", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	for i := range int64(2) { // the second leaves something to note
		writeAt(t, w, noise(2, BlockSize), i*BlockSize)
		ok(t, w.Flush())
	}
	kept := filesBelow(t, mem, dirReserve, "")
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && strings.Contains(op.Name, "/catalog/") {
			return fmt.Errorf("no room: %w", vfs.ErrNoSpace)
		}
		return nil
	})
	_, create := s.CreateVolume(VolumeSpec{Name: "new", SizeBytes: 1 << 20})
	_, snapshot := s.CreateSnapshot(context.Background(), v.ID(), "s", nil)
	_, fold := s.foldOnce(v)
	for _, err := range []error{create, s.noteStep(), v.Flush(), snapshot, fold, s.DeleteVolume(gone), s.Close()} {
		if !errors.Is(err, ErrFailed) || errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "no room") {
			t.Errorf("with a failed catalog: %v", err)
		}
	}
	if events.has(StoreFull) || !slices.Equal(filesBelow(t, mem, dirReserve, ""), kept) {
		t.Errorf("events %v; of the reserve %v was %v", events.kinds, filesBelow(t, mem, dirReserve, ""), kept)
	}
}
