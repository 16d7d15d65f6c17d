package blockmap

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
)

// scattered makes n extents of one block that share no chunk with a neighbour, step
// blocks apart.
func scattered(n int, step uint64) []Extent {
	out := make([]Extent, n)
	for i := range out {
		out[i] = Extent{First: uint64(i) * step, Count: 1, Chunk: id(uint64(i % 5000)), Slot: uint16(i / 5000)}
	}
	return out
}

// batch makes random changes of one block each, as a fold has them: new slots of a few chunks.
func batch(r *rand.Rand, n int, below uint64) []Extent {
	blocks := make([]uint64, n)
	for i := range blocks {
		blocks[i] = r.Uint64N(below)
	}
	slices.Sort(blocks)
	blocks = slices.Compact(blocks)
	chunk := r.Uint64()
	out := make([]Extent, len(blocks))
	for i, b := range blocks {
		// Slots go down, so that neighbours are never joined.
		out[i] = Extent{First: b, Count: 1, Chunk: id(chunk + uint64(i/1024)), Slot: uint16(1023 - i%1024)}
	}
	return out
}

func collect(t testing.TB, tree *Tree, root Root, first, count uint64) (out []Extent) {
	t.Helper()
	err := tree.Lookup(root, first, count, func(e Extent) error { out = append(out, e); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFillSequential loads in order, in steps of several sizes: leaves are full.
func TestFillSequential(t *testing.T) {
	for _, step := range []int{1, 7, 100, 30000} {
		store := newMemStore()
		tree := New(store, 100)
		all := scattered(min(30000, 4000*step), 3)
		var root Root
		for i := 0; i < len(all); i += step {
			root, _, _ = mustUpdate(t, tree, store, 1024, root, all[i:min(len(all), i+step)])
		}
		s := checkTree(t, tree, root)
		t.Logf("steps of %d: height %d, %d leaves %.1f %% full, %d other nodes", step, s.height, s.leaves, 100*s.fill(), s.nodes-s.leaves)
		if s.fill() < 0.9 {
			t.Errorf("steps of %d: leaves are %.1f %% full", step, 100*s.fill())
		}
		if s.extents != len(all) {
			t.Errorf("%d extents, want %d", s.extents, len(all))
		}
	}
}

// TestFillRandom inserts in random order, by batches of several sizes.
func TestFillRandom(t *testing.T) {
	total := 30000
	if testing.Short() || raceEnabled {
		total = 8000
	}
	for _, n := range []int{1, 30, 1000} {
		r := rand.New(rand.NewPCG(uint64(n), 2))
		store := newMemStore()
		tree := New(store, 1000)
		var root Root
		low, want := 1.0, make(map[uint64]Extent)
		for i := 0; i < min(total, 12000*n); i += n {
			changes := batch(r, n, spaceEnd)
			for _, c := range changes {
				want[c.First] = c
			}
			root, _, _ = mustUpdate(t, tree, store, 1024, root, changes)
			if i > 3000 && i/n%max(1, 1000/n) == 0 {
				low = min(low, checkTree(t, tree, root).fill())
			}
		}
		s := checkTree(t, tree, root)
		t.Logf("batches of %d: height %d, %d leaves %.1f %% full, at least %.1f %%", n, s.height, s.leaves, 100*s.fill(), 100*low)
		if low < 0.55 {
			t.Errorf("batches of %d: leaves were only %.1f %% full", n, 100*low)
		}
		for _, e := range collect(t, tree, root, 0, spaceEnd) {
			if !e.IsHole() && e != want[e.First] {
				t.Errorf("got %+v, want %+v", e, want[e.First])
			}
		}
		if s.extents != len(want) {
			t.Errorf("%d extents, want %d", s.extents, len(want))
		}
	}
}

// TestNodesWritten changes one block: as many nodes are written as the tree is high.
func TestNodesWritten(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	store := newMemStore()
	tree := New(store, 1000)
	all := scattered(40000, 3)
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var root Root
	for ; len(all) > 0; all = all[200:] {
		slices.SortFunc(all[:200], func(a, b Extent) int { return cmp.Compare(a.First, b.First) })
		root, _, _ = mustUpdate(t, tree, store, 1, root, all[:200])
	}
	s := checkTree(t, tree, root)
	if s.height != 3 {
		t.Fatalf("height %d", s.height)
	}
	extents := collect(t, tree, root, 0, spaceEnd)
	for range 200 {
		e := extents[r.IntN(len(extents))]
		if e.IsHole() {
			continue
		}
		e.Count, e.Slot = 1, e.Slot^1
		_, res, added := mustUpdate(t, tree, store, 1024, root, []Extent{e})
		if added != s.height || res.MappedDelta != 0 {
			t.Errorf("%d nodes written for one block, %d blocks more; height %d", added, res.MappedDelta, s.height)
		}
	}
	_, res, added := mustUpdate(t, tree, store, 1024, root, extents)
	if added != 0 || res.InSink || res.Root != root {
		t.Errorf("no difference: %d nodes made, %+v", added, res)
	}
}

// TestShrink takes blocks away until nothing is left.
func TestShrink(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	store := newMemStore()
	tree := New(store, 100)
	tree.capacity = 128
	all := scattered(3000, 2)
	root, res, _ := mustUpdate(t, tree, store, 1, Root{}, all)
	if res.MappedDelta != 3000 {
		t.Errorf("%d blocks mapped", res.MappedDelta)
	}
	if s := checkTree(t, tree, root); s.height < 6 {
		t.Errorf("height %d is not deep", s.height)
	}
	left := slices.Clone(all)
	for len(left) > 1 {
		i := r.IntN(len(left))
		n := min(len(left)-i, 1+r.IntN(60))
		hole := Extent{First: left[i].First, Count: left[i+n-1].First + 1 - left[i].First}
		left = slices.Delete(left, i, i+n)
		root, _, _ = mustUpdate(t, tree, store, 1, root, []Extent{hole})
		if s := checkTree(t, tree, root); s.extents != len(left) {
			t.Fatalf("%d extents, want %d", s.extents, len(left))
		}
	}
	if s := checkTree(t, tree, root); len(left) == 1 && s.height != 1 {
		t.Errorf("height %d with one extent", s.height)
	}
	root, res, added := mustUpdate(t, tree, store, 1, root, []Extent{{First: 0, Count: endOfSpace}})
	if !root.IsZero() || added != 0 || res.InSink {
		t.Errorf("all holes: root %s, %d nodes made", root, added)
	}
}

// TestDescending inserts in front of everything; a hole in front of a root's first
// child goes to that child.
func TestDescending(t *testing.T) {
	store := newMemStore()
	tree := New(store, 1000)
	all := scattered(5000, 5)
	root, _, _ := mustUpdate(t, tree, store, 1024, Root{}, all[4000:])
	for i := 3999; i >= 0; i-- {
		root, _, _ = mustUpdate(t, tree, store, 1024, root, all[i:i+1])
	}
	if s := checkTree(t, tree, root); s.fill() < 0.45 || s.extents != 5000 {
		t.Errorf("%d extents, leaves %.1f %% full", s.extents, 100*s.fill())
	}
}

// TestHiddenContent has nodes that hold more than their parent's ranges show (what
// updates beside unreadable nodes leave): it never comes back (I4).
func TestHiddenContent(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	leaf := leafPage(t, Extent{First: 0, Count: 1000, Chunk: chunkA})
	other := leafPage(t, Extent{First: 100, Count: 1, Chunk: chunkB})
	c := store.put([][]byte{leaf, other})
	whole, one := dedup.Slot{Chunk: c}, dedup.Slot{Chunk: c, Slot: 1}
	inner := func(children ...Child) Root {
		return Root{Chunk: store.put([][]byte{innerPage(t, 1, children...)})}
	}
	show := func(first, end uint64) Extent {
		return Extent{First: first, Count: end - first, Chunk: chunkA, Slot: uint16(first)}
	}
	hole := func(first, end uint64) Extent { return Extent{First: first, Count: end - first} }
	tests := []struct {
		name   string
		root   Root
		change Extent
		want   []Extent
	}{
		{"next one goes", inner(Child{0, whole}, Child{100, one}, Child{200, whole}), hole(100, 200),
			[]Extent{show(0, 100), hole(100, 200), show(200, 1000), hole(1000, 2000)}},
		{"last one goes", inner(Child{0, whole}, Child{100, one}), hole(100, 101),
			[]Extent{show(0, 100), hole(100, 2000)}},
		{"first one goes", inner(Child{0, one}, Child{300, whole}), hole(0, 300),
			[]Extent{hole(0, 300), show(300, 1000), hole(1000, 2000)}},
		{"first ones go", inner(Child{0, one}, Child{100, one}, Child{300, whole}), hole(0, 2),
			[]Extent{hole(0, 100), {First: 100, Count: 1, Chunk: chunkB}, hole(101, 300), show(300, 1000), hole(1000, 2000)}},
		{"change inside", inner(Child{300, whole}, Child{400, one}), hole(310, 320),
			[]Extent{hole(0, 300), show(300, 310), hole(310, 320), show(320, 400), hole(400, 2000)}},
		{"change behind", inner(Child{0, whole}, Child{400, one}), Extent{First: 500, Count: 1, Chunk: chunkB},
			[]Extent{show(0, 400), hole(400, 500), {First: 500, Count: 1, Chunk: chunkB}, hole(501, 2000)}},
	}
	for _, tt := range tests {
		root, _, _ := mustUpdate(t, tree, store, 3, tt.root, []Extent{tt.change})
		if got := collect(t, tree, root, 0, 2000); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestLookupErrors asks beside and in what cannot be read.
func TestLookupErrors(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	root, _, _ := mustUpdate(t, tree, store, 1024, Root{}, scattered(1000, 1))
	n, err := tree.load(root, MaxLevels, false)
	if err != nil || n.Len() < 4 {
		t.Fatal(n, err)
	}
	first, end := n.Child(2).First, n.Child(3).First
	store.bad[n.Child(2).Node] = true
	collect(t, tree, root, 0, first)
	collect(t, tree, root, end, 10000)
	var passed uint64
	err = tree.Lookup(root, 0, 10000, func(e Extent) error { passed = e.End(); return nil })
	var ne *NodeError
	if !errors.As(err, &ne) || ne.Node != n.Child(2).Node || ne.First != first || ne.End != end || !errors.Is(err, errUnreadable) {
		t.Errorf("error %v", err)
	}
	if passed != first {
		t.Errorf("passed up to %d, readable up to %d", passed, first)
	}
	stop := errors.New("stop")
	if err := tree.Lookup(root, 0, 10000, func(Extent) error { return stop }); err != stop {
		t.Errorf("error %v from the function", err)
	}
	if err := tree.Lookup(root, 5, endOfSpace, nil); !errors.Is(err, errInvalid) {
		t.Errorf("error %v for a range that overflows", err)
	}
	if err := tree.Lookup(root, 5, 0, nil); err != nil {
		t.Errorf("error %v for no block", err)
	}

	// A level that does not go down is an error.
	leafRoot := Root{Chunk: store.put([][]byte{leafPage(t, Extent{First: 0, Count: 9, Chunk: chunkA})})}
	inner := Root{Chunk: store.put([][]byte{innerPage(t, 1, Child{Node: leafRoot})})}
	high := Root{Chunk: store.put([][]byte{innerPage(t, 1, Child{Node: inner})})}
	for _, r := range []Root{inner, high} {
		if err := tree.Lookup(r, 0, 1, func(Extent) error { return nil }); errors.Is(err, dedup.ErrCorrupt) != (r == high) {
			t.Errorf("node of level 1 below one of level 1 %v: error %v", r == high, err)
		}
	}

	// A cycle is an error and not a loop.
	loop := Root{Chunk: store.put([][]byte{innerPage(t, 1, Child{})})}
	if err := tree.Lookup(loop, 0, 1, nil); !errors.Is(err, dedup.ErrCorrupt) {
		t.Errorf("cycle: error %v", err)
	}
	if err := tree.Walk(loop, func(dedup.Slot, int, []Extent) (bool, error) { return true, nil }, WalkOptions{}); !errors.Is(err, dedup.ErrCorrupt) {
		t.Errorf("cycle: error %v", err)
	}
	loop = Root{Chunk: store.put([][]byte{innerPage(t, rescueLevel, Child{})})}
	if err := tree.Lookup(loop, 0, 1, nil); !errors.Is(err, dedup.ErrCorrupt) {
		t.Errorf("cycle of nodes that may have any level below them: error %v", err)
	}
}

func TestUpdateErrors(t *testing.T) {
	store := newMemStore()
	tree := New(store, 10)
	for _, changes := range [][]Extent{
		{{First: 1}},
		{{First: 1, Count: endOfSpace}},
		{{First: 1, Count: 2}, {First: 2, Count: 1}},
		{{First: 3, Count: 1}, {First: 2, Count: 1}},
		{{First: 1, Count: 1025, Chunk: chunkA}},
		{{First: 1, Count: 2, Chunk: chunkA, Slot: 1023}},
		{{First: 1, Count: 2, Chunk: chunkA, Damaged: 1}},
		{{First: 1, Count: 1, Damaged: 1}},
	} {
		if _, err := tree.Update(Root{}, changes, &memSink{store: store, per: 3}); !errors.Is(err, errInvalid) {
			t.Errorf("%+v: error %v", changes, err)
		}
	}
	all := scattered(1000, 2)
	for fail := 1; ; fail++ {
		sink := &memSink{store: store, per: 3, fail: fail}
		_, err := tree.Update(Root{}, all, sink)
		if err == nil {
			if fail < 5 {
				t.Errorf("no error with %d nodes", fail)
			}
			break
		}
		if !errors.Is(err, errUnreadable) {
			t.Fatalf("sink fails at node %d: error %v", fail, err)
		}
	}
}

// TestRootUnreadable writes above a root that cannot be read, and reads it later.
func TestRootUnreadable(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	all := scattered(2000, 2)
	root, _, _ := mustUpdate(t, tree, store, 1024, Root{}, all)
	store.bad[root] = true
	e := Extent{First: 100, Count: 9, Chunk: chunkA}
	next, res, added := mustUpdate(t, tree, store, 1024, root, []Extent{e, {First: 200, Count: 100}})
	if res.MappedDelta != 0 || added != 3 {
		t.Errorf("%+v, %d nodes", res, added)
	}
	if got := collect(t, tree, next, 100, 9); len(got) != 1 || got[0] != e {
		t.Errorf("got %+v", got)
	}
	if got := collect(t, tree, next, 200, 100); len(got) != 1 || !got[0].IsHole() {
		t.Errorf("got %+v", got)
	}
	delete(store.bad, root)
	if got := collect(t, tree, next, 0, 100); !slices.Equal(got, collect(t, tree, root, 0, 100)) {
		t.Errorf("got %+v", got)
	}
	if s := checkTree(t, tree, next); s.height != rescueLevel+1 {
		t.Errorf("height %d", s.height)
	}
}

// A root that could not be read comes under a new one, and so may that: nothing below is
// lost, however often it happens.
func TestRootUnreadableAgain(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	all := scattered(2000, 2)
	first, _, _ := mustUpdate(t, tree, store, 1024, Root{}, all)
	image := func(r Root) []Extent { return collect(t, tree, r, 0, 100_000) }
	model := image(first)
	root := first
	const times = 100
	for i := range uint64(times) {
		e := Extent{First: 90_000 + 2*i, Count: 1, Chunk: chunkA}
		store.bad[root] = true
		next, _, _ := mustUpdate(t, tree, store, 1024, root, []Extent{e})
		delete(store.bad, root)
		root = next
		got := image(root)
		if k := len(got) - 1; got[k-1] != e || !got[k].IsHole() {
			t.Fatalf("%d times: ends with %+v", i+1, got[k-1])
		}
		if got = collect(t, tree, root, 0, 90_000); !slices.Equal(got, collect(t, tree, first, 0, 90_000)) {
			t.Fatalf("%d times: %d extents, want %d", i+1, len(got), len(model))
		}
	}
	met := make(map[dedup.Slot]bool)
	skip := func(s dedup.Slot) bool {
		old := met[s]
		met[s] = true
		return old
	}
	walked := tree.Walk(root, func(dedup.Slot, int, []Extent) (bool, error) { return true, nil }, WalkOptions{Skip: skip})
	n, err := tree.NewCounter().Mapped(root)
	if want, _ := tree.NewCounter().Mapped(first); walked != nil || err != nil || n != want+times || !met[first] {
		t.Errorf("%v: %d nodes; %v: %d blocks, want %d", walked, len(met), err, n, want+times)
	}
	// A change far down unfolds them, and nothing is lost by it.
	e := Extent{First: 50_000, Count: 1, Chunk: chunkB}
	next, res, _ := mustUpdate(t, tree, store, 1024, root, []Extent{e})
	if got := collect(t, tree, next, e.First, 1); got[0] != e || res.Unread {
		t.Errorf("%+v, %+v", got, res)
	}
	if got := collect(t, tree, next, 0, e.First); !slices.Equal(got, collect(t, tree, first, 0, e.First)) {
		t.Error("a change loses what is before it")
	}
}

// TestUpdateTellsWhatItCouldNotRead: Unread is set where a change meets a node that cannot
// be read, and Kept names it unless nothing of it is left.
func TestUpdateTellsWhatItCouldNotRead(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	root, _, _ := mustUpdate(t, tree, store, 1024, Root{}, scattered(2000, 2))
	slots := checkTree(t, tree, root).slots
	leaf := slots[len(slots)/2]
	var first, end uint64
	store.bad[leaf] = true
	err := tree.Walk(root, func(dedup.Slot, int, []Extent) (bool, error) { return true, nil }, WalkOptions{
		OnError: func(_ dedup.Slot, from, to uint64, _ error) error { first, end = from, to; return nil },
	})
	if err != nil || first == 0 || end-first < 10 {
		t.Fatalf("leaf of [%d, %d): %v", first, end, err)
	}
	block := func(first, count uint64) Extent { return Extent{First: first, Count: count, Chunk: chunkA} }
	for _, c := range []struct {
		name    string
		changes []Extent
		unread  bool
		kept    []dedup.Slot
	}{
		{"elsewhere", []Extent{block(0, 1)}, false, nil},
		{"right behind it", []Extent{block(end, 1)}, false, nil},
		{"inside, twice", []Extent{block(first+1, 1), block(first+4, 1)}, true, []dedup.Slot{leaf}},
		{"its begin", []Extent{block(first-1, 3)}, true, []dedup.Slot{leaf}},
		{"its end", []Extent{block(end-2, 3)}, true, []dedup.Slot{leaf}},
		{"all of it", []Extent{{First: first, Count: end - first}}, true, nil},
		{"all of it, in two", []Extent{{First: first, Count: 5}, block(first+5, 1), {First: first + 6, Count: end - first - 6}}, true, nil},
	} {
		next, res, _ := mustUpdate(t, tree, store, 1024, root, c.changes)
		if res.Unread != c.unread || !slices.Equal(res.Kept, c.kept) {
			t.Errorf("%s: unread %v, kept %v", c.name, res.Unread, res.Kept)
		}
		n, err := tree.NewCounter().Mapped(next)
		if whole := err == nil; whole != (c.unread && c.kept == nil) {
			t.Errorf("%s: counted %d, %v", c.name, n, err)
		}
	}
	if tree.Readable(leaf) || !tree.Readable(root) {
		t.Error("which node can be read")
	}
}

// TestWalk marks two trees that share nodes: everything is met, nothing read twice (I6).
func TestWalk(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	a, _, _ := mustUpdate(t, tree, store, 3, Root{}, scattered(20000, 2))
	change := Extent{First: 15000, Count: 1, Chunk: chunkA}
	b, _, added := mustUpdate(t, tree, store, 3, a, []Extent{change})
	inA, inB := checkTree(t, tree, a), checkTree(t, tree, b)

	seen := make(map[dedup.Slot]bool)
	chunks := make(map[dedup.ChunkID]bool)
	extents := 0
	visit := func(s dedup.Slot, level int, es []Extent) (bool, error) {
		if level > 0 && es != nil {
			t.Error("extents of an inner node")
		}
		for _, e := range es {
			chunks[e.Chunk] = true
		}
		extents += len(es)
		return true, nil
	}
	skip := func(s dedup.Slot) bool {
		if seen[s] {
			return true
		}
		seen[s] = true
		return false
	}
	store.reads = 0
	for _, root := range []Root{a, b, a, {}} {
		if err := tree.Walk(root, visit, WalkOptions{Skip: skip}); err != nil {
			t.Fatal(err)
		}
	}
	if want := inA.nodes + added; len(seen) != want || store.reads != want {
		t.Errorf("%d nodes met, %d read, want %d", len(seen), store.reads, want)
	}
	for _, s := range append(inA.slots, inB.slots...) {
		if !seen[s] {
			t.Errorf("node %s not met", s)
		}
	}
	if !chunks[chunkA] || len(chunks) != 5001 {
		t.Errorf("%d data chunks met", len(chunks))
	}

	var order []dedup.Slot
	count := func(descend bool, o WalkOptions) error {
		order = nil
		return tree.Walk(a, func(s dedup.Slot, _ int, _ []Extent) (bool, error) {
			order = append(order, s)
			return descend, nil
		}, o)
	}
	if err := count(true, WalkOptions{}); err != nil || !slices.Equal(order, inA.slots) {
		t.Errorf("%d nodes in another order, error %v", len(order), err)
	}
	if err := count(false, WalkOptions{}); err != nil || len(order) != 1 {
		t.Errorf("%d nodes without descending, error %v", len(order), err)
	}

	leaf := inA.slots[len(inA.slots)-1]
	store.bad[leaf] = true
	var ne *NodeError
	if err := count(true, WalkOptions{}); !errors.As(err, &ne) || ne.Node != leaf || ne.End != endOfSpace {
		t.Errorf("error %v", err)
	}
	failed := 0
	err := count(true, WalkOptions{OnError: func(s dedup.Slot, first, end uint64, err error) error {
		failed++
		if s != leaf || first == 0 || end != endOfSpace || !errors.Is(err, errUnreadable) {
			t.Errorf("node %s of [%d, %d): %v", s, first, end, err)
		}
		return nil
	}})
	if err != nil || failed != 1 || len(order) != inA.nodes-1 {
		t.Errorf("%d nodes, %d failed, error %v", len(order), failed, err)
	}
}

// TestConcurrent looks up, walks and updates one Tree from several goroutines.
func TestConcurrent(t *testing.T) {
	store := newMemStore()
	tree := New(store, 20)
	root, _, _ := mustUpdate(t, tree, store, 1024, Root{}, scattered(20000, 2))
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(g, 5))
			mine := root
			for range 20 {
				changes := batch(r, 50, 40000)
				sink := &memSink{store: store, per: 7}
				res, err := tree.Update(mine, changes, sink)
				if err != nil {
					t.Error(err)
					return
				}
				mine = sink.root(res)
				for _, c := range changes {
					err := tree.Lookup(mine, c.First, 1, func(e Extent) error {
						if e != c {
							t.Errorf("got %+v, want %+v", e, c)
						}
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				}
			}
			err := tree.Walk(mine, func(dedup.Slot, int, []Extent) (bool, error) { return true, nil }, WalkOptions{})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
