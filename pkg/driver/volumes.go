package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/k8ns/granary/pkg/blockstore"
)

// CreateVolume implements csi.ControllerServer.
func (d *Driver) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	c, err := d.parseCreateVolume(req)
	if err != nil {
		return nil, err
	}
	info, err := d.createVolume(c)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: d.renderVolume(info)}, nil
}

// creation is a CreateVolume request, parsed. The size in spec is open: it depends on
// the source.
type creation struct {
	spec   blockstore.VolumeSpec
	sizes  sizeRange
	fsType string // "" if the request names none
	reach  error  // a volume made here is not accessible where it has to be
}

func (d *Driver) parseCreateVolume(req *csi.CreateVolumeRequest) (c creation, err error) {
	if req.GetName() == "" {
		return c, fmt.Errorf("the name is missing: %w", blockstore.ErrInvalid)
	}
	if len(req.GetMutableParameters()) > 0 {
		return c, fmt.Errorf("mutable parameters are not offered: %w", blockstore.ErrInvalid)
	}
	params, err := parseVolumeParameters(req.GetParameters())
	if err != nil {
		return c, err
	}
	if c.sizes, err = parseRange(req.GetCapacityRange()); err != nil {
		return c, err
	}
	c.spec = blockstore.VolumeSpec{
		Name:        req.GetName(),
		SectorBytes: params.sectorBytes,
		Compression: params.compression,
		OnFull:      params.onFull,
		Labels:      params.labels,
	}
	source := req.GetVolumeContentSource()
	if source != nil {
		err = d.parseSource(source, &c.spec)
	}
	c.reach = d.checkTopology(req.GetAccessibilityRequirements())
	// What is wrong on any node is said before what is wrong on this one alone.
	accesses, invalid := parseAccesses(req.GetVolumeCapabilities(), sourceText(source))
	if invalid == nil {
		c.fsType, invalid = oneFSType(params.fsType, accesses)
	}
	if err := cmp.Or(invalid, err); err != nil {
		return c, err
	}
	if !slices.ContainsFunc(accesses, func(a access) bool { return !a.block }) {
		c.fsType = "" // of a class that serves raw volumes too
	}
	if c.fsType != "" {
		c.spec.Labels[paramFSType] = c.fsType
	}
	return c, nil
}

// sourceText is the handle of a source, "" for none.
func sourceText(source *csi.VolumeContentSource) string {
	return source.GetSnapshot().GetSnapshotId() + source.GetVolume().GetVolumeId()
}

// parseSource sets the source of a volume. One on another node is errElsewhere, so that
// the scheduler picks again; one in another store of this node is nowhere.
func (d *Driver) parseSource(source *csi.VolumeContentSource, spec *blockstore.VolumeSpec) (err error) {
	switch {
	case source.GetSnapshot() != nil:
		spec.FromSnapshot, err = d.snapshotID(source.GetSnapshot().GetSnapshotId())
	case source.GetVolume() != nil:
		spec.FromVolume, err = d.volumeID(source.GetVolume().GetVolumeId())
	default:
		err = fmt.Errorf("neither a snapshot nor a volume: %w", blockstore.ErrInvalid)
	}
	if h, bad := ParseHandle(sourceText(source)); bad == nil && err != nil && d.elsewhere(h) {
		err = fmt.Errorf("%w: %w", err, errElsewhere)
	}
	return sourceError(err)
}

