package vfs

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
)

// Crash is a loss of power, after which the machine is on again. Each unit that was not
// synced survives with probability keep; 0 and 1 are exact and need no rng. All files
// and locks that were open are dead (ErrDead). What survived is durable.
//
// A removal that is lost brings the space of the file back; but where that would be more
// than the capacity, no change of names is lost: a file system gives freed space to others
// only once what freed it is durable. (A truncation that is lost may go beyond the
// capacity.)
func (m *Mem) Crash(rng *rand.Rand, keep float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	survives := func() bool { return keep >= 1 || keep > 0 && rng.Float64() < keep }
	m.die()
	lost := m.crashNames(survives)
	m.crashContents(survives)
	if m.mu.capacity != 0 && m.mu.used > m.mu.capacity {
		for _, op := range lost {
			op.apply()
		}
		m.crashContents(survives)
	}
	m.mu.pending = nil
	m.walkDurable(func(node *inode) {
		if node.isDir {
			node.names = maps.Clone(node.durable)
		}
	})
}

// crashContents leaves the content that survives of each file that is there, and counts
// it. What was left before is durable: it stays when called again.
func (m *Mem) crashContents(survives func() bool) {
	var files []*inode
	m.walkDurable(func(node *inode) { files = append(files, node) })
	slices.SortFunc(files, func(a, b *inode) int { return cmp.Compare(a.id, b.id) })
	m.mu.used = 0
	for _, node := range files {
		node.linked, node.open = true, 0
		node.data.crash(survives)
		m.mu.used += node.data.pages
	}
}

// Kill is the death of the process: all files and locks that were open are dead
// (ErrDead), but nothing is lost. What was not synced still is not.
func (m *Mem) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.die()
	m.mu.used = 0
	m.walk(func(_ string, node *inode) {
		node.open = 0
		m.mu.used += node.data.pages
	})
}

// die makes all handles useless.
func (m *Mem) die() {
	m.mu.epoch++
	clear(m.mu.locks)
}

// Clone returns a file system of its own that has the same files, durable and not, and
// the same capacity, but nothing open. Content is shared until it is written to.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &cloner{done: map[*inode]*inode{}}
	d := &Mem{}
	d.mu.lastID, d.mu.capacity, d.mu.ops = m.mu.lastID, m.mu.capacity, m.mu.ops
	d.mu.locks = map[*inode]bool{}
	d.mu.root = c.inode(m.mu.root)
	for _, op := range m.mu.pending {
		d.mu.pending = append(d.mu.pending, nameOp{
			from: nameKey{c.inode(op.from.dir), op.from.name},
			to:   nameKey{c.inode(op.to.dir), op.to.name},
			node: c.inode(op.node),
			gone: c.inode(op.gone),
		})
	}
	d.walk(func(_ string, node *inode) { d.mu.used += node.data.pages })
	return d
}

// cloner copies inodes, each of them once.
type cloner struct{ done map[*inode]*inode }

func (c *cloner) inode(node *inode) *inode {
	if node == nil {
		return nil
	}
	if d := c.done[node]; d != nil {
		return d
	}
	d := &inode{id: node.id, isDir: node.isDir, linked: node.linked, data: node.data.clone()}
	c.done[node] = d
	d.names, d.durable = c.names(node.names), c.names(node.durable)
	return d
}

func (c *cloner) names(names map[string]*inode) map[string]*inode {
	copied := maps.Clone(names)
	for name, node := range copied {
		copied[name] = c.inode(node)
	}
	return copied
}
