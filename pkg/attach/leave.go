package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// Unmounting a filesystem and flushing a device write to the volume, and on a full disk a
// volume's writes wait without limit. Whoever leaves a volume is told so instead, and
// nothing is begun that could not be ended: the kernel takes no unmount back.

const (
	// leaveEnd is how long leaving a volume may take; kubelet gives a call two minutes.
	leaveEnd = 100 * time.Second
	// leaveMargin is how much of the caller's time is left for the answer.
	leaveMargin = 5 * time.Second
	// leavePoll is how often a step that runs is asked for the reason.
	leavePoll = 50 * time.Millisecond
)

// errSlow is a step of leaving a volume that takes longer than the call may.
var errSlow = fmt.Errorf("what was written to it is still being written back; try again: %w", context.DeadlineExceeded)

// waits is ErrNoSpace, with what helps, if a volume's writes wait for disk space without
// limit; nil if not, or if nobody knows.
func (a *Attachments) waits(id string) error {
	info, err := a.store.Volume(id)
	if err != nil || info.WaitingSince == nil || info.OnFull == blockstore.OnFullError || info.Failed != "" {
		return nil
	}
	return fmt.Errorf("writes to volume %s (%s) wait for disk space since %s, because the store's disk is full: "+
		"delete volumes or snapshots, grow the disk, or let the writes fail: granary volume set %s --on-full error: %w",
		info.Name, id, info.WaitingSince.UTC().Format(time.RFC3339), id, blockstore.ErrNoSpace)
}

// Waits is ErrNoSpace, with what helps, if the volume's writes wait for disk space without
// limit: it cannot be unmounted for the last time, nor detached.
func (l *Locked) Waits() error { return l.a.waits(l.id) }

// inTime bounds ctx for a step of leaving a volume, so that there is time for an answer.
func inTime(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	limit := leaveEnd
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		limit = min(limit, left-min(leaveMargin, left/4))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(limit, func() { cancel(errSlow) })
	return ctx, func(cause error) { timer.Stop(); cancel(cause) }
}

// leaving is inTime for a step that may have to write to the volume: it also ends when the
// volume is found waiting for disk space. Its cause says which.
func (a *Attachments) leaving(ctx context.Context, id string) (context.Context, context.CancelFunc) {
	ctx, cancel := inTime(ctx)
	a.watch(ctx, cancel, id)
	return ctx, func() { cancel(nil) }
}

// gaveUp tells that an error of export.Within is the end of ctx, not the step's.
func gaveUp(ctx context.Context, err error) bool {
	cause := context.Cause(ctx)
	return cause != nil && errors.Is(err, cause)
}

// watch cancels ctx when the volume is found waiting for disk space.
func (a *Attachments) watch(ctx context.Context, cancel context.CancelCauseFunc, id string) {
	go func() {
		poll := time.NewTicker(leavePoll)
		defer poll.Stop()
		for {
			if err := a.waits(id); err != nil {
				cancel(err)
			}
			select {
			case <-ctx.Done():
				return
			case <-poll.C:
			}
		}
	}()
}

// Unmount unmounts what is on top of target; nil if nothing is. The last mount of a
// filesystem is written back before. ErrNoSpace if the volume waits for disk space: as a
// rule before anything has changed. An unmount that has begun goes on behind the error,
// and has the volume's lock until it has ended.
func (l *Locked) Unmount(ctx context.Context, target string) error {
	last, err := l.lastMount(target)
	if err != nil {
		return err
	}
	ctx, cancel := inTime(ctx)
	defer cancel(nil)
	if last { // others go without writing anything
		l.a.watch(ctx, cancel, l.id)
		if err := l.writeBack(ctx, target); err != nil {
			return err
		}
	}
	err = l.run(ctx, func() error { return l.a.host.Unmount(target) })
	if errors.Is(err, export.ErrInUse) {
		err = errors.Join(sentinel(err), l.a.waits(l.id)) // who has it open waits, perhaps
	}
	return err
}

// lastMount tells whether target is the only mount of a filesystem on the volume.
func (l *Locked) lastMount(target string) (bool, error) {
	device, attached := l.Device()
	if !attached {
		return false, nil
	}
	mounts, err := l.a.host.Mounts()
	if err != nil {
		return false, err
	}
	var at []string
	for _, m := range mounts {
		if m.IsFilesystemOf(device) {
			at = append(at, m.Target)
		}
	}
	return len(at) == 1 && at[0] == target, nil
}

// writeBack writes a mounted filesystem back; what goes wrong with that is found by the
// unmount as well. Of a volume there is one such call at a time, also when those that
// began it have given up.
func (l *Locked) writeBack(ctx context.Context, target string) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	a, id := l.a, l.id
	if err := a.waits(id); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	if !a.writingBack.Try(id) {
		return fmt.Errorf("unmount %s: %w: %w", target, errSlow, blockstore.ErrBusy)
	}
	err := export.Within(ctx, func() error {
		defer a.writingBack.Release(id)
		if err := a.host.SyncFS(target); err != nil {
			a.log.Warn("write back before an unmount", "volume_id", id, "mount", target, "err", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// run runs a step of which the kernel takes nothing back. If ctx ends before it does, it
// goes on and shares the volume's lock.
func (l *Locked) run(ctx context.Context, step func() error) error {
	l.holders.Add(1)
	err := export.Within(ctx, func() error {
		defer l.Unlock()
		return step()
	})
	if gaveUp(ctx, err) {
		return fmt.Errorf("the unmount has begun and goes on: %w", err)
	}
	return err
}
