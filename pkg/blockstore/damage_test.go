package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// sick is a store with volumes and snapshots whose images are known, to be damaged.
type sick struct {
	fsys   *vfs.Mem
	ids    map[string]string // name -> ID
	images map[string][]byte // volume ID -> image
	snaps  map[string][]byte // snapshot ID -> image
	older  map[string][]byte // catalog files of an earlier moment
}

func sickOptions() Options {
	o := smallOptions()
	o.ChunkFileBytes, o.CacheBytes, o.NodeCache, o.ListCache = 128<<10, 1, 1, 1
	o.SegmentBytes, o.JournalBytes = 128<<10, 16<<20
	o.ReserveBytes = 128 << 10
	return o
}

// newSick makes the store and stops it. The volumes a and b share nothing; c is a clone
// of a's snapshot.
func newSick(t testing.TB) *sick {
	t.Helper()
	x := &sick{fsys: vfs.NewMem(), ids: map[string]string{}, images: map[string][]byte{}, snaps: map[string][]byte{}}
	s := openStore(t, x.fsys, sickOptions())
	fill := func(name string, seed uint64) *Volume {
		v := newVolume(t, s, name, 1<<20)
		image := make([]byte, v.Size())
		copy(image, noise(seed, 100*BlockSize))
		copy(image[120*BlockSize:], bytes.Repeat([]byte(name+" compresses well. "), 4000))
		writeAt(t, v, image, 0)
		x.ids[name], x.images[v.ID()] = v.ID(), image
		return v
	}
	a, b := fill("a", 1), fill("b", 2)
	foldAll(t, s)
	sn := must(s.CreateSnapshot(context.Background(), a.ID(), "sn", nil))(t)
	x.snaps[sn.ID] = bytes.Clone(x.images[a.ID()])
	x.ids["sn"] = sn.ID
	c := must(s.CreateVolume(VolumeSpec{Name: "c", FromSnapshot: sn.ID}))(t)
	x.ids["c"], x.images[c.ID] = c.ID, bytes.Clone(x.images[a.ID()])
	x.older = readDir(t, x.fsys, testDir+"/catalog")
	for i := range int64(10) {
		p := noise(uint64(50+i), BlockSize)
		writeAt(t, a, p, i*9*BlockSize)
		copy(x.images[a.ID()][i*9*BlockSize:], p)
	}
	foldAll(t, s)
	ok(t, a.Close())
	ok(t, b.Close())
	wantClean(t, s)
	ok(t, s.Close())
	return x
}

func readDir(t testing.TB, fsys vfs.FS, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range must(fsys.ReadDir(dir))(t) {
		out[name] = must(vfs.ReadFile(fsys, path.Join(dir, name)))(t)
	}
	return out
}

// readDamaged reads every block of an image by itself: each must be right or an error
// that says where. It returns the blocks that were errors.
func readDamaged(t testing.TB, v *Volume, want []byte, what string) (bad []int64) {
	t.Helper()
	p := make([]byte, BlockSize)
	for off := int64(0); off < int64(len(want)); off += BlockSize {
		_, err := v.ReadAt(p, off)
		if err == nil {
			wantImage(t, p, want[off:off+BlockSize], fmt.Sprintf("%s, block %d", what, off/BlockSize))
			continue
		}
		var re *ReadError
		switch {
		case !errors.As(err, &re):
			t.Fatalf("%s: block %d: %v is no ReadError", what, off/BlockSize, err)
		case re.Volume != v.ID() || re.Offset < off || re.Offset >= off+BlockSize:
			t.Fatalf("%s: block %d: error of volume %q at %d: %v", what, off/BlockSize, re.Volume, re.Offset, err)
		case !errors.Is(err, ErrMissing) && !errors.Is(err, errDamagedSectors) && !strings.Contains(err.Error(), ".chunks") && !strings.Contains(err.Error(), ".open") && !strings.Contains(err.Error(), ".seg"):
			t.Fatalf("%s: block %d: the error names no file: %v", what, off/BlockSize, err)
		}
		bad = append(bad, off/BlockSize)
	}
	return bad
}

