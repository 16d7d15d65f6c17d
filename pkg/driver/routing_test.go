package driver

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/attach/attachtest"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
)

// site is one node of a cluster: a real engine in a directory of its own, and a driver
// that others reach by gRPC alone.
type site struct {
	t    *testing.T
	node string
	host *attachtest.Host
	csi.ControllerClient
	csi.NodeClient
}

func newSite(t *testing.T, node string) *site {
	t.Helper()
	leaktest.Check(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	store, err := blockstore.Open(vfs.NewOS(), t.TempDir(), blockstore.Options{
		JournalBytes: 8 << 20, SegmentBytes: 1 << 20, ReserveBytes: 1 << 20, ChunkFileBytes: 1 << 20,
	})
	must(err)
	work, endWork := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); store.Run(work) }()
	host := attachtest.NewHost(new(attachtest.Trace))
	t.Cleanup(host.End)
	attached := attach.New(attach.Engine(store), host, host.Options())
	d, err := New(store, attached, host, Options{NodeID: node})
	must(err)
	dir, err := os.MkdirTemp("", "csi") // t.TempDir may be too long for a socket
	must(err)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(err)
	go func() { _ = d.Serve(ln) }()
	conn, err := grpc.NewClient("unix://"+ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	t.Cleanup(func() {
		conn.Close()
		d.Stop(context.Background())
		must(attached.Shutdown(context.Background()))
		endWork()
		<-ended
		must(store.Close())
		os.RemoveAll(dir)
	})
	return &site{t: t, node: node, host: host, ControllerClient: csi.NewControllerClient(conn), NodeClient: csi.NewNodeClient(conn)}
}

// attachRaw stages and publishes a volume as a raw device and names the device.
func (s *site) attachRaw(id string) (device string, p paths) {
	s.t.Helper()
	before := s.host.Attached()
	dir := s.t.TempDir()
	p = paths{filepath.Join(dir, "staging"), filepath.Join(dir, "target")}
	_, err := s.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: p.staging, VolumeCapability: blockCap()})
	if err == nil {
		_, err = s.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{
			VolumeId: id, StagingTargetPath: p.staging, TargetPath: p.target, VolumeCapability: blockCap(),
		})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	after := s.host.Attached()
	if len(after) != len(before)+1 {
		s.t.Fatalf("devices before %q, after %q", before, after)
	}
	return after[len(after)-1], p
}

