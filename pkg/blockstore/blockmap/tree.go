package blockmap

import (
	"errors"
	"fmt"
	"math"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/k8ns/granary/pkg/dedup"
)

// endOfSpace is the end of the range of blocks that a root covers.
const endOfSpace = math.MaxUint64

// Root is the address of a tree's root node. The zero value is the image in which
// every block is a hole.
type Root = dedup.Slot

// Extent says where a run of blocks lives: block First+i, for i below Count, is in
// slot Slot+i of Chunk. An extent with a zero Chunk is a hole: its blocks read as
// zeros and live nowhere. First and Count are in blocks of dedup.BlockSize bytes.
type Extent struct {
	First, Count uint64
	Chunk        dedup.ChunkID
	Slot         uint16
	// Damaged, when not zero, is for a single block that is no hole: bit i set means
	// that sector i (512 bytes) of it reads as an I/O error.
	Damaged uint8
}

// IsHole tells whether e's blocks read as zeros and live nowhere.
func (e Extent) IsHole() bool { return e.Chunk.IsZero() }

// End is the block behind the last one of e.
func (e Extent) End() uint64 { return e.First + e.Count }

// clip is the part of e inside [first, end); its Count is 0 when there is none.
func (e Extent) clip(first, end uint64) Extent {
	if e.First < first {
		e = e.from(first)
	}
	if e.Count > 0 && e.End() > end {
		e.Count = end - min(end, e.First)
	}
	return e
}

// from is the part of e from block first on, which is not before e's start.
func (e Extent) from(first uint64) Extent {
	cut := min(first-e.First, e.Count)
	e.First += cut
	e.Count -= cut
	if e.IsHole() {
		return e
	}
	e.Slot += uint16(cut)
	return e
}

// joins tells whether next goes on where e stops, so that both are one extent.
func (e Extent) joins(next Extent) bool {
	if e.End() != next.First || e.Chunk != next.Chunk {
		return false
	}
	if e.IsHole() {
		return true
	}
	return e.Damaged == 0 && next.Damaged == 0 && uint64(e.Slot)+e.Count == uint64(next.Slot)
}

// NodeSource reads nodes. Its methods are called by any number of goroutines at once.
type NodeSource interface {
	// ReadNode returns the dedup.BlockSize verified bytes of the node at s. The
	// caller neither changes nor keeps them. Any error means that this node cannot be
	// read now.
	ReadNode(s dedup.Slot) ([]byte, error)
}

// NodeSink takes the nodes that an update makes, packing them into chunks that it
// numbers as it likes, going up. An update calls it from one goroutine.
type NodeSink interface {
	// Current is the number of the chunk that the next AddNode goes to.
	Current() int
	// ChunkID is the ID of a chunk that is complete: n is below Current().
	ChunkID(n int) dedup.ChunkID
	// AddNode copies the dedup.BlockSize bytes of node into chunk number Current()
	// and says where it went. Afterwards Current may have gone up. An error ends
	// the update.
	AddNode(node []byte) (chunk int, slot uint16, err error)
}

// NodeError says that the map of blocks First to End-1 is not known because the node
// that holds it could not be read or makes no sense. The rest of the tree is usable.
type NodeError struct {
	Node       dedup.Slot
	First, End uint64
	Err        error
}

func (e *NodeError) Error() string {
	return fmt.Sprintf("map node %s of blocks [%d, %d): %v", e.Node, e.First, e.End, e.Err)
}

// Unwrap is what the source or the decoder said.
func (e *NodeError) Unwrap() error { return e.Err }

// errInvalid is for arguments that the caller should never pass.
var errInvalid = errors.New("invalid argument")

// Tree reads and makes block maps. It has no root of its own: any number of roots
// share its cache. All methods are safe for concurrent use.
type Tree struct {
	// Fixed after construction.
	src      NodeSource
	cache    *lru.Cache[dedup.Slot, *Node] // locks itself; nil without a cache
	capacity int                           // bytes of a node in use at most; smaller in tests
}

// New makes a Tree that reads nodes from src and keeps the cacheNodes decoded nodes
// used last in memory, about 7 KiB each at most (0: none).
func New(src NodeSource, cacheNodes int) *Tree {
	t := &Tree{src: src, capacity: dedup.BlockSize}
	if cacheNodes > 0 {
		t.cache, _ = lru.New[dedup.Slot, *Node](cacheNodes) // fails for sizes below 1 only
	}
	return t
}

// load returns the node at s, which the caller does not change. keep says whether it
// should stay in the cache. below is the bound that the node's level must be under:
// MaxLevels, or what bound of its parent says.
func (t *Tree) load(s dedup.Slot, below int, keep bool) (*Node, error) {
	n, err := t.read(s, keep)
	if err != nil {
		return nil, err
	}
	if n.Level() >= below {
		return nil, fmt.Errorf("level %d under a node of level %d: %w", n.Level(), below, dedup.ErrCorrupt)
	}
	return n, nil
}

// Readable tells whether the node at s can be read now.
func (t *Tree) Readable(s dedup.Slot) bool {
	_, err := t.read(s, true)
	return err == nil
}

func (t *Tree) read(s dedup.Slot, keep bool) (*Node, error) {
	if t.cache != nil {
		if n, ok := t.cache.Get(s); ok {
			return n, nil
		}
	}
	page, err := t.src.ReadNode(s)
	if err != nil {
		return nil, err
	}
	n, err := DecodeNode(page)
	if err != nil {
		return nil, err
	}
	if !n.below(s.Slot) {
		return nil, corrupt("a child in a slot of its own chunk behind it")
	}
	n.self = s.Chunk
	if t.cache != nil && keep {
		t.cache.Add(s, n)
	}
	return n, nil
}
