package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/k8ns/granary/pkg/leaktest"
)

// daemonEnv makes the test binary be granary.
const daemonEnv = "GRANARY_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(daemonEnv) != "" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(leaktest.Main(m))
}

// node is a machine with a data directory on which daemons come and go.
type node struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	conn *grpc.ClientConn
	csi.ControllerClient
	csi.NodeClient
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it attaches block devices and mounts them")
	}
	for _, device := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(device); err != nil {
			t.Skipf("needs %s: %v", device, err)
		}
	}
	for _, program := range []string{"mkfs.ext4", "e2fsck"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	leaktest.Check(t)
	n := &node{t: t, dir: tempDir(t)}
	t.Cleanup(n.cleanup)
	return n
}

// start starts a daemon and waits until it says that it is ready.
func (n *node) start() {
	n.t.Helper()
	socket := filepath.Join(n.dir, "csi.sock")
	n.cmd = exec.Command(os.Args[0], "serve", "--endpoint", "unix://"+socket, "--data-dir", filepath.Join(n.dir, "store"),
		"--node-id", "n1", "--journal-size", "64MiB", "--reserve-size", "16MiB")
	n.cmd.Env = append(os.Environ(), daemonEnv+"=1")
	stderr, err := n.cmd.StderrPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	var said strings.Builder
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		fmt.Fprintln(&said, lines.Text())
		if strings.Contains(lines.Text(), "msg=ready") {
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			n.dial(socket)
			return
		}
	}
	n.t.Fatalf("the daemon is not ready:\n%s", said.String())
}

func (n *node) dial(socket string) {
	n.t.Helper()
	var err error
	if n.conn, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		n.t.Fatal(err)
	}
	n.ControllerClient, n.NodeClient = csi.NewControllerClient(n.conn), csi.NewNodeClient(n.conn)
}

// end sends a signal and waits for the daemon's end.
func (n *node) end(signal os.Signal) error {
	n.t.Helper()
	_ = n.conn.Close()
	if err := n.cmd.Process.Signal(signal); err != nil {
		n.t.Fatal(err)
	}
	err := n.cmd.Wait()
	n.cmd = nil
	return err
}

// cleanup unmounts what a failed test left and lets a daemon clear the rest.
func (n *node) cleanup() {
	if n.cmd != nil {
		_ = n.end(syscall.SIGKILL)
	}
	raw, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(raw)) {
		if target := strings.Fields(line)[1]; strings.HasPrefix(target, n.dir+"/") {
			_ = syscall.Unmount(target, syscall.MNT_DETACH)
		}
	}
	n.start()
	if err := n.end(syscall.SIGTERM); err != nil {
		n.t.Errorf("the last daemon: %v", err)
	}
	raw, _ = exec.Command("losetup", "-a").Output()
	if n.t.Failed() {
		n.t.Logf("loop devices now:\n%s", raw)
	}
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// path is a path for a volume below the test's directory.
func (n *node) path(kind, name string) string { return filepath.Join(n.dir, kind, name) }

var oneWriter = &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}

func filesystem(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: oneWriter, AccessType: &csi.VolumeCapability_Mount{
		Mount: &csi.VolumeCapability_MountVolume{FsType: fsType},
	}}
}

var (
	ext4     = filesystem("ext4")
	xfs      = filesystem("xfs")
	rawBlock = &csi.VolumeCapability{AccessMode: oneWriter, AccessType: &csi.VolumeCapability_Block{
		Block: &csi.VolumeCapability_BlockVolume{},
	}}
)

func (n *node) create(name string, size int64, c *csi.VolumeCapability, source *csi.VolumeContentSource) (id string) {
	n.t.Helper()
	resp, err := n.CreateVolume(context.Background(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{c}, VolumeContentSource: source,
	})
	n.must(err)
	return resp.Volume.VolumeId
}

// mount stages and publishes a volume and returns where.
func (n *node) mount(id, name string, c *csi.VolumeCapability) string {
	n.t.Helper()
	ctx := context.Background()
	n.must(os.MkdirAll(n.path("target", ""), 0o700))
	n.must(os.MkdirAll(n.path("staging", name), 0o700))
	_, err := n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: n.path("staging", name), VolumeCapability: c,
	})
	n.must(err)
	_, err = n.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: n.path("staging", name), TargetPath: n.path("target", name), VolumeCapability: c,
	})
	n.must(err)
	return n.path("target", name)
}

func (n *node) unmount(id, name string) {
	n.t.Helper()
	ctx := context.Background()
	_, err := n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: n.path("target", name)})
	n.must(err)
	_, err = n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: n.path("staging", name)})
	n.must(err)
}

// write writes a file and syncs it.
func (n *node) write(dir, name string, content []byte) {
	n.t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	n.must(err)
	_, err = f.Write(content)
	n.must(err)
	n.must(f.Sync())
	n.must(f.Close())
}

