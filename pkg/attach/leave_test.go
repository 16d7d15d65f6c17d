package attach_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// hanging is a step of the kernel's that does not end before release.
type hanging struct {
	begun, release chan struct{}
}

func newHanging() *hanging { return &hanging{make(chan struct{}, 8), make(chan struct{})} }

func (h *hanging) pass() {
	if h != nil {
		h.begun <- struct{}{}
		<-h.release
	}
}

var since = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// wantWaiting wants an error that says that the volume waits, since when, and what to do.
func wantWaiting(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, blockstore.ErrNoSpace) {
		t.Fatalf("%s: %v, want ErrNoSpace", what, err)
	}
	for _, part := range []string{"2026-11-26T12:00:00Z", "delete volumes or snapshots", "granary volume set", "--on-full error"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q does not say %q", what, err, part)
		}
	}
}

// leave unmounts and detaches, as an unstage does.
func (w *world) leave(ctx context.Context, id, target string) error {
	l, err := w.Lock(id)
	if err != nil {
		return err
	}
	defer l.Unlock()
	if err := l.Unmount(ctx, target); err != nil {
		return err
	}
	if err := l.RemoveUse(target); err != nil {
		return err
	}
	return l.Detach(ctx)
}

func (w *world) wantMounted(id, target string) {
	w.t.Helper()
	mounts, err := w.host.Mounts()
	if _, attached := w.Device(id); err != nil || !attached || len(mounts) != 1 || mounts[0].Target != target {
		w.t.Errorf("attached %v, mounts %v, %v: something was undone", attached, mounts, err)
	}
}

func TestLeavingAWaitingVolume(t *testing.T) { // I9
	w := newWorld(t)
	ctx := context.Background()
	raw, id := w.volume("raw"), w.volume("a")
	w.mustAttach(raw)
	target := w.mount(id, w.mustAttach(id))
	w.engine.SetWaiting(id, &since)
	w.engine.SetWaiting(raw, &since)
	w.trace.Steps()
	wantWaiting(t, "unmount", w.leave(ctx, id, target))
	wantWaiting(t, "detach", w.Detach(ctx, raw))
	if got := w.trace.Steps(); len(got) > 0 {
		t.Errorf("steps: %q", got)
	}
	w.wantMounted(id, target)

	// Writes that fail hold nobody up.
	if _, err := w.engine.SetOnFull(id, blockstore.OnFullError); err != nil {
		t.Fatal(err)
	}
	w.engine.SetWaiting(id, &since)
	if err := w.leave(ctx, id, target); err != nil {
		t.Errorf("with onFull error: %v", err)
	}
	w.engine.SetFailed(raw, "disk on fire")
	if err := w.Detach(ctx, raw); errors.Is(err, blockstore.ErrNoSpace) {
		t.Errorf("failed closed: %v", err)
	}
	raw = w.volume("another")
	w.mustAttach(raw)
	if err := w.Detach(ctx, raw); err != nil {
		t.Errorf("with space again: %v", err)
	}
}

// The volume begins to wait while its filesystem is written back: the mount stays, and
// what hangs is not begun a second time.
func TestWriteBackThatDoesNotEnd(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.volume("a")
	target := w.mount(id, w.mustAttach(id))
	hangs := newHanging()
	w.host.sync = hangs
	go func() {
		<-hangs.begun
		w.engine.SetWaiting(id, &since)
	}()
	wantWaiting(t, "unmount", w.leave(ctx, id, target))
	w.wantMounted(id, target)
	w.engine.SetWaiting(id, nil)
	if err := w.leave(ctx, id, target); !errors.Is(err, blockstore.ErrBusy) || len(hangs.begun) > 0 {
		t.Errorf("beside the first: %v; %d more begun", err, len(hangs.begun))
	}
	close(hangs.release)
	w.wantLeft(id, target)
}

// A step that does not end leaves the caller a part of its time for the answer.
func TestLeavingEndsBeforeTheCall(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	target := w.mount(id, w.mustAttach(id))
	w.host.sync = newHanging()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := w.leave(ctx, id, target)
	if err == nil || !strings.Contains(err.Error(), "still being written back") || ctx.Err() != nil {
		t.Errorf("%v, with the call's time over: %v", err, ctx.Err())
	}
	close(w.host.sync.release)
	w.wantLeft(id, target)
	target = w.mount(id, w.mustAttach(id))
	short, cancel := context.WithTimeout(context.Background(), time.Second) // it is not all margin
	defer cancel()
	if err := w.leave(short, id, target); err != nil {
		t.Errorf("within a second: %v", err)
	}
}

