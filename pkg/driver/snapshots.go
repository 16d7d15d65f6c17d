package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/k8ns/granary/pkg/blockstore"
)

// readyWait is how long CreateSnapshot may wait to answer that the snapshot is ready at
// once, which spares the CO from asking again.
const readyWait = 2 * time.Second

// CreateSnapshot implements csi.ControllerServer. The snapshot is exact and durable
// when it answers; ready_to_use follows when it is folded.
func (d *Driver) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if req.GetName() == "" {
		return nil, fmt.Errorf("the name is missing: %w", blockstore.ErrInvalid)
	}
	volume, err := d.volumeID(req.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	labels, err := parseSnapshotParameters(req.GetParameters())
	if err != nil {
		return nil, err
	}
	info, err := d.createSnapshot(ctx, volume, req.GetName(), labels)
	if err != nil {
		return nil, err
	}
	if !info.Ready {
		info = d.awaitReady(ctx, info)
	}
	return &csi.CreateSnapshotResponse{Snapshot: d.renderSnapshot(info)}, nil
}

// awaitReady waits a little for a snapshot to be ready. Whether it is or not, it has
// been taken.
func (d *Driver) awaitReady(ctx context.Context, info blockstore.SnapshotInfo) blockstore.SnapshotInfo {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	if ready, err := d.store.WaitSnapshot(ctx, info.ID); err == nil {
		return ready
	}
	return info
}

// createSnapshot takes a snapshot, or finds the one that an earlier call took, also
// when the volume is gone since. One of that name but of another volume is ErrExists.
func (d *Driver) createSnapshot(ctx context.Context, volume, name string, labels map[string]string) (blockstore.SnapshotInfo, error) {
	info, err := d.store.Snapshot(name)
	switch {
	case errors.Is(err, blockstore.ErrNotFound) || err == nil && info.Name != name: // a name like an ID is refused below
	case err != nil:
		return info, err
	case info.VolumeID != volume:
		return info, fmt.Errorf("snapshot %q is of volume %s, not %s: %w", name, info.VolumeID, volume, blockstore.ErrExists)
	default:
		return info, nil
	}
	info, err = d.store.CreateSnapshot(ctx, volume, name, labels)
	if errors.Is(err, blockstore.ErrExists) {
		return info, fmt.Errorf("snapshot %q is being taken by another call: try again: %w", name, blockstore.ErrBusy)
	}
	return info, err
}

func (d *Driver) renderSnapshot(info blockstore.SnapshotInfo) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId:     d.handle(info.ID),
		SourceVolumeId: d.handle(info.VolumeID),
		SizeBytes:      info.SizeBytes,
		CreationTime:   timestamppb.New(info.Created),
		ReadyToUse:     info.Ready,
	}
}

// DeleteSnapshot implements csi.ControllerServer. What is not there is deleted
// already; another node's snapshot is not.
func (d *Driver) DeleteSnapshot(_ context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	id, err := d.snapshotID(req.GetSnapshotId())
	if err == nil {
		err = d.store.DeleteSnapshot(id)
	}
	return &csi.DeleteSnapshotResponse{}, ignoreGone(err)
}

// GetSnapshot implements csi.ControllerServer.
func (d *Driver) GetSnapshot(_ context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	id, err := d.snapshotID(req.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	info, err := d.store.Snapshot(id)
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: d.renderSnapshot(info)}, nil
}

// ListSnapshots implements csi.ControllerServer. IDs that name nothing here give
// an empty list.
func (d *Driver) ListSnapshots(_ context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	list, err := d.findSnapshots(req.GetSnapshotId(), req.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	page, next, err := paginate(list, 's', func(s blockstore.SnapshotInfo) string { return s.ID }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListSnapshotsResponse{NextToken: next}
	for _, info := range page {
		resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: d.renderSnapshot(info)})
	}
	return resp, nil
}

// snapshotList returns at most limit snapshots whose IDs come after one, in their order.
type snapshotList func(after string, limit int) []blockstore.SnapshotInfo

// findSnapshots applies the filters; "" is none.
func (d *Driver) findSnapshots(snapshot, volume string) (snapshotList, error) {
	nothing := func(string, int) []blockstore.SnapshotInfo { return nil }
	volumeID := ""
	if volume != "" {
		var err error
		if volumeID, err = d.volumeID(volume); err != nil {
			return nothing, ignoreNotFound(err)
		}
	}
	if snapshot == "" {
		return func(after string, limit int) []blockstore.SnapshotInfo {
			return d.store.SnapshotPage(volumeID, after, limit)
		}, nil
	}
	id, err := d.snapshotID(snapshot)
	if err != nil {
		return nothing, ignoreNotFound(err)
	}
	info, err := d.store.Snapshot(id)
	if err != nil {
		return nothing, ignoreNotFound(err)
	}
	if volumeID != "" && info.VolumeID != volumeID {
		return nothing, nil
	}
	return func(after string, _ int) []blockstore.SnapshotInfo {
		if info.ID <= after {
			return nil
		}
		return []blockstore.SnapshotInfo{info}
	}, nil
}

func ignoreNotFound(err error) error {
	if errors.Is(err, blockstore.ErrNotFound) {
		return nil
	}
	return err
}
