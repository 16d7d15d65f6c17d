package device

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/test/rig"
)

const (
	usualSize   = 16 << 20
	unusualSize = 12 << 20
	largestSize = 40 << 20
)

// place is a name that a volume or snapshot can have, and what the callers have heard
// about it. It may be out of date: that is what the calls are to stand.
type place struct {
	name    string
	raw     bool     // its volumes are used raw, the others with a filesystem
	staging string   // directory of the staging paths, of a volume
	pods    []string // directories of the target paths

	mu      sync.Mutex
	id      string            // the latest ID that was heard of; "" for none
	old     []string          // IDs before it
	spec    creation          // what was asked for when id was answered
	context map[string]string // of the latest publication
	used    bool              // id was staged for writing, so it is formatted or raw for good
	makers  makers            // creates of this name that run or were lost
}

// creation is what a CreateVolume asks for beside the name.
type creation struct {
	source          string // a handle
	compression     string
	fsType          string
	required, limit int64
}

// caller is one of many: it takes what comes to its mind and does it.
type caller struct {
	*traffic
	r *rand.Rand
}

func (c *caller) run() {
	sum := 0
	for _, op := range requests {
		sum += op.often
	}
	for !c.over() {
		n := c.r.IntN(sum)
		for _, op := range requests {
			if n -= op.often; n < 0 {
				op.do(c)
				break
			}
		}
	}
}

// do makes a call. After ABORTED it mostly pauses as COs do, or hardly any of the calls
// would be another answer; but it also hammers.
func (c *caller) do(answer *call, invoke func(context.Context) error) {
	c.traffic.do(answer, invoke)
	if answer.lost || answer.code != codes.Aborted || c.chance(25) {
		return
	}
	select {
	case <-time.After(time.Duration(20+c.r.IntN(180)) * time.Millisecond):
	case <-c.ctx.Done():
	}
}

// requests are what callers do, and how often out of the sum: mostly what costs little.
var requests = []struct {
	often int
	do    func(*caller)
}{
	{50, (*caller).probe},
	{40, (*caller).getCapacity},
	{50, (*caller).listVolumes},
	{90, (*caller).getVolume},
	{60, (*caller).validate},
	{40, (*caller).listSnapshots},
	{60, (*caller).getSnapshot},
	{100, (*caller).stats},
	{90, (*caller).createVolume},
	{25, (*caller).deleteVolume},
	{70, (*caller).publish},
	{15, (*caller).unpublish},
	{25, (*caller).expand},
	{25, (*caller).expandNode},
	{30, (*caller).createSnapshot},
	{12, (*caller).deleteSnapshot},
	{70, (*caller).stage},
	{20, (*caller).unstage},
	{70, (*caller).publishTarget},
	{40, (*caller).unpublishTarget},
	{25, (*caller).podComes},
	{15, (*caller).podGoes},
	{10, (*caller).podFails},
	{40, (*caller).writeStamp},
	{40, (*caller).readStamps},
}

// chance is true so many times in a hundred.
func (c *caller) chance(percent int) bool { return c.r.IntN(100) < percent }

func (c *caller) anyVolume() *place      { return c.volumes[c.r.IntN(len(c.volumes))] }
func (c *caller) anySnapshot() *place    { return c.snapshots[c.r.IntN(len(c.snapshots))] }
func (c *caller) anyPod(p *place) string { return p.pods[c.r.IntN(len(p.pods))] }

// stagingPath is where a volume is staged. COs have a path for each volume, not name.
func (p *place) stagingPath(id string) string { return filepath.Join(p.staging, engineIDIn(id)) }

// targetPath is where a pod sees a volume.
func targetPath(pod, id string) string { return filepath.Join(pod, engineIDIn(id)) }

// like is a volume or snapshot name whose things can be sources of the other's.
func (c *caller) like(p *place, among []*place) *place {
	for {
		if other := among[c.r.IntN(len(among))]; other.raw == p.raw {
			return other
		}
	}
}

