package sanity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/test/rig"
)

// kill kills the daemon, which must be gone then. A thread of it that waits in the
// kernel for one of its own devices would keep it from that for ever: the connection
// that it should answer stays open as long as the thread has it open. Such a process is
// told about and freed, so that it holds up nobody else.
func (e *env) kill() {
	e.Helper()
	err := e.daemon.Kill()
	if err == nil {
		return
	}
	e.Errorf("kill -9: %v\nits threads wait here:\n%s", err, stacks(e.daemon.PID()))
	e.must(e.abortFUSE())
	for end := time.Now().Add(10 * time.Second); e.daemon.Running(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			e.Fatal("the killed daemon is still there without its FUSE connections")
		}
	}
}

// stacks tells what the threads of a process wait for in the kernel.
func stacks(pid int) string {
	var all strings.Builder
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", pid))
	for _, name := range names {
		b, failed := os.ReadFile(name)
		err = errors.Join(err, failed)
		fmt.Fprintf(&all, "%s\n%s", name, b)
	}
	if err != nil {
		fmt.Fprintln(&all, err)
	}
	return all.String()
}

// abortFUSE ends the daemon's FUSE connections from the outside.
func (e *env) abortFUSE() error {
	numbers := fuseConnections(e.daemon.PID())
	if len(numbers) == 0 {
		return fmt.Errorf("process %d: no FUSE connection found", e.daemon.PID())
	}
	dir := e.path("fusectl")
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	if err := unix.Mount("none", dir, "fusectl", 0, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	var err error
	for number := range numbers {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, number, "abort"), []byte("1"), 0))
	}
	return errors.Join(err, rig.Unmount(e.ctx, dir))
}

// fuseConnections reads the numbers of a process's FUSE connections, which the kernel
// tells since 6.15. It looks at all threads: the main one of a killed process has no files
// any more.
func fuseConnections(pid int) map[string]bool {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/fdinfo/*", pid)) // the pattern is good
	numbers := map[string]bool{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(b)) {
			if number, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
				numbers[strings.TrimSpace(number)] = true
			}
		}
	}
	return numbers
}
