package blockstore

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// A clone whose cut is gone is never taken for an empty volume: neither under a throw-away
// layer nor by who copies it.
func TestCopiesOfACloneWithoutItsCut(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	source, snap, image := unfolded(t, s, "v")
	clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: snap.ID}))(t).ID
	var rec volumeRecord
	must(get(s.cat, keyVolume+clone, &rec))(t)
	cut, _ := s.cat.Get(keyCut + rec.Cut)
	must(s.commit(del(cut.Key, cut.Revision)))(t)
	before := s.cat.Durable()
	ctx := context.Background()
	for what, do := range map[string]func() error{
		"throw-away layer": func() error { _, err := s.OpenScratch(ctx, clone); return err },
		"snapshot":         func() error { _, err := s.CreateSnapshot(ctx, clone, "another", nil); return err },
		"clone":            func() error { _, err := s.CreateVolume(VolumeSpec{Name: "another", FromVolume: clone}); return err },
	} {
		if err := do(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), rec.Cut) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
	if s.cat.Durable() != before || s.loaded(clone) != nil {
		t.Error("something was recorded, or is in memory")
	}
	must(s.cat.Commit(catalog.Op{Key: cut.Key, Value: cut.Value}))(t)
	foldAll(t, s)
	c := openScratch(t, s, clone)
	wantScratch(t, c, image, 0, int64(len(image)))
	ok(t, c.Close())
	wantImage(t, readAll(t, attach(t, s, source.ID)), image, "source")
	wantClean(t, s)
	ok(t, s.Close())
}

// A volume that failed closed below a throw-away layer and was folded since can be opened
// once the layer is gone.
func TestScratchOfAVolumeThatFails(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 4, "write")
	ok(t, v.Close())
	c := openScratch(t, s, v.ID())
	v.mu.Lock()
	v.fail(errors.New("the journal cannot be read now"))
	v.mu.Unlock()
	foldAll(t, s)
	ok(t, c.Close())
	wantImage(t, readAll(t, attach(t, s, v.ID())), image, "volume")
	ok(t, s.Close())
}

// One lost page fails a read of a throw-away layer, whatever can be read behind it (I5).
func TestScratchDamageBeforeMore(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	id, image := layered(t, s, "v", 1)
	c := openScratch(t, s, id)
	for _, at := range []int64{0, 4 * BlockSize} { // with something of the volume between
		must(c.WriteAt(noise(uint64(at), BlockSize), at))(t)
		copy(image[at:], noise(uint64(at), BlockSize))
	}
	must(c.file.WriteAt(make([]byte, sectorBytes), 0))(t)
	p := make([]byte, 8*BlockSize)
	if _, err := c.ReadAt(p, 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
	wantScratch(t, c, image, sectorBytes, 8*BlockSize-sectorBytes)
	ok(t, c.Close())
	ok(t, s.Close())
}

// Sectors below a write that the disk answers errors for are given up only after some
// folds: a disk that recovers meanwhile costs nothing, and one that does not stops no
// volume (I5).
func TestFoldOverWhatTheDiskDoesNotRead(t *testing.T) {
	for name, recovers := range map[string]bool{"recovers": true, "stays so": false} {
		t.Run(name, func(t *testing.T) {
			fsys := vfs.NewFaulty(vfs.NewMem())
			s := openStore(t, fsys, smallOptions())
			v := newVolume(t, s, "v", 1<<20)
			image := make([]byte, v.Size())
			writeBlocks(t, v, image, 0, 16, "write")
			foldAll(t, s)
			ok(t, v.Close())
			ok(t, s.Close())
			s = openStore(t, fsys, smallOptions()) // nothing of the base is in memory
			v = attach(t, s, v.ID())
			must(v.ReadAt(make([]byte, BlockSize), 15*BlockSize))(t) // but the map
			part := noise(99, sectorBytes)
			writeAt(t, v, part, BlockSize+sectorBytes)
			copy(image[BlockSize+sectorBytes:], part)
			fsys.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpRead && strings.Contains(op.Name, "/"+dirChunks+"/") {
					return syscall.EIO
				}
				return nil
			})
			for i := range unreadTries {
				if did, err := s.foldOnce(v); did || !errors.Is(err, ErrCorrupt) {
					t.Fatalf("fold %d: %v, %v", i, did, err)
				}
			}
			if recovers {
				fsys.SetHook(nil)
			}
			foldAll(t, s)
			fsys.SetHook(nil)
			p := make([]byte, sectorBytes)
			for at := int64(0); at < 2*BlockSize; at += sectorBytes {
				_, err := v.ReadAt(p, at)
				lost := !recovers && at >= BlockSize && at != BlockSize+sectorBytes
				if lost != errors.Is(err, ErrCorrupt) || !lost && (err != nil || string(p) != string(image[at:at+sectorBytes])) {
					t.Errorf("sector at %d: %v, lost %v", at, err, lost)
				}
			}
			ok(t, v.Close())
			ok(t, s.Close())
		})
	}
}