func sourceError(err error) error {
	if err == nil {
		return nil
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
func (d *Driver) createVolume(c creation) (blockstore.VolumeInfo, error) {
	info, err := d.store.Volume(c.spec.Name)
	switch {
	case errors.Is(err, blockstore.ErrNotFound) || err == nil && info.Name != c.spec.Name: // a name like an ID is refused below
	case err != nil:
		return info, err
	default:
		if why := c.differs(info); why != "" {
			return info, fmt.Errorf("volume %q: %s: %w", c.spec.Name, why, blockstore.ErrExists)
		}
		return info, nil
	}
	if err := cmp.Or(c.reach, d.size(&c)); err != nil {
		return info, err
	}
	info, err = d.store.CreateVolume(c.spec)
	if errors.Is(err, blockstore.ErrExists) {
		return info, fmt.Errorf("volume %q is being made by another call: try again: %w", c.spec.Name, blockstore.ErrBusy)
	}
	return info, err
}

// size chooses the new volume's size, and refuses a filesystem that would not fit or
// that the source does not have.
func (d *Driver) size(c *creation) error {
	size, fsType, err := d.source(c.spec)
	if err != nil {
		return sourceError(err)
	}
	if fsType != "" && c.fsType != "" && fsType != c.fsType {
		return fmt.Errorf("the source has an %s filesystem, the request wants %s: %w", fsType, c.fsType, blockstore.ErrInvalid)
	}
	if c.spec.SizeBytes, err = c.sizes.pick(size); err != nil {
		return err
	}
	return checkHolds(c.spec.SizeBytes, c.fsType)
}

// source tells the size and filesystem type of what a volume is made from; the default
// size if it is made from nothing.
func (d *Driver) source(spec blockstore.VolumeSpec) (size int64, fsType string, err error) {
	switch {
	case spec.FromSnapshot != "":
		info, err := d.store.Snapshot(spec.FromSnapshot)
		return info.SizeBytes, info.FSType, err
	case spec.FromVolume != "":
		info, err := d.store.Volume(spec.FromVolume)
		return info.SizeBytes, info.FSType, err
	}
	return defaultVolumeSize, "", nil
}

// differs says how a volume is not what was asked for; "" if it is. What onFull says may
// have been changed since, and does not count.
func (c creation) differs(info blockstore.VolumeInfo) string {
	spec := c.spec
	source := spec.FromSnapshot + spec.FromVolume // at most one is set
	err := c.sizes.fits(info.SizeBytes)
	switch {
	case err != nil:
		return err.Error()
	case c.reach != nil:
		return c.reach.Error()
	case info.Source != source:
		return fmt.Sprintf("its source is %q, not %q", info.Source, source)
	case spec.Compression != "" && spec.Compression != info.Compression:
		return fmt.Sprintf("its compression is %s, not %s", info.Compression, spec.Compression)
	case spec.SectorBytes != 0 && spec.SectorBytes != info.SectorBytes:
		return fmt.Sprintf("its block size is %d, not %d", info.SectorBytes, spec.SectorBytes)
	case c.fsType != info.Labels[paramFSType]:
		return fmt.Sprintf("its filesystem type is %q, not %q", info.Labels[paramFSType], c.fsType)
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
// another node's volume is not, so that nobody forgets it. A volume in use is ErrInUse.
func (d *Driver) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	volume, info, err := d.locked(ctx, req.GetVolumeId())
	if err != nil {
		return &csi.DeleteVolumeResponse{}, ignoreGone(err)
	}
	if d.holds(info) && info.Device == "" {
		return nil, fmt.Errorf("volume %s is published to node %s, unpublish it first: %w", info.ID, info.Publication.Node, blockstore.ErrInUse)
	}
	return &csi.DeleteVolumeResponse{}, ignoreGone(volume.Delete(ctx))
}

// ignoreGone is nil if there is nothing left to delete. What belongs to another node
// or store is errState: this driver cannot delete it.
func ignoreGone(err error) error {
	switch {
	case errors.Is(err, errForeign):
		return fmt.Errorf("%w: only the driver there can delete it: %w", err, errState)
	case errors.Is(err, blockstore.ErrNotFound):
		return nil
	}
	return err
}

// ControllerGetVolume implements csi.ControllerServer.
func (d *Driver) ControllerGetVolume(_ context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	info, err := d.volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: d.renderVolume(info),
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: d.publishedNodes(info)},
	}, nil
}

// volume finds a volume by its handle.
func (d *Driver) volume(handle string) (blockstore.VolumeInfo, error) {
	id, err := d.volumeID(handle)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	return d.store.Volume(id)
}

// ValidateVolumeCapabilities implements csi.ControllerServer.
func (d *Driver) ValidateVolumeCapabilities(_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := d.volumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		_, err := parseAccesses(nil, "")
		return nil, err
	}
	info, err := d.volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := confirm(info, req); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeContext:      req.GetVolumeContext(),
			VolumeCapabilities: req.GetVolumeCapabilities(),
			Parameters:         req.GetParameters(),
			MutableParameters:  req.GetMutableParameters(),
		},
	}, nil
}

