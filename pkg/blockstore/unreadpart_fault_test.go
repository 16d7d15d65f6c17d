package blockstore

import (
	"context"
	"errors"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// The record of a deleted volume whose journal a start could not read stays until the last
// snapshot that waits for it has its root, also when an earlier one is folded.
func TestDeletedUnreadKeepsEveryCut(t *testing.T) {
	for _, deleteFirst := range []bool{false, true} {
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		s := openStore(t, fsys, tightOptions())
		v := newVolume(t, s, "v", 1<<20)
		image := make([]byte, v.Size())
		writeBlocks(t, v, image, 0, 3, "write")
		first := must(s.CreateSnapshot(context.Background(), v.ID(), "first", nil))(t)
		n := 10
		for len(segmentsOf(t, mem, v.ID())) < 2 {
			writeBlocks(t, v, image, int64(n)*BlockSize, 1, "write")
			n++
		}
		writeBlocks(t, v, image, int64(n)*BlockSize, 3, "write")
		second := must(s.CreateSnapshot(context.Background(), v.ID(), "second", nil))(t)
		ok(t, v.Close())
		if deleteFirst {
			ok(t, s.DeleteVolume(v.ID()))
		}
		segs := segmentsOf(t, mem, v.ID())
		s.abandon()
		mem.Kill()
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpRead && op.Off >= wal.PageSize && op.Name == segs[1] {
				return syscall.EIO
			}
			return nil
		})
		s = openStore(t, fsys, tightOptions())
		fsys.SetHook(nil)
		if !deleteFirst {
			ok(t, s.DeleteVolume(v.ID()))
		}
		foldAll(t, s)
		must(s.WaitSnapshot(canceled(), first.ID))(t)
		if _, err := s.WaitSnapshot(canceled(), second.ID); !errors.Is(err, ErrFailed) {
			t.Errorf("second: %v", err)
		}
		if _, there := s.cat.Get(keyVolume + v.ID()); !there {
			t.Error("the record of the volume is gone")
		}
		ok(t, s.Close())
		// The disk reads again.
		s = openStore(t, fsys, tightOptions())
		foldAll(t, s)
		if _, err := s.WaitSnapshot(canceled(), second.ID); err != nil {
			t.Errorf("deleted first %v: second snapshot after the disk reads again: %v", deleteFirst, err)
		} else {
			clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: second.ID}))(t)
			c := attach(t, s, clone.ID)
			wantImage(t, readAll(t, c), image, "snapshot")
			ok(t, c.Close())
		}
		ok(t, s.Close())
	}
}

// After a fold of what stands before damage in the journal, the catalog still knows that the
// journal went on: the volume stays closed, though its segments are gone by the next start.
func TestReachAfterAFoldBeforeDamage(t *testing.T) {
	for _, fold := range []bool{false, true} {
		mem := vfs.NewMem()
		s := openStore(t, mem, tightOptions())
		v := newVolume(t, s, "v", 1<<20)
		image := make([]byte, v.Size())
		writeBlocks(t, v, image, 0, 3, "write")
		must(s.CreateSnapshot(context.Background(), v.ID(), "first", nil))(t)
		writeBlocks(t, v, image, 10*BlockSize, 3, "write")
		ok(t, v.Flush())
		v.markStep() // as Run does 100 ms later
		segs := segmentsOf(t, mem, v.ID())
		s.abandon()
		mem.Kill()
		flip(mem, segs[0], 7*wal.PageSize+100)
		s = openStore(t, mem, tightOptions())
		if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrFailed) {
			t.Fatalf("open: %v", err)
		}
		if fold {
			foldAll(t, s)
		}
		ok(t, s.Close())
		for _, seg := range segs {
			ok(t, mem.Remove(seg))
		}
		s = openStore(t, mem, tightOptions())
		if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrFailed) {
			t.Errorf("fold %v: the volume opens though flushed writes are gone: %v", fold, err)
		}
		s.abandon()
	}
}

// A block that is rotten in one chunk file and good in another, which the disk does not read
// at the start: a partial write over it is tried again, and a read looks for the other copy.
func TestRottenAndSilent(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	o := smallOptions()
	o.CacheBytes = 1
	s := openStore(t, fsys, o)
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 16, "write")
	foldAll(t, s)
	clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromVolume: v.ID()}))(t)
	ok(t, v.Close())
	ok(t, s.Close())
	before := filesBelow(t, mem, dirChunks, ".chunks")
	// The first file rots in its data; a check finds it; the same data is written again: healed.
	for _, name := range before {
		if raw := must(vfs.ReadFile(mem, name))(t); len(raw) > 30*BlockSize/2 {
			flip(mem, name, 8*BlockSize)
		}
	}
	s = openStore(t, fsys, o)
	problems(t, s)
	v = attach(t, s, v.ID())
	writeAt(t, v, image[:16*BlockSize], 0)
	foldAll(t, s)
	wantImage(t, readAll(t, v), image, "healed")
	ok(t, v.Close())
	ok(t, s.Close())
	old := strings.Join(before, " ")
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && strings.Contains(op.Name, "/"+dirChunks+"/") && !strings.Contains(old, path.Base(op.Name)) {
			return syscall.EIO
		}
		return nil
	})
	s = openStore(t, fsys, o)
	v = attach(t, s, clone.ID)
	bad := -1
	p := make([]byte, BlockSize)
	for i := range 16 {
		if _, err := v.ReadAt(p, int64(i)*BlockSize); err != nil {
			bad = i
			break
		}
	}
	if bad < 0 {
		t.Fatal("nothing is bad")
	}
	part := noise(99, sectorBytes)
	at := int64(bad) * BlockSize
	writeAt(t, v, part, at)
	copy(image[at:], part)
	if did, err := s.foldOnce(v); did || !errors.Is(err, ErrCorrupt) {
		t.Errorf("fold: %v, %v", did, err)
	}
	fsys.SetHook(nil)
	s.silent.looked = s.silent.looked.Add(-rereadEvery)
	ok(t, func() error { _, err := v.ReadAt(p, at+BlockSize); return err }())
	foldAll(t, s)
	wantImage(t, readAll(t, v), image, "volume when the disk reads again")
	ok(t, v.Close())
	ok(t, s.Close())
}

