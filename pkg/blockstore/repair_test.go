package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// chunkSpot is where the parts of a chunk lie in its file.
type chunkSpot struct {
	file                       string
	head, front, list, payload int64 // offsets
	end                        int64
	nodes                      bool
}

// chunkSpots finds the chunks of a file from its beginning on.
func chunkSpots(data []byte, file string) (spots []chunkSpot) {
	at := int64(64)
	for at+80 <= int64(len(data)) && string(data[at:at+4]) == "GCHK" {
		n := func(off int64) int64 { return int64(binary.LittleEndian.Uint32(data[at+off:])) }
		c := chunkSpot{file: file, head: at, front: at + 80, nodes: data[at+6] == 2}
		c.list = c.front + n(32)
		c.payload = c.list + n(36)
		c.end = c.payload + n(40)
		spots = append(spots, c)
		at = c.end
	}
	return spots
}

// repaired is what a repair said.
type repaired struct {
	result  RepairResult
	mends   []Mend
	remains []Problem
}

func repair(t testing.TB, fsys vfs.FS, o Options) repaired {
	t.Helper()
	r, err := tryRepair(fsys, o)
	if err != nil {
		t.Fatalf("repair: %v", err)
	}
	return r
}

func tryRepair(fsys vfs.FS, o Options) (r repaired, err error) {
	r.result, err = Repair(context.Background(), fsys, testDir, RepairOptions{
		Store:   o,
		Mended:  func(m Mend) { r.mends = append(r.mends, m) },
		Remains: func(p Problem) { r.remains = append(r.remains, p) },
	})
	return r, err
}

// imageRanges compares what a check says of images with the blocks that reads fail in:
// each must be named with its range, and nothing else.
func imageRanges(bad map[string][]int64, found []Problem) error {
	told := map[string]map[int64]bool{}
	for _, p := range found {
		id := p.Volume + p.Snapshot
		if id == "" {
			continue
		}
		if told[id] == nil {
			told[id] = map[int64]bool{}
		}
		for b := p.Start / BlockSize; b < (p.Start+p.Length)/BlockSize; b++ {
			told[id][b] = true
		}
	}
	for id, blocks := range bad {
		for _, b := range blocks {
			if !told[id][b] {
				return fmt.Errorf("check does not tell block %d of %s, which cannot be read", b, id)
			}
			delete(told[id], b)
		}
	}
	for id, blocks := range told {
		for b := range blocks {
			return fmt.Errorf("check tells block %d of %s, which reads well", b, id)
		}
	}
	return nil
}

// unreadable opens a copy of a store and reads every image: a wrong byte fails the test.
func (x *sick) unreadable(t testing.TB, fsys *vfs.Mem) map[string][]int64 {
	t.Helper()
	s := openStore(t, fsys.Clone(), sickOptions())
	defer s.abandon()
	return x.verify(t, s)
}

// mustRepair repairs a damaged store twice: no blocks but those in most cannot be read
// then, the check names just these, and the second time changes nothing. What cannot be
// read is returned: of a group that fails its checksum blocks may prove themselves.
func (x *sick) mustRepair(t testing.TB, fsys *vfs.Mem, most map[string][]int64) (repaired, map[string][]int64) {
	t.Helper()
	r := repair(t, fsys, sickOptions())
	if r.result.Found == 0 || r.result.Mended != len(r.mends) || r.result.Remains != len(r.remains) {
		t.Errorf("result %+v with %d mends and %d problems", r.result, len(r.mends), len(r.remains))
	}
	bad := x.unreadable(t, fsys)
	for id, blocks := range bad {
		for _, b := range blocks {
			if !slices.Contains(most[id], b) {
				t.Errorf("block %d of %s cannot be read, no more than %v should be", b, id, most[id])
			}
		}
	}
	if err := imageRanges(bad, r.remains); err != nil {
		t.Errorf("%v: %v", err, r.remains)
	}
	if len(bad) == 0 && len(r.remains) > 0 {
		t.Errorf("all can be read, but there remain %v", r.remains)
	}
	files := readDir(t, fsys, path.Join(testDir, dirChunks))
	again := repair(t, fsys, sickOptions())
	if again.result.Mended != 0 || again.result.Found != r.result.Remains || again.result.Remains != r.result.Remains {
		t.Errorf("repaired again: %+v after %+v: %v", again.result, r.result, again.mends)
	}
	if now := readDir(t, fsys, path.Join(testDir, dirChunks)); len(now) != len(files) {
		t.Errorf("repaired again: %d chunk files became %d", len(files), len(now))
	}
	return r, bad
}

