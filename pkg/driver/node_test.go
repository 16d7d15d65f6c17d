package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/pkg/blockstore"
)

func TestMkfsProtocol(t *testing.T) { // I11
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.must(w.stage(id, p, mountCap("")))
	w.wantSteps("first stage", "state formatting ext4", "open", "record", "attach", "record device",
		"mkfs ext4", "flush", "state used ext4", "record device 1 mounts", "mount ext4")
	w.must(w.stage(id, p, mountCap("")))
	w.wantSteps("repeated stage")
	w.must(w.unstage(id, p))
	w.wantSteps("unstage", "unmount", "record device", "flush", "detach", "close", "remove record")
	w.must(w.unstage(id, p))
	w.wantSteps("repeated unstage")
	w.must(w.stage(id, p, mountCap("ext4")))
	w.wantSteps("second stage", "open", "record", "attach", "record device", "fsck ext4", "grow unmounted filesystem",
		"record device 1 mounts", "mount ext4", "grow filesystem")
}

func TestStageOfACopy(t *testing.T) {
	w := newWorld(t)
	source := w.create("v", parameters("csi.storage.k8s.io/fstype", "xfs")).VolumeId
	p := w.paths()
	w.must(w.stage(source, p, mountCap("")))
	w.wantSteps("source", "state formatting xfs", "open", "record", "attach", "record device",
		"mkfs xfs", "flush", "state used xfs", "record device 1 mounts", "mount xfs nouuid")
	snap := w.snapshot(source, "snap")
	for name, from := range map[string]func(*csi.CreateVolumeRequest){"restore": fromSnapshot(snap), "clone": fromVolume(source)} {
		copied := w.create(name, capacity(32<<20, 0), from).VolumeId
		w.must(w.stage(copied, w.paths(), mountCap("")))
		w.wantSteps(name, "open", "record", "attach", "record device", "fsck xfs", "grow unmounted filesystem",
			"record device 1 mounts", "mount xfs nouuid", "grow filesystem")
		wantCode(t, name, w.stage(copied, w.paths(), mountCap("ext4")), codes.InvalidArgument, "xfs", "ext4")
	}
}

