// Package leaktest audits what tests leave behind: goroutines, open descriptors, mounts
// and loop devices.
//
// Check is called by what a package's tests make their subjects with (a store, a catalog,
// a daemon), so that it looks after every one of these tests; Main looks once more after
// all of them. Both compare with a moment before, so that what others hold does not matter.
// It must not know what is tested.
package leaktest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long what is ending may take to end.
var patience = 10 * time.Second

// Check fails the test if at its end, behind the clean-ups that it registers from now on,
// there is more than there is now. It may be called several times in a test and its
// subtests: the first call looks, until the end of who made it. A test whose subtests run
// beside each other calls it before them, for none of them knows what is the others'.
// While fuzzing it does nothing: that has goroutines of its own.
func Check(t testing.TB) {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	if fuzzing() || !looking.begin(name) {
		return
	}
	before := take(name)
	t.Cleanup(func() {
		t.Helper()
		defer looking.end(name)
		if t.Failed() || t.Skipped() { // it may have stopped anywhere
			return
		}
		if left := before.wait(); len(left) > 0 {
			t.Errorf("the test leaves:\n%s", strings.Join(left, "\n"))
		}
	})
}

// Main runs a package's tests and tells how they ended: not well if they leave anything.
// It is for TestMain, after everything was used that lives as long as the process.
func Main(m *testing.M) int {
	before := take("")
	code := m.Run()
	if code != 0 || fuzzing() {
		return code
	}
	if left := before.wait(); len(left) > 0 {
		fmt.Printf("LEAK: the tests leave:\n%s\n", strings.Join(left, "\n"))
		return 1
	}
	return code
}

// looking are the tests that are being looked after, by name.
var looking tests

type tests struct {
	mu    sync.Mutex
	names map[string]bool
}

// begin is false if the test is looked after already.
func (l *tests) begin(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names[name] {
		return false
	}
	if l.names == nil {
		l.names = make(map[string]bool)
	}
	l.names[name] = true
	return true
}

func (l *tests) end(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.names, name)
}

func fuzzing() bool {
	f := flag.Lookup("test.fuzz")
	return f != nil && f.Value.String() != ""
}

// holdings are what the process has, each thing by a name that stays the same. The value
// says more of it.
type holdings struct {
	test   string // name of the test whose they are
	things map[string]string
}

func take(test string) holdings {
	h := holdings{test, make(map[string]string)}
	h.goroutines()
	h.descriptors()
	h.mounts()
	h.loops()
	return h
}

// wait waits until there is nothing more than h, and describes what is.
func (h holdings) wait() []string {
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		left := h.more(take(h.test))
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// more describes what is in now and not in h.
func (h holdings) more(now holdings) (left []string) {
	for name, text := range now.things {
		if _, ok := h.things[name]; !ok {
			left = append(left, name+" "+text)
		}
	}
	slices.Sort(left)
	return left
}

// goroutines notes each goroutine but those of the runtime's and of package testing.
func (h holdings) goroutines() {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	for _, stack := range strings.Split(string(buf), "\n\n") {
		// The first line is "goroutine 7 [select]:".
		name, text, ok := strings.Cut(stack, " [")
		if !ok || isHarness(stack) {
			continue
		}
		h.things[name] = "[" + text
	}
}

// isHarness tells goroutines that tests, signals and profiles need from those of the tested.
func isHarness(stack string) bool {
	_, creator, _ := strings.Cut(stack, "\ncreated by ")
	for _, of := range []string{"testing.", "os/signal.", "runtime.", "runtime/pprof.", "runtime/trace."} {
		if strings.HasPrefix(creator, of) {
			return true
		}
	}
	return creator == "" // the main one
}

// descriptors notes each open file that is not the runtime's own.
func (h holdings) descriptors() {
	list := fmt.Sprintf("/proc/%d/fd", os.Getpid())
	links, _ := filepath.Glob(list + "/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || target == list || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue // the list of them is open too while somebody reads it
		}
		h.things["descriptor "+filepath.Base(link)+" of "+target] = ""
	}
}

// mounts notes the mounts of the test.
func (h holdings) mounts() {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && h.ours(line) {
			h.things["mount "+f[0]+" at "+f[4]] = line
		}
	}
}

// loops notes the loop devices of the test.
func (h holdings) loops() {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err == nil && h.ours(string(backing)) {
			h.things["loop device "+strings.Split(file, "/")[3]] = "of " + strings.TrimSpace(string(backing))
		}
	}
}

// ours tells the test's mounts and loop devices, which are the whole machine's, from
// others': by the directory that was made for it, or by the number of the process.
func (h holdings) ours(text string) bool {
	return h.test != "" && strings.Contains(text, "/"+h.test) || strings.Contains(text, fmt.Sprintf("-%d-", os.Getpid()))
}
