package blockstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// costStore has one volume of 64 blocks and n snapshots of it, each of its own image, and
// as many volumes as the fifth of that.
func costStore(t *testing.T, n int) (*Store, *Volume) {
	t.Helper()
	s := openStore(t, vfs.NewMem(), scaleOptions())
	v := newVolume(t, s, "v", MinVolumeSize)
	writeAt(t, v, noise(1, 64*BlockSize), 0)
	for i := range n {
		writeAt(t, v, noise(uint64(i)+2, BlockSize), int64(i%64)*BlockSize)
		must(s.CreateSnapshot(context.Background(), v.ID(), fmt.Sprintf("s%05d", i), nil))(t)
		foldAll(t, s)
		if i%5 == 0 {
			must(s.CreateVolume(VolumeSpec{Name: fmt.Sprintf("w%05d", i), SizeBytes: MinVolumeSize}))(t)
		}
	}
	return s, v
}

// What is asked all the time costs the same whatever the store holds: allocations are
// counted, for times differ from run to run.
func TestCostsDoNotGrow(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates by itself")
	}
	count := func(s *Store, v *Volume) map[string]float64 {
		all := s.SnapshotPage("", "", 0) // in the order of IDs, so that a page follows
		middle := all[len(all)/2].ID
		mine := s.SnapshotPage(v.ID(), "", 0)
		runs := func(fn func()) float64 { return testing.AllocsPerRun(20, fn) }
		next := 0
		return map[string]float64{
			"a page of volumes":               runs(func() { s.VolumePage("", 10) }),
			"a page of snapshots":             runs(func() { s.SnapshotPage("", middle, 10) }),
			"a page of snapshots of a volume": runs(func() { s.SnapshotPage(v.ID(), mine[len(mine)/2].ID, 10) }),
			"statistics":                      runs(func() { s.Stats(false) }),
			"whether to collect":              runs(func() { s.coll.takeBack(1); s.addGarbage(1) }),
			"deleting a snapshot": runs(func() {
				ok(t, s.DeleteSnapshot(mine[next].ID))
				next++
			}),
			"making a volume": runs(func() {
				must(s.CreateVolume(VolumeSpec{Name: fmt.Sprint("made", next), SizeBytes: MinVolumeSize}))(t)
				next++
			}),
		}
	}
	few, many := count(costStore(t, 100)), count(costStore(t, 1000))
	for what, n := range many {
		t.Logf("%s: %.0f allocations with 100 snapshots, %.0f with 1,000", what, few[what], n)
		if n > 1.5*few[what]+20 {
			t.Errorf("%s takes %.0f allocations with 100 snapshots and %.0f with 1,000", what, few[what], n)
		}
	}
}

// Pages are the whole list in the order of IDs, also while it changes.
func TestPages(t *testing.T) {
	s, v := costStore(t, 60)
	other := must(s.CreateVolume(VolumeSpec{Name: "other", SizeBytes: MinVolumeSize}))(t).ID
	for i := range 7 {
		must(s.CreateSnapshot(context.Background(), other, fmt.Sprint("o", i), nil))(t)
	}
	check := func() {
		t.Helper()
		for owner, want := range map[string]int{"": 0, v.ID(): 0, other: 0, "v-" + strings.Repeat("0", 32): 0} {
			var ids []string
			for _, info := range s.Snapshots("") {
				if owner == "" || info.VolumeID == owner {
					ids = append(ids, info.ID)
				}
			}
			slices.Sort(ids)
			want = len(ids)
			for _, limit := range []int{1, 3, want, want + 1, 0} {
				var got []string
				for after := ""; ; {
					page := s.SnapshotPage(owner, after, limit)
					if limit > 0 && len(page) > limit {
						t.Fatalf("a page of %d has %d", limit, len(page))
					}
					for _, info := range page {
						got = append(got, info.ID)
					}
					if limit == 0 || len(page) < limit {
						break
					}
					after = got[len(got)-1]
				}
				if !slices.Equal(got, ids) {
					t.Fatalf("snapshots of %q by %d: %d of %d", owner, limit, len(got), want)
				}
			}
		}
		var ids, got []string
		for _, info := range s.Volumes() {
			ids = append(ids, info.ID)
		}
		slices.Sort(ids)
		for after, more := "", true; more; {
			page := s.VolumePage(after, 2)
			for _, info := range page {
				got = append(got, info.ID)
				after = info.ID
			}
			more = len(page) == 2
		}
		if !slices.Equal(got, ids) {
			t.Fatalf("volumes: %d of %d", len(got), len(ids))
		}
	}
	check()
	for i, info := range s.Snapshots("") {
		if i%3 == 0 {
			ok(t, s.DeleteSnapshot(info.ID))
		}
	}
	ok(t, s.DeleteVolume(other))
	check()
}

