package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// staged makes a volume and stages it.
func (w *world) staged(name string, c *csi.VolumeCapability) (id string, p paths) {
	w.t.Helper()
	id, p = w.create(name).VolumeId, w.paths()
	w.must(w.stage(id, p, c))
	return id, p
}

// mountByHand bind mounts source at target, which is made, as somebody else would.
func (w *world) mountByHand(source, target string) {
	w.t.Helper()
	if _, err := os.Lstat(target); err != nil {
		w.must(os.Mkdir(target, 0o700))
	}
	w.must(w.host.Host.BindMount(context.Background(), source, target, nil))
}

// device is a volume's device.
func (w *world) device(id string) string {
	w.t.Helper()
	device, ok := w.attached.Device(w.engineID(id))
	if !ok {
		w.t.Fatalf("volume %s is not attached", id)
	}
	return device
}

// wantMounted wants a filesystem, or with node a device's node, to be what is seen at a
// target.
func (w *world) wantMounted(what, target, device string, node bool) {
	w.t.Helper()
	m, err := w.driver.topmost(target)
	w.must(err)
	if m == nil || node && !m.IsNodeOf(device) || !node && !m.IsFilesystemOf(device) {
		w.t.Errorf("%s: on %s there is %+v, want %s", what, target, m, device)
	}
}

// Somebody else's mount on a staging path is neither taken for the volume's nor mounted
// over, and what somebody else has unmounted is mounted again.
func TestStageWhereSomethingElseIsMounted(t *testing.T) {
	w := newWorld(t)
	other, q := w.staged("other", mountCap(""))
	id, p := w.create("v").VolumeId, w.paths()
	w.mountByHand(q.staging, p.staging)
	for _, c := range []*csi.VolumeCapability{mountCap(""), blockCap()} {
		wantCode(t, "another volume's, not attached", w.stage(id, p, c), codes.AlreadyExists, "something else")
	}
	w.wantMounted("not attached", p.staging, w.device(other), false)
	first := w.paths()
	w.must(w.stage(id, first, mountCap("")))
	wantCode(t, "another volume's", w.stage(id, p, mountCap("")), codes.AlreadyExists, "something else")
	w.wantMounted("attached", p.staging, w.device(other), false)
	byHand := w.paths()
	w.mountByHand(first.staging, byHand.staging)
	wantCode(t, "its own, by hand", w.stage(id, byHand, mountCap("")), codes.AlreadyExists, "not by a stage")
	w.must(w.host.Host.Unmount(first.staging))
	w.must(w.stage(id, first, mountCap("")))
	w.wantMounted("unmounted by somebody else and staged again", first.staging, w.device(id), false)
}

// What is bound is what was staged: not the directory below a filesystem that somebody
// else has unmounted, nor another one mounted over it, nor the device of one that is
// mounted.
func TestPublishOfWhatIsNotStaged(t *testing.T) {
	w := newWorld(t)
	_, q := w.staged("other", mountCap(""))
	raw, r := w.staged("raw", blockCap())
	id, p := w.staged("v", mountCap(""))
	w.mountByHand(q.staging, p.staging)
	w.trace.Steps()
	wantCode(t, "another filesystem", w.publish(id, p, mountCap("")), codes.FailedPrecondition, "nothing is mounted on")
	w.must(w.host.Host.Unmount(p.staging))
	wantCode(t, "a filesystem as a device", w.publish(id, p, blockCap()), codes.FailedPrecondition, "is staged on", "not what this call wants")
	wantCode(t, "a device as a filesystem", w.publish(raw, r, mountCap("")), codes.FailedPrecondition, "is staged on", "not what this call wants")
	w.must(w.host.Host.Unmount(p.staging))
	wantCode(t, "nothing", w.publish(id, p, mountCap("")), codes.FailedPrecondition, "nothing is mounted on")
	w.wantSteps("refused publishes")
	for _, target := range []string{p.target, r.target} {
		if _, err := os.Lstat(target); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", target, err)
		}
	}
}

