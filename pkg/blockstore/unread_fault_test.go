package blockstore

import (
	"bytes"
	"context"
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// spoil makes a record one of a later version, with a field that this one does not know,
// and returns what puts it back.
func spoil(t *testing.T, s *Store, key string) (restore func()) {
	t.Helper()
	e, found := s.cat.Get(key)
	if !found {
		t.Fatalf("no record %s", key)
	}
	later := bytes.Replace(e.Value, []byte("{"), []byte(`{"later":1,`), 1)
	must(s.cat.Commit(catalog.Op{Key: key, Value: later, Expect: e.Revision}))(t)
	return func() { must(s.cat.Commit(catalog.Op{Key: key, Value: e.Value, Expect: catalog.ExpectAny}))(t) }
}

// met is a store of which a record cannot be read.
type met struct {
	s             *Store
	source, clone VolumeInfo   // the clone waits for the source's fold
	ready         SnapshotInfo // of the other volume
	other         *Volume      // open, flushed and not noted
}

// cutOf is the key of the cut that a snapshot has or a clone starts at.
func (w *met) cutOf(t *testing.T, id string) string {
	t.Helper()
	var snap snapshotRecord
	var vol volumeRecord
	if _, err := get(w.s.cat, keySnapshot+id, &snap); err == nil {
		return keyCut + snap.Cut
	}
	must(get(w.s.cat, keyVolume+id, &vol))(t)
	return keyCut + vol.Cut
}

// Whoever meets a record that cannot be read answers ErrCorrupt with its key, and changes
// nothing: what the record says that is not understood would be lost. What others have goes
// on, and all is well once the record can be read again.
func TestUnreadableRecords(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name string
		key  func(t *testing.T, w *met) string
		do   func(w *met) error
	}{
		{"a volume's name", func(t *testing.T, w *met) string { return keyVolumeName + "source" }, func(w *met) error {
			_, err := w.s.CreateVolume(VolumeSpec{Name: "source", SizeBytes: 1 << 20})
			return err
		}},
		{"a volume by its name", func(t *testing.T, w *met) string { return keyVolumeName + "source" }, func(w *met) error {
			_, err := w.s.Volume("source")
			return err
		}},
		{"a volume", func(t *testing.T, w *met) string { return keyVolume + w.source.ID }, func(w *met) error {
			_, err := w.s.Volume(w.source.ID)
			return err
		}},
		{"a volume to be changed", func(t *testing.T, w *met) string { return keyVolume + w.source.ID }, func(w *met) error {
			return w.s.SetVolumeState(w.source.ID, StateUsed, "")
		}},
		{"a volume to be deleted", func(t *testing.T, w *met) string { return keyVolume + w.source.ID }, func(w *met) error {
			return w.s.DeleteVolume(w.source.ID)
		}},
		{"a volume to be opened", func(t *testing.T, w *met) string { return keyVolume + w.source.ID }, func(w *met) error {
			_, err := w.s.OpenVolume(ctx, w.source.ID)
			return err
		}},
		{"a volume to be copied", func(t *testing.T, w *met) string { return keyVolume + w.source.ID }, func(w *met) error {
			_, err := w.s.CreateVolume(VolumeSpec{Name: "new", FromVolume: w.source.ID})
			return err
		}},
		{"a volume to be noted", func(t *testing.T, w *met) string { return keyVolume + w.other.ID() }, func(w *met) error {
			return w.s.noteStep()
		}},
		{"a snapshot's name", func(t *testing.T, w *met) string { return keySnapshotName + w.ready.Name }, func(w *met) error {
			_, err := w.s.CreateSnapshot(ctx, w.source.ID, w.ready.Name, nil)
			return err
		}},
		{"a snapshot by its name", func(t *testing.T, w *met) string { return keySnapshotName + w.ready.Name }, func(w *met) error {
			_, err := w.s.Snapshot(w.ready.Name)
			return err
		}},
		{"a snapshot", func(t *testing.T, w *met) string { return keySnapshot + w.ready.ID }, func(w *met) error {
			_, err := w.s.Snapshot(w.ready.ID)
			return err
		}},
		{"a snapshot to be restored", func(t *testing.T, w *met) string { return keySnapshot + w.ready.ID }, func(w *met) error {
			_, err := w.s.CreateVolume(VolumeSpec{Name: "new", FromSnapshot: w.ready.ID})
			return err
		}},
		{"a snapshot to be deleted", func(t *testing.T, w *met) string { return keySnapshot + w.ready.ID }, func(w *met) error {
			return w.s.DeleteSnapshot(w.ready.ID)
		}},
		{"the cut of a snapshot to be restored", func(t *testing.T, w *met) string { return w.cutOf(t, w.ready.ID) }, func(w *met) error {
			_, err := w.s.CreateVolume(VolumeSpec{Name: "new", FromSnapshot: w.ready.ID})
			return err
		}},
		{"the cut of a snapshot to be deleted", func(t *testing.T, w *met) string { return w.cutOf(t, w.ready.ID) }, func(w *met) error {
			return w.s.DeleteSnapshot(w.ready.ID)
		}},
		{"the cut of a clone to be deleted", func(t *testing.T, w *met) string { return w.cutOf(t, w.clone.ID) }, func(w *met) error {
			return w.s.DeleteVolume(w.clone.ID)
		}},
		{"a volume whose image is to be kept", func(t *testing.T, w *met) string { return keyVolume + w.source.ID }, func(w *met) error {
			_, err := w.s.liveSlots()
			return err
		}},
		{"a cut whose image is to be kept", func(t *testing.T, w *met) string { return w.cutOf(t, w.ready.ID) }, func(w *met) error {
			_, err := w.s.liveSlots()
			return err
		}},
		{"the cut of a clone to be opened", func(t *testing.T, w *met) string { return w.cutOf(t, w.clone.ID) }, func(w *met) error {
			_, err := w.s.OpenVolume(ctx, w.clone.ID)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, vfs.NewMem(), tightOptions())
			w := &met{s: s, other: newVolume(t, s, "other", 1<<20)}
			otherImage := make([]byte, w.other.Size())
			writeBlocks(t, w.other, otherImage, 0, 2, "write")
			w.ready = must(s.CreateSnapshot(ctx, w.other.ID(), "ready", nil))(t)
			readyImage := bytes.Clone(otherImage)
			foldAll(t, s)
			var image []byte
			var snap SnapshotInfo
			w.source, snap, image = unfolded(t, s, "source")
			w.clone = must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: snap.ID}))(t)
			for i := range int64(2) { // the second leaves something to note
				writeBlocks(t, w.other, otherImage, (8+i)*BlockSize, 1, "write")
				ok(t, w.other.Flush())
			}
			key := c.key(t, w)
			restore := spoil(t, s, key)
			wantRefused(t, s, c.name, ErrCorrupt, "catalog record "+key+": ", func() error { return c.do(w) })
			if key != keyVolume+w.other.ID() {
				writeBlocks(t, w.other, otherImage, 12*BlockSize, 1, "write beside it")
				ok(t, w.other.Flush())
			}
			restore()
			foldAll(t, s)
			for id, want := range map[string][]byte{w.source.ID: image, w.clone.ID: image} {
				v := attach(t, s, id)
				wantImage(t, readAll(t, v), want, "volume "+id)
				ok(t, v.Close())
			}
			wantImage(t, readAll(t, w.other), otherImage, "other volume")
			wantSnapshot(t, s, snap.ID, image)
			wantSnapshot(t, s, w.ready.ID, readyImage)
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// unreadStart is a stopped store with a volume whose journal is flushed and not folded.
func unreadStart(t *testing.T) (mem *vfs.Mem, s *Store, id string, segs []string) {
	t.Helper()
	mem = vfs.NewMem()
	s = openStore(t, mem, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeBlocks(t, v, make([]byte, v.Size()), 0, 3, "write")
	must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
	ok(t, v.Close())
	return mem, s, v.ID(), segmentsOf(t, mem, v.ID())
}

// opened opens the parts of a store that a start needs before it reads journals back, but
// looks at no record.
func opened(t *testing.T, fsys vfs.FS) (*Store, []journal.Recovered, []journal.Bad) {
	t.Helper()
	s := stoppedStore(fsys, testDir, unlocked{}, tightOptions())
	t.Cleanup(func() { s.closeFiles() })
	s.id = must(readStoreHeader(fsys, testDir))(t).store
	s.reserve = new(reserve)
	s.cat = must(catalog.Open(fsys, path.Join(testDir, dirCatalog), s.id, catalog.Options{ReadOnly: true}))(t)
	ok(t, s.openChunks(dedup.Options{ReadOnly: true}))
	owned, bad, err := s.openJournal(true)
	ok(t, err)
	return s, owned, bad
}

// A start reads every volume and every cut before it does anything for one. Each of its
// steps asks for itself, too: none takes a record that it cannot read for one that is not
// there, whose journal would be free.
func TestStartMeetsUnreadableRecord(t *testing.T) {
	recoverAll := func(s *Store, owned []journal.Recovered, bad []journal.Bad) error {
		return s.recoverVolumes(owned, bad)
	}
	for _, c := range []struct {
		name  string
		cut   bool // the record is the snapshot's cut
		spoil func(mem *vfs.Mem, segs []string)
		step  func(s *Store, owned []journal.Recovered, bad []journal.Bad) error
	}{
		{"a cut", true, func(*vfs.Mem, []string) {}, recoverAll},
		{"a volume with a journal", false, func(*vfs.Mem, []string) {}, recoverAll},
		{"a volume of whose segment the header is bad", false, func(mem *vfs.Mem, segs []string) {
			mem.Corrupt(segs[0], 0, func(p []byte) { clear(p[:2*4096]) })
		}, recoverAll},
		{"a volume of whose segment the end is gone", false, func(mem *vfs.Mem, segs []string) {
			rewriteFile(mem, segs[0], func(p []byte) []byte { return p[:4*4096] })
		}, recoverAll},
		{"a volume whose segments are gone", false, func(mem *vfs.Mem, segs []string) {
			for _, seg := range segs {
				ok(t, mem.Remove(seg))
			}
		}, func(s *Store, _ []journal.Recovered, _ []journal.Bad) error { return s.missingJournals(nil) }},
		{"a volume that is deleted", false, func(*vfs.Mem, []string) {}, func(s *Store, _ []journal.Recovered, _ []journal.Bad) error {
			return s.removeDeleted()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem, s, id, segs := unreadStart(t)
			key := keyVolume + id
			if c.cut {
				key = keys(s, keyCut)[0]
			}
			if c.name == "a volume that is deleted" {
				ok(t, s.DeleteVolume(id))
			}
			spoil(t, s, key)
			s.abandon()
			mem.Kill()
			c.spoil(mem, segs)
			journals := readDir(t, mem, path.Join(testDir, dirJournal))
			text := "catalog record " + key + ": "
			if _, err := Open(mem, testDir, tightOptions()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), text) {
				t.Errorf("open: %v, want ErrCorrupt with %q", err, text)
			}
			r := stoppedStore(mem, testDir, unlocked{}, tightOptions())
			if err := r.openForRepair(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), text) {
				t.Errorf("open for a repair: %v, want ErrCorrupt with %q", err, text)
			}
			ok(t, r.closeFiles())
			s, owned, bad := opened(t, mem)
			if err := c.step(s, owned, bad); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), text) {
				t.Errorf("step: %v, want ErrCorrupt with %q", err, text)
			}
			if seg, err := s.pool.GetFree(); err == nil {
				t.Errorf("%s was given back", seg.Name())
			}
			for name, p := range readDir(t, mem, path.Join(testDir, dirJournal)) {
				if !bytes.Equal(p, journals[name]) {
					t.Errorf("%s has changed", name)
				}
			}
		})
	}
}

