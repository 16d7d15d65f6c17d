package sanity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/test/rig"
)

// auditData is what has to be true after the data tests of one daemon.
func (e *env) auditData() {
	e.Helper()
	if !e.daemon.Running() {
		e.Errorf("the daemon has ended:\n%s", e.daemon.LogTail(25))
		return
	}
	e.nothingLeft()
	e.wholeStore()
	e.soundLog()
}

// nothingLeft wants that nothing is there of what was made through the CSI socket.
func (e *env) nothingLeft() {
	e.Helper()
	volumes, err := e.client.controller.ListVolumes(e.ctx, &csi.ListVolumesRequest{})
	e.must(err)
	for _, v := range volumes.GetEntries() {
		e.Errorf("a volume is left: %v", v)
	}
	snapshots, err := e.client.controller.ListSnapshots(e.ctx, &csi.ListSnapshotsRequest{})
	e.must(err)
	for _, s := range snapshots.GetEntries() {
		e.Errorf("a snapshot is left: %v", s)
	}
	mounts, err := rig.MountsBelow(e.dir)
	e.must(err)
	for _, m := range mounts {
		e.Errorf("a mount is left: %s", m)
	}
	devices, err := loops(e.log())
	e.must(err)
	for _, device := range devices {
		e.Errorf("a loop device is left: %s", device)
	}
	e.noPaths()
}

// noPaths wants the directories for staging and targets to be empty.
func (e *env) noPaths() {
	e.Helper()
	for _, pattern := range []string{"staging/*", "pods/*/*", "target", "staging"} {
		left, err := filepath.Glob(filepath.Join(e.dir, "mnt", pattern))
		e.must(err)
		for _, path := range left {
			if info, err := os.Lstat(path); err == nil && pattern == "staging" && info.IsDir() && isEmpty(path) {
				continue // the data tests' own
			}
			e.Errorf("a path is left: %s", path)
		}
	}
}

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0
}

var volumeID = regexp.MustCompile(`v-[0-9a-f]{32}`)

// loops lists the loop devices of this daemon's volumes, present or past: others may use
// loop devices at the same time. The log knows all volumes.
func loops(log string) (devices []string, err error) {
	ours := map[string]bool{}
	for _, id := range volumeID.FindAllString(log, -1) {
		ours[id] = true
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err == nil && ours[volumeID.FindString(string(backing))] {
			devices = append(devices, "/dev/"+strings.Split(file, "/")[3])
		}
	}
	return devices, err
}

// detachLoops takes away what a killed daemon has left.
func detachLoops(d *rig.Daemon) error {
	log, err := os.ReadFile(d.LogFile())
	if err != nil {
		return err
	}
	left, err := loops(string(log))
	for _, device := range left {
		_, failed := rig.Run(context.Background(), 0, "losetup", "-d", device)
		err = errors.Join(err, failed)
	}
	return err
}

// wholeStore ends the daemon in order and checks the store.
func (e *env) wholeStore() {
	e.Helper()
	e.stop()
	if out, err := e.daemon.Do(e.ctx, "check", "--read-data"); err != nil {
		e.Errorf("check: %v\n%s", err, out)
	}
}

func (e *env) log() string {
	e.Helper()
	b, err := os.ReadFile(e.daemon.LogFile())
	e.must(err)
	return string(b)
}

// faults are codes that no caller can provoke: they are the driver's own failures.
var faults = []string{"code=Internal", "code=Unknown", "code=DataLoss"}

// soundLog wants no sign of a bug in the daemon's log.
func (e *env) soundLog() {
	e.Helper()
	log := e.log()
	for _, bad := range []string{"WARNING: DATA RACE", "panic:", "panic in a CSI call", "fatal error:"} {
		if i := strings.Index(log, bad); i >= 0 {
			e.Errorf("the daemon's log:\n%.6000s", log[i:])
		}
	}
	told := 0
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "level=ERROR") || isCallersFault(line) {
			continue
		}
		if told++; told <= 10 {
			e.Errorf("the daemon's log: %.1500s", line)
		}
	}
}

// isCallersFault tells whether a line of the log is about a call that was refused with
// good reason.
func isCallersFault(line string) bool {
	has := func(code string) bool { return strings.Contains(line, " "+code+" ") }
	return strings.Contains(line, `msg="CSI call"`) && strings.Contains(line, " code=") && !slices.ContainsFunc(faults, has)
}

// files counts the daemon's open files, by what they are of.
type files map[string]int

// files looks at all threads: some of the daemon's have a table of files of their own, for
// devices. What threads share is counted once.
func (e *env) files() files {
	e.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/fd/*", e.daemon.PID()))
	e.must(err)
	devices := map[string]bool{}
	count := files{}
	own := fmt.Sprintf("/task/%d/", e.daemon.PID())
	for _, name := range names {
		target, err := os.Readlink(name)
		switch {
		case err != nil || target == "/dev/fuse": // closed meanwhile; counted below
		case strings.HasPrefix(target, "/dev/loop"):
			devices[target] = true
		case !strings.Contains(name, own):
		case strings.HasPrefix(target, "socket:"):
			count["sockets"]++
		case strings.HasPrefix(target, e.daemon.DataDir()):
			count[ofStore]++
		default:
			count["other"]++
		}
	}
	count["loop devices"] = len(devices)
	count["FUSE connections"] = len(fuseConnections(e.daemon.PID()))
	return count
}

const (
	ofStore = "files of the store"
	// moreOfStore is how many of them may be open more than before: chunk files and
	// journal segments come and go with its content.
	moreOfStore = 8
)

// filesBack wants the daemon to hold no more open files than before.
func (e *env) filesBack(before files) {
	e.Helper()
	var more []string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		more = nil
		for kind, n := range e.files() {
			slack := 0
			if kind == ofStore {
				slack = moreOfStore
			}
			if n > before[kind]+slack {
				more = append(more, fmt.Sprintf("%s: %d, before %d", kind, n, before[kind]))
			}
		}
		if len(more) == 0 {
			return
		}
		if time.Now().After(end) {
			e.Errorf("the daemon has more open files than before: %s", strings.Join(more, "; "))
			return
		}
	}
}

var goroutine = regexp.MustCompile(`(?m)^goroutine \d+ `)

// goroutines ends the daemon so that it tells what each of its goroutines does, starts it
// again, and returns how many there were, and what they did.
func (e *env) goroutines() (count int, trace string) {
	e.Helper()
	before := len(e.log())
	if err := syscall.Kill(e.daemon.PID(), syscall.SIGQUIT); err != nil {
		e.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); e.daemon.Running(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			e.Fatal("the daemon is still there 10 s after SIGQUIT")
		}
	}
	trace = e.log()[before:]
	e.serve()
	return len(goroutine.FindAllString(trace, -1)), trace
}