// pick is an ID of a place: mostly the present one, now and then one that is gone, or
// that never was. "" if the place never had any.
func (c *caller) pick(p *place) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := append(p.old[max(0, len(p.old)-3):len(p.old):len(p.old)], p.id)
	switch n := c.r.IntN(100); {
	case len(p.old) > 0 && n < 4:
		return known[c.r.IntN(len(known)-1)]
	case n < 6 && known[0] != "":
		return strings.Replace(known[0], engineIDIn(known[0])[2:10], "00000000", 1)
	}
	return p.id
}

// learn notes the ID that a create answered. A copy holds what was synced on its source
// before any create that may have made it began.
func (w *traffic) learn(p *place, c *call, spec creation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	began := p.makers.end(c)
	if !c.ok() || c.id == p.id || slices.Contains(p.old, c.id) {
		return
	}
	if p.id != "" {
		p.old = append(p.old, p.id)
	}
	if c.is("CreateVolume") {
		w.makePaths(p, c.id)
	}
	p.id, p.spec, p.context, p.used = c.id, spec, nil, false
	w.stamps.inherit(c.id, c.source, began)
}

// latest is the latest ID that was heard of.
func (p *place) latest() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.id
}

// forget notes that an ID is not there any more.
func (p *place) forget(c *call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(c.gone, p.id) {
		p.old = append(p.old, p.id)
		p.id = ""
	}
}

// makers are the creates of one name that may have made what the next answer names, and
// stamps before they began.
type makers struct {
	running map[*call]int64
	lost    []int64
}

// creating notes a create before it begins.
func (w *traffic) creating(p *place, c *call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.makers.running == nil {
		p.makers.running = make(map[*call]int64)
	}
	p.makers.running[c] = w.clock.Add(1)
}

// end takes a create off the list, and tells when the first began of those that may
// have made what it answered.
func (m *makers) end(c *call) (began int64) {
	began = m.running[c]
	for _, b := range m.running {
		began = min(began, b)
	}
	for _, b := range m.lost {
		began = min(began, b)
	}
	switch {
	case c.lost:
		m.lost = append(m.lost, m.running[c])
	case c.ok() && len(m.running) == 1:
		m.lost = nil // what they made, if anything, is what was found
	}
	delete(m.running, c)
	return began
}

func (c *caller) probe() {
	c.do(&call{method: "Probe"}, func(ctx context.Context) error {
		_, err := c.identity.Probe(ctx, &csi.ProbeRequest{})
		return err
	})
}

func (c *caller) getCapacity() {
	c.do(&call{method: "GetCapacity"}, func(ctx context.Context) error {
		_, err := c.controller.GetCapacity(ctx, &csi.GetCapacityRequest{})
		return err
	})
}

func (c *caller) createVolume() { c.create(c.anyVolume()) }

func (c *caller) create(p *place) *call {
	spec := c.newCreation(p)
	answer := &call{method: "CreateVolume", name: p.name, source: spec.source}
	if spec.limit == 0 { // else the volume may grow beyond it
		answer.asked = fmt.Sprintf("%+v", spec)
	}
	req := spec.request(p)
	c.creating(p, answer)
	c.do(answer, func(ctx context.Context) error {
		resp, err := c.controller.CreateVolume(ctx, req)
		answer.sawCreated(resp.GetVolume())
		return err
	})
	c.checkCreated(answer, spec)
	c.learn(p, answer, spec)
	return answer
}

// newCreation is mostly what was asked for when the present volume was made, and now
// and then something that contradicts it.
func (c *caller) newCreation(p *place) creation {
	p.mu.Lock()
	id, spec := p.id, p.spec
	p.mu.Unlock()
	if id != "" && c.chance(80) {
		return spec
	}
	spec = creation{required: usualSize}
	if !p.raw {
		spec.fsType = "ext4"
	}
	switch c.r.IntN(10) {
	case 0, 1, 2:
		spec.source, spec.required = c.pick(c.like(p, c.snapshots)), 0
	case 3, 4:
		spec.source, spec.required = c.pick(c.like(p, c.volumes)), 0
	case 5:
		spec.compression = []string{"none", "zstd"}[c.r.IntN(2)]
	case 6:
		spec.required, spec.limit = unusualSize, unusualSize
	case 7:
		spec.fsType = ""
	}
	return spec
}

