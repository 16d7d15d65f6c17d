package export

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// A system call that waits for one of our own devices (an fsync, an unmount, the
// configuring of a loop device, which flushes the file) waits for an answer of this
// process. If the process is killed meanwhile, the thread that made the call cannot end
// before the answer comes, and it keeps the process's descriptors open with it, those of
// /dev/fuse too: the kernel does not see that the server is gone, and the answer never
// comes. What is left is a process that nothing can end, and with it whatever lock the
// call holds in the kernel: seen with a loop device that was being configured, after
// which no loop device of the machine could be opened any more.
//
// So such calls are made by a thread that has none of those descriptors. The death of the
// others then ends the connections, the call returns with an error, and the thread ends.

// fuseDescriptors are the descriptors of /dev/fuse in this process's table; there is one
// table, so there is one of these.
var fuseDescriptors struct {
	sync.Mutex // held over opening, closing and copying the table
	open       map[int]bool
}

// openFUSE opens /dev/fuse.
func openFUSE() (*os.File, error) {
	fuseDescriptors.Lock()
	defer fuseDescriptors.Unlock()
	f, err := openCloexec("/dev/fuse", unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	if fuseDescriptors.open == nil {
		fuseDescriptors.open = make(map[int]bool)
	}
	fuseDescriptors.open[int(f.Fd())] = true
	return f, nil
}

// closeFUSE closes what openFUSE has opened.
func closeFUSE(f *os.File) error {
	fuseDescriptors.Lock()
	defer fuseDescriptors.Unlock()
	delete(fuseDescriptors.open, int(f.Fd()))
	return f.Close()
}

// apart runs f on a thread of its own that has no descriptor of /dev/fuse. The thread has
// a copy of the table of descriptors: what f opens is unknown to everybody else and has
// to be closed by f, what f closes stays open elsewhere. f may use descriptors of the
// caller, and must not keep or return a file of its own.
func apart(f func() error) error { return onThread(leaveFUSE, f) }

// alone is apart for f that opens all it needs: its thread has none of the others'
// descriptors. Those of files that are removed meanwhile would keep the files' space, for
// as long as f waits; and on a full disk f may wait for just that space.
func alone(f func() error) error { return onThread(emptyTable, f) }

// onThread runs f on a thread of its own with the table of descriptors that leave makes.
func onThread(leave, f func() error) error {
	if err := startPoller(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go runApart(leave, f, done)
	return <-done
}

// startPoller has Go's scheduler open its own descriptors, which it does when it first
// needs them and on whatever thread that is: they have to be in everybody's table.
var startPoller = sync.OnceValue(func() error {
	r, w, err := os.Pipe() // a file that can be polled
	if err != nil {
		return err
	}
	r.Close()
	w.Close()
	return nil
})

func runApart(leave, f func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The process's first thread does not end with its goroutine. While this one
		// has it, the next cannot get it.
		defer runtime.UnlockOSThread()
		done <- onThread(leave, f)
		return
	}
	// Locked for ever: the thread ends with this goroutine, and its table with it.
	if err := leave(); err != nil {
		done <- err
		return
	}
	done <- f()
}

// leaveFUSE gives this thread a table of its own, without /dev/fuse.
func leaveFUSE() error {
	fuseDescriptors.Lock()
	defer fuseDescriptors.Unlock()
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("descriptors of one thread: %w", err)
	}
	for fd := range fuseDescriptors.open {
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("descriptors of one thread: %w", err)
		}
	}
	return nil
}

// apartValue is apart for a result beside the error.
func apartValue[T any](f func() (T, error)) (value T, err error) { return valueOf(apart, f) }

// aloneValue is alone for a result beside the error.
func aloneValue[T any](f func() (T, error)) (value T, err error) { return valueOf(alone, f) }

func valueOf[T any](run func(func() error) error, f func() (T, error)) (value T, err error) {
	err = run(func() error {
		var err error
		value, err = f()
		return err
	})
	return value, err
}

// openApart opens a file on a thread of its own and brings the descriptor back.
func openApart(open func() (int, error)) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	err = apart(func() error {
		fd, err := open()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return os.NewSyscallError("sendmsg", unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0))
	})
	if err != nil {
		return -1, err
	}
	return receiveFD(pair[1])
}

func receiveFD(socket int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, fmt.Errorf("a descriptor did not arrive: %w", unix.EBADMSG)
}