// verify reads every image of a damaged store. It returns which volumes had errors, a
// snapshot's under the snapshot's ID.
func (x *sick) verify(t testing.TB, s *Store) map[string][]int64 {
	t.Helper()
	bad := map[string][]int64{}
	for id, image := range x.images {
		v, err := s.OpenVolume(context.Background(), id)
		if err != nil {
			t.Fatalf("open volume %s: %v", id, err)
		}
		if b := readDamaged(t, v, image, "volume"); b != nil {
			bad[id] = b
		}
		ok(t, v.Close())
	}
	for id, image := range x.snaps {
		c := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: id}))(t)
		v := attach(t, s, c.ID)
		if b := readDamaged(t, v, image, "snapshot"); b != nil {
			bad[id] = b
		}
		ok(t, v.Close())
		ok(t, s.DeleteVolume(c.ID))
	}
	return bad
}

// wantProblems verifies that a check finds something, and names every image that reads
// had errors in.
func wantProblems(t testing.TB, s *Store, bad map[string][]int64, what string) {
	t.Helper()
	found := problems(t, s)
	if len(found) == 0 {
		t.Errorf("%s: check finds nothing", what)
	}
	for id := range bad {
		named := false
		for _, p := range found {
			named = named || p.Volume == id || p.Snapshot == id
		}
		if !named {
			t.Errorf("%s: check does not name %s: %v", what, id, found)
		}
	}
}

// probe opens a damaged store, reads everything and checks. A store that does not open
// must say why in terms of damage.
func (x *sick) probe(t *testing.T, fsys *vfs.Mem, what string) (opened bool, bad map[string][]int64) {
	t.Helper()
	s, err := Open(fsys, testDir, sickOptions())
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrOlder) {
			t.Fatalf("%s: open: %v", what, err)
		}
		return false, nil
	}
	bad = x.verify(t, s)
	wantProblems(t, s, bad, what)
	ok(t, s.Close())
	return true, bad
}

// flip changes one bit.
func flip(fsys *vfs.Mem, name string, off int64) {
	fsys.Corrupt(name, off, func(p []byte) { p[0] ^= 1 << (off % 8) })
}

func size(t testing.TB, fsys vfs.FS, name string) int64 {
	t.Helper()
	return must(fsys.Stat(name))(t).Size
}

// Every byte of a chunk file is covered by a checksum that somebody looks at.
func TestDamagedChunkFiles(t *testing.T) {
	x := newSick(t)
	files := filesBelow(t, x.fsys, dirChunks, ".chunks")
	if len(files) < 3 {
		t.Fatalf("only %d chunk files", len(files))
	}
	stride := int64(6007)
	if testing.Short() || raceEnabled {
		stride *= 6
	}
	errs := 0
	for i, name := range files {
		n := size(t, x.fsys, name)
		offsets := []int64{0, 5, 9, 17, 33, 41, 61, 64, 70, 71, 75, 90, 96, 100, 110, 140, 145, 160, 250, n - 1, n - 5, n - 40, n - 60, n - 90, n - 97, n - 130}
		for off := int64(300 + 61*i); off < n-96; off += stride {
			offsets = append(offsets, off)
		}
		for _, off := range offsets {
			if off < 0 || off >= n {
				continue
			}
			fsys := x.fsys.Clone()
			flip(fsys, name, off)
			opened, bad := x.probe(t, fsys, fmt.Sprintf("bit flipped in %s at %d of %d", path.Base(name), off, n))
			if !opened {
				t.Errorf("a bit flipped in %s at %d keeps the store from opening", name, off)
			}
			if len(bad) > 0 {
				errs++
			}
			if t.Failed() {
				return
			}
		}
	}
	if errs == 0 {
		t.Error("no damage was noticed by reads")
	}
}

