package blockmap

import (
	"errors"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
)

// put1 stores a page in a chunk of its own.
func (m *memStore) put1(page []byte) dedup.Slot { return dedup.Slot{Chunk: m.put([][]byte{page})} }

// sameMap wants two trees to map the blocks before end alike.
func sameMap(t *testing.T, what string, tree *Tree, got Root, want []Extent, end uint64) {
	t.Helper()
	have := collect(t, tree, got, 0, end)
	if len(have) != len(want) {
		t.Errorf("%s: %d extents, want %d", what, len(have), len(want))
		return
	}
	for i := range want {
		if have[i] != want[i] {
			t.Errorf("%s: extent %d is %+v, want %+v", what, i, have[i], want[i])
		}
	}
}

// A lookup whose consumer refuses an extent ends there also where a hole that an inner
// node leaves before its first child comes next.
func TestLookup_StopsBeforeAnInnerHole(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	first := store.put1(leafPage(t, Extent{First: 0, Count: 100, Chunk: chunkA}))
	second := store.put1(innerPage(t, 1, Child{First: 200, Node: store.put1(leafPage(t, Extent{First: 200, Count: 5, Chunk: chunkB}))}))
	root := store.put1(innerPage(t, 2, Child{First: 0, Node: first}, Child{First: 100, Node: second}))
	stop := errors.New("stop")
	var got []Extent
	err := tree.Lookup(root, 0, 300, func(e Extent) error { got = append(got, e); return stop })
	if err != stop || len(got) != 1 || got[0] != (Extent{First: 0, Count: 100, Chunk: chunkA}) {
		t.Errorf("%v after %+v", err, got)
	}
	sameMap(t, "nobody refuses", tree, root, []Extent{
		{First: 0, Count: 100, Chunk: chunkA}, {First: 100, Count: 100}, {First: 200, Count: 5, Chunk: chunkB}, {First: 205, Count: 95},
	}, 300)
}

// A page that is no node, though the source vouches for its bytes: its range is not known,
// and an update keeps it for what is not written (I5).
func TestPageThatIsNoNode(t *testing.T) {
	store := newMemStore()
	tree := New(store, 100)
	bad := store.put1(make([]byte, dedup.BlockSize)) // a block of data
	good := store.put1(leafPage(t, Extent{First: 0, Count: 10, Chunk: chunkA}))
	root := store.put1(innerPage(t, 1, Child{First: 0, Node: good}, Child{First: 50, Node: bad}))
	var ne *NodeError
	if err := tree.Lookup(root, 0, 100, func(Extent) error { return nil }); !errors.As(err, &ne) || !errors.Is(err, dedup.ErrFormat) ||
		ne.Node != bad || ne.First != 50 {
		t.Errorf("lookup: %v", err)
	}
	next, r, _ := mustUpdate(t, tree, store, 10, root, []Extent{{First: 60, Count: 1, Chunk: chunkB}})
	if !r.Unread || r.MappedDelta != 0 {
		t.Errorf("%+v", r)
	}
	sameMap(t, "before it", tree, next, []Extent{{First: 0, Count: 10, Chunk: chunkA}, {First: 10, Count: 40}}, 50)
	got := []Extent{}
	if err := tree.Lookup(next, 60, 1, func(e Extent) error { got = append(got, e); return nil }); err != nil || len(got) != 1 || got[0].Chunk != chunkB {
		t.Errorf("what was written: %+v, %v", got, err)
	}
	for _, part := range [][2]uint64{{50, 60}, {61, 100}} {
		if err := tree.Lookup(next, part[0], part[1]-part[0], func(Extent) error { return nil }); !errors.As(err, &ne) || ne.Node != bad {
			t.Errorf("blocks %v: %v", part, err)
		}
	}
}

