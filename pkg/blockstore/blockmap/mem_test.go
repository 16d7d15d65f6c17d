package blockmap

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
)

var errUnreadable = errors.New("unreadable")

// memStore is a NodeSource in memory whose nodes can be made unreadable.
type memStore struct {
	mu    sync.Mutex
	nodes map[dedup.Slot][]byte
	bad   map[dedup.Slot]bool
	reads int
}

func newMemStore() *memStore {
	return &memStore{nodes: make(map[dedup.Slot][]byte), bad: make(map[dedup.Slot]bool)}
}

func (m *memStore) ReadNode(s dedup.Slot) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	if m.bad[s] {
		return nil, errUnreadable
	}
	page, ok := m.nodes[s]
	if !ok {
		return nil, fmt.Errorf("no node %s", s)
	}
	return page, nil
}

// put adds a chunk of nodes; its ID is made of its content, so what was stored before and
// became unreadable is healed.
func (m *memStore) put(pages [][]byte) dedup.ChunkID {
	h := sha256.New()
	for _, p := range pages {
		h.Write(p)
	}
	id := dedup.ChunkID(h.Sum(nil)[:20])
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range pages {
		at := dedup.Slot{Chunk: id, Slot: uint16(i)}
		m.nodes[at] = p
		delete(m.bad, at)
	}
	return id
}

// memSink is a NodeSink that makes chunks of per nodes for a memStore.
type memSink struct {
	store *memStore
	per   int
	ids   []dedup.ChunkID
	pages [][]byte // of the current chunk
	added int      // nodes in all
	fail  int      // if not 0, AddNode fails when this many were added
}

func (s *memSink) Current() int { return len(s.ids) }

func (s *memSink) ChunkID(n int) dedup.ChunkID { return s.ids[n] }

func (s *memSink) AddNode(node []byte) (int, uint16, error) {
	if s.fail != 0 && s.added == s.fail {
		return 0, 0, errUnreadable
	}
	chunk, slot := len(s.ids), uint16(len(s.pages))
	s.pages = append(s.pages, slices.Clone(node))
	s.added++
	if len(s.pages) == s.per {
		s.seal()
	}
	return chunk, slot, nil
}

func (s *memSink) seal() {
	if len(s.pages) > 0 {
		s.ids = append(s.ids, s.store.put(s.pages))
		s.pages = nil
	}
}

// root completes the last chunk and returns the root of r.
func (s *memSink) root(r Result) Root {
	s.seal()
	if r.InSink {
		return dedup.Slot{Chunk: s.ids[r.Chunk], Slot: r.Slot}
	}
	return r.Root
}

// mustUpdate is an update into store; added is the number of nodes made.
func mustUpdate(t testing.TB, tree *Tree, store *memStore, per int, root Root, changes []Extent) (next Root, r Result, added int) {
	t.Helper()
	sink := &memSink{store: store, per: per}
	r, err := tree.Update(root, changes, sink)
	if err != nil {
		t.Fatalf("update: %v", err)
	}
	return sink.root(r), r, sink.added
}

// shape is what a tree looks like.
type shape struct {
	height, nodes, leaves, extents int
	leafBytes                      int
	slots                          []dedup.Slot // all nodes, a node before its children
}

// fill is the mean part of a leaf that is used.
func (s shape) fill() float64 { return float64(s.leafBytes) / float64(s.leaves) / dedup.BlockSize }

// checkTree reads every node and checks what always holds of a tree made by Update.
func checkTree(t testing.TB, tree *Tree, root Root) shape {
	t.Helper()
	var s shape
	var check func(at dedup.Slot, first uint64, below int)
	check = func(at dedup.Slot, first uint64, below int) {
		n, err := tree.load(at, below, false)
		if err != nil {
			t.Fatalf("node %s: %v", at, err)
		}
		s.nodes++
		s.slots = append(s.slots, at)
		if n.size() > tree.capacity {
			t.Fatalf("node of %d bytes, capacity %d", n.size(), tree.capacity)
		}
		seen := make(map[dedup.ChunkID]bool)
		for _, id := range n.ids {
			if seen[id] {
				t.Fatalf("chunk ID %s twice in a node", id)
			}
			seen[id] = true
		}
		if n.level == 0 {
			s.leaves++
			s.extents += n.Len()
			s.leafBytes += n.size()
			return
		}
		for i := range n.Len() {
			check(n.Child(i).Node, n.Child(i).First, n.bound())
		}
	}
	if !root.IsZero() {
		check(root, 0, MaxLevels)
		n, _ := tree.load(root, MaxLevels, false)
		s.height = n.Level() + 1
	}
	return s
}

// id makes a chunk ID of a number.
func id(n uint64) dedup.ChunkID {
	h := sha256.Sum256(fmt.Append(nil, n))
	return dedup.ChunkID(h[:20])
}
