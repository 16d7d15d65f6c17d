package blockmap

import "github.com/k8ns/granary/pkg/dedup"

// WalkOptions are the choices of a walk; the zero value is usable.
type WalkOptions struct {
	// Skip is asked before a node is read; true leaves out the node and everything
	// below it. With a set of nodes seen, shared between roots, a walk then reads
	// nothing that an earlier one has read. Without one a node that several entries name is
	// read for each of them, and what is below it too: as often as there are ways to it.
	Skip func(node dedup.Slot) bool
	// OnError gets a node that cannot be read, with the range of blocks that it
	// stands for. The walk goes on beside it when nil is returned, and ends with
	// what is returned otherwise. Without OnError it ends with a *NodeError.
	OnError func(node dedup.Slot, first, end uint64, err error) error
}

// Walk calls visit for every node under root, a node before its children, in block
// order. A node that several entries name is visited as often. For a leaf, extents are
// all that it holds, valid during the call only; what a parent's range hides is not
// left out, here and for children, because marking must see whatever a node names
// the first time it meets the node. With descend = false a node's children are
// not visited; an error ends the walk and is returned.
//
// Nodes are taken from the cache but not added to it. A Walk may run beside any other
// method; the functions are called from the caller's goroutine.
func (t *Tree) Walk(root dedup.Slot,
	visit func(node dedup.Slot, level int, extents []Extent) (descend bool, err error),
	o WalkOptions,
) error {
	if root.IsZero() {
		return nil
	}
	w := walker{t: t, visit: visit, o: o}
	return w.node(root, 0, endOfSpace, MaxLevels)
}

type walker struct {
	t       *Tree
	visit   func(dedup.Slot, int, []Extent) (bool, error)
	o       WalkOptions
	extents []Extent // buffer
}

// node walks the node at s, which stands for blocks [first, end).
func (w *walker) node(s dedup.Slot, first, end uint64, below int) error {
	if w.o.Skip != nil && w.o.Skip(s) {
		return nil
	}
	n, err := w.t.load(s, below, false)
	if err != nil {
		if w.o.OnError != nil {
			return w.o.OnError(s, first, end, err)
		}
		return &NodeError{Node: s, First: first, End: end, Err: err}
	}
	if n.level == 0 {
		w.extents = w.extents[:0]
		for i := range n.Len() {
			w.extents = append(w.extents, n.Extent(i))
		}
		_, err := w.visit(s, 0, w.extents)
		return err
	}
	descend, err := w.visit(s, n.Level(), nil)
	if err != nil || !descend {
		return err
	}
	for i := range n.Len() {
		cFirst, cEnd := n.childRange(i, first, end)
		if err := w.node(n.Child(i).Node, cFirst, max(cFirst, cEnd), n.bound()); err != nil {
			return err
		}
	}
	return nil
}
