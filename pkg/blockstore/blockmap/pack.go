package blockmap

import (
	"fmt"
	"sort"

	"github.com/k8ns/granary/pkg/dedup"
)

const (
	// window is how many items a packer collects before it writes nodes that are full.
	window = 8192
	// heldBack is how many nodes' worth it keeps then, so that the end of the stream
	// can be divided evenly.
	heldBack = 4
)

// item is what a packer puts into nodes: an extent, or a child.
type item struct {
	first   uint64
	count   uint64        // of an extent
	chunk   dedup.ChunkID // zero if inSink
	sink    int           // number of the sink's chunk, if inSink
	slot    uint16
	damaged uint8 // of an extent
	inSink  bool  // a child that this update has made
	changed bool  // new in this update
}

// address is where a child that is not in the sink is.
func (it item) address() dedup.Slot { return dedup.Slot{Chunk: it.chunk, Slot: it.slot} }

func (it item) extent() Extent {
	return Extent{First: it.first, Count: it.count, Chunk: it.chunk, Slot: it.slot, Damaged: it.damaged}
}

// joins is Extent.joins for an item that is an extent.
func (it item) joins(next Extent) bool { return it.extent().joins(next) }

// packer collects the items of nodes of one level that are neighbours: a run. A run
// ends where a kept child of a higher level comes.
type packer struct {
	items []item
}

// push adds an item to the run of level l.
func (u *update) push(l int, it item) error {
	p := &u.packers[l]
	p.items = append(p.items, it)
	if len(p.items) < window {
		return nil
	}
	return u.flush(l, heldBack)
}

// small tells whether level l has a run that fills less than a quarter of a node.
func (u *update) small(l int) bool {
	p := &u.packers[l]
	if len(p.items) == 0 || len(p.items) > u.t.capacity/4/innerEntryMin {
		return false
	}
	s := u.sizerOf(l)
	return s.fill(0, u.t.capacity/4-1) == len(p.items)
}

// finish writes the run of level l, and so adds to that of level l+1.
func (u *update) finish(l int) error {
	if err := u.flush(l, 0); err != nil {
		return err
	}
	if l == 0 {
		u.inRun = false
	}
	return nil
}

// flush writes the run of level l but for the last hold nodes' worth. An inner node
// with a single child is not made: the child goes in its place.
func (u *update) flush(l, hold int) error {
	p := &u.packers[l]
	if l >= MaxLevels {
		return errTooHigh
	}
	for len(p.items) > 0 {
		if l > 0 && len(p.items) == 1 && hold == 0 {
			it := p.items[0]
			p.items = p.items[:0]
			return u.push(l+1, it)
		}
		s := u.sizerOf(l)
		ends := s.full()
		if len(ends) <= hold {
			return nil
		}
		if hold == 0 && !appended(p.items) {
			ends = s.even(len(ends))
		}
		ends = ends[:len(ends)-hold]
		done, current := 0, u.sink.Current()
		for _, end := range ends {
			if err := u.write(l, p.items[done:end]); err != nil {
				return err
			}
			done = end
			if l > 0 && u.sink.Current() != current {
				break // sizes changed: references into that chunk take its ID now
			}
		}
		p.items = p.items[:copy(p.items, p.items[done:])]
	}
	return nil
}

// appended tells whether all that is new in a run is at its end. Then nodes are filled:
// whoever writes on from there needs no room in them.
func appended(items []item) bool {
	k := sort.Search(len(items), func(i int) bool { return items[i].changed })
	if k == len(items) {
		return false
	}
	for _, it := range items[k:] {
		if !it.changed {
			return false
		}
	}
	return true
}

// write makes a node of level l of items and adds it to the run of level l+1.
func (u *update) write(l int, items []item) error {
	current := u.sink.Current()
	u.build.reset(l)
	parent := item{inSink: true, sink: current, changed: true}
	if l == 0 {
		for _, it := range items {
			u.build.addExtent(it.extent())
		}
		// The first leaf of a run covers the holes before it as well.
		parent.first = u.runFirst
		if len(items) > 0 {
			u.runFirst = items[len(items)-1].first + items[len(items)-1].count
		}
	} else {
		for _, it := range items {
			u.build.addChild(Child{First: it.first, Node: dedup.Slot{Chunk: u.chunkOf(it, current), Slot: it.slot}})
		}
		parent.first = items[0].first
	}
	page, err := appendNode(u.page[:0], u.build.node)
	if err != nil {
		return err
	}
	u.page = page
	u.made++
	chunk, slot, err := u.sink.AddNode(page)
	if err != nil {
		return fmt.Errorf("add map node of level %d: %w", l, err)
	}
	if chunk != current || slot >= dedup.MaxSlots {
		return fmt.Errorf("map node went to slot %d of chunk %d, not to chunk %d: %w", slot, chunk, current, errInvalid)
	}
	parent.slot = slot
	return u.push(l+1, parent)
}

