package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

func TestMkfsProtocol(t *testing.T) { // I11
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.must(w.stage(id, p, mountCap("")))
	w.wantSteps("first stage", "open", "record", "attach", "record device", "state formatting ext4",
		"mkfs ext4", "flush", "state used ext4", "record device 1 uses", "mount ext4")
	w.must(w.stage(id, p, mountCap("")))
	w.wantSteps("repeated stage")
	w.must(w.unstage(id, p))
	w.wantSteps("unstage", "unmount", "record device", "flush", "detach", "close", "remove record")
	w.must(w.unstage(id, p))
	w.wantSteps("repeated unstage")
	w.must(w.stage(id, p, mountCap("ext4")))
	w.wantSteps("second stage", "open", "record", "attach", "record device", "fsck ext4", "grow unmounted filesystem",
		"record device 1 uses", "mount ext4", "grow filesystem")
}

func TestStageOfACopy(t *testing.T) {
	w := newWorld(t)
	source := w.create("v", parameters("csi.storage.k8s.io/fstype", "xfs"), capacity(300<<20, 0)).VolumeId
	p := w.paths()
	w.must(w.stage(source, p, mountCap("")))
	w.wantSteps("source", "open", "record", "attach", "record device", "state formatting xfs",
		"mkfs xfs", "flush", "state used xfs", "record device 1 uses", "mount xfs nouuid")
	snap := w.snapshot(source, "snap")
	for name, from := range map[string]func(*csi.CreateVolumeRequest){"restore": fromSnapshot(snap), "clone": fromVolume(source)} {
		copied := w.create(name, capacity(320<<20, 0), from).VolumeId
		w.must(w.stage(copied, w.paths(), mountCap("")))
		w.wantSteps(name, "open", "record", "attach", "record device", "fsck xfs", "grow unmounted filesystem",
			"record device 1 uses", "mount xfs nouuid", "grow filesystem")
		wantCode(t, name, w.stage(copied, w.paths(), mountCap("ext4")), codes.FailedPrecondition, "xfs", "ext4")
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
	if left := w.host.Attached(); len(left) > 0 {
		t.Errorf("left after the error: %q", left)
	}
	w.host.Host.Fail("Mkfs", nil)
	w.trace.Steps()
	w.must(w.stage(id, p, mountCap("")))
	w.wantSteps("again", "open", "record", "attach", "record device", "state formatting ext4",
		"mkfs ext4", "flush", "state used ext4", "record device 1 uses", "mount ext4")
}

func TestPublish(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	many := withMode(mountCap(""), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)
	wantCode(t, "before stage", w.publish(id, p, many), codes.FailedPrecondition, "NodeStageVolume")
	w.must(w.stage(id, p, many))
	w.trace.Steps()
	w.must(w.publish(id, p, many))
	w.wantSteps("publish", "record device 2 uses", "bind")
	w.must(w.publish(id, p, many))
	w.wantSteps("repeated publish")
	wantCode(t, "read-only at the same target", w.publishReadOnly(id, p, many), codes.AlreadyExists)
	second := paths{p.staging, filepath.Join(filepath.Dir(p.target), "second")}
	w.must(w.publishReadOnly(id, second, many))
	w.wantSteps("read-only", "record device 3 uses", "bind ro")
	w.must(w.publishReadOnly(id, second, many))
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

// The spec's table of second publish calls: the same target with the same and with
// other arguments, another target with the same and with other arguments.
func TestSecondPublish(t *testing.T) {
	const ok, exists, failed = codes.OK, codes.AlreadyExists, codes.FailedPrecondition
	for mode, want := range map[csi.VolumeCapability_AccessMode_Mode][4]codes.Code{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        {ok, exists, failed, failed},
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: {ok, exists, failed, failed},
		csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   {ok, exists, failed, failed},
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  {ok, exists, ok, ok},
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:    {ok, exists, ok, ok},
	} {
		w := newWorld(t)
		id, c := w.usedCopy(), withMode(mountCap(""), mode)
		other := withMode(mountCap(""), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)
		if mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER {
			other = withMode(mountCap(""), csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
		}
		p := w.paths()
		w.must(w.stage(id, p, c))
		w.must(w.publish(id, p, c))
		elsewhere := func(name string) paths { return paths{p.staging, filepath.Join(filepath.Dir(p.target), name)} }
		for i, err := range []error{
			w.publish(id, p, c), w.publish(id, p, other),
			w.publish(id, elsewhere("b"), c), w.publish(id, elsewhere("c"), other),
		} {
			wantCode(t, fmt.Sprintf("%s, call %d", mode, i), err, want[i])
		}
		for _, name := range []string{"target", "b", "c"} {
			w.must(w.unpublish(id, elsewhere(name)))
		}
		w.must(w.unstage(id, p))
	}
}

// A second stage finds everything done, or contradicts.
func TestSecondStage(t *testing.T) {
	w := newWorld(t)
	id, p := w.usedCopy(), w.paths()
	w.must(w.stage(id, p, mountCap("")))
	flags := mountCap("")
	flags.GetMount().MountFlags = []string{"noatime"}
	readOnly := withMode(mountCap(""), csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
	for name, tt := range map[string]struct {
		c         *csi.VolumeCapability
		here, new codes.Code
	}{
		"the same":        {mountCap(""), codes.OK, codes.OK},
		"type spelt out":  {mountCap("ext4"), codes.OK, codes.OK},
		"other type":      {mountCap("xfs"), codes.FailedPrecondition, codes.FailedPrecondition},
		"other mode":      {withMode(mountCap(""), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER), codes.OK, codes.OK},
		"read-only":       {readOnly, codes.AlreadyExists, codes.FailedPrecondition},
		"flags":           {flags, codes.AlreadyExists, codes.FailedPrecondition},
		"raw":             {blockCap(), codes.AlreadyExists, codes.FailedPrecondition},
		"impossible mode": {withMode(mountCap(""), csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), codes.FailedPrecondition, codes.FailedPrecondition},
	} {
		wantCode(t, name, w.stage(id, p, tt.c), tt.here)
		again := w.paths()
		wantCode(t, name+" elsewhere", w.stage(id, again, tt.c), tt.new)
		w.must(w.unstage(id, again))
	}
	if _, ok := w.attached.Device(w.engineID(id)); !ok {
		t.Error("unstaging somewhere else detached the volume")
	}
	w.must(w.unstage(id, p))
}

// Commands and CSI do not take a device away from each other.
func TestStageOfWhatACommandAttached(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id, p := w.create("v").VolumeId, w.paths()
	device, err := w.attached.AttachRaw(ctx, w.engineID(id))
	w.must(err)
	w.must(w.stage(id, p, blockCap()))
	w.must(w.publish(id, p, blockCap()))
	if err := w.attached.Detach(ctx, w.engineID(id)); !errors.Is(err, blockstore.ErrInUse) {
		t.Errorf("detached while it is staged: %v", err)
	}
	wantCode(t, "unstage while published", w.unstage(id, p), codes.FailedPrecondition)
	w.must(w.unpublish(id, p))
	w.must(w.unstage(id, p))
	if got, ok := w.attached.Device(w.engineID(id)); !ok || got != device {
		t.Errorf("after the unstage the device is %q, %v", got, ok)
	}
	w.must(w.attached.Detach(ctx, w.engineID(id)))
	w.delete(id)
}

// What must not write writes to a layer that is thrown away, or not at all.
func TestReadOnlyStage(t *testing.T) {
	readOnly := func(c *csi.VolumeCapability) *csi.VolumeCapability {
		return withMode(c, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
	}
	w := newWorld(t)
	id, p := w.usedCopy(), w.paths()
	w.trace.Steps()
	w.must(w.stage(id, p, readOnly(mountCap(""))))
	w.wantSteps("mount", "open scratch", "record", "attach", "record device", "fsck ext4", "grow unmounted filesystem",
		"record device 1 uses", "mount ext4 ro")
	w.must(w.publish(id, p, readOnly(mountCap(""))))
	w.must(w.unpublish(id, p))
	w.must(w.unstage(id, p))
	w.trace.Steps()
	w.must(w.stage(id, p, readOnly(blockCap())))
	w.wantSteps("block", "open scratch", "record", "attach", "record device", "record device 1 uses")
	w.must(w.publish(id, p, readOnly(blockCap())))
	w.must(w.unpublish(id, p))
	w.must(w.unstage(id, p))

	// The attacher's word counts as much as the access mode.
	w.trace.Steps()
	_, err := w.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: p.staging, VolumeCapability: mountCap(""), PublishContext: map[string]string{"readOnly": "true"},
	})
	w.must(err)
	if steps := strings.Join(w.trace.Steps(), ", "); !strings.Contains(steps, "open scratch") || !strings.Contains(steps, "mount ext4 ro") {
		t.Errorf("by the publish context: %s", steps)
	}
	w.must(w.unstage(id, p))

	empty := w.create("empty").VolumeId
	wantCode(t, "an empty volume", w.stage(empty, w.paths(), readOnly(mountCap(""))), codes.FailedPrecondition, "holds nothing")
	wantCode(t, "many readers of no copy", w.stage(empty, w.paths(),
		withMode(mountCap(""), csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)), codes.FailedPrecondition, "snapshot")
}

// After an error of stage or publish all is as before: the volume can be deleted.
func TestStageAndPublishUndo(t *testing.T) {
	for _, method := range []string{"Mkfs", "FlushDevice", "Mount", "AttachLoop", "OpenFUSE"} {
		w := newWorld(t)
		id, p := w.create("v").VolumeId, w.paths()
		w.host.Host.Fail(method, errors.New("no"))
		wantCode(t, method, w.stage(id, p, mountCap("")), codes.Internal)
		w.host.Host.Fail(method, nil)
		if left := w.host.Attached(); len(left) > 0 && method != "FlushDevice" { // detaching flushes too
			t.Errorf("%s: left %q", method, left)
		}
		w.must(w.unstage(id, p))
		w.delete(id)
	}
	for _, method := range []string{"ProbeFS", "Fsck", "GrowUnmounted", "Mount", "GrowFS"} {
		w := newWorld(t)
		id, p := w.usedCopy(), w.paths()
		w.host.Host.Fail(method, errors.New("no"))
		wantCode(t, method, w.stage(id, p, mountCap("")), codes.Internal)
		if left := w.host.Attached(); len(left) > 0 {
			t.Errorf("%s: left %q", method, left)
		}
		w.delete(id)
	}
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.must(w.stage(id, p, mountCap("")))
	w.host.Host.Fail("BindMount", errors.New("no"))
	wantCode(t, "bind", w.publish(id, p, mountCap("")), codes.Internal)
	if _, err := os.Lstat(p.target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is still there: %v", err)
	}
	w.must(w.unstage(id, p))
	w.delete(id)
}

// A stage that is refused for the node's sake leaves the volume free to become anything.
func TestRefusedStageChangesNothing(t *testing.T) { // I11
	w := newWorld(t)
	o := w.host.Options()
	o.Limit = 1
	w.attached = attach.New(w.engine, w.host, o)
	w.driver.attached = w.attached
	first := w.create("first").VolumeId
	w.must(w.stage(first, w.paths(), mountCap("")))
	id, p := w.create("v", capacity(300<<20, 0)).VolumeId, w.paths()
	for name, c := range map[string]*csi.VolumeCapability{"raw": blockCap(), "xfs": mountCap("xfs")} {
		wantCode(t, name, w.stage(id, p, c), codes.ResourceExhausted)
		if info, _ := w.engine.Volume("v"); info.State != blockstore.StateEmpty || info.FSType != "" {
			t.Errorf("%s: the volume is %s, %q", name, info.State, info.FSType)
		}
	}
	// Nor does one whose mkfs failed decide the type.
	o.Limit = 2
	w.attached = attach.New(w.engine, w.host, o)
	w.driver.attached = w.attached
	w.host.Host.Fail("Mkfs", errors.New("no"))
	wantCode(t, "mkfs", w.stage(id, p, mountCap("xfs")), codes.Internal)
	w.host.Host.Fail("Mkfs", nil)
	w.must(w.stage(id, p, mountCap("ext4")))
}

// A publish of which the first of two mounts succeeded is undone, also when nobody waits
// for its answer any more.
func TestHalfABindMount(t *testing.T) {
	for _, ended := range []bool{false, true} {
		t.Run(fmt.Sprintf("ended=%v", ended), func(t *testing.T) {
			w := newWorld(t)
			id, p := w.create("v").VolumeId, w.paths()
			w.must(w.stage(id, p, mountCap("")))
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			half := &halfBind{Host: w.host}
			if ended {
				half.end = cancel
			}
			w.driver.host = half
			req := &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: p.staging, TargetPath: p.target, VolumeCapability: mountCap(""), Readonly: true}
			_, err := w.driver.withVolume(ctx, id, req, func(ctx context.Context, _ any) (any, error) { return w.driver.NodePublishVolume(ctx, req) })
			if err == nil || !strings.Contains(err.Error(), "remount failed") {
				t.Errorf("publish: %v", err)
			}
			if m, err := w.driver.topmost(p.target); m != nil || err != nil {
				t.Errorf("left: %+v, %v", m, err)
			}
			if _, err := os.Lstat(p.target); !os.IsNotExist(err) {
				t.Errorf("the target is still there: %v", err)
			}
			if uses := w.engine.Attachments()[0].Uses; len(uses) != 1 || uses[0].Path != p.staging {
				t.Errorf("on record: %+v", uses)
			}
			w.driver.host = w.host
			w.must(w.publishReadOnly(id, p, mountCap("")))
		})
	}
}

// halfBind makes a bind mount and then says that it failed.
type halfBind struct {
	export.Host
	end context.CancelFunc // of the call, in between; nil: it goes on
}

func (h *halfBind) BindMount(ctx context.Context, source, target string, _ []string) error {
	err := h.Host.BindMount(ctx, source, target, nil)
	if h.end != nil {
		h.end()
	}
	return errors.Join(err, errors.New("remount failed"))
}

// The daemon's own files are nobody's target.
func TestPrivatePaths(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	own := w.t.TempDir()
	w.must(os.WriteFile(filepath.Join(own, "lock"), nil, 0o600))
	w.driver.o.Private = []string{own}
	w.must(w.stage(id, p, mountCap("")))
	for _, path := range []string{own, filepath.Join(own, "lock"), filepath.Join(own, "new"), filepath.Dir(own)} {
		wantCode(t, "publish "+path, w.publish(id, paths{p.staging, path}, mountCap("")), codes.InvalidArgument, own)
		wantCode(t, "unpublish "+path, w.unpublish(id, paths{target: path}), codes.InvalidArgument)
		wantCode(t, "stage "+path, w.stage(id, paths{staging: path}, mountCap("")), codes.InvalidArgument)
		wantCode(t, "unstage "+path, w.unstage(id, paths{staging: path}), codes.InvalidArgument)
	}
	if _, err := os.Stat(filepath.Join(own, "lock")); err != nil {
		t.Error(err)
	}
	full := filepath.Join(filepath.Dir(p.target), "full")
	w.must(os.MkdirAll(filepath.Join(full, "precious"), 0o700))
	raw := w.create("raw").VolumeId
	rawPaths := w.paths()
	w.must(w.stage(raw, rawPaths, blockCap()))
	precious := filepath.Join(full, "precious-file")
	w.must(os.WriteFile(precious, []byte("precious"), 0o600))
	wantCode(t, "publish over a file", w.publish(raw, paths{rawPaths.staging, precious}, blockCap()), codes.FailedPrecondition, "something in it")
	wantCode(t, "publish over files", w.publish(id, paths{p.staging, full}, mountCap("")), codes.FailedPrecondition, "precious")
}

// Targets are made and removed by the driver, and nothing else is.
func TestTargetsThatAreNot(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.must(w.stage(id, p, mountCap("")))
	dir := filepath.Dir(p.target)
	file, full, link := filepath.Join(dir, "file"), filepath.Join(dir, "full"), filepath.Join(dir, "link")
	w.must(os.WriteFile(file, []byte("precious"), 0o600))
	w.must(os.MkdirAll(filepath.Join(full, "below"), 0o700))
	w.must(os.Symlink("/", link))
	for _, target := range []string{file, full, link} {
		wantCode(t, "unpublish "+target, w.unpublish(id, paths{target: target}), codes.FailedPrecondition)
		if target != full {
			wantCode(t, "publish "+target, w.publish(id, paths{p.staging, target}, mountCap("")), codes.FailedPrecondition)
		}
		if _, err := os.Lstat(target); err != nil {
			t.Error(err)
		}
	}
	wantCode(t, "no parent", w.publish(id, paths{p.staging, filepath.Join(dir, "a", "b")}, mountCap("")), codes.FailedPrecondition, "directory above")
	// Nothing can be where the path above is no directory.
	round := filepath.Join(dir, "round")
	w.must(os.Symlink("round", round))
	for _, above := range []string{file, round} {
		target := filepath.Join(above, "target")
		wantCode(t, "publish "+target, w.publish(id, paths{p.staging, target}, mountCap("")), codes.FailedPrecondition)
		w.must(w.unpublish(id, paths{target: target}))
	}
	for _, bad := range []string{"/", "/a/../b", "relative", "/new\nline", "/" + strings.Repeat("a", 5000), "/" + strings.Repeat("a", 256)} {
		wantCode(t, bad[:min(20, len(bad))], w.publish(id, paths{p.staging, bad}, mountCap("")), codes.InvalidArgument)
	}
	wantCode(t, "unpublish of the staging path", w.unpublish(id, paths{target: p.staging}), codes.FailedPrecondition)
	w.must(w.publish(id, p, mountCap("")))
	wantCode(t, "unstage of the target", w.unstage(id, paths{staging: p.target}), codes.FailedPrecondition)
}

func TestFilesystemThatIsNotThere(t *testing.T) { // I11
	for name, tt := range map[string]struct {
		prepare func(w *world, id string, p paths)
		want    []string
	}{
		"raw before": {func(w *world, id string, p paths) { w.must(w.stage(id, p, blockCap())); w.must(w.unstage(id, p)) }, []string{"never formatted"}},
		"unreadable": {func(w *world, id string, p paths) {
			w.use(id, p, "ext4")
			w.host.Host.Fail("ProbeFS", errors.New("EIO"))
		}, []string{"cannot be read", "EIO"}},
		"another than told": {func(w *world, id string, p paths) { w.use(id, p, "xfs") }, []string{"xfs", "ext4"}},
	} {
		w := newWorld(t)
		id, p := w.create("v", capacity(300<<20, 0)).VolumeId, w.paths()
		tt.prepare(w, id, p)
		w.trace.Steps()
		err := w.stage(id, p, mountCap("ext4"))
		if err == nil {
			t.Errorf("%s: staged", name)
		}
		for _, part := range tt.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v does not say %q", name, err, part)
			}
		}
		if steps := strings.Join(w.trace.Steps(), ", "); strings.Contains(steps, "mkfs") || strings.Contains(steps, "mount") {
			t.Errorf("%s: steps %s", name, steps)
		}
	}
}

