package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
)

// failNth fails the n-th operation, from 1 on, that match lets through, once; it tells
// which one that was.
func failNth(fsys *vfs.Faulty, n int, err error, match func(vfs.Op) bool) (hit func() string) {
	seen, what := 0, ""
	fsys.SetHook(func(op vfs.Op) error {
		if !match(op) {
			return nil
		}
		if seen++; seen != n {
			return nil
		}
		what = fmt.Sprintf("%v of %s", op.Kind, op.Name)
		return err
	})
	return func() string { return what }
}

// starting is a store after a death that gives a start all that it may have to do.
type starting struct {
	mem    *vfs.Mem
	images map[string][]byte // by ID of volume or snapshot
	gone   string            // a deleted volume that owes nothing, whose journal is lost
}

func newStarting(t *testing.T) *starting {
	t.Helper()
	x := &starting{mem: vfs.NewMem(), images: make(map[string][]byte)}
	ctx := context.Background()
	s := openStore(t, x.mem, tightOptions())
	gone, snap, _ := unfolded(t, s, "gone") // a deleted volume that owes a snapshot, which goes too
	segs := segmentsOf(t, x.mem, gone.ID)
	ok(t, s.DeleteVolume(gone.ID))
	ok(t, s.DeleteSnapshot(snap.ID))
	x.gone = gone.ID
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 12, "write")
	if _, err := s.foldOnce(v); err != nil { // leaves a chunk file open
		t.Fatal(err)
	}
	writeBlocks(t, v, image, 40*BlockSize, 3, "write")
	waiting := must(s.CreateSnapshot(ctx, v.ID(), "waiting", nil))(t)
	x.images[waiting.ID] = bytes.Clone(image)
	writeBlocks(t, v, image, 60*BlockSize, 2, "write")
	ok(t, v.Flush())
	x.images[v.ID()] = image
	idle := must(s.CreateVolume(VolumeSpec{Name: "idle", SizeBytes: 1 << 20}))(t)
	c := openScratch(t, s, idle.ID)
	must(c.WriteAt(noise(1, BlockSize), 0))(t)
	must(s.commit(put(keyDamage+"0123456789abcdef0123456789abcdef01234567/0003", damageRecord{File: "f", Reason: "r"}, catalog.ExpectAbsent)))(t)
	s.abandon()
	x.mem.Kill()
	for _, seg := range segs {
		ok(t, x.mem.Remove(seg))
	}
	half := path.Join(testDir, dirReserve, "00000099") // what a death leaves of a file of the reserve
	ok(t, must(x.mem.Create(half))(t).Close())
	return x
}

// whole verifies a store that has started.
func (x *starting) whole(t *testing.T, s *Store, what string) {
	t.Helper()
	foldAll(t, s)
	for id, image := range x.images {
		if strings.HasPrefix(id, "s-") {
			wantSnapshot(t, s, id, image)
			continue
		}
		v := attach(t, s, id)
		wantImage(t, readAll(t, v), image, what+": volume")
		ok(t, v.Close())
	}
	if _, found := s.cat.Get(keyVolume + x.gone); found {
		t.Errorf("%s: the record of the deleted volume is still there", what)
	}
	wantNoScratchFiles(t, s.fsys)
	for _, p := range problems(t, s) {
		t.Errorf("%s: check: %v", what, p)
	}
}

// served verifies a store that started without something: what it has is right, and a check
// tells of the rest.
func (x *starting) served(t *testing.T, s *Store, what string) {
	t.Helper()
	missed := false
	for id, image := range x.images {
		if strings.HasPrefix(id, "s-") {
			continue // it waits for the volume's fold
		}
		v, err := s.OpenVolume(context.Background(), id)
		if err != nil {
			missed = true
			if !errors.Is(err, ErrFailed) {
				t.Errorf("%s: open: %v", what, err)
			}
			continue
		}
		missed = missed || len(readDamaged(t, v, image, what)) > 0
		ok(t, v.Close())
	}
	if found := problems(t, s); missed && len(found) == 0 {
		t.Errorf("%s: there is data that cannot be read, and check finds nothing", what)
	}
}

// A start meets an error at each of its file operations. It fails as a whole, or does
// without what failed; nothing is lost either way, and the next start has all.
func TestStartFailsAtEveryOperation(t *testing.T) {
	x := newStarting(t)
	s := openStore(t, x.mem.Clone(), tightOptions())
	x.whole(t, s, "no error")
	ok(t, s.Close())
	kinds := map[vfs.OpKind]int{}
	failed, served := 0, 0
	for n := 1; ; n++ {
		mem := x.mem.Clone()
		fsys := vfs.NewFaulty(mem)
		var kind vfs.OpKind
		hit := failNth(fsys, n, syscall.EIO, func(op vfs.Op) bool { kind = op.Kind; return true })
		s, err := Open(fsys, testDir, tightOptions())
		fsys.SetHook(nil)
		what := hit()
		if what == "" {
			ok(t, err)
			s.abandon()
			break
		}
		kinds[kind]++
		if err == nil {
			served++
			x.served(t, s, what)
			s.abandon()
		} else {
			failed++
			if !strings.Contains(err.Error(), syscall.EIO.Error()) { // of a failed catalog it is text only
				t.Errorf("%s: %v does not say why", what, err)
			}
		}
		mem.Kill()
		s = openStore(t, mem, tightOptions())
		x.whole(t, s, what+", the next start")
		ok(t, s.Close())
		if t.Failed() {
			return
		}
	}
	if failed < 40 || served < 1 {
		t.Errorf("%d starts failed, %d did not: %v", failed, served, slices.Sorted(maps.Keys(kinds)))
	}
}
