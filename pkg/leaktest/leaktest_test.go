package leaktest

import (
	"os"
	"strings"
	"testing"
	"time"
)

// fakeT is a test that is about to end.
type fakeT struct {
	testing.TB
	clean  []func()
	failed string
}

func (f *fakeT) Helper()           {}
func (f *fakeT) Name() string      { return "TestFake" }
func (f *fakeT) Failed() bool      { return false }
func (f *fakeT) Skipped() bool     { return false }
func (f *fakeT) Cleanup(do func()) { f.clean = append(f.clean, do) }
func (f *fakeT) Errorf(format string, args ...any) {
	f.failed = args[0].(string)
}

func (f *fakeT) end() {
	for _, do := range f.clean {
		do()
	}
	f.clean = nil
}

// What a test leaves is told, and what it has let go of is not.
func TestCheck(t *testing.T) {
	defer func(d time.Duration) { patience = d }(patience)
	patience = 50 * time.Millisecond
	stop, ended := make(chan struct{}), make(chan struct{})
	for name, leave := range map[string]func() (undo func()){
		"goroutine": func() func() {
			go func() {
				<-stop
				close(ended)
			}()
			return func() {
				close(stop)
				<-ended
			}
		},
		"descriptor": func() func() {
			f, err := os.Create(t.TempDir() + "/file")
			if err != nil {
				t.Fatal(err)
			}
			return func() { f.Close() }
		},
		"descriptor of a file of the kernel's": func() func() {
			f, err := os.Open("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			return func() { f.Close() }
		},
	} {
		kind, _, _ := strings.Cut(name, " ")
		f := &fakeT{TB: t}
		before := take("")
		Check(f)
		Check(f) // looks no second time
		undo := leave()
		if left := before.more(take("")); len(left) != 1 || !strings.HasPrefix(left[0], kind) {
			t.Errorf("%s: left is %q", name, left)
		}
		f.end()
		if !strings.HasPrefix(f.failed, kind) || strings.Contains(f.failed, "\n"+kind) {
			t.Errorf("%s: told is %q", name, f.failed)
		}
		undo()
		f.failed = ""
		Check(f)
		f.end()
		if f.failed != "" {
			t.Errorf("%s: told when it had ended: %s", name, f.failed)
		}
	}
}

// Mounts and loop devices of others do not matter.
func TestOurs(t *testing.T) {
	h := take("TestOurs")
	for text, want := range map[string]bool{
		"36 35 98:0 / /tmp/TestOurs123/001/mnt rw": true, "36 35 98:0 / /tmp/TestOther1/001 rw": false, "/granary": false,
	} {
		if h.ours(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
