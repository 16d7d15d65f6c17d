package blockmap

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/k8ns/granary/pkg/dedup"
)

// rescueLevel is the level of a new root above one that cannot be read, whose own level
// nobody knows: above that of any tree that fits into 2^34 blocks (6 at most), and
// with room to grow. What could not be read may have been such a root itself, so below
// these nodes there may be nodes of any level (Node.bound).
const rescueLevel = 12

// Result is what an update made.
type Result struct {
	// Root is the new root when InSink is false: the old one if nothing changed,
	// zero if every block is a hole now, or a node that the old tree already had.
	Root dedup.Slot
	// InSink says that the new root is slot Slot of the sink's chunk number Chunk.
	InSink bool
	Chunk  int
	Slot   uint16
	// MappedDelta is by how many blocks the number of blocks that are not holes went
	// up. Blocks whose old state could not be read are left out; Unread says that there
	// may be some, and Kept are the nodes to blame that the new tree still points to.
	MappedDelta int64
	Unread      bool
	Kept        []dedup.Slot
	// Nodes is how many nodes went to the sink.
	Nodes int64
}

// Update makes the tree that root becomes by changes: ascending, disjoint extents, each
// of at least one block; a hole may have any size, others stay inside a chunk. The new
// nodes go to sink, children before parents, and nothing else is written; the old root
// stays valid. Only nodes whose ranges meet a change that makes a difference are made
// anew, apart from merging with a neighbour, and none at all if there is no difference.
//
// A node that cannot be read does not make Update fail: the new tree points to it
// beside what is new. Update fails when changes are not as described, when sink fails,
// or when a tree would have more than MaxLevels levels; what sink has got by then is
// garbage. Memory is bounded by the changes, not by the tree.
//
// Any number of Updates may run at once, each with its own sink. Several may use a sink
// one after the other; a root in it serves as a root once its chunk has an ID and can
// be read.
func (t *Tree) Update(root dedup.Slot, changes []Extent, sink NodeSink) (Result, error) {
	if err := checkChanges(changes); err != nil {
		return Result{}, err
	}
	u := &update{t: t, sink: sink, bad: make(map[dedup.Slot]error), build: newBuilder()}
	delta := u.plan(root, changes)
	u.unread = maps.Clone(u.bad)
	if len(u.changes) == 0 {
		return Result{Root: root}, nil
	}
	u.tail.exact = true
	var err error
	if root.IsZero() {
		err = u.fresh(endOfSpace)
	} else {
		err = u.child(root, 0, endOfSpace, MaxLevels, rescueLevel)
	}
	if err != nil {
		return Result{}, err
	}
	r, err := u.finishAll()
	r.MappedDelta, r.Unread, r.Kept, r.Nodes = delta, len(u.unread) > 0, u.kept, u.made
	return r, err
}

// checkChanges tells what is wrong with the changes of an update.
func checkChanges(changes []Extent) error {
	var end uint64
	for i, c := range changes {
		if err := checkExtent(c); err != nil {
			return fmt.Errorf("change %d: %w", i, err)
		}
		if c.First < end {
			return fmt.Errorf("change %d starts at block %d, the one before ends at %d: %w", i, c.First, end, errInvalid)
		}
		end = c.End()
	}
	return nil
}

// update is one run of Update: it goes through the old tree and the changes in block
// order and makes one stream of them, of extents and of children that are kept, which
// the packers cut into nodes, level by level. Whatever is in a packer is before what is
// in the packers of lower levels.
type update struct {
	t       *Tree
	sink    NodeSink
	bad     map[dedup.Slot]error // nodes that could not be read, asked for once
	unread  map[dedup.Slot]error // those of them that changes meet
	kept    []dedup.Slot         // those of unread that the new tree points to
	build   *builder
	made    int64 // nodes given to sink
	sizer   sizer
	page    []byte // buffer
	changes []Extent
	packers [MaxLevels + 1]packer // by level of the nodes made; the last never makes any

	// inRun says that extents were added since the last kept child. The range of the
	// next leaf starts at block runFirst: from there to its first extent are holes.
	inRun    bool
	runFirst uint64
	// tail is the last thing in the stream. It ends at block end; unless exact, it is
	// the kept child node, which may have content behind end that its parent hid.
	tail struct {
		node  dedup.Slot
		level int // of the node that it was in
		end   uint64
		exact bool
	}
}

// load is Tree.load that asks only once for what cannot be read.
func (u *update) load(s dedup.Slot, below int) (*Node, error) {
	if err, ok := u.bad[s]; ok {
		return nil, err
	}
	n, err := u.t.load(s, below, true)
	if err != nil {
		u.bad[s] = err
	}
	return n, err
}