func (s *site) volumes() map[string]int64 {
	s.t.Helper()
	resp, err := s.ListVolumes(context.Background(), &csi.ListVolumesRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	sizes := make(map[string]int64)
	for _, e := range resp.Entries {
		sizes[e.Volume.VolumeId] = e.Volume.CapacityBytes
	}
	return sizes
}

// Two drivers with a data directory and a node ID each, and a CO whose provisioner
// and snapshotter run beside both, but its attacher and resizer beside one of them
// alone: everything is done where the volume is, and nowhere else.
func TestTwoDrivers(t *testing.T) {
	ctx := context.Background()
	a, b := newSite(t, "node-a"), newSite(t, "node-b")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	request := func(name string, change ...func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
		req := createRequest(name)
		req.VolumeCapabilities = []*csi.VolumeCapability{blockCap()}
		for _, c := range change {
			c(req)
		}
		return req
	}

	// Provision: the scheduler has chosen b.
	_, err := a.CreateVolume(ctx, request("data", reachableFrom("node-b")))
	wantCode(t, "provision on a", err, codes.ResourceExhausted, "node-a")
	created, err := b.CreateVolume(ctx, request("data", reachableFrom("node-b")))
	must(err)
	id := created.Volume.VolumeId
	if got := created.Volume.AccessibleTopology[0].Segments[TopologyKey]; got != "node-b" {
		t.Errorf("accessible from %q", got)
	}

	// Publish by the attacher beside a, stage beside b.
	for _, tt := range []struct {
		node string
		code codes.Code
	}{{"node-b", codes.OK}, {"node-a", codes.NotFound}, {"node-c", codes.NotFound}} {
		_, err = a.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: tt.node, VolumeCapability: blockCap()})
		wantCode(t, "publish to "+tt.node, err, tt.code)
	}
	_, err = a.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: filepath.Join(t.TempDir(), "s"), VolumeCapability: blockCap()})
	wantCode(t, "stage on a", err, codes.NotFound, "node-b")
	if left := a.host.Attached(); len(left) > 0 {
		t.Errorf("a has attached %q", left)
	}
	device, p := b.attachRaw(id)
	content := bytes.Repeat([]byte("granary!"), 512)
	must(b.host.WriteAt(device, content, 4096))

	// Snapshot and restore.
	_, err = a.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: id, Name: "snap"})
	wantCode(t, "snapshot on a", err, codes.NotFound, "node-b")
	snap, err := b.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: id, Name: "snap"})
	must(err)
	must(b.host.WriteAt(device, make([]byte, 4096), 4096))
	for name, from := range map[string]func(*csi.CreateVolumeRequest){"restored": fromSnapshot(snap.Snapshot.SnapshotId), "cloned": fromVolume(id)} {
		_, err = a.CreateVolume(ctx, request(name, from))
		wantCode(t, name+" on a", err, codes.ResourceExhausted, "node-b")
	}
	restored, err := b.CreateVolume(ctx, request("restored", fromSnapshot(snap.Snapshot.SnapshotId)))
	must(err)
	restoredDevice, restoredPaths := b.attachRaw(restored.Volume.VolumeId)
	got := make([]byte, len(content))
	must(b.host.ReadAt(restoredDevice, got, 4096))
	if !bytes.Equal(got, content) {
		t.Error("the restored volume is not what the snapshot saw")
	}
	list, err := a.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: snap.Snapshot.SnapshotId})
	must(err)
	if len(list.Entries) > 0 {
		t.Errorf("a lists %v", list.Entries)
	}

	// Expand by the resizer beside a: the node does it all.
	expanded, err := a.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 15<<20 + 1}})
	must(err)
	if expanded.CapacityBytes != 16<<20 || !expanded.NodeExpansionRequired {
		t.Errorf("expanded by a: %v", expanded)
	}
	_, err = a.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 15<<20 + 1, LimitBytes: 15<<20 + 2}})
	wantCode(t, "expand within a limit that cannot be kept", err, codes.OutOfRange)
	if size := b.volumes()[id]; size != 8<<20 {
		t.Errorf("b's volume has %d bytes before the node's call", size)
	}
	_, err = b.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: p.target, CapacityRange: &csi.CapacityRange{RequiredBytes: expanded.CapacityBytes}})
	must(err)
	deviceSize, err := b.host.DeviceSize(device)
	must(err)
	if size := b.volumes()[id]; size != 16<<20 || deviceSize != size {
		t.Errorf("b's volume has %d bytes, its device %d", size, deviceSize)
	}

	// Delete: nobody forgets what another has.
	for _, s := range []*site{a, b} {
		_, err = s.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		wantCode(t, "delete on "+s.node+" while it is in use", err, codes.FailedPrecondition)
	}
	for _, tt := range []struct {
		id string
		p  paths
	}{{id, p}, {restored.Volume.VolumeId, restoredPaths}} {
		_, err = b.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: tt.id, TargetPath: tt.p.target})
		must(err)
		_, err = b.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: tt.id, StagingTargetPath: tt.p.staging})
		must(err)
		_, err = a.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: tt.id, NodeId: "node-b"})
		must(err)
		_, err = a.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: tt.id})
		wantCode(t, "delete on a", err, codes.FailedPrecondition, "node-b")
	}
	_, err = a.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snap.Snapshot.SnapshotId})
	wantCode(t, "delete the snapshot on a", err, codes.FailedPrecondition, "node-b")
	if n := len(b.volumes()); n != 2 {
		t.Errorf("b has %d volumes", n)
	}
	_, err = b.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snap.Snapshot.SnapshotId})
	must(err)
	for id := range b.volumes() {
		_, err = b.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		must(err)
	}
	if len(a.volumes())+len(b.volumes()) > 0 {
		t.Errorf("left: %v, %v", a.volumes(), b.volumes())
	}
}

// A volume of a data directory that was replaced is nobody's, and never forgotten by
// an OK.
func TestReplacedStore(t *testing.T) {
	ctx := context.Background()
	before := newSite(t, "node-a")
	created, err := before.CreateVolume(ctx, createRequest("data"))
	if err != nil {
		t.Fatal(err)
	}
	after := newSite(t, "node-a")
	_, err = after.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: created.Volume.VolumeId})
	wantCode(t, "delete", err, codes.FailedPrecondition, "data directory")
	_, err = after.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: created.Volume.VolumeId, NodeId: "node-a", VolumeCapability: mountCap("")})
	wantCode(t, "publish", err, codes.NotFound, "data directory")
	_, err = after.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: created.Volume.VolumeId, NodeId: "node-a"})
	wantCode(t, "unpublish", err, codes.OK)
}
