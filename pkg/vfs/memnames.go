package vfs

import (
	"io/fs"
	"path"
	"strings"
	"syscall"
)

// inode is a file or a directory of a Mem. It is guarded by Mem.mu.
type inode struct {
	id    int64 // order of creation; fixed
	isDir bool  // fixed

	names   map[string]*inode // directory: what it holds
	durable map[string]*inode // directory: what it holds on the disk

	data content // file

	linked bool // has a name in the current tree
	open   int  // handles and locks
}

// nameOp is a change of names that is not durable yet.
type nameOp struct {
	from nameKey // the name that changes
	to   nameKey // rename: the name it becomes
	node *inode  // what is created or renamed; nil for a removal
	gone *inode  // directory that the change takes away
}

// nameKey is a place for a name.
type nameKey struct {
	dir  *inode
	name string
}

func (op nameOp) isRename() bool { return op.to.dir != nil }

// apply makes the change durable.
func (op nameOp) apply() {
	if op.node == nil || op.isRename() {
		delete(op.from.dir.durable, op.from.name)
	}
	switch {
	case op.isRename():
		op.to.dir.durable[op.to.name] = op.node
	case op.node != nil:
		op.from.dir.durable[op.from.name] = op.node
	}
}

// lookup finds the inode of a name for the operation op.
func (m *Mem) lookup(op, name string) (*inode, error) {
	node, errno := m.find(name)
	if errno != 0 {
		return nil, &fs.PathError{Op: op, Path: name, Err: errno}
	}
	return node, nil
}

// find is lookup with a bare error.
func (m *Mem) find(name string) (*inode, syscall.Errno) {
	if name == "" {
		return nil, syscall.ENOENT
	}
	node := m.mu.root
	rest := strings.TrimPrefix(path.Clean("/"+name), "/")
	for rest != "" {
		var elem string
		elem, rest, _ = strings.Cut(rest, "/")
		if !node.isDir {
			return nil, syscall.ENOTDIR
		}
		node = node.names[elem]
		if node == nil {
			return nil, syscall.ENOENT
		}
	}
	return node, 0
}

// place finds the directory of a name, and what is there by that name, if anything.
func (m *Mem) place(op, name string) (nameKey, *inode, error) {
	clean := path.Clean("/" + name)
	dir, errno := m.find(path.Dir(clean))
	switch {
	case errno != 0:
	case name == "":
		errno = syscall.ENOENT
	case clean == "/":
		errno = syscall.EBUSY
	case !dir.isDir:
		errno = syscall.ENOTDIR
	}
	if errno != 0 {
		return nameKey{}, nil, &fs.PathError{Op: op, Path: name, Err: errno}
	}
	key := nameKey{dir, path.Base(clean)}
	return key, dir.names[key.name], nil
}

// link makes a new inode by the name key.
func (m *Mem) link(key nameKey, isDir bool) *inode {
	m.mu.lastID++
	node := &inode{id: m.mu.lastID, isDir: isDir, linked: true, data: newContent()}
	if isDir {
		node.names, node.durable = map[string]*inode{}, map[string]*inode{}
	}
	key.dir.names[key.name] = node
	m.mu.pending = append(m.mu.pending, nameOp{from: key, node: node})
	return node
}

// unlink removes the name key of node.
func (m *Mem) unlink(key nameKey, node *inode) {
	delete(key.dir.names, key.name)
	op := nameOp{from: key}
	if node.isDir {
		op.gone = node
	}
	m.mu.pending = append(m.mu.pending, op)
	m.drop(node)
}

// move renames node, which has the name from, to the name to, where the file over was,
// if any.
func (m *Mem) move(from, to nameKey, node, over *inode) {
	delete(from.dir.names, from.name)
	to.dir.names[to.name] = node
	m.mu.pending = append(m.mu.pending, nameOp{from: from, to: to, node: node})
	if over != nil {
		m.drop(over)
	}
}

// drop takes note that node has no name any more.
func (m *Mem) drop(node *inode) {
	node.linked = false
	m.free(node)
}

// free gives back the space of a node that neither has a name nor is open.
func (m *Mem) free(node *inode) {
	if !node.linked && node.open == 0 {
		m.mu.used -= node.data.pages
	}
}

// commitNames makes the pending changes in dir durable, with all earlier ones that they
// build on. A rename from one directory to another counts for both.
func (m *Mem) commitNames(dir *inode) {
	names := map[nameKey]bool{}
	dirs := map[*inode]bool{dir: true}
	commit := make([]bool, len(m.mu.pending))
	for i := len(commit) - 1; i >= 0; i-- {
		op := m.mu.pending[i]
		commit[i] = dirs[op.from.dir] || dirs[op.to.dir] || names[op.from] || names[op.to]
		if !commit[i] {
			continue
		}
		names[op.from] = true
		if op.isRename() {
			names[op.to] = true
		}
		if op.gone != nil {
			dirs[op.gone] = true
		}
	}
	rest := m.mu.pending[:0]
	for i, op := range m.mu.pending {
		if commit[i] {
			op.apply()
		} else {
			rest = append(rest, op)
		}
	}
	clear(m.mu.pending[len(rest):])
	m.mu.pending = rest
}

// crashNames makes the changes of names durable that survive, and returns those that are
// lost. A change is lost with an earlier one that it builds on: of the changes of one name
// a first part survives.
func (m *Mem) crashNames(keep func() bool) (gone []nameOp) {
	lost := map[nameKey]bool{}
	lostIn := map[*inode]bool{}
	for _, op := range m.mu.pending {
		kept := keep()
		if kept && !lost[op.from] && !lost[op.to] && (op.gone == nil || !lostIn[op.gone]) {
			op.apply()
			continue
		}
		gone = append(gone, op)
		lost[op.from], lostIn[op.from.dir] = true, true
		if op.isRename() {
			lost[op.to], lostIn[op.to.dir] = true, true
		}
	}
	return gone
}

// walkDurable calls fn once for each inode that has a name on the disk, in no order.
func (m *Mem) walkDurable(fn func(*inode)) {
	todo := []*inode{m.mu.root}
	for len(todo) > 0 {
		node := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		fn(node)
		for _, child := range node.durable {
			todo = append(todo, child)
		}
	}
}
