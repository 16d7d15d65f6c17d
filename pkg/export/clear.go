package export

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// ClearDead removes what a killed daemon left of an attached device: a loop device whose
// server is gone, perhaps still mounted. device, name and mounts are what the caller had
// recorded. Mounts of that device at those targets are unmounted, by force if need be,
// and the device is detached, at once or with its last opener; but only if the device is
// still the one attached under that name, and only mounts that are of it. If it is not,
// or is gone, ClearDead only unmounts its node there and returns nil. It must not be called for a device
// that is served.
func ClearDead(ctx context.Context, h Host, device, name string, mounts []string) error {
	if err := clearDead(ctx, h, device, name, mounts); err != nil {
		return fmt.Errorf("clear dead device %s of %s: %w", device, name, err)
	}
	return nil
}

func clearDead(ctx context.Context, h Host, device, name string, mounts []string) error {
	if err := clearNodes(h, device, mounts); err != nil {
		return err
	}
	b, err := h.LoopBacking(device)
	if errors.Is(err, ErrNotAttached) || err == nil && !b.Is(name) {
		return nil
	}
	if err != nil {
		return err
	}
	table, err := h.Mounts()
	if err != nil {
		return err
	}
	// The newest first: a bind mount goes before what it was made of.
	for _, m := range slices.Backward(table) {
		if !slices.Contains(mounts, m.Target) || !m.uses(device, b) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if h.Unmount(m.Target) == nil {
			continue
		}
		if err := h.ForceUnmount(m.Target); err != nil {
			return err
		}
	}
	// Looking at the name once more: unmounting may have been the last use of a device
	// that was to go with it, and the number may be another's by now.
	return detachIfOurs(ctx, h, device, name)
}

// clearNodes unmounts the device's node where the caller had it bound. It was ours when
// it was, whatever is behind the device by now: left there, it would show whoever gets
// the number next.
func clearNodes(h Host, device string, mounts []string) error {
	table, err := h.Mounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(table) {
		if !slices.Contains(mounts, m.Target) || !m.IsNodeOf(device) {
			continue
		}
		if err := h.ForceUnmount(m.Target); err != nil {
			return err
		}
	}
	return nil
}

// detachIfOurs marks the device to go with its last opener if it is attached under name.
func detachIfOurs(ctx context.Context, h Host, device, name string) error {
	b, err := h.LoopBacking(device)
	if errors.Is(err, ErrNotAttached) || err == nil && !b.Is(name) {
		return nil
	}
	if err != nil {
		return err
	}
	err = h.DetachLoop(ctx, device, true)
	if errors.Is(err, ErrNotAttached) {
		return nil
	}
	return err
}