// A filesystem that is not the one on record, made by whoever had the raw device, is
// neither repaired nor mounted.
func TestFilesystemOfAnotherType(t *testing.T) { // I11
	w := newWorld(t)
	id, p := w.create("v", capacity(300<<20, 0)).VolumeId, w.paths()
	w.use(id, p, "ext4")
	w.must(w.engine.SetVolumeState(w.engineID(id), blockstore.StateUsed, "xfs"))
	w.trace.Steps()
	wantCode(t, "stage", w.stage(id, p, mountCap("xfs")), codes.FailedPrecondition, "holds ext4, the request wants xfs")
	if steps := strings.Join(w.trace.Steps(), ", "); strings.Contains(steps, "fsck") || strings.Contains(steps, "mount") {
		t.Errorf("steps %s", steps)
	}
}

// What is mounted at one path is not repaired when it is staged at another.
func TestNoFsckUnderAMount(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.use(id, p, "ext4")
	w.must(w.stage(id, p, mountCap("ext4")))
	w.trace.Steps()
	w.must(w.stage(id, w.paths(), mountCap("ext4")))
	if steps := strings.Join(w.trace.Steps(), ", "); strings.Contains(steps, "fsck") || strings.Contains(steps, "unmounted") || !strings.Contains(steps, "mount") {
		t.Errorf("steps %s", steps)
	}
}

