package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// NodePublishVolume implements csi.NodeServer: the staged filesystem, or the raw
// device's node, appears at the target path by a bind mount.
func (d *Driver) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	a, err := parseTarget(req.GetVolumeId(), "target path", req.GetTargetPath(), req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if req.GetStagingTargetPath() == "" {
		return nil, fmt.Errorf("the staging target path is missing: NodeStageVolume comes first: %w", errState)
	}
	if err := checkPath("staging target path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	volume, info, err := d.locked(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := a.suits(info.Source); err != nil {
		return nil, exceeds(err)
	}
	target, err := d.place("target path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	p := publish{
		d: d, volume: volume, info: info, access: a,
		readOnly: a.readOnly || req.GetReadonly(),
		staging:  resolve(req.GetStagingTargetPath()),
		target:   target,
	}
	return &csi.NodePublishVolumeResponse{}, p.run(ctx)
}

// publish is one NodePublishVolume under the volume's lock.
type publish struct {
	d               *Driver
	volume          *attach.Locked
	info            blockstore.VolumeInfo
	access          access
	readOnly        bool
	staging, target string

	device string
}

func (p *publish) run(ctx context.Context) error {
	source, readOnly, err := p.source()
	if err != nil {
		return err
	}
	use := blockstore.Use{Path: p.target, Purpose: publishPurpose(p.access, readOnly)}
	done, err := p.done(use)
	if done || err != nil {
		return err
	}
	if err := p.beside(); err != nil {
		return err
	}
	if err := makeTarget(p.target, p.access.block); err != nil {
		return err
	}
	var flags []string
	if readOnly && !p.access.block { // the device itself refuses writes
		flags = []string{"ro"}
	}
	if err := p.volume.AddUse(use); err != nil {
		return errors.Join(err, removeTarget(p.target))
	}
	if err := p.d.host.BindMount(ctx, source, p.target, flags); err != nil {
		// Before Linux 5.12 a read-only bind mount is two mounts: the first may be there. A
		// caller that has given up must not leave it, and a use on record, behind.
		return errors.Join(err, p.d.unmount(context.WithoutCancel(ctx), p.volume, p.target), removeTarget(p.target))
	}
	return nil
}

// source is what to bind at the target, and whether it is for reading only. errState
// if that is not staged.
func (p *publish) source() (path string, readOnly bool, err error) {
	var attached bool
	p.device, attached = p.volume.Device()
	staged := useAt(p.volume.Uses(), p.staging)
	if !attached || staged == nil {
		return "", false, fmt.Errorf("volume %s is not staged on %s: NodeStageVolume comes first: %w", p.info.ID, p.staging, errState)
	}
	stagedReadOnly := isReadOnly(*staged)
	if isBlock(*staged) != p.access.block {
		return "", false, fmt.Errorf("volume %s is staged on %s by %q, which is not what this call wants: %w", p.info.ID, p.staging, staged.Purpose, errState)
	}
	if p.access.block {
		if p.readOnly && !stagedReadOnly {
			return "", false, errReadOnlyBlock
		}
		return p.device, stagedReadOnly, nil
	}
	m, err := p.d.topmost(p.staging)
	if err != nil {
		return "", false, err
	}
	if m == nil || !m.IsFilesystemOf(p.device) {
		return "", false, fmt.Errorf("nothing is mounted on %s: NodeStageVolume comes first: %w", p.staging, errState)
	}
	return p.staging, p.readOnly || stagedReadOnly || slices.Contains(m.Options, "ro"), nil
}

// errReadOnlyBlock: a read-only bind mount of a device node does not keep anybody
// from writing, so nothing claims that it does.
var errReadOnlyBlock = fmt.Errorf("the raw block device is staged for writing, it cannot be published read-only: "+
	"use access mode SINGLE_NODE_READER_ONLY, or ControllerPublishVolume with readonly: %w", blockstore.ErrInvalid)

// done tells whether an earlier call has done everything; ErrExists if what is there
// is something else.
func (p *publish) done(use blockstore.Use) (bool, error) {
	m, err := p.d.topmost(p.target)
	if err != nil {
		return false, err
	}
	have := useAt(p.volume.Uses(), p.target)
	ours := m != nil && (p.access.block && m.IsNodeOf(p.device) || !p.access.block && m.IsFilesystemOf(p.device))
	switch {
	case m != nil && (!ours || have == nil):
		return false, fmt.Errorf("on %s something else is mounted (%s): %w", p.target, m.Device, blockstore.ErrExists)
	case have == nil:
		return false, nil
	case have.Purpose != use.Purpose:
		return false, fmt.Errorf("volume %s is at %s already by %q, this call is %q: %w", p.info.ID, p.target, have.Purpose, use.Purpose, blockstore.ErrExists)
	}
	return m != nil, nil
}

// beside refuses a second target unless both allow it.
func (p *publish) beside() error {
	for _, other := range usesOf(p.volume.Uses(), publishedAs) {
		if other.Path == p.target || p.access.many() && isMany(other) {
			continue
		}
		return fmt.Errorf("volume %s is published on %s by %q, and %s allows no second target: %w", p.info.ID, other.Path, other.Purpose, p.access.mode, errState)
	}
	return nil
}

// NodeUnpublishVolume implements csi.NodeServer: the target is unmounted and removed.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	volume, target, err := d.leave(ctx, req.GetVolumeId(), "target path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	if volume == nil {
		return &csi.NodeUnpublishVolumeResponse{}, removeTarget(target)
	}
	if use := useAt(volume.Uses(), target); use != nil && !slices.Contains(usesOf(volume.Uses(), publishedAs), *use) {
		return nil, fmt.Errorf("%s is where the volume is staged, not published: %w", target, errState)
	}
	if err := d.unmount(ctx, volume, target); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, removeTarget(target)
}

// leave checks what unstage and unpublish have in common. The volume is nil if it has
// been deleted but its place is still there: after a restart of the node a CO may delete
// a volume before it cleans up behind the pod, and would repeat the call for ever if it
// were told that the volume does not exist.
func (d *Driver) leave(ctx context.Context, handle, what, path string) (*attach.Locked, string, error) {
	if handle == "" {
		return nil, "", fmt.Errorf("the volume ID is missing: %w", blockstore.ErrInvalid)
	}
	if err := checkPath(what, path); err != nil {
		return nil, "", err
	}
	volume, _, missing := d.locked(ctx, handle)
	if missing != nil && (volume == nil || !errors.Is(missing, blockstore.ErrNotFound)) {
		return nil, "", missing
	}
	path, err := d.place(what, path)
	if err != nil || missing == nil {
		return volume, path, err
	}
	if _, err := os.Lstat(path); err != nil {
		return nil, "", missing
	}
	if m, err := d.topmost(path); err != nil || m != nil {
		return nil, "", cmp.Or(err, missing)
	}
	return nil, path, nil
}
