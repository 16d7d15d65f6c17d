package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// Locked is a volume whose lock the caller holds. It is used by one goroutine and
// not after Unlock.
type Locked struct {
	a  *Attachments
	id string
}

// Unlock lets the next operation on the volume in.
func (l *Locked) Unlock() { l.a.locks.release(l.id) }

// Info describes the volume; ErrNotFound.
func (l *Locked) Info() (blockstore.VolumeInfo, error) { return l.a.store.Volume(l.id) }

// SetState moves the volume on towards used (I11); durable on return.
func (l *Locked) SetState(state blockstore.VolumeState, fsType string) error {
	return l.a.store.SetVolumeState(l.id, state, fsType)
}

// AttachRaw is Attach for a caller who may write anything there: the volume is used,
// durably, before its device appears (I11).
func (l *Locked) AttachRaw(ctx context.Context) (device string, err error) {
	info, err := l.Info()
	if err != nil {
		return "", err
	}
	if info.State != blockstore.StateUsed {
		if err := l.SetState(blockstore.StateUsed, ""); err != nil {
			return "", err
		}
	}
	return l.Attach(ctx)
}

// Attach makes the volume into a block device and names it. A volume that is attached
// already stays where it is.
//
// The record is written twice. Killed before the first time, nothing is there.
// Killed after it and before the second, the record says that there may be a device,
// which ClearDead then finds by the volume's name. Killed later, it names the device.
func (l *Locked) Attach(ctx context.Context) (device string, err error) {
	a := l.a
	if at := a.find(l.id); at != nil {
		return at.device.Path(), nil
	}
	volume, err := a.store.OpenVolume(ctx, l.id)
	if err != nil {
		return "", err
	}
	if err := a.store.PutAttachment(blockstore.Attachment{Volume: l.id}); err != nil {
		return "", errors.Join(fmt.Errorf("attach volume %s: %w", l.id, err), volume.Close())
	}
	dev, err := export.Attach(ctx, a.host, volume, export.Options{
		Name:        l.id,
		SectorBytes: volume.SectorBytes(),
		Buffers:     a.buffers,
		Logger:      a.log.With("volume_id", l.id),
	})
	if err != nil {
		err = fmt.Errorf("attach volume %s: %w", l.id, sentinel(err))
		return "", errors.Join(err, volume.Close(), a.store.RemoveAttachment(l.id))
	}
	if err := a.store.PutAttachment(blockstore.Attachment{Volume: l.id, Device: dev.Path()}); err != nil {
		err = fmt.Errorf("attach volume %s: %w", l.id, err)
		return "", errors.Join(err, dev.Detach(ctx), volume.Close(), a.store.RemoveAttachment(l.id))
	}
	a.mu.Lock()
	a.mu.last++
	a.mu.attached[l.id] = &attachment{volume: volume, device: dev, serial: a.mu.last}
	a.mu.Unlock()
	a.log.Info("attached", "volume_id", l.id, "device", dev.Path())
	return dev.Path(), nil
}

// Detach takes the block device away and closes the volume. ErrInUse, naming the
// mount points or who has the device open, changes nothing, and neither does a flush
// that fails: the call can be repeated. nil if the volume is not attached. A volume
// that failed closed is detached without the flush that it cannot do.
func (l *Locked) Detach(ctx context.Context) error {
	a := l.a
	at := a.find(l.id)
	if at == nil {
		return nil
	}
	err := at.device.Detach(ctx)
	if err != nil && !errors.Is(err, export.ErrInUse) && l.failed() {
		a.log.Warn("volume failed closed: detached without a flush", "volume_id", l.id, "err", err)
		err = at.device.Abort()
	}
	if err != nil {
		return sentinel(err)
	}
	a.mu.Lock()
	delete(a.mu.attached, l.id)
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
func (l *Locked) Delete(context.Context) error {
	at := l.a.find(l.id)
	if at == nil {
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

// Mounts lists the mount points on record.
func (l *Locked) Mounts() []string {
	if at := l.a.find(l.id); at != nil {
		return at.mounts
	}
	return nil
}

// AddMount puts a mount point on record; call it before mounting, so that a start
// after a kill finds the mount. ErrInvalid if the volume is not attached.
func (l *Locked) AddMount(target string) error {
	mounts := l.Mounts()
	if slices.Contains(mounts, target) {
		return nil
	}
	return l.SetMounts(append(slices.Clone(mounts), target))
}

// RemoveMount takes a mount point off the record; call it after unmounting.
func (l *Locked) RemoveMount(target string) error {
	mounts := l.Mounts()
	i := slices.Index(mounts, target)
	if i < 0 {
		return nil
	}
	return l.SetMounts(slices.Delete(slices.Clone(mounts), i, i+1))
}

// SetMounts replaces the mount points on record. ErrInvalid if the volume is not
// attached.
func (l *Locked) SetMounts(mounts []string) error {
	at := l.a.find(l.id)
	if at == nil {
		return fmt.Errorf("volume %s is not attached: %w", l.id, blockstore.ErrInvalid)
	}
	record := blockstore.Attachment{Volume: l.id, Device: at.device.Path(), Mounts: mounts}
	if err := l.a.store.PutAttachment(record); err != nil {
		return fmt.Errorf("record the mounts of volume %s: %w", l.id, err)
	}
	l.a.mu.Lock()
	at.mounts = mounts
	l.a.mu.Unlock()
	return nil
}

// mounted lists where a volume is mounted now, oldest first: as a filesystem, also by
// somebody whom nobody told us about, or as a device node bound to one of the mount
// points on record.
func (a *Attachments) mounted(at *attachment) ([]string, error) {
	all, err := a.host.Mounts()
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, m := range all {
		if m.Device == at.device.Path() || slices.Contains(at.mounts, m.Target) {
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