// Damage that is found again is recorded once, and is in nobody's way.
func TestDamageIsRecordedOnce(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	d := dedup.Damage{Slot: dedup.Slot{Chunk: dedup.ChunkID{7}}, File: "f", Reason: "r"}
	for range 2 {
		s.onDamage(d)
		s.onDamage(d)
		ok(t, s.damageStep())
	}
	if got := keys(s, keyDamage); len(got) != 1 || len(s.damage.found) > 0 {
		t.Errorf("recorded %v, to be recorded %v", got, s.damage.found)
	}
	other := d
	other.Slot.Slot++
	s.onDamage(d)
	s.onDamage(other)
	s.forgetDamage([]dedup.Slot{d.Slot})
	if len(s.damage.found) != 1 || s.damage.found[0].Slot != other.Slot {
		t.Errorf("to be recorded, when %s is healed: %v", d.Slot, s.damage.found)
	}
	stop := runStore(t, s)
	s.onDamage(dedup.Damage{Slot: dedup.Slot{Chunk: dedup.ChunkID{8}}, File: "f", Reason: "r"})
	waitFor(t, 10*time.Second, "damage is recorded in the background", func() bool { return len(keys(s, keyDamage)) == 3 })
	stop()
	ok(t, s.Close())
}

// What is recorded of damage outlives a start, and is enough for it to heal: the record is
// not tidied away before, and has the fingerprint that its content is known by.
func TestDamageHealsAfterAStart(t *testing.T) {
	x := newSick(t)
	s := openStore(t, x.fsys, sickOptions())
	v := attach(t, s, x.ids["b"])
	image := x.images[v.ID()]
	hurt(t, s, x.fsys, v, 50)
	ok(t, s.Close()) // what was read is in memory
	s = openStore(t, x.fsys, sickOptions())
	v = attach(t, s, v.ID())
	bad := readDamaged(t, v, image, "volume")
	ok(t, errors.Join(s.damageStep(), v.Close(), s.Close()))
	s = openStore(t, x.fsys, sickOptions())
	ok(t, s.tidyDamage())
	if n := len(s.scan(keyDamage)); n != len(bad) || n == 0 {
		t.Fatalf("%d damage records for %d blocks", n, len(bad))
	}
	w := newVolume(t, s, "healer", 1<<20)
	for i, b := range bad {
		writeAt(t, w, image[b*BlockSize:][:BlockSize], int64(i)*BlockSize)
	}
	foldAll(t, s)
	ok(t, w.Close())
	if n := len(s.scan(keyDamage)); n != 0 {
		t.Errorf("%d damage records are left", n)
	}
	wantImage(t, readAll(t, attach(t, s, v.ID())), image, "healed volume")
	ok(t, s.Close())
}

// A map node that cannot be read names nobody knows what: a collection that meets it frees
// nothing, and what was to be looked for still is (I6).
func TestCollectionMeetsUnreadableNode(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	for i := range uint64(2) {
		copy(image[i*16*BlockSize:], noise(i+1, 32*BlockSize)) // over a half of what was there
		writeAt(t, v, image, 0)
		foldAll(t, s)
	}
	ok(t, s.sealOpen())
	ok(t, v.Close())
	ok(t, s.Close())
	s = openStore(t, fsys, smallOptions()) // no node is in memory
	s.addGarbage(1 << 20)
	before, _ := s.coll.known()
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && strings.Contains(op.Name, "/"+dirChunks+"/") {
			return syscall.EIO
		}
		return nil
	})
	if r, err := s.Collect(context.Background()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%+v, %v, want ErrCorrupt", r, err)
	}
	fsys.SetHook(nil)
	if now, _ := s.coll.known(); now != before {
		t.Errorf("%d bytes are to be looked for, %d were", now, before)
	}
	wantClean(t, s)
	wantImage(t, readAll(t, attach(t, s, v.ID())), image, "volume")
	ok(t, s.Close())
}