// A root of the highest level that there can be is read, changed and kept as one.
func TestHighestRoot(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	a := store.put1(leafPage(t, Extent{First: 0, Count: 10, Chunk: chunkA}))
	b := store.put1(leafPage(t, Extent{First: 100, Count: 10, Chunk: chunkA}))
	root := store.put1(innerPage(t, MaxLevels-1, Child{First: 0, Node: a}, Child{First: 100, Node: b}))
	next, r, _ := mustUpdate(t, tree, store, 10, root, []Extent{{First: 5, Count: 1, Chunk: chunkB}})
	if n, err := tree.load(next, MaxLevels, false); err != nil || n.Level() != MaxLevels-1 || !r.InSink {
		t.Fatalf("%+v, %+v, %v", n, r, err)
	}
	sameMap(t, "the new tree", tree, next, []Extent{
		{First: 0, Count: 5, Chunk: chunkA}, {First: 5, Count: 1, Chunk: chunkB}, {First: 6, Count: 4, Chunk: chunkA, Slot: 6},
		{First: 10, Count: 90}, {First: 100, Count: 10, Chunk: chunkA}, {First: 110, Count: 90},
	}, 200)
}

// Below such a root an update that would need more levels is refused before its end: the
// old tree stays as it is (I4).
func TestUpdate_TooHighInTheMiddle(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	a := store.put1(leafPage(t, Extent{First: 0, Count: 10, Chunk: chunkA}))
	b := store.put1(leafPage(t, Extent{First: 100, Count: 10, Chunk: chunkA}))
	root := store.put1(innerPage(t, MaxLevels-1, Child{First: 0, Node: a}, Child{First: 100, Node: b}))
	store.bad[b] = true
	tree.capacity = 1 // no node has room for two
	changes := scattered(window+100, 2)
	for i := range changes {
		changes[i].First += 200 // each divides what cannot be read once more
	}
	sink := &memSink{store: store, per: 1000}
	if _, err := tree.Update(root, changes, sink); !errors.Is(err, errTooHigh) {
		t.Error(err)
	}
	if sink.added >= 3*len(changes) {
		t.Errorf("%d nodes were made before it was refused", sink.added)
	}
	delete(store.bad, b)
	sameMap(t, "the old tree", tree, root, []Extent{
		{First: 0, Count: 10, Chunk: chunkA}, {First: 10, Count: 90}, {First: 100, Count: 10, Chunk: chunkA}, {First: 110, Count: 890},
	}, 1000)
}

// A node that does not fit into a page ends the update, and never gets to the sink.
func TestUpdate_NodeDoesNotFit(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	root, _, _ := mustUpdate(t, tree, store, 10, Root{}, scattered(10, 2))
	before := collect(t, tree, root, 0, 40)
	tree.capacity = 2 * dedup.BlockSize // as if sizes were counted wrongly
	sink := &memSink{store: store, per: 10}
	if _, err := tree.Update(root, scattered(2000, 2), sink); !errors.Is(err, errInvalid) {
		t.Error(err)
	}
	if sink.added != 0 {
		t.Errorf("%d nodes are in the sink", sink.added)
	}
	tree.capacity = dedup.BlockSize
	sameMap(t, "the old tree", tree, root, before, 40)
}

// lyingSink says that nodes went elsewhere than it announced.
type lyingSink struct {
	memSink
	chunk int
	slot  uint16
}

func (s *lyingSink) AddNode(node []byte) (int, uint16, error) {
	chunk, slot, err := s.memSink.AddNode(node)
	return chunk + s.chunk, slot + s.slot, err
}

// A sink that puts a node where no address leads ends the update: the parent, which was
// to name it, is not made.
func TestUpdate_SinkLies(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	for _, s := range []*lyingSink{{chunk: 1}, {slot: dedup.MaxSlots}} {
		s.memSink = memSink{store: store, per: 10}
		if _, err := tree.Update(Root{}, scattered(2000, 2), s); !errors.Is(err, errInvalid) || s.added != 1 {
			t.Errorf("%v after %d nodes", err, s.added)
		}
	}
}

