package driver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/k8ns/granary/pkg/blockstore"
)

// defaultVolumeSize is what a request without a size gets.
const defaultVolumeSize = 1 << 30

// ControllerGetCapabilities implements csi.ControllerServer.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	var caps []*csi.ControllerServiceCapability
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	} {
		caps = append(caps, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: t},
		}})
	}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: caps}, nil
}

// CreateVolume implements csi.ControllerServer.
func (d *Driver) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	spec, sizes, err := d.parseCreateVolume(req)
	if err != nil {
		return nil, err
	}
	info, err := d.createVolume(spec, sizes)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: d.renderVolume(info)}, nil
}

// parseCreateVolume leaves the size open: it depends on the source.
func (d *Driver) parseCreateVolume(req *csi.CreateVolumeRequest) (spec blockstore.VolumeSpec, sizes sizeRange, err error) {
	if req.GetName() == "" {
		return spec, sizes, fmt.Errorf("the name is missing: %w", blockstore.ErrInvalid)
	}
	if err := parseCapabilities(req.GetVolumeCapabilities()); err != nil {
		return spec, sizes, err
	}
	if len(req.GetMutableParameters()) > 0 {
		return spec, sizes, fmt.Errorf("mutable parameters are not offered: %w", blockstore.ErrInvalid)
	}
	params, err := parseVolumeParameters(req.GetParameters())
	if err != nil {
		return spec, sizes, err
	}
	if sizes, err = parseRange(req.GetCapacityRange()); err != nil {
		return spec, sizes, err
	}
	if err := d.checkTopology(req.GetAccessibilityRequirements()); err != nil {
		return spec, sizes, err
	}
	spec = blockstore.VolumeSpec{
		Name:        req.GetName(),
		SectorBytes: params.sectorBytes,
		Compression: params.compression,
		OnFull:      params.onFull,
		Labels:      params.labels,
	}
	if source := req.GetVolumeContentSource(); source != nil {
		err = d.parseSource(source, &spec)
	}
	return spec, sizes, err
}

// parseSource sets the source of a volume. One on another node is errElsewhere, so that
// the scheduler picks again.
func (d *Driver) parseSource(source *csi.VolumeContentSource, spec *blockstore.VolumeSpec) (err error) {
	switch {
	case source.GetSnapshot() != nil:
		spec.FromSnapshot, err = d.snapshotID(source.GetSnapshot().GetSnapshotId())
	case source.GetVolume() != nil:
		spec.FromVolume, err = d.volumeID(source.GetVolume().GetVolumeId())
	default:
		err = fmt.Errorf("neither a snapshot nor a volume: %w", blockstore.ErrInvalid)
	}
	return sourceError(err)
}

func sourceError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errForeign) {
		return fmt.Errorf("source: %w: %w", err, errElsewhere)
	}
	return fmt.Errorf("source: %w", err)
}

// checkTopology wants this node among those that will do.
func (d *Driver) checkTopology(r *csi.TopologyRequirement) error {
	if len(r.GetRequisite()) == 0 {
		return nil
	}
	for _, t := range r.GetRequisite() {
		if d.here(t) {
			return nil
		}
	}
	return fmt.Errorf("a volume made here is accessible on node %s only: %w", d.o.NodeID, errElsewhere)
}

// here tells whether a topology includes this node.
func (d *Driver) here(t *csi.Topology) bool {
	node, ok := t.GetSegments()[TopologyKey]
	return !ok || node == d.o.NodeID
}

// createVolume makes a volume, or finds the one that an earlier call made, also when
// its source is gone since or the disk is full. A volume of that name that is not what
// was asked for is ErrExists.
func (d *Driver) createVolume(spec blockstore.VolumeSpec, sizes sizeRange) (blockstore.VolumeInfo, error) {
	info, err := d.store.Volume(spec.Name)
	switch {
	case errors.Is(err, blockstore.ErrNotFound) || err == nil && info.Name != spec.Name: // a name like an ID is refused below
	case err != nil:
		return info, err
	default:
		if why := differs(info, spec, sizes); why != "" {
			return info, fmt.Errorf("volume %q: %s: %w", spec.Name, why, blockstore.ErrExists)
		}
		return info, nil
	}
	preferred, err := d.preferredSize(spec)
	if err != nil {
		return info, sourceError(err)
	}
	if spec.SizeBytes, err = sizes.pick(preferred); err != nil {
		return info, err
	}
	info, err = d.store.CreateVolume(spec)
	if errors.Is(err, blockstore.ErrExists) {
		return info, fmt.Errorf("volume %q is being made by another call: try again: %w", spec.Name, blockstore.ErrBusy)
	}
	return info, err
}

// preferredSize is the size of the source, if there is one.
func (d *Driver) preferredSize(spec blockstore.VolumeSpec) (int64, error) {
	switch {
	case spec.FromSnapshot != "":
		info, err := d.store.Snapshot(spec.FromSnapshot)
		return info.SizeBytes, err
	case spec.FromVolume != "":
		info, err := d.store.Volume(spec.FromVolume)
		return info.SizeBytes, err
	}
	return defaultVolumeSize, nil
}

