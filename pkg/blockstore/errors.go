package blockstore

import (
	"errors"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// The closed set of errors that this package's callers distinguish, by errors.Is.
// Every error carries a text that says what was wrong and what is allowed.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("already exists")
	ErrInUse    = errors.New("in use")        // attached, or attached elsewhere
	ErrBusy     = errors.New("busy")          // another operation on the same thing is running
	ErrInvalid  = errors.New("invalid")       // bad argument
	ErrRange    = errors.New("out of range")  // a size that cannot be had
	ErrFailed   = errors.New("failed closed") // a volume's journal or the catalog, after an I/O error (I8)
	ErrClosed   = errors.New("closed")
	// ErrOlder is a catalog older than the files beside it (I10).
	ErrOlder = errors.New("catalog is older than the store")

	ErrNoSpace = vfs.ErrNoSpace
	ErrLocked  = vfs.ErrLocked
	ErrFormat  = wal.ErrFormat
	ErrVersion = wal.ErrVersion
	ErrCorrupt = wal.ErrCorrupt
	// ErrMissing is a slot that no chunk file holds.
	ErrMissing = dedup.ErrMissing
)
