package export

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	loopTries = 64 // others take loop devices at the same time
	loopNodes = "/dev/loop"
	// loopSettle is how long a short visitor (a probe that looks at new devices) may
	// have a device open before it counts as in use.
	loopSettle = time.Second
	loopPoll   = 10 * time.Millisecond
	loopWrites = 96 // of a loop device's 128 requests
)

func (h *localHost) AttachLoop(file *os.File, o LoopOptions) (Loop, error) {
	keep, err := loopKeeper()
	if err != nil {
		return Loop{}, err
	}
	defer runtime.KeepAlive(file)
	return apartValue(func() (Loop, error) { return attachLoop(keep, file, o) })
}

// attachLoop runs apart: configuring a device flushes the file.
func attachLoop(keep *keeper, file *os.File, o LoopOptions) (Loop, error) {
	ctl, err := openCloexec("/dev/loop-control", unix.O_RDWR)
	if err != nil {
		return Loop{}, err
	}
	defer ctl.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return Loop{}, fmt.Errorf("free loop device: %w", err)
		}
		err = tryLoop(keep, n, file, o)
		if err == nil {
			return Loop{Path: loopPath(n), Number: n}, nil
		}
		if err != unix.EBUSY && err != unix.ENXIO { // somebody was faster, or it is going
			return Loop{}, fmt.Errorf("configure %s: %w", loopPath(n), err)
		}
		time.Sleep(time.Millisecond)
	}
	return Loop{}, fmt.Errorf("no loop device free after %d tries", loopTries)
}

// tryLoop puts loop device n on the file and has it kept open.
func tryLoop(keep *keeper, n int, file *os.File, o LoopOptions) error {
	dev, err := openLoop(n)
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := configureLoop(dev, file, o); err != nil {
		return err
	}
	if err := keep.keep(loopPath(n)); err != nil {
		return errors.Join(err, unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0))
	}
	leaveRoomForReads(n)
	return nil
}

// leaveRoomForReads lets writes have at most loopWrites of the requests that loop device n
// can have under way: when many wait for space, reads go on. It is the kernel's mq-deadline
// scheduler that keeps count; without it (a kernel built so, a sysfs that is read-only) only
// that is missing.
func leaveRoomForReads(n int) {
	if !setScheduler(n, "mq-deadline") {
		return
	}
	depth := []byte(strconv.Itoa(loopWrites))
	if os.WriteFile(sysfsLoop(n, "queue/async_depth"), depth, 0) != nil { // not before Linux 7.0
		_ = os.WriteFile(sysfsLoop(n, "queue/iosched/async_depth"), depth, 0)
	}
}

func setScheduler(n int, name string) bool {
	return os.WriteFile(sysfsLoop(n, "queue/scheduler"), []byte(name), 0) == nil
}

func configureLoop(dev, file *os.File, o LoopOptions) error {
	c := unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(o.SectorBytes)}
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if o.ReadOnly {
		c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(c.Info.File_name[:], loopName(o.Name))
	for range loopTries {
		err := unix.IoctlLoopConfigure(int(dev.Fd()), &c)
		if err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
	return unix.EBUSY
}

func loopPath(n int) string { return loopNodes + strconv.Itoa(n) }

// loopNumber takes the N out of /dev/loopN.
func loopNumber(device string) (int, error) {
	s, ok := strings.CutPrefix(device, loopNodes)
	n, err := strconv.Atoi(s)
	if !ok || err != nil || n < 0 || loopPath(n) != device {
		return 0, fmt.Errorf("loop device %q: %w", device, ErrInvalid)
	}
	return n, nil
}

// openLoop opens /dev/loopN and makes the node if nobody else does.
func openLoop(n int) (*os.File, error) {
	path := loopPath(n)
	f, err := openCloexec(path, unix.O_RDWR|unix.O_NONBLOCK)
	if !os.IsNotExist(err) {
		return f, err
	}
	time.Sleep(50 * time.Millisecond) // udev
	major, minor, err := sysfsDevice(n)
	if err != nil {
		return nil, err
	}
	err = unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(major, minor)))
	if err != nil && err != unix.EEXIST {
		return nil, &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	return openCloexec(path, unix.O_RDWR|unix.O_NONBLOCK)
}

func sysfsLoop(n int, name string) string {
	return filepath.Join("/sys/block/loop"+strconv.Itoa(n), name)
}

// sysfsDevice reads the device number of loop device n.
func sysfsDevice(n int) (major, minor uint32, err error) {
	p, err := os.ReadFile(sysfsLoop(n, "dev"))
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscanf(string(p), "%d:%d", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("device number of loop%d: %w", n, err)
	}
	return major, minor, nil
}

// LoopBacking reads sysfs first, which never asks the server of the backing file.
func (h *localHost) LoopBacking(device string) (Backing, error) {
	n, err := loopNumber(device)
	if err != nil {
		return Backing{}, err
	}
	file, err := backingFile(n)
	if err != nil {
		return Backing{}, err
	}
	b := Backing{File: file}
	if b.Major, b.Minor, err = sysfsDevice(n); err != nil {
		return Backing{}, err
	}
	info, err := apartValue(func() (*unix.LoopInfo64, error) { return loopStatus(device) })
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Backing{}, err
	case err == unix.ENXIO:
		return Backing{}, fmt.Errorf("%s: %w", device, ErrNotAttached)
	case err != nil:
		return b, nil // the backing filesystem is dead: what sysfs told is all there is
	}
	b.Name = unix.ByteSliceToString(info.File_name[:])
	b.Device, b.Inode = info.Device, info.Inode
	b.ReadOnly = info.Flags&unix.LO_FLAGS_READ_ONLY != 0
	return b, nil
}

