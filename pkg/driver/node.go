package driver

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.o.NodeID, AccessibleTopology: d.topology()}, nil
}

// NodeGetCapabilities implements csi.NodeServer.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	var caps []*csi.NodeServiceCapability
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	} {
		caps = append(caps, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: t},
		}})
	}
	return &csi.NodeGetCapabilitiesResponse{Capabilities: caps}, nil
}

// lock parses a volume handle and takes the volume's lock; the caller has to Unlock.
func (d *Driver) lock(handle string) (*attach.Locked, blockstore.VolumeInfo, error) {
	id, err := d.volumeID(handle)
	if err != nil {
		return nil, blockstore.VolumeInfo{}, err
	}
	volume, err := d.attached.Lock(id)
	if err != nil {
		return nil, blockstore.VolumeInfo{}, err
	}
	info, err := volume.Info()
	if err != nil {
		volume.Unlock()
		return nil, info, err
	}
	return volume, info, nil
}

// NodeStageVolume implements csi.NodeServer: the volume becomes a block device, and,
// unless it is wanted raw, its filesystem is mounted on the staging path.
func (d *Driver) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	access, err := d.parseTarget(req.GetVolumeId(), "staging target path", req.GetStagingTargetPath(), req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	volume, info, err := d.lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer volume.Unlock()
	s := stage{d: d, volume: volume, info: info, access: access, target: resolve(req.GetStagingTargetPath())}
	if access.block {
		return &csi.NodeStageVolumeResponse{}, s.block(ctx)
	}
	return &csi.NodeStageVolumeResponse{}, s.mount(ctx)
}

// parseTarget checks what stage and publish have in common.
func (d *Driver) parseTarget(handle, what, path string, c *csi.VolumeCapability) (access, error) {
	if handle == "" {
		return access{}, fmt.Errorf("the volume ID is missing: %w", blockstore.ErrInvalid)
	}
	if err := checkPath(what, path); err != nil {
		return access{}, err
	}
	return parseCapability(c)
}

// NodeUnstageVolume implements csi.NodeServer: what NodeStageVolume did is undone. It
// is refused while the volume is still published.
func (d *Driver) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("the volume ID is missing: %w", blockstore.ErrInvalid)
	}
	if err := checkPath("staging target path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	volume, _, err := d.lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer volume.Unlock()
	if err := d.unmount(volume, resolve(req.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, volume.Detach(ctx)
}

// NodeExpandVolume implements csi.NodeServer: the block device grows to the volume's
// size, and a mounted filesystem with it.
func (d *Driver) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("the volume ID is missing: %w", blockstore.ErrInvalid)
	}
	if err := checkPath("volume path", req.GetVolumePath()); err != nil {
		return nil, err
	}
	sizes, err := parseRange(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	volume, info, err := d.lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer volume.Unlock()
	device, ok := volume.Device()
	if !ok {
		return nil, fmt.Errorf("volume %s is not staged here: %w", info.ID, errState)
	}
	size := max(info.SizeBytes, roundUp(sizes.required))
	if err := sizes.fits(size); err != nil {
		return nil, err
	}
	if info, err = volume.Resize(ctx, size); err != nil {
		return nil, err
	}
	mounts, err := d.mountsOf(device)
	if err != nil {
		return nil, err
	}
	// Raw block volumes are mounted nowhere as a filesystem.
	if len(mounts) > 0 {
		if err := d.host.GrowFS(device, mounts[0].Target); err != nil {
			return nil, err
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: info.SizeBytes}, nil
}

// NodeGetVolumeStats implements csi.NodeServer. It takes no lock: it changes nothing
// and kubelet asks all the time.
func (d *Driver) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	id, err := d.volumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := checkPath("volume path", req.GetVolumePath()); err != nil {
		return nil, err
	}
	info, err := d.store.Volume(id)
	if err != nil {
		return nil, err
	}
	path := resolve(req.GetVolumePath())
	device, ok := d.attached.Device(id)
	if !ok {
		return nil, fmt.Errorf("volume %s is not attached here: %w", id, blockstore.ErrNotFound)
	}
	m, err := d.topmost(path)
	if err != nil {
		return nil, err
	}
	switch {
	case m == nil:
		return nil, fmt.Errorf("volume %s is not mounted on %s: %w", id, path, blockstore.ErrNotFound)
	case isFilesystemOf(m, device):
		return d.filesystemStats(path)
	case isNodeOf(m, device):
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: info.SizeBytes},
		}}, nil
	}
	return nil, fmt.Errorf("on %s something else is mounted (%s): %w", path, m.Device, blockstore.ErrNotFound)
}

func (d *Driver) filesystemStats(path string) (*csi.NodeGetVolumeStatsResponse, error) {
	fs, err := d.host.Statfs(path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", blockstore.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit:      csi.VolumeUsage_BYTES,
			Total:     fs.TotalBytes,
			Available: fs.AvailableBytes,
			Used:      fs.TotalBytes - fs.FreeBytes,
		},
		{
			Unit:      csi.VolumeUsage_INODES,
			Total:     fs.TotalInodes,
			Available: fs.FreeInodes,
			Used:      fs.TotalInodes - fs.FreeInodes,
		},
	}}, nil
}
