// Package vfs is the only place that touches local files. The engine sees files
// through FS and File, so that crashes, full disks and I/O errors are inputs to
// tests: OS is the real thing, Mem keeps files in memory and can lose whatever was
// not synced, Faulty fails chosen operations of another FS.
//
// It knows nothing of volumes, chunks or records.
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// Errors that callers distinguish, by errors.Is. OS maps errno values to them.
var (
	ErrNotExist = fs.ErrNotExist
	ErrExist    = fs.ErrExist
	// ErrNoSpace is a full disk or an exhausted quota.
	ErrNoSpace = errors.New("no space left on device")
	// ErrLocked is returned by Lock when another process holds the lock.
	ErrLocked = errors.New("locked by another process")
)

// FS is a tree of files. Names are slash-separated paths as the OS takes them. All
// methods may be called concurrently.
type FS interface {
	// Create makes a new file open for reading and writing; ErrExist if it is there.
	// The name is durable only after SyncDir of its directory.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// OpenReadOnly opens an existing file for reading.
	OpenReadOnly(name string) (File, error)
	Remove(name string) error
	// Rename replaces newname atomically; durable after SyncDir of the directory.
	Rename(oldname, newname string) error
	// MkdirAll makes a directory and its parents and makes their names durable.
	MkdirAll(dir string) error
	// ReadDir lists the names in a directory, sorted.
	ReadDir(dir string) ([]string, error)
	// Stat tells about a file or directory.
	Stat(name string) (Info, error)
	// SyncDir makes the names in dir durable.
	SyncDir(dir string) error
	// Lock takes an exclusive lock on the file name, making it if need be, until the
	// result is closed or the process ends; ErrLocked if somebody else has it. The
	// lock is not passed on to child processes.
	Lock(name string) (io.Closer, error)
	// Space tells the size and the free bytes of the disk that holds dir.
	Space(dir string) (Space, error)
}

// Info describes a file.
type Info struct {
	Size  int64 // bytes
	Used  int64 // bytes allocated on the disk
	IsDir bool
}

// Space describes a disk, in bytes.
type Space struct{ Total, Free int64 }

// File is an open file. All methods may be called concurrently. After Sync or
// Datasync failed, unsynced data must be taken as lost and the file must not be
// synced again (I8).
type File interface {
	// ReadAt is io.ReaderAt: fewer bytes than asked come with an error.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt is io.WriterAt.
	WriteAt(p []byte, off int64) (int, error)
	// WriteVec writes the buffers one behind the other in one operation.
	WriteVec(bufs [][]byte, off int64) (int, error)
	// Sync makes content, size and allocation durable (fsync).
	Sync() error
	// Datasync makes content durable, and the size if it is needed to read the
	// content back (fdatasync).
	Datasync() error
	// DropCache has later reads come from the disk: what a failed sync left in memory
	// only is seen no more. What was written and not synced since stays.
	DropCache() error
	Truncate(size int64) error
	// Allocate reserves disk space for the range, extending the file if need be.
	// The range reads as zeros where nothing was written.
	Allocate(off, n int64) error
	Size() (int64, error)
	Name() string
	Close() error
}