// plan sets u.changes to the parts of changes that make a difference, from the first
// block that does to the last one of each change, and counts by how many blocks the
// mapped ones go up. What cannot be read differs.
func (u *update) plan(root dedup.Slot, changes []Extent) (delta int64) {
	different := func(i int, first, end uint64) {
		if k := len(u.changes) - 1; k >= 0 && u.changes[k].First >= changes[i].First {
			u.changes[k] = changes[i].clip(u.changes[k].First, end)
			return
		}
		u.changes = append(u.changes, changes[i].clip(first, end))
	}
	s := scanner{
		ranges: changes,
		load:   u.load,
		piece: func(i int, old Extent) error {
			c := changes[i].clip(old.First, old.End())
			if !old.IsHole() {
				delta -= int64(old.Count)
			}
			if !c.IsHole() {
				delta += int64(old.Count)
			}
			if c.Chunk != old.Chunk || !c.IsHole() && (c.Slot != old.Slot || c.Damaged != old.Damaged) {
				different(i, old.First, old.End())
			}
			return nil
		},
		bad: func(i int, first, end uint64, _ *NodeError) error {
			different(i, first, end)
			return nil
		},
	}
	_ = s.run(root) // its error is one of piece or bad, which have none
	return delta
}

// change is the next change, as far as it is before block end.
func (u *update) change(end uint64) (Extent, bool) {
	if len(u.changes) == 0 || u.changes[0].First >= end {
		return Extent{}, false
	}
	c := u.changes[0]
	return c.clip(c.First, end), true
}

// take adds the next change, as far as it is before block end, to the stream.
func (u *update) take(end uint64) error {
	c, _ := u.change(end)
	if rest := u.changes[0].from(c.End()); rest.Count > 0 {
		u.changes[0] = rest
	} else {
		u.changes = u.changes[1:]
	}
	return u.extent(c, true)
}

// fresh adds all changes before block end, where there was nothing.
func (u *update) fresh(end uint64) error {
	for {
		if _, ok := u.change(end); !ok {
			return nil
		}
		if err := u.take(end); err != nil {
			return err
		}
	}
}

// child adds the blocks [first, end) of the node at s as the changes make them, and
// changes before first that have no other place. below is the bound of the node's level;
// level is that of its parent, or of what a root that cannot be read comes under.
func (u *update) child(s dedup.Slot, first, end uint64, below, level int) error {
	c, ok := u.change(end)
	switch {
	case !ok:
		return u.keep(s, first, end, level)
	case c.First <= first && c.End() >= end:
		return u.take(end) // nothing of the node is left, so it is not read
	}
	n, err := u.load(s, below)
	switch {
	case err != nil:
		return u.beside(s, first, end, level)
	case n.level == 0:
		return u.leaf(n, first, end)
	}
	for i := range n.Len() {
		cFirst, cEnd := n.childRange(i, first, end)
		if cFirst >= cEnd {
			continue
		}
		if err := u.child(n.Child(i).Node, cFirst, cEnd, n.bound(), n.Level()); err != nil {
			return err
		}
	}
	return u.fresh(end)
}

// leaf adds the blocks [first, end) of a leaf as the changes make them.
func (u *update) leaf(n *Node, first, end uint64) error {
	for i := range n.Len() {
		old := n.Extent(i).clip(first, end) // first is the end of the last change taken
		for old.Count > 0 {
			c, ok := u.change(end)
			if !ok || c.First >= old.End() {
				if err := u.extent(old, false); err != nil {
					return err
				}
				break
			}
			if c.First > old.First {
				if err := u.extent(old.clip(old.First, c.First), false); err != nil {
					return err
				}
			}
			if err := u.take(end); err != nil {
				return err
			}
			first = max(first, c.End())
			old = old.from(max(old.First, first))
		}
	}
	return u.fresh(end)
}

// beside adds the changes before block end, and the node at s, which stands for blocks
// [first, end) and cannot be read, for what they leave of it.
func (u *update) beside(s dedup.Slot, first, end uint64, level int) error {
	for {
		c, ok := u.change(end)
		if !ok {
			break
		}
		if c.First > first {
			if err := u.keep(s, first, c.First, level); err != nil {
				return err
			}
		}
		if err := u.take(end); err != nil {
			return err
		}
		first = max(first, c.End())
	}
	if first >= end {
		return nil
	}
	return u.keep(s, first, end, level)
}

