package blockstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"testing"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
)

// broken is a store with one of each damage that a repair mends, and what it can read.
type broken struct {
	*sick
	before map[string][]int64 // blocks that cannot be read
	after  map[string][]int64 // the same after a repair
	left   int                // problems after it
	chunks map[string][]byte  // its chunk files, by name
}

func brokenOptions() Options {
	o := sickOptions()
	o.CatalogBytes, o.Workers = 64<<10, 1
	return o
}

func newBroken(t *testing.T) *broken {
	t.Helper()
	x := &broken{sick: newSick(t)}
	s := openStore(t, x.fsys, brokenOptions())
	must(s.commit(put(keyVolumeName+"ghost", nameRecord{ID: s.newID('v')}, catalog.ExpectAbsent)))(t)
	var rec volumeRecord
	e := must(get(s.cat, keyVolume+x.ids["a"], &rec))(t)
	rec.Mapped++
	must(s.commit(put(e.Key, rec, e.Revision)))(t)
	b := attach(t, s, x.ids["b"])
	hurt(t, s, x.fsys, b, 50)
	ok(t, b.Close())
	ok(t, s.Close())
	files := filesBelow(t, x.fsys, dirChunks, ".chunks")
	for i, name := range files[:3] {
		data := must(vfs.ReadFile(x.fsys, name))(t)
		c := chunkSpots(data, name)[0]
		flipAt(x.fsys, name, []int64{int64(len(data)) - 90, int64(len(data)) - 90, c.front + 1}[i])
	}
	x.chunks = readDir(t, x.fsys, path.Join(testDir, dirChunks))
	x.before = x.read(t, x.fsys)
	fsys := x.fsys.Clone()
	r := repair(t, fsys, brokenOptions())
	x.after, x.left = x.read(t, fsys), r.result.Remains
	if len(x.before) == 0 || len(x.after) == 0 || x.left == 0 || len(r.mends) < 5 {
		t.Fatalf("%v cannot be read, after a repair %v: %+v", x.before, x.after, r)
	}
	return x
}

// read opens a copy of the store and reads every volume, in pieces, or block by block
// where there are errors: a wrong byte fails the test.
func (x *broken) read(t *testing.T, fsys *vfs.Mem) map[string][]int64 {
	t.Helper()
	s, err := Open(fsys.Clone(), testDir, brokenOptions())
	if err != nil {
		t.Fatalf("the store does not open: %v", err)
	}
	defer s.abandon()
	bad := map[string][]int64{}
	p := make([]byte, 8*BlockSize)
	for id, image := range x.images {
		v := attach(t, s, id)
		for off := int64(0); off < int64(len(image)); off += int64(len(p)) {
			if _, err := v.ReadAt(p, off); err == nil {
				wantImage(t, p, image[off:][:len(p)], "volume")
				continue
			}
			for at := off; at < off+int64(len(p)); at += BlockSize {
				if _, err := v.ReadAt(p[:BlockSize], at); err != nil {
					bad[id] = append(bad[id], at/BlockSize)
				} else {
					wantImage(t, p[:BlockSize], image[at:][:BlockSize], "volume")
				}
			}
		}
		ok(t, v.Close())
	}
	return bad
}

// stillThere verifies that no chunk file of before is gone: it is where it was, or in
// quarantine.
func (x *broken) stillThere(t *testing.T, fsys *vfs.Mem, what string) {
	t.Helper()
	for name, data := range x.chunks {
		found := false
		for _, dir := range []string{dirChunks, dirQuarantine} {
			got, err := vfs.ReadFile(fsys, path.Join(testDir, dir, name))
			found = found || err == nil && bytes.Equal(got, data)
		}
		if !found {
			t.Errorf("%s: %s is gone, or another", what, name)
		}
	}
}

// lostNothing verifies that a store in the midst of a repair reads as before or better,
// and that a repair brings it where one at once would have.
func (x *broken) lostNothing(t *testing.T, fsys *vfs.Mem, what string) {
	t.Helper()
	x.stillThere(t, fsys, what)
	for id, blocks := range x.read(t, fsys) {
		for _, b := range blocks {
			if !slices.Contains(x.before[id], b) {
				t.Errorf("%s: block %d of %s could be read before", what, b, id)
			}
		}
	}
	r, err := tryRepair(fsys, brokenOptions())
	if err != nil {
		t.Errorf("%s: repaired again: %v", what, err)
		return
	}
	x.stillThere(t, fsys, what)
	if got := fmt.Sprint(x.read(t, fsys)); got != fmt.Sprint(x.after) || r.result.Remains != x.left {
		t.Errorf("%s: repaired again: %v cannot be read and %v remain, want %v", what, got, r.remains, x.after)
	}
}

// changing are the file operations that change something.
var changing = []vfs.OpKind{
	vfs.OpWrite, vfs.OpCreate, vfs.OpAllocate, vfs.OpRename, vfs.OpRemove, vfs.OpMkdir,
	vfs.OpSync, vfs.OpDatasync, vfs.OpTruncate, vfs.OpSyncDir,
}

// repairOn repairs on a disk with a plan. over tells that nothing of it came about.
func (x *broken) repairOn(seed int64, plan simPlan) (d *simDisk, err error, over bool) {
	d = newSimDisk(rand.New(rand.NewPCG(uint64(seed), 5)))
	d.mem = x.fsys.Clone()
	d.fs = vfs.NewFaulty(d.mem)
	d.fs.SetHook(d.hook)
	plan.kinds = changing
	plan.in = seed
	d.plan = plan
	_, err = tryRepair(simFS{d}, brokenOptions())
	return d, err, !d.fired && !d.dead && d.plan.in > 0
}

// TestRepairEveryCrash lets a repair die at every file operation that changes something:
// in each state that the disk may be in then, nothing is lost, and it can be run again.
func TestRepairEveryCrash(t *testing.T) {
	x := newBroken(t)
	step, points := int64(1), 0
	if raceEnabled {
		step = 9
	}
	for n := int64(1); !t.Failed(); n += step {
		d, _, over := x.repairOn(n, simPlan{die: true})
		if over {
			break
		}
		points++
		for k, keep := range []float64{1, 0, 1, 0.5} {
			fsys := d.mem.Clone()
			if k == 0 {
				fsys.Kill()
			} else {
				fsys.Crash(rand.New(rand.NewPCG(uint64(n), uint64(k))), keep)
			}
			x.lostNothing(t, fsys, fmt.Sprintf("death at operation %d, state %d", n, k))
		}
	}
	if points*int(step) < 30 {
		t.Errorf("only %d points", points)
	}
	t.Logf("%d points", points)
}

// TestRepairEveryFault fails every file operation of a repair that changes something, by
// a full disk and by EIO, once and from there on: nothing is lost, and it can be run
// again.
func TestRepairEveryFault(t *testing.T) {
	x := newBroken(t)
	step := int64(1)
	if raceEnabled {
		step = 9
	}
	for _, f := range everyFaults() {
		if f.short {
			continue // half of the writes are short anyway
		}
		failed := 0
		for n := int64(1); !t.Failed(); n += step {
			d, err, over := x.repairOn(n, simPlan{err: f.err, times: f.times})
			if over {
				break
			}
			if err != nil {
				failed++
			}
			d.calm()
			d.mem.Kill()
			x.lostNothing(t, d.mem, fmt.Sprintf("%s at operation %d", f.name, n))
		}
		if failed == 0 {
			t.Errorf("%s: no repair failed", f.name)
		}
	}
}