// rewriteFile lets f change a file.
func rewriteFile(fsys *vfs.Mem, name string, f func(data []byte) []byte) {
	data, err := vfs.ReadFile(fsys, name)
	if err != nil {
		panic(err)
	}
	replace(fsys, name, f(bytes.Clone(data)))
}

func flipAt(fsys *vfs.Mem, name string, offs ...int64) {
	for _, off := range offs {
		fsys.Corrupt(name, off, func(p []byte) { p[0] ^= 0x10 })
	}
}

// Whatever is wrong with the frame of a chunk file, or with what a repair can compute
// again, all is whole after it; of what is lost nothing more is lost.
func TestRepairChunkFiles(t *testing.T) {
	x := newSick(t)
	files := filesBelow(t, x.fsys, dirChunks, ".chunks")
	if len(files) < 3 {
		t.Fatalf("only %d chunk files", len(files))
	}
	none := func(*vfs.Mem) {}
	type damage struct {
		what string
		lost func(fsys *vfs.Mem) // alone says what may be lost
		more func(fsys *vfs.Mem) // what a repair can do without
		some bool                // more may be lost than that
	}
	frame := func(what string, more func(fsys *vfs.Mem)) damage { return damage{what, none, more, false} }
	for i, name := range files {
		data := must(vfs.ReadFile(x.fsys, name))(t)
		n := int64(len(data))
		spots := chunkSpots(data, name)
		if len(spots) == 0 {
			t.Fatalf("no chunk in %s", name)
		}
		cs := []damage{
			frame("header", func(m *vfs.Mem) { flipAt(m, name, 35) }),
			frame("zeroed header", func(m *vfs.Mem) { m.Corrupt(name, 0, func(p []byte) { clear(p[:64]) }) }),
			frame("trailer", func(m *vfs.Mem) { flipAt(m, name, n-90) }),
			frame("content hash", func(m *vfs.Mem) { flipAt(m, name, n-50) }),
			frame("footer", func(m *vfs.Mem) { flipAt(m, name, spots[len(spots)-1].end+3) }),
			frame("header and footer", func(m *vfs.Mem) { flipAt(m, name, 35, n-90) }),
			frame("cut off trailer", func(m *vfs.Mem) { rewriteFile(m, name, func(d []byte) []byte { return d[:n-1] }) }),
			frame("cut off footer", func(m *vfs.Mem) { rewriteFile(m, name, func(d []byte) []byte { return d[:spots[len(spots)-1].end] }) }),
			frame("longer", func(m *vfs.Mem) {
				rewriteFile(m, name, func(d []byte) []byte { return append(d, make([]byte, 500)...) })
			}),
			frame("another name", func(m *vfs.Mem) { rename(m, name, swapDigit(name, 20)) }),
			frame("another number", func(m *vfs.Mem) { rename(m, name, swapDigit(name, 1)) }),
			frame("a copy with the same number", func(m *vfs.Mem) { replace(m, swapDigit(name, 25), data) }),
			frame("a copy with another number", func(m *vfs.Mem) { replace(m, swapDigit(name, 2), data) }),
		}
		if i > 0 {
			cs = append(cs, frame("swapped", func(m *vfs.Mem) {
				before := must(vfs.ReadFile(m, files[0]))(t)
				replace(m, files[0], data)
				replace(m, name, before)
			}))
		}
		for k, c := range spots {
			if k > 0 && k < len(spots)-1 {
				continue
			}
			group := func(m *vfs.Mem) { flipAt(m, name, (c.payload+c.end)/2) }
			at := fmt.Sprintf(" of chunk %d", k)
			cs = append(cs,
				frame("head"+at, func(m *vfs.Mem) { flipAt(m, name, c.head+10) }),
				frame("first of the front"+at, func(m *vfs.Mem) { flipAt(m, name, c.front+1) }),
				frame("last of the front"+at, func(m *vfs.Mem) { flipAt(m, name, c.list-7) }),
				frame("checksum in the front"+at, func(m *vfs.Mem) { flipAt(m, name, (c.front+c.list)/2/8*8+5) }),
				frame("list"+at, func(m *vfs.Mem) { flipAt(m, name, c.list+3, (c.list+c.payload)/2) }),
				frame("head and list"+at, func(m *vfs.Mem) { flipAt(m, name, c.head+77, c.payload-3) }),
				damage{"group" + at, group, none, false}, // of noise, so that other blocks of it prove themselves
				damage{"group and footer" + at, group, func(m *vfs.Mem) { flipAt(m, name, n-90) }, false},
				damage{"group and header" + at, group, func(m *vfs.Mem) { flipAt(m, name, 33) }, false},
				damage{"group, head and name" + at, group, func(m *vfs.Mem) {
					flipAt(m, name, c.head+9)
					rename(m, name, swapDigit(name, 21))
				}, false},
				damage{"group and front" + at, group, func(m *vfs.Mem) { flipAt(m, name, c.front+2) }, true},
			)
		}
		last := spots[len(spots)-1]
		cs = append(cs, damage{"cut in the last chunk", func(m *vfs.Mem) {
			m.Corrupt(name, (last.payload+last.end)/2, func(p []byte) { clear(p[:last.end-(last.payload+last.end)/2]) })
		}, func(m *vfs.Mem) { rewriteFile(m, name, func(d []byte) []byte { return d[:(last.payload+last.end)/2] }) }, false})
		for k, c := range cs {
			if raceEnabled && (k+i)%7 != 0 { // the rest runs without the race detector
				continue
			}
			t.Run(fmt.Sprintf("file %d, %s", i, c.what), func(t *testing.T) {
				fsys := x.fsys.Clone()
				c.lost(fsys)
				want := x.unreadable(t, fsys)
				c.more(fsys)
				damaged := must(vfs.ReadFile(fsys, fileOf(t, fsys, name)))(t)
				if c.some {
					x.repairSome(t, fsys)
					return
				}
				r, _ := x.mustRepair(t, fsys, want)
				for _, m := range r.mends {
					if m.Kind != "chunk-file" {
						continue
					}
					if got := must(vfs.ReadFile(fsys, m.Moved))(t); path.Base(m.File) == path.Base(name) && !bytes.Equal(got, damaged) {
						t.Error("what is in quarantine is not what was damaged")
					}
				}
			})
		}
	}
}