// A collection that is stopped after it has condemned lets the next one free what it would
// have.
func TestCollectionAfterAStoppedOne(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	for i := range uint64(2) {
		copy(image, noise(i+1, 32*BlockSize))
		writeAt(t, v, image, 0)
		foldAll(t, s)
	}
	ok(t, s.sealOpen())
	c := must(s.newCollection(manualMinLive))(t)
	for c.phase != phaseWait {
		stepOf(t, c)
	}
	if err := s.stepCollection(canceled(), c, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if r := must(s.Collect(context.Background()))(t); r.FreedBytes < 16*BlockSize {
		t.Errorf("the next: %+v", r)
	}
	wantImage(t, readAll(t, v), image, "volume")
	wantClean(t, s)
	ok(t, v.Close())
	ok(t, s.Close())
}

// A name's reservation is put right by what the records say when that is done: one whose
// record has another name, or is deleted, is nobody's, and one that is somebody's stays.
func TestMendsOfNames(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	a, _, _ := unfolded(t, s, "a")
	b := must(s.CreateVolume(VolumeSpec{Name: "b", SizeBytes: 1 << 20}))(t)
	snap := must(s.Snapshot("snapshot of a"))(t)
	gone := must(s.CreateVolume(VolumeSpec{Name: "gone", SizeBytes: 1 << 20}))(t)
	var rec volumeRecord
	e := must(get(s.cat, keyVolume+gone.ID, &rec))(t)
	rec.Deleted = true // its journal is needed still
	must(s.commit(put(e.Key, rec, e.Revision),
		put(keyVolumeName+"x", nameRecord{a.ID}, catalog.ExpectAbsent),
		put(keySnapshotName+"x", nameRecord{snap.ID}, catalog.ExpectAbsent)))(t)
	names := func() string { return strings.Join(append(keys(s, keyVolumeName), keys(s, keySnapshotName)...), " ") }
	before := names()
	for _, m := range []*mend{
		removeName(keyVolumeName + "a"), removeName(keySnapshotName + snap.Name),
		reserveName(keyVolumeName+"a", b.ID), reserveName(keySnapshotName+snap.Name, s.newID('s')),
	} {
		if did, err := s.apply([]mend{*m}); err != nil || len(did) > 0 || names() != before {
			t.Errorf("%s was somebody's: %v, %v", m.key, did, err)
		}
	}
	for _, key := range []string{keyVolumeName + "x", keySnapshotName + "x", keyVolumeName + "gone"} {
		if did, err := s.apply([]mend{*removeName(key)}); err != nil || len(did) != 1 {
			t.Errorf("%s is nobody's: %v, %v", key, did, err)
		}
	}
	if info := must(s.Volume("a"))(t); info.ID != a.ID {
		t.Errorf("a is %s, was %s", info.ID, a.ID)
	}
}

// A block whose file is gone is written over in part: the fold goes on, and what only the
// file had reads as an error (I5).
func TestFoldOverWhatIsMissing(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 16, "write")
	foldAll(t, s)
	ok(t, s.sealOpen())
	ok(t, v.Close())
	ok(t, s.Close())
	for _, name := range filesBelow(t, mem, dirChunks, ".chunks") {
		ok(t, mem.Remove(name))
	}
	s = openStore(t, mem, smallOptions())
	v = attach(t, s, v.ID())
	part := noise(99, sectorBytes)
	writeAt(t, v, part, BlockSize+sectorBytes)
	did, err := s.foldOnce(v)
	if !did || err != nil {
		t.Errorf("fold: %v, %v", did, err)
	}
	p := make([]byte, sectorBytes)
	if _, err := v.ReadAt(p, BlockSize+sectorBytes); err != nil || string(p) != string(part) {
		t.Errorf("what was written: %v, or other bytes", err)
	}
	for _, at := range []int64{0, BlockSize, BlockSize + 2*sectorBytes} {
		if _, err := v.ReadAt(p, at); !errors.Is(err, ErrMissing) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("sector at %d, which is lost: %v", at, err)
		}
	}
}
