package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// Locked is a volume whose lock the caller holds. It is used by one goroutine and
// not after Unlock.
type Locked struct {
	a       *Attachments
	id      string
	holders atomic.Int32 // of the lock: the caller, and steps that it has left behind
}

// newLocked is for who has just taken the lock of a volume.
func (a *Attachments) newLocked(id string) *Locked {
	l := &Locked{a: a, id: id}
	l.holders.Store(1)
	return l
}

// Unlock lets the next operation on the volume in, unless a step that was left behind
// still runs.
func (l *Locked) Unlock() {
	if l.holders.Add(-1) == 0 {
		l.a.locks.Release(l.id)
	}
}

// Info describes the volume; ErrNotFound.
func (l *Locked) Info() (blockstore.VolumeInfo, error) { return l.a.store.Volume(l.id) }

// SetState moves the volume on towards used (I11); durable on return.
func (l *Locked) SetState(state blockstore.VolumeState, fsType string) error {
	return l.a.store.SetVolumeState(l.id, state, fsType)
}

// AttachRaw is Attach for a caller who may write anything there: the volume is used,
// durably, before its device appears (I11).
func (l *Locked) AttachRaw(ctx context.Context) (device string, err error) {
	used := func() error {
		info, err := l.Info()
		if err == nil && info.State != blockstore.StateUsed {
			err = l.SetState(blockstore.StateUsed, "")
		}
		return err
	}
	if _, attached := l.Device(); attached { // to be formatted, perhaps
		if err := used(); err != nil {
			return "", err
		}
	}
	return l.attachAs(ctx, ReadWrite, used)
}

// Attach makes the volume into a block device and names it. A volume that is attached
// already in this mode stays where it is; in another mode it is ErrInUse. ErrLimit
// when no more volumes may be attached here.
//
// The record is written twice. Killed before the first time, nothing is there.
// Killed after it and before the second, the record says that there may be a device,
// which ClearDead then finds by the volume's name. Killed later, it names the device.
func (l *Locked) Attach(ctx context.Context, mode Mode) (device string, err error) {
	return l.attachAs(ctx, mode, nil)
}

// attachAs is Attach that runs ready when the volume is open and before its device
// appears.
func (l *Locked) attachAs(ctx context.Context, mode Mode, ready func() error) (device string, err error) {
	a := l.a
	if at := a.find(l.id); at != nil && at.device.Gone() {
		// A detach that did not end: its device may be another volume's by now.
		if err := l.Detach(ctx); err != nil {
			return "", err
		}
	} else if at != nil {
		if at.mode != mode {
			return "", fmt.Errorf("volume %s is attached %s at %s, it cannot be attached %s beside that: %w",
				l.id, at.mode, at.device.Path(), mode, blockstore.ErrInUse)
		}
		return at.device.Path(), nil
	}
	if err := a.clearLeft(ctx, l.id); err != nil {
		return "", err
	}
	if err := a.takePlace(); err != nil {
		return "", fmt.Errorf("attach volume %s: %w", l.id, err)
	}
	at, err := l.attach(ctx, mode, ready)
	if err != nil {
		a.leavePlace()
		return "", fmt.Errorf("attach volume %s: %w", l.id, sentinel(err))
	}
	a.checkTimeout()
	a.mu.Lock()
	a.mu.last++
	at.serial = a.mu.last
	a.mu.attached[l.id] = at
	a.mu.Unlock()
	a.log.Info("attached", "volume_id", l.id, "device", at.device.Path(), "mode", mode.String())
	return at.device.Path(), nil
}

