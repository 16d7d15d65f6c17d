package driver

import (
	"context"

	"github.com/k8ns/granary/pkg/blockstore"
)

// Store is what the driver needs of an engine; *blockstore.Store has it. What its
// methods change is durable when they return, and they may be called concurrently.
type Store interface {
	ID() string
	Stats(perVolume bool) blockstore.Stats
	volumes
	snapshots
}

type volumes interface {
	// CreateVolume is ErrExists if the name is taken.
	CreateVolume(spec blockstore.VolumeSpec) (blockstore.VolumeInfo, error)
	Volume(idOrName string) (blockstore.VolumeInfo, error)
	// VolumePage lists at most limit volumes whose IDs come after one, in their order.
	VolumePage(after string, limit int) []blockstore.VolumeInfo
	publications
}

// publications are what COs were told of volumes, by volume ID.
type publications interface {
	PutPublication(volumeID string, p blockstore.Publication) error
	// RemovePublication is nil if there is none.
	RemovePublication(volumeID string) error
	Publications() map[string]blockstore.Publication
}

type snapshots interface {
	// CreateSnapshot is ErrExists if the name is taken.
	CreateSnapshot(ctx context.Context, volumeID, name string, labels map[string]string) (blockstore.SnapshotInfo, error)
	// WaitSnapshot returns when the snapshot is ready, or ctx ends.
	WaitSnapshot(ctx context.Context, id string) (blockstore.SnapshotInfo, error)
	DeleteSnapshot(id string) error
	Snapshot(idOrName string) (blockstore.SnapshotInfo, error)
	// SnapshotPage lists at most limit snapshots of a volume, or of all for "", whose IDs
	// come after one, in their order.
	SnapshotPage(volumeID, after string, limit int) []blockstore.SnapshotInfo
}