func (s creation) request(p *place) *csi.CreateVolumeRequest {
	req := &csi.CreateVolumeRequest{
		Name:               p.name,
		VolumeCapabilities: []*csi.VolumeCapability{capability(p.raw, manyTargets, s.fsType)},
	}
	if s.required > 0 {
		req.CapacityRange = &csi.CapacityRange{RequiredBytes: s.required, LimitBytes: s.limit}
	}
	if s.compression != "" {
		req.Parameters = map[string]string{"compression": s.compression}
	}
	switch {
	case s.source == "":
	case kindOf(s.source) == 's':
		req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.source},
		}}
	default:
		req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: s.source},
		}}
	}
	return req
}

// checkCreated compares an answer with what was asked for.
func (c *caller) checkCreated(answer *call, spec creation) {
	if !answer.ok() {
		return
	}
	size := answer.seen[answer.id].size
	if size < spec.required || spec.limit > 0 && size > spec.limit {
		c.fail("asked for %+v, got %d bytes: %s", spec, size, answer)
	}
	if answer.detail != spec.source {
		c.fail("asked for %+v, got a copy of %q: %s", spec, answer.detail, answer)
	}
}

// sawCreated notes the answer of a CreateVolume; nil for none.
func (c *call) sawCreated(v *csi.Volume) {
	if v == nil {
		return
	}
	c.id = v.GetVolumeId()
	c.detail = v.GetContentSource().GetSnapshot().GetSnapshotId() + v.GetContentSource().GetVolume().GetVolumeId()
	c.see(c.id, sight{size: v.GetCapacityBytes()})
}

func (c *caller) deleteVolume() { c.delete(c.anyVolume()) }

func (c *caller) delete(p *place) *call {
	answer := &call{method: "DeleteVolume", id: c.pick(p)}
	if answer.id == "" {
		return c.create(p)
	}
	c.do(answer, func(ctx context.Context) error {
		_, err := c.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: answer.id})
		return err
	})
	p.forget(answer)
	return answer
}

// aVolume makes a call about a volume of a place; one that had none is given one.
func (c *caller) aVolume(p *place, answer *call, invoke func(ctx context.Context) error) {
	if answer.id == "" {
		answer.lost = true // never made
		c.create(p)
		return
	}
	c.do(answer, invoke)
	p.forget(answer)
}

func (c *caller) getVolume() {
	p := c.anyVolume()
	answer := &call{method: "ControllerGetVolume", id: c.pick(p)}
	c.aVolume(p, answer, func(ctx context.Context) error {
		resp, err := c.controller.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: answer.id})
		if err == nil {
			answer.see(resp.GetVolume().GetVolumeId(), sight{resp.GetVolume().GetCapacityBytes(), true, len(resp.GetStatus().GetPublishedNodeIds()) > 0})
		}
		return err
	})
}

func (c *caller) validate() {
	p := c.anyVolume()
	answer := &call{method: "ValidateVolumeCapabilities", id: c.pick(p)}
	c.aVolume(p, answer, func(ctx context.Context) error {
		_, err := c.controller.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: answer.id, VolumeCapabilities: []*csi.VolumeCapability{c.capability(p)},
		})
		return err
	})
}

// listVolumes asks for all volumes, or for a page of them.
func (c *caller) listVolumes() {
	answer, req := &call{method: "ListVolumes", complete: 'v'}, &csi.ListVolumesRequest{}
	if c.chance(30) {
		answer.complete, req.MaxEntries = 0, 1+c.r.Int32N(4)
	}
	c.do(answer, func(ctx context.Context) error {
		resp, err := c.controller.ListVolumes(ctx, req)
		for _, e := range resp.GetEntries() {
			answer.see(e.GetVolume().GetVolumeId(), sight{e.GetVolume().GetCapacityBytes(), true, len(e.GetStatus().GetPublishedNodeIds()) > 0})
		}
		if err != nil {
			answer.complete = 0
		}
		return err
	})
}

// How a volume is used: with several targets at a time or with one.
const (
	manyTargets = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	singleNode  = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
)

func capability(raw bool, mode csi.VolumeCapability_AccessMode_Mode, fsType string, flags ...string) *csi.VolumeCapability {
	v := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode}}
	if raw {
		v.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		return v
	}
	v.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}}
	return v
}