// loopStatus asks the driver, which asks the server of the backing file.
func loopStatus(device string) (*unix.LoopInfo64, error) {
	f, err := openCloexec(device, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}

// backingFile is the path of the file behind loop device n.
func backingFile(n int) (string, error) {
	p, err := os.ReadFile(sysfsLoop(n, "loop/backing_file"))
	if os.IsNotExist(err) || errors.Is(err, unix.ENODEV) {
		return "", fmt.Errorf("%s: %w", loopPath(n), ErrNotAttached)
	}
	return strings.TrimSuffix(string(p), "\n"), err
}

func (h *localHost) GrowLoop(device string) error {
	return apart(func() error {
		f, err := openCloexec(device, unix.O_RDWR|unix.O_NONBLOCK)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
			return fmt.Errorf("grow %s: %w", device, err)
		}
		return nil
	})
}

func (h *localHost) DetachLoop(ctx context.Context, device string, lazy bool) error {
	keep, err := loopKeeper()
	if err != nil {
		return err
	}
	return apart(func() error { return detachLoop(ctx, keep, device, lazy) })
}

// detachLoop runs apart: the last close waits for the device, and this has it.
func detachLoop(ctx context.Context, keep *keeper, device string, lazy bool) error {
	n, err := loopNumber(device)
	if err != nil {
		return err
	}
	file, err := backingFile(n)
	if err != nil {
		keep.drop(device)
		return err
	}
	f, err := openCloexec(device, unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	keep.drop(device)
	if err := clearLoop(ctx, f, device, lazy); err != nil {
		return errors.Join(err, keep.keep(device), f.Close())
	}
	if err := f.Close(); err != nil { // the last close clears the device
		return fmt.Errorf("close %s: %w", device, err)
	}
	if lazy {
		return nil
	}
	if err := waitGone(ctx, n, file); err != nil {
		return err
	}
	setScheduler(n, "none") // the kernel's default for a loop device
	return nil
}

// clearLoop marks the device to go with its last opener, and unless lazy makes sure
// that this is f. The kernel has no call that asks who else is there, but it tells
// afterwards: with one opener the device stops being bound at once. With more, the
// mark is taken back.
func clearLoop(ctx context.Context, f *os.File, device string, lazy bool) error {
	deadline := time.Now().Add(loopSettle)
	for {
		err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		if err == unix.ENXIO || err == nil && lazy {
			return nil
		}
		if err != nil {
			return fmt.Errorf("clear %s: %w", device, err)
		}
		bound, err := unmarkLoop(f)
		if err != nil {
			return fmt.Errorf("clear %s: %w", device, err)
		}
		if !bound {
			return nil
		}
		if time.Now().After(deadline) {
			return inUse(device, openers(device))
		}
		select {
		case <-ctx.Done():
			return inUse(device, openers(device))
		case <-time.After(loopPoll):
		}
	}
}

// unmarkLoop takes back the mark if the device is still bound.
func unmarkLoop(f *os.File) (bound bool, err error) {
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err == unix.ENXIO {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil && err != unix.ENXIO {
		return true, err
	}
	return true, nil
}

// waitGone waits until file is no longer behind loop device n.
func waitGone(ctx context.Context, n int, file string) error {
	for {
		now, err := backingFile(n)
		if err != nil || now != file {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to go: %w", loopPath(n), context.Cause(ctx))
		case <-time.After(loopPoll):
		}
	}
}

// openers names, as far as it can see them, the devices on top of a device and the
// processes that have it open.
func openers(device string) []string {
	var by []string
	n, err := loopNumber(device)
	if err != nil {
		return nil
	}
	if holders, err := os.ReadDir(sysfsLoop(n, "holders")); err == nil {
		for _, e := range holders {
			by = append(by, "held by "+e.Name())
		}
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*") // only a bad pattern is an error
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || target != device {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		if pid == strconv.Itoa(os.Getpid()) {
			continue // the host itself
		}
		comm, _ := os.ReadFile("/proc/" + pid + "/comm") // empty if it has ended
		if who := fmt.Sprintf("open in process %s (%s)", pid, strings.TrimSpace(string(comm))); len(by) == 0 || by[len(by)-1] != who {
			by = append(by, who)
		}
	}
	return by
}

func (h *localHost) DeviceSize(device string) (int64, error) {
	return aloneValue(func() (int64, error) { return deviceSize(device) })
}

func deviceSize(device string) (int64, error) {
	f, err := openCloexec(device, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var size uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, fmt.Errorf("size of %s: %w", device, errno)
	}
	return int64(size), nil
}

func (h *localHost) FlushDevice(device string) error {
	return alone(func() error { return flushDevice(device) })
}

func flushDevice(device string) error {
	f, err := openCloexec(device, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err := unix.Fsync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("flush %s: %w", device, err)
		}
	}
}
