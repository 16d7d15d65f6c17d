package export

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/pkg/vfs"
)

// Errors that callers distinguish, by errors.Is.
var (
	// ErrInUse is a device that cannot be detached or changed because it is mounted or open;
	// the message names the mount points or the holders.
	ErrInUse = errors.New("device in use")
	// ErrNotAttached is a device with nothing behind it, or that does not exist.
	ErrNotAttached = errors.New("no loop device attached")
	// ErrReadOnly is a device attached read-only that was to grow: detach it and
	// attach it again.
	ErrReadOnly = errors.New("attached read-only")
	// ErrInvalid is an argument that can never work: a name, a size, a sector size,
	// a filesystem type, a mount flag.
	ErrInvalid = errors.New("invalid argument")
)

// errnoOf is the only place that turns an error of a Device into what the kernel is
// told. It never gives ENOSYS or EOPNOTSUPP, whatever the device says: the kernel would
// remember those and turn later flushes into silent successes.
func errnoOf(err error) unix.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, vfs.ErrNoSpace):
		return unix.ENOSPC
	default:
		return unix.EIO
	}
}

// inUse names who holds the device.
func inUse(device string, by []string) error {
	if len(by) == 0 {
		by = []string{"an unknown process"}
	}
	return fmt.Errorf("%s: %w: %s", device, ErrInUse, strings.Join(by, ", "))
}
