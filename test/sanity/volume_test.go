package sanity

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// Kinds of volumes: a filesystem, or raw.
const (
	ext4  = "ext4"
	xfs   = "xfs"
	btrfs = "btrfs"
	block = "block"
)

var (
	filesystems = []string{ext4, xfs, btrfs}
	allKinds    = []string{ext4, xfs, btrfs, block}
)

const mib = 1 << 20

// smallest is a size that mkfs accepts, with room for the tests' data.
var smallest = map[string]int64{ext4: 128 * mib, xfs: 320 * mib, btrfs: 256 * mib, block: 32 * mib}

// inventory is what exists in a daemon, for the end of the test. A killed daemon keeps
// it: so does the store.
type inventory struct {
	mu        sync.Mutex
	count     int // names volumes and snapshots
	volumes   []*volume
	snapshots []*snapshot
}

func (i *inventory) name(prefix string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.count++
	return fmt.Sprintf("%s-%d", prefix, i.count)
}

// volume is a volume as a CO knows it.
type volume struct {
	e       *env
	name    string
	id      string
	kind    string
	mode    csi.VolumeCapability_AccessMode_Mode // of the calls to come
	size    int64
	context map[string]string

	readOnly bool // ask ControllerPublishVolume for that

	attach  map[string]string // publish context
	staged  string
	targets map[string]string // where it is published, by pod
}

// snapshot is a snapshot as a CO knows it.
type snapshot struct {
	e    *env
	id   string
	kind string // of the volume that it is of
	size int64
}

// eachKind runs a test for each kind of volume, on one daemon. After each, everything
// that it made goes; after all, nothing may be left.
func eachKind(t *testing.T, kinds []string, test func(e *env, kind string)) {
	t.Helper()
	e := newEnv(t, dataLimit)
	t.Logf("GRANARY_SEED=%d", seed)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			s := e.sub(t)
			s.made = &inventory{}
			defer s.removeAll()
			test(s, kind)
		})
	}
	e.auditData()
}

// request is a CreateVolume call in the making.
type request struct {
	size   int64
	source *csi.VolumeContentSource
	modes  []csi.VolumeCapability_AccessMode_Mode
}

// create makes a volume of the smallest good size.
func (e *env) create(kind string) *volume {
	e.Helper()
	return e.createAs(kind, request{size: smallest[kind]})
}

// createAs makes a volume. Of several access modes the first is used.
func (e *env) createAs(kind string, r request) *volume {
	e.Helper()
	if len(r.modes) == 0 {
		r.modes = []csi.VolumeCapability_AccessMode_Mode{writer}
	}
	v := &volume{e: e, name: e.made.name("v-" + kind), kind: kind, mode: r.modes[0], targets: map[string]string{}}
	answer := e.callCreate(v.name, kind, r)
	v.id, v.size, v.context = answer.GetVolumeId(), answer.GetCapacityBytes(), answer.GetVolumeContext()
	e.made.mu.Lock()
	e.made.volumes = append(e.made.volumes, v)
	e.made.mu.Unlock()
	return v
}

func (e *env) callCreate(name, kind string, r request) *csi.Volume {
	e.Helper()
	req := &csi.CreateVolumeRequest{Name: name, VolumeContentSource: r.source}
	if r.size > 0 {
		req.CapacityRange = &csi.CapacityRange{RequiredBytes: r.size}
	}
	for _, m := range r.modes {
		req.VolumeCapabilities = append(req.VolumeCapabilities, capability(kind, m))
	}
	var answer *csi.CreateVolumeResponse
	err := retry(e.ctx, func() (err error) {
		answer, err = e.client.controller.CreateVolume(e.ctx, req)
		return err
	})
	if err != nil {
		e.Fatalf("CreateVolume %s (%v): %v", name, r.modes, err)
	}
	return answer.GetVolume()
}

// clone makes a copy of the volume as it is now; size 0 is the source's.
func (v *volume) clone(size int64) *volume {
	v.e.Helper()
	return v.e.createAs(v.kind, request{size: size, source: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.id},
	}}})
}