// The sums that a census keeps are those of counting all records, after any history and
// after a start.
func TestCensus(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, scaleOptions())
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(9, 9))
	name := 0
	same := func(when string) {
		t.Helper()
		var want figures
		images := make(map[rootRef]bool)
		for _, info := range s.Volumes() {
			want.volumes++
			want.logicalVolumes += info.MappedBytes
			var rec volumeRecord
			must(get(s.cat, keyVolume+info.ID, &rec))(t)
			if rec.Root != nil {
				images[*rec.Root] = true
			}
		}
		for _, info := range s.Snapshots("") {
			want.snapshots++
			var rec snapshotRecord
			var cut cutRecord
			must(get(s.cat, keySnapshot+info.ID, &rec))(t)
			must(get(s.cat, keyCut+rec.Cut, &cut))(t)
			if cut.Root != nil && !images[*cut.Root] {
				images[*cut.Root] = true
				want.logicalSnaps += cut.Mapped * BlockSize
			}
		}
		if got := s.census.figures(); got != want {
			t.Fatalf("%s: the census has %+v, the records %+v", when, got, want)
		}
	}
	for step := range 300 {
		vols, snaps := s.Volumes(), s.Snapshots("")
		name++
		pick := func() string { return vols[rng.IntN(len(vols))].ID }
		switch k := rng.IntN(12); {
		case k < 2 || len(vols) == 0:
			must(s.CreateVolume(VolumeSpec{Name: fmt.Sprint("v", name), SizeBytes: MinVolumeSize}))(t)
		case k < 5:
			v := attach(t, s, pick())
			writeAt(t, v, noise(uint64(rng.IntN(40)), BlockSize), int64(rng.IntN(20))*BlockSize)
			ok(t, v.Close())
			if rng.IntN(2) == 0 {
				foldAll(t, s)
			}
		case k < 8:
			must(s.CreateSnapshot(ctx, pick(), fmt.Sprint("s", name), nil))(t)
		case k == 8 && len(snaps) > 0:
			must(s.CreateVolume(VolumeSpec{Name: fmt.Sprint("c", name), FromSnapshot: snaps[rng.IntN(len(snaps))].ID}))(t)
		case k == 9 && len(snaps) > 0:
			ok(t, s.DeleteSnapshot(snaps[rng.IntN(len(snaps))].ID))
		case k == 10:
			ok(t, s.DeleteVolume(pick()))
		default:
			foldAll(t, s)
		}
		if step%3 == 0 {
			same(fmt.Sprint("step ", step))
		}
		if step%100 == 99 {
			ok(t, s.Close())
			s = openStore(t, fsys, scaleOptions())
			same("after a start")
		}
	}
	ok(t, s.Close())
}