// confirm says what of a request the volume cannot do.
func confirm(info blockstore.VolumeInfo, req *csi.ValidateVolumeCapabilitiesRequest) error {
	accesses, err := parseAccesses(req.GetVolumeCapabilities(), info.Source)
	if err != nil {
		return err
	}
	params, err := parseVolumeParameters(req.GetParameters())
	if err != nil {
		return err
	}
	if len(req.GetMutableParameters()) > 0 {
		return errors.New("mutable parameters are not offered")
	}
	fsType, err := oneFSType(params.fsType, accesses)
	if err != nil {
		return err
	}
	c := creation{fsType: info.Labels[paramFSType], spec: blockstore.VolumeSpec{
		Compression: params.compression, SectorBytes: params.sectorBytes, OnFull: params.onFull, FromSnapshot: info.Source,
	}}
	if why := c.differs(info); why != "" {
		return errors.New(why)
	}
	if fsType == "" {
		return nil
	}
	if info.FSType != "" && info.FSType != fsType {
		return fmt.Errorf("the volume has an %s filesystem, not %s", info.FSType, fsType)
	}
	return checkHolds(info.SizeBytes, fsType)
}

// ListVolumes implements csi.ControllerServer.
func (d *Driver) ListVolumes(_ context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	page, next, err := paginate(d.store.VolumePage, 'v', func(v blockstore.VolumeInfo) string { return v.ID }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListVolumesResponse{NextToken: next}
	for _, info := range page {
		resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{
			Volume: d.renderVolume(info),
			Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: d.publishedNodes(info)},
		})
	}
	return resp, nil
}

// GetCapacity implements csi.ControllerServer: what free space carries, given that
// volumes are thin and share data. Volumes that cannot be had have no capacity.
func (d *Driver) GetCapacity(_ context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	params, err := parseVolumeParameters(req.GetParameters())
	if err != nil {
		return nil, err
	}
	if t := req.GetAccessibleTopology(); t != nil && !d.here(t) {
		return &csi.GetCapacityResponse{}, nil
	}
	fsType := params.fsType
	if caps := req.GetVolumeCapabilities(); len(caps) > 0 {
		// Whether a volume will be a copy is not told here.
		accesses, err := parseAccesses(caps, "unknown")
		if err == nil {
			fsType, err = oneFSType(fsType, accesses)
		}
		if err != nil {
			return &csi.GetCapacityResponse{}, nil
		}
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: d.available(),
		MaximumVolumeSize: wrapperspb.Int64(blockstore.MaxVolumeSize),
		MinimumVolumeSize: wrapperspb.Int64(minSize(fsType)),
	}, nil
}

// available is max(0, free - reserve) x overcommit, in bytes. Unknown is not none: some
// file systems answer statfs with zeros, and no volume would ever be placed there. But a
// disk that answers with an error gets none.
func (d *Driver) available() int64 {
	stats := d.store.Stats(false)
	if stats.DiskUnknown && stats.DiskError == "" {
		return blockstore.MaxVolumeSize
	}
	free := max(0, stats.DiskFree-stats.Reserve)
	if free >= math.MaxInt64/d.o.Overcommit {
		return math.MaxInt64
	}
	return free * d.o.Overcommit
}

// ControllerExpandVolume implements csi.ControllerServer: the catalog gets the new
// size. The node does the rest, mounted or not. For another node's volume the node does
// all of it.
func (d *Driver) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	h, err := d.parseVolumeHandle(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	sizes, err := parseExpand(req)
	if err != nil {
		return nil, err
	}
	size := int64(0)
	if d.elsewhere(h) {
		size, err = sizes.grow(blockstore.MinVolumeSize)
	} else {
		size, err = d.expand(ctx, req.GetVolumeId(), sizes)
	}
	if err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
}

func parseExpand(req *csi.ControllerExpandVolumeRequest) (sizeRange, error) {
	if req.GetCapacityRange() == nil {
		return sizeRange{}, fmt.Errorf("the capacity range is missing: %w", blockstore.ErrInvalid)
	}
	if c := req.GetVolumeCapability(); c != nil {
		if _, err := parseAccess(c); err != nil {
			return sizeRange{}, err
		}
	}
	return parseRange(req.GetCapacityRange())
}

// expand grows a volume of this node in the catalog.
func (d *Driver) expand(ctx context.Context, handle string, sizes sizeRange) (int64, error) {
	volume, info, err := d.locked(ctx, handle)
	if err != nil {
		return 0, err
	}
	size, err := sizes.grow(info.SizeBytes)
	if err != nil || size == info.SizeBytes {
		return size, err
	}
	info, err = volume.SetSize(size)
	return info.SizeBytes, err
}
