package driver

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

func (w *world) controllerPublish(id, node string, c *csi.VolumeCapability, readOnly bool) (map[string]string, error) {
	resp, err := w.ControllerPublishVolume(context.Background(), &csi.ControllerPublishVolumeRequest{
		VolumeId: id, NodeId: node, VolumeCapability: c, Readonly: readOnly,
	})
	return resp.GetPublishContext(), err
}

func (w *world) controllerUnpublish(id, node string) error {
	_, err := w.ControllerUnpublishVolume(context.Background(), &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node})
	return err
}

// listedNodes are the nodes that a volume is published to, as both calls that tell it
// say.
func (w *world) listedNodes(id string) []string {
	w.t.Helper()
	list, err := w.ListVolumes(context.Background(), &csi.ListVolumesRequest{})
	w.must(err)
	i := slices.IndexFunc(list.Entries, func(e *csi.ListVolumesResponse_Entry) bool { return e.Volume.VolumeId == id })
	get, err := w.ControllerGetVolume(context.Background(), &csi.ControllerGetVolumeRequest{VolumeId: id})
	w.must(err)
	nodes := get.Status.PublishedNodeIds
	if listed := list.Entries[i].Status.PublishedNodeIds; !slices.Equal(listed, nodes) {
		w.t.Errorf("listed as published to %q, got as %q", listed, nodes)
	}
	return nodes
}

func TestControllerPublish(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	if got := w.listedNodes(id); len(got) > 0 {
		t.Errorf("a new volume is published to %q", got)
	}
	for range 2 {
		publishContext, err := w.controllerPublish(id, node, mountCap(""), false)
		w.must(err)
		if len(publishContext) > 0 {
			t.Errorf("context %q", publishContext)
		}
	}
	if got := w.listedNodes(id); !slices.Equal(got, []string{node}) {
		t.Errorf("published to %q", got)
	}
	_, err := w.controllerPublish(id, node, mountCap(""), true)
	wantCode(t, "read-only", err, codes.AlreadyExists, "read-only false")
	_, err = w.controllerPublish(id, node, blockCap(), false)
	wantCode(t, "raw", err, codes.AlreadyExists)
	_, err = w.controllerPublish(id, "elsewhere", mountCap(""), false)
	wantCode(t, "another node", err, codes.NotFound, node, "elsewhere")
	_, err = w.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: id})
	wantCode(t, "delete", err, codes.FailedPrecondition, node)

	// Staged and let go, it is published still, but binds nobody: the call that ends
	// it may go to another driver.
	w.must(w.stage(id, p, mountCap("")))
	w.must(w.unstage(id, p))
	if got := w.listedNodes(id); !slices.Equal(got, []string{node}) {
		t.Errorf("published to %q", got)
	}
	publishContext, err := w.controllerPublish(id, node, mountCap(""), true)
	w.must(err)
	if publishContext["readOnly"] != "true" {
		t.Errorf("context %q", publishContext)
	}
	for range 2 {
		w.must(w.controllerUnpublish(id, "elsewhere"))
		if got := w.listedNodes(id); !slices.Equal(got, []string{node}) {
			t.Errorf("unpublished from elsewhere, published to %q", got)
		}
	}
	for range 2 {
		w.must(w.controllerUnpublish(id, ""))
	}
	if got := w.listedNodes(id); len(got) > 0 {
		t.Errorf("published to %q", got)
	}
	w.delete(id)
	w.must(w.controllerUnpublish(id, node))
	w.must(w.controllerUnpublish("nonsense", node))
}

// A publication that nobody ended and that was never used does not keep a volume for
// ever.
func TestForgottenPublication(t *testing.T) {
	w := newWorld(t)
	id := w.create("v").VolumeId
	_, err := w.controllerPublish(id, node, mountCap(""), false)
	w.must(err)
	w.clock = w.clock.Add(publicationBinds - time.Second)
	_, err = w.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: id})
	wantCode(t, "delete soon", err, codes.FailedPrecondition)
	w.clock = w.clock.Add(2 * time.Second)
	_, err = w.controllerPublish(id, node, mountCap(""), true)
	w.must(err)
	w.clock = w.clock.Add(publicationBinds)
	w.delete(id)
}