// repairSome repairs a store of which more may be lost than a repair can tell: what it
// leaves unreadable it names, and no wrong byte is read.
func (x *sick) repairSome(t *testing.T, fsys *vfs.Mem) {
	t.Helper()
	before := x.unreadable(t, fsys)
	r := repair(t, fsys, sickOptions())
	after := x.unreadable(t, fsys)
	for id, blocks := range after {
		for _, b := range blocks {
			if !slices.Contains(before[id], b) {
				t.Errorf("block %d of %s could be read before the repair", b, id)
			}
		}
	}
	if err := imageRanges(after, r.remains); err != nil {
		t.Errorf("%v: %v", err, r.remains)
	}
}

// fileOf is where a file is now that may have been renamed.
func fileOf(t *testing.T, fsys *vfs.Mem, name string) string {
	t.Helper()
	if _, err := fsys.Stat(name); err == nil {
		return name
	}
	for _, now := range filesBelow(t, fsys, dirChunks, ".chunks") {
		if path.Base(now)[18:] == path.Base(name)[18:] || path.Base(now)[:17] == path.Base(name)[:17] {
			return now
		}
	}
	t.Fatal("the file is gone")
	return ""
}

// swapDigit changes a digit of a file's name.
func swapDigit(name string, i int) string {
	b := []byte(path.Base(name))
	if b[i] != '7' {
		b[i] = '7'
	} else {
		b[i] = '8'
	}
	return path.Join(path.Dir(name), string(b))
}

func rename(fsys *vfs.Mem, from, to string) {
	if err := fsys.Rename(from, to); err != nil {
		panic(err)
	}
}

