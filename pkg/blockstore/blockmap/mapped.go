package blockmap

import "github.com/k8ns/granary/pkg/dedup"

// Counter counts mapped blocks of images that share nodes: what it has counted once is
// not read again. It is not safe for concurrent use.
type Counter struct {
	// Breathe, unless nil, is called for every node; its error ends a count and is returned.
	Breathe func() error

	t     *Tree
	known map[span]int64
}

// span is a node and the blocks that its parent lets it stand for.
type span struct {
	node       dedup.Slot
	first, end uint64
}

// NewCounter returns a Counter that has counted nothing.
func (t *Tree) NewCounter() *Counter { return &Counter{t: t, known: make(map[span]int64)} }

// Mapped is how many blocks under root are not holes. A node that cannot be read is a
// *NodeError.
func (c *Counter) Mapped(root dedup.Slot) (int64, error) {
	if root.IsZero() {
		return 0, nil
	}
	return c.count(span{root, 0, endOfSpace}, MaxLevels)
}

func (c *Counter) count(s span, below int) (int64, error) {
	if n, ok := c.known[s]; ok {
		return n, nil
	}
	if c.Breathe != nil {
		if err := c.Breathe(); err != nil {
			return 0, err
		}
	}
	n, err := c.t.load(s.node, below, false)
	if err != nil {
		return 0, &NodeError{Node: s.node, First: s.first, End: s.end, Err: err}
	}
	var sum int64
	for i := range n.Len() {
		if n.level == 0 {
			if e := n.Extent(i).clip(s.first, s.end); !e.IsHole() {
				sum += int64(e.Count)
			}
			continue
		}
		first, end := n.childRange(i, s.first, s.end)
		if first >= end {
			continue
		}
		blocks, err := c.count(span{n.Child(i).Node, first, end}, n.bound())
		if err != nil {
			return 0, err
		}
		sum += blocks
	}
	c.known[s] = sum
	return sum, nil
}
