package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/k8ns/granary/test/rig"
)

// rpcLimit bounds every call over the socket.
const rpcLimit = 90 * time.Second

// orchestrator does over the CSI socket what Kubernetes would do.
type orchestrator struct {
	conn       *grpc.ClientConn
	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient
	mounts     string // directory of the staging and target paths
	cleanup    *rig.Cleanup
}

// volume is one that the orchestrator made.
type volume struct {
	id, name string
	fsType   string
	size     int64
	context  map[string]string
	stage    string // staging path
	target   string // where a pod would see it
}

func newOrchestrator(socket, mounts string, c *rig.Cleanup) (*orchestrator, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	c.Add("close the socket", conn.Close)
	return &orchestrator{conn, csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn), mounts, c}, nil
}

// whoAreYou asks for the driver's name and version, and whether it is ready.
func (o *orchestrator) whoAreYou(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	info, err := o.identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil {
		return "", err
	}
	probe, err := o.identity.Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	if probe.Ready != nil && !probe.Ready.Value {
		return "", fmt.Errorf("%s says that it is not ready", info.Name)
	}
	return info.Name + " " + info.VendorVersion, nil
}

func mountOf(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// create makes a volume, empty or from a snapshot.
func (o *orchestrator) create(ctx context.Context, name, fsType string, size int64, fromSnapshot string) (*volume, error) {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	req := &csi.CreateVolumeRequest{
		Name:               name,
		CapacityRange:      &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{mountOf(fsType)},
	}
	if fromSnapshot != "" {
		req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: fromSnapshot},
		}}
	}
	resp, err := o.controller.CreateVolume(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("CreateVolume %s: %w", name, err)
	}
	if got := resp.Volume.CapacityBytes; got != size {
		return nil, fmt.Errorf("CreateVolume %s: %d bytes, asked for %d", name, got, size)
	}
	return &volume{
		id: resp.Volume.VolumeId, name: name, fsType: fsType, size: size, context: resp.Volume.VolumeContext,
		stage:  filepath.Join(o.mounts, name, "stage"),
		target: filepath.Join(o.mounts, name, "target"),
	}, nil
}

// use stages and publishes a volume: then its file system is at v.target.
func (o *orchestrator) use(ctx context.Context, v *volume) error {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	if err := os.MkdirAll(v.stage, 0o755); err != nil {
		return err
	}
	rig.NoteMount(o.cleanup, v.stage)
	rig.NoteMount(o.cleanup, v.target)
	_, err := o.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.stage, VolumeCapability: mountOf(v.fsType), VolumeContext: v.context,
	})
	if err != nil {
		return fmt.Errorf("NodeStageVolume %s: %w", v.name, err)
	}
	_, err = o.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.stage, TargetPath: v.target, VolumeCapability: mountOf(v.fsType), VolumeContext: v.context,
	})
	if err != nil {
		return fmt.Errorf("NodePublishVolume %s: %w", v.name, err)
	}
	device, err := rig.MountSource(v.stage)
	if err != nil {
		return err
	}
	return rig.NoteLoop(o.cleanup, device)
}

// leave is the opposite of use.
func (o *orchestrator) leave(ctx context.Context, v *volume) error {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	if _, err := o.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: v.target}); err != nil {
		return fmt.Errorf("NodeUnpublishVolume %s: %w", v.name, err)
	}
	if _, err := o.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.stage}); err != nil {
		return fmt.Errorf("NodeUnstageVolume %s: %w", v.name, err)
	}
	return nil
}

// expand grows a volume and the file system on it while both are in use.
func (o *orchestrator) expand(ctx context.Context, v *volume, to int64) error {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	size := &csi.CapacityRange{RequiredBytes: to}
	resp, err := o.controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: v.id, CapacityRange: size, VolumeCapability: mountOf(v.fsType),
	})
	if err != nil {
		return fmt.Errorf("ControllerExpandVolume %s: %w", v.name, err)
	}
	if resp.NodeExpansionRequired {
		_, err := o.node.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
			VolumeId: v.id, VolumePath: v.target, StagingTargetPath: v.stage, CapacityRange: size, VolumeCapability: mountOf(v.fsType),
		})
		if err != nil {
			return fmt.Errorf("NodeExpandVolume %s: %w", v.name, err)
		}
	}
	device, err := rig.MountSource(v.stage)
	if err != nil {
		return err
	}
	if got, err := rig.DeviceSize(device); err != nil || got != to {
		return fmt.Errorf("%s has %d bytes after growing, must have %d (%v)", device, got, to, err)
	}
	v.size = to
	return nil
}

// remove deletes a volume.
func (o *orchestrator) remove(ctx context.Context, v *volume) error {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	if _, err := o.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.id}); err != nil {
		return fmt.Errorf("DeleteVolume %s: %w", v.name, err)
	}
	return nil
}

// snapshot takes one; asked again with the same name it tells how that one is.
func (o *orchestrator) snapshot(ctx context.Context, v *volume, name string) (*csi.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	resp, err := o.controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: v.id, Name: name})
	if err != nil {
		return nil, fmt.Errorf("CreateSnapshot %s: %w", name, err)
	}
	return resp.Snapshot, nil
}

// waitReady asks until the snapshot can be used as a source.
func (o *orchestrator) waitReady(ctx context.Context, v *volume, name string) error {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	for {
		s, err := o.snapshot(ctx, v, name)
		if err != nil {
			return err
		}
		if s.ReadyToUse {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("snapshot %s is not ready after %v", name, rpcLimit)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// removeSnapshot deletes a snapshot.
func (o *orchestrator) removeSnapshot(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, rpcLimit)
	defer cancel()
	if _, err := o.controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id}); err != nil {
		return fmt.Errorf("DeleteSnapshot %s: %w", id, err)
	}
	return nil
}