// A call that is over before its unmount has begun changes nothing, and one of what
// somebody uses says so.
func TestUnmountThatDoesNotBegin(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	target := w.mount(id, w.mustAttach(id))
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.leave(over, id, target); !errors.Is(err, context.Canceled) {
		t.Errorf("after the call: %v", err)
	}
	w.wantMounted(id, target)
	w.host.unmountable = target
	if err := w.leave(context.Background(), id, target); !errors.Is(err, blockstore.ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	w.wantMounted(id, target)
}

// Without the mount table nobody knows what is mounted: nothing is said to be unmounted.
func TestLeavingWithoutAMountTable(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	target := w.mount(id, w.mustAttach(id))
	gone := errors.New("the mount table is gone")
	w.host.Fail("Mounts", gone)
	if err := w.leave(context.Background(), id, target); !errors.Is(err, gone) {
		t.Errorf("unmount: %v", err)
	}
	if got := w.targetOf(id); got != target {
		t.Errorf("on record is %q", got)
	}
	w.host.Fail("Mounts", nil)
	w.wantMounted(id, target)
}

// wantLeft repeats leaving until it succeeds, as a CO does.
func (w *world) wantLeft(id, target string) {
	w.t.Helper()
	err := w.leave(context.Background(), id, target)
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		err = w.leave(context.Background(), id, target)
	}
	if _, attached := w.Device(id); err != nil || attached {
		w.t.Errorf("repeated: attached %v, %v", attached, err)
	}
}

// An unmount that has begun cannot be taken back: nobody else gets at the volume before
// it has ended.
func TestUnmountThatDoesNotEnd(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	target := w.mount(id, w.mustAttach(id))
	hangs := newHanging()
	w.host.unmount = hangs
	go func() {
		<-hangs.begun
		w.engine.SetWaiting(id, &since)
	}()
	wantWaiting(t, "unmount", w.leave(context.Background(), id, target))
	_, err := w.Attach(context.Background(), id, attach.ReadWrite)
	if wantWaiting(t, "meanwhile", err); !errors.Is(err, blockstore.ErrBusy) {
		t.Errorf("meanwhile: %v, want ErrBusy", err)
	}
	w.engine.SetWaiting(id, nil)
	close(hangs.release)
	w.wantLeft(id, target)
}

// A write-back that is slow and nothing else leaves time to say so.
func TestSlowWriteBack(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	target := w.mount(id, w.mustAttach(id))
	hangs := newHanging()
	w.host.sync = hangs
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := w.leave(ctx, id, target)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "try again") || ctx.Err() != nil {
		t.Errorf("%v; the caller's time: %v", err, ctx.Err())
	}
	w.wantMounted(id, target)
	close(hangs.release)
	w.wantLeft(id, target)
}

// The daemon's end does not wait for space: volumes are closed under their mounts.
func TestShutdownOnAFullDisk(t *testing.T) {
	for _, what := range []string{"waits", "write-back", "unmount", "flush"} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			id := w.volume("a")
			device := w.mustAttach(id)
			if what != "flush" {
				w.mount(id, device)
			}
			hangs := newHanging()
			defer close(hangs.release)
			switch what {
			case "waits":
				w.engine.SetWaiting(id, &since)
			case "write-back":
				w.host.sync = hangs
			case "unmount":
				w.host.unmount = hangs
			case "flush":
				w.host.flush = hangs
			}
			go func() {
				if what != "waits" {
					<-hangs.begun
					w.engine.SetWaiting(id, &since)
				}
			}()
			if err := w.Shutdown(context.Background()); err != nil {
				t.Fatal(err)
			}
			if info, err := w.engine.Volume(id); err != nil || info.Open {
				t.Errorf("the volume is still open: %+v, %v", info, err)
			}
			if len(w.engine.Attachments()) != 1 {
				t.Error("the record is gone: who clears the device at the next start?")
			}
		})
	}
}
