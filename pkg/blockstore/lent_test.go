package blockstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

// halfLive makes a full disk whose sealed chunk files are about half live, with a whole
// reserve.
func halfLive(t *testing.T) *Store {
	t.Helper()
	fsys := vfs.NewMem()
	s := openStore(t, fsys, fullOptions())
	v := newVolume(t, s, "v", 4<<20)
	for off := int64(0); off < v.Size(); off += 256 << 10 {
		writeAt(t, v, noise(uint64(off)+1, 256<<10), off)
		foldAll(t, s)
	}
	for off := int64(0); off < v.Size(); off += 2 * BlockSize {
		ok(t, v.Discard(off, BlockSize))
		if off%(512<<10) == 0 {
			foldAll(t, s)
		}
	}
	ok(t, v.Close())
	foldAll(t, s)
	ok(t, s.chunks.SealOpen())
	for len(s.reserve.mu.files) > s.reserve.wanted(0) { // no more than there should be
		s.reserve.release()
	}
	fsys.SetCapacity(used(t, fsys))
	s.setFull(true, ErrNoSpace)
	return s
}

// What a collection on a full disk was given is not taken back before it ends, by whoever
// looks for space meanwhile: it would begin again without end.
func TestCollectionKeepsWhatItWasGiven(t *testing.T) {
	for what, meanwhile := range map[string]func(s *Store){
		"nobody looks":        func(*Store) {},
		"a look for space":    (*Store).probeSpace,
		"a writer's record":   func(s *Store) { ignoreFull(t, s.charge(0, false)) },
		"a writer's segment":  func(s *Store) { ignoreFull(t, s.allowSegment()) },
		"a hole of a trimmer": func(s *Store) { ignoreFull(t, s.charge(1, true)); s.reserve.pay(1) },
	} {
		t.Run(what, func(t *testing.T) {
			s := halfLive(t)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			r, err := s.runCollection(ctx, manualMinLive, 0, func() error { meanwhile(s); return nil })
			if err != nil || r.FreedBytes < 1<<20 {
				t.Errorf("%+v, %v", r, err)
			}
			if s.reserve.mu.lent != 0 {
				t.Error("something is lent for ever")
			}
			s.probeSpace()
			if s.isFull() || s.reserve.bytes() < int64(s.reserve.base)*s.reserve.fileBytes {
				t.Errorf("full %v, reserve of %d bytes", s.isFull(), s.reserve.bytes())
			}
			s.abandon()
		})
	}
}

func ignoreFull(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ErrNoSpace) {
		t.Error(err)
	}
}

// Files of which nothing is live go without any space, though the open chunk file cannot be
// sealed and nothing of the reserve is left: another program has taken it.
func TestDeadFilesGoWithoutSpace(t *testing.T) {
	for n := int64(1); n < 60; n++ {
		fsys := vfs.NewMem()
		s := openStore(t, fsys, fullOptions())
		doomed, _ := ballast(t, s, "doomed", 1, 1<<20)
		foldAll(t, s)
		ok(t, s.chunks.SealOpen())
		v := newVolume(t, s, "v", 1<<20)
		for i := range n {
			writeAt(t, v, noise(uint64(3+i), BlockSize), i*BlockSize)
			foldAll(t, s) // into an open chunk file
		}
		for s.reserve.release() {
		}
		fsys.SetCapacity(used(t, fsys))
		if err := s.chunks.SealOpen(); !errors.Is(err, ErrNoSpace) {
			s.abandon()
			continue // there is room in its last page
		}
		s.setFull(true, ErrNoSpace)
		ok(t, s.DeleteVolume(doomed))
		if r := must(s.Collect(context.Background()))(t); r.FreedBytes < 900<<10 {
			t.Errorf("%+v", r)
		}
		s.probeSpace()
		if s.isFull() {
			t.Error("a MiB is free, and the store stays full")
		}
		s.abandon()
		return
	}
	t.Fatal("the open file could always be sealed")
}
