package attach

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// ClearDead removes what a killed daemon left: for every record its mounts, its
// device, then the record. It runs before the first Attach. What cannot be cleared
// keeps its record and is part of the error; everything else is cleared all the same.
func (a *Attachments) ClearDead(ctx context.Context) error {
	var failed []error
	for _, record := range a.store.Attachments() {
		if err := a.clearDead(ctx, record); err != nil {
			failed = append(failed, fmt.Errorf("clear what is left of volume %s: %w", record.Volume, err))
			continue
		}
		a.log.Info("cleared what a killed daemon left", "volume_id", record.Volume,
			"device", record.Device, "uses", record.Uses)
	}
	return errors.Join(failed...)
}

// clearLeft clears what the start could not clear of a volume that is not attached: it is
// on record still, and attaching or deleting the volume would lose that.
func (a *Attachments) clearLeft(ctx context.Context, id string) error {
	record, ok := a.store.Attachment(id)
	if !ok {
		return nil
	}
	if err := a.clearDead(ctx, record); err != nil {
		return fmt.Errorf("what a killed daemon left of volume %s is still there: %w", id, err)
	}
	return nil
}

func (a *Attachments) clearDead(ctx context.Context, record blockstore.Attachment) error {
	devices := []string{record.Device}
	if record.Device == "" {
		// Killed between the two records of Attach.
		var err error
		if devices, err = a.devicesOf(record.Volume); err != nil {
			return err
		}
	}
	var paths []string
	for _, use := range record.Uses {
		paths = append(paths, use.Path)
	}
	for _, device := range devices {
		if err := export.ClearDead(ctx, a.host, device, record.Volume, paths); err != nil {
			return err
		}
	}
	return a.store.RemoveAttachment(record.Volume)
}

// devicesOf finds the loop devices that were made for a volume.
func (a *Attachments) devicesOf(id string) ([]string, error) {
	all, err := a.loopDevices()
	if err != nil {
		return nil, err
	}
	var devices []string
	for _, device := range all {
		if backing, err := a.host.LoopBacking(device); err == nil && backing.Is(id) {
			devices = append(devices, device)
		}
	}
	return devices, nil
}

// loopDevices lists the loop devices of this machine.
func loopDevices() ([]string, error) {
	names, err := filepath.Glob("/sys/block/loop*")
	for i, name := range names {
		names[i] = "/dev/" + filepath.Base(name)
	}
	return names, err
}

// Shutdown ends everything that is attached, the newest first, because the process is
// leaving. From then on Lock is ErrClosed. Volumes that are mounted are logged,
// synced and unmounted; where somebody still uses them, the device is flushed and the
// volume closed under it, so that everything written until then is safe, and the
// record stays for the next start to clear. The error joins what went wrong.
func (a *Attachments) Shutdown(ctx context.Context) error {
	a.mu.Lock()
	a.mu.closed = true
	a.mu.Unlock()
	var failed []error
	ended := make(map[string]bool)
	for more := true; more; {
		more = a.attaching() // one that has begun may still come
		failed = append(failed, a.endAll(ctx, ended)...)
		if more {
			select {
			case <-ctx.Done():
				more = false
			case <-time.After(attachPoll):
			}
		}
	}
	return errors.Join(failed...)
}

// attachPoll is how often Shutdown looks whether an attach that had begun has ended.
const attachPoll = 20 * time.Millisecond

// attaching tells whether a volume is being attached.
func (a *Attachments) attaching() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.places > len(a.mu.attached)
}

// endAll ends what is attached and not among those that were ended already.
func (a *Attachments) endAll(ctx context.Context, ended map[string]bool) (failed []error) {
	for _, at := range slices.Backward(a.List()) {
		if ended[at.Volume] {
			continue
		}
		ended[at.Volume] = true
		name := ""
		if info, err := a.store.Volume(at.Volume); err == nil {
			name = info.Name
		}
		a.log.Info("still attached: ending it", "volume", name, "volume_id", at.Volume, "device", at.Device)
		if err := a.end(ctx, at); err != nil {
			a.log.Error("ending an attached volume", "volume_id", at.Volume, "device", at.Device, "err", err)
			failed = append(failed, err)
		}
	}
	return failed
}

// end ends one attachment. A call that still works on the volume when ctx ends, or when
// the volume is found waiting for disk space, loses it.
func (a *Attachments) end(ctx context.Context, record blockstore.Attachment) error {
	ctx, cancel := a.leaving(ctx, record.Volume)
	defer cancel()
	l := a.newLocked(record.Volume)
	if err := a.locks.Wait(ctx, record.Volume); err != nil {
		a.log.Warn("an operation on the volume has not ended", "volume_id", record.Volume, "err", context.Cause(ctx))
		l.holders.Add(1) // the lock is that operation's
	}
	defer l.Unlock()
	at := a.find(record.Volume)
	if at == nil {
		return nil
	}
	if busy := a.unmountAll(ctx, l, at); !busy {
		err := l.Detach(ctx)
		if !errors.Is(err, blockstore.ErrInUse) && !errors.Is(err, blockstore.ErrNoSpace) {
			return err
		}
		a.log.Warn("volume is still in use", "volume_id", l.id, "err", err)
	}
	return a.closeUnder(ctx, l, at)
}

// closeUnder closes a volume under whoever uses it, after a flush if there is one to be
// had. Writes that wait for disk space fail then: nobody was told that they are done.
func (a *Attachments) closeUnder(ctx context.Context, l *Locked, at *attachment) error {
	err := a.waits(l.id)
	if err == nil {
		err = export.Within(ctx, func() error { return a.host.FlushDevice(at.device.Path()) })
	}
	if errors.Is(err, blockstore.ErrNoSpace) || gaveUp(ctx, err) {
		a.log.Warn("volume is closed without a flush", "volume_id", l.id, "err", err)
		err = nil
	}
	return errors.Join(err, at.volume.Close())
}

// unmountAll syncs and unmounts what is mounted of a device, the newest mount first,
// and tells whether anything stays mounted.
func (a *Attachments) unmountAll(ctx context.Context, l *Locked, at *attachment) (busy bool) {
	targets, err := a.mounted(at)
	if err != nil {
		a.log.Warn("the mount table cannot be read", "volume_id", l.id, "err", err)
		return true
	}
	if len(targets) == 0 {
		return false
	}
	a.log.Warn("volume is still mounted", "volume_id", l.id, "device", at.device.Path(), "mounts", strings.Join(targets, ", "))
	if err := l.writeBack(ctx, targets[0]); err != nil { // also if it then stays mounted
		a.log.Warn("mounts stay behind without their device", "volume_id", l.id, "err", err)
		return true
	}
	for _, target := range slices.Backward(targets) {
		if err := l.Unmount(ctx, target); err != nil {
			a.log.Warn("mount stays behind without its device", "volume_id", l.id, "mount", target, "err", err)
			busy = true
			continue
		}
		if err := l.RemoveUse(target); err != nil {
			a.log.Warn("record of a mount", "volume_id", l.id, "mount", target, "err", err)
		}
	}
	return busy
}
