package driver

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/blockstore"
)

// NodeGetVolumeStats implements csi.NodeServer. It takes no lock: it changes nothing
// and kubelet asks all the time. A path that the volume is not at, whatever it looks
// like, is ErrNotFound.
func (d *Driver) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if req.GetVolumeId() == "" || req.GetVolumePath() == "" {
		return nil, fmt.Errorf("the volume ID or path is missing: %w", blockstore.ErrInvalid)
	}
	id, err := d.volumeID(req.GetVolumeId())
	if err != nil {
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
	case m == nil && d.isBlockStage(id, path):
		return blockStats(info), nil
	case m == nil:
		return nil, fmt.Errorf("volume %s is not mounted on %s: %w", id, path, blockstore.ErrNotFound)
	case m.IsFilesystemOf(device):
		return d.filesystemStats(path)
	case m.IsNodeOf(device):
		return blockStats(info), nil
	}
	return nil, fmt.Errorf("on %s something else is mounted (%s): %w", path, m.Device, blockstore.ErrNotFound)
}

// isBlockStage tells whether a raw volume is staged at a path, where nothing shows.
func (d *Driver) isBlockStage(id, path string) bool {
	for _, at := range d.attached.List() {
		if at.Volume == id {
			use := useAt(at.Uses, path)
			return use != nil && len(usesOf([]blockstore.Use{*use}, stagedAs)) > 0
		}
	}
	return false
}

// blockStats tells the size of a raw volume, and what of it is no hole as of the last
// fold.
func blockStats(info blockstore.VolumeInfo) *csi.NodeGetVolumeStatsResponse {
	used := min(info.MappedBytes, info.SizeBytes)
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: info.SizeBytes, Used: used, Available: info.SizeBytes - used},
	}}
}

func (d *Driver) filesystemStats(path string) (*csi.NodeGetVolumeStatsResponse, error) {
	fs, err := d.host.Statfs(path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", blockstore.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	resp := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{
		Unit:      csi.VolumeUsage_BYTES,
		Total:     fs.TotalBytes,
		Available: fs.AvailableBytes,
		Used:      fs.TotalBytes - fs.FreeBytes,
	}}}
	if fs.TotalInodes > 0 { // btrfs makes inodes as it goes and counts none
		resp.Usage = append(resp.Usage, &csi.VolumeUsage{
			Unit:      csi.VolumeUsage_INODES,
			Total:     fs.TotalInodes,
			Available: fs.FreeInodes,
			Used:      fs.TotalInodes - fs.FreeInodes,
		})
	}
	return resp, nil
}
