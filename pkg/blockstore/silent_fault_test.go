package blockstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// readsOfChunks fails every read of a chunk file.
func readsOfChunks(op vfs.Op) error {
	if op.Kind == vfs.OpRead && strings.Contains(op.Name, "/"+dirChunks+"/") {
		return syscall.EIO
	}
	return nil
}

// silentStart opens a store of one folded volume, whose sealed chunk files the disk does
// not read meanwhile, nor until the hook is taken away.
func silentStart(t *testing.T) (fsys *vfs.Faulty, s *Store, v *Volume, image []byte) {
	fsys = vfs.NewFaulty(vfs.NewMem())
	s = openStore(t, fsys, smallOptions())
	v = newVolume(t, s, "v", 1<<20)
	image = make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 16, "write")
	foldAll(t, s)
	ok(t, v.Close())
	ok(t, s.Close())
	fsys.SetHook(readsOfChunks)
	s = openStore(t, fsys, smallOptions())
	if s.chunks.Silent() == 0 {
		t.Fatal("every chunk file was read")
	}
	return fsys, s, attach(t, s, v.ID()), image
}

// A chunk file that a start could not read is read again when it is needed: a read finds
// what is in it, and a check and a collection do.
func TestChunkFileUnreadAtStart(t *testing.T) {
	for name, look := range map[string]func(s *Store, v *Volume) error{
		"read": func(_ *Store, v *Volume) error { _, err := v.ReadAt(make([]byte, BlockSize), 0); return err },
		"check": func(s *Store, _ *Volume) error {
			return s.Check(context.Background(), CheckOptions{}, func(Problem) {})
		},
		"collection": func(s *Store, _ *Volume) error { _, err := s.Collect(context.Background()); return err },
	} {
		fsys, s, v, image := silentStart(t)
		if _, err := v.ReadAt(make([]byte, BlockSize), 0); !errors.Is(err, ErrMissing) {
			t.Fatalf("read of a file that the disk does not read: %v", err)
		}
		s.silent.looked = s.silent.looked.Add(-rereadEvery)
		fsys.SetHook(nil)
		ok(t, look(s, v))
		if s.chunks.Silent() != 0 {
			t.Errorf("%s: %d files are not read", name, s.chunks.Silent())
		}
		wantImage(t, readAll(t, v), image, name)
		wantClean(t, s)
		ok(t, v.Close())
		ok(t, s.Close())
	}
}

// A write of less than a block over one in such a file loses nothing of it if it can be
// read within the folds that are tried, and wedges no fold if not.
func TestFoldOverAFileUnreadAtStart(t *testing.T) {
	for _, recovers := range []bool{false, true} {
		fsys, s, v, image := silentStart(t)
		part := noise(99, sectorBytes)
		writeAt(t, v, part, BlockSize+sectorBytes)
		copy(image[BlockSize+sectorBytes:], part)
		for i := range unreadTries {
			if did, err := s.foldOnce(v); did || !errors.Is(err, ErrMissing) {
				t.Fatalf("fold %d: %v, %v", i, did, err)
			}
		}
		if recovers {
			fsys.SetHook(nil)
			s.silent.looked = s.silent.looked.Add(-rereadEvery)
		}
		foldAll(t, s)
		fsys.SetHook(nil)
		s.silent.looked = s.silent.looked.Add(-rereadEvery)
		p := make([]byte, sectorBytes)
		for at := int64(0); at < 2*BlockSize; at += sectorBytes {
			_, err := v.ReadAt(p, at)
			lost := !recovers && at >= BlockSize && at != BlockSize+sectorBytes
			if lost != errors.Is(err, ErrCorrupt) || !lost && (err != nil || string(p) != string(image[at:at+sectorBytes])) {
				t.Errorf("recovers %v: sector at %d: %v, lost %v", recovers, at, err, lost)
			}
		}
		ok(t, v.Close())
		ok(t, s.Close())
	}
}

// Folds that failed for another reason do not count as tries to read a base.
func TestOnlyUnreadFoldsAreTries(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	o := smallOptions()
	o.CacheBytes = 1 // nothing of the base is in memory but the map
	s := openStore(t, fsys, o)
	v, other := newVolume(t, s, "v", 1<<20), newVolume(t, s, "other", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 16, "write")
	foldAll(t, s)
	for _, v := range []*Volume{v, other} {
		ok(t, v.Close())
	}
	ok(t, s.Close())
	s = openStore(t, fsys, o)
	v, other = attach(t, s, v.ID()), attach(t, s, other.ID())
	must(v.ReadAt(make([]byte, BlockSize), 15*BlockSize))(t)
	writeAt(t, v, image[:sectorBytes], BlockSize)
	writeAt(t, other, image[:sectorBytes], 0)
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpCreate && strings.Contains(op.Name, "/"+dirChunks+"/") {
			return errors.New("no file can be made")
		}
		return nil
	})
	for range 2 * unreadTries {
		if did, err := s.foldOnce(v); did || err == nil {
			t.Fatal(did, err)
		}
	}
	fsys.SetHook(readsOfChunks)
	for i := range unreadTries {
		if did, err := s.foldTogether([]*Volume{v, other}); did || !errors.Is(err, ErrCorrupt) {
			t.Fatalf("fold %d: %v, %v", i, did, err)
		}
	}
	if other.mu.tries != 0 || v.mu.tries != unreadTries {
		t.Errorf("%d and %d tries", v.mu.tries, other.mu.tries)
	}
	fsys.SetHook(nil)
	foldAll(t, s)
	copy(image[BlockSize:], image[:sectorBytes])
	wantImage(t, readAll(t, v), image, fmt.Sprintf("volume after %d folds", unreadTries))
	ok(t, errors.Join(v.Close(), other.Close(), s.Close()))
}