func (n *node) wantFile(dir, name string, want []byte) {
	n.t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || !bytes.Equal(got, want) {
		n.t.Errorf("%s: %d bytes, %v; want %d bytes as written", name, len(got), err, len(want))
	}
}

// The way of a volume through CSI, over kill -9 and SIGTERM, on real devices.
func TestServe(t *testing.T) { // I1, I11
	n := newNode(t)
	ctx := context.Background()
	content := bytes.Repeat([]byte("granary\n"), 1<<17)
	n.start()
	id := n.create("data", 64<<20, ext4, nil)
	dir := n.mount(id, "data", ext4)
	n.write(dir, "a", content)
	snap, err := n.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: id, Name: "snap"})
	n.must(err)
	n.write(dir, "b", content[:4096])

	if err := n.end(syscall.SIGKILL); err == nil {
		t.Fatal("survived SIGKILL")
	}
	n.start()
	mounts, err := os.ReadFile("/proc/self/mounts")
	n.must(err)
	if strings.Contains(string(mounts), n.dir) {
		t.Errorf("mounts of the killed daemon are still there:\n%s", mounts)
	}
	dir = n.mount(id, "data", ext4)
	n.wantFile(dir, "a", content)
	n.wantFile(dir, "b", content[:4096])

	source := &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snap.Snapshot.SnapshotId},
	}}
	restored := n.create("restored", 64<<20, ext4, source)
	restoredDir := n.mount(restored, "restored", ext4)
	n.wantFile(restoredDir, "a", content)
	if _, err := os.Stat(filepath.Join(restoredDir, "b")); !os.IsNotExist(err) {
		t.Errorf("the snapshot has what came after it: %v", err)
	}

	// SIGTERM with mounted volumes: written data is safe, and the exit is clean.
	n.must(os.WriteFile(filepath.Join(dir, "c"), content, 0o600))
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Fatalf("after SIGTERM: %v", err)
	}
	n.start()
	dir = n.mount(id, "data", ext4)
	n.wantFile(dir, "c", content)
	n.unmount(id, "data")
	for _, id := range []string{id, restored} {
		_, err := n.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		n.must(err)
	}
	if code := run(ctx, []string{"check", "--read-data", "--data-dir", filepath.Join(n.dir, "store")}, io.Discard, os.Stderr); code != 0 {
		t.Errorf("check: exit %d", code)
	}
	n.must(n.end(syscall.SIGTERM))
	if code := run(ctx, []string{"check", "--read-data", "--data-dir", filepath.Join(n.dir, "store")}, io.Discard, os.Stderr); code != 0 {
		t.Errorf("check of the stopped store: exit %d", code)
	}
	n.start()
}

// Growth under a mounted xfs, a larger clone of it beside it, and raw devices.
func TestServeGrowthAndRawDevices(t *testing.T) {
	n := newNode(t)
	for _, program := range []string{"mkfs.xfs", "xfs_growfs"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	ctx := context.Background()
	content := bytes.Repeat([]byte("granary\n"), 1<<12)
	n.start()
	id := n.create("data", 320<<20, xfs, nil)
	dir := n.mount(id, "data", xfs)
	n.write(dir, "a", content)
	clone := n.create("clone", 640<<20, xfs, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id},
	}})
	cloneDir := n.mount(clone, "clone", xfs) // the same UUID, at the same time
	n.wantFile(cloneDir, "a", content)
	n.wantSpace(clone, cloneDir, 500<<20)
	_, err := n.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 480 << 20},
	})
	n.must(err)
	_, err = n.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: dir})
	n.must(err)
	n.wantSpace(id, dir, 380<<20)

	raw := n.create("raw", 8<<20, rawBlock, nil)
	device := n.mount(raw, "raw", rawBlock)
	n.write(filepath.Dir(device), filepath.Base(device), content)
	n.wantSpace(raw, device, 8<<20)
	_, err = n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: raw, StagingTargetPath: n.path("staging", "raw")})
	if err == nil {
		t.Error("unstaged a published device")
	}
	n.unmount(raw, "raw")
	device = n.mount(raw, "raw", rawBlock)
	got := make([]byte, len(content))
	f, err := os.Open(device)
	n.must(err)
	_, err = io.ReadFull(f, got)
	n.must(err)
	n.must(f.Close())
	if !bytes.Equal(got, content) {
		t.Error("the raw device lost what was written")
	}
	for name, id := range map[string]string{"raw": raw, "clone": clone, "data": id} {
		n.unmount(id, name)
	}
}

// wantSpace wants at least so many bytes in all.
func (n *node) wantSpace(id, path string, least int64) {
	n.t.Helper()
	resp, err := n.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
	n.must(err)
	if got := resp.Usage[0].Total; got < least {
		n.t.Errorf("%s has %d bytes, want at least %d", path, got, least)
	}
}