// capability is mostly that of everybody.
func (c *caller) capability(p *place) *csi.VolumeCapability {
	mode := manyTargets
	if c.chance(8) {
		mode = singleNode
	}
	return capability(p.raw, mode, "ext4")
}

func (c *caller) publish() { c.publishTo(c.anyVolume()) }

func (c *caller) publishTo(p *place) *call {
	capability := c.capability(p)
	answer := &call{method: "ControllerPublishVolume", id: c.pick(p), detail: capability.GetAccessMode().GetMode().String()}
	readOnly := c.chance(10)
	if readOnly {
		answer.detail += " read-only"
	}
	c.aVolume(p, answer, func(ctx context.Context) error {
		resp, err := c.controller.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
			VolumeId: answer.id, NodeId: "rig", VolumeCapability: capability, Readonly: readOnly,
		})
		if err == nil {
			p.mu.Lock()
			p.context = resp.GetPublishContext()
			p.mu.Unlock()
		}
		return err
	})
	return answer
}

func (c *caller) unpublish() { c.unpublishFrom(c.anyVolume()) }

func (c *caller) unpublishFrom(p *place) *call {
	answer := &call{method: "ControllerUnpublishVolume", id: c.pick(p)}
	c.aVolume(p, answer, func(ctx context.Context) error {
		_, err := c.controller.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: answer.id, NodeId: "rig"})
		return err
	})
	return answer
}

func (c *caller) expand() {
	p := c.anyVolume()
	answer := &call{method: "ControllerExpandVolume", id: c.pick(p)}
	size := &csi.CapacityRange{RequiredBytes: usualSize + c.r.Int64N(largestSize-usualSize)}
	if c.chance(20) {
		size.LimitBytes = size.RequiredBytes + 1<<20
	}
	c.aVolume(p, answer, func(ctx context.Context) error {
		resp, err := c.controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: answer.id, CapacityRange: size})
		c.sawGrown(answer, resp.GetCapacityBytes(), size, err)
		return err
	})
}

// expandNode grows device and filesystem to what the catalog says.
func (c *caller) expandNode() {
	p, answer := c.anyVolume(), &call{method: "NodeExpandVolume"}
	if !p.raw && !rig.GrowsExt4() {
		return
	}
	answer.id = c.pick(p)
	answer.path = targetPath(c.anyPod(p), answer.id)
	c.aVolume(p, answer, func(ctx context.Context) error {
		resp, err := c.node.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: answer.id, VolumePath: answer.path})
		c.sawGrown(answer, resp.GetCapacityBytes(), nil, err)
		return err
	})
}

func (c *caller) sawGrown(answer *call, size int64, asked *csi.CapacityRange, err error) {
	if err != nil {
		return
	}
	answer.see(answer.id, sight{size: size})
	if size < asked.GetRequiredBytes() || asked.GetLimitBytes() > 0 && size > asked.GetLimitBytes() {
		c.fail("asked for %v, got %d bytes: %s", asked, size, answer)
	}
}

func (c *caller) createSnapshot() {
	p := c.anySnapshot()
	answer := &call{method: "CreateSnapshot", name: p.name}
	if answer.source = c.snapshotSource(p); answer.source == "" {
		c.create(c.like(p, c.volumes))
		return
	}
	answer.asked = answer.source
	c.creating(p, answer)
	c.do(answer, func(ctx context.Context) error {
		resp, err := c.controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: answer.source, Name: p.name})
		answer.sawSnapshot(resp.GetSnapshot())
		return err
	})
	if answer.ok() && answer.detail != answer.source {
		c.fail("asked for a snapshot of %s, got one of %s: %s", answer.source, answer.detail, answer)
	}
	c.learn(p, answer, creation{source: answer.source})
}

// snapshotSource is mostly the volume that the present snapshot is of.
func (c *caller) snapshotSource(p *place) string {
	p.mu.Lock()
	id, source := p.id, p.spec.source
	p.mu.Unlock()
	if id != "" && c.chance(80) {
		return source
	}
	return c.pick(c.like(p, c.volumes))
}

