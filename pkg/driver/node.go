package driver

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             d.o.NodeID,
		MaxVolumesPerNode:  int64(d.o.MaxVolumes),
		AccessibleTopology: d.topology(),
	}, nil
}

// NodeStageVolume implements csi.NodeServer: the volume becomes a block device, and,
// unless it is wanted raw, its filesystem is mounted on the staging path.
func (d *Driver) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	a, err := parseTarget(req.GetVolumeId(), "staging target path", req.GetStagingTargetPath(), req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	volume, info, err := d.locked(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := a.suits(info.Source); err != nil {
		return nil, exceeds(err)
	}
	target, err := d.place("staging target path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	s := stage{
		d: d, volume: volume, info: info, access: a,
		readOnly: a.readOnly || req.GetPublishContext()[contextReadOnly] == "true",
		target:   target,
	}
	return &csi.NodeStageVolumeResponse{}, s.run(ctx)
}

// parseTarget checks what stage and publish have in common.
func parseTarget(handle, what, path string, c *csi.VolumeCapability) (access, error) {
	if handle == "" {
		return access{}, fmt.Errorf("the volume ID is missing: %w", blockstore.ErrInvalid)
	}
	if err := checkPath(what, path); err != nil {
		return access{}, err
	}
	a, err := parseAccess(c)
	return a, exceeds(err)
}

// NodeUnstageVolume implements csi.NodeServer: what NodeStageVolume did is undone. It
// is refused while the volume is still published, and while its writes wait for disk
// space without limit.
func (d *Driver) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	volume, target, err := d.leave(ctx, req.GetVolumeId(), "staging target path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	if volume == nil {
		return &csi.NodeUnstageVolumeResponse{}, nil
	}
	if use := useAt(volume.Uses(), target); use != nil && strings.HasPrefix(use.Purpose, publishedAs) {
		return nil, fmt.Errorf("%s is where the volume is published, not staged: %w", target, errState)
	}
	stages := slices.DeleteFunc(usesOf(volume.Uses(), stagedAs), func(u blockstore.Use) bool { return u.Path == target })
	if len(stages) > 0 { // at another path too
		return &csi.NodeUnstageVolumeResponse{}, d.unmount(ctx, volume, target)
	}
	if err := d.checkUnpublished(volume); err != nil {
		return nil, err
	}
	if !volume.ByCommand() { // a raw device is flushed later than its stage is off the record
		if err := volume.Waits(); err != nil {
			return nil, err
		}
	}
	if err := d.unmount(ctx, volume, target); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, d.letGo(ctx, volume)
}

// letGo detaches a volume that is staged nowhere any more, unless somebody has attached
// it by a command as well.
func (d *Driver) letGo(ctx context.Context, volume *attach.Locked) error {
	if !volume.ByCommand() {
		if err := volume.Detach(ctx); err != nil {
			return err
		}
	}
	info, err := volume.Info()
	if err != nil {
		return err
	}
	return d.release(info)
}

// checkUnpublished refuses to let go of a volume that is mounted where it was
// published. What is only on record was unmounted by somebody else.
func (d *Driver) checkUnpublished(volume *attach.Locked) error {
	device, _ := volume.Device()
	for _, use := range usesOf(volume.Uses(), publishedAs) {
		m, err := d.topmost(use.Path)
		if err != nil {
			return err
		}
		if m != nil && (m.IsFilesystemOf(device) || m.IsNodeOf(device)) {
			return fmt.Errorf("the volume is still published on %s: NodeUnpublishVolume comes first: %w", use.Path, blockstore.ErrInUse)
		}
	}
	return nil
}

// NodeExpandVolume implements csi.NodeServer: the block device grows to the volume's
// size, and a filesystem that is mounted for writing with it. It needs no path to find
// the volume.
func (d *Driver) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if req.GetVolumeId() == "" || req.GetVolumePath() == "" {
		return nil, fmt.Errorf("the volume ID or path is missing: %w", blockstore.ErrInvalid)
	}
	if c := req.GetVolumeCapability(); c != nil {
		if _, err := parseAccess(c); err != nil {
			return nil, err
		}
	}
	sizes, err := parseRange(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	volume, info, err := d.locked(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := checkPath("volume path", req.GetVolumePath()); err != nil {
		return nil, err
	}
	device, ok := volume.Device()
	if !ok {
		return nil, fmt.Errorf("volume %s is not staged here: %w", info.ID, errState)
	}
	size, err := sizes.grow(info.SizeBytes)
	if err != nil {
		return nil, err
	}
	if info, err = volume.Resize(ctx, size); err != nil {
		return nil, err
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: info.SizeBytes}, d.growMounted(device)
}

// growMounted grows the filesystem on a device, if one is mounted for writing. Raw
// block volumes are mounted nowhere as a filesystem.
func (d *Driver) growMounted(device string) error {
	mounts, err := d.mountsOf(device)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if !slices.Contains(m.Options, "ro") {
			return d.host.GrowFS(device, m.Target)
		}
	}
	return nil
}
