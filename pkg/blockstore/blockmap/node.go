package blockmap

import (
	"encoding/binary"
	"fmt"

	"github.com/k8ns/granary/pkg/dedup"
)

// MaxLevels is the number of levels that a tree can have; leaves are level 0.
const MaxLevels = 16

// Layout of a node, little-endian; FORMAT.md, section 6 "Map node":
//
//	offset  size  field
//	     0     2  magic "GN"
//	     2     1  node version
//	     3     1  level: 0 leaf
//	     4     2  entries
//	     6     2  chunk IDs m
//	     8     2  bytes used in all
//	    10     6  zero
//	    16  20 m  chunk IDs, distinct, in the order of their first use, numbered from 1
//	              entries as unsigned varints of the shortest form; then zeros to 4096
//
// A leaf's entry: gap from the end of the entry before; count x 2 + damaged; chunk
// number, not 0; first slot; the damage byte, not 0, if damaged. A leaf may have no
// entry at all: it says that its range is a hole.
// An inner node's entry: first block, as the difference from the entry before (not 0
// but for the first entry); chunk number, 0 for the node's own chunk; slot.
const (
	nodeVersion   = 1
	headSize      = 16
	chunkIDSize   = len(dedup.ChunkID{})
	leafEntryMin  = 4 // bytes of the smallest entries
	innerEntryMin = 3
)

// entry is an extent or a child in memory. Chunks are numbers as in the page.
type entry struct {
	first   uint64
	count   uint16 // extents only
	chunk   uint16
	slot    uint16
	damaged uint8 // extents only
}

// Child is a pointer of an inner node: the blocks from First up to the First of the
// next child (or the end of the parent's own range) are mapped by Node.
type Child struct {
	First uint64
	// Node is the child's address. A zero chunk ID stands for the chunk that the
	// parent is in, when that has no ID yet.
	Node dedup.Slot
}

// Node is a decoded node. It is immutable, so safe for concurrent use.
type Node struct {
	level   uint8
	self    dedup.ChunkID // the chunk that the node is in; zero if not known
	ids     []dedup.ChunkID
	entries []entry
}

// NewLeaf makes a leaf: extents are ascending, disjoint and no holes.
func NewLeaf(extents []Extent) (*Node, error) {
	b := newBuilder()
	b.reset(0)
	for _, e := range extents {
		if err := checkExtent(e); err != nil || e.IsHole() {
			return nil, fmt.Errorf("extent %+v does not belong in a leaf: %w", e, errInvalid)
		}
		b.addExtent(e)
	}
	return b.node, nil
}

// NewInner makes a node of a level from 1 on; children are ascending by First.
func NewInner(level int, children []Child) (*Node, error) {
	if level < 1 || level >= MaxLevels || len(children) == 0 {
		return nil, fmt.Errorf("inner node of level %d with %d children: %w", level, len(children), errInvalid)
	}
	b := newBuilder()
	b.reset(level)
	for _, c := range children {
		b.addChild(c)
	}
	return b.node, nil
}

// Level is 0 for a leaf; otherwise all children have lower levels.
func (n *Node) Level() int { return int(n.level) }

// bound is what the levels of n's children must be under: n's own level; but nodes from
// rescueLevel on stand above some of which nobody knew the level.
func (n *Node) bound() int {
	if n.Level() < rescueLevel {
		return n.Level()
	}
	return MaxLevels
}

// below tells whether all children of n, which is in the given slot, were made before it:
// one in another chunk was, because its chunk has an ID, and one in n's own chunk has a
// slot below n's. So no path leads back to n, whatever the levels are.
func (n *Node) below(slot uint16) bool {
	for _, e := range n.entries {
		if n.level > 0 && e.chunk == 0 && e.slot >= slot {
			return false
		}
	}
	return true
}

// Len is the number of extents of a leaf, or of children.
func (n *Node) Len() int { return len(n.entries) }

// Extent is extent i of a leaf.
func (n *Node) Extent(i int) Extent {
	e := n.entries[i]
	return Extent{First: e.first, Count: uint64(e.count), Chunk: n.ids[e.chunk-1], Slot: e.slot, Damaged: e.damaged}
}

// Child is child i of an inner node.
func (n *Node) Child(i int) Child {
	e := n.entries[i]
	c := Child{First: e.first, Node: dedup.Slot{Chunk: n.self, Slot: e.slot}}
	if e.chunk > 0 {
		c.Node.Chunk = n.ids[e.chunk-1]
	}
	return c
}

// childRange is the range of child i inside [first, end), the range of n itself;
// it is empty (first >= end) when n's range hides the child.
func (n *Node) childRange(i int, first, end uint64) (uint64, uint64) {
	if i+1 < len(n.entries) {
		end = min(end, n.entries[i+1].first)
	}
	return max(first, n.entries[i].first), end
}

