package blockstore

import (
	"errors"
	"hash/crc32"
	"io"
	"strings"

	"github.com/k8ns/granary/pkg/vfs"
)

// simFS is what the engine sees of a simDisk. The hook of the Faulty below has decided how
// an operation ends and hashed what was asked for; here its result goes into the digest,
// what a read returned included.
type simFS struct{ d *simDisk }

// result hashes how an operation ended. One whose death comes after it has happened, but
// before anybody knows.
func (d *simDisk) result(n int64, content []byte, err error) error {
	if d.last {
		d.last, d.dead, err = false, true, errDead
	}
	d.mix(uint64(n), uint64(crc32.Checksum(content, castagnoli)))
	if err != nil {
		d.mixString(err.Error())
	}
	return err
}

func (f simFS) open(file vfs.File, err error) (vfs.File, error) {
	if err := f.d.result(0, nil, err); err != nil {
		return nil, err
	}
	return &simFile{f.d, file, f.d.watch.at(file.Name())}, nil
}

func (f simFS) Create(name string) (vfs.File, error) {
	file, err := f.d.fs.Create(name)
	f.d.watch.named(vfs.OpCreate, name, "", err)
	return f.open(file, err)
}

func (f simFS) Open(name string) (vfs.File, error)         { return f.open(f.d.fs.Open(name)) }
func (f simFS) OpenReadOnly(name string) (vfs.File, error) { return f.open(f.d.fs.OpenReadOnly(name)) }

func (f simFS) MkdirAll(dir string) error { return f.d.result(0, nil, f.d.fs.MkdirAll(dir)) }
func (f simFS) SyncDir(dir string) error  { return f.d.result(0, nil, f.d.fs.SyncDir(dir)) }

func (f simFS) Remove(name string) error {
	err := f.d.fs.Remove(name)
	f.d.watch.named(vfs.OpRemove, name, "", err)
	return f.d.result(0, nil, err)
}

func (f simFS) Rename(oldname, newname string) error {
	err := f.d.fs.Rename(oldname, newname)
	f.d.watch.named(vfs.OpRename, oldname, newname, err)
	return f.d.result(0, nil, err)
}

func (f simFS) ReadDir(dir string) ([]string, error) {
	names, err := f.d.fs.ReadDir(dir)
	return names, f.d.result(int64(len(names)), []byte(strings.Join(names, "/")), err)
}

func (f simFS) Stat(name string) (vfs.Info, error) {
	info, err := f.d.fs.Stat(name)
	f.d.mix(uint64(info.Used))
	return info, f.d.result(info.Size, nil, err)
}

func (f simFS) Lock(name string) (io.Closer, error) {
	lock, err := f.d.fs.Lock(name)
	return lock, f.d.result(0, nil, err)
}

func (f simFS) Space(dir string) (vfs.Space, error) {
	s, err := f.d.fs.Space(dir)
	return s, f.d.result(s.Free, nil, err)
}

// simFile is an open file of a simFS.
type simFile struct {
	d     *simDisk
	inner vfs.File
	inode *simInode
}

func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.inner.ReadAt(p, off)
	return n, f.d.result(int64(n), p[:n], err)
}

func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.inner.WriteAt(p, off)
	return n, f.d.result(int64(n), nil, err)
}

func (f *simFile) WriteVec(bufs [][]byte, off int64) (int, error) {
	n, err := f.inner.WriteVec(bufs, off)
	return n, f.d.result(int64(n), nil, err)
}

func (f *simFile) Sync() error     { return f.synced(vfs.OpSync, f.inner.Sync()) }
func (f *simFile) Datasync() error { return f.synced(vfs.OpDatasync, f.inner.Datasync()) }
func (f *simFile) Close() error    { return f.d.result(0, nil, f.inner.Close()) }
func (f *simFile) Name() string    { return f.inner.Name() }

func (f *simFile) synced(kind vfs.OpKind, err error) error {
	if !errors.Is(err, errDead) { // who is dead has not tried
		f.d.watch.synced(f.inode, kind, f.inner.Name(), err)
	}
	return f.d.result(0, nil, err)
}

func (f *simFile) DropCache() error {
	err := f.inner.DropCache()
	f.d.watch.dropped(f.inode, err)
	return f.d.result(0, nil, err)
}

func (f *simFile) Truncate(size int64) error { return f.d.result(0, nil, f.inner.Truncate(size)) }

func (f *simFile) Allocate(off, n int64) error { return f.d.result(0, nil, f.inner.Allocate(off, n)) }

func (f *simFile) Size() (int64, error) {
	n, err := f.inner.Size()
	return n, f.d.result(n, nil, err)
}