// A record of damage that cannot be read stops a start: what it says is bad would be taken
// for whole, and blocks deduplicated onto it. The next start refuses it, too.
func TestStartMeetsUnreadableDamage(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, tightOptions())
	key := keyDamage + "0123456789abcdef0123456789abcdef01234567/0003"
	must(s.commit(put(key, damageRecord{File: "f", Reason: "r"}, catalog.ExpectAbsent)))(t)
	restore := spoil(t, s, key)
	text := "catalog record " + key + ": "
	clone := mem.Clone()
	clone.Kill()
	for range 2 {
		if _, err := Open(clone, testDir, tightOptions()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), text) {
			t.Errorf("open: %v, want ErrCorrupt with %q", err, text)
		}
		if _, err := tryRepair(clone, tightOptions()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), text) {
			t.Errorf("repair: %v, want ErrCorrupt with %q", err, text)
		}
	}
	restore()
	ok(t, s.Close())
	ok(t, openStore(t, mem, tightOptions()).Close())
}

// A cut that waits for its root in a part of the journal that is folded can never get it:
// the volume fails closed, and the others are served.
func TestCutBehindItsVolume(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, tightOptions())
	v, other := newVolume(t, s, "v", 1<<20), newVolume(t, s, "other", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 3, "write")
	must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
	foldAll(t, s)
	writeBlocks(t, v, image, 0, 1, "write behind the fold")
	ok(t, v.Flush())
	key := keys(s, keyCut)[0]
	var cut cutRecord
	e := must(get(s.cat, key, &cut))(t)
	cut.Pending, cut.Root = true, nil
	must(s.commit(put(key, cut, e.Revision)))(t)
	s.abandon()
	mem.Kill()
	s = openStore(t, mem, tightOptions())
	id := strings.TrimPrefix(key, keyCut)
	if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrFailed) || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), id) {
		t.Errorf("open: %v, want ErrFailed that names %s", err, id)
	}
	if len(segmentsOf(t, mem, v.ID())) == 0 {
		t.Error("the volume's segments are gone")
	}
	other = attach(t, s, other.ID())
	writeBlocks(t, other, make([]byte, other.Size()), 0, 1, "write of the other volume")
	ok(t, other.Flush())
	ok(t, other.Close())
	ok(t, s.Close())
}