// Killed before any step of stage and publish, the CO's repetition succeeds: the
// filesystem is made once it is not known to be whole, and never over data.
func TestStageAfterAKillAtEveryStep(t *testing.T) { // I1, I11
	for n := 1; ; n++ {
		w := newWorld(t)
		id, p := w.create("v").VolumeId, w.paths()
		w.trace.CrashIn(n)
		err := w.stage(id, p, mountCap(""))
		if err == nil {
			err = w.publish(id, p, mountCap(""))
		}
		if !w.trace.Crashed() {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		info, _ := w.engine.Volume("v")
		w.kill()
		w.must(w.stage(id, p, mountCap("")))
		steps := strings.Join(w.trace.Steps(), ", ")
		if formatted := strings.Contains(steps, "mkfs"); formatted != (info.State != blockstore.StateUsed) {
			t.Errorf("crash before step %d: volume was %s, steps %s", n, info.State, steps)
		}
		w.must(w.publish(id, p, mountCap("")))
		w.must(w.unpublish(id, p))
		w.must(w.unstage(id, p))
		if left := w.host.Attached(); len(left) > 0 {
			t.Errorf("crash before step %d: left %q", n, left)
		}
	}
}

func TestMkfsThatFails(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.host.Host.Fail("Mkfs", errors.New("mkfs.ext4: no"))
	wantCode(t, "mkfs", w.stage(id, p, mountCap("")), codes.Internal, "mkfs.ext4: no")
	if info, _ := w.engine.Volume("v"); info.State != blockstore.StateFormatting {
		t.Errorf("state %s", info.State)
	}
	w.host.Host.Fail("Mkfs", nil)
	w.trace.Steps()
	w.must(w.stage(id, p, mountCap("")))
	w.wantSteps("again", "state formatting ext4", "mkfs ext4", "flush", "state used ext4", "record device 1 mounts", "mount ext4")
}

func TestPublish(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	wantCode(t, "before stage", w.publish(id, p, mountCap("")), codes.FailedPrecondition, "NodeStageVolume")
	w.must(w.stage(id, p, mountCap("")))
	w.trace.Steps()
	w.must(w.publish(id, p, mountCap("")))
	w.wantSteps("publish", "record device 2 mounts", "bind")
	w.must(w.publish(id, p, mountCap("")))
	w.wantSteps("repeated publish")
	readOnly := mountCap("")
	readOnly.AccessMode.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	wantCode(t, "read-only at the same target", w.publish(id, p, readOnly), codes.AlreadyExists)
	second := paths{p.staging, filepath.Join(filepath.Dir(p.target), "second")}
	w.must(w.publish(id, second, readOnly))
	w.wantSteps("read-only", "record device 3 mounts", "bind ro")
	w.must(w.publish(id, second, readOnly))
	wantCode(t, "unstage while published", w.unstage(id, p), codes.FailedPrecondition, p.target)
	for range 2 {
		w.must(w.unpublish(id, p))
		w.must(w.unpublish(id, second))
	}
	if _, err := os.Lstat(p.target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is still there: %v", err)
	}
	w.must(w.unstage(id, p))
	if got := w.engine.Attachments(); len(got) > 0 {
		t.Errorf("records left: %+v", got)
	}
}

func TestBlockVolumes(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.must(w.stage(id, p, blockCap()))
	w.wantSteps("stage", "state used", "open", "record", "attach", "record device")
	for range 2 {
		w.must(w.publish(id, p, blockCap()))
		w.wantStepsOnce("record device 1 mounts", "bind")
	}
	if info, err := os.Stat(p.target); err != nil || info.IsDir() {
		t.Errorf("target: %v, %v", info, err)
	}
	_, err := w.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: p.staging, TargetPath: p.target, VolumeCapability: blockCap(), Readonly: true,
	})
	wantCode(t, "read-only", err, codes.InvalidArgument)
	stats, err := w.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: p.target})
	w.must(err)
	if len(stats.Usage) != 1 || stats.Usage[0].Total != 8<<20 {
		t.Errorf("stats %v", stats)
	}
	w.trace.Steps()
	resp, err := w.NodeExpandVolume(context.Background(), &csi.NodeExpandVolumeRequest{
		VolumeId: id, VolumePath: p.target, CapacityRange: &csi.CapacityRange{RequiredBytes: 16 << 20},
	})
	w.must(err)
	if resp.CapacityBytes != 16<<20 {
		t.Errorf("grown to %d", resp.CapacityBytes)
	}
	w.wantSteps("expand", "resize volume", "grow device")
	wantCode(t, "unstage while published", w.unstage(id, p), codes.FailedPrecondition, p.target)
	for range 2 {
		w.must(w.unpublish(id, p))
	}
	w.must(w.unstage(id, p))
	// It never held a filesystem that anybody here made: nobody formats it now.
	w.trace.Steps()
	wantCode(t, "mount of a raw volume", w.stage(id, p, mountCap("")), codes.Internal)
	if steps := strings.Join(w.trace.Steps(), ", "); strings.Contains(steps, "mkfs") {
		t.Errorf("steps %s", steps)
	}
}

// wantStepsOnce wants the steps the first time and none from then on.
func (w *world) wantStepsOnce(want ...string) {
	w.t.Helper()
	if got := w.trace.Steps(); len(got) > 0 && strings.Join(got, ", ") != strings.Join(want, ", ") {
		w.t.Errorf("steps %q, want %q or none", got, want)
	}
}

func TestNodeExpandVolume(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id, p := w.create("v").VolumeId, w.paths()
	expand := func(id, path string, required int64) (int64, error) {
		resp, err := w.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
			VolumeId: id, VolumePath: path, CapacityRange: &csi.CapacityRange{RequiredBytes: required},
		})
		return resp.GetCapacityBytes(), err
	}
	_, err := expand(id, p.target, 16<<20)
	wantCode(t, "before stage", err, codes.FailedPrecondition)
	w.must(w.stage(id, p, mountCap("")))
	w.must(w.publish(id, p, mountCap("")))
	_, err = w.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 16 << 20},
	})
	w.must(err)
	w.trace.Steps()
	size, err := expand(id, p.target, 16<<20)
	w.must(err)
	if device, _ := w.host.DeviceSize("/dev/loop0"); size != 16<<20 || device != size {
		t.Errorf("answered %d, device %d", size, device)
	}
	w.wantSteps("expand", "resize volume", "grow device", "grow filesystem")
	if size, err := expand(id, p.target, 0); err != nil || size != 16<<20 {
		t.Errorf("without a size: %d, %v", size, err)
	}
	_, err = expand(noVolume(), p.target, 0)
	wantCode(t, "missing volume", err, codes.NotFound)
	_, err = expand(id, "", 0)
	wantCode(t, "no path", err, codes.InvalidArgument)
}