// A slot that is lost keeps its fingerprint through a repair: written again, it heals
// every image that has it, and then nothing is left to be told.
func TestRepairKeepsWhatHeals(t *testing.T) {
	x := newSick(t)
	s, b := x.loseBlock(t, "b", 50)
	ok(t, b.Close())
	ok(t, s.Close())
	want := x.unreadable(t, x.fsys)
	for _, name := range filesBelow(t, x.fsys, dirChunks, ".chunks") {
		flipAt(x.fsys, name, size(t, x.fsys, name)-90)
	}
	_, bad := x.mustRepair(t, x.fsys, want)
	if n := len(bad[b.ID()]); n != 1 || len(bad) != 1 {
		t.Errorf("%v cannot be read, want one block", bad)
	}
	s = openStore(t, x.fsys, sickOptions())
	healer := newVolume(t, s, "healer", MinVolumeSize)
	for i, n := range bad[b.ID()] {
		writeAt(t, healer, x.images[b.ID()][n*BlockSize:][:BlockSize], int64(i)*BlockSize)
	}
	foldAll(t, s)
	if bad := x.verify(t, s); len(bad) > 0 {
		t.Errorf("after healing %v cannot be read", bad)
	}
	if n := len(s.scan(keyDamage)); n > 0 {
		t.Errorf("%d damage records are left", n)
	}
	must(s.Collect(context.Background()))(t)
	wantClean(t, s)
	ok(t, healer.Close())
	ok(t, s.Close())
}

// A lost slot is no target for what is written afterwards: it would be lost as well.
func TestRepairedLossIsNoDedupTarget(t *testing.T) {
	x := newSick(t)
	s, b := x.loseBlock(t, "b", 50)
	ok(t, b.Close())
	ok(t, s.Close())
	want := x.unreadable(t, x.fsys)[x.ids["b"]]
	for _, name := range filesBelow(t, x.fsys, dirChunks, ".chunks") {
		flipAt(x.fsys, name, size(t, x.fsys, name)-90)
	}
	repair(t, x.fsys, sickOptions())
	s = openStore(t, x.fsys, sickOptions())
	for _, e := range s.scan(keyDamage) { // even if the records were lost
		must(s.commit(del(e.Key, e.Revision)))(t)
	}
	s.abandon()
	x.fsys.Kill()
	s = openStore(t, x.fsys, sickOptions())
	v := newVolume(t, s, "v", MinVolumeSize)
	image := make([]byte, v.Size())
	for _, n := range want {
		copy(image[n*BlockSize:], x.images[x.ids["b"]][n*BlockSize:][:BlockSize])
		writeAt(t, v, image[n*BlockSize:][:BlockSize], n*BlockSize)
	}
	foldAll(t, s)
	wantImage(t, readAll(t, v), image, "what was written after the repair")
	ok(t, v.Close())
	ok(t, s.Close())
}

// The good groups of a damaged chunk in a file that was open are saved, which a start
// would cut off.
func TestRepairOpenFile(t *testing.T) {
	for _, where := range []string{"group", "head", "list", "front"} {
		t.Run(where, func(t *testing.T) {
			fsys := vfs.NewMem()
			s := openStore(t, fsys, sickOptions())
			v := newVolume(t, s, "v", 1<<20)
			image := make([]byte, v.Size())
			copy(image, noise(5, 24*BlockSize))
			writeAt(t, v, image, 0)
			foldAll(t, s)
			id := v.ID()
			s.abandon()
			fsys.Kill()
			files := filesBelow(t, fsys, dirChunks, ".open")
			if len(files) != 1 {
				t.Fatal(files)
			}
			c := chunkSpots(must(vfs.ReadFile(fsys, files[0]))(t), files[0])[0]
			lost := 0
			switch where {
			case "group":
				flipAt(fsys, files[0], c.payload+10)
				lost = 1
			case "head":
				flipAt(fsys, files[0], c.head+10)
				lost = 24
			case "list":
				flipAt(fsys, files[0], c.list+1)
			case "front":
				flipAt(fsys, files[0], c.front+1)
			}
			r := repair(t, fsys, sickOptions())
			s = openStore(t, fsys, sickOptions())
			v = attach(t, s, id)
			bad := readDamaged(t, v, image, "volume")
			if len(bad) != lost {
				t.Errorf("blocks %v cannot be read, want %d: %+v", bad, lost, r)
			}
			want := map[string][]int64{}
			if lost > 0 {
				want[id] = bad
			}
			if err := imageRanges(want, r.remains); err != nil {
				t.Errorf("%v: %v", err, r.remains)
			}
			if _, err := fsys.Stat(path.Join(testDir, dirQuarantine, path.Base(files[0]))); lost < 24 && err != nil {
				t.Errorf("the damaged file: %v", err)
			}
			ok(t, v.Close())
			ok(t, s.Close())
		})
	}
}

