package blockstore

import (
	"bytes"
	"context"
	"errors"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// whole verifies that all images of the store can be read and that a check finds nothing.
func (x *sick) whole(t *testing.T, s *Store, what string) {
	t.Helper()
	if bad := x.verify(t, s); len(bad) > 0 {
		t.Errorf("%s: %v cannot be read", what, bad)
	}
	wantClean(t, s)
}

// A record that cannot be read names nobody knows what: a collection that meets it when it
// begins or when it looks again frees nothing, and what it was to look for is still to be
// looked for.
func TestCollectionMeetsUnreadableRecord(t *testing.T) {
	for _, prefix := range []string{keyVolume, keyCut} {
		x := newSick(t)
		s := openStore(t, x.fsys, sickOptions())
		v := attach(t, s, x.ids["b"])
		image := x.images[v.ID()]
		copy(image, noise(99, 100*BlockSize)) // what was there is garbage now
		writeAt(t, v, image, 0)
		foldAll(t, s)
		ok(t, v.Close())
		key := s.scan(prefix)[0].Key
		stored := s.chunks.Stats().Stored
		pending, _ := s.coll.known()
		if pending == 0 {
			t.Fatal("nothing is to be collected")
		}
		for _, again := range []bool{false, true} {
			var restore func()
			var err error
			if again {
				c := must(s.newCollection(manualMinLive))(t)
				for c.phase != phaseWait {
					_, _, err := s.collectStep(c)
					ok(t, err)
				}
				restore = spoil(t, s, key)
				_, _, err = s.collectStep(c)
				c.abort()
			} else {
				restore = spoil(t, s, key)
				_, err = s.Collect(context.Background())
			}
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), key) {
				t.Errorf("%s, again %v: %v, want ErrCorrupt", key, again, err)
			}
			if now := s.chunks.Stats().Stored; now < stored { // sealing adds to it
				t.Errorf("%s, again %v: %d bytes are stored, %d were", key, again, now, stored)
			}
			if now, _ := s.coll.known(); now == 0 || !again && now != pending {
				t.Errorf("%s, again %v: %d bytes are to be looked for, %d were", key, again, now, pending)
			}
			restore()
		}
		x.whole(t, s, "before a collection")
		if r := must(s.Collect(context.Background()))(t); r.FreedBytes <= 0 {
			t.Errorf("%s: the next collection: %+v", key, r)
		}
		x.whole(t, s, "after a collection")
		ok(t, s.Close())
	}
}

