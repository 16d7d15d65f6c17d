package attach_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

func TestShutdown(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	raw, mounted, busy := w.volume("raw"), w.volume("mounted"), w.volume("busy")
	w.mustAttach(raw)
	w.mount(mounted, w.mustAttach(mounted))
	busyDevice := w.mustAttach(busy)
	w.mount(busy, busyDevice)
	w.host.unmountable = w.targetOf(busy)
	w.trace.Steps()
	if err := w.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"flush", "close", // busy: its record stays
		"unmount", "record device", "flush", "detach", "close", "remove record",
		"flush", "detach", "close", "remove record",
	}
	if got := w.trace.Steps(); !slices.Equal(got, want) {
		t.Errorf("steps: %q\nwant:  %q", got, want)
	}
	if got := w.engine.Attachments(); len(got) != 1 || got[0].Volume != busy {
		t.Errorf("records left: %+v", got)
	}
	if _, err := w.Attach(ctx, raw, attach.ReadWrite); !errors.Is(err, blockstore.ErrClosed) {
		t.Errorf("attach after shutdown: %v", err)
	}
	w.host.unmountable = ""
	w.kill()
	if err := w.ClearDead(ctx); err != nil {
		t.Fatal(err)
	}
	if got := w.host.Attached(); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

func TestShutdownWaitsForAnOperation(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	w.mustAttach(id)
	l, err := w.Lock(id)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- w.Shutdown(context.Background()) }()
	l.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := w.host.Attached(); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// heldAttach begins to attach a volume, which goes on when goOn is closed.
func (w *world) heldAttach() (goOn chan struct{}, attached chan error) {
	id := w.volume("a")
	opening, goOn := make(chan struct{}), make(chan struct{})
	w.host.beforeAttach = func() { close(opening); <-goOn }
	attached = make(chan error, 1)
	go func() {
		_, err := w.Attach(context.Background(), id, attach.ReadWrite)
		attached <- err
	}()
	<-opening
	return goOn, attached
}

// A volume whose attach had begun before the shutdown is ended with the others.
func TestShutdownTakesInWhatComesLate(t *testing.T) {
	w := newWorld(t)
	goOn, attached := w.heldAttach()
	ended := make(chan error, 1)
	go func() { ended <- w.Shutdown(context.Background()) }()
	for { // until the shutdown has begun
		l, err := w.Lock("other")
		if err != nil {
			break
		}
		l.Unlock()
	}
	close(goOn)
	if err := errors.Join(<-attached, <-ended); err != nil {
		t.Fatal(err)
	}
	if got := w.host.Attached(); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// What a shutdown could not end well it tells, of every volume.
func TestShutdownTellsWhatWentWrong(t *testing.T) {
	w := newWorld(t)
	w.mustAttach(w.volume("a"))
	w.mustAttach(w.volume("b"))
	w.engine.Fail("Flush", errors.New("the disk is gone"))
	err := w.Shutdown(context.Background())
	if !errors.Is(err, syscall.EIO) || strings.Count(err.Error(), "detach v-") != 2 { // through the kernel
		t.Errorf("%v, want an error of each volume", err)
	}
	w.engine.Fail("Flush", nil)
	w.kill()
	if err := w.ClearDead(context.Background()); err != nil {
		t.Error(err)
	}
}

// busyWorld is a world with one volume that is mounted where nobody can unmount it.
func busyWorld(t *testing.T) (w *world, id string) {
	w = newWorld(t)
	id = w.volume("a")
	w.mount(id, w.mustAttach(id))
	w.host.unmountable = w.targetOf(id)
	w.trace.Steps()
	return w, id
}

// wantClosedUnder wants the volume closed, and what is left of it on record.
func (w *world) wantClosedUnder(id string) {
	w.t.Helper()
	if info, err := w.engine.Volume(id); err != nil || info.Open {
		w.t.Errorf("the volume is still open: %+v, %v", info, err)
	}
	if left := w.engine.Attachments(); len(left) != 1 || left[0].Volume != id {
		w.t.Errorf("on record: %+v", left)
	}
}

// A device that somebody has open, or that may be mounted for all anybody knows, is
// flushed and closed under its user.
func TestShutdownOfADeviceInUse(t *testing.T) {
	for method, err := range map[string]error{
		"DetachLoop": fmt.Errorf("somebody has it open: %w", export.ErrInUse),
		"Mounts":     errors.New("the mount table is gone"),
	} {
		t.Run(method, func(t *testing.T) {
			w := newWorld(t)
			id := w.volume("a")
			w.mustAttach(id)
			w.trace.Steps()
			w.host.Fail(method, err)
			if err := w.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			w.wantClosedUnder(id)
			if got := w.trace.Steps(); !slices.Contains(got, "flush") || len(w.host.Attached()) != 1 {
				t.Errorf("steps: %q, attached: %q", got, w.host.Attached())
			}
		})
	}
}

// A last flush that fails is told; one that does not end in time is given up, and the
// volume closed without it.
func TestShutdownFlushesOnce(t *testing.T) {
	w, id := busyWorld(t)
	w.host.Fail("FlushDevice", syscall.EIO)
	if err := w.Shutdown(context.Background()); !errors.Is(err, syscall.EIO) {
		t.Errorf("a flush that failed: %v", err)
	}
	w.wantClosedUnder(id)

	w, id = busyWorld(t)
	w.host.flush = newHanging()
	defer close(w.host.flush.release)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := w.Shutdown(ctx); err != nil {
		t.Errorf("a flush that hangs: %v", err)
	}
	w.wantClosedUnder(id)
}

// A detach that is under way when the shutdown begins is waited for, and then there is
// nothing left to end.
func TestShutdownDuringADetach(t *testing.T) {
	w := newWorld(t)
	id := w.volume("a")
	w.mustAttach(id)
	detaching, goOn := make(chan struct{}), make(chan struct{})
	w.host.afterDetach = func() { close(detaching); <-goOn }
	ended := make(chan error, 2)
	go func() { ended <- w.Detach(context.Background(), id) }()
	<-detaching
	go func() { ended <- w.Shutdown(context.Background()) }()
	select {
	case err := <-ended:
		t.Errorf("ended before the detach: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	if err := errors.Join(<-ended, <-ended); err != nil {
		t.Error(err)
	}
	if left := w.engine.Attachments(); len(left) > 0 {
		t.Errorf("on record: %+v", left)
	}
}

// An attach that does not end is not waited for longer than there is time.
func TestShutdownLeavesWhatDoesNotCome(t *testing.T) {
	w := newWorld(t)
	goOn, attached := w.heldAttach()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- w.Shutdown(ctx) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the shutdown waits on")
	}
	close(goOn)
	if err := errors.Join(<-attached, w.Shutdown(context.Background())); err != nil {
		t.Error(err)
	}
}
