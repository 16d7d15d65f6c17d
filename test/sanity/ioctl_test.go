package sanity

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// discard tells a block device that a range is unused.
func discard(f *os.File, offset, length int64) error {
	span := [2]uint64{uint64(offset), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return fmt.Errorf("discard %d bytes at %d: %w", length, offset, errno)
	}
	return nil
}