// restore makes a volume of the snapshot; size 0 is the snapshot's.
func (s *snapshot) restore(size int64, modes ...csi.VolumeCapability_AccessMode_Mode) *volume {
	s.e.Helper()
	return s.e.createAs(s.kind, request{size: size, modes: modes, source: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.id},
	}}})
}

// snapshot takes a snapshot of the volume.
func (v *volume) snapshot() *snapshot {
	v.e.Helper()
	req := &csi.CreateSnapshotRequest{Name: v.e.made.name("s-" + v.kind), SourceVolumeId: v.id}
	var answer *csi.CreateSnapshotResponse
	err := retry(v.e.ctx, func() (err error) {
		answer, err = v.e.client.controller.CreateSnapshot(v.e.ctx, req)
		return err
	})
	if err != nil {
		v.e.Fatalf("CreateSnapshot of %s: %v", v.name, err)
	}
	s := &snapshot{e: v.e, id: answer.GetSnapshot().GetSnapshotId(), kind: v.kind, size: answer.GetSnapshot().GetSizeBytes()}
	v.e.made.mu.Lock()
	v.e.made.snapshots = append(v.e.made.snapshots, s)
	v.e.made.mu.Unlock()
	return s
}

func (s *snapshot) delete() {
	s.e.Helper()
	err := retry(s.e.ctx, func() error {
		_, err := s.e.client.controller.DeleteSnapshot(s.e.ctx, &csi.DeleteSnapshotRequest{SnapshotId: s.id})
		return err
	})
	if err != nil {
		s.e.Fatalf("DeleteSnapshot: %v", err)
	}
	s.e.made.snapshots = slices.DeleteFunc(s.e.made.snapshots, func(o *snapshot) bool { return o == s })
}

// stage stages the volume, after ControllerPublishVolume if the driver has that.
func (v *volume) stage() {
	v.e.Helper()
	v.e.must(v.tryStage())
}