// attach does what Attach does to store and machine. After an error nothing is left.
func (l *Locked) attach(ctx context.Context, mode Mode, ready func() error) (*attachment, error) {
	a := l.a
	open := a.store.OpenVolume
	if mode != ReadWrite {
		open = a.store.OpenScratch
	}
	volume, err := open(ctx, l.id)
	if err != nil {
		return nil, err
	}
	if ready != nil {
		if err := ready(); err != nil {
			return nil, errors.Join(err, volume.Close())
		}
	}
	at := &attachment{volume: volume, mode: mode}
	if err := a.store.PutAttachment(at.record(l.id)); err != nil {
		return nil, errors.Join(err, volume.Close())
	}
	at.device, err = export.Attach(ctx, a.host, volume, export.Options{
		Name:        l.id,
		SectorBytes: volume.SectorBytes(),
		ReadOnly:    mode == ReadOnly,
		Buffers:     a.buffers,
		Logger:      a.log.With("volume_id", l.id),
	})
	if err != nil {
		return nil, errors.Join(err, volume.Close(), a.store.RemoveAttachment(l.id))
	}
	if err := a.store.PutAttachment(at.record(l.id)); err != nil {
		// Nobody was told of the device: nothing on it has to be flushed.
		ended := at.device.Abort()
		err = errors.Join(err, ended, volume.Close())
		if ended == nil { // else the first record lets the next attach clear it
			err = errors.Join(err, a.store.RemoveAttachment(l.id))
		}
		return nil, err
	}
	return at, nil
}

// Detach takes the block device away and closes the volume. ErrInUse, naming the
// mount points or who has the device open, changes nothing, and neither does a flush
// that fails: the call can be repeated. ErrNoSpace if the flush would wait for disk space
// without limit. nil if the volume is not attached. A volume that failed closed is
// detached without the flush that it cannot do.
func (l *Locked) Detach(ctx context.Context) error {
	a := l.a
	at := a.find(l.id)
	if at == nil {
		return nil
	}
	if err := a.waits(l.id); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	bounded, cancel := a.leaving(ctx, l.id)
	err := at.device.Detach(bounded)
	cancel()
	if err != nil && !errors.Is(err, export.ErrInUse) && l.failed() {
		a.log.Warn("volume failed closed: detached without a flush", "volume_id", l.id, "err", err)
		err = at.device.Abort()
	}
	if err != nil {
		return sentinel(err)
	}
	a.mu.Lock()
	delete(a.mu.attached, l.id)
	a.mu.places--
	a.mu.Unlock()
	if err := errors.Join(at.volume.Close(), a.store.RemoveAttachment(l.id)); err != nil {
		return fmt.Errorf("volume %s is detached, but: %w", l.id, err)
	}
	a.log.Info("detached", "volume_id", l.id, "device", at.device.Path())
	return nil
}

// failed tells whether the volume failed closed.
func (l *Locked) failed() bool {
	info, err := l.Info()
	return err == nil && info.Failed != ""
}

// Resize grows the volume in the catalog and then its device, if it has one; what is
// on it stays as it is. ErrRange if size cannot be had. It can be repeated.
func (l *Locked) Resize(ctx context.Context, size int64) (blockstore.VolumeInfo, error) {
	info, err := l.a.store.ResizeVolume(l.id, size)
	if err != nil {
		return info, err
	}
	if at := l.a.find(l.id); at != nil {
		if err := at.device.Resize(ctx); err != nil {
			return info, fmt.Errorf("resize volume %s: the catalog has the new size, the device %s not yet: %w",
				l.id, at.device.Path(), sentinel(err))
		}
	}
	return info, nil
}

// SetSize grows the volume in the catalog alone; Resize brings the device up to it
// later. ErrRange if size cannot be had.
func (l *Locked) SetSize(size int64) (blockstore.VolumeInfo, error) {
	return l.a.store.ResizeVolume(l.id, size)
}

// Delete deletes the volume. ErrInUse says where it is attached and mounted.
func (l *Locked) Delete(ctx context.Context) error {
	at := l.a.find(l.id)
	if at != nil && at.device.Gone() {
		if err := l.Detach(ctx); err != nil {
			return err
		}
		at = nil
	}
	if at == nil {
		if err := l.a.clearLeft(ctx, l.id); err != nil {
			return err
		}
		return l.a.store.DeleteVolume(l.id)
	}
	where := "attached at " + at.device.Path()
	if mounted, err := l.a.mounted(at); err == nil && len(mounted) > 0 {
		where += " and mounted on " + strings.Join(mounted, ", ")
	}
	return fmt.Errorf("volume %s is %s, detach it first: %w", l.id, where, blockstore.ErrInUse)
}

