package blockmap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
)

const spaceEnd = 1 << 34

// space is a set of blocks that a model works on, as clusters of neighbours.
type space struct {
	blocks []uint64
}

// newSpace makes clusters of per blocks each: next to each other, or anywhere below 2^34.
func newSpace(r *rand.Rand, clusters, per int, spread bool) space {
	starts := make([]uint64, clusters)
	for i := range starts {
		starts[i] = uint64(i * per)
		if spread {
			starts[i] = (r.Uint64N(spaceEnd/uint64(clusters)-uint64(per)) + spaceEnd/uint64(clusters)*uint64(i))
		}
	}
	var s space
	for _, b := range starts {
		for i := range per {
			s.blocks = append(s.blocks, b+uint64(i))
		}
	}
	return s
}

// run is the number of blocks from index i on that are neighbours.
func (s space) run(i int) int {
	n := 1
	for i+n < len(s.blocks) && s.blocks[i+n] == s.blocks[i]+uint64(n) {
		n++
	}
	return n
}

// cell is what a model knows of a block; the zero value is a hole.
type cell struct {
	slot    dedup.Slot
	damaged uint8
}

// randomChanges makes changes and applies them to the model.
func randomChanges(r *rand.Rand, s space, model []cell, most int) []Extent {
	var changes []Extent
	mean := 1 + len(s.blocks)/(1+r.IntN(most))
	for i := r.IntN(mean); i < len(s.blocks); i += r.IntN(mean) {
		first := s.blocks[i]
		count := 1 + r.IntN(min(s.run(i), 1+r.IntN(40)))
		chunk := id(r.Uint64N(12))
		if r.IntN(3) == 0 {
			chunk = id(r.Uint64())
		}
		switch k := r.IntN(20); {
		case k == 0: // a hole over clusters
			end := i + 1 + r.IntN(len(s.blocks)-i)
			changes = append(changes, Extent{First: first, Count: s.blocks[end-1] + 1 - first})
			clear(model[i:end])
			i = end
			continue
		case k < 5:
			changes = append(changes, Extent{First: first, Count: uint64(count)})
			clear(model[i : i+count])
		case k == 5:
			e := Extent{First: first, Count: 1, Chunk: chunk, Slot: uint16(r.IntN(1024)), Damaged: uint8(1 + r.IntN(255))}
			changes = append(changes, e)
			model[i] = cell{dedup.Slot{Chunk: chunk, Slot: e.Slot}, e.Damaged}
			count = 1
		default:
			slot := r.IntN(1024 - count + 1)
			if r.IntN(4) == 0 {
				slot = i % (1024 - count + 1) // goes on from neighbours, or equals what is there
			}
			changes = append(changes, Extent{First: first, Count: uint64(count), Chunk: chunk, Slot: uint16(slot)})
			for j := range count {
				model[i+j] = cell{slot: dedup.Slot{Chunk: chunk, Slot: uint16(slot + j)}}
			}
		}
		i += count
	}
	return changes
}