// However many folds cannot read the root before them, nothing of an image is lost when the
// disk reads again.
func TestManyFoldsOverUnreadRoots(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	o := smallOptions()
	s := openStore(t, fsys, o)
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 16, "write")
	foldAll(t, s)
	ok(t, v.Close())
	ok(t, s.Close())
	s = openStore(t, fsys, o)
	v = attach(t, s, v.ID())
	fsys.SetHook(readsOfChunks)
	for i := range 80 {
		p := noise(uint64(1000+i), BlockSize)
		at := int64(20+i) * BlockSize
		writeAt(t, v, p, at)
		copy(image[at:], p)
		v.mu.tries = unreadTries // as if it had been tried for long
		if did, err := s.foldOnce(v); !did || err != nil {
			t.Fatalf("fold %d: %v %v", i, did, err)
		}
	}
	fsys.SetHook(nil)
	wantImage(t, readAll(t, v), image, "volume when the disk reads again")
	ok(t, v.Close())
	ok(t, s.Close())
}

// After a fold of what stands before a segment that a start could not read, the next start has
// all of it: snapshots before and behind, and the volume.
func TestStartAfterAFoldBeforeAnUnreadSegment(t *testing.T) {
	for unread := range 4 {
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		s := openStore(t, fsys, tightOptions())
		v := newVolume(t, s, "v", 1<<20)
		image := make([]byte, v.Size())
		var snaps []SnapshotInfo
		var images [][]byte
		n := int64(0)
		step := func() {
			snaps = append(snaps, must(s.CreateSnapshot(context.Background(), v.ID(), string(rune('a'+len(snaps))), nil))(t))
			images = append(images, append([]byte(nil), image...))
		}
		for round := range 2 {
			if round > 0 {
				s.abandon()
				mem.Kill()
				s = openStore(t, fsys, tightOptions())
				v = attach(t, s, v.ID())
			}
			from := len(segmentsOf(t, mem, v.ID()))
			for len(segmentsOf(t, mem, v.ID())) < from+2 {
				writeBlocks(t, v, image, n*BlockSize, 1, "write")
				n++
				if n%5 == 0 && len(snaps) < 4*(round+1) {
					step()
				}
			}
			writeBlocks(t, v, image, n*BlockSize, 2, "write")
			n += 2
			step()
		}
		ok(t, v.Close())
		segs := segmentsOf(t, mem, v.ID())
		if len(segs) != 4 {
			t.Fatal(segs)
		}
		s.abandon()
		mem.Kill()
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpRead && op.Off >= wal.PageSize && op.Name == segs[unread] {
				return syscall.EIO
			}
			return nil
		})
		s = openStore(t, fsys, tightOptions())
		fsys.SetHook(nil)
		if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrFailed) {
			t.Fatal(err)
		}
		foldAll(t, s)
		ok(t, s.Close())
		s = openStore(t, fsys, tightOptions())
		foldAll(t, s)
		for i, sn := range snaps {
			must(s.WaitSnapshot(canceled(), sn.ID))(t)
			clone := must(s.CreateVolume(VolumeSpec{Name: "clone" + sn.Name, FromSnapshot: sn.ID}))(t)
			c := attach(t, s, clone.ID)
			wantImage(t, readAll(t, c), images[i], "snapshot")
			ok(t, c.Close())
		}
		w := attach(t, s, v.ID())
		wantImage(t, readAll(t, w), image, "volume")
		ok(t, w.Close())
		foldAll(t, s)
		wantClean(t, s)
		ok(t, s.Close())
	}
}

// A fold whose volume was let go of before it published leaves it as it is.
func TestFoldOfAVolumeLetGo(t *testing.T) {
	s := openStore(t, vfs.NewMem(), tightOptions())
	info, snap, _ := unfolded(t, s, "v")
	v := s.loaded(info.ID)
	ok(t, s.DeleteVolume(info.ID))
	// letGo looks here: not folding. Then a worker begins, and commits.
	job, is := v.startFold()
	if !is {
		t.Fatal("nothing to fold")
	}
	v.mu.Lock()
	v.mu.folding = false // what letGo saw before the fold began
	v.mu.Unlock()
	ok(t, s.DeleteSnapshot(snap.ID)) // its letGo goes on
	v.mu.Lock()
	v.mu.folding = true
	v.mu.Unlock()
	v.publish(job, job.root)
	v.endFold(nil)
	s.forget(v)
	if n := len(v.mu.layers); n != 1 || s.loaded(info.ID) != nil {
		t.Errorf("%d layers", n)
	}
}
