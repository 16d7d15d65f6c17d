package export

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/leaktest"
)

// memDevice is a sparse Device in memory. The hooks, set before use, run before the
// operation and may wait or fail it.
type memDevice struct {
	onRead, onWrite func(off int64, n int) error
	onFlush         func() error
	onZero          func(off, n int64) error

	mu struct {
		sync.RWMutex
		blocks  map[int64]*[4096]byte
		size    int64
		flushed int // calls of Flush
		zeroed  int // calls of Discard and WriteZeroes
	}
}

func newMem(size int64) *memDevice {
	d := &memDevice{}
	d.mu.blocks = make(map[int64]*[4096]byte)
	d.mu.size = size
	return d
}

func (d *memDevice) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.mu.size
}

func (d *memDevice) grow(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.size = size
}

// copy is what a snapshot would have of the device.
func (d *memDevice) copy() *memDevice {
	d.mu.RLock()
	defer d.mu.RUnlock()
	c := newMem(d.mu.size)
	for at, b := range d.mu.blocks {
		block := *b
		c.mu.blocks[at] = &block
	}
	return c
}

func (d *memDevice) flushes() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.mu.flushed
}

func (d *memDevice) holes() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.mu.zeroed
}

func (d *memDevice) check(off, n int64) error {
	if off < 0 || n <= 0 || off%512 != 0 || n%512 != 0 || off+n > d.mu.size {
		return fmt.Errorf("bad range %d+%d", off, n)
	}
	return nil
}

func (d *memDevice) ReadAt(p []byte, off int64) (int, error) {
	if d.onRead != nil {
		if err := d.onRead(off, len(p)); err != nil {
			return 0, err
		}
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		m := min(4096-int(at%4096), len(p)-n)
		if b := d.mu.blocks[at/4096]; b != nil {
			copy(p[n:n+m], b[at%4096:])
		} else {
			clear(p[n : n+m])
		}
		n += m
	}
	return len(p), nil
}

func (d *memDevice) WriteAt(p []byte, off int64) (int, error) {
	if d.onWrite != nil {
		if err := d.onWrite(off, len(p)); err != nil {
			return 0, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		b := d.mu.blocks[at/4096]
		if b == nil {
			b = new([4096]byte)
			d.mu.blocks[at/4096] = b
		}
		n += copy(b[at%4096:], p[n:])
	}
	return len(p), nil
}

func (d *memDevice) Flush() error {
	if d.onFlush != nil {
		if err := d.onFlush(); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.flushed++
	return nil
}

func (d *memDevice) Discard(off, n int64) error     { return d.zero(off, n) }
func (d *memDevice) WriteZeroes(off, n int64) error { return d.zero(off, n) }

func (d *memDevice) zero(off, n int64) error {
	if d.onZero != nil {
		if err := d.onZero(off, n); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(off, n); err != nil {
		return err
	}
	d.mu.zeroed++
	for i, b := range d.mu.blocks {
		from, to := max(off, i*4096), min(off+n, (i+1)*4096)
		switch {
		case from >= to:
		case to-from == 4096:
			delete(d.mu.blocks, i)
		default:
			clear(b[from-i*4096 : to-i*4096])
		}
	}
	return nil
}

// needKernel skips a test that needs privileges when they are missing.
func needKernel(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("needs %s: %v", path, err)
		}
	}
}

func needPrograms(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: %v", name, err)
		}
	}
}

// needFilesystem skips a test where that type of filesystem cannot be made or mounted.
func needFilesystem(t testing.TB, fsType string, programs ...string) {
	t.Helper()
	needKernel(t)
	needPrograms(t, append(programs, "mkfs."+fsType)...)
	known, err := os.ReadFile("/proc/filesystems")
	ok(t, err)
	if !strings.Contains(string(known), "\t"+fsType+"\n") {
		t.Skipf("needs a kernel with %s", fsType)
	}
}

// attach makes a block device for the test; it is gone at its end.
func attach(t testing.TB, dev Device, o Options) (*Attached, Host) {
	t.Helper()
	needKernel(t)
	leaktest.Check(t)
	if o.Name == "" {
		o.Name = testName(t)
	}
	h := NewHost()
	a, err := Attach(t.Context(), h, dev, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := a.Detach(ctx); err != nil {
			t.Errorf("detach at the end: %v", err)
			if err := a.Abort(); err != nil {
				t.Error(err)
			}
		}
	})
	return a, h
}

func testName(t testing.TB) string {
	return fmt.Sprintf("test-%d-%s", os.Getpid(), strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' || r <= ' ' {
			return '_'
		}
		return r
	}, t.Name()))
}

// run runs a program that must succeed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ourLoops lists the loop devices of this test process and its children.
func ourLoops() []string {
	var out []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if p, err := os.ReadFile(f); err == nil && strings.Contains(string(p), fmt.Sprintf("granary.test-%d-", os.Getpid())) {
			out = append(out, strings.Split(f, "/")[3]+" "+strings.TrimSpace(string(p)))
		}
	}
	return out
}

// TestMain serves as the child of the crash tests, and otherwise checks that the tests
// leave no goroutine, descriptor or loop device.
func TestMain(m *testing.M) {
	if os.Getenv(deathEnv) != "" {
		os.Exit(die())
	}
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	_ = exec.Command("true").Run() // opens what the runtime keeps open
	_, _ = loopKeeper()            // lives as long as the process
	os.Exit(leaktest.Main(m))
}
