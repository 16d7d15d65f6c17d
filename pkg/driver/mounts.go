package driver

import (
	"context"
	"fmt"
	"slices"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/export"
)

// topmost is what is mounted at target, nil for nothing.
func (d *Driver) topmost(target string) (*export.Mount, error) {
	return export.IsMounted(d.host, target)
}

// mountsOf lists where a device is mounted as a filesystem, oldest first.
func (d *Driver) mountsOf(device string) ([]export.Mount, error) {
	mounts, err := d.host.Mounts()
	return slices.DeleteFunc(mounts, func(m export.Mount) bool { return !m.IsFilesystemOf(device) }), err
}

// unmount undoes what of this volume is mounted on target and takes it off the record;
// nil if there is nothing. Somebody else's mount is errState. ErrNoSpace if the volume
// waits for disk space.
func (d *Driver) unmount(ctx context.Context, volume *attach.Locked, target string) error {
	device, attached := volume.Device()
	for {
		m, err := d.topmost(target)
		if err != nil {
			return err
		}
		if m == nil {
			break
		}
		if !attached || !m.IsFilesystemOf(device) && !m.IsNodeOf(device) {
			return fmt.Errorf("on %s something else is mounted (%s), not this volume: %w", target, m.Device, errState)
		}
		if err := volume.Unmount(ctx, target); err != nil {
			return err
		}
	}
	return volume.RemoveUse(target)
}
