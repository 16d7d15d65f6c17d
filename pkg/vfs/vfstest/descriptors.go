package vfstest

import (
	"sync/atomic"

	"github.com/k8ns/granary/pkg/vfs"
)

// Descriptors counts the files that a file system has handed out and not got back, for a
// hook of vfs.Faulty that shows it every operation that it lets happen. Its methods may be
// called concurrently. The zero value has seen none.
type Descriptors struct {
	n atomic.Int64
}

// See counts op.
func (d *Descriptors) See(op vfs.Op) {
	switch op.Kind {
	case vfs.OpCreate, vfs.OpOpen:
		d.n.Add(1)
	case vfs.OpClose:
		d.n.Add(-1)
	}
}

// Open returns how many files are open.
func (d *Descriptors) Open() int { return int(d.n.Load()) }
