package device

import (
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/test/rig"
)

// subject is what random operations run on: an attached volume as a raw device, or a
// file in a file system on it.
type subject struct {
	e      *env
	volume string // its name
	kind   string // "raw", "ext4" or "xfs"
	unit   int64  // offsets and lengths are multiples of this
	file   *os.File
	device string
	dir    string // where the file system is mounted
}

const subjectFile = "subject"

// open attaches, mounts and opens. A raw device is opened for direct I/O.
func (s *subject) open() {
	s.e.Helper()
	s.device = s.e.attach(s.volume)
	s.openFile()
}

func (s *subject) openFile() {
	s.e.Helper()
	name, flags := s.device, os.O_RDWR|unix.O_DIRECT
	if s.kind != "raw" {
		s.dir = s.e.mount(s.kind, s.device, s.volume)
		name, flags = filepath.Join(s.dir, subjectFile), os.O_RDWR|os.O_CREATE
	}
	var err error
	if s.file, err = os.OpenFile(name, flags, 0o600); err != nil {
		s.e.Fatal(err)
	}
	f := s.file
	s.e.cleanup.Add("close "+name, func() error { f.Close(); return nil })
}

// close is the opposite of open. A file system must be clean then.
func (s *subject) close() {
	s.e.Helper()
	s.file.Close()
	if s.kind != "raw" {
		s.e.unmount(s.dir)
		s.e.fsck(s.kind, s.device)
	}
	s.e.detach(s.volume)
}

// bury lets go of a device whose daemon was killed.
func (s *subject) bury() {
	s.e.Helper()
	s.file.Close()
	if s.kind != "raw" {
		s.e.unmount(s.dir)
	}
}

func (s *subject) read(p []byte, off int64) error {
	n, err := s.file.ReadAt(p, off)
	if err != nil {
		return fmt.Errorf("read of %d at %d gave %d: %w", len(p), off, n, err)
	}
	return nil
}

func (s *subject) write(p []byte, off int64) error {
	_, err := s.file.WriteAt(p, off)
	return err
}

func (s *subject) punch(off, n int64) error {
	return s.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (s *subject) zero(off, n int64) error {
	return s.allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (s *subject) allocate(mode uint32, off, n int64) error {
	for {
		if err := unix.Fallocate(int(s.file.Fd()), mode, off, n); err != unix.EINTR {
			return err
		}
	}
}

// discard is BLKDISCARD on a raw device; a file has only punching.
func (s *subject) discard(off, n int64) error {
	if s.kind != "raw" {
		return s.punch(off, n)
	}
	return blockIoctl(s.file, unix.BLKDISCARD, off, n)
}

func (s *subject) sync() error { return s.file.Sync() }

// forget drops what the kernel caches of the file, so that reads reach the device.
func (s *subject) forget() error {
	if s.kind == "raw" {
		return nil
	}
	return unix.Fadvise(int(s.file.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// grow grows the volume, and the file system on it, while it is in use.
func (s *subject) grow(to int64) {
	s.e.Helper()
	s.e.do("volume", "resize", s.volume, "--size", fmt.Sprint(to))
	if got, err := rig.DeviceSize(s.device); err != nil || got != to {
		s.e.Fatalf("%s has %d bytes after growing, want %d (%v)", s.device, got, to, err)
	}
	switch s.kind {
	case "ext4":
		if rig.GrowsExt4() {
			s.e.run("resize2fs", s.device)
			return
		}
		s.file.Close()
		s.e.unmount(s.dir)
		s.e.run("e2fsck", "-fp", s.device)
		s.e.run("resize2fs", s.device)
		s.openFile()
	case "xfs":
		s.e.run("xfs_growfs", s.dir)
		// Linux cannot replay an xfs log that holds the growth and later changes of the
		// new allocation group, on any device: freezing writes the new size back first.
		s.e.run("fsfreeze", "-f", s.dir)
		s.e.run("fsfreeze", "-u", s.dir)
	}
}

// blockIoctl calls an ioctl that takes a range of a block device.
func blockIoctl(f *os.File, request uintptr, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&span)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// aligned makes a buffer for direct I/O: it starts at a page.
func aligned(n int64) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := int64(-uintptr(unsafe.Pointer(&b[0])) & (page - 1))
	return b[skip : skip+n : skip+n]
}