// checkExtent tells what is wrong with e as a change or as a leaf's entry.
func checkExtent(e Extent) error {
	switch {
	case e.Count == 0 || e.Count > endOfSpace-e.First:
		return fmt.Errorf("extent of %d blocks from %d: %w", e.Count, e.First, errInvalid)
	case e.IsHole() && e.Damaged != 0:
		return fmt.Errorf("damaged hole at block %d: %w", e.First, errInvalid)
	case e.IsHole():
		return nil
	case e.Count > dedup.MaxSlots || uint64(e.Slot)+e.Count > dedup.MaxSlots:
		return fmt.Errorf("slots %d to %d of a chunk: %w", e.Slot, uint64(e.Slot)+e.Count, errInvalid)
	case e.Damaged != 0 && e.Count != 1:
		return fmt.Errorf("damaged extent of %d blocks: %w", e.Count, errInvalid)
	}
	return nil
}

// builder makes nodes; it is reused to spare allocations.
type builder struct {
	node   *Node
	number map[dedup.ChunkID]uint16
}

func newBuilder() *builder {
	return &builder{node: &Node{}, number: make(map[dedup.ChunkID]uint16)}
}

func (b *builder) reset(level int) {
	b.node.level = uint8(level)
	b.node.ids = b.node.ids[:0]
	b.node.entries = b.node.entries[:0]
	clear(b.number)
}

func (b *builder) chunk(id dedup.ChunkID) uint16 {
	if k := len(b.node.ids); k > 0 && b.node.ids[k-1] == id {
		return uint16(k)
	}
	k, ok := b.number[id]
	if !ok {
		b.node.ids = append(b.node.ids, id)
		k = uint16(len(b.node.ids))
		b.number[id] = k
	}
	return k
}

func (b *builder) addExtent(e Extent) {
	b.node.entries = append(b.node.entries, entry{
		first: e.First, count: uint16(e.Count), chunk: b.chunk(e.Chunk), slot: e.Slot, damaged: e.Damaged})
}

func (b *builder) addChild(c Child) {
	e := entry{first: c.First, slot: c.Node.Slot}
	if !c.Node.IsZero() {
		e.chunk = b.chunk(c.Node.Chunk)
	}
	b.node.entries = append(b.node.entries, e)
}

// varintSize is the bytes of v as an unsigned varint.
func varintSize(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// leafEntrySize is the bytes of an extent that starts gap blocks behind the one before.
func leafEntrySize(gap, count uint64, chunk, slot uint16, damaged uint8) int {
	n := varintSize(gap) + varintSize(count<<1) + varintSize(uint64(chunk)) + varintSize(uint64(slot))
	if damaged != 0 {
		n++
	}
	return n
}

// innerEntrySize is the bytes of a child that starts diff blocks behind the one before.
func innerEntrySize(diff uint64, chunk, slot uint16) int {
	return varintSize(diff) + varintSize(uint64(chunk)) + varintSize(uint64(slot))
}

// size is the bytes that n uses in a page.
func (n *Node) size() int {
	size := headSize + chunkIDSize*len(n.ids)
	var at uint64
	for _, e := range n.entries {
		if n.level == 0 {
			size += leafEntrySize(e.first-at, uint64(e.count), e.chunk, e.slot, e.damaged)
			at = e.first + uint64(e.count)
		} else {
			size += innerEntrySize(e.first-at, e.chunk, e.slot)
			at = e.first
		}
	}
	return size
}

// EncodeNode is n as a page of dedup.BlockSize bytes. It fails when n does not fit or
// when DecodeNode would refuse the page.
func EncodeNode(n *Node) ([]byte, error) {
	return appendNode(make([]byte, 0, dedup.BlockSize), n)
}

// appendNode writes n's page to buf, which is empty.
func appendNode(buf []byte, n *Node) ([]byte, error) {
	size := n.size()
	if size > dedup.BlockSize {
		return nil, fmt.Errorf("node of %d bytes with %d entries does not fit a page: %w", size, n.Len(), errInvalid)
	}
	le := binary.LittleEndian
	buf = append(buf, 'G', 'N', nodeVersion, n.level)
	buf = le.AppendUint16(buf, uint16(len(n.entries)))
	buf = le.AppendUint16(buf, uint16(len(n.ids)))
	buf = le.AppendUint16(buf, uint16(size))
	buf = append(buf, 0, 0, 0, 0, 0, 0)
	for _, id := range n.ids {
		buf = append(buf, id[:]...)
	}
	var at uint64
	for _, e := range n.entries {
		buf = binary.AppendUvarint(buf, e.first-at)
		at = e.first
		if n.level == 0 {
			damaged := min(uint64(e.damaged), 1)
			buf = binary.AppendUvarint(buf, uint64(e.count)<<1|damaged)
			at += uint64(e.count)
		}
		buf = binary.AppendUvarint(buf, uint64(e.chunk))
		buf = binary.AppendUvarint(buf, uint64(e.slot))
		if e.damaged != 0 {
			buf = append(buf, e.damaged)
		}
	}
	for len(buf) < dedup.BlockSize {
		buf = append(buf, 0)
	}
	// What was just made must be readable before anything points to it. A page is read
	// with as many entries as its head says, and more do not fit than the head can count.
	if _, err := DecodeNode(buf); err != nil {
		return nil, fmt.Errorf("node just made: %w", err)
	}
	return buf, nil
}
