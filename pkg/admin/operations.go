package admin

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/k8ns/granary/pkg/blockstore"
)

func (s *Server) volumeCreate(_ context.Context, req CreateVolume) (blockstore.VolumeInfo, error) {
	spec := blockstore.VolumeSpec{
		Name:        req.Name,
		SizeBytes:   req.SizeBytes,
		SectorBytes: req.SectorBytes,
		Compression: req.Compression,
		OnFull:      req.OnFull,
		Labels:      req.Labels,
	}
	if req.FromSnapshot != "" && req.FromVolume != "" {
		return blockstore.VolumeInfo{}, fmt.Errorf("a volume has one source: a snapshot or a volume: %w", blockstore.ErrInvalid)
	}
	if req.FromSnapshot != "" {
		source, err := s.store.Snapshot(req.FromSnapshot)
		if err != nil {
			return blockstore.VolumeInfo{}, err
		}
		spec.FromSnapshot = source.ID
	}
	if req.FromVolume != "" {
		source, err := s.store.Volume(req.FromVolume)
		if err != nil {
			return blockstore.VolumeInfo{}, err
		}
		spec.FromVolume = source.ID
	}
	return s.store.CreateVolume(spec)
}

func (s *Server) volumeList(_ context.Context, req Page) ([]blockstore.VolumeInfo, error) {
	return s.store.VolumePage(req.After, req.limit()), nil
}

func (s *Server) volumeShow(_ context.Context, req Target) (blockstore.VolumeInfo, error) {
	return s.store.Volume(req.Ref)
}

func (s *Server) volumeAttach(ctx context.Context, req Target) (Attached, error) {
	info, err := s.store.Volume(req.Ref)
	if err != nil {
		return Attached{}, err
	}
	device, err := s.attacher.AttachRaw(ctx, info.ID)
	return Attached{ID: info.ID, Device: device, Warnings: s.attacher.Warnings()}, err
}

func (s *Server) volumeDetach(ctx context.Context, req Target) (nothing, error) {
	info, err := s.store.Volume(req.Ref)
	if err != nil {
		return nothing{}, err
	}
	return nothing{}, s.attacher.Detach(ctx, info.ID)
}

func (s *Server) volumeResize(ctx context.Context, req ResizeVolume) (blockstore.VolumeInfo, error) {
	info, err := s.store.Volume(req.Ref)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	return s.attacher.Resize(ctx, info.ID, req.SizeBytes)
}

func (s *Server) volumeSet(_ context.Context, req SetVolume) (blockstore.VolumeInfo, error) {
	info, err := s.store.Volume(req.Ref)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	return s.store.SetOnFull(info.ID, req.OnFull)
}

func (s *Server) volumeRemove(ctx context.Context, req Target) (nothing, error) {
	info, err := s.store.Volume(req.Ref)
	if err != nil {
		return nothing{}, err
	}
	return nothing{}, s.attacher.Delete(ctx, info.ID)
}

// snapshotCreate emits the snapshot when it exists, before it waits for it.
func (s *Server) snapshotCreate(ctx context.Context, req CreateSnapshot, out emitter) (blockstore.SnapshotInfo, error) {
	volume, err := s.store.Volume(req.Volume)
	if err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	info, err := s.store.CreateSnapshot(ctx, volume.ID, req.Name, req.Labels)
	if err != nil || !req.Wait {
		return info, err
	}
	out.item(info)
	return s.store.WaitSnapshot(ctx, info.ID)
}

func (s *Server) snapshotList(_ context.Context, req ListSnapshots) ([]blockstore.SnapshotInfo, error) {
	id := ""
	if req.Volume != "" {
		volume, err := s.store.Volume(req.Volume)
		if err != nil {
			return nil, err
		}
		id = volume.ID
	}
	return s.store.SnapshotPage(id, req.After, req.limit()), nil
}

func (s *Server) snapshotShow(_ context.Context, req Target) (blockstore.SnapshotInfo, error) {
	return s.store.Snapshot(req.Ref)
}

func (s *Server) snapshotRemove(_ context.Context, req Target) (nothing, error) {
	info, err := s.store.Snapshot(req.Ref)
	if err != nil {
		return nothing{}, err
	}
	return nothing{}, s.store.DeleteSnapshot(info.ID)
}

func (s *Server) stats(_ context.Context, req StatsRequest) (Stats, error) {
	return Stats{s.store.Stats(req.PerVolume), s.attacher.Warnings()}, nil
}

// collect ends early when its caller goes away, unless nobody waits for it.
func (s *Server) collect(ctx context.Context, req Collect, _ emitter) (Collected, error) {
	if req.Wait {
		result, err := s.store.Collect(ctx)
		return Collected{CollectResult: result}, err
	}
	s.running.Go(func() {
		result, err := s.store.Collect(s.background)
		if err != nil {
			s.log.Error("collection failed", "err", err)
			return
		}
		s.log.Info("collection ended", "freed", result.FreedBytes, "garbage", result.GarbageBytes)
	})
	return Collected{Started: true}, nil
}

// check emits every problem as an item.
func (s *Server) check(ctx context.Context, req Check, out emitter) (Checked, error) {
	var problems atomic.Int64
	o := blockstore.CheckOptions{ReadData: req.ReadData, Progress: out.progress}
	err := s.store.Check(ctx, o, func(p blockstore.Problem) {
		problems.Add(1)
		out.item(p)
	})
	return Checked{Problems: int(problems.Load())}, err
}