func TestNodeGetVolumeStats(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	stats := func(id, path string) (*csi.NodeGetVolumeStatsResponse, error) {
		return w.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
	}
	w.must(w.stage(id, p, mountCap("")))
	w.must(w.publish(id, p, mountCap("")))
	for _, path := range []string{p.target, p.staging} {
		resp, err := stats(id, path)
		w.must(err)
		if len(resp.Usage) != 2 || resp.Usage[0].Total != 8<<20 || resp.Usage[1].Unit != csi.VolumeUsage_INODES {
			t.Errorf("stats %v", resp)
		}
	}
	for _, tt := range []struct {
		id, path string
		code     codes.Code
	}{
		{"", p.target, codes.InvalidArgument}, {id, "", codes.InvalidArgument}, {noVolume(), p.target, codes.NotFound},
		{id, "/nowhere/at/all", codes.NotFound}, {w.create("other").VolumeId, p.target, codes.NotFound},
	} {
		_, err := stats(tt.id, tt.path)
		wantCode(t, tt.id+" "+tt.path, err, tt.code)
	}
}

func TestNodeRefusals(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	relative := paths{"staging", "target"}
	for _, tt := range []struct {
		name string
		err  error
		code codes.Code
	}{
		{"stage: no ID", w.stage("", p, mountCap("")), codes.InvalidArgument},
		{"stage: no path", w.stage(id, paths{}, mountCap("")), codes.InvalidArgument},
		{"stage: relative path", w.stage(id, relative, mountCap("")), codes.InvalidArgument},
		{"stage: no capability", w.stage(id, p, nil), codes.InvalidArgument},
		{"stage: missing", w.stage(noVolume(), p, mountCap("")), codes.NotFound},
		{"unstage: no ID", w.unstage("", p), codes.InvalidArgument},
		{"unstage: no path", w.unstage(id, paths{}), codes.InvalidArgument},
		{"unstage: missing", w.unstage(noVolume(), p), codes.NotFound},
		{"publish: no ID", w.publish("", p, mountCap("")), codes.InvalidArgument},
		{"publish: no target", w.publish(id, paths{staging: p.staging}, mountCap("")), codes.InvalidArgument},
		{"publish: no staging", w.publish(id, paths{target: p.target}, mountCap("")), codes.InvalidArgument},
		{"publish: no capability", w.publish(id, p, nil), codes.InvalidArgument},
		{"publish: missing", w.publish(noVolume(), p, mountCap("")), codes.NotFound},
		{"unpublish: no ID", w.unpublish("", p), codes.InvalidArgument},
		{"unpublish: no target", w.unpublish(id, paths{}), codes.InvalidArgument},
		{"unpublish: missing", w.unpublish(noVolume(), p), codes.NotFound},
		{"unpublish: never published", w.unpublish(id, p), codes.OK},
		{"unstage: never staged", w.unstage(id, p), codes.OK},
	} {
		wantCode(t, tt.name, tt.err, tt.code)
	}
}

func TestSecondOperationIsAborted(t *testing.T) {
	w := newWorld(t)
	v := w.create("v")
	handle, err := ParseHandle(v.VolumeId)
	w.must(err)
	l, err := w.attached.Lock(handle.ID)
	w.must(err)
	wantCode(t, "stage", w.stage(v.VolumeId, w.paths(), mountCap("")), codes.Aborted, "try again")
	_, err = w.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: v.VolumeId})
	wantCode(t, "delete", err, codes.Aborted)
	l.Unlock()
	w.must(w.stage(v.VolumeId, w.paths(), mountCap("")))
}

// Symbolic links above a path do not hide what is mounted there.
func TestPathsBehindLinks(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	link := filepath.Join(w.t.TempDir(), "link")
	w.must(os.Symlink(filepath.Dir(p.staging), link))
	linked := paths{filepath.Join(link, "staging"), filepath.Join(link, "target")}
	w.must(w.stage(id, linked, mountCap("")))
	w.must(w.publish(id, linked, mountCap("")))
	w.trace.Steps()
	w.must(w.stage(id, p, mountCap("")))
	w.must(w.publish(id, p, mountCap("")))
	w.wantSteps("the same paths")
	w.must(w.unpublish(id, p))
	w.must(w.unstage(id, linked))
}
