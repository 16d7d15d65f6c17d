package driver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// checkPath refuses a path that is missing or not absolute.
func checkPath(what, path string) error {
	switch {
	case path == "":
		return fmt.Errorf("the %s is missing: %w", what, blockstore.ErrInvalid)
	case !filepath.IsAbs(path):
		return fmt.Errorf("the %s %q is not absolute: %w", what, path, blockstore.ErrInvalid)
	}
	return nil
}

// resolve gives a path as the mount table has it: without symbolic links above its
// last element. That one is not looked at, it may be a dead mount.
func resolve(path string) string {
	path = filepath.Clean(path)
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return path
}

// topmost is what is mounted at target, nil for nothing.
func (d *Driver) topmost(target string) (*export.Mount, error) {
	return export.IsMounted(d.host, target)
}

// mountsOf lists where a device is mounted as a filesystem, oldest first.
func (d *Driver) mountsOf(device string) ([]export.Mount, error) {
	mounts, err := d.host.Mounts()
	return slices.DeleteFunc(mounts, func(m export.Mount) bool { return !isFilesystemOf(&m, device) }), err
}

// isFilesystemOf tells whether a mount is of the filesystem on the device.
func isFilesystemOf(m *export.Mount, device string) bool {
	return m.Device == device && !isNodeOf(m, device)
}

// isNodeOf tells whether a mount is a bind mount of the device's node: a file of that
// name in the filesystem that is mounted on /dev, or below /dev in another.
func isNodeOf(m *export.Mount, device string) bool {
	if m.FSType == "devtmpfs" || m.FSType == "tmpfs" {
		return "/dev"+m.Root == device
	}
	return m.Device != device && strings.HasSuffix(m.Root, device)
}

// mountAt mounts a device, on record before it is mounted.
func (d *Driver) mountAt(ctx context.Context, volume *attach.Locked, device, target, fsType string, flags []string) error {
	if err := os.MkdirAll(target, 0o750); err != nil {
		return fmt.Errorf("make the staging directory: %w", err)
	}
	if err := volume.AddMount(target); err != nil {
		return err
	}
	return d.host.Mount(ctx, device, target, fsType, flags)
}

// makeTarget makes what a bind mount needs to be mounted on: a directory, or a file
// for a device node.
func makeTarget(target string, file bool) error {
	if !file {
		if err := os.MkdirAll(target, 0o750); err != nil {
			return fmt.Errorf("make the target: %w", err)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return fmt.Errorf("make the target: %w", err)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o640)
	if err != nil {
		return fmt.Errorf("make the target: %w", err)
	}
	return f.Close()
}

// unmount undoes what of this volume is mounted on target and takes it off the record;
// nil if there is nothing. Somebody else's mount is errState.
func (d *Driver) unmount(volume *attach.Locked, target string) error {
	device, attached := volume.Device()
	for {
		m, err := d.topmost(target)
		if err != nil {
			return err
		}
		if m == nil {
			break
		}
		if !attached || !isFilesystemOf(m, device) && !isNodeOf(m, device) {
			return fmt.Errorf("on %s something else is mounted (%s), not this volume: %w", target, m.Device, errState)
		}
		if err := d.host.Unmount(target); err != nil {
			return err
		}
	}
	return volume.RemoveMount(target)
}
