package attachtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
)

// CreateSnapshot implements driver.Store and admin.Store. The snapshot is ready when
// WaitSnapshot was called.
func (e *Engine) CreateSnapshot(_ context.Context, volumeID, name string, labels map[string]string) (blockstore.SnapshotInfo, error) {
	if err := e.enter("CreateSnapshot"); err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	defer e.mu.Unlock()
	if s := e.snapshot(name); s != nil {
		return blockstore.SnapshotInfo{}, fmt.Errorf("snapshot %q is %s: %w", name, s.info.ID, blockstore.ErrExists)
	}
	v, err := e.find(volumeID)
	if err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	s := &snapshot{
		info: blockstore.SnapshotInfo{
			ID: e.newID("s"), Name: name, VolumeID: volumeID, VolumeName: v.info.Name,
			SizeBytes: v.info.SizeBytes, Created: time.Unix(1700000000, 0), Labels: labels, FSType: v.info.FSType,
		},
		image: volume{info: v.info, data: maps.Clone(v.data)},
	}
	e.mu.snapshots[s.info.ID] = s
	return s.info, nil
}

// snapshot finds a snapshot by ID or name; nil if there is none.
func (e *Engine) snapshot(idOrName string) *snapshot {
	if s := e.mu.snapshots[idOrName]; s != nil {
		return s
	}
	for _, s := range e.mu.snapshots {
		if s.info.Name == idOrName {
			return s
		}
	}
	return nil
}

// WaitSnapshot implements admin.Store.
func (e *Engine) WaitSnapshot(_ context.Context, id string) (blockstore.SnapshotInfo, error) {
	if err := e.enter("WaitSnapshot"); err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	defer e.mu.Unlock()
	s := e.snapshot(id)
	if s == nil {
		return blockstore.SnapshotInfo{}, fmt.Errorf("snapshot %s: %w", id, blockstore.ErrNotFound)
	}
	s.info.Ready = true
	return s.info, nil
}

// DeleteSnapshot implements driver.Store and admin.Store.
func (e *Engine) DeleteSnapshot(id string) error {
	if err := e.enter("DeleteSnapshot"); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if e.snapshot(id) == nil {
		return fmt.Errorf("snapshot %s: %w", id, blockstore.ErrNotFound)
	}
	delete(e.mu.snapshots, id)
	return nil
}

// Snapshot implements driver.Store and admin.Store.
func (e *Engine) Snapshot(idOrName string) (blockstore.SnapshotInfo, error) {
	if err := e.enter("Snapshot"); err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	defer e.mu.Unlock()
	s := e.snapshot(idOrName)
	if s == nil {
		return blockstore.SnapshotInfo{}, fmt.Errorf("snapshot %s: %w", idOrName, blockstore.ErrNotFound)
	}
	return s.info, nil
}

// Snapshots lists the snapshots of a volume, or all for "", by name.
func (e *Engine) Snapshots(volumeID string) []blockstore.SnapshotInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	var infos []blockstore.SnapshotInfo
	for _, s := range e.mu.snapshots {
		if volumeID == "" || s.info.VolumeID == volumeID {
			infos = append(infos, s.info)
		}
	}
	slices.SortFunc(infos, func(a, b blockstore.SnapshotInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos
}

// SnapshotPage implements driver.Store and admin.Store.
func (e *Engine) SnapshotPage(volumeID, after string, limit int) []blockstore.SnapshotInfo {
	return page(e.Snapshots(volumeID), func(s blockstore.SnapshotInfo) string { return s.ID }, after, limit)
}

// Stats implements driver.Store and admin.Store.
func (e *Engine) Stats(perVolume bool) blockstore.Stats {
	infos := e.Volumes()
	s := blockstore.Stats{
		Volumes: len(infos), Snapshots: len(e.Snapshots("")),
		Logical: 40 << 30, LogicalVolumes: 30 << 30, Unique: 10 << 30, Stored: 4 << 30, Reduction: 10,
		Garbage: 1 << 30, JournalUsed: 3 << 20, JournalAllocated: 512 << 20, Reserve: 64 << 20,
		CacheBytes: 100 << 20, CacheLimit: 128 << 20, CacheHits: 900, CacheMisses: 100,
		DiskFree: 100 << 30, ChunkFiles: 130, Chunks: 2600,
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.disk != nil {
		e.mu.disk(&s)
	}
	if perVolume {
		s.PerVolume = infos
	}
	return s
}

// Collect implements admin.Store.
func (e *Engine) Collect(context.Context) (blockstore.CollectResult, error) {
	if err := e.enter("Collect"); err != nil {
		return blockstore.CollectResult{}, err
	}
	defer e.mu.Unlock()
	return blockstore.CollectResult{FreedBytes: 3 << 20, GarbageBytes: 4 << 20}, nil
}

// Check implements admin.Store.
func (e *Engine) Check(ctx context.Context, o blockstore.CheckOptions, report func(blockstore.Problem)) error {
	if err := e.enter("Check"); err != nil {
		return err
	}
	problems, onCheck := e.mu.problems, e.mu.onCheck
	e.mu.Unlock()
	if onCheck != nil {
		return onCheck(ctx)
	}
	for i, p := range problems {
		if o.Progress != nil {
			o.Progress(int64(i), int64(len(problems)))
		}
		report(p)
	}
	return nil
}
