package blockstore

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// A cut that nobody names and that counts wrong is mended once: by going.
func TestRepairOfACutThatGoes(t *testing.T) {
	x := newSick(t)
	s := openStore(t, x.fsys, sickOptions())
	var snap snapshotRecord
	must(get(s.cat, keySnapshot+x.ids["sn"], &snap))(t)
	var cut cutRecord
	must(get(s.cat, keyCut+snap.Cut, &cut))(t)
	lost := s.newID('c')
	cut.Mapped += 5
	must(s.commit(put(keyCut+lost, cut, catalog.ExpectAbsent)))(t)
	ok(t, s.Close())
	r := repair(t, x.fsys, sickOptions())
	if r.result.Found != 2 || r.result.Remains != 0 || len(r.mends) != 1 || !strings.Contains(r.mends[0].Detail, lost+": nobody names it") {
		t.Errorf("%+v", r)
	}
	s = openStore(t, x.fsys, sickOptions())
	if bad := x.verify(t, s); len(bad) > 0 {
		t.Errorf("%v cannot be read", bad)
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// A mend is of what was found: a record that is another by then is left as it is, and one
// that cannot be read, or a catalog that cannot be written, ends the mending.
func TestMendsOfWhatHasChanged(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 4, "write")
	must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
	foldAll(t, s)
	ok(t, v.Close())
	volume, cut := keyVolume+v.ID(), s.scan(keyCut)[0].Key
	var rec volumeRecord
	must(get(s.cat, volume, &rec))(t)
	same, other := rec.Root.slot(), dedup.Slot{Chunk: dedup.ChunkID{1}}
	before := s.cat.Durable()
	did, err := s.apply([]mend{*setMapped(volume, other, 77), *recount(keyCut+s.newID('c'), 3)})
	if err != nil || len(did) > 0 || s.cat.Durable() != before {
		t.Errorf("of another root, and of a cut that is gone: %v, %v", did, err)
	}
	for _, c := range []struct {
		key  string
		mend *mend
	}{{volume, setMapped(volume, same, 77)}, {cut, setMapped(cut, same, 77)}, {cut, recount(cut, 3)}} {
		restore := spoil(t, s, c.key)
		before, _ := s.cat.Get(c.key)
		did, err := s.apply([]mend{*c.mend})
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.key) || len(did) > 0 {
			t.Errorf("%s that cannot be read: %v, %v", c.key, did, err)
		}
		if after, _ := s.cat.Get(c.key); after.Revision != before.Revision || !slices.Equal(after.Value, before.Value) {
			t.Errorf("%s that cannot be read was changed", c.key)
		}
		restore()
	}
	wantClean(t, s)
	// The second of two mends of one record comes in a commit of its own.
	n := 0
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && strings.Contains(op.Name, "/"+dirCatalog+"/") {
			if n++; n == 2 {
				return syscall.EIO
			}
		}
		return nil
	})
	did, err = s.apply([]mend{*setMapped(volume, same, 77), *setMapped(volume, same, rec.Mapped)})
	if !errors.Is(err, ErrFailed) || len(did) != 1 || did[0].key != volume {
		t.Errorf("with a catalog that fails: %v, %v", did, err)
	}
	fsys.SetHook(nil)
	s.abandon()
	mem.Kill()
	s = openStore(t, fsys, smallOptions())
	must(s.apply([]mend{*setMapped(volume, same, rec.Mapped)}))(t)
	v = attach(t, s, v.ID())
	wantImage(t, readAll(t, v), image, "volume")
	wantClean(t, s)
	ok(t, s.Close())
}
