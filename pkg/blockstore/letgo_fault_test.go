package blockstore

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// wantNoJournal fails if the store has segments in use, debt, or a record or memory of the
// volume.
func wantNoJournal(t *testing.T, s *Store, id, when string) {
	t.Helper()
	if st := s.pool.Stats(); st.InUse != 0 {
		t.Errorf("%s: %d segments are in use", when, st.InUse)
	}
	if debt := s.reserve.debt.Load(); debt != 0 {
		t.Errorf("%s: folding owes %d bytes", when, debt)
	}
	if _, ok := s.cat.Get(keyVolume + id); ok || s.loaded(id) != nil {
		t.Errorf("%s: the volume is not forgotten", when)
	}
}

// A volume that is deleted while it is folded is let go of, whatever becomes of the fold.
func TestDeletedWhileItsFoldFails(t *testing.T) {
	for _, ends := range []error{nil, errors.New("the fold fails")} {
		fsys := vfs.NewFaulty(vfs.NewMem())
		s := openStore(t, fsys, tightOptions())
		v := newVolume(t, s, "v", 1<<20)
		writeBlocks(t, v, make([]byte, v.Size()), 0, 20, "write")
		ok(t, v.Close())
		deleted := false
		fsys.SetHook(func(op vfs.Op) error {
			if deleted || op.Kind != vfs.OpDatasync || !strings.Contains(op.Name, "/"+dirChunks+"/") {
				return nil
			}
			deleted = true
			ok(t, s.DeleteVolume(v.ID()))
			return ends
		})
		if did, err := s.foldOnce(v); ends != nil && (did || !errors.Is(err, ends)) || !deleted {
			t.Fatal(did, err)
		}
		fsys.SetHook(nil)
		wantNoJournal(t, s, v.ID(), "after the fold")
		ok(t, s.Close())
	}
}

// A deletion that cannot be committed takes nothing, though a fold ends while it is tried.
func TestDeletionFailsWhileFolded(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 3, "write")
	_, _, err := s.startDelete(v.ID())
	if !errors.Is(err, ErrInUse) {
		t.Fatal(err)
	}
	v.mu.Lock()
	v.freeze()
	v.mu.Unlock()
	writeBlocks(t, v, image, 10*BlockSize, 3, "write")
	ok(t, v.Close())
	_, _, err = s.startDelete(v.ID())
	ok(t, err)
	must(s.foldOnce(v))(t)
	s.endDelete(v.ID(), v, errors.New("not committed"))
	wantImage(t, readAll(t, attach(t, s, v.ID())), image, "volume")
	ok(t, s.Close())
}

// The journal of a deleted volume that a start could not read, for a moment or because it
// is damaged, is kept as long as a snapshot waits for it, and no longer.
func TestDeletedWithUnreadJournal(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, mem *vfs.Mem, s *Store, id, snap string, image []byte){
		"read by the next start": func(t *testing.T, mem *vfs.Mem, s *Store, id, snap string, image []byte) {
			ok(t, s.Close())
			s = openStore(t, mem, tightOptions())
			foldAll(t, s)
			info := must(s.WaitSnapshot(context.Background(), snap))(t)
			clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: info.ID}))(t)
			v := attach(t, s, clone.ID)
			wantImage(t, readAll(t, v), image, "snapshot")
			ok(t, v.Close())
			foldAll(t, s)
			wantNoJournal(t, s, id, "after a start and a fold")
			wantClean(t, s)
			ok(t, s.Close())
		},
		"snapshot deleted": func(t *testing.T, _ *vfs.Mem, s *Store, id, snap string, _ []byte) {
			ok(t, s.DeleteSnapshot(snap))
			wantNoJournal(t, s, id, "after the snapshot is deleted")
			wantClean(t, s)
			ok(t, s.Close())
		},
		"snapshot deleted, and the power lost": func(t *testing.T, mem *vfs.Mem, s *Store, id, snap string, _ []byte) {
			v := s.loaded(id)
			v.mu.gone = false // so that nothing is let go of but by the start
			ok(t, s.DeleteSnapshot(snap))
			s.abandon()
			mem.Kill()
			fsys := vfs.NewFaulty(mem)
			fsys.SetHook(readsOfJournals(id, mem, t))
			s = openStore(t, fsys, tightOptions())
			fsys.SetHook(nil)
			wantNoJournal(t, s, id, "after a start")
			ok(t, s.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			mem := vfs.NewMem()
			fsys := vfs.NewFaulty(mem)
			s := openStore(t, fsys, tightOptions())
			info, snap, image := unfolded(t, s, "v")
			s.abandon()
			mem.Kill()
			fsys.SetHook(readsOfJournals(info.ID, mem, t))
			s = openStore(t, fsys, tightOptions())
			fsys.SetHook(nil)
			if _, err := s.OpenVolume(context.Background(), info.ID); !errors.Is(err, ErrFailed) {
				t.Fatalf("the journal was read: %v", err)
			}
			ok(t, s.DeleteVolume(info.ID))
			if err := s.DeleteVolume(info.ID); !errors.Is(err, ErrNotFound) {
				t.Errorf("deleted again: %v", err)
			}
			if s.loaded(info.ID) == nil || s.pool.Stats().InUse == 0 {
				t.Error("the journal of a snapshot is gone")
			}
			end(t, mem, s, info.ID, snap.ID, image)
		})
	}
}