// differs says how a volume is not what was asked for; "" if it is.
func differs(info blockstore.VolumeInfo, spec blockstore.VolumeSpec, sizes sizeRange) string {
	source := spec.FromSnapshot + spec.FromVolume // at most one is set
	err := sizes.fits(info.SizeBytes)
	switch {
	case err != nil:
		return err.Error()
	case info.Source != source:
		return fmt.Sprintf("its source is %q, not %q", info.Source, source)
	case spec.Compression != "" && spec.Compression != info.Compression:
		return fmt.Sprintf("its compression is %s, not %s", info.Compression, spec.Compression)
	case spec.SectorBytes != 0 && spec.SectorBytes != info.SectorBytes:
		return fmt.Sprintf("its block size is %d, not %d", info.SectorBytes, spec.SectorBytes)
	case spec.OnFull != "" && spec.OnFull != info.OnFull:
		return fmt.Sprintf("its onFull is %s, not %s", info.OnFull, spec.OnFull)
	case spec.Labels[paramFSType] != info.Labels[paramFSType]:
		return fmt.Sprintf("its filesystem type is %q, not %q", info.Labels[paramFSType], spec.Labels[paramFSType])
	}
	return ""
}

func (d *Driver) renderVolume(info blockstore.VolumeInfo) *csi.Volume {
	v := &csi.Volume{
		VolumeId:           d.handle(info.ID),
		CapacityBytes:      info.SizeBytes,
		AccessibleTopology: []*csi.Topology{d.topology()},
	}
	switch {
	case strings.HasPrefix(info.Source, "s-"):
		v.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: d.handle(info.Source)},
		}}
	case strings.HasPrefix(info.Source, "v-"):
		v.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: d.handle(info.Source)},
		}}
	}
	return v
}

func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey: d.o.NodeID}}
}

// DeleteVolume implements csi.ControllerServer. What is not there is deleted already;
// another node's volume is not.
func (d *Driver) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id, err := d.volumeID(req.GetVolumeId())
	if err == nil {
		err = d.attached.Delete(ctx, id)
	}
	if err != nil && !gone(err) {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// gone tells whether there is nothing left to delete.
func gone(err error) bool {
	return errors.Is(err, blockstore.ErrNotFound) && !errors.Is(err, errForeign)
}

// ValidateVolumeCapabilities implements csi.ControllerServer.
func (d *Driver) ValidateVolumeCapabilities(_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	id, err := d.volumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, parseCapabilities(nil)
	}
	if _, err := d.store.Volume(id); err != nil {
		return nil, err
	}
	if err := parseCapabilities(req.GetVolumeCapabilities()); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	if _, err := parseVolumeParameters(req.GetParameters()); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeContext:      req.GetVolumeContext(),
			VolumeCapabilities: req.GetVolumeCapabilities(),
			Parameters:         req.GetParameters(),
		},
	}, nil
}

// ListVolumes implements csi.ControllerServer. Volumes go by name.
func (d *Driver) ListVolumes(_ context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	infos := d.store.Volumes()
	page, next, err := paginate(infos, func(v blockstore.VolumeInfo) string { return v.Name }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListVolumesResponse{NextToken: next}
	for _, info := range page {
		resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{
			Volume: d.renderVolume(info),
			Status: &csi.ListVolumesResponse_VolumeStatus{},
		})
	}
	return resp, nil
}

// GetCapacity implements csi.ControllerServer: what free space carries, given that
// volumes are thin and share data.
func (d *Driver) GetCapacity(_ context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if t := req.GetAccessibleTopology(); t != nil && !d.here(t) {
		return &csi.GetCapacityResponse{}, nil
	}
	if len(req.GetVolumeCapabilities()) > 0 && parseCapabilities(req.GetVolumeCapabilities()) != nil {
		return &csi.GetCapacityResponse{}, nil
	}
	stats := d.store.Stats(false)
	free := max(0, stats.DiskFree-stats.Reserve)
	available := int64(math.MaxInt64)
	if free < available/d.o.Overcommit {
		available = free * d.o.Overcommit
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: available,
		MaximumVolumeSize: wrapperspb.Int64(blockstore.MaxVolumeSize),
		MinimumVolumeSize: wrapperspb.Int64(blockstore.MinVolumeSize),
	}, nil
}

// ControllerExpandVolume implements csi.ControllerServer: the catalog gets the new
// size. The node does the rest, mounted or not.
func (d *Driver) ControllerExpandVolume(_ context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	id, err := d.volumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if req.GetCapacityRange() == nil {
		return nil, fmt.Errorf("the capacity range is missing: %w", blockstore.ErrInvalid)
	}
	sizes, err := parseRange(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	volume, err := d.attached.Lock(id)
	if err != nil {
		return nil, err
	}
	defer volume.Unlock()
	info, err := volume.Info()
	if err != nil {
		return nil, err
	}
	size := max(info.SizeBytes, roundUp(sizes.required)) // it may be larger already
	if err := sizes.fits(size); err != nil {
		return nil, err
	}
	if info, err = volume.SetSize(size); err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: info.SizeBytes, NodeExpansionRequired: true}, nil
}

// paginate cuts a page out of a list that is sorted by key. A token names the last
// entry of the page before, so it stays good when entries come and go.
func paginate[T any](all []T, key func(T) string, token string, entries int32) (page []T, next string, err error) {
	if entries < 0 {
		return nil, "", fmt.Errorf("max entries %d is negative: %w", entries, blockstore.ErrInvalid)
	}
	start := 0
	if token != "" {
		last, err := strconv.Unquote(token)
		if err != nil || !strings.HasPrefix(token, `"`) {
			return nil, "", fmt.Errorf("%q: %w", token, errToken)
		}
		for start < len(all) && key(all[start]) <= last {
			start++
		}
	}
	page = all[start:]
	if entries > 0 && len(page) > int(entries) {
		page = page[:entries]
		next = strconv.Quote(key(page[len(page)-1]))
	}
	return page, next, nil
}
