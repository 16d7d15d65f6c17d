package dedup

import "fmt"

// The node side of a Writer: map nodes go into chunks of their own kind, and one may
// refer to others in the same chunk, whose ID is not known before it is closed. So
// they are addressed by the Writer's chunk numbers while they are made.

// Current is the number of the node chunk that the next node goes into.
func (w *Writer) Current() int { return len(w.nodeIDs) }

// ChunkID is the ID of node chunk n, which must be closed: n < Current().
func (w *Writer) ChunkID(n int) ChunkID { return w.nodeIDs[n] }

// AddNode stores a map node of BlockSize bytes in chunk Current() and returns that
// chunk's number and the slot. A chunk that this fills is closed and Current goes up.
// The node is copied. Errors as in Block.
func (w *Writer) AddNode(node []byte) (chunk int, slot uint16, err error) {
	if w.err != nil {
		return 0, 0, w.err
	}
	if len(node) != BlockSize {
		return 0, 0, w.fail(fmt.Errorf("map node of %d bytes", len(node)))
	}
	fp := FingerprintOf(node)
	if err := w.heal(fp, node); err != nil {
		return 0, 0, w.fail(err)
	}
	if w.nodes == nil {
		w.nodes = w.newBuilder(KindNodes)
	}
	chunk, slot = w.Current(), w.nodes.add(fp, node)
	if len(w.nodes.fps) == MaxSlots {
		err = w.FinishNodes()
	}
	return chunk, slot, err
}

// FinishNodes closes the current node chunk, if it has a node, and appends it.
func (w *Writer) FinishNodes() error {
	if w.err != nil {
		return w.err
	}
	if w.nodes == nil {
		return w.fail(w.flushHeals())
	}
	b := w.nodes
	w.nodes = nil
	id := b.close()
	err := w.store(b)
	if err == nil {
		w.nodeIDs = append(w.nodeIDs, id)
		err = w.flushHeals()
	}
	return w.fail(err)
}