// A read that the disk refuses twice leaves a damage record; it goes once the slot is
// read whole, by the check of a running store or by a repair.
func TestStaleDamageRecordsGo(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		x := newSick(t)
		s, v := x.loseBlock(t, "b", 50)
		if bad := readDamaged(t, v, x.images[v.ID()], "volume"); len(bad) == 0 {
			t.Fatal("no damage")
		}
		ok(t, s.damageStep())
		hurt50(t, x, s, v)
		ok(t, v.Close())
		if !stopped {
			wantClean(t, s)
		}
		ok(t, s.Close())
		if stopped {
			r := repair(t, x.fsys, sickOptions())
			if r.result.Found == 0 || r.result.Remains != 0 || len(r.mends) != 1 || r.mends[0].Kind != "damage" {
				t.Errorf("repair: %+v", r)
			}
		}
		s = openStore(t, x.fsys, sickOptions())
		if n := len(s.scan(keyDamage)); n > 0 {
			t.Errorf("stopped %v: %d damage records are left", stopped, n)
		}
		wantClean(t, s)
		ok(t, s.Close())
	}
}

// hurt50 takes back what hurt did to block 50 of b: the disk shows the right bytes again.
func hurt50(t *testing.T, x *sick, s *Store, v *Volume) {
	t.Helper()
	content := x.images[v.ID()][50*BlockSize:][:BlockSize]
	for _, name := range filesBelow(t, x.fsys, dirChunks, ".chunks") {
		data := must(vfs.ReadFile(x.fsys, name))(t)
		if i := bytes.Index(data, content[300:600]); i >= 0 {
			flip(x.fsys, name, int64(i)-200+77)
		}
	}
}

// The record of a damaged slot that was collected goes with it.
func TestCollectedDamageIsForgotten(t *testing.T) {
	x := newSick(t)
	s, v := x.loseBlock(t, "b", 50)
	readDamaged(t, v, x.images[v.ID()], "volume")
	ok(t, s.damageStep())
	ok(t, v.Close())
	ok(t, s.DeleteVolume(v.ID()))
	delete(x.images, v.ID())
	must(s.Collect(context.Background()))(t)
	if n := len(s.scan(keyDamage)); n > 0 {
		t.Errorf("%d damage records are left of what was collected", n)
	}
	if st := s.chunks.Stats(); st.Damaged > 0 {
		t.Errorf("%d slots count as damaged that are gone", st.Damaged)
	}
	ok(t, s.Close())
}

// The record of a slot in a file that the disk does not let us read now stays: the slot
// would be taken for a good one as soon as the file can be read again.
func TestDamageOfAnUnreadFileIsKept(t *testing.T) {
	x := newSick(t)
	s := openStore(t, x.fsys, sickOptions())
	v := attach(t, s, x.ids["b"])
	hurt(t, s, x.fsys, v, 50)
	readDamaged(t, v, x.images[v.ID()], "volume")
	ok(t, s.damageStep())
	ok(t, v.Close())
	ok(t, s.Close())
	recorded := s.chunks.Damaged()
	if len(recorded) == 0 {
		t.Fatal("no damage")
	}
	faulty := vfs.NewFaulty(x.fsys)
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && path.Base(op.Name) == recorded[0].File {
			return errors.New("medium error")
		}
		return nil
	})
	s = openStore(t, faulty, sickOptions())
	if len(problems(t, s)) == 0 {
		t.Fatal("the file can be read")
	}
	ok(t, s.Close())
	s = openStore(t, x.fsys, sickOptions())
	if now := s.chunks.Damaged(); !slices.Equal(now, recorded) {
		t.Errorf("known damage %v, was %v", now, recorded)
	}
	ok(t, s.Close())
}

// Records of healed damage go all at one check, but not in one commit.
func TestDamageIsTidiedInBatches(t *testing.T) {
	s := openStore(t, vfs.NewMem(), sickOptions())
	var ops []catalog.Op
	for i := range 2*damageBatch + 10 {
		chunk := dedup.ChunkID{1, byte(i >> 8), byte(i)}
		ops = append(ops, put(damageKey(dedup.Slot{Chunk: chunk}), damageRecord{File: "f"}, catalog.ExpectAbsent))
	}
	must(s.commit(ops...))(t)
	ok(t, s.loadDamage())
	before := s.cat.Durable()
	wantClean(t, s)
	if n := len(s.scan(keyDamage)); n > 0 || s.cat.Durable() != before+3 {
		t.Errorf("%d records are left after %d commits, want 3", n, s.cat.Durable()-before)
	}
	ok(t, s.Close())
}