func TestTruncatedAndLostChunkFiles(t *testing.T) {
	x := newSick(t)
	files := filesBelow(t, x.fsys, dirChunks, ".chunks")
	for _, name := range files {
		n := size(t, x.fsys, name)
		for _, to := range []int64{0, 1, 31, 63, 64, 100, 144, 1000, n / 4, n / 2, n - 4096, n - 200, n - 97, n - 96, n - 50, n - 1, n + 1, n + 5000} {
			if to < 0 {
				continue
			}
			fsys := x.fsys.Clone()
			f := must(fsys.Open(name))(t)
			ok(t, f.Truncate(to))
			ok(t, f.Sync())
			ok(t, f.Close())
			if opened, _ := x.probe(t, fsys, fmt.Sprintf("%s cut from %d to %d", path.Base(name), n, to)); !opened {
				t.Errorf("%s cut to %d keeps the store from opening", name, to)
			}
		}
		fsys := x.fsys.Clone()
		ok(t, fsys.Remove(name))
		opened, bad := x.probe(t, fsys, path.Base(name)+" removed")
		if !opened || len(bad) == 0 {
			t.Errorf("%s removed: opened %v, damage %v", name, opened, bad)
		}
		if t.Failed() {
			return
		}
	}
	for i := range files[1:] {
		fsys := x.fsys.Clone()
		ok(t, fsys.Rename(files[i], testDir+"/x"))
		ok(t, fsys.Rename(files[i+1], files[i]))
		ok(t, fsys.Rename(testDir+"/x", files[i+1]))
		x.probe(t, fsys, path.Base(files[i])+" swapped with the next")
	}
}

func TestDamagedCatalog(t *testing.T) {
	x := newSick(t)
	listing := func(s *Store) string { return fmt.Sprintf("%+v %+v", s.Volumes(), s.Snapshots("")) }
	s := openStore(t, x.fsys, sickOptions()) // the log is a checkpoint from here on
	whole := listing(s)
	ok(t, s.Close())
	logs := filesBelow(t, x.fsys, dirCatalog, ".log")
	if len(logs) != 1 {
		t.Fatal(logs)
	}
	used := int64(0)
	for i, b := range must(vfs.ReadFile(x.fsys, logs[0]))(t) {
		if b != 0 {
			used = int64(i)
		}
	}
	refused := 0
	for off := int64(0); off < used+4096; off += 67 {
		fsys := x.fsys.Clone()
		flip(fsys, logs[0], off)
		s, err := Open(fsys, testDir, sickOptions())
		if err != nil {
			refused++
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrOlder) {
				t.Fatalf("catalog damaged at %d: %v", off, err)
			}
			continue
		}
		if bad := x.verify(t, s); len(bad) > 0 {
			t.Errorf("catalog damaged at %d: %v", off, bad)
		}
		if got := listing(s); got != whole {
			t.Errorf("catalog damaged at %d: shows %s, want %s", off, got, whole)
		}
		wantClean(t, s)
		ok(t, s.Close())
	}
	if refused == 0 {
		t.Error("no damage of the catalog was noticed")
	}
	for _, to := range []int64{0, 1, 4095, 4096, 8192, 8200, used - 4096, used} {
		fsys := x.fsys.Clone()
		f := must(fsys.Open(logs[0]))(t)
		ok(t, f.Truncate(to))
		ok(t, f.Close())
		s, err := Open(fsys, testDir, sickOptions())
		if err == nil {
			x.verify(t, s)
			ok(t, s.Close())
		} else if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrOlder) {
			t.Errorf("catalog cut to %d: %v", to, err)
		}
	}
	fsys := x.fsys.Clone()
	ok(t, fsys.Remove(logs[0]))
	if _, err := Open(fsys, testDir, sickOptions()); err == nil {
		t.Error("a store without its catalog opens")
	}
}

