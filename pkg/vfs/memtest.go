package vfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"maps"
	"path"
	"slices"
)

// Corrupt lets f change the bytes of the file name from off to the end, in memory and
// on the disk alike, whether synced or not. f must not use the file system. It panics
// if there is no such file or it ends before off, as that is a mistake in the test.
func (m *Mem) Corrupt(name string, off int64, f func([]byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookup("corrupt", name)
	if err != nil {
		panic(err)
	}
	if node.isDir || off < 0 || off >= node.data.size {
		panic("corrupt " + name + ": no such byte")
	}
	before := make([]byte, node.data.size-off)
	node.data.read(before, off)
	after := slices.Clone(before)
	f(after)
	pages := node.data.pages
	for len(after) > 0 {
		n := min(pageSize-int(off%pageSize), len(after))
		node.data.poke(off, before[:n], after[:n])
		before, after, off = before[n:], after[n:], off+int64(n)
	}
	m.mu.used += node.data.pages - pages
}

// poke puts the bytes of after that differ from before into all versions of the page
// that off is in.
func (c *content) poke(off int64, before, after []byte) {
	if bytes.Equal(before, after) {
		return
	}
	i, in := off/pageSize, off%pageSize
	pg := c.makePage(i)
	if pg.cur == nil {
		c.pages++
	}
	pg.cur, pg.ownCur = poked(pg.cur, in, before, after), true
	if off < c.durSize {
		pg.dur = cutBlock(poked(pg.dur, in, before, after), c.durSize-i*pageSize)
	}
	if pg.hasMid != 0 {
		pg.mid, pg.ownMid = poked(pg.mid, in, before, after), true
	}
}

// poked is poke for one version.
func poked(b *block, in int64, before, after []byte) *block {
	changed := new(block)
	if b != nil {
		*changed = *b
	}
	for i, v := range after {
		if v != before[i] {
			changed[in+int64(i)] = v
		}
	}
	return changed
}

// Digest is a hash of all names, sizes and bytes as they read now, synced or not.
func (m *Mem) Digest() [sha256.Size]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := sha256.New()
	m.walk(func(name string, node *inode) {
		_, _ = io.WriteString(h, name+"\x00")
		_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(node.data.size)))
		for _, k := range slices.Sorted(maps.Keys(node.data.leaves)) {
			l := node.data.leaves[k]
			for j := range l {
				if b := l[j].cur; b != nil && *b != *zeroBlock {
					_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(k*leafPages+int64(j))))
					_, _ = h.Write(b[:])
				}
			}
		}
	})
	return [sha256.Size]byte(h.Sum(nil))
}

// walk calls fn for everything in the current tree, in the order of the names.
func (m *Mem) walk(fn func(name string, node *inode)) { walkNames("/", m.mu.root, fn) }

func walkNames(name string, node *inode, fn func(string, *inode)) {
	fn(name, node)
	for _, child := range slices.Sorted(maps.Keys(node.names)) {
		walkNames(path.Join(name, child), node.names[child], fn)
	}
}