// A chunk file that cannot be sealed costs the collection, not what is in the file: the
// next collection does without it, and the next start seals it.
func TestCollectionCannotSeal(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpWrite, vfs.OpTruncate, vfs.OpSync, vfs.OpRename, vfs.OpSyncDir} {
		t.Run(kind.String(), func(t *testing.T) {
			mem := vfs.NewMem()
			fsys := vfs.NewFaulty(mem)
			s := openStore(t, fsys, smallOptions())
			v := newVolume(t, s, "v", 1<<20)
			image := make([]byte, v.Size())
			writeBlocks(t, v, image, 0, 12, "write")
			foldAll(t, s)
			failed := 0
			fsys.SetHook(func(op vfs.Op) error {
				if op.Kind == kind && strings.HasPrefix(op.Name, path.Join(testDir, dirChunks)) && failed == 0 {
					failed++
					return syscall.EIO
				}
				return nil
			})
			if _, err := s.Collect(context.Background()); !errors.Is(err, syscall.EIO) || !strings.HasPrefix(err.Error(), "collect: ") || failed != 1 {
				t.Errorf("collect: %v", err)
			}
			fsys.SetHook(nil)
			wantImage(t, readAll(t, v), image, "volume")
			must(s.Collect(context.Background()))(t)
			writeBlocks(t, v, image, 40*BlockSize, 12, "write behind the failure")
			foldAll(t, s)
			wantImage(t, readAll(t, v), image, "volume after another fold")
			crashed := crashedClone(t, mem, smallOptions())
			wantImage(t, readAll(t, attach(t, crashed, v.ID())), image, "volume after a power cut")
			wantClean(t, crashed)
			ok(t, v.Close())
			ok(t, s.Close())
			s = openStore(t, mem, smallOptions())
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// Damage that cannot be recorded now, or records of healed damage that cannot be deleted,
// are for the next time: nothing is forgotten, and nothing else fails of it.
func TestDamageIsNotToldNow(t *testing.T) {
	x := newSick(t)
	fsys := vfs.NewFaulty(x.fsys)
	s := openStore(t, fsys, sickOptions())
	v := attach(t, s, x.ids["b"])
	hurt(t, s, x.fsys, v, 50)
	bad := readDamaged(t, v, x.images[v.ID()], "volume")
	if len(bad) == 0 {
		t.Fatal("no damage")
	}
	ok(t, s.damageStep())
	hurt50(t, x, s, v)
	ok(t, v.Close())
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpReadDir && op.Name == path.Join(testDir, dirChunks) {
			return syscall.EIO
		}
		return nil
	})
	if err := s.tidyDamage(); !errors.Is(err, syscall.EIO) {
		t.Errorf("a directory that cannot be listed: %v", err)
	}
	wantClean(t, s) // and a check is none the worse
	if n := len(s.scan(keyDamage)); n != len(bad) {
		t.Errorf("%d damage records, want %d", n, len(bad))
	}
	fsys.SetHook(nil)
	wantClean(t, s)
	if n := len(s.scan(keyDamage)); n != 0 {
		t.Errorf("%d damage records are left once the directory can be listed", n)
	}
	s.onDamage(dedup.Damage{Slot: dedup.Slot{Chunk: dedup.ChunkID{7}}, File: "f", Reason: "r"})
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && strings.Contains(op.Name, "/"+dirCatalog+"/") {
			return syscall.EIO
		}
		return nil
	})
	for range 2 {
		if err := s.damageStep(); !errors.Is(err, ErrFailed) || len(s.damage.found) != 1 {
			t.Errorf("a catalog that fails: %v, and %d findings are kept", err, len(s.damage.found))
		}
	}
	fsys.SetHook(nil)
	s.abandon()
	x.fsys.Kill()
	s = openStore(t, x.fsys, sickOptions())
	x.whole(t, s, "after the failure")
	ok(t, s.Close())
}

// What prints a file tells why it cannot, and prints nothing of it then.
func TestDump_Refused(t *testing.T) {
	mem := vfs.NewMem()
	ok(t, openStore(t, mem, smallOptions()).Close())
	name := path.Join(testDir, headerName)
	broken := errors.New("medium error")
	for _, c := range []struct {
		what string
		name string
		want error
		hurt func(mem *vfs.Mem, fsys *vfs.Faulty)
	}{
		{"a header with a bad checksum", name, ErrCorrupt, func(mem *vfs.Mem, _ *vfs.Faulty) { flip(mem, name, 40) }},
		{"a short header", name, ErrCorrupt, func(mem *vfs.Mem, _ *vfs.Faulty) {
			rewriteFile(mem, name, func(p []byte) []byte { return p[:100] })
		}},
		{"a file that is not there", name + "x", vfs.ErrNotExist, func(*vfs.Mem, *vfs.Faulty) {}},
		{"a file that cannot be read", name, broken, func(_ *vfs.Mem, fsys *vfs.Faulty) {
			fsys.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpRead {
					return broken
				}
				return nil
			})
		}},
		{"a header that cannot be read behind its magic", name, broken, func(_ *vfs.Mem, fsys *vfs.Faulty) {
			fsys.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpRead && op.Len > 8 {
					return broken
				}
				return nil
			})
		}},
	} {
		hurt := mem.Clone()
		fsys := vfs.NewFaulty(hurt)
		c.hurt(hurt, fsys)
		var out bytes.Buffer
		if err := DumpFile(&out, fsys, c.name); !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), "dump") || out.Len() > 0 {
			t.Errorf("%s: %v, want %v; printed %q", c.what, err, c.want, out.String())
		}
	}
}