// use stages a volume once so that it has a filesystem.
func (w *world) use(id string, p paths, fsType string) {
	w.t.Helper()
	w.must(w.stage(id, p, mountCap(fsType)))
	w.must(w.unstage(id, p))
}

// usedCopy is the ID of a volume that was made from a snapshot of one in use.
func (w *world) usedCopy() string {
	w.t.Helper()
	source := w.create("source").VolumeId
	w.use(source, w.paths(), "")
	return w.create("copy", fromSnapshot(w.snapshot(source, "snap"))).VolumeId
}

func (w *world) delete(id string) {
	w.t.Helper()
	_, err := w.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: id})
	w.must(err)
}

func (w *world) engineID(handle string) string {
	w.t.Helper()
	h, err := ParseHandle(handle)
	w.must(err)
	return h.ID
}

func TestBlockVolumes(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.must(w.stage(id, p, blockCap()))
	w.wantSteps("stage", "open", "state used", "record", "attach", "record device", "record device 1 uses")
	w.must(w.stage(id, p, blockCap()))
	w.wantSteps("repeated stage")
	for range 2 {
		w.must(w.publish(id, p, blockCap()))
		w.wantStepsOnce("record device 2 uses", "bind")
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
	wantCode(t, "mount of a raw volume", w.stage(id, p, mountCap("")), codes.FailedPrecondition, "never formatted")
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
		req := &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: path}
		if required > 0 {
			req.CapacityRange = &csi.CapacityRange{RequiredBytes: required}
		}
		resp, err := w.NodeExpandVolume(ctx, req)
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
	_, err = expand("nonsense", "some/path", 0)
	wantCode(t, "missing volume, relative path", err, codes.NotFound)
	for _, path := range []string{"", "some/path"} {
		_, err = expand(id, path, 0)
		wantCode(t, "path "+path, err, codes.InvalidArgument)
	}
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
		{"", p.target, codes.InvalidArgument}, {id, "", codes.InvalidArgument}, {"nonsense", "", codes.InvalidArgument}, {noVolume(), p.target, codes.NotFound},
		{id, "/nowhere/at/all", codes.NotFound}, {id, "some/path", codes.NotFound}, {w.create("other").VolumeId, p.target, codes.NotFound},
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
		{"publish: no staging", w.publish(id, paths{target: p.target}, mountCap("")), codes.FailedPrecondition},
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