// A repair that cannot seal a file of an earlier process for want of space leaves it to
// the next start, as a stop does.
func TestRepairOnAFullDisk(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, sickOptions())
	v := newVolume(t, s, "v", MinVolumeSize)
	image := make([]byte, v.Size())
	copy(image, noise(1, 5*BlockSize))
	writeAt(t, v, image, 0)
	foldAll(t, s)
	must(s.commit(put(keyVolumeName+"ghost", nameRecord{ID: s.newID('v')}, catalog.ExpectAbsent)))(t)
	id := v.ID()
	s.abandon()
	fsys.Kill()
	faulty := vfs.NewFaulty(fsys)
	full := false
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && path.Ext(op.Name) == ".open" && op.Off > 0 { // a footer
			full = true
			return vfs.ErrNoSpace
		}
		return nil
	})
	r := repair(t, faulty, sickOptions())
	if len(r.mends) != 1 || r.result.Remains != 0 || !full {
		t.Errorf("%+v", r)
	}
	s = openStore(t, fsys, sickOptions())
	v = attach(t, s, id)
	wantImage(t, readAll(t, v), image, "volume")
	ok(t, v.Close())
	ok(t, s.Close())
}

// Records of the catalog that follow from others are made anew; those that do not are
// left and told.
func TestRepairCatalog(t *testing.T) {
	edit := func(change func(t *testing.T, x *sick, s *Store)) func(t *testing.T, x *sick) {
		return func(t *testing.T, x *sick) {
			s := openStore(t, x.fsys, sickOptions())
			change(t, x, s)
			ok(t, s.Close())
		}
	}
	commit := func(t *testing.T, s *Store, ops ...catalog.Op) { must(s.commit(ops...))(t) }
	cutOf := func(t *testing.T, x *sick, s *Store) (string, cutRecord, catalog.Entry) {
		var sn snapshotRecord
		must(get(s.cat, keySnapshot+x.ids["sn"], &sn))(t)
		var cut cutRecord
		e := must(get(s.cat, keyCut+sn.Cut, &cut))(t)
		return keyCut + sn.Cut, cut, e
	}
	for _, c := range []struct {
		what    string
		hurt    func(t *testing.T, x *sick)
		remains int // of what is found
		twice   int // findings that another's mend puts right
	}{
		{"a reservation of no volume", edit(func(t *testing.T, x *sick, s *Store) {
			commit(t, s, put(keyVolumeName+"ghost", nameRecord{ID: s.newID('v')}, catalog.ExpectAbsent))
		}), 0, 0},
		{"a reservation of no snapshot", edit(func(t *testing.T, x *sick, s *Store) {
			commit(t, s, put(keySnapshotName+"ghost", nameRecord{ID: s.newID('s')}, catalog.ExpectAbsent))
		}), 0, 0},
		{"a reservation for a volume with another name", edit(func(t *testing.T, x *sick, s *Store) {
			commit(t, s, put(keyVolumeName+"other", nameRecord{ID: x.ids["a"]}, catalog.ExpectAbsent))
		}), 0, 0},
		{"a missing reservation", edit(func(t *testing.T, x *sick, s *Store) {
			commit(t, s, del(keyVolumeName+"a", catalog.ExpectAny), del(keySnapshotName+"sn", catalog.ExpectAny))
		}), 0, 0},
		{"a reservation for what is gone", edit(func(t *testing.T, x *sick, s *Store) {
			commit(t, s, put(keyVolumeName+"a", nameRecord{ID: s.newID('v')}, catalog.ExpectAny))
		}), 0, 1},
		{"a name that another volume has", edit(func(t *testing.T, x *sick, s *Store) {
			var rec volumeRecord
			e := must(get(s.cat, keyVolume+x.ids["b"], &rec))(t)
			rec.Name = "a"
			commit(t, s, put(e.Key, rec, e.Revision), del(keyVolumeName+"b", catalog.ExpectAny))
		}), 1, 0},
		{"a cut with too few names", edit(func(t *testing.T, x *sick, s *Store) {
			key, cut, e := cutOf(t, x, s)
			cut.Names = 0
			commit(t, s, put(key, cut, e.Revision))
		}), 0, 0},
		{"a cut with too many names, and blocks", edit(func(t *testing.T, x *sick, s *Store) {
			key, cut, e := cutOf(t, x, s)
			cut.Names, cut.Mapped = 7, 3
			commit(t, s, put(key, cut, e.Revision))
		}), 0, 0},
		{"a cut that nobody names", edit(func(t *testing.T, x *sick, s *Store) {
			_, cut, _ := cutOf(t, x, s)
			commit(t, s, put(keyCut+s.newID('c'), cut, catalog.ExpectAbsent))
		}), 0, 0},
		{"a cut that is gone", edit(func(t *testing.T, x *sick, s *Store) {
			key, _, e := cutOf(t, x, s)
			commit(t, s, del(key, e.Revision))
			delete(x.snaps, x.ids["sn"])
		}), 2, 0},
		{"a wrong count of blocks", edit(func(t *testing.T, x *sick, s *Store) {
			var rec volumeRecord
			e := must(get(s.cat, keyVolume+x.ids["b"], &rec))(t)
			rec.Mapped += 5
			commit(t, s, put(e.Key, rec, e.Revision))
		}), 0, 0},
		{"a publication of no volume", edit(func(t *testing.T, x *sick, s *Store) {
			commit(t, s, put(keyPublish+s.newID('v'), Publication{Node: "n", Created: time.Unix(1, 0)}, catalog.ExpectAbsent))
		}), 0, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			x := newSick(t)
			c.hurt(t, x)
			var found []Problem
			ok(t, CheckStopped(context.Background(), x.fsys, testDir, CheckOptions{}, func(p Problem) { found = append(found, p) }))
			repairable := 0
			for _, p := range found {
				if p.Repairable {
					repairable++
				}
			}
			r := repair(t, x.fsys, sickOptions())
			if len(r.remains) != c.remains || r.result.Found != len(found) || repairable != len(found)-c.remains || len(r.mends) != repairable-c.twice {
				t.Errorf("found %v, mended %v, remains %v", found, r.mends, r.remains)
			}
			if bad := x.unreadable(t, x.fsys); len(bad) > 0 {
				t.Errorf("%v cannot be read", bad)
			}
			if again := repair(t, x.fsys, sickOptions()); again.result.Mended > 0 {
				t.Errorf("repaired again: %v", again.mends)
			}
		})
	}
}