// sawSnapshot notes the answer of a CreateSnapshot; nil for none.
func (c *call) sawSnapshot(s *csi.Snapshot) {
	if s == nil {
		return
	}
	c.id, c.detail = s.GetSnapshotId(), s.GetSourceVolumeId()
	c.see(c.id, sight{size: s.GetSizeBytes()})
}

func (c *caller) deleteSnapshot() {
	p, answer := c.anySnapshot(), &call{method: "DeleteSnapshot"}
	if answer.id = c.pick(p); answer.id == "" {
		return
	}
	c.do(answer, func(ctx context.Context) error {
		_, err := c.controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: answer.id})
		return err
	})
	p.forget(answer)
}

func (c *caller) getSnapshot() {
	p, answer := c.anySnapshot(), &call{method: "GetSnapshot"}
	if answer.id = c.pick(p); answer.id == "" {
		return
	}
	c.do(answer, func(ctx context.Context) error {
		resp, err := c.controller.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: answer.id})
		if err == nil {
			answer.see(resp.GetSnapshot().GetSnapshotId(), sight{size: resp.GetSnapshot().GetSizeBytes()})
		}
		return err
	})
	p.forget(answer)
}

// listSnapshots asks for all snapshots, for those of a volume, or for one.
func (c *caller) listSnapshots() {
	answer, req := &call{method: "ListSnapshots"}, &csi.ListSnapshotsRequest{}
	only := ""
	switch c.r.IntN(4) {
	case 0:
		req.SourceVolumeId = c.pick(c.anyVolume())
	case 1:
		only = c.pick(c.anySnapshot())
		req.SnapshotId = only
	}
	if req.SourceVolumeId == "" && only == "" {
		answer.complete = 's'
	}
	c.do(answer, func(ctx context.Context) error {
		resp, err := c.controller.ListSnapshots(ctx, req)
		for _, e := range resp.GetEntries() {
			answer.see(e.GetSnapshot().GetSnapshotId(), sight{size: e.GetSnapshot().GetSizeBytes()})
		}
		if err != nil {
			answer.complete = 0
		} else if only != "" && len(resp.GetEntries()) == 0 {
			answer.gone = append(answer.gone, only)
		}
		return err
	})
}

func (c *caller) stage() { c.stageAt(c.anyVolume()) }

func (c *caller) stageAt(p *place) *call {
	id := c.pick(p)
	p.mu.Lock()
	used, readOnly := p.used && p.id == id, p.context["readOnly"] != ""
	p.mu.Unlock()
	capability, wrong := c.stageCapability(p, used)
	if c.chance(3) {
		readOnly = !readOnly
	}
	return c.stageAs(p, id, capability, wrong, readOnly)
}

// stageAs stages a volume; wrong says what contradicts how it is staged by others.
func (c *caller) stageAs(p *place, id string, capability *csi.VolumeCapability, wrong string, readOnly bool) *call {
	answer := &call{method: "NodeStageVolume", id: id, path: p.stagingPath(id), detail: wrong}
	req := &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: answer.path, VolumeCapability: capability}
	if readOnly {
		answer.detail = strings.TrimSpace("read-only " + wrong)
		req.PublishContext = map[string]string{"readOnly": "true"}
	}
	c.aVolume(p, answer, func(ctx context.Context) error {
		_, err := c.node.NodeStageVolume(ctx, req)
		return err
	})
	if answer.ok() && !readOnly {
		p.noteUsed(answer.id)
	}
	if answer.ok() && wrong == asFilesystem {
		c.fail("a volume that was used raw has a filesystem now: %s", answer)
	}
	return answer
}

// noteUsed notes that a volume was staged for writing.
func (p *place) noteUsed(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = p.used || p.id == id
}

// How a stage contradicts the others. asFilesystem must never succeed.
const (
	asFilesystem = "raw as a filesystem"
	asRaw        = "filesystem as raw"
	otherFlags   = "with other flags"
)

// stageCapability is mostly what suits the place. What would decide for good how an
// empty volume is used is not asked for the wrong way around.
func (c *caller) stageCapability(p *place, used bool) (_ *csi.VolumeCapability, wrong string) {
	switch n := c.r.IntN(100); {
	case n < 3 && used && p.raw:
		return capability(false, manyTargets, "ext4"), asFilesystem
	case n < 3 && used:
		return capability(true, manyTargets, ""), asRaw
	case n < 6 && !p.raw:
		return capability(false, manyTargets, "ext4", "noatime"), otherFlags
	}
	return c.capability(p), ""
}

