package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/attach/attachtest"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/pkg/leaktest"
)

const node = "node-1.example"

// world is one node: an engine, a host, and a driver that is called over its socket.
type world struct {
	t      *testing.T
	trace  *attachtest.Trace
	engine *attachtest.Engine
	host   *attachtest.Host
	clock  time.Time // the driver's; not for use while calls run

	attached *attach.Attachments
	driver   *Driver
	conn     *grpc.ClientConn
	csi.IdentityClient
	csi.ControllerClient
	csi.NodeClient
}

func newWorld(t *testing.T) *world {
	t.Helper()
	leaktest.Check(t)
	trace := new(attachtest.Trace)
	w := &world{t: t, trace: trace, engine: attachtest.NewEngine(trace), host: attachtest.NewHost(trace), clock: time.Unix(1800000000, 0)}
	t.Cleanup(w.host.End)
	w.boot()
	t.Cleanup(w.halt)
	return w
}

// boot starts a daemon: it clears what another left, and serves.
func (w *world) boot() {
	w.t.Helper()
	w.attached = attach.New(w.engine, w.host, w.host.Options())
	if err := w.attached.ClearDead(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	d, err := New(w.engine, w.attached, w.host, Options{NodeID: node, Version: "v1", Now: func() time.Time { return w.clock }})
	if err != nil {
		w.t.Fatal(err)
	}
	w.driver = d
	dir, err := os.MkdirTemp("", "csi") // t.TempDir may be too long for a socket
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = d.Serve(ln) }()
	w.conn, err = grpc.NewClient("unix://"+ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.IdentityClient = csi.NewIdentityClient(w.conn)
	w.ControllerClient = csi.NewControllerClient(w.conn)
	w.NodeClient = csi.NewNodeClient(w.conn)
}

func (w *world) halt() {
	w.conn.Close()
	w.driver.Stop(context.Background())
}

// kill ends the daemon as kill -9 does, and starts another one.
func (w *world) kill() {
	w.t.Helper()
	w.halt()
	w.trace.CrashIn(0)
	for _, device := range w.host.Attached() {
		if err := w.host.Kill(device); err != nil {
			w.t.Fatal(err)
		}
	}
	w.engine.Reopen()
	w.boot()
	w.trace.Steps()
}

func mountCap(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
	}
}

func blockCap() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

// withMode is the capability with another access mode.
func withMode(c *csi.VolumeCapability, mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	c.AccessMode = &csi.VolumeCapability_AccessMode{Mode: mode}
	return c
}

func createRequest(name string) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name:               name,
		CapacityRange:      &csi.CapacityRange{RequiredBytes: 8 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{mountCap("")},
	}
}

func (w *world) create(name string, change ...func(*csi.CreateVolumeRequest)) *csi.Volume {
	w.t.Helper()
	req := createRequest(name)
	for _, c := range change {
		c(req)
	}
	resp, err := w.CreateVolume(context.Background(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Volume
}

func (w *world) snapshot(volume, name string) string {
	w.t.Helper()
	resp, err := w.CreateSnapshot(context.Background(), &csi.CreateSnapshotRequest{SourceVolumeId: volume, Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Snapshot.SnapshotId
}

// paths are the directories that a CO makes for a volume.
type paths struct{ staging, target string }

func (w *world) paths() paths {
	dir := w.t.TempDir()
	return paths{filepath.Join(dir, "staging"), filepath.Join(dir, "target")}
}

func (w *world) stage(id string, p paths, c *csi.VolumeCapability) error {
	_, err := w.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: p.staging, VolumeCapability: c,
	})
	return err
}

func (w *world) publish(id string, p paths, c *csi.VolumeCapability) error {
	_, err := w.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: p.staging, TargetPath: p.target, VolumeCapability: c,
	})
	return err
}

func (w *world) publishReadOnly(id string, p paths, c *csi.VolumeCapability) error {
	_, err := w.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: p.staging, TargetPath: p.target, VolumeCapability: c, Readonly: true,
	})
	return err
}

func (w *world) unpublish(id string, p paths) error {
	_, err := w.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: p.target})
	return err
}

func (w *world) unstage(id string, p paths) error {
	_, err := w.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: p.staging})
	return err
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// wantCode checks an error's gRPC code and that its text has all the parts.
func wantCode(t *testing.T, what string, err error, code codes.Code, parts ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: %v; want code %s", what, err, code)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q does not say %q", what, err, part)
		}
	}
}

func (w *world) wantSteps(what string, want ...string) {
	w.t.Helper()
	if got := w.trace.Steps(); !slices.Equal(got, want) {
		w.t.Errorf("%s: steps %q\nwant %q", what, got, want)
	}
}

// handleOf is a handle of this node with a chosen engine ID.
func handleOf(id string) string {
	return Handle{Store: attachtest.StoreID[:16], ID: id, Node: node}.String()
}

func noVolume() string { return handleOf("v-" + strings.Repeat("f", 32)) }