// What a record names that cannot be read is not known: no cut goes, and none is counted
// anew, for what seems to name it. Once the record is put back the snapshot is whole.
func TestRepairKeepsWhatAnUnreadRecordNames(t *testing.T) {
	for _, clones := range []int{0, 1} { // whose records name the cut too
		x := newSick(t)
		s := openStore(t, x.fsys, sickOptions())
		b := attach(t, s, x.ids["b"])
		copy(x.images[b.ID()], noise(76, BlockSize))
		writeAt(t, b, x.images[b.ID()][:BlockSize], 0) // so that the cut waits for its root
		sn := must(s.CreateSnapshot(context.Background(), b.ID(), "of b", nil))(t)
		for range clones {
			must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: sn.ID}))(t)
		}
		x.snaps[sn.ID] = bytes.Clone(x.images[b.ID()])
		p := noise(77, 100*BlockSize)
		writeAt(t, b, p, 0) // so that only the snapshot has what it froze
		copy(x.images[b.ID()], p)
		foldAll(t, s)
		ok(t, b.Close())
		record, _ := s.cat.View().Get(keySnapshot + sn.ID)
		value := bytes.Replace(record.Value, []byte(`"sector":`), []byte(`"sector":1`), 1)
		must(s.commit(catalog.Op{Key: record.Key, Value: value, Expect: record.Revision}))(t)
		must(s.commit(put(keySnapshotName+"ghost", nameRecord{ID: s.newID('s')}, catalog.ExpectAbsent)))(t)
		ok(t, s.Close())
		if r := repair(t, x.fsys, sickOptions()); len(r.mends) != 1 || r.result.Remains < 2-clones {
			t.Errorf("%d clones: %+v", clones, r)
		}
		s = openStore(t, x.fsys, sickOptions())
		must(s.commit(catalog.Op{Key: record.Key, Value: record.Value, Expect: catalog.ExpectAny}))(t)
		if clones > 0 {
			ok(t, s.DeleteVolume(must(s.Volume("clone"))(t).ID))
		}
		must(s.Collect(context.Background()))(t)
		wantClean(t, s)
		if bad := x.verify(t, s); len(bad) > 0 {
			t.Errorf("%d clones: %v cannot be read", clones, bad)
		}
		ok(t, s.Close())
	}
}

