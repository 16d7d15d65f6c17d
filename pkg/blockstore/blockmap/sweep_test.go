package blockmap

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
)

// brokenSink is a sink that takes so many nodes, refuses one and would take more.
type brokenSink struct {
	memSink
	left    int
	refused bool
}

func (s *brokenSink) AddNode(node []byte) (int, uint16, error) {
	s.left--
	if s.left == -1 {
		s.refused = true
		return 0, 0, errUnreadable
	}
	return s.memSink.AddNode(node)
}

// failEverywhere does an update whose sink fails at its first node, its second and so on:
// that is the update's error, and the old tree is as it was (I4).
func failEverywhere(t *testing.T, tree *Tree, store *memStore, root Root, changes []Extent, step int) {
	t.Helper()
	for left := 0; ; left += step {
		sink := &brokenSink{memSink: memSink{store: store, per: 3}, left: left}
		_, err := tree.Update(root, changes, sink)
		if err == nil && !sink.refused {
			return
		}
		if !errors.Is(err, errUnreadable) {
			t.Fatalf("the sink fails after %d nodes: %v", left, err)
		}
	}
}

func TestUpdate_SinkFailsAtEveryNode(t *testing.T) {
	sequences(t, 300, func(t *testing.T, r *rand.Rand) {
		tree, store := randomTree(r, 0)
		s := newSpace(r, 1+r.IntN(20), 1+r.IntN(60), r.IntN(2) == 0)
		model := make([]cell, len(s.blocks))
		var root Root
		for range 1 + r.IntN(8) {
			clear(store.bad)
			before := append([]cell(nil), model...)
			if !root.IsZero() {
				nodes := checkTree(t, tree, root).slots
				if n := nodes[r.IntN(len(nodes))]; n != root {
					store.bad[n] = true
				}
			}
			changes := randomChanges(r, s, model, pick(r, 1, 4, 50))
			failEverywhere(t, tree, store, root, changes, 1)
			compare(t, tree, root, s, before, 0, spaceEnd, true)
			clear(store.bad)
			root, _, _ = mustUpdate(t, tree, store, pick(r, 1, 3, 1024), root, changes)
		}
	})
}

// The same where nodes are written before all changes have been taken.
func TestUpdate_SinkFailsInTheMiddle(t *testing.T) {
	store := newMemStore()
	tree := New(store, 1000)
	all := scattered(3*window, 4)
	root, _, _ := mustUpdate(t, tree, store, 1024, Root{}, all)
	failEverywhere(t, tree, store, Root{}, all, 40)
	for _, take := range []int{1, 2, 50} { // of every so many blocks
		var changes []Extent
		for i, e := range all {
			if i%take == 0 {
				e.Chunk = chunkB
				changes = append(changes, e)
			}
		}
		failEverywhere(t, tree, store, root, changes, 40)
	}
}

// A tree that would be higher than trees may be is refused.
func TestUpdate_TooHigh(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	tree.capacity = 1 // no node has room for two
	if _, err := tree.Update(Root{}, scattered(3, 2), &memSink{store: store, per: 3}); !errors.Is(err, errTooHigh) {
		t.Error(err)
	}
}

// What lies below a root is counted but for a node that cannot be read.
func TestMapped_Unreadable(t *testing.T) {
	store := newMemStore()
	tree := New(store, 0)
	root, _, _ := mustUpdate(t, tree, store, 1024, Root{}, scattered(2000, 2))
	if n, err := tree.NewCounter().Mapped(root); err != nil || n != 2000 {
		t.Error(n, err)
	}
	if n, err := tree.NewCounter().Mapped(Root{}); err != nil || n != 0 {
		t.Error(n, err)
	}
	for _, bad := range checkTree(t, tree, root).slots {
		store.bad[bad] = true
		var ne *NodeError
		if _, err := tree.NewCounter().Mapped(root); !errors.As(err, &ne) || ne.Node != bad {
			t.Errorf("node %s: %v", bad, err)
		}
		delete(store.bad, bad)
	}
}

// What the consumer of a lookup refuses ends the lookup, wherever it is.
func TestLookup_Stops(t *testing.T) {
	store := newMemStore()
	tree := New(store, 1000)
	all := scattered(2000, 2)
	all = all[100:]
	root, _, _ := mustUpdate(t, tree, store, 1024, Root{}, all)
	stop := errors.New("stop")
	pieces := 0
	if err := tree.Lookup(root, 0, 5000, func(Extent) error { pieces++; return nil }); err != nil {
		t.Fatal(err)
	}
	for n := range pieces {
		left := n
		err := tree.Lookup(root, 0, 5000, func(Extent) error {
			if left == 0 {
				return stop
			}
			left--
			return nil
		})
		if !errors.Is(err, stop) {
			t.Fatalf("piece %d: %v", n, err)
		}
	}
}

// TestDecode_CutVarints: entries that end in the middle of a number.
func TestDecode_CutVarints(t *testing.T) {
	for _, page := range [][]byte{
		leafPage(t, Extent{First: 300, Count: 300, Chunk: chunkB, Slot: 200}),
		innerPage(t, 1, Child{First: 300, Node: dedup.Slot{Chunk: chunkB, Slot: 200}}),
	} {
		used := int(binary.LittleEndian.Uint16(page[8:]))
		for at := headSize + chunkIDSize; at < used; at++ {
			bad := append([]byte(nil), page...)
			bad[at] |= 0x80
			for i := at + 1; i < used; i++ {
				bad[i] = 0x80
			}
			if _, err := DecodeNode(bad); !errors.Is(err, dedup.ErrCorrupt) {
				t.Errorf("byte %d: %v", at, err)
			}
		}
	}
}
