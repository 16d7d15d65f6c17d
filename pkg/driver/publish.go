package driver

import (
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
	access, err := d.parseTarget(req.GetVolumeId(), "target path", req.GetTargetPath(), req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if err := checkPath("staging target path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if access.block && req.GetReadonly() {
		return nil, errReadOnlyBlock
	}
	volume, info, err := d.lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer volume.Unlock()
	device, ok := volume.Device()
	if !ok {
		return nil, fmt.Errorf("volume %s is not staged: NodeStageVolume comes first: %w", info.ID, errState)
	}
	p := publish{
		d: d, volume: volume, device: device,
		block:    access.block,
		readOnly: access.readOnly || req.GetReadonly(),
		staging:  resolve(req.GetStagingTargetPath()),
		target:   resolve(req.GetTargetPath()),
	}
	return &csi.NodePublishVolumeResponse{}, p.run(ctx)
}

// publish is one NodePublishVolume under the volume's lock.
type publish struct {
	d               *Driver
	volume          *attach.Locked
	device          string
	block, readOnly bool
	staging, target string
}

func (p *publish) run(ctx context.Context) error {
	source, readOnly := p.device, p.readOnly
	if !p.block {
		m, err := p.d.topmost(p.staging)
		if err != nil {
			return err
		}
		if m == nil || !isFilesystemOf(m, p.device) {
			return fmt.Errorf("nothing is staged on %s: NodeStageVolume comes first: %w", p.staging, errState)
		}
		source = p.staging
		readOnly = readOnly || slices.Contains(m.Options, "ro") // by the class's mount options
	}
	done, err := p.done(readOnly)
	if done || err != nil {
		return err
	}
	if err := makeTarget(p.target, p.block); err != nil {
		return err
	}
	var flags []string
	if readOnly {
		flags = []string{"ro"}
	}
	if err := p.volume.AddMount(p.target); err != nil {
		return err
	}
	return p.d.host.BindMount(ctx, source, p.target, flags)
}

// done tells whether an earlier call has done everything; ErrExists if what is there
// is something else.
func (p *publish) done(readOnly bool) (bool, error) {
	m, err := p.d.topmost(p.target)
	if err != nil || m == nil {
		return false, err
	}
	same := isFilesystemOf(m, p.device)
	if p.block {
		same = isNodeOf(m, p.device)
	}
	switch {
	case !same:
		return false, fmt.Errorf("on %s something else is mounted (%s): %w", p.target, m.Device, blockstore.ErrExists)
	case slices.Contains(m.Options, "ro") != readOnly:
		return false, fmt.Errorf("published on %s already, with another read-only setting: %w", p.target, blockstore.ErrExists)
	}
	return true, nil
}

// NodeUnpublishVolume implements csi.NodeServer: the target is unmounted and removed.
func (d *Driver) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("the volume ID is missing: %w", blockstore.ErrInvalid)
	}
	if err := checkPath("target path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	volume, _, err := d.lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer volume.Unlock()
	target := resolve(req.GetTargetPath())
	if err := d.unmount(volume, target); err != nil {
		return nil, err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the target: %w", err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