// An older catalog is never served (I10), neither after a clean stop nor without one.
func TestOlderCatalog(t *testing.T) {
	for _, clean := range []bool{true, false} {
		x := newSick(t)
		fsys := x.fsys
		if !clean { // a header that says nothing
			s := openStore(t, fsys, sickOptions())
			v := attach(t, s, x.ids["b"])
			older := readDir(t, fsys, testDir+"/catalog")
			must(s.CreateVolume(VolumeSpec{Name: "later", SizeBytes: 1}))(t)
			writeAt(t, v, noise(77, BlockSize), 0)
			ok(t, v.Flush())
			s.abandon()
			fsys.Kill()
			x.older = older
		}
		for name := range readDir(t, fsys, testDir+"/catalog") {
			ok(t, fsys.Remove(path.Join(testDir, "catalog", name)))
		}
		for name, data := range x.older {
			f := must(fsys.Create(path.Join(testDir, "catalog", name)))(t)
			must(f.WriteAt(data, 0))(t)
			ok(t, f.Close())
		}
		if _, err := Open(fsys, testDir, sickOptions()); !errors.Is(err, ErrOlder) {
			t.Errorf("clean=%v: open with an older catalog: %v", clean, err)
		}
	}
}

func TestDamagedHeader(t *testing.T) {
	x := newSick(t)
	name := path.Join(testDir, headerName)
	for off := int64(0); off < 4096; off += 31 {
		fsys := x.fsys.Clone()
		flip(fsys, name, off)
		if s, err := Open(fsys, testDir, sickOptions()); err == nil {
			t.Errorf("store header damaged at %d: opens", off)
			s.Close()
		}
	}
	for _, to := range []int64{0, 10, 4095, 5000} {
		fsys := x.fsys.Clone()
		f := must(fsys.Open(name))(t)
		ok(t, f.Truncate(to))
		ok(t, f.Close())
		if _, err := Open(fsys, testDir, sickOptions()); err == nil {
			t.Errorf("store header of %d bytes: opens", to)
		}
	}
}

// No new store is made where one has lost its header: not while any of its directories
// holds a file, nor while one cannot be listed. It opens again with its header.
func TestLostHeader(t *testing.T) {
	x := newSick(t)
	name := path.Join(testDir, headerName)
	header := must(vfs.ReadFile(x.fsys, name))(t)
	ok(t, x.fsys.Remove(name))
	refused := func(what string, fsys vfs.FS, want error) {
		t.Helper()
		if _, err := Open(fsys, testDir, sickOptions()); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if _, err := fsys.Stat(name); !errors.Is(err, vfs.ErrNotExist) {
			t.Errorf("%s: a header was made: %v", what, err)
		}
	}
	dirs := []string{dirCatalog, dirChunks, dirJournal}
	for _, dir := range dirs {
		only := x.fsys.Clone()
		for _, other := range dirs {
			for _, file := range filesBelow(t, only, other, "") {
				if other != dir {
					ok(t, only.Remove(file))
				}
			}
		}
		refused("files in "+dir, only, ErrCorrupt)
		sick := vfs.NewFaulty(only)
		sick.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpReadDir && path.Base(op.Name) == dir {
				return syscall.EIO
			}
			return nil
		})
		refused(dir+" is not listed", sick, syscall.EIO)
	}
	ok(t, vfs.WriteFileAtomic(x.fsys, name, header))
	ok(t, openStore(t, x.fsys, sickOptions()).Close())
}

