package device

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/k8ns/granary/test/rig"
)

// claim is a volume made over the CSI socket. The commands know it by its name.
type claim struct {
	name   string
	kind   string // filesystem that it is staged with, or "raw"
	handle string
}

// dial connects to the CSI socket, for each call anew: the daemon of the last one may
// have been killed. What bounds the calls is the test's time limit, which has the daemon
// say what it was doing.
func (e *env) dial() *grpc.ClientConn {
	e.Helper()
	conn, err := grpc.NewClient("unix://"+e.daemon.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		e.Fatal(err)
	}
	return conn
}

// capabilityOf is how one pod has a volume: with a filesystem, or as a raw device.
func capabilityOf(kind string) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if kind == "raw" {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: kind}}
	}
	return c
}

// sizes hold a filesystem of each kind, hardly more; a raw device holds any.
var sizes = map[string]int64{"ext4": 64 << 20, "xfs": 300 << 20, "btrfs": 128 << 20, "raw": 300 << 20}

// claim makes a volume for a filesystem, empty or from a source.
func (e *env) claim(name, kind string, from *csi.VolumeContentSource, more ...string) claim {
	e.Helper()
	return e.claimOf(name, kind, sizes[kind], from, more...)
}

// claimOf is claim for a size in bytes; more are parameters, as key=value.
func (e *env) claimOf(name, kind string, size int64, from *csi.VolumeContentSource, more ...string) claim {
	e.Helper()
	parameters := map[string]string{}
	for _, m := range more {
		key, value, _ := strings.Cut(m, "=")
		parameters[key] = value
	}
	conn := e.dial()
	defer conn.Close()
	resp, err := csi.NewControllerClient(conn).CreateVolume(e.ctx, &csi.CreateVolumeRequest{
		Name:                name,
		CapacityRange:       &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities:  []*csi.VolumeCapability{capabilityOf(kind)},
		VolumeContentSource: from,
		Parameters:          parameters,
	})
	if err != nil {
		e.Fatal(err)
	}
	return claim{name, kind, resp.Volume.VolumeId}
}

// clone makes a volume from another as it is now.
func (e *env) clone(v claim, name string) claim {
	e.Helper()
	return e.claim(name, v.kind, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.handle},
	}})
}

// cut takes a snapshot, which restore makes a volume from.
func (e *env) cut(v claim, name string) (snapshot string) {
	e.Helper()
	conn := e.dial()
	defer conn.Close()
	resp, err := csi.NewControllerClient(conn).CreateSnapshot(e.ctx, &csi.CreateSnapshotRequest{SourceVolumeId: v.handle, Name: name})
	if err != nil {
		e.Fatal(err)
	}
	return resp.Snapshot.SnapshotId
}

func (e *env) restore(snapshot, kind, name string) claim {
	e.Helper()
	return e.claim(name, kind, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot},
	}})
}

// staging is where a volume is staged.
func (e *env) staging(v claim) string { return filepath.Join(e.dir, "stage-"+v.name) }

// tryStage stages a volume of this kind.
func (e *env) tryStage(ctx context.Context, v claim) error {
	e.Helper()
	path := e.staging(v)
	rig.NoteMount(e.cleanup, path)
	conn := e.dial()
	defer conn.Close()
	_, err := csi.NewNodeClient(conn).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.handle, StagingTargetPath: path, VolumeCapability: capabilityOf(v.kind),
	})
	return err
}

// stage stages a volume, which must succeed, and returns where it is mounted; of a raw
// one the device.
func (e *env) stage(v claim) string {
	e.Helper()
	if err := e.tryStage(e.ctx, v); err != nil {
		e.Fatalf("stage %s: %v", v.name, err)
	}
	device := e.show(v.name).Device
	if err := rig.NoteLoop(e.cleanup, device); err != nil {
		e.Fatal(err)
	}
	if v.kind == "raw" {
		return device
	}
	if source, err := rig.MountSource(e.staging(v)); err != nil || source != device {
		e.Fatalf("%s is at %s, but on its staging path is %q (%v)", v.name, device, source, err)
	}
	return e.staging(v)
}

// stageLater stages a volume behind the test's back. The channel gets what came of it.
func (e *env) stageLater(ctx context.Context, v claim) <-chan error {
	done := make(chan error, 1)
	go func() { done <- e.tryStage(ctx, v) }()
	return done
}

// answer waits for what came of a stage.
func (e *env) answer(done <-chan error) error {
	e.Helper()
	select {
	case err := <-done:
		return err
	case <-e.ctx.Done():
		e.Fatal("the stage does not end")
		return nil
	}
}

func (e *env) unstage(v claim) {
	e.Helper()
	if err := e.tryUnstage(e.ctx, v); err != nil {
		e.Fatal(err)
	}
}

func (e *env) tryUnstage(ctx context.Context, v claim) error {
	e.Helper()
	conn := e.dial()
	defer conn.Close()
	_, err := csi.NewNodeClient(conn).NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.handle, StagingTargetPath: e.staging(v)})
	return err
}

func (e *env) tryDelete(v claim) error {
	e.Helper()
	conn := e.dial()
	defer conn.Close()
	_, err := csi.NewControllerClient(conn).DeleteVolume(e.ctx, &csi.DeleteVolumeRequest{VolumeId: v.handle})
	return err
}

// wantCode wants an error with a gRPC code that says all of the words.
func (e *env) wantCode(err error, code codes.Code, words ...string) {
	e.Helper()
	if status.Code(err) != code {
		e.Fatalf("%v, want an error %v", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			e.Errorf("the error does not say %q: %v", w, err)
		}
	}
}

// put writes a file durably.
func (e *env) put(dir, name string, content []byte) {
	e.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		e.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		e.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		e.Fatal(err)
	}
}