// readsOfJournals fails every read behind the header of a volume's segments.
func readsOfJournals(id string, mem *vfs.Mem, t *testing.T) func(vfs.Op) error {
	segs := strings.Join(segmentsOf(t, mem, id), " ")
	return func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Off >= wal.PageSize && strings.Contains(segs, op.Name) {
			return syscall.EIO
		}
		return nil
	}
}

// Damage in a journal costs no snapshot that stands before it: what was read back up to
// there is folded. The journal is kept as it is.
func TestCutBeforeDamageInTheJournal(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 3, "write")
	first := must(s.CreateSnapshot(context.Background(), v.ID(), "first", nil))(t)
	kept := append([]byte(nil), image...)
	writeBlocks(t, v, image, 10*BlockSize, 3, "write")
	ok(t, v.Flush())
	second := must(s.CreateSnapshot(context.Background(), v.ID(), "second", nil))(t)
	ok(t, v.Close())
	segs := segmentsOf(t, mem, v.ID())
	s.abandon()
	mem.Kill()
	// The first record behind the first snapshot: pages are the header, then two for a record.
	flip(mem, segs[0], 7*wal.PageSize+100)
	for i := range 3 {
		s = openStore(t, mem, tightOptions())
		if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrFailed) {
			t.Fatalf("open of the damaged volume: %v", err)
		}
		if _, err := s.WaitSnapshot(context.Background(), second.ID); !errors.Is(err, ErrFailed) {
			t.Errorf("snapshot behind the damage: %v", err)
		}
		if i == 0 {
			if _, err := s.WaitSnapshot(canceled(), first.ID); !errors.Is(err, context.Canceled) {
				t.Errorf("snapshot before the damage: %v", err)
			}
		}
		foldAll(t, s)
		must(s.WaitSnapshot(canceled(), first.ID))(t)
		if st := s.pool.Stats(); st.InUse != len(segs) {
			t.Errorf("%d segments in use, want %d", st.InUse, len(segs))
		}
		if debt := s.reserve.debt.Load(); debt != 0 {
			t.Errorf("folding owes %d bytes", debt)
		}
		ok(t, s.Close())
	}
	s = openStore(t, mem, tightOptions())
	clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: first.ID}))(t)
	c := attach(t, s, clone.ID)
	wantImage(t, readAll(t, c), kept, "snapshot")
	ok(t, c.Close())
	ok(t, s.DeleteVolume(v.ID()))
	ok(t, s.DeleteSnapshot(second.ID))
	wantNoJournal(t, s, v.ID(), "after all is deleted")
	ok(t, s.Close())
}

// A volume whose journal the disk does not read any more fails closed and holds nobody up:
// neither its segments nor its part of the reserve are counted.
func TestUnreadJournalHoldsNobodyUp(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, tightOptions())
	v, other := newVolume(t, s, "v", 4<<20), newVolume(t, s, "other", 1<<20)
	fillPool(t, v, make([]byte, v.Size()), 0)
	ok(t, v.Flush())
	if s.pool.Room() {
		t.Fatal("the pool has room")
	}
	v.dropMemory(1 << 62)
	segs := strings.Join(segmentsOf(t, fsys, v.ID()), " ")
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && strings.Contains(segs, op.Name) {
			return syscall.EIO
		}
		return nil
	})
	written := make(chan error, 1)
	go func() {
		_, err := other.WriteAt(noise(1, BlockSize), 0)
		written <- err
	}()
	select {
	case err := <-written:
		t.Fatalf("write into a full journal: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if did, err := s.foldOnce(v); did || !errors.Is(err, syscall.EIO) {
		t.Fatal(did, err)
	}
	within(t, 10*time.Second, "write of another volume", func() { ok(t, <-written) })
	if debt, want := s.reserve.debt.Load(), foldDebt(wal.TypeWrite, 0, BlockSize); debt != want {
		t.Errorf("folding owes %d bytes, want %d", debt, want)
	}
	fsys.SetHook(nil)
	if err := v.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("close: %v", err)
	}
	foldAll(t, s)
	if debt := s.reserve.debt.Load(); debt != 0 {
		t.Errorf("folding owes %d bytes when all is folded", debt)
	}
	ok(t, other.Close())
	foldAll(t, s)
	if st := s.pool.Stats(); st.InUse != 0 {
		t.Errorf("%d segments are in use when all is folded", st.InUse)
	}
	ok(t, s.Close())
}