func TestEverySentinelHasItsCode(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code codes.Code
	}{
		{nil, codes.OK},
		{blockstore.ErrNotFound, codes.NotFound},
		{blockstore.ErrExists, codes.AlreadyExists},
		{blockstore.ErrInUse, codes.FailedPrecondition},
		{blockstore.ErrBusy, codes.Aborted},
		{blockstore.ErrInvalid, codes.InvalidArgument},
		{blockstore.ErrRange, codes.OutOfRange},
		{blockstore.ErrFailed, codes.Internal},
		{blockstore.ErrClosed, codes.Unavailable},
		{blockstore.ErrOlder, codes.Internal},
		{blockstore.ErrNoSpace, codes.ResourceExhausted},
		{blockstore.ErrLocked, codes.Unavailable},
		{blockstore.ErrFormat, codes.Internal},
		{blockstore.ErrVersion, codes.Internal},
		{blockstore.ErrCorrupt, codes.DataLoss},
		{blockstore.ErrMissing, codes.DataLoss},
		{attach.ErrLimit, codes.ResourceExhausted},
		{export.ErrInUse, codes.FailedPrecondition},
		{export.ErrInvalid, codes.InvalidArgument},
		{export.ErrReadOnly, codes.FailedPrecondition},
		{export.ErrNotAttached, codes.Internal},
		{errElsewhere, codes.ResourceExhausted},
		{errState, codes.FailedPrecondition},
		{fmt.Errorf("%w: %w", errMode, blockstore.ErrInvalid), codes.InvalidArgument},
		{exceeds(fmt.Errorf("%w: %w", errMode, blockstore.ErrInvalid)), codes.FailedPrecondition},
		{errToken, codes.Aborted},
		{fmt.Errorf("%w: %w", blockstore.ErrNotFound, errForeign), codes.NotFound},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{errors.New("anything"), codes.Internal},
		{status.Error(codes.Unimplemented, "no"), codes.Unimplemented},
	} {
		wrapped := tt.err
		if _, ok := status.FromError(tt.err); !ok {
			wrapped = fmt.Errorf("while doing it: %w", tt.err)
		}
		got := toStatus(wrapped)
		if status.Code(got) != tt.code {
			t.Errorf("%v: %s, want %s", tt.err, status.Code(got), tt.code)
		}
		if wrapped != nil && !strings.Contains(status.Convert(got).Message(), status.Convert(wrapped).Message()) {
			t.Errorf("%v: the text is lost: %v", tt.err, got)
		}
	}
}

// An error says what was wrong, and both its ends are told, but not without end.
func TestLongErrorsAreCut(t *testing.T) {
	long := strings.Repeat("é", 1<<20)
	err := toStatus(fmt.Errorf("begin %q end: %w", long, blockstore.ErrInvalid))
	wantCode(t, "long", err, codes.InvalidArgument, "begin", "bytes ...]", "end")
	if text := status.Convert(err).Message(); len(text) > maxText+100 || !utf8.ValidString(text) {
		t.Errorf("%d bytes are told, as text %v", len(text), utf8.ValidString(text))
	}
}

func TestIdentity(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	info, err := w.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	w.must(err)
	if info.Name != "granary.csi.k8ns.io" || info.VendorVersion != "v1" {
		t.Errorf("plugin info %v", info)
	}
	probe, err := w.Probe(ctx, &csi.ProbeRequest{})
	w.must(err)
	if !probe.GetReady().GetValue() {
		t.Error("not ready")
	}
	caps, err := w.GetPluginCapabilities(ctx, &csi.GetPluginCapabilitiesRequest{})
	w.must(err)
	if len(caps.Capabilities) != 3 {
		t.Errorf("capabilities %v", caps)
	}
	nodeInfo, err := w.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	w.must(err)
	if nodeInfo.NodeId != node || nodeInfo.AccessibleTopology.Segments["topology.granary.csi.k8ns.io/node"] != node {
		t.Errorf("node info %v", nodeInfo)
	}
}

func TestPanicIsAnError(t *testing.T) {
	w := newWorld(t)
	w.driver.store = nil // the next handler that asks it panics
	_, err := w.GetCapacity(context.Background(), &csi.GetCapacityRequest{})
	wantCode(t, "panic", err, codes.Internal, "panic in GetCapacity")
	_, err = w.Probe(context.Background(), &csi.ProbeRequest{})
	w.must(err)
}

func TestOptions(t *testing.T) {
	engine := attachtest.NewEngine(new(attachtest.Trace))
	for _, id := range []string{"", "-a", "a b", "a/b", strings.Repeat("a", 64)} {
		if _, err := New(engine, nil, nil, Options{NodeID: id}); !errors.Is(err, blockstore.ErrInvalid) {
			t.Errorf("node ID %q: %v", id, err)
		}
	}
}

// Stop keeps its time although a call does not end.
func TestStopDoesNotWaitForEver(t *testing.T) {
	w := newWorld(t)
	id := w.create("v").VolumeId
	hangs, goOn := make(chan struct{}), make(chan struct{})
	w.driver.host = &hangingMkfs{w.host, hangs, goOn}
	go func() { _ = w.stage(id, w.paths(), mountCap("")) }()
	<-hangs
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	w.driver.Stop(ctx)
	close(goOn)
}

type hangingMkfs struct {
	export.Host
	hangs, goOn chan struct{}
}

func (h *hangingMkfs) Mkfs(ctx context.Context, device, fsType string, o []string) error {
	close(h.hangs)
	<-h.goOn
	return h.Host.Mkfs(ctx, device, fsType, o)
}
