package blockmap

import (
	"math/rand/v2"
	"testing"
)

// million makes a tree of a million extents, in blocks up to 4 million.
func million(b *testing.B, cache int) (*Tree, *memStore, Root, shape) {
	b.Helper()
	store := newMemStore()
	tree := New(store, cache)
	root, _, _ := mustUpdate(b, tree, store, 1024, Root{}, scattered(1_000_000, 4))
	return tree, store, root, checkTree(b, tree, root)
}

func BenchmarkLookup(b *testing.B) {
	for _, bb := range []struct {
		name  string
		cache int
	}{{"cached", 100_000}, {"uncached", 100}} {
		b.Run(bb.name, func(b *testing.B) {
			tree, _, root, s := million(b, bb.cache)
			r := rand.New(rand.NewPCG(1, 1))
			b.ReportMetric(float64(s.height), "levels")
			b.ReportAllocs()
			for b.Loop() {
				_ = tree.Lookup(root, r.Uint64N(4_000_000), 1, func(Extent) error { return nil })
			}
		})
	}
}

func BenchmarkUpdate10000(b *testing.B) {
	tree, store, root, _ := million(b, 10_000)
	r := rand.New(rand.NewPCG(1, 1))
	added := 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		changes := batch(r, 10_000, 4_000_000)
		sink := &memSink{store: store, per: 1024}
		b.StartTimer()
		if _, err := tree.Update(root, changes, sink); err != nil {
			b.Fatal(err)
		}
		added = sink.added
	}
	b.ReportMetric(float64(added), "nodes/op")
}

func BenchmarkDecode(b *testing.B) {
	store := newMemStore()
	tree := New(store, 0)
	root, _, _ := mustUpdate(b, tree, store, 1024, Root{}, scattered(20000, 4))
	slots := checkTree(b, tree, root).slots
	page := store.nodes[slots[len(slots)/2]]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeNode(page); err != nil {
			b.Fatal(err)
		}
	}
}