func (v *volume) tryStage() error {
	if v.e.client.publishes {
		err := retry(v.e.ctx, func() error {
			answer, err := v.e.client.controller.ControllerPublishVolume(v.e.ctx, &csi.ControllerPublishVolumeRequest{
				VolumeId: v.id, NodeId: v.e.client.nodeID, VolumeCapability: capability(v.kind, v.mode), VolumeContext: v.context,
				Readonly: v.readOnly,
			})
			v.attach = answer.GetPublishContext()
			return err
		})
		if err != nil {
			return fmt.Errorf("ControllerPublishVolume %s (%s): %w", v.name, v.mode, err)
		}
	}
	if v.staged == "" {
		v.staged = v.e.path("staging", v.name)
		if err := os.MkdirAll(v.staged, 0o755); err != nil { // the CO's part
			return err
		}
	}
	err := retry(v.e.ctx, func() error {
		_, err := v.e.client.node.NodeStageVolume(v.e.ctx, &csi.NodeStageVolumeRequest{
			VolumeId: v.id, StagingTargetPath: v.staged, VolumeCapability: capability(v.kind, v.mode),
			VolumeContext: v.context, PublishContext: v.attach,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("NodeStageVolume %s (%s): %w", v.name, v.mode, err)
	}
	return nil
}

// publish publishes the staged volume for a pod and returns what the pod sees.
func (v *volume) publish(pod string) medium {
	v.e.Helper()
	m, err := v.tryPublish(pod, false)
	v.e.must(err)
	return m
}

func (v *volume) publishReadOnly(pod string) medium {
	v.e.Helper()
	m, err := v.tryPublish(pod, true)
	v.e.must(err)
	return m
}

func (v *volume) tryPublish(pod string, readOnly bool) (medium, error) {
	target := v.targets[pod]
	if target == "" {
		target = v.e.path("pods", pod, v.name, "mount")
		v.targets[pod] = target
	}
	err := retry(v.e.ctx, func() error {
		_, err := v.e.client.node.NodePublishVolume(v.e.ctx, &csi.NodePublishVolumeRequest{
			VolumeId: v.id, StagingTargetPath: v.staged, TargetPath: target, Readonly: readOnly,
			VolumeCapability: capability(v.kind, v.mode), VolumeContext: v.context, PublishContext: v.attach,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("NodePublishVolume %s for %s: %w", v.name, pod, err)
	}
	if v.kind == block {
		return &device{path: target, size: v.size}, nil
	}
	return &directory{path: target}, nil
}

// use stages and publishes the volume for one pod.
func (v *volume) use() medium {
	v.e.Helper()
	v.stage()
	return v.publish("pod")
}

func (v *volume) unpublish(pod string) {
	v.e.Helper()
	target := v.targets[pod]
	err := retry(v.e.ctx, func() error {
		_, err := v.e.client.node.NodeUnpublishVolume(v.e.ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: target})
		return err
	})
	if err != nil {
		v.e.Fatalf("NodeUnpublishVolume %s for %s: %v", v.name, pod, err)
	}
	delete(v.targets, pod)
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		v.e.Errorf("the target %s is still there after NodeUnpublishVolume (%v)", target, err)
	}
	v.e.must(os.Remove(filepath.Dir(target))) // the CO's, and now empty
}

// release unpublishes the volume everywhere and unstages it.
func (v *volume) release() {
	v.e.Helper()
	for pod := range v.targets {
		v.unpublish(pod)
	}
	if v.staged == "" {
		return
	}
	err := retry(v.e.ctx, func() error {
		_, err := v.e.client.node.NodeUnstageVolume(v.e.ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staged})
		return err
	})
	if err != nil {
		v.e.Fatalf("NodeUnstageVolume %s: %v", v.name, err)
	}
	v.e.must(os.Remove(v.staged))
	v.staged = ""
	if !v.e.client.publishes {
		return
	}
	_, err = v.e.client.controller.ControllerUnpublishVolume(v.e.ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: v.id, NodeId: v.e.client.nodeID})
	if err != nil {
		v.e.Fatalf("ControllerUnpublishVolume %s: %v", v.name, err)
	}
}

// delete deletes the volume, released before if need be.
func (v *volume) delete() {
	v.e.Helper()
	v.release()
	err := retry(v.e.ctx, func() error {
		_, err := v.e.client.controller.DeleteVolume(v.e.ctx, &csi.DeleteVolumeRequest{VolumeId: v.id})
		return err
	})
	if err != nil {
		v.e.Fatalf("DeleteVolume %s: %v", v.name, err)
	}
	v.e.made.volumes = slices.DeleteFunc(v.e.made.volumes, func(o *volume) bool { return o == v })
}

// expand asks the controller for more, and the node too if the volume is to grow in use.
func (v *volume) expand(size int64, inUse bool) {
	v.e.Helper()
	want := &csi.CapacityRange{RequiredBytes: size}
	answer, err := v.e.client.controller.ControllerExpandVolume(v.e.ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: v.id, CapacityRange: want, VolumeCapability: capability(v.kind, v.mode),
	})
	if err != nil {
		v.e.Fatalf("ControllerExpandVolume %s: %v", v.name, err)
	}
	if !answer.GetNodeExpansionRequired() {
		v.e.Errorf("ControllerExpandVolume %s: says that the node has nothing to do", v.name)
	}
	v.size = answer.GetCapacityBytes()
	if !inUse {
		return
	}
	for _, target := range v.targets {
		if _, err := v.e.client.node.NodeExpandVolume(v.e.ctx, &csi.NodeExpandVolumeRequest{
			VolumeId: v.id, VolumePath: target, StagingTargetPath: v.staged, CapacityRange: want, VolumeCapability: capability(v.kind, v.mode),
		}); err != nil {
			v.e.Fatalf("NodeExpandVolume %s: %v", v.name, err)
		}
	}
}

// removeAll takes away what the test made, the newest first: also when it failed, so
// that the next one on this daemon finds it empty.
func (e *env) removeAll() {
	e.Helper()
	if !e.daemon.Running() {
		return // nobody would answer
	}
	for len(e.made.volumes) > 0 {
		e.made.volumes[len(e.made.volumes)-1].delete()
	}
	for len(e.made.snapshots) > 0 {
		e.made.snapshots[len(e.made.snapshots)-1].delete()
	}
}