// The sink's error ends an update wherever nodes are made: in the middle of a leaf that is
// taken apart, beside a node that cannot be read, before a root that would show what its
// parent hid, and where a small node takes in its neighbour. The old tree stays (I4).
func TestUpdate_SinkFailsAnywhere(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)

	var pairs, tails, row []Extent
	for i := range uint64(window) {
		pairs = append(pairs, Extent{First: 4 * i, Count: 2, Chunk: id(i % 5000), Slot: uint16(4 * (i / 5000))})
		tails = append(tails, Extent{First: 4*i + 1, Count: 1, Chunk: chunkB, Slot: uint16(i % 1000)})
		row = append(row, Extent{First: 1000 + i, Count: 1, Chunk: []dedup.ChunkID{chunkA, chunkB}[i%2]})
	}
	halves, _, _ := mustUpdate(t, tree, store, 1024, Root{}, pairs)
	odd := append([]Extent{tails[0], {First: 2, Count: 1, Chunk: chunkA}}, tails[1:]...) // one part more before the window is full

	unread := store.put1(leafPage(t, Extent{First: 0, Count: 10, Chunk: chunkA}))

	hidden := store.put1(leafPage(t, Extent{First: 90, Count: 20, Chunk: chunkA}))
	hides := store.put1(innerPage(t, 1,
		Child{First: 0, Node: store.put1(leafPage(t, Extent{First: 0, Count: 10, Chunk: chunkA}))}, Child{First: 100, Node: hidden}))

	var many []Extent
	for i := range uint64(450) {
		many = append(many, Extent{First: i, Count: 1, Chunk: chunkA, Slot: uint16(2 * i)})
	}
	reaching := store.put1(leafPage(t, Extent{First: 500, Count: 600, Chunk: chunkA})) // its parent hides blocks from 1000 on
	small := store.put1(innerPage(t, 1, Child{First: 0, Node: store.put1(leafPage(t, many...))}, Child{First: 500, Node: reaching}))
	next := store.put1(innerPage(t, 1, Child{First: 1200, Node: store.put1(leafPage(t, Extent{First: 1200, Count: 1, Chunk: chunkB}))}))
	taken := store.put1(innerPage(t, 2, Child{First: 0, Node: small}, Child{First: 1000, Node: next}))

	for _, c := range []struct {
		what    string
		root    Root
		bad     dedup.Slot
		changes []Extent
		step    int
		end     uint64
	}{
		{"a leaf is taken apart", halves, dedup.Slot{}, tails, 50, 4 * window},
		{"a leaf is taken apart", halves, dedup.Slot{}, odd, 50, 4 * window},
		{"beside what cannot be read", unread, unread, row, 4, 20_000},
		{"a new root over what was hidden", hides, dedup.Slot{}, []Extent{{First: 0, Count: 100}}, 1, 200},
		{"a small node takes in its neighbour", taken, dedup.Slot{}, []Extent{{First: 3, Count: 1, Chunk: chunkB}}, 1, 1500},
	} {
		before := collect(t, tree, c.root, 0, c.end)
		store.bad[c.bad] = !c.bad.IsZero()
		failEverywhere(t, tree, store, c.root, c.changes, c.step)
		mustUpdate(t, tree, store, 1024, c.root, c.changes)
		delete(store.bad, c.bad)
		sameMap(t, c.what, tree, c.root, before, c.end)
	}
	// What the parent hid is not shown by the new trees either.
	root, _, _ := mustUpdate(t, tree, store, 10, hides, []Extent{{First: 0, Count: 100}})
	sameMap(t, "a new root", tree, root, []Extent{{First: 0, Count: 100}, {First: 100, Count: 10, Chunk: chunkA, Slot: 10}, {First: 110, Count: 90}}, 200)
	root, _, _ = mustUpdate(t, tree, store, 10, taken, []Extent{{First: 3, Count: 1, Chunk: chunkB}})
	got := collect(t, tree, root, 900, 400)
	want := []Extent{{First: 900, Count: 100, Chunk: chunkA, Slot: 400}, {First: 1000, Count: 200}, {First: 1200, Count: 1, Chunk: chunkB}, {First: 1201, Count: 99}}
	for i := range max(len(got), len(want)) {
		if len(got) != len(want) || got[i] != want[i] {
			t.Fatalf("a node taken in: %+v, want %+v", got, want)
		}
	}
}
