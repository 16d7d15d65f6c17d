package blockmap

import (
	"fmt"
	"sort"

	"github.com/k8ns/granary/pkg/dedup"
)

// Lookup calls fn with the extents that cover the count blocks from first, exactly and
// in order: clipped to that range, holes included, what goes on joined to one. It ends
// with fn's error, or with a *NodeError at the first part of the range that cannot be
// read (everything before it was passed to fn; a caller may go on from its End).
// It may be called by any number of goroutines at once.
func (t *Tree) Lookup(root dedup.Slot, first, count uint64, fn func(Extent) error) error {
	if count == 0 {
		return nil
	}
	if count > endOfSpace-first {
		return fmt.Errorf("lookup of %d blocks from %d: %w", count, first, errInvalid)
	}
	j := joiner{fn: fn}
	s := scanner{
		ranges: []Extent{{First: first, Count: count}},
		load:   func(c dedup.Slot, below int) (*Node, error) { return t.load(c, below, true) },
		piece:  func(_ int, e Extent) error { return j.add(e) },
		bad:    func(_ int, _, _ uint64, err *NodeError) error { return err },
	}
	err := s.run(root)
	if ferr := j.flush(); ferr != nil {
		return ferr // of blocks before the one that err is about
	}
	return err
}

// joiner passes extents on to fn, those that go on joined to one.
type joiner struct {
	fn      func(Extent) error
	pending Extent // not passed on yet, if Count is not 0
}

func (j *joiner) add(e Extent) error {
	if j.pending.Count > 0 && j.pending.joins(e) {
		j.pending.Count += e.Count
		return nil
	}
	if err := j.flush(); err != nil {
		return err
	}
	j.pending = e
	return nil
}

func (j *joiner) flush() error {
	e := j.pending
	j.pending = Extent{}
	if e.Count == 0 {
		return nil
	}
	return j.fn(e)
}

// scanner goes through a tree in block order and reports what covers some ranges,
// reading every node at most once.
type scanner struct {
	ranges []Extent // ascending, disjoint, Count > 0; only First and Count are used
	load   func(s dedup.Slot, below int) (*Node, error)
	// piece gets what covers part of range i: an extent, or a hole, never empty.
	piece func(i int, e Extent) error
	// bad gets the parts of range i that are not known.
	bad func(i int, first, end uint64, err *NodeError) error

	i  int    // the range scanned now
	at uint64 // the block in it that comes next
}

// run scans the tree under root.
func (s *scanner) run(root dedup.Slot) error {
	if len(s.ranges) == 0 {
		return nil
	}
	s.at = s.ranges[0].First
	if root.IsZero() {
		return s.holes(endOfSpace)
	}
	return s.child(root, 0, endOfSpace, MaxLevels)
}

// before tells whether there is something to scan before block end.
func (s *scanner) before(end uint64) bool {
	return s.i < len(s.ranges) && s.at < end
}

// next moves on to block end or to the end of the range, whatever comes first, and
// returns the range and the blocks passed.
func (s *scanner) next(end uint64) (i int, first, stop uint64) {
	i, first = s.i, s.at
	stop = min(end, s.ranges[i].End())
	s.at = stop
	if stop == s.ranges[i].End() {
		if s.i++; s.i < len(s.ranges) {
			s.at = s.ranges[s.i].First
		}
	}
	return i, first, stop
}

// holes reports everything before block end as a hole.
func (s *scanner) holes(end uint64) error {
	for s.before(end) {
		i, first, stop := s.next(end)
		if err := s.piece(i, Extent{First: first, Count: stop - first}); err != nil {
			return err
		}
	}
	return nil
}

// child scans the node at c for blocks [first, end).
func (s *scanner) child(c dedup.Slot, first, end uint64, below int) error {
	n, err := s.load(c, below)
	if err != nil {
		ne := &NodeError{Node: c, First: first, End: end, Err: err}
		for s.before(end) {
			i, from, stop := s.next(end)
			if err := s.bad(i, from, stop, ne); err != nil {
				return err
			}
		}
		return nil
	}
	if n.level == 0 {
		return s.leaf(n, end)
	}
	for s.before(end) {
		k := sort.Search(n.Len(), func(i int) bool { return n.entries[i].first > s.at })
		if k == 0 {
			if err := s.holes(min(end, n.entries[0].first)); err != nil {
				return err
			}
			continue
		}
		cFirst, cEnd := n.childRange(k-1, first, end)
		if err := s.child(n.Child(k-1).Node, cFirst, cEnd, n.bound()); err != nil {
			return err
		}
	}
	return nil
}

// leaf scans a leaf up to block end.
func (s *scanner) leaf(n *Node, end uint64) error {
	k := 0 // the first extent that ends behind s.at
	for s.before(end) {
		if k < n.Len() && n.Extent(k).End() <= s.at {
			k += sort.Search(n.Len()-k, func(i int) bool { return n.Extent(k+i).End() > s.at })
		}
		if k == n.Len() {
			return s.holes(end)
		}
		e := n.Extent(k)
		if e.First > s.at {
			i, first, stop := s.next(min(end, e.First))
			if err := s.piece(i, Extent{First: first, Count: stop - first}); err != nil {
				return err
			}
			continue
		}
		i, first, stop := s.next(min(end, e.End()))
		if err := s.piece(i, e.clip(first, stop)); err != nil {
			return err
		}
	}
	return nil
}