func TestControllerPublishLimit(t *testing.T) {
	w := newWorld(t)
	w.driver.o.MaxVolumes = 2
	a, b, c := w.create("a").VolumeId, w.create("b").VolumeId, w.create("c").VolumeId
	_, err := w.controllerPublish(a, node, mountCap(""), false)
	w.must(err)
	w.must(w.stage(b, w.paths(), mountCap("")))
	_, err = w.controllerPublish(b, node, mountCap(""), false)
	w.must(err)
	_, err = w.controllerPublish(c, node, mountCap(""), false)
	wantCode(t, "a third of two", err, codes.ResourceExhausted, "2")
	_, err = w.controllerPublish(a, node, mountCap(""), false)
	w.must(err)
	w.must(w.controllerUnpublish(a, node))
	_, err = w.controllerPublish(c, node, mountCap(""), false)
	w.must(err)
	info, err := w.NodeGetInfo(context.Background(), &csi.NodeGetInfoRequest{})
	w.must(err)
	if info.MaxVolumesPerNode != 2 {
		t.Errorf("the node says %d", info.MaxVolumesPerNode)
	}
}

func TestControllerPublishRefusals(t *testing.T) {
	w := newWorld(t)
	id := w.create("v").VolumeId
	other := Handle{Store: "ffffffffffffffff", ID: "v-" + strings.Repeat("f", 32), Node: node}.String()
	many := withMode(mountCap(""), csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
	for _, tt := range []struct {
		name, id, node string
		c              *csi.VolumeCapability
		code           codes.Code
	}{
		{"no ID", "", node, mountCap(""), codes.InvalidArgument},
		{"no node", id, "", mountCap(""), codes.InvalidArgument},
		{"no capability", id, node, nil, codes.InvalidArgument},
		{"nonsense", "nonsense", node, mountCap(""), codes.NotFound},
		{"missing", noVolume(), node, mountCap(""), codes.NotFound},
		{"another store", other, node, mountCap(""), codes.NotFound},
		{"many writers", id, node, withMode(mountCap(""), csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), codes.InvalidArgument},
		{"many readers of no copy", id, node, many, codes.InvalidArgument},
		{"many readers of a copy", w.usedCopy(), node, many, codes.OK},
	} {
		_, err := w.controllerPublish(tt.id, tt.node, tt.c, false)
		wantCode(t, tt.name, err, tt.code)
	}
	wantCode(t, "unpublish: no ID", w.controllerUnpublish("", node), codes.InvalidArgument)
	for id, code := range map[string]codes.Code{"": codes.InvalidArgument, "nonsense": codes.NotFound, noVolume(): codes.NotFound} {
		_, err := w.ControllerGetVolume(context.Background(), &csi.ControllerGetVolumeRequest{VolumeId: id})
		wantCode(t, "get "+id, err, code)
		_, err = w.GetSnapshot(context.Background(), &csi.GetSnapshotRequest{SnapshotId: strings.Replace(id, "v-", "s-", 1)})
		wantCode(t, "get snapshot "+id, err, code)
	}
}

func TestGetSnapshot(t *testing.T) {
	w := newWorld(t)
	volume := w.create("v").VolumeId
	id := w.snapshot(volume, "snap")
	resp, err := w.GetSnapshot(context.Background(), &csi.GetSnapshotRequest{SnapshotId: id})
	w.must(err)
	if s := resp.Snapshot; s.SnapshotId != id || s.SourceVolumeId != volume || !s.ReadyToUse || s.SizeBytes != 8<<20 {
		t.Errorf("got %v", s)
	}
}

func TestSourceOfAnotherFilesystem(t *testing.T) {
	w := newWorld(t)
	source := w.create("source").VolumeId
	w.use(source, w.paths(), "ext4")
	snap := w.snapshot(source, "snap")
	for name, from := range map[string]func(*csi.CreateVolumeRequest){"snapshot": fromSnapshot(snap), "volume": fromVolume(source)} {
		req := createRequest(name)
		from(req)
		capacity(300<<20, 0)(req)
		req.VolumeCapabilities = []*csi.VolumeCapability{mountCap("xfs")}
		_, err := w.CreateVolume(context.Background(), req)
		wantCode(t, name, err, codes.InvalidArgument, "ext4", "xfs")
		if _, err := w.engine.Volume(name); err == nil {
			t.Errorf("%s: made all the same", name)
		}
	}
}