func (c *caller) unstage() { c.unstageFrom(c.anyVolume()) }

func (c *caller) unstageFrom(p *place) *call {
	answer := &call{method: "NodeUnstageVolume", id: c.pick(p)}
	answer.path = p.stagingPath(answer.id)
	c.aVolume(p, answer, func(ctx context.Context) error {
		_, err := c.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: answer.id, StagingTargetPath: answer.path})
		return err
	})
	return answer
}

func (c *caller) publishTarget() {
	p := c.anyVolume()
	c.publishAt(p, c.anyPod(p))
}

func (c *caller) publishAt(p *place, pod string) *call {
	id, capability := c.pick(p), c.capability(p)
	answer := &call{method: "NodePublishVolume", id: id, path: targetPath(pod, id), detail: capability.GetAccessMode().GetMode().String()}
	req := &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: p.stagingPath(id), TargetPath: answer.path, VolumeCapability: capability,
	}
	req.Readonly = !p.raw && c.chance(15) // a raw device that is staged for writing cannot be that
	c.aVolume(p, answer, func(ctx context.Context) error {
		_, err := c.node.NodePublishVolume(ctx, req)
		return err
	})
	if answer.ok() && c.chance(50) {
		c.stampAt(p, answer.path)
	}
	return answer
}

func (c *caller) unpublishTarget() {
	p := c.anyVolume()
	c.unpublishAt(p, c.anyPod(p))
}

func (c *caller) unpublishAt(p *place, pod string) *call {
	answer := &call{method: "NodeUnpublishVolume", id: c.pick(p)}
	answer.path = targetPath(pod, answer.id)
	c.aVolume(p, answer, func(ctx context.Context) error {
		_, err := c.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: answer.id, TargetPath: answer.path})
		return err
	})
	return answer
}

func (c *caller) stats() {
	p := c.anyVolume()
	answer := &call{method: "NodeGetVolumeStats", id: c.pick(p)}
	if answer.path = targetPath(c.anyPod(p), answer.id); c.chance(30) {
		answer.path = p.stagingPath(answer.id)
	}
	c.aVolume(p, answer, func(ctx context.Context) error {
		_, err := c.node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: answer.id, VolumePath: answer.path})
		return err
	})
}

// podComes does what a CO does for a new pod.
func (c *caller) podComes() {
	p := c.anyVolume()
	pod := c.anyPod(p)
	c.insist(func() *call { return c.create(p) })
	c.insist(func() *call { return c.publishTo(p) })
	c.insist(func() *call { return c.stageAt(p) })
	c.insist(func() *call { return c.publishAt(p, pod) })
}

// podGoes takes a pod away, and mostly its volume.
func (c *caller) podGoes() {
	p := c.anyVolume()
	c.clear(p)
	c.insist(func() *call { return c.unpublishFrom(p) })
	if c.chance(60) {
		c.insist(func() *call { return c.delete(p) })
	}
}

// clear ends the use of a volume on the node.
func (c *caller) clear(p *place) {
	for _, pod := range p.pods {
		c.insist(func() *call { return c.unpublishAt(p, pod) })
	}
	c.insist(func() *call { return c.unstageFrom(p) })
}

// podFails wants a filesystem on a raw volume that was let go, which is refused only
// when the volume is attached; and then gives up the volume.
func (c *caller) podFails() {
	p := c.volumes[slices.IndexFunc(c.volumes, func(p *place) bool { return p.raw })]
	c.clear(p)
	p.mu.Lock()
	id, used := p.id, p.used
	p.mu.Unlock()
	if used {
		wrong := capability(false, manyTargets, "ext4")
		c.insist(func() *call { return c.stageAs(p, id, wrong, asFilesystem, false) })
	}
	c.insist(func() *call { return c.delete(p) })
}

// insist makes a call again while it is ABORTED.
func (c *caller) insist(ask func() *call) {
	for range 10 {
		if answer := ask(); answer.lost || answer.code != codes.Aborted {
			return
		}
	}
}
