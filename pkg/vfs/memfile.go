package vfs

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"syscall"
)

// ErrDead is what every call on a file or lock of a Mem returns that was open at a
// Crash or a Kill.
var ErrDead = errors.New("the process that had this file open is dead")

// memFile is an open file of a Mem.
type memFile struct {
	m        *Mem   // fixed
	node     *inode // fixed
	name     string // fixed
	epoch    int64  // fixed
	readOnly bool   // fixed

	closed bool // guarded by m.mu
}

// handle opens node.
func (m *Mem) handle(node *inode, name string, readOnly bool) *memFile {
	node.open++
	return &memFile{m: m, node: node, name: name, epoch: m.mu.epoch, readOnly: readOnly}
}

// fail returns err with the name of the file.
func (f *memFile) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

// use tells whether the file can be used. m.mu is held.
func (f *memFile) use(op string) error {
	switch {
	case f.epoch != f.m.mu.epoch:
		return f.fail(op, ErrDead)
	case f.closed:
		return f.fail(op, fs.ErrClosed)
	}
	return nil
}

// change is use for operations that change the n bytes at off.
func (f *memFile) change(op string, off, n int64) error {
	if err := f.use(op); err != nil {
		return err
	}
	switch {
	case f.readOnly:
		return f.fail(op, syscall.EBADF)
	case off < 0 || n < 0:
		return f.fail(op, syscall.EINVAL)
	case off > math.MaxInt64-n:
		return f.fail(op, syscall.EFBIG)
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.m.begin()
	defer f.m.mu.Unlock()
	if err := f.use("read"); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, f.fail("read", syscall.EINVAL)
	}
	n := int(min(int64(len(p)), max(0, f.node.data.size-off)))
	f.node.data.read(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	return f.WriteVec([][]byte{p}, off)
}

func (f *memFile) WriteVec(bufs [][]byte, off int64) (int, error) {
	f.m.begin()
	defer f.m.mu.Unlock()
	var total int64
	for _, b := range bufs {
		total += int64(len(b))
	}
	if err := f.change("write", off, total); err != nil {
		return 0, err
	}
	done := 0
	for _, b := range bufs {
		n := f.resize(func(c *content) int { return c.write(b, off+int64(done), f.m.room()) })
		done += n
		if n < len(b) {
			return done, mapErr(f.fail("write", syscall.ENOSPC))
		}
	}
	return done, nil
}

// resize accounts for the pages that fn takes or gives back.
func (f *memFile) resize(fn func(*content) int) int {
	before := f.node.data.pages
	n := fn(&f.node.data)
	f.m.mu.used += f.node.data.pages - before
	return n
}

func (f *memFile) Sync() error { return f.sync("sync", true) }

func (f *memFile) Datasync() error { return f.sync("datasync", false) }

func (f *memFile) sync(op string, full bool) error {
	f.m.begin()
	defer f.m.mu.Unlock()
	if err := f.use(op); err != nil {
		return err
	}
	f.node.data.sync(full)
	return nil
}

// failSync is what a failed sync does under Linux: the pages count as clean, so that
// later syncs pass them over, though they are not on the disk. They still read as
// written until the crash. A new write to a page gives it another chance.
func (f *memFile) failSync() {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.use("sync") == nil {
		f.node.data.failSync()
	}
}

func (f *memFile) DropCache() error {
	f.m.begin()
	defer f.m.mu.Unlock()
	if err := f.use("fadvise"); err != nil {
		return err
	}
	f.resize(func(c *content) int { c.dropFailed(); return 0 })
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.m.begin()
	defer f.m.mu.Unlock()
	if err := f.change("truncate", size, 0); err != nil {
		return err
	}
	f.resize(func(c *content) int { c.truncate(size); return 0 })
	return nil
}

func (f *memFile) Allocate(off, n int64) error {
	f.m.begin()
	defer f.m.mu.Unlock()
	if err := f.change("allocate", off, n); err != nil {
		return err
	}
	if n == 0 {
		return f.fail("allocate", syscall.EINVAL)
	}
	fits := false
	f.resize(func(c *content) int { fits = c.allocate(off, n, f.m.room()); return 0 })
	if !fits {
		return mapErr(f.fail("allocate", syscall.ENOSPC))
	}
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.m.begin()
	defer f.m.mu.Unlock()
	if err := f.use("stat"); err != nil {
		return 0, err
	}
	return f.node.data.size, nil
}

func (f *memFile) Name() string { return f.name }

func (f *memFile) Close() error {
	f.m.begin()
	defer f.m.mu.Unlock()
	return f.close()
}

// close is Close with m.mu held.
func (f *memFile) close() error {
	if err := f.use("close"); err != nil {
		return err
	}
	f.closed = true
	f.node.open--
	f.m.free(f.node)
	return nil
}

// memLock is a lock on a file of a Mem.
type memLock struct{ f *memFile }

func (l *memLock) Close() error {
	l.f.m.begin()
	defer l.f.m.mu.Unlock()
	err := l.f.close()
	if err == nil {
		delete(l.f.m.mu.locks, l.f.node)
	}
	return err
}