// compare looks [first, end) up and compares it with the model, leaving out what cannot
// be read, if that is allowed. It returns how many blocks were left out.
func compare(t testing.TB, tree *Tree, root Root, s space, model []cell, first, end uint64, badAllowed bool) (left int) {
	t.Helper()
	k, _ := slices.BinarySearch(s.blocks, first)
	at, fresh := first, true
	var before Extent
	piece := func(e Extent) error {
		if e.First != at || e.Count == 0 || e.End() > end {
			return fmt.Errorf("%+v at block %d", e, at)
		}
		if !fresh && before.joins(e) {
			return fmt.Errorf("%+v and %+v are one", before, e)
		}
		before, fresh, at = e, false, e.End()
		for ; k < len(s.blocks) && s.blocks[k] < at; k++ {
			got := cell{}
			if !e.IsHole() {
				got = cell{dedup.Slot{Chunk: e.Chunk, Slot: e.Slot + uint16(s.blocks[k]-e.First)}, e.Damaged}
			}
			if got != model[k] {
				return fmt.Errorf("block %d is %+v, want %+v", s.blocks[k], got, model[k])
			}
		}
		return nil
	}
	for at < end {
		err := tree.Lookup(root, at, end-at, piece)
		var ne *NodeError
		if badAllowed && errors.As(err, &ne) {
			if ne.First > at || ne.End <= at {
				t.Fatalf("at block %d: %v", at, err)
			}
			for at, fresh = min(ne.End, end), true; k < len(s.blocks) && s.blocks[k] < at; k++ {
				left++
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return left
}

func mapped(model []cell) (n int64) {
	for _, c := range model {
		if !c.slot.IsZero() {
			n++
		}
	}
	return n
}

// pick is one of its arguments.
func pick(r *rand.Rand, of ...int) int { return of[r.IntN(len(of))] }

// randomTree makes a tree over an empty store, with small nodes mostly.
func randomTree(r *rand.Rand, cache int) (*Tree, *memStore) {
	store := newMemStore()
	tree := New(store, cache)
	tree.capacity = pick(r, 96, 128, 256, 1000, dedup.BlockSize)
	return tree, store
}

func sequences(t *testing.T, n int, run func(t *testing.T, r *rand.Rand)) {
	if testing.Short() || raceEnabled {
		n /= 10
	}
	for seed := range uint64(n) {
		ok := t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { run(t, rand.New(rand.NewPCG(seed, 1))) })
		if !ok {
			return
		}
	}
}

// TestModel compares trees with an array, and old roots with copies of it (I4).
func TestModel(t *testing.T) {
	sequences(t, 3000, func(t *testing.T, r *rand.Rand) {
		tree, store := randomTree(r, pick(r, 0, 3, 1000))
		s := newSpace(r, 1+r.IntN(20), 1+r.IntN(60), r.IntN(2) == 0)
		model := make([]cell, len(s.blocks))
		per := pick(r, 1, 3, 7, 1024)
		type version struct {
			root  Root
			model []cell
		}
		var old []version
		var root Root
		for range 1 + r.IntN(25) {
			old = append(old, version{root, slices.Clone(model)})
			changes := randomChanges(r, s, model, pick(r, 1, 4, 50))
			next, res, added := mustUpdate(t, tree, store, per, root, changes)
			if want := mapped(model) - mapped(old[len(old)-1].model); res.MappedDelta != want {
				t.Fatalf("mapped changed by %d, want %d", res.MappedDelta, want)
			}
			same := slices.Equal(model, old[len(old)-1].model)
			if same != (next == root) || same && added > 0 {
				t.Fatalf("root %s became %s with %d nodes made; same content: %t", root, next, added, same)
			}
			if next.IsZero() != (mapped(model) == 0) {
				t.Fatalf("root %s with %d blocks mapped", next, mapped(model))
			}
			root = next
			checkTree(t, tree, root)
			compare(t, tree, root, s, model, 0, spaceEnd, false)
			a, b := s.blocks[r.IntN(len(s.blocks))], s.blocks[r.IntN(len(s.blocks))]
			compare(t, tree, root, s, model, min(a, b), max(a, b), false)
		}
		for _, v := range old {
			compare(t, tree, v.root, s, v.model, 0, spaceEnd, false)
		}
	})
}

// TestUnreadable makes nodes unreadable between updates: what does not depend on them
// stays right, and once they can be read again everything is (I5).
func TestUnreadable(t *testing.T) {
	var left int
	sequences(t, 2000, func(t *testing.T, r *rand.Rand) {
		tree, store := randomTree(r, 0)
		s := newSpace(r, 1+r.IntN(20), 1+r.IntN(60), r.IntN(2) == 0)
		model := make([]cell, len(s.blocks))
		var root Root
		lostRoot := false
		for range 1 + r.IntN(25) {
			if r.IntN(4) == 0 {
				clear(store.bad)
			}
			if !root.IsZero() && len(store.bad) == 0 {
				nodes := checkTree(t, tree, root).slots
				for range r.IntN(3) {
					n := nodes[r.IntN(len(nodes))]
					if n == root {
						if lostRoot || tree.capacity < 1000 {
							continue // a level for a new root is found only once, and leaves few above it
						}
						lostRoot = true
					}
					store.bad[n] = true
				}
			}
			changes := randomChanges(r, s, model, pick(r, 1, 4, 50))
			root, _, _ = mustUpdate(t, tree, store, pick(r, 1, 3, 1024), root, changes)
			left += compare(t, tree, root, s, model, 0, spaceEnd, true)
			// All that was just written can be read, whatever was lost before.
			for _, c := range changes {
				if !root.IsZero() && !store.bad[root] {
					compare(t, tree, root, s, model, c.First, c.End(), false)
				}
			}
		}
		clear(store.bad)
		compare(t, tree, root, s, model, 0, spaceEnd, false)
	})
	if left == 0 {
		t.Error("never a block that could not be read")
	}
}