// A journal damaged below its synced mark fails its volume closed; above it a torn tail
// is cut; another volume does not notice. Never is the volume served without what was
// flushed.
func TestDamagedJournal(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, sickOptions())
	v, other := newVolume(t, s, "v", 1<<20), newVolume(t, s, "other", 1<<20)
	otherImage := make([]byte, other.Size())
	copy(otherImage, noise(9, 3*BlockSize))
	writeAt(t, other, otherImage[:3*BlockSize], 0)
	ok(t, other.Flush())
	other.markStep()
	var states [][]byte // images after n writes
	states = append(states, make([]byte, v.Size()))
	put := func(n int) {
		image := bytes.Clone(states[len(states)-1])
		p := noise(uint64(n)+100, 5*BlockSize)
		copy(image[n*2*BlockSize:], p)
		writeAt(t, v, p, int64(n)*2*BlockSize)
		states = append(states, image)
	}
	for n := range 10 {
		put(n)
	}
	ok(t, v.Flush())
	v.markStep()
	for n := 10; n < 14; n++ {
		put(n)
	}
	const flushed = 10
	s.abandon()
	fsys.Kill()
	segs := filesBelow(t, fsys, dirJournal, ".seg")
	failed, cut, whole := 0, 0, 0
	for _, seg := range segs {
		n := size(t, fsys, seg)
		stride := int64(1021)
		if raceEnabled {
			stride *= 5
		}
		for off := int64(0); off < n; off += stride {
			fs := fsys.Clone()
			flip(fs, seg, off)
			s2, err := Open(fs, testDir, sickOptions())
			if err != nil {
				if !errors.Is(err, ErrVersion) {
					t.Errorf("%s damaged at %d: the whole store does not open: %v", seg, off, err)
				}
				continue
			}
			what := fmt.Sprintf("%s damaged at %d", path.Base(seg), off)
			bad := 0
			for _, tv := range []struct {
				id     string
				states [][]byte
				least  int
			}{{v.ID(), states, flushed}, {other.ID(), [][]byte{otherImage}, 0}} {
				v2, err := s2.OpenVolume(context.Background(), tv.id)
				if err != nil {
					if !errors.Is(err, ErrFailed) || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), ".seg") {
						t.Errorf("%s: open volume: %v", what, err)
					}
					bad++
					continue
				}
				got := readAll(t, v2)
				found := -1
				for k, st := range tv.states {
					if bytes.Equal(st, got) {
						found = k
					}
				}
				if found < tv.least {
					t.Errorf("%s: volume %s shows state %d, %d was flushed", what, v2.ID()[:8], found, tv.least)
				}
				if tv.id == v.ID() && found == len(states)-1 {
					whole++
				} else if tv.id == v.ID() {
					cut++
				}
				ok(t, v2.Close())
			}
			if bad > 1 {
				t.Errorf("%s: both volumes failed", what)
			}
			if bad > 0 {
				failed++
				if len(problems(t, s2)) == 0 {
					t.Errorf("%s: check finds nothing", what)
				}
			}
			ok(t, s2.closeFiles())
		}
	}
	t.Logf("volume failed %d times, its tail was cut %d times, it was whole %d times", failed, cut, whole)
	if failed == 0 || cut == 0 {
		t.Error("damage was never noticed")
	}
}

// Damage of what the running store reads: an error, the rest goes on, and writing the
// same content anywhere heals.
func TestDamageHeals(t *testing.T) {
	for _, target := range []string{"b", "c"} {
		for _, where := range []string{"same place", "other volume", "other place"} {
			t.Run(target+", "+where, func(t *testing.T) { damageHeals(t, target, where) })
		}
	}
}