// Device tells where the volume is attached.
func (l *Locked) Device() (device string, ok bool) { return l.a.Device(l.id) }

// Uses lists what the volume is used for, as on record, the oldest first. The caller
// does not change it.
func (l *Locked) Uses() []blockstore.Use {
	if at := l.a.find(l.id); at != nil {
		return l.a.usesOf(at)
	}
	return nil
}

// ByCommand tells whether somebody attached the volume by a command and has not
// detached it.
func (l *Locked) ByCommand() bool { return slices.Contains(l.Uses(), byCommand) }

// AddUse puts a use on record, in place of one of the same path; call it before
// mounting there, so that a start after a kill finds the mount. ErrInvalid if the
// volume is not attached.
func (l *Locked) AddUse(use blockstore.Use) error {
	uses := slices.Clone(l.Uses())
	i := slices.IndexFunc(uses, func(u blockstore.Use) bool { return u.Path == use.Path })
	switch {
	case i >= 0 && uses[i] == use:
		return nil
	case i >= 0:
		uses[i] = use
	default:
		uses = append(uses, use)
	}
	return l.setUses(uses)
}

// RemoveUse takes what is at a path off the record; call it after unmounting.
func (l *Locked) RemoveUse(path string) error {
	uses := l.Uses()
	i := slices.IndexFunc(uses, func(u blockstore.Use) bool { return u.Path == path })
	if i < 0 {
		return nil
	}
	return l.setUses(slices.Delete(slices.Clone(uses), i, i+1))
}

// setUses replaces what is on record.
func (l *Locked) setUses(uses []blockstore.Use) error {
	at := l.a.find(l.id)
	if at == nil {
		return fmt.Errorf("volume %s is not attached: %w", l.id, blockstore.ErrInvalid)
	}
	record := at.record(l.id)
	record.Uses = uses
	if err := l.a.store.PutAttachment(record); err != nil {
		return fmt.Errorf("record the uses of volume %s: %w", l.id, err)
	}
	l.a.mu.Lock()
	at.uses = uses
	l.a.mu.Unlock()
	return nil
}

func (a *Attachments) usesOf(at *attachment) []blockstore.Use {
	a.mu.Lock()
	defer a.mu.Unlock()
	return at.uses
}

// mounted lists where a volume is mounted now, oldest first: as a filesystem, also by
// somebody whom nobody told us about, or as a device node bound to one of the paths
// on record.
func (a *Attachments) mounted(at *attachment) ([]string, error) {
	if at.device.Gone() {
		return nil, nil
	}
	all, err := a.host.Mounts()
	if err != nil {
		return nil, err
	}
	uses := a.usesOf(at)
	var targets []string
	for _, m := range all {
		used := func(u blockstore.Use) bool { return u.Path == m.Target }
		if m.Device == at.device.Path() || slices.ContainsFunc(uses, used) {
			targets = append(targets, m.Target)
		}
	}
	return targets, nil
}

// sentinel adds the sentinel of package blockstore that callers know to an error of
// package export.
func sentinel(err error) error {
	switch {
	case errors.Is(err, export.ErrInUse):
		return &knownError{err, blockstore.ErrInUse}
	case errors.Is(err, export.ErrInvalid):
		return &knownError{err, blockstore.ErrInvalid}
	}
	return err
}

// knownError is an error that answers to a sentinel as well; its text has all there is.
type knownError struct {
	err, sentinel error
}

func (e *knownError) Error() string   { return e.err.Error() }
func (e *knownError) Unwrap() []error { return []error{e.sentinel, e.err} }
