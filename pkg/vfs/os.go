//go:build linux

package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Modes of what OS creates: other users have no business in a store.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// osFS is the file system of the operating system. It has no state.
type osFS struct{}

// NewOS returns the file system of the operating system. Errors carry the path and
// satisfy errors.Is for the errno as well as for the sentinels of this package. It is
// safe for concurrent use.
func NewOS() FS { return osFS{} }

func (osFS) Create(name string) (File, error) {
	return openOS(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (osFS) Open(name string) (File, error) { return openOS(name, os.O_RDWR) }

func (osFS) OpenReadOnly(name string) (File, error) {
	f, err := openOS(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	st, err := f.f.Stat()
	if err == nil && st.IsDir() {
		err = &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (osFS) Remove(name string) error { return mapErr(os.Remove(name)) }

func (osFS) Rename(oldname, newname string) error { return mapErr(os.Rename(oldname, newname)) }

func (o osFS) MkdirAll(dir string) error {
	return mkdirAll(dir, func(dir string) error { return os.Mkdir(dir, dirMode) }, o.SyncDir)
}

// mkdirAll syncs each parent in which it made a name:
//
//	mkdir(a); open(.); fsync; close; mkdir(a/b); open(a); fsync; close; ...
func mkdirAll(dir string, mkdir, syncDir func(dir string) error) error {
	st, err := os.Stat(dir)
	if err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if parent != dir {
		if err := mkdirAll(parent, mkdir, syncDir); err != nil {
			return err
		}
	}
	// Somebody else may have made it meanwhile; the name must be durable all the same.
	if err := mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return mapErr(err)
	}
	return syncDir(parent)
}

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) Stat(name string) (Info, error) {
	st, err := os.Stat(name)
	if err != nil {
		return Info{}, err
	}
	info := Info{IsDir: st.IsDir()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		info.Used = sys.Blocks * 512
	}
	if !info.IsDir {
		info.Size = st.Size()
	}
	return info, nil
}

func (osFS) SyncDir(dir string) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	return mapErr(errors.Join(err, f.Close()))
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := openOS(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	err = f.control("flock", func(fd int) error {
		return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (osFS) Space(dir string) (Space, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for errors.Is(err, unix.EINTR) {
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return Space{Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}, nil
}
