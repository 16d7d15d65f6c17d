package export

import (
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// fuseConn is a FUSE connection of this process.
type fuseConn struct {
	name     string
	readOnly bool
	dev      *os.File
	number   uint32 // of the connection, as fusectl names it

	mu struct {
		sync.Mutex
		mount *os.File // the mount's root; nil after OpenDisk or Close
	}
}

// OpenFUSE makes the mount with the descriptor-based calls and attaches it nowhere: no
// path leads to the file, and nobody stumbles over it.
func (h *localHost) OpenFUSE(o FUSEMount) (FUSEConn, error) {
	dev, err := openFUSE()
	if err != nil {
		return nil, err
	}
	mount, err := mountDetached("fuse", map[string]string{
		"source":   "granary",
		"subtype":  "granary",
		"fd":       strconv.Itoa(int(dev.Fd())),
		"rootmode": strconv.FormatUint(modeDir|0o700, 8),
		"user_id":  "0",
		"group_id": "0",
		"max_read": strconv.Itoa(maxRequest),
	})
	if err != nil {
		closeFUSE(dev)
		return nil, fmt.Errorf("mount FUSE: %w", err)
	}
	c := &fuseConn{name: o.Name, readOnly: o.ReadOnly, dev: dev}
	c.mu.mount = mount
	// Without asking the server, which does not run yet.
	var st unix.Statx_t
	if err := unix.Statx(int(mount.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		c.Close()
		return nil, fmt.Errorf("number of the FUSE connection: %w", err)
	}
	c.number = st.Dev_minor
	return c, nil
}

// mountDetached mounts a filesystem type into no namespace and returns its root.
func mountDetached(fsType string, params map[string]string) (*os.File, error) {
	fd, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fd)
	for key, value := range params {
		if err := unix.FsconfigSetString(fd, key, value); err != nil {
			return nil, fmt.Errorf("fsconfig %s: %w", key, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(mnt), fsType), nil
}

// openCloexec opens without Go's poller: reads block in the kernel.
func openCloexec(path string, flags int) (*os.File, error) {
	return openAt(unix.AT_FDCWD, path, flags)
}

func openAt(dir int, path string, flags int) (*os.File, error) {
	fd, err := openDescriptor(dir, path, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func openDescriptor(dir int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, path, flags|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

func (c *fuseConn) Dev() *os.File { return c.dev }

// OpenDisk closes the mount's root: the open file keeps the mount.
func (c *fuseConn) OpenDisk() (*os.File, error) {
	c.mu.Lock()
	mount := c.mu.mount
	c.mu.mount = nil
	c.mu.Unlock()
	if mount == nil {
		return nil, fmt.Errorf("open %s: %w", c.name, os.ErrClosed)
	}
	defer mount.Close()
	flags := unix.O_RDWR
	if c.readOnly {
		flags = unix.O_RDONLY
	}
	fd, err := openApart(func() (int, error) {
		return openDescriptor(int(mount.Fd()), c.name, flags|unix.O_NOFOLLOW|unix.O_NOCTTY)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), c.name), nil
}

func (c *fuseConn) Truncate(file *os.File, size int64) error {
	fd := int(file.Fd())
	return apart(func() error {
		for {
			err := unix.Ftruncate(fd, size)
			if err != unix.EINTR {
				return os.NewSyscallError("ftruncate", err)
			}
		}
	})
}

// Abort uses the control filesystem of FUSE, mounted nowhere either. Closing the
// descriptor would not do: a reader that waits in the kernel keeps it open.
func (c *fuseConn) Abort() error {
	ctl, err := mountDetached("fusectl", nil)
	if err != nil {
		return fmt.Errorf("abort FUSE: %w", err)
	}
	defer ctl.Close()
	f, err := openAt(int(ctl.Fd()), strconv.Itoa(int(c.number))+"/abort", unix.O_WRONLY)
	if os.IsNotExist(err) {
		return nil // gone already
	}
	if err != nil {
		return fmt.Errorf("abort FUSE: %w", err)
	}
	defer f.Close()
	if _, err := unix.Write(int(f.Fd()), []byte("1")); err != nil {
		return fmt.Errorf("abort FUSE: %w", err)
	}
	return nil
}

func (c *fuseConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.mount != nil {
		c.mu.mount.Close()
		c.mu.mount = nil
	}
	return closeFUSE(c.dev)
}
