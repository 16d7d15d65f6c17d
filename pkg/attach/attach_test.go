package attach_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/attach/attachtest"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/pkg/leaktest"
)

// world is one store on one machine; boot starts a daemon in it.
type world struct {
	t      *testing.T
	trace  *attachtest.Trace
	engine *attachtest.Engine
	host   *testHost
	*attach.Attachments
}

// testHost has a mount point that cannot be unmounted, and does things in between.
type testHost struct {
	*attachtest.Host
	unmountable               string
	beforeAttach, afterDetach func() // nil: nothing
	sync, unmount, flush      *hanging
}

func (h *testHost) SyncFS(path string) error {
	h.sync.pass()
	return h.Host.SyncFS(path)
}

func (h *testHost) FlushDevice(device string) error {
	h.flush.pass()
	return h.Host.FlushDevice(device)
}

func (h *testHost) AttachLoop(file *os.File, o export.LoopOptions) (export.Loop, error) {
	if h.beforeAttach != nil {
		h.beforeAttach()
	}
	return h.Host.AttachLoop(file, o)
}

func (h *testHost) DetachLoop(ctx context.Context, device string, lazy bool) error {
	err := h.Host.DetachLoop(ctx, device, lazy)
	if h.afterDetach != nil {
		h.afterDetach()
	}
	return err
}

func (h *testHost) Unmount(target string) error {
	if target == h.unmountable {
		return export.ErrInUse
	}
	h.unmount.pass()
	return h.Host.Unmount(target)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	leaktest.Check(t)
	trace := new(attachtest.Trace)
	w := &world{t: t, trace: trace, engine: attachtest.NewEngine(trace), host: &testHost{Host: attachtest.NewHost(trace)}}
	t.Cleanup(w.host.End)
	w.boot()
	return w
}

func (w *world) boot() {
	w.Attachments = attach.New(w.engine, w.host, w.host.Options())
}

// kill ends the daemon as kill -9 does, and starts another one.
func (w *world) kill() {
	w.t.Helper()
	w.trace.CrashIn(0)
	for _, device := range w.host.Attached() {
		if err := w.host.Kill(device); err != nil {
			w.t.Fatal(err)
		}
	}
	w.engine.Reopen()
	w.boot()
}

func (w *world) volume(name string) string {
	w.t.Helper()
	info, err := w.engine.CreateVolume(blockstore.VolumeSpec{Name: name, SizeBytes: 8 << 20})
	if err != nil {
		w.t.Fatal(err)
	}
	return info.ID
}

func (w *world) mustAttach(id string) string {
	w.t.Helper()
	device, err := w.Attach(context.Background(), id, attach.ReadWrite)
	if err != nil {
		w.t.Fatal(err)
	}
	return device
}

// mount makes a filesystem on a device and mounts it on a new directory, on record.
func (w *world) mount(id, device string) (target string) {
	w.t.Helper()
	target = w.t.TempDir()
	l, err := w.Lock(id)
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Unlock()
	ctx := context.Background()
	if err := errors.Join(w.host.Mkfs(ctx, device, "ext4", nil), l.AddUse(blockstore.Use{Path: target}),
		w.host.Mount(ctx, device, target, "ext4", nil)); err != nil {
		w.t.Fatal(err)
	}
	return target
}

func TestAttachAndDetachCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.volume("a")
	device := w.mustAttach(id)
	want := []string{"open", "record", "attach", "record device"}
	if got := w.trace.Steps(); !slices.Equal(got, want) {
		t.Errorf("steps of attach: %q, want %q", got, want)
	}
	if again := w.mustAttach(id); again != device {
		t.Errorf("second attach: %s, want %s", again, device)
	}
	if got := w.trace.Steps(); len(got) > 0 {
		t.Errorf("steps of the second attach: %q", got)
	}
	if got, ok := w.Device(id); !ok || got != device {
		t.Errorf("Device = %s, %v", got, ok)
	}
	for range 2 {
		if err := w.Detach(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	want = []string{"flush", "detach", "close", "remove record"}
	if got := w.trace.Steps(); !slices.Equal(got, want) {
		t.Errorf("steps of detach: %q, want %q", got, want)
	}
	if got := w.host.Attached(); len(got) > 0 {
		t.Errorf("still attached: %q", got)
	}
}

func TestAttachRawSetsUsedBeforeTheDevice(t *testing.T) { // I11
	w := newWorld(t)
	id := w.volume("a")
	if _, err := w.AttachRaw(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	want := []string{"open", "state used", "record", "attach", "record device", "record device 1 uses"}
	if got := w.trace.Steps(); !slices.Equal(got, want) {
		t.Errorf("steps: %q, want %q", got, want)
	}
}

func TestDetachRefusesMounted(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.volume("a")
	device := w.mustAttach(id)
	target := t.TempDir() // mounted by somebody who told nobody
	if err := errors.Join(w.host.Mkfs(ctx, device, "ext4", nil), w.host.Mount(ctx, device, target, "ext4", nil)); err != nil {
		t.Fatal(err)
	}
	for name, op := range map[string]func() error{
		"detach": func() error { return w.Detach(ctx, id) },
		"delete": func() error { return w.Delete(ctx, id) },
	} {
		err := op()
		if !errors.Is(err, blockstore.ErrInUse) || !strings.Contains(err.Error(), target) || !strings.Contains(err.Error(), device) {
			t.Errorf("%s: %v; want ErrInUse with %s and %s", name, err, device, target)
		}
	}
	if err := w.host.Unmount(target); err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(ctx, id); !errors.Is(err, blockstore.ErrInUse) {
		t.Errorf("delete of an attached volume: %v", err)
	}
	if err := errors.Join(w.Detach(ctx, id), w.Delete(ctx, id)); err != nil {
		t.Error(err)
	}
}

// What is on record for a path is not taken away by a command.
func TestDetachRefusesUses(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.volume("a")
	if _, err := w.AttachRaw(ctx, id); err != nil {
		t.Fatal(err)
	}
	l, err := w.Lock(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AddUse(blockstore.Use{Path: "/staged", Purpose: "stage"}); err != nil {
		t.Fatal(err)
	}
	l.Unlock()
	if err := w.Detach(ctx, id); !errors.Is(err, blockstore.ErrInUse) || !strings.Contains(err.Error(), "/staged") {
		t.Errorf("detach: %v", err)
	}
	if l, err = w.Lock(id); err != nil {
		t.Fatal(err)
	}
	if err := l.RemoveUse("/staged"); err != nil || !l.ByCommand() {
		t.Errorf("by command: %v, %v", l.ByCommand(), err)
	}
	l.Unlock()
	if err := w.Detach(ctx, id); err != nil {
		t.Error(err)
	}
}

func TestDetachOfAFailedVolume(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	w.mustAttach(id)
	w.engine.Fail("Flush", blockstore.ErrFailed)
	if err := w.Detach(context.Background(), id); err == nil {
		t.Fatal("detached although the flush failed")
	}
	if _, ok := w.Device(id); !ok {
		t.Fatal("gone after an error")
	}
	w.engine.SetFailed(id, "the journal's disk is gone")
	if err := w.Detach(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if got := w.host.Attached(); len(got) > 0 {
		t.Errorf("still attached: %q", got)
	}
}

func TestResize(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.volume("a")
	device := w.mustAttach(id)
	w.trace.Steps()
	info, err := w.Resize(ctx, id, 16<<20)
	if err != nil || info.SizeBytes != 16<<20 {
		t.Fatalf("Resize = %d, %v", info.SizeBytes, err)
	}
	if got, want := w.trace.Steps(), []string{"resize volume", "grow device"}; !slices.Equal(got, want) {
		t.Errorf("steps: %q, want %q", got, want)
	}
	if size, err := w.host.DeviceSize(device); err != nil || size != 16<<20 {
		t.Errorf("device has %d bytes, %v", size, err)
	}
	if _, err := w.Resize(ctx, id, 8<<20); !errors.Is(err, blockstore.ErrRange) {
		t.Errorf("shrinking: %v", err)
	}
}

func TestOneOperationAtATime(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.volume("a")
	l, err := w.Lock(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Attach(ctx, id, attach.ReadWrite); !errors.Is(err, blockstore.ErrBusy) {
		t.Errorf("attach meanwhile: %v", err)
	}
	if err := w.Detach(ctx, id); !errors.Is(err, blockstore.ErrBusy) {
		t.Errorf("detach meanwhile: %v", err)
	}
	w.mustAttach(w.volume("b"))
	l.Unlock()
	w.mustAttach(id)
}

func TestUsesOnRecord(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	l, err := w.Lock(id)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	a, b := blockstore.Use{Path: "/a", Purpose: "x"}, blockstore.Use{Path: "/b", Purpose: "x"}
	if err := l.AddUse(a); !errors.Is(err, blockstore.ErrInvalid) {
		t.Errorf("AddUse of a detached volume: %v", err)
	}
	if _, err := l.Attach(context.Background(), attach.ReadWrite); err != nil {
		t.Fatal(err)
	}
	changed := blockstore.Use{Path: "/b", Purpose: "y"}
	if err := errors.Join(l.AddUse(a), l.AddUse(b), l.AddUse(a), l.AddUse(changed), l.RemoveUse("/a"), l.RemoveUse("/c")); err != nil {
		t.Fatal(err)
	}
	if got := w.engine.Attachments()[0].Uses; !slices.Equal(got, []blockstore.Use{changed}) || !slices.Equal(l.Uses(), got) {
		t.Errorf("on record: %q, in memory: %q", got, l.Uses())
	}
}

func TestAttachModes(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.volume("a")
	for mode, steps := range map[attach.Mode][]string{
		attach.ReadWrite: {"open", "record", "attach", "record device"},
		attach.Scratch:   {"open scratch", "record", "attach", "record device"},
		attach.ReadOnly:  {"open scratch", "record", "attach", "record device"},
	} {
		w.trace.Steps()
		device, err := w.Attach(ctx, id, mode)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.trace.Steps(); !slices.Equal(got, steps) {
			t.Errorf("%s: steps %q, want %q", mode, got, steps)
		}
		record := w.List()[0]
		if record.Scratch != (mode == attach.Scratch) || record.ReadOnly != (mode == attach.ReadOnly) {
			t.Errorf("%s: record %+v", mode, record)
		}
		if backing, err := w.host.LoopBacking(device); err != nil || backing.ReadOnly != (mode == attach.ReadOnly) {
			t.Errorf("%s: device %+v, %v", mode, backing, err)
		}
		other := (mode + 1) % 3
		if _, err := w.Attach(ctx, id, other); !errors.Is(err, blockstore.ErrInUse) || !strings.Contains(err.Error(), device) {
			t.Errorf("%s while attached %s: %v", other, mode, err)
		}
		if err := w.Detach(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimit(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	o := w.host.Options()
	o.Limit = 2
	w.Attachments = attach.New(w.engine, w.host, o)
	a, b, c := w.volume("a"), w.volume("b"), w.volume("c")
	w.mustAttach(a)
	w.host.Fail("AttachLoop", errors.New("no"))
	if _, err := w.Attach(ctx, b, attach.ReadWrite); err == nil {
		t.Error("attached without a loop device")
	}
	w.host.Fail("AttachLoop", nil)
	w.mustAttach(b)
	w.mustAttach(b)
	if _, err := w.Attach(ctx, c, attach.ReadWrite); !errors.Is(err, attach.ErrLimit) {
		t.Errorf("a third of two: %v", err)
	}
	if err := w.Detach(ctx, a); err != nil {
		t.Fatal(err)
	}
	w.mustAttach(c)
}

// Killed before any step of attach, mount and detach, nothing stays behind after the
// next start, and everything works again.
func TestKillAtEveryStep(t *testing.T) { // I1
	steps := 0
	for crashed := true; crashed && !t.Failed(); {
		steps++
		// A test each: its host ends with it, and needs to be the only one then.
		t.Run(fmt.Sprint("step ", steps), func(t *testing.T) { crashed = killBefore(t, steps) })
	}
	if steps < 12 {
		t.Errorf("only %d steps", steps)
	}
}

// killBefore kills the daemon before a step; false if there are not so many.
func killBefore(t *testing.T, step int) bool {
	ctx := context.Background()
	w := newWorld(t)
	id := w.volume("a")
	w.trace.CrashIn(step)
	device, err := w.Attach(ctx, id, attach.ReadWrite)
	target := t.TempDir()
	if err == nil {
		l, _ := w.Lock(id)
		_ = w.host.Mkfs(ctx, device, "ext4", nil)
		_ = l.AddUse(blockstore.Use{Path: target})
		_ = w.host.Mount(ctx, device, target, "ext4", nil)
		if w.host.Unmount(target) == nil {
			_ = l.RemoveUse(target)
		}
		l.Unlock()
		_ = w.Detach(ctx, id)
	}
	if !w.trace.Crashed() {
		return false
	}
	w.kill()
	if err := w.ClearDead(ctx); err != nil {
		t.Fatal(err)
	}
	mounts, _ := w.host.Mounts()
	if a, r := w.host.Attached(), w.engine.Attachments(); len(a)+len(r)+len(mounts) > 0 {
		t.Fatalf("left %q, %+v, %+v", a, r, mounts)
	}
	w.mustAttach(id)
	return true
}

func TestClearDeadGoesOn(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	a, b := w.volume("a"), w.volume("b")
	deviceA := w.mustAttach(a)
	deviceB := w.mustAttach(b)
	w.mount(b, deviceB)
	w.kill()
	w.host.Fail("LoopBacking", errors.New("sysfs is gone"))
	if err := w.ClearDead(ctx); err == nil || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) {
		t.Errorf("ClearDead: %v; want both volumes named", err)
	}
	w.host.Fail("LoopBacking", nil)
	if err := w.ClearDead(ctx); err != nil {
		t.Fatal(err)
	}
	if got := w.host.Attached(); len(got) > 0 {
		t.Errorf("left: %q of %s and %s", got, deviceA, deviceB)
	}
}

func (w *world) targetOf(id string) string {
	w.t.Helper()
	for _, a := range w.List() {
		if a.Volume == id {
			return a.Uses[0].Path
		}
	}
	w.t.Fatalf("volume %s is not mounted", id)
	return ""
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	for _, method := range []string{"OpenFUSE", "AttachLoop"} {
		t.Run(method, func(t *testing.T) {
			w := newWorld(t)
			id := w.volume("a")
			w.host.Fail(method, errors.New("no"))
			if _, err := w.Attach(context.Background(), id, attach.ReadWrite); err == nil {
				t.Fatal("attached")
			}
			if got := w.engine.Attachments(); len(got) > 0 {
				t.Errorf("records left: %+v", got)
			}
			w.host.Fail(method, nil)
			w.mustAttach(id)
		})
	}
	w := newWorld(t)
	if _, err := w.Attach(context.Background(), "v-"+fmt.Sprintf("%032d", 99), attach.ReadWrite); !errors.Is(err, blockstore.ErrNotFound) {
		t.Errorf("attach of nothing: %v", err)
	}
}

// Nor does one whose caller has given up by then, wherever a record cannot be written.
func TestFailedRecordLeavesNothing(t *testing.T) {
	for at := 1; at <= 3; at++ {
		t.Run(fmt.Sprintf("record %d", at), func(t *testing.T) {
			w := newWorld(t)
			id := w.volume("a")
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			records := 0
			w.Attachments = attach.New(&recordsFail{w.engine, func() error {
				if records++; records < at {
					return nil
				}
				cancel()
				return errors.New("catalog on fire")
			}}, w.host, w.host.Options())
			if _, err := w.AttachRaw(ctx, id); err == nil || !strings.Contains(err.Error(), "catalog on fire") || strings.Contains(err.Error(), "canceled") {
				t.Errorf("attach: %v", err)
			}
			if records != at {
				t.Errorf("%d records written", records)
			}
			left, devices := w.engine.Attachments(), w.host.Attached()
			if info, err := w.engine.Volume(id); err != nil || info.Open || len(left)+len(devices) > 0 {
				t.Errorf("left: %+v, %q, volume %+v, %v", left, devices, info, err)
			}
			w.boot()
			w.mustAttach(id)
		})
	}
}

// A device that does not go after such an error is cleared by the next attach.
func TestFailedRecordOfADeviceThatStays(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	records := 0
	w.Attachments = attach.New(&recordsFail{w.engine, func() error {
		if records++; records == 2 {
			w.host.Fail("DetachLoop", errors.New("no"))
			return errors.New("catalog on fire")
		}
		return nil
	}}, w.host, w.host.Options())
	if _, err := w.Attach(context.Background(), id, attach.ReadWrite); err == nil {
		t.Fatal("attached without a record")
	}
	if left, devices := w.engine.Attachments(), w.host.Attached(); len(left) != 1 || len(devices) != 1 {
		t.Errorf("on record: %+v; devices %q", left, devices)
	}
	w.host.Fail("DetachLoop", nil)
	w.mustAttach(id)
	if devices := w.host.Attached(); len(devices) != 1 {
		t.Errorf("devices: %q", devices)
	}
}

// recordsFail asks before it puts an attachment on record.
type recordsFail struct {
	*attachtest.Engine
	put func() error
}

func (r *recordsFail) PutAttachment(a blockstore.Attachment) error {
	if err := r.put(); err != nil {
		return err
	}
	return r.Engine.PutAttachment(a)
}

// A detach that ends between the loop device and the volume leaves no name behind that
// may be another volume's by then.
func TestDetachThatDoesNotEnd(t *testing.T) { // I11
	w := newWorld(t)
	ctx := context.Background()
	a, b := w.volume("a"), w.volume("b")
	device := w.mustAttach(a)
	w.host.afterDetach = func() { w.engine.Fail("Flush", errors.New("the disk is slow")) }
	if err := w.Detach(ctx, a); err == nil {
		t.Fatal("detached although the last flush failed")
	}
	w.host.afterDetach = nil
	if got, ok := w.Device(a); ok || w.List()[0].Device != "" {
		t.Errorf("it is at %q still, and listed as %+v", got, w.List())
	}
	if _, err := w.Attach(ctx, a, attach.ReadWrite); err == nil {
		t.Error("attached although the detach before has not ended")
	}
	w.engine.Fail("Flush", nil)
	if other := w.mustAttach(b); other != device {
		t.Fatalf("the number %s was not used again, but %s", device, other)
	}
	if again := w.mustAttach(a); again == device {
		t.Errorf("a and b are both %s", device)
	}
	if err := errors.Join(w.Detach(ctx, a), w.Detach(ctx, b)); err != nil {
		t.Error(err)
	}
}

// What a start could not clear stays on record until it is cleared.
func TestLeftoversAreNotForgotten(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.volume("a")
	w.mustAttach(id)
	w.kill()
	w.host.Fail("LoopBacking", errors.New("sysfs is gone"))
	if err := w.ClearDead(ctx); err == nil {
		t.Fatal("cleared")
	}
	for name, op := range map[string]func() error{
		"attach": func() error { _, err := w.Attach(ctx, id, attach.ReadWrite); return err },
		"delete": func() error { return w.Delete(ctx, id) },
	} {
		if err := op(); err == nil || len(w.engine.Attachments()) == 0 {
			t.Errorf("%s: %v, records %+v", name, err, w.engine.Attachments())
		}
	}
	w.host.Fail("LoopBacking", nil)
	w.mustAttach(id)
	if got := w.host.Attached(); len(got) != 1 {
		t.Errorf("attached: %q", got)
	}
}

// A daemon that died between the two records of an attach, on a machine whose devices
// cannot be listed now: nobody knows whether there is one, so the record stays.
func TestLeftoverWithoutADevice(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	if err := w.engine.PutAttachment(blockstore.Attachment{Volume: id}); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("sysfs is gone")
	var log strings.Builder
	o := w.host.Options()
	o.LoopDevices = func() ([]string, error) { return nil, gone }
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	w.Attachments = attach.New(w.engine, w.host, o)
	if err := w.ClearDead(context.Background()); !errors.Is(err, gone) || len(w.engine.Attachments()) != 1 || strings.Contains(log.String(), "cleared") {
		t.Errorf("%v, on record: %+v, log: %s", err, w.engine.Attachments(), &log)
	}
	w.boot()
	if err := w.ClearDead(context.Background()); err != nil || len(w.engine.Attachments()) > 0 {
		t.Errorf("%v, on record: %+v", err, w.engine.Attachments())
	}
}