// chunkOf is the ID by which a node in the sink's chunk number current names the chunk of
// it: zero for its own chunk.
func (u *update) chunkOf(it item, current int) dedup.ChunkID {
	switch {
	case !it.inSink:
		return it.chunk
	case it.sink == current:
		return dedup.ChunkID{}
	}
	return u.sink.ChunkID(it.sink)
}

// sizer computes exactly how many bytes nodes of a run's items take, if they go to the
// sink's current chunk. It is reused to spare allocations: what it says holds until the
// next node is written.
type sizer struct {
	items    []item
	leaf     bool
	capacity int
	known    map[dedup.ChunkID]int32 // chunks of the run, numbered from 0
	chunk    []int32                 // by item: number of its chunk; -1 own chunk
	inNode   []chunkInNode           // by number of the chunk
	nodes    int32                   // filled until now
}

// chunkInNode says which number a chunk has in the node that was filled as the nodes-th.
type chunkInNode struct {
	node   int32
	number uint16
}

// sizerOf is the sizer, set to the run of level l.
func (u *update) sizerOf(l int) *sizer {
	s := &u.sizer
	if s.known == nil {
		s.known = make(map[dedup.ChunkID]int32)
	}
	clear(s.known)
	s.items, s.leaf, s.capacity = u.packers[l].items, l == 0, u.t.capacity
	s.chunk, s.inNode, s.nodes = s.chunk[:0], s.inNode[:0], 0
	current := u.sink.Current()
	for i := range s.items {
		s.chunk = append(s.chunk, s.chunkNumber(i, u.chunkOf(s.items[i], current)))
	}
	return s
}

// chunkNumber is the number of the chunk id of item i.
func (s *sizer) chunkNumber(i int, id dedup.ChunkID) int32 {
	if id.IsZero() {
		return -1
	}
	if i > 0 && id == s.items[i-1].chunk {
		return s.chunk[i-1]
	}
	k, ok := s.known[id]
	if !ok {
		k = int32(len(s.known))
		s.known[id] = k
		s.inNode = append(s.inNode, chunkInNode{})
	}
	return k
}

// fill returns the end of the items from start on that fit into limit bytes, one at
// the least.
func (s *sizer) fill(start, limit int) int {
	s.nodes++
	size, ids := headSize, uint16(0)
	var at uint64
	for i := start; i < len(s.items); i++ {
		var number uint16
		if k := s.chunk[i]; k >= 0 {
			c := &s.inNode[k]
			if c.node != s.nodes {
				ids++
				*c = chunkInNode{s.nodes, ids}
				size += chunkIDSize
			}
			number = c.number
		}
		it := &s.items[i]
		if s.leaf {
			size += leafEntrySize(it.first-at, it.count, number, it.slot, it.damaged)
			at = it.first + it.count
		} else {
			size += innerEntrySize(it.first-at, number, it.slot)
			at = it.first
		}
		if size > limit && i > start {
			return i
		}
	}
	return len(s.items)
}

// cut returns the ends of nodes of at most limit bytes, or nil if there would be more
// than most of them.
func (s *sizer) cut(limit, most int) []int {
	var ends []int
	for end := 0; end < len(s.items); {
		if len(ends) == most {
			return nil
		}
		end = s.fill(end, limit)
		ends = append(ends, end)
	}
	return ends
}

// full returns the ends of nodes that are as full as can be.
func (s *sizer) full() []int { return s.cut(s.capacity, len(s.items)) }

// even returns the ends of n nodes, n being as many as full needs, that are about
// equally full: the fullest one is as small as can be.
func (s *sizer) even(n int) []int {
	if n == 1 {
		return []int{len(s.items)}
	}
	limit := sort.Search(s.capacity, func(limit int) bool { return s.cut(limit, n) != nil })
	return s.cut(limit, n)
}
