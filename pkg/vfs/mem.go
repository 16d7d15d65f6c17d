package vfs

import (
	"io"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"sync"
	"syscall"
)

// hugeDisk is the size that Space tells of a Mem without a capacity, in bytes.
const hugeDisk = 1 << 50

// Mem is a file system in memory that behaves like a POSIX file system on a disk with a
// volatile cache. It is deterministic: the same calls in the same order give the same
// results. All methods may be called concurrently.
//
// What was not synced is at stake in a Crash, in units that are kept or lost each on
// its own:
//
//   - each sector of 512 bytes that was written; one that was written several times
//     comes back as it was synced last, as it was written last, or as it was before that;
//   - the size of the file. If it is kept and sectors are not, these read as what they
//     were on the disk, or as zeros where there was nothing;
//   - the space of each page of 4096 bytes that was allocated (Datasync does not make
//     that durable, nor a Truncate to less);
//   - each creation, removal and rename, until SyncDir. A rename is atomic. A change
//     that builds on another one of the same name is lost with it.
//
// Neither does Sync of a file make its name durable, nor SyncDir the content of files.
// Directories take no space. Directories cannot be renamed into other directories.
type Mem struct {
	mu struct {
		sync.Mutex
		root     *inode
		lastID   int64
		pending  []nameOp // changes of names that are not durable, in order
		locks    map[*inode]bool
		epoch    int64 // handles of earlier epochs are dead
		capacity int64 // pages; 0 is unlimited
		used     int64 // pages of inodes that have a name or are open
		ops      int64
	}
}

// NewMem returns an empty file system, which has the directory "/" only. Relative names
// start there too.
func NewMem() *Mem {
	m := &Mem{}
	m.mu.root = &inode{
		isDir: true, linked: true,
		names: map[string]*inode{}, durable: map[string]*inode{},
	}
	m.mu.locks = map[*inode]bool{}
	return m
}

// begin locks m for an operation and counts it.
func (m *Mem) begin() {
	m.mu.Lock()
	m.mu.ops++
}

// Ops returns how many methods of FS and File were called so far. It does not count
// Name, nor what is there for tests.
func (m *Mem) Ops() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.ops
}

// SetCapacity limits the disk to bytes, rounded down to pages of 4096; 0 is unlimited.
// What is there already stays even if it is more.
func (m *Mem) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.capacity = bytes / pageSize
	if bytes > 0 && m.mu.capacity == 0 {
		m.mu.capacity = -1 // no page at all
	}
}

// room returns how many pages can still be allocated.
func (m *Mem) room() int64 {
	if m.mu.capacity == 0 {
		return math.MaxInt64
	}
	return max(0, m.mu.capacity-m.mu.used)
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	m.begin()
	defer m.mu.Unlock()
	key, node, err := m.place("open", name)
	if err != nil {
		return nil, err
	}
	if node != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EEXIST}
	}
	return m.handle(m.link(key, false), name, false), nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) { return m.openFile(name, false) }

// OpenReadOnly implements FS.
func (m *Mem) OpenReadOnly(name string) (File, error) { return m.openFile(name, true) }

func (m *Mem) openFile(name string, readOnly bool) (File, error) {
	m.begin()
	defer m.mu.Unlock()
	node, err := m.lookup("open", name)
	if err != nil {
		return nil, err
	}
	if node.isDir {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	return m.handle(node, name, readOnly), nil
}

// Remove implements FS. It removes empty directories too.
func (m *Mem) Remove(name string) error {
	m.begin()
	defer m.mu.Unlock()
	key, node, err := m.place("remove", name)
	switch {
	case err != nil:
		return err
	case node == nil:
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	case len(node.names) > 0:
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	m.unlink(key, node)
	return nil
}

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error {
	m.begin()
	defer m.mu.Unlock()
	from, node, err := m.place("rename", oldname)
	if err != nil {
		return err
	}
	to, over, err := m.place("rename", newname)
	if err != nil {
		return err
	}
	if errno := renameErr(from, to, node, over); errno != 0 {
		return &fs.PathError{Op: "rename", Path: oldname + " to " + newname, Err: errno}
	}
	if node != over {
		m.move(from, to, node, over)
	}
	return nil
}

// renameErr tells why node cannot take the place of over; 0 if it can.
func renameErr(from, to nameKey, node, over *inode) syscall.Errno {
	switch {
	case node == nil:
		return syscall.ENOENT
	case node.isDir && from.dir != to.dir:
		return syscall.EXDEV // could make a loop of a crash
	case over == nil || node == over:
		return 0
	case over.isDir:
		return syscall.EEXIST
	case node.isDir:
		return syscall.ENOTDIR
	}
	return 0
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	m.begin()
	defer m.mu.Unlock()
	return m.mkdirAll(path.Clean("/" + dir))
}

func (m *Mem) mkdirAll(dir string) error {
	if node, err := m.lookup("mkdir", dir); err == nil {
		if !node.isDir {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if err := m.mkdirAll(path.Dir(dir)); err != nil {
		return err
	}
	key, _, err := m.place("mkdir", dir)
	if err != nil {
		return err
	}
	m.link(key, true)
	m.commitNames(key.dir)
	return nil
}

// lookupDir finds a directory.
func (m *Mem) lookupDir(op, name string) (*inode, error) {
	node, err := m.lookup(op, name)
	if err == nil && !node.isDir {
		err = &fs.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
	}
	return node, err
}

// ReadDir implements FS.
func (m *Mem) ReadDir(dir string) ([]string, error) {
	m.begin()
	defer m.mu.Unlock()
	node, err := m.lookupDir("open", dir)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(node.names)), nil
}

// Stat implements FS.
func (m *Mem) Stat(name string) (Info, error) {
	m.begin()
	defer m.mu.Unlock()
	node, err := m.lookup("stat", name)
	if err != nil {
		return Info{}, err
	}
	return Info{Size: node.data.size, Used: node.data.pages * pageSize, IsDir: node.isDir}, nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	m.begin()
	defer m.mu.Unlock()
	node, err := m.lookupDir("open", dir)
	if err != nil {
		return err
	}
	m.commitNames(node)
	return nil
}

// Lock implements FS. The holder is the process, which ends with Kill or Crash; a
// second Lock by the same process fails too.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.begin()
	defer m.mu.Unlock()
	key, node, err := m.place("open", name)
	switch {
	case err != nil:
		return nil, err
	case node == nil:
		node = m.link(key, false)
	case node.isDir:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	case m.mu.locks[node]:
		return nil, &fs.PathError{Op: "lock", Path: name, Err: ErrLocked}
	}
	m.mu.locks[node] = true
	return &memLock{m.handle(node, name, false)}, nil
}

// Space implements FS.
func (m *Mem) Space(dir string) (Space, error) {
	m.begin()
	defer m.mu.Unlock()
	if _, err := m.lookup("statfs", dir); err != nil {
		return Space{}, err
	}
	total := max(0, m.mu.capacity)
	if m.mu.capacity == 0 {
		total = hugeDisk / pageSize
	}
	return Space{Total: total * pageSize, Free: max(0, total-m.mu.used) * pageSize}, nil
}
