package export

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// keeper keeps loop devices open, so that nobody takes one away and its number is not
// used again, on a thread whose table of descriptors has nothing else in it. The last
// close of a block device writes back its page cache and waits for reads under way: at
// the death of this process, that must not come before /dev/fuse is closed, by whatever
// order a table is closed in (apart.go says what happens else; a raw device that somebody
// had written to through the page cache was enough).
type keeper struct {
	work chan func() // run on the keeper's thread
	open map[string]int
}

// loopKeeper is the process's one keeper; it lives as long.
var loopKeeper = sync.OnceValues(func() (*keeper, error) {
	if err := startPoller(); err != nil {
		return nil, err
	}
	k := &keeper{work: make(chan func()), open: make(map[string]int)}
	ready := make(chan error, 1)
	go k.run(ready)
	return k, <-ready
})

func (k *keeper) run(ready chan<- error) {
	runtime.LockOSThread() // for ever
	if unix.Gettid() == unix.Getpid() {
		go k.run(ready) // any thread but the first
		select {}       // which nobody else needs
	}
	if err := emptyTable(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for f := range k.work {
		f()
	}
}

// emptyTable gives this thread a table of descriptors with nothing in it but what Go's
// scheduler writes to on any thread.
func emptyTable() error {
	if err := leaveFUSE(); err != nil {
		return err
	}
	const table = "/proc/thread-self/fd"
	names, err := os.ReadDir(table)
	if err != nil {
		return err
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil {
			return fmt.Errorf("%s: %q: %w", table, n.Name(), err)
		}
		to, err := os.Readlink(table + "/" + n.Name())
		if err != nil || fd <= 2 || strings.HasPrefix(to, "anon_inode:") {
			continue // it is gone (the directory itself), or the scheduler's
		}
		_ = unix.Close(fd) // this thread's copy
	}
	return nil
}

// keep opens a device until drop.
func (k *keeper) keep(device string) error {
	done := make(chan error)
	k.work <- func() {
		fd, err := openDescriptor(unix.AT_FDCWD, device, unix.O_RDWR|unix.O_NONBLOCK)
		if err == nil {
			k.open[device] = fd
		}
		done <- err
	}
	return <-done
}

// drop closes a device that the caller has open as well, so that there is nothing to
// wait for. One that is not kept is none of its business.
func (k *keeper) drop(device string) {
	done := make(chan struct{})
	k.work <- func() {
		if fd, ok := k.open[device]; ok {
			_ = unix.Close(fd) // not the last close: nothing can fail
			delete(k.open, device)
		}
		close(done)
	}
	<-done
}