// Nothing is marked while nothing was given up; overwriting, discarding and deleting
// give up what they cover, a snapshot what only snapshots still had.
func TestMarkingOnlyForGarbage(t *testing.T) {
	fsys := vfs.NewMem()
	o := scaleOptions()
	o.GarbageBytes = 200 << 10
	s := openStore(t, fsys, o)
	ctx := context.Background()
	pending := func(what string, atLeast, atMost int64) {
		t.Helper()
		got, _ := s.coll.known()
		if got < atLeast*BlockSize || got > atMost*BlockSize {
			t.Errorf("%s: %d blocks are given up, want %d to %d", what, got/BlockSize, atLeast, atMost)
		}
	}
	v := newVolume(t, s, "v", MinVolumeSize)
	writeAt(t, v, noise(1, 100*BlockSize), 0)
	foldAll(t, s)
	for i := range 100 { // further blocks, each in a fold of its own, name no block less
		must(s.CreateSnapshot(ctx, v.ID(), fmt.Sprint("s", i), nil))(t)
	}
	writeAt(t, v, noise(1, 100*BlockSize), 0) // the same again
	foldAll(t, s)
	for i := range 100 {
		ok(t, s.DeleteSnapshot(must(s.Snapshot(fmt.Sprint("s", i)))(t).ID))
	}
	pending("new data, the same data, snapshots of what the volume has", 0, 0)
	if s.warrantsCollection() {
		t.Error("a collection without garbage")
	}
	must(s.CreateSnapshot(ctx, v.ID(), "keeps", nil))(t)
	writeAt(t, v, noise(2, 50*BlockSize), 0)
	foldAll(t, s)
	pending("50 blocks overwritten", 50, 52)
	ok(t, v.Discard(50*BlockSize, 50*BlockSize))
	foldAll(t, s)
	pending("50 more discarded", 100, 104)
	if !s.warrantsCollection() {
		t.Error("no collection for 400 KiB of what may be garbage")
	}
	if res := must(s.Collect(ctx))(t); res.Nodes == 0 {
		t.Error("a collection that marks nothing")
	}
	pending("after the marking", 0, 0)
	ok(t, v.Close())
	ok(t, s.Close())
	s = openStore(t, fsys, o)
	pending("after a clean stop", 0, 0)
	ok(t, s.DeleteSnapshot(must(s.Snapshot("keeps"))(t).ID))
	pending("the snapshot that had the old blocks is deleted", 90, 110)
	ok(t, s.Close())
	s = openStore(t, fsys, o)
	pending("the estimate after a clean stop", 90, 110)
	res := must(s.Collect(ctx))(t)
	if res.FreedBytes < 90*64 {
		t.Errorf("the collection freed %d bytes", res.FreedBytes)
	}
	must(s.CreateVolume(VolumeSpec{Name: "w", SizeBytes: MinVolumeSize}))(t)
	fsys.Crash(nil, 0)
	s2 := openStore(t, fsys, o)
	pending2, _ := s2.coll.known()
	if st := s2.chunks.Stats(); pending2 != st.Slots*BlockSize || st.Slots == 0 {
		t.Errorf("after a crash %d bytes may be garbage, want all %d", pending2, st.Slots*BlockSize)
	}
	ok(t, s2.Close())
}

// A marking reads each node once, however many images share it.
func TestMarkingReadsSharedNodesOnce(t *testing.T) {
	s := openStore(t, vfs.NewMem(), scaleOptions())
	v := newVolume(t, s, "v", 64<<20)
	for i := int64(0); i < 2000; i++ {
		writeAt(t, v, noise(uint64(i), BlockSize), 8*i*BlockSize)
	}
	foldAll(t, s)
	base := must(s.Collect(context.Background()))(t).Nodes
	const snapshots = 150
	for i := range int64(snapshots) {
		writeAt(t, v, noise(uint64(i)+5000, BlockSize), 8*i*BlockSize)
		must(s.CreateSnapshot(context.Background(), v.ID(), fmt.Sprint("s", i), nil))(t)
		foldAll(t, s)
	}
	all := must(s.Collect(context.Background()))(t).Nodes
	t.Logf("%d nodes, with %d snapshots %d", base, snapshots, all)
	if base < 4 || all > base+3*snapshots {
		t.Errorf("%d nodes were read for one image, %d with %d snapshots that share most of them", base, all, snapshots)
	}
	ok(t, s.Close())
}

// A volume that is written over for ever by small folds keeps the index bounded:
// collection takes the chunks that have no live slot, their files and their numbers.
func TestIndexOfSmallFoldsIsBounded(t *testing.T) {
	folds := 2000
	if testing.Short() || raceEnabled {
		folds = 700
	}
	fsys := vfs.NewMem()
	o := scaleOptions()
	o.GarbageBytes = 1 << 20
	s := openStore(t, fsys, o)
	v := newVolume(t, s, "v", MinVolumeSize)
	rng := rand.New(rand.NewPCG(4, 4))
	most := 0
	for range folds {
		for range 4 {
			writeAt(t, v, noise(rng.Uint64(), BlockSize), rng.Int64N(MinVolumeSize/BlockSize)*BlockSize)
		}
		foldAll(t, s)
		if s.warrantsCollection() {
			must(s.Collect(context.Background()))(t)
		}
		most = max(most, s.chunks.Stats().Chunks)
	}
	// 256 live blocks, each at worst in a chunk of its own, as many nodes of the last
	// folds, and what may gather before a collection: 1 MiB in folds of 4 blocks and a node.
	limit := 256 + 2*(1<<20)/BlockSize
	files, _ := fsys.ReadDir(path.Join(s.dir, dirChunks))
	t.Logf("%d folds: at most %d chunks, %d files at the end", folds, most, len(files))
	if most > limit {
		t.Errorf("%d chunks are in the index after %d folds of a volume of 256 blocks, want at most %d", most, folds, limit)
	}
	if len(files) > 12 {
		t.Errorf("%d chunk files hold 1 MiB", len(files))
	}
	ok(t, v.Close())
	ok(t, s.Close())
}