func damageHeals(t *testing.T, target, where string) {
	x := newSick(t)
	fsys := x.fsys
	const block = 50
	s, v := x.loseBlock(t, target, block)
	image := x.images[v.ID()]
	bad := readDamaged(t, v, image, "volume")
	if len(bad) == 0 || len(bad) > 20 {
		t.Fatalf("blocks %v are bad", bad)
	}
	for id, image := range x.images { // the rest goes on
		if id != v.ID() && (target != "c" || id != x.ids["a"]) {
			o := attach(t, s, id)
			wantImage(t, readAll(t, o), image, "other volume")
			ok(t, o.Close())
		}
	}
	ok(t, s.damageStep())
	if n := len(s.scan(keyDamage)); n != len(bad) {
		t.Errorf("%d damage records for %d blocks", n, len(bad))
	}
	wantProblems(t, s, map[string][]int64{v.ID(): bad}, "damaged group")
	to, at := v, int64(0)
	switch where {
	case "other volume":
		to = newVolume(t, s, "healer", 1<<20)
	case "other place":
		at = 110 * BlockSize
	}
	for i, b := range bad {
		p := image[b*BlockSize:][:BlockSize]
		off := b * BlockSize
		if at > 0 {
			off = at + int64(i)*BlockSize
			copy(image[off:], p)
		}
		writeAt(t, to, p, off)
	}
	foldAll(t, s)
	if n := len(s.scan(keyDamage)); n != 0 {
		t.Errorf("%d damage records are left after healing", n)
	}
	wantImage(t, readAll(t, v), image, "healed volume")
	ok(t, v.Close())
	if b := x.verify(t, s); len(b) > 0 {
		t.Errorf("after healing: %v", b)
	}
	if n := len(s.chunks.Damaged()); n != 0 {
		t.Errorf("%d slots are still damaged", n)
	}
	if left := problems(t, s); len(left) > 0 {
		t.Logf("until a collection a check still finds %v", left)
	}
	must(s.Collect(context.Background()))(t)
	wantClean(t, s)
	ok(t, s.Close())
	s = openStore(t, fsys, sickOptions())
	if b := x.verify(t, s); len(b) > 0 {
		t.Errorf("after healing and reopening: %v", b)
	}
	wantClean(t, s)
	must(s.Collect(context.Background()))(t)
	if b := x.verify(t, s); len(b) > 0 {
		t.Errorf("after healing, reopening and collecting: %v", b)
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// loseBlock opens the store and damages a block of a volume, which is attached.
func (x *sick) loseBlock(t testing.TB, name string, block int64) (*Store, *Volume) {
	t.Helper()
	s := openStore(t, x.fsys, sickOptions())
	v := attach(t, s, x.ids[name])
	hurt(t, s, x.fsys, v, block)
	return s, v
}

// hurt flips a bit in the stored group that a block of a volume reads from: the place is
// found by the content of noise, which no codec changes.
func hurt(t testing.TB, s *Store, fsys *vfs.Mem, v *Volume, block int64) {
	t.Helper()
	content := make([]byte, BlockSize)
	must(v.ReadAt(content, block*BlockSize))(t)
	n := 0
	for _, suffix := range []string{".chunks", ".open"} {
		for _, name := range filesBelow(t, fsys, dirChunks, suffix) {
			data := must(vfs.ReadFile(fsys, name))(t)
			if i := bytes.Index(data, content[100:600]); i >= 0 {
				flip(fsys, name, int64(i)+77)
				n++
			}
		}
	}
	if n == 0 {
		t.Fatal("block is in no chunk file")
	}
}

// A fold that writes a whole damaged chunk again heals its slots once: a record that was
// to be deleted twice made the fold fail.
func TestWholeChunkHeals(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, sickOptions())
	v := newVolume(t, s, "v", MinVolumeSize)
	p := noise(1, BlockSize)
	writeAt(t, v, p, 0)
	foldAll(t, s)
	hurt(t, s, fsys, v, 0)
	if _, err := v.ReadAt(make([]byte, BlockSize), 0); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("read of a damaged block: %v", err)
	}
	ok(t, s.damageStep())
	writeAt(t, v, p, 0)
	foldAll(t, s)
	wantImage(t, readAll(t, v)[:BlockSize], p, "healed block")
	if n := len(s.scan(keyDamage)); n > 0 {
		t.Errorf("%d damage records are left", n)
	}
	ok(t, v.Close())
	ok(t, s.Close())
}