// What somebody else has mounted on a target is not taken for the volume's, though the
// volume is on record there; nor is it unmounted.
func TestTargetWithAnotherMount(t *testing.T) {
	w := newWorld(t)
	other, q := w.staged("other", mountCap(""))
	otherRaw, _ := w.staged("other-raw", blockCap())
	id, p := w.staged("v", mountCap(""))
	raw, r := w.staged("raw", blockCap())
	w.must(w.publish(id, p, mountCap("")))
	w.must(w.publish(raw, r, blockCap()))
	byHand := paths{p.staging, filepath.Join(filepath.Dir(p.target), "byhand")}
	w.mountByHand(p.staging, byHand.target)
	wantCode(t, "its own, by hand", w.publish(id, byHand, withMode(mountCap(""), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)),
		codes.AlreadyExists, "something else")
	for _, c := range []struct {
		what, source string
		id           string
		p            paths
		cap          *csi.VolumeCapability
	}{
		{"another filesystem", q.staging, id, p, mountCap("")},
		{"the volume's device, not its filesystem", w.device(id), id, p, mountCap("")},
		{"another device", w.device(otherRaw), raw, r, blockCap()},
		{"a filesystem, not the device", q.staging, raw, r, blockCap()},
	} {
		w.mountByHand(c.source, c.p.target)
		before, _ := w.driver.topmost(c.p.target)
		wantCode(t, c.what, w.publish(c.id, c.p, c.cap), codes.AlreadyExists, "something else")
		if after, _ := w.driver.topmost(c.p.target); after == nil || after.Device != before.Device || after.Root != before.Root {
			t.Errorf("%s: on the target there is %+v, was %+v", c.what, after, before)
		}
		if c.source != w.device(c.id) { // which is the volume's, after all
			wantCode(t, c.what+": unpublish", w.unpublish(c.id, c.p), codes.FailedPrecondition, "something else")
		}
		w.must(w.host.Host.Unmount(c.p.target))
	}
	w.must(w.unpublish(id, p))
	w.must(w.unpublish(raw, r))
	// The place of a volume that is gone, with another one's mount on it.
	w.must(w.host.Host.Unmount(byHand.target))
	w.must(w.unstage(id, p))
	w.delete(id)
	w.mountByHand(q.staging, byHand.target)
	wantCode(t, "unpublish of a volume that is gone", w.unpublish(id, byHand), codes.NotFound)
	w.wantMounted("a volume that is gone", byHand.target, w.device(other), false)
}

// A target that cannot be unmounted stays, on record too.
func TestUnpublishThatFails(t *testing.T) {
	w := newWorld(t)
	id, p := w.staged("v", mountCap(""))
	w.must(w.publish(id, p, mountCap("")))
	w.host.Host.Fail("Unmount", errors.New("busy"))
	wantCode(t, "unpublish", w.unpublish(id, p), codes.Internal, "busy")
	w.host.Host.Fail("Unmount", nil)
	if _, err := os.Lstat(p.target); err != nil {
		t.Error(err)
	}
	if uses := w.engine.Attachments()[0].Uses; len(uses) != 2 {
		t.Errorf("on record: %+v", uses)
	}
	w.must(w.unpublish(id, p))
	fifo := filepath.Join(filepath.Dir(p.target), "fifo")
	w.must(syscall.Mkfifo(fifo, 0o600))
	wantCode(t, "unpublish of a fifo", w.unpublish(id, paths{target: fifo}), codes.FailedPrecondition)
	if _, err := os.Lstat(fifo); err != nil {
		t.Error(err)
	}
}

// Nothing can be written through a publish of what is mounted for reading, whatever the
// call says of it.
func TestPublishOfAReadOnlyStage(t *testing.T) {
	readOnlyFlag := mountCap("")
	readOnlyFlag.GetMount().MountFlags = []string{"ro"}
	both := mountCap("")
	both.GetMount().MountFlags = []string{"rw"}
	reader := withMode(mountCap(""), csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
	many := withMode(mountCap(""), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)
	for what, tt := range map[string]struct {
		stage, publish *csi.VolumeCapability
		context        map[string]string
		mount          string
	}{
		"the attacher says so":        {mountCap(""), mountCap(""), map[string]string{"readOnly": "true"}, "mount ext4 ro"},
		"the attacher against a flag": {both, both, map[string]string{"readOnly": "true"}, "mount ext4 ro"},
		"a mount flag says so":        {readOnlyFlag, mountCap(""), nil, "mount ext4 ro"},
		"the publish's mode says so":  {many, reader, nil, "mount ext4"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			id, p := w.usedCopy(), w.paths()
			w.trace.Steps()
			_, err := w.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{
				VolumeId: id, StagingTargetPath: p.staging, VolumeCapability: tt.stage, PublishContext: tt.context,
			})
			w.must(err)
			if steps := w.trace.Steps(); !slices.Contains(steps, tt.mount) {
				t.Errorf("staged by %q, want %q", steps, tt.mount)
			}
			w.must(w.publish(id, p, tt.publish))
			w.wantSteps("publish", "record device 2 uses", "bind ro")
		})
	}
}