// A repair leaves alone what it must not touch, and says why.
func TestRepairRefuses(t *testing.T) {
	x := newSick(t)
	before := x.fsys.Digest()
	if r := repair(t, x.fsys, sickOptions()); r.result != (RepairResult{}) || x.fsys.Digest() != before {
		t.Errorf("a store without problems: %+v", r)
	}
	s := openStore(t, x.fsys, sickOptions())
	if _, err := tryRepair(x.fsys, sickOptions()); !errors.Is(err, ErrLocked) {
		t.Errorf("a store that is open: %v", err)
	}
	ok(t, s.Close())
	name := filesBelow(t, x.fsys, dirChunks, ".chunks")[0]
	fsys := x.fsys.Clone()
	fsys.Corrupt(name, 4, func(p []byte) { p[0] = 9 }) // of a later version
	want := must(vfs.ReadFile(fsys, name))(t)
	if r := repair(t, fsys, sickOptions()); r.result.Mended > 0 || r.result.Remains == 0 {
		t.Errorf("a file of a later version: %+v", r)
	}
	if got := must(vfs.ReadFile(fsys, name))(t); !bytes.Equal(got, want) {
		t.Error("a file of a later version was changed")
	}
	log := filesBelow(t, x.fsys, dirCatalog, ".log")[0]
	fsys = x.fsys.Clone()
	flip(fsys, log, 100)
	before = fsys.Digest()
	if _, err := tryRepair(fsys, sickOptions()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "put the newest ones back") || fsys.Digest() != before {
		t.Errorf("a damaged catalog: %v", err)
	}
	faulty, broken := vfs.NewFaulty(x.fsys), errors.New("medium error")
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Name == log {
			return broken
		}
		return nil
	})
	if _, err := tryRepair(faulty, sickOptions()); !errors.Is(err, broken) || strings.Contains(err.Error(), "put the newest ones back") {
		t.Errorf("a catalog that cannot be read now: %v", err)
	}
}

// A file that the disk does not let us read is left where it is: it may be read another
// time.
func TestRepairLeavesUnreadFiles(t *testing.T) {
	x := newSick(t)
	name := filesBelow(t, x.fsys, dirChunks, ".chunks")[0]
	flipAt(x.fsys, name, size(t, x.fsys, name)-90) // and its footer is bad
	faulty := vfs.NewFaulty(x.fsys)
	c := chunkSpots(must(vfs.ReadFile(x.fsys, name))(t), name)[0]
	broken := errors.New("medium error")
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Name == name && op.Off <= c.payload && op.Off+op.Len > c.payload {
			return broken
		}
		return nil
	})
	r := repair(t, faulty, sickOptions())
	if _, err := x.fsys.Stat(name); err != nil || r.result.Remains == 0 {
		t.Errorf("%v: %+v", err, r)
	}
	faulty.SetHook(nil)
	x.mustRepair(t, x.fsys, nil)
}

// A journal that cannot be read back stays as it is, its volume closed; a repair says so
// and mends the rest.
func TestRepairLeavesJournals(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, sickOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, 5*BlockSize), 0)
	ok(t, v.Flush())
	v.markStep()
	writeAt(t, v, noise(2, BlockSize), 0)
	ok(t, v.Flush())
	v.markStep()
	must(s.commit(put(keyVolumeName+"ghost", nameRecord{ID: s.newID('v')}, catalog.ExpectAbsent)))(t)
	s.abandon()
	fsys.Kill()
	seg := segmentsOf(t, fsys, v.ID())[0]
	flip(fsys, seg, 4096+200)
	before := must(vfs.ReadFile(fsys, seg))(t)
	r := repair(t, fsys, sickOptions())
	if len(r.mends) != 1 || len(r.remains) == 0 || r.remains[0].Kind != "journal" || r.remains[0].Volume != v.ID() {
		t.Errorf("%+v", r)
	}
	if got := must(vfs.ReadFile(fsys, seg))(t); !bytes.Equal(got, before) {
		t.Error("the segment was changed")
	}
}