// extent adds an extent to the stream; changed says that it comes from a change.
func (u *update) extent(e Extent, changed bool) error {
	if e.Count == 0 || e.IsHole() {
		return nil
	}
	if !u.inRun {
		u.inRun, u.runFirst = true, u.tail.end
	}
	u.tail.end, u.tail.exact = e.End(), true
	p := &u.packers[0]
	if k := len(p.items); k > 0 && p.items[k-1].joins(e) {
		p.items[k-1].count += e.Count
		p.items[k-1].changed = p.items[k-1].changed || changed
		return nil
	}
	return u.push(0, item{first: e.First, count: e.Count, chunk: e.Chunk, slot: e.Slot, damaged: e.Damaged, changed: changed})
}

// keep adds the node at s as it is, for blocks [first, end); it came from a node of the
// given level.
func (u *update) keep(s dedup.Slot, first, end uint64, level int) error {
	if err := u.hide(first); err != nil {
		return err
	}
	for l := range level {
		if l == level-1 && u.small(l) {
			if absorbed, err := u.absorb(s, first, end, l); absorbed || err != nil {
				return err
			}
		}
		if err := u.finish(l); err != nil {
			return err
		}
	}
	if u.unread[s] != nil && !slices.Contains(u.kept, s) {
		u.kept = append(u.kept, s)
	}
	u.tail.node, u.tail.level, u.tail.end, u.tail.exact = s, level, end, false
	return u.push(level, item{first: first, chunk: s.Chunk, slot: s.Slot})
}

// hide makes sure that a kept child at the tail shows nothing between its end and block
// next, where the stream goes on. A child's range ends where the next one begins, so if
// it may have something there, an empty leaf is put behind it.
func (u *update) hide(next uint64) error {
	if u.tail.exact || u.tail.end >= next || !u.reaches(u.tail.node, u.tail.level, u.tail.end) {
		return nil
	}
	u.runFirst = u.tail.end
	u.tail.exact = true
	return u.write(0, nil)
}

// reaches tells whether the node at s, in one of the given level, may hold something at
// or behind block end.
func (u *update) reaches(s dedup.Slot, level int, end uint64) bool {
	below := level
	if level >= rescueLevel {
		below = MaxLevels
	}
	for {
		n, err := u.load(s, below)
		if err != nil {
			return true
		}
		k := n.Len() - 1
		switch {
		case k < 0:
			return false
		case n.level == 0:
			return n.Extent(k).End() > end
		case n.Child(k).First >= end:
			return true
		}
		s, below = n.Child(k).Node, n.bound()
	}
}

// absorb takes the content of the node at s, which comes next, into what packer l has,
// if the node is of that level.
func (u *update) absorb(s dedup.Slot, first, end uint64, l int) (bool, error) {
	n, err := u.load(s, MaxLevels)
	if err != nil || n.Level() != l {
		return false, nil
	}
	for i := range n.Len() {
		if l == 0 {
			err = u.extent(n.Extent(i).clip(first, end), false)
		} else if cFirst, cEnd := n.childRange(i, first, end); cFirst < cEnd {
			err = u.keep(n.Child(i).Node, cFirst, cEnd, l)
		}
		if err != nil {
			return true, err
		}
	}
	return true, nil
}

// finishAll packs what is left and returns the root.
func (u *update) finishAll() (Result, error) {
	if err := u.hide(endOfSpace); err != nil {
		return Result{}, err
	}
	top := 0
	for l := range u.packers {
		if len(u.packers[l].items) > 0 {
			top = l
		}
	}
	for l := 0; l < MaxLevels; l++ {
		if l >= top && l > 0 && len(u.packers[l].items) <= 1 {
			return u.root(l)
		}
		if err := u.finish(l); err != nil {
			return Result{}, err
		}
	}
	if len(u.packers[MaxLevels].items) > 1 {
		return Result{}, errTooHigh
	}
	return u.root(MaxLevels)
}

var errTooHigh = errors.New("block map needs more levels than there can be")

// root makes a root of the only item that is left, in packer l, if any.
func (u *update) root(l int) (Result, error) {
	if len(u.packers[l].items) == 0 {
		return Result{}, nil
	}
	it := u.packers[l].items[0]
	if !it.inSink && u.startsBefore(it.address(), it.first) {
		// As a root it would show what its parent hid.
		if err := u.write(l, u.packers[l].items); err != nil {
			return Result{}, err
		}
		it = u.packers[l+1].items[0]
	}
	if it.inSink {
		return Result{InSink: true, Chunk: it.sink, Slot: it.slot}, nil
	}
	return Result{Root: it.address()}, nil
}

// startsBefore tells whether the node at s may hold something before block first.
func (u *update) startsBefore(s dedup.Slot, first uint64) bool {
	if first == 0 {
		return false
	}
	n, err := u.load(s, MaxLevels)
	return err != nil || n.Len() > 0 && n.entries[0].first < first
}