// A write of less than a block onto a damaged one never stops the fold; what was not
// written reads as an error from then on, until it is overwritten (I5).
func TestPartialWriteOntoDamage(t *testing.T) {
	x := newSick(t)
	const block = 50
	s, v := x.loseBlock(t, "b", block)
	image := x.images[v.ID()]
	bad := readDamaged(t, v, image, "volume")
	for _, b := range bad {
		p := noise(uint64(b), sectorBytes)
		writeAt(t, v, p, b*BlockSize+3*sectorBytes)
		copy(image[b*BlockSize+3*sectorBytes:], p)
	}
	ok(t, v.Discard(bad[0]*BlockSize+5*sectorBytes, sectorBytes))
	clear(image[bad[0]*BlockSize+5*sectorBytes:][:sectorBytes])
	sectors := func(v *Volume, when string) {
		p := make([]byte, sectorBytes)
		for _, b := range bad {
			for i := range int64(sectorsPerBlock) {
				off := b*BlockSize + i*sectorBytes
				_, err := v.ReadAt(p, off)
				if i == 3 || i == 5 && b == bad[0] {
					ok(t, err)
					wantImage(t, p, image[off:off+sectorBytes], when)
				} else if re := new(ReadError); !errors.As(err, &re) || re.Volume != v.ID() || re.Offset != off {
					t.Errorf("%s: sector %d of block %d: %v", when, i, b, err)
				}
			}
		}
	}
	sectors(v, "before the fold")
	foldAll(t, s)
	sectors(v, "after the fold")
	ok(t, v.Close())
	ok(t, s.Close())
	s = openStore(t, x.fsys, sickOptions())
	v = attach(t, s, v.ID())
	sectors(v, "after reopening")
	wantProblems(t, s, map[string][]int64{v.ID(): bad}, "lost sectors")
	must(s.Collect(context.Background()))(t)
	sectors(v, "after collection")
	// Half of them once more, then whole: the volume is well again.
	for _, b := range bad {
		p := noise(uint64(b)+7, 2*sectorBytes)
		writeAt(t, v, p, b*BlockSize)
	}
	foldAll(t, s)
	p := make([]byte, 2*sectorBytes)
	must(v.ReadAt(p, bad[0]*BlockSize))(t)
	wantImage(t, p, noise(uint64(bad[0])+7, 2*sectorBytes), "second write onto lost sectors")
	if _, err := v.ReadAt(p, bad[0]*BlockSize+6*sectorBytes); err == nil {
		t.Error("a sector that is still lost reads well")
	}
	for _, b := range bad {
		p := noise(uint64(b)+8, BlockSize)
		writeAt(t, v, p, b*BlockSize)
		copy(image[b*BlockSize:], p)
	}
	foldAll(t, s)
	wantImage(t, readAll(t, v), image, "volume written anew")
	ok(t, v.Close())
	must(s.Collect(context.Background()))(t)
	wantClean(t, s)
	ok(t, s.Close())
}

// A map node that cannot be read costs what it maps, not the fold nor other volumes.
func TestDamagedMapNode(t *testing.T) {
	x := newSick(t)
	s := openStore(t, x.fsys, sickOptions())
	var rec volumeRecord
	must(get(s.cat, keyVolume+x.ids["b"], &rec))(t)
	root := rec.Root.slot()
	page := must(s.chunks.ReadNode(root))(t)
	ok(t, s.Close())
	hit := false
	fsys := x.fsys
	for _, name := range filesBelow(t, fsys, dirChunks, ".chunks") {
		data := must(vfs.ReadFile(fsys, name))(t)
		if i := bytes.Index(data, root.Chunk[:]); i >= 0 && i < len(data)-500 { // the chunk's head names it
			at := int64(i) + 80 + 20 + 40
			flip(fsys, name, at)
			hit = true
			break
		}
	}
	if !hit || len(page) != BlockSize {
		t.Fatal("node not found")
	}
	s = openStore(t, fsys, sickOptions())
	v := attach(t, s, x.ids["b"])
	image := x.images[v.ID()]
	bad := readDamaged(t, v, image, "volume")
	if len(bad) == 0 {
		t.Fatal("no damage")
	}
	for _, n := range []string{"a", "c"} {
		o := attach(t, s, x.ids[n])
		wantImage(t, readAll(t, o), x.images[x.ids[n]], "other volume")
		ok(t, o.Close())
	}
	wantProblems(t, s, map[string][]int64{v.ID(): bad}, "map node")
	p := noise(3, 10*BlockSize)
	writeAt(t, v, p, 20*BlockSize)
	copy(image[20*BlockSize:], p)
	writeAt(t, v, p[:sectorBytes], 5*BlockSize+sectorBytes)
	copy(image[5*BlockSize+sectorBytes:], p[:sectorBytes])
	foldAll(t, s)
	got := make([]byte, len(p))
	must(v.ReadAt(got, 20*BlockSize))(t)
	wantImage(t, got, p, "blocks written over a damaged map node")
	readDamaged(t, v, image, "volume after writes")
	// Overwritten as a whole the volume needs the node no more.
	writeAt(t, v, image, 0)
	foldAll(t, s)
	wantImage(t, readAll(t, v), image, "volume written anew")
	ok(t, v.Close())
	must(s.Collect(context.Background()))(t)
	wantClean(t, s)
	ok(t, s.Close())
}