// A target beside others has to allow them as much as they allow it.
func TestSingleWriterBesideMany(t *testing.T) {
	w := newWorld(t)
	id, p := w.staged("v", mountCap(""))
	w.must(w.publish(id, p, withMode(mountCap(""), csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)))
	second := paths{p.staging, filepath.Join(filepath.Dir(p.target), "second")}
	wantCode(t, "single writer", w.publish(id, second, mountCap("")), codes.FailedPrecondition, "allows no second target")
}

// A stage that is refused takes no device away from one that was not, though nobody has
// it open, and hides no files.
func TestRefusedStageBesideAnother(t *testing.T) {
	w := newWorld(t)
	id, p := w.staged("raw", blockCap())
	device := w.device(id)
	wantCode(t, "stage", w.stage(id, w.paths(), mountCap("")), codes.FailedPrecondition, "is staged at "+p.staging)
	if got, ok := w.attached.Device(w.engineID(id)); !ok || got != device {
		t.Errorf("the device is %q, %v, was %s", got, ok, device)
	}
	w.must(w.publish(id, p, blockCap()))
	full, v := w.paths(), w.create("v").VolumeId
	w.must(os.MkdirAll(filepath.Join(full.staging, "precious"), 0o700))
	wantCode(t, "stage over files", w.stage(v, full, mountCap("")), codes.FailedPrecondition, "precious")
}

// What cannot become a filesystem as it is asked for is refused before anything is
// decided: the volume can still become another.
func TestStageRefusedBeforeMkfs(t *testing.T) { // I11
	w := newWorld(t)
	id := w.create("v", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = []*csi.VolumeCapability{blockCap()} }).VolumeId
	flags := mountCap("")
	flags.GetMount().MountFlags = []string{"inode64"} // of xfs
	wantCode(t, "flags of another type", w.stage(id, w.paths(), flags), codes.InvalidArgument, "inode64")
	wantCode(t, "too small", w.stage(id, w.paths(), mountCap("xfs")), codes.OutOfRange, "xfs needs at least")
	if info, _ := w.engine.Volume("v"); info.State != blockstore.StateEmpty {
		t.Errorf("the volume is %s", info.State)
	}
	w.must(w.stage(id, w.paths(), mountCap("ext4")))
}

// steppedHost calls before a step, which fails with what that returns.
type steppedHost struct {
	export.Host
	before func(ctx context.Context, step string) error
}

func (h *steppedHost) Mkfs(ctx context.Context, device, fsType string, options []string) error {
	if err := h.before(ctx, "mkfs"); err != nil {
		return err
	}
	return h.Host.Mkfs(ctx, device, fsType, options)
}

func (h *steppedHost) Fsck(ctx context.Context, device, fsType string) error {
	if err := h.before(ctx, "fsck"); err != nil {
		return err
	}
	return h.Host.Fsck(ctx, device, fsType)
}

func (h *steppedHost) Mounts() ([]export.Mount, error) {
	if err := h.before(context.Background(), "mounts"); err != nil {
		return nil, err
	}
	return h.Host.Mounts()
}