// A deleted volume is not let go of under a fold that has begun meanwhile: that reads its
// segments, which others would write into. The end of the fold lets go of it.
func TestLetGoUnderAFold(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, tightOptions())
	v, other := newVolume(t, s, "v", 1<<20), newVolume(t, s, "other", 1<<20)
	writeBlocks(t, v, make([]byte, v.Size()), 0, 20, "write")
	ok(t, v.Close())
	v.dropMemory(1 << 62)
	segs := strings.Join(segmentsOf(t, fsys, v.ID()), " ")
	commits, commitOn := blockFirst(fsys, func(op vfs.Op) bool {
		return op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/"+dirCatalog+"/")
	})
	_, owes, err := s.startDelete(v.ID())
	ok(t, err)
	committed := make(chan error, 1)
	go func() { // the deletion's commit is on its way when a fold begins
		_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
			ops, _, err := deleteOps(view, v.ID(), owes)
			return ops, err
		})
		committed <- err
	}()
	<-commits
	reads, foldOn := blockFirst(fsys, func(op vfs.Op) bool { return op.Kind == vfs.OpRead && strings.Contains(segs, op.Name) })
	changed := make(chan error, 1)
	go func() { // the commit that letGo's waits for
		_, err := s.SetOnFull(other.ID(), OnFullError)
		changed <- err
	}()
	close(commitOn)
	ok(t, <-committed)
	ok(t, <-changed)
	folded := make(chan error, 1)
	v.mu.Lock()
	v.mu.gone = true
	v.mu.Unlock()
	letGo := make(chan struct{})
	s.cat.Update(func(catalog.View) ([]catalog.Op, error) { // letGo waits for the catalog's lock
		go func() { s.letGo(v); close(letGo) }()
		time.Sleep(50 * time.Millisecond)
		go func() { _, err := s.foldOnce(v); folded <- err }()
		<-reads
		return nil, nil
	})
	<-letGo
	if st := s.pool.Stats(); st.InUse == 0 {
		t.Error("a fold reads segments that are let go of")
	}
	close(foldOn)
	ok(t, <-folded)
	s.endDelete(v.ID(), v, nil)
	if s.loaded(v.ID()) != nil {
		t.Error("the volume is not forgotten")
	}
	ok(t, other.Close())
	ok(t, s.Close())
}

// The record of a deleted volume that owes nothing is removed by the next start, or the start
// fails; until then it is nobody's.
func TestRecordOfADeletedVolume(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, tightOptions())
	info := must(s.CreateVolume(VolumeSpec{Name: "v", SizeBytes: 1 << 20}))(t)
	var rec volumeRecord
	e := must(get(s.cat, keyVolume+info.ID, &rec))(t)
	rec.Deleted = true
	must(s.commit(put(keyVolume+info.ID, rec, e.Revision), del(keyVolumeName+info.Name, catalog.ExpectAny)))(t)
	if err := s.DeleteVolume(info.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted again: %v", err)
	}
	s.abandon()
	mem.Kill()
	broken := errors.New("the catalog is broken")
	for n := 1; ; n++ {
		clone := mem.Clone()
		fsys := vfs.NewFaulty(clone)
		hit := failNth(fsys, n, broken, func(op vfs.Op) bool {
			return op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/"+dirCatalog+"/")
		})
		s, err := Open(fsys, testDir, tightOptions())
		if hit() == "" {
			ok(t, err)
			wantNoJournal(t, s, info.ID, "after a start")
			ok(t, s.Close())
			if n < 3 {
				t.Errorf("a start syncs the catalog %d times", n-1)
			}
			return
		}
		if err == nil || n > 20 {
			t.Fatalf("%s fails, and the start %d: %v", hit(), n, err)
		}
	}
}
