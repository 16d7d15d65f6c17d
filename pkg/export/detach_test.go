package export_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/pkg/export/exporttest"
)

// flushed is a device in memory that notes its flushes beside what the host was asked.
type flushed struct {
	host *exporttest.Host
	size int64

	mu    sync.Mutex
	calls []int // how many calls the host had had, for each flush
	err   error // what a flush answers
}

func (d *flushed) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (d *flushed) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (d *flushed) Discard(_, _ int64) error               { return nil }
func (d *flushed) WriteZeroes(_, _ int64) error           { return nil }
func (d *flushed) Size() int64                            { return d.size }
func (d *flushed) Flush() error {
	n := len(d.host.Calls())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, n)
	return d.err
}

func attachFlushed(t *testing.T, name string) (*flushed, *export.Attached) {
	t.Helper()
	d := &flushed{host: exporttest.NewHost(), size: 1 << 20}
	a, err := export.Attach(context.Background(), d.host, d, export.Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return d, a
}

// Detach has the kernel write back what it holds for the device before it takes it away,
// and the Device flushed afterwards: the last close may have written again.
func TestDetachFlushesBeforeAndAfter(t *testing.T) {
	d, a := attachFlushed(t, "v-1")
	if err := a.Detach(context.Background()); err != nil {
		t.Fatal(err)
	}
	calls := d.host.Calls()
	called := func(name string) int {
		return slices.IndexFunc(calls, func(c string) bool { return strings.HasPrefix(c, name) })
	}
	flush, gone := called("FlushDevice"), called("DetachLoop")
	if flush < 0 || gone < flush {
		t.Errorf("the device is taken away unflushed: %q", calls)
	}
	if n := len(d.calls); n == 0 || d.calls[n-1] <= gone {
		t.Errorf("no flush of the volume behind the device: %d of %q", d.calls, calls)
	}
}

// A flush that fails is told, and the device stays so that it can be tried again; what
// fails behind the device is told too.
func TestDetachTellsFailedFlushes(t *testing.T) {
	broken := errors.New("broken")
	d, a := attachFlushed(t, "v-1")
	d.host.Fail("FlushDevice", broken)
	if err := a.Detach(context.Background()); !errors.Is(err, broken) || a.Gone() || len(d.host.Attached()) != 1 {
		t.Errorf("a device that cannot be flushed: %v, gone %v", err, a.Gone())
	}
	d.host.Fail("FlushDevice", nil)
	if err := a.Detach(context.Background()); err != nil {
		t.Error(err)
	}
	d, a = attachFlushed(t, "v-2")
	d.host.Fail("DetachLoop", broken)
	if err := a.Detach(context.Background()); !errors.Is(err, broken) || a.Gone() {
		t.Errorf("a device that cannot be taken away: %v, gone %v", err, a.Gone())
	}
	d.host.Fail("DetachLoop", nil)
	if err := a.Detach(context.Background()); err != nil {
		t.Error(err)
	}
}

// A device of another size than its volume is not handed out.
func TestAttachChecksTheSize(t *testing.T) {
	d := &flushed{host: exporttest.NewHost(), size: 1 << 20}
	broken := errors.New("broken")
	d.host.Fail("DeviceSize", broken)
	if _, err := export.Attach(context.Background(), d.host, d, export.Options{Name: "v-1"}); !errors.Is(err, broken) {
		t.Errorf("size that cannot be read: %v", err)
	}
	if left := d.host.Attached(); len(left) > 0 {
		t.Errorf("left attached: %v", left)
	}
	wrong := &otherSize{Host: exporttest.NewHost()}
	d = &flushed{host: wrong.Host, size: 1 << 20}
	if _, err := export.Attach(context.Background(), wrong, d, export.Options{Name: "v-1"}); err == nil {
		t.Error("a device of another size")
	}
}

// otherSize is a host whose devices have a sector more than they should.
type otherSize struct{ *exporttest.Host }

func (h *otherSize) DeviceSize(device string) (int64, error) {
	n, err := h.Host.DeviceSize(device)
	return n + 512, err
}

// otherWorld is a host on which a device has become another volume's, or is mounted.
type otherWorld struct {
	*exporttest.Host
	other  string // whose the devices are; "": their own
	mounts []export.Mount
}

func (h *otherWorld) LoopBacking(device string) (export.Backing, error) {
	if h.other != "" {
		return export.Backing{File: "/" + h.other, Name: h.other}, nil
	}
	return h.Host.LoopBacking(device)
}

func (h *otherWorld) Mounts() ([]export.Mount, error) { return h.mounts, nil }

// A device that is mounted is not taken away, nor one that has become another volume's.
func TestDetachTakesOnlyItsOwn(t *testing.T) {
	host := &otherWorld{Host: exporttest.NewHost()}
	ctx := context.Background()
	a, err := export.Attach(ctx, host, &flushed{host: host.Host, size: 1 << 20}, export.Options{Name: "v-1"})
	if err != nil {
		t.Fatal(err)
	}
	touched := func(from int) bool {
		return slices.ContainsFunc(host.Calls()[from:], func(c string) bool {
			return strings.HasPrefix(c, "DetachLoop") || strings.HasPrefix(c, "FlushDevice")
		})
	}
	host.mounts = []export.Mount{{Device: a.Path(), Target: "/somewhere", FSType: "ext4"}}
	before := len(host.Calls())
	if err := a.Detach(ctx); !errors.Is(err, export.ErrInUse) || !strings.Contains(err.Error(), "/somewhere") || touched(before) {
		t.Errorf("a mounted device: %v, %q", err, host.Calls()[before:])
	}
	host.mounts = nil
	if err := host.DetachLoop(ctx, a.Path(), false); err != nil { // somebody else did
		t.Fatal(err)
	}
	host.other, before = "v-2", len(host.Calls())
	if err := a.Detach(ctx); err != nil || touched(before) {
		t.Errorf("a device that is another volume's: %v, %q", err, host.Calls()[before:])
	}
}