// A caller that gives up ends neither mkfs nor fsck halfway; and if they fail then, the
// device is taken away all the same.
func TestStageThatNobodyWaitsFor(t *testing.T) {
	for _, step := range []string{"mkfs", "fsck"} {
		for _, fails := range []error{nil, errors.New("broken")} {
			t.Run(fmt.Sprintf("%s %v", step, fails), func(t *testing.T) {
				w := newWorld(t)
				id, p := w.create("v").VolumeId, w.paths()
				if step == "fsck" {
					w.use(id, p, "ext4")
				}
				ctx, cancel := context.WithCancel(context.Background())
				w.driver.host = &steppedHost{w.host, func(ctx context.Context, at string) error {
					if at != step {
						return nil
					}
					cancel()
					return errors.Join(ctx.Err(), fails)
				}}
				req := &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: p.staging, VolumeCapability: mountCap("")}
				_, err := w.driver.withVolume(ctx, id, req, func(ctx context.Context, _ any) (any, error) { return w.driver.NodeStageVolume(ctx, req) })
				if !errors.Is(err, fails) || errors.Is(err, context.Canceled) {
					t.Errorf("%v, want %v", err, fails)
				}
				if left := w.host.Attached(); fails != nil && len(left) > 0 {
					t.Errorf("left %q", left)
				}
				w.driver.host = w.host
			})
		}
	}
}

// Nothing is made, mounted or repaired on the strength of a record that was not written or
// a mount table that cannot be read.
func TestStepsWaitForTheirRecords(t *testing.T) {
	none := func(w *world, what string, steps ...string) {
		t.Helper()
		got := strings.Join(w.trace.Steps(), ", ")
		for _, s := range steps {
			if strings.Contains(got, s) {
				t.Errorf("%s: steps %s", what, got)
			}
		}
	}
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	broken := errors.New("broken")
	w.engine.Fail("SetVolumeState", broken)
	wantCode(t, "state", w.stage(id, p, mountCap("")), codes.Internal, "broken")
	none(w, "state", "mkfs")
	w.engine.Fail("SetVolumeState", nil)
	w.must(w.stage(id, p, mountCap("")))
	w.trace.Steps()
	w.engine.Fail("PutAttachment", broken)
	wantCode(t, "publish", w.publish(id, p, mountCap("")), codes.Internal, "broken")
	none(w, "publish", "bind")
	if _, err := os.Lstat(p.target); !os.IsNotExist(err) {
		t.Errorf("the target is there: %v", err)
	}
	w.engine.Fail("PutAttachment", nil)
	w.must(w.unstage(id, p))
	w.driver.host = &steppedHost{w.host, func(_ context.Context, at string) error {
		if at == "fsck" {
			w.engine.Fail("PutAttachment", broken)
		}
		return nil
	}}
	w.trace.Steps()
	wantCode(t, "stage", w.stage(id, p, mountCap("")), codes.Internal, "broken")
	none(w, "stage", "mount ext4")
	w.engine.Fail("PutAttachment", nil)
	n := 0
	w.driver.host = &steppedHost{w.host, func(_ context.Context, at string) error {
		if at == "mounts" {
			if n++; n > 1 { // once the device is attached
				return broken
			}
		}
		return nil
	}}
	w.trace.Steps()
	wantCode(t, "mount table", w.stage(id, p, mountCap("")), codes.Internal, "broken")
	none(w, "mount table", "fsck", "mount ext4")
	w.driver.host = w.host
}

// A copied btrfs gets an identity of its own before it is mounted: the kernel takes two of
// one for one.
func TestStageOfACopiedBtrfs(t *testing.T) {
	w := newWorld(t)
	source := w.create("v", capacity(300<<20, 0)).VolumeId
	w.use(source, w.paths(), "btrfs")
	copied := w.create("copy", capacity(300<<20, 0), fromVolume(source)).VolumeId
	w.host.Host.Fail("PrepareCopy", errors.New("no"))
	w.trace.Steps()
	wantCode(t, "stage", w.stage(copied, w.paths(), mountCap("btrfs")), codes.Internal, "no")
	if steps := strings.Join(w.trace.Steps(), ", "); strings.Contains(steps, "mount btrfs") {
		t.Errorf("mounted though its identity is its source's: %s", steps)
	}
	w.host.Host.Fail("PrepareCopy", nil)
	w.must(w.stage(copied, w.paths(), mountCap("btrfs")))
	if steps := strings.Join(w.trace.Steps(), ", "); !strings.Contains(steps, "fsck btrfs, prepare copy btrfs, grow unmounted filesystem") {
		t.Errorf("steps %s", steps)
	}
}
