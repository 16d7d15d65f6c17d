package driver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/pkg/blockstore"
)

func capacity(required, limit int64) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
	}
}

func parameters(kv ...string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.Parameters = make(map[string]string)
		for i := 0; i < len(kv); i += 2 {
			r.Parameters[kv[i]] = kv[i+1]
		}
	}
}

func fromSnapshot(id string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id},
		}}
	}
}

func fromVolume(id string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id},
		}}
	}
}

func reachableFrom(nodes ...string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.AccessibilityRequirements = &csi.TopologyRequirement{}
		for _, n := range nodes {
			r.AccessibilityRequirements.Requisite = append(r.AccessibilityRequirements.Requisite,
				&csi.Topology{Segments: map[string]string{TopologyKey: n}})
		}
	}
}

func TestCreateVolumeSizes(t *testing.T) {
	w := newWorld(t)
	const mib = 1 << 20
	for i, tt := range []struct {
		required, limit int64
		size            int64
		code            codes.Code
	}{
		{0, 0, 0, codes.InvalidArgument},
		{1, 0, mib, codes.OK},
		{mib + 1, 0, 2 * mib, codes.OK},
		{mib + 1, 2 * mib, 2 * mib, codes.OK},
		{mib + 1, 2*mib - 1, 0, codes.OutOfRange},
		{0, 5*mib + 3, 5 * mib, codes.OK},
		{0, mib - 1, 0, codes.OutOfRange},
		{blockstore.MaxVolumeSize, 0, blockstore.MaxVolumeSize, codes.OK},
		{blockstore.MaxVolumeSize + 1, 0, 0, codes.OutOfRange},
		{1 << 62, 0, 0, codes.OutOfRange},
		{-1, 0, 0, codes.InvalidArgument},
		{2 * mib, mib, 0, codes.InvalidArgument},
	} {
		req := createRequest(fmt.Sprint("v", i))
		capacity(tt.required, tt.limit)(req)
		resp, err := w.CreateVolume(context.Background(), req)
		wantCode(t, fmt.Sprintf("%d to %d", tt.required, tt.limit), err, tt.code)
		if got := resp.GetVolume().GetCapacityBytes(); got != tt.size {
			t.Errorf("%d to %d: %d bytes, want %d", tt.required, tt.limit, got, tt.size)
		}
	}
}

func TestCreateVolumeCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	source := w.create("source")
	snap := w.snapshot(source.VolumeId, "snap")
	base := []func(*csi.CreateVolumeRequest){capacity(16<<20, 0), parameters("compression", "s2"), fromSnapshot(snap)}
	first := w.create("v", base...)
	if first.ContentSource.GetSnapshot().GetSnapshotId() != snap || first.AccessibleTopology[0].Segments[TopologyKey] != node {
		t.Errorf("answer: %v", first)
	}
	for _, tt := range []struct {
		name   string
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
	}{
		{"the same", func(*csi.CreateVolumeRequest) {}, codes.OK},
		{"smaller", capacity(1<<20, 0), codes.OK},
		{"no size", func(r *csi.CreateVolumeRequest) { r.CapacityRange = nil }, codes.OK},
		{"larger", capacity(32<<20, 0), codes.AlreadyExists},
		{"lower limit", capacity(1<<20, 8<<20), codes.AlreadyExists},
		{"other compression", parameters("compression", "zstd"), codes.AlreadyExists},
		{"other block size", parameters("compression", "s2", "blockSize", "4096"), codes.AlreadyExists},
		{"other filesystem", parameters("csi.storage.k8s.io/fstype", "xfs"), codes.AlreadyExists},
		{"other source", fromVolume(source.VolumeId), codes.AlreadyExists},
		{"other nodes", reachableFrom("elsewhere"), codes.AlreadyExists},
		{"this node too", reachableFrom("elsewhere", node), codes.OK},
		{"no source", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = nil }, codes.AlreadyExists},
	} {
		req := createRequest("v")
		for _, c := range append(base, tt.change) {
			c(req)
		}
		resp, err := w.CreateVolume(ctx, req)
		wantCode(t, tt.name, err, tt.code)
		if err == nil && resp.Volume.VolumeId != first.VolumeId {
			t.Errorf("%s: another volume", tt.name)
		}
	}
	// The first answer may have been lost for long: the source is gone, the disk full.
	_, err := w.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snap})
	w.must(err)
	w.engine.Fail("CreateVolume", blockstore.ErrNoSpace)
	if again := w.create("v", base...); again.VolumeId != first.VolumeId {
		t.Error("another volume")
	}
}

func TestCreateVolumeRefusals(t *testing.T) {
	w := newWorld(t)
	v := w.create("v", capacity(16<<20, 0))
	snap := w.snapshot(v.VolumeId, "snap")
	elsewhere := func(handle string) string { return strings.TrimSuffix(handle, node) + "elsewhere" }
	caps := func(c ...*csi.VolumeCapability) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = c }
	}
	mode := func(m csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
		c := mountCap("")
		c.AccessMode.Mode = m
		return c
	}
	flagged := func(flag string, times int) *csi.VolumeCapability {
		c := mountCap("ext4")
		c.GetMount().MountFlags = slices.Repeat([]string{flag}, times)
		return c
	}
	for _, tt := range []struct {
		name   string
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
		parts  []string
	}{
		{"raw of a class for xfs", func(r *csi.CreateVolumeRequest) {
			caps(blockCap())(r)
			parameters("csi.storage.k8s.io/fstype", "xfs")(r)
		}, codes.OK, nil},
		{"long parameters", parameters("csi.storage.k8s.io/pvc/name", strings.Repeat("x", 4096)), codes.InvalidArgument, []string{"4096"}},
		{"long flags", caps(flagged("noatime", 600)), codes.InvalidArgument, []string{"4096"}},
		{"empty range", capacity(0, 0), codes.InvalidArgument, []string{"range"}},
		{"no name", func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, []string{"name"}},
		{"slash in the name", func(r *csi.CreateVolumeRequest) { r.Name = "a/b" }, codes.InvalidArgument, nil},
		{"no capabilities", caps(), codes.InvalidArgument, []string{"capabilities"}},
		{"no access type", caps(&csi.VolumeCapability{AccessMode: mountCap("").AccessMode}), codes.InvalidArgument, []string{"access type"}},
		{"many nodes", caps(mode(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)), codes.InvalidArgument, []string{"MULTI_NODE_MULTI_WRITER"}},
		{"unknown mode", caps(mode(csi.VolumeCapability_AccessMode_UNKNOWN)), codes.InvalidArgument, nil},
		{"many readers of no copy", caps(mode(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)), codes.InvalidArgument, []string{"MULTI_NODE_READER_ONLY", "snapshot"}},
		{"mount flag", caps(flagged("bind", 1)), codes.InvalidArgument, []string{"bind"}},
		{"two filesystems", func(r *csi.CreateVolumeRequest) {
			caps(mountCap("xfs"))(r)
			parameters("csi.storage.k8s.io/fstype", "ext4")(r)
		}, codes.InvalidArgument, []string{"xfs", "ext4"}},
		{"slip of a sidecar's key", parameters("csi.storage.k8s.io/fsType", "xfs"), codes.InvalidArgument, []string{"csi.storage.k8s.io/fsType", "csi.storage.k8s.io/fstype"}},
		{"xfs too small", func(r *csi.CreateVolumeRequest) {
			caps(mountCap("xfs"))(r)
			capacity(299<<20, 0)(r)
		}, codes.OutOfRange, []string{"xfs", "314572800", "300 MiB"}},
		{"xfs by its class too small", func(r *csi.CreateVolumeRequest) {
			parameters("csi.storage.k8s.io/fstype", "xfs")(r)
			capacity(0, 299<<20)(r)
		}, codes.OutOfRange, []string{"300 MiB"}},
		{"filesystem", caps(mountCap("ntfs")), codes.InvalidArgument, []string{"ntfs", "ext4, xfs, btrfs"}},
		{"unknown parameter", parameters("color", "blue"), codes.InvalidArgument, []string{"color", "compression", "blockSize", "onFull"}},
		{"bad compression", parameters("compression", "gzip"), codes.InvalidArgument, []string{"gzip", "zstd, s2, none"}},
		{"bad block size", parameters("blockSize", "1024"), codes.InvalidArgument, []string{"1024", "512, 4096"}},
		{"bad onFull", parameters("onFull", "panic"), codes.InvalidArgument, []string{"panic"}},
		{"sidecar parameters", parameters("csi.storage.k8s.io/pvc/name", "x", "csi.storage.k8s.io/provisioner-secret-name", "y", "csi.storage.k8s.io/fstype", "ext4"), codes.OK, nil},
		{"mutable parameters", func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"a": "b"} }, codes.InvalidArgument, nil},
		{"this node", reachableFrom("other", node), codes.OK, nil},
		{"other nodes", reachableFrom("other", "another"), codes.ResourceExhausted, []string{node}},
		{"snapshot elsewhere", fromSnapshot(elsewhere(snap)), codes.ResourceExhausted, []string{"elsewhere"}},
		{"volume elsewhere", fromVolume(elsewhere(v.VolumeId)), codes.ResourceExhausted, []string{"elsewhere"}},
		{"volume of another store", fromVolume(Handle{Store: "ffffffffffffffff", ID: "v-" + strings.Repeat("f", 32), Node: node}.String()), codes.NotFound, []string{"data directory"}},
		{"no such snapshot", fromSnapshot(handleOf("s-" + strings.Repeat("f", 32))), codes.NotFound, nil},
		{"nonsense volume", fromVolume("nonsense"), codes.NotFound, []string{"nonsense"}},
		{"empty source", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = &csi.VolumeContentSource{} }, codes.InvalidArgument, nil},
		{"smaller than its source", fromSnapshot(snap), codes.OutOfRange, nil},
	} {
		req := createRequest("r-" + strings.ReplaceAll(tt.name, " ", "-"))
		tt.change(req)
		_, err := w.CreateVolume(context.Background(), req)
		wantCode(t, tt.name, err, tt.code, tt.parts...)
	}
}

func TestDelete(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	v := w.create("v")
	snap := w.snapshot(v.VolumeId, "snap")
	remove := func(id string) error {
		_, err := w.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
		return err
	}
	p := w.paths()
	w.must(w.stage(v.VolumeId, p, mountCap("")))
	wantCode(t, "staged", remove(v.VolumeId), codes.FailedPrecondition, "/dev/loop0", p.staging)
	w.must(w.unstage(v.VolumeId, p))
	for range 2 {
		w.must(remove(v.VolumeId))
	}
	wantCode(t, "nonsense", remove("nonsense"), codes.OK)
	wantCode(t, "empty", remove(""), codes.InvalidArgument)
	wantCode(t, "foreign", remove(v.VolumeId+"x"), codes.FailedPrecondition, node+"x")
	for _, tt := range []struct {
		id   string
		code codes.Code
	}{
		{"", codes.InvalidArgument}, {"nonsense", codes.OK}, {snap + "x", codes.FailedPrecondition}, {snap, codes.OK}, {snap, codes.OK},
	} {
		_, err := w.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: tt.id})
		wantCode(t, "snapshot "+tt.id, err, tt.code)
	}
}

func TestCreateSnapshotCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	a, b := w.create("a").VolumeId, w.create("b").VolumeId
	take := func(volume, name string, params map[string]string) (*csi.Snapshot, error) {
		resp, err := w.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: volume, Name: name, Parameters: params})
		return resp.GetSnapshot(), err
	}
	first, err := take(a, "s", map[string]string{"csi.storage.k8s.io/volumesnapshot/name": "x"})
	w.must(err)
	if first.SizeBytes != 8<<20 || first.SourceVolumeId != a || !first.ReadyToUse || first.CreationTime.AsTime().IsZero() {
		t.Errorf("answer: %v", first)
	}
	again, err := take(a, "s", nil)
	w.must(err)
	if again.SnapshotId != first.SnapshotId || !again.ReadyToUse {
		t.Errorf("again: %v", again)
	}
	w.engine.Fail("WaitSnapshot", context.DeadlineExceeded) // the fold takes its time
	slow, err := take(a, "slow", nil)
	w.must(err)
	if slow.ReadyToUse || slow.SnapshotId == "" {
		t.Errorf("slow: %v", slow)
	}
	w.engine.Fail("WaitSnapshot", nil)
	_, err = take(b, "s", nil)
	wantCode(t, "of another volume", err, codes.AlreadyExists)
	_, err = take(a, "", nil)
	wantCode(t, "no name", err, codes.InvalidArgument)
	_, err = take("", "x", nil)
	wantCode(t, "no volume", err, codes.InvalidArgument)
	_, err = take(noVolume(), "x", nil)
	wantCode(t, "missing volume", err, codes.NotFound)
	_, err = take(a, "x", map[string]string{"color": "blue"})
	wantCode(t, "parameter", err, codes.InvalidArgument, "color")
	w.engine.Fail("CreateSnapshot", blockstore.ErrNoSpace)
	_, err = take(a, "x", nil)
	wantCode(t, "full", err, codes.ResourceExhausted)
}

func TestLists(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	var ids []string
	for i := range 5 {
		ids = append(ids, w.create(fmt.Sprint("v", i)).VolumeId)
		w.snapshot(ids[0], fmt.Sprint("s", i))
	}
	only := w.snapshot(ids[1], "t")
	var seen []string
	for token := ""; ; {
		resp, err := w.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		w.must(err)
		for _, e := range resp.Entries {
			seen = append(seen, e.Volume.VolumeId)
		}
		if token = resp.NextToken; token == "" {
			break
		}
		// What goes meanwhile confuses nobody.
		if len(seen) == 2 {
			_, err := w.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: ids[4]})
			w.must(err)
		}
	}
	if fmt.Sprint(seen) != fmt.Sprint(ids[:4]) {
		t.Errorf("listed %q, want %q", seen, ids[:4])
	}
	_, err := w.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: "nonsense"})
	wantCode(t, "token", err, codes.Aborted)
	_, err = w.ListSnapshots(ctx, &csi.ListSnapshotsRequest{StartingToken: w.engineID(ids[0])})
	wantCode(t, "a volume's token for snapshots", err, codes.Aborted)
	_, err = w.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: -1})
	wantCode(t, "entries", err, codes.InvalidArgument)

	for _, tt := range []struct {
		req  *csi.ListSnapshotsRequest
		want int
	}{
		{&csi.ListSnapshotsRequest{}, 6},
		{&csi.ListSnapshotsRequest{MaxEntries: 4}, 4},
		{&csi.ListSnapshotsRequest{SourceVolumeId: ids[0]}, 5},
		{&csi.ListSnapshotsRequest{SourceVolumeId: ids[2]}, 0},
		{&csi.ListSnapshotsRequest{SourceVolumeId: "nonsense"}, 0},
		{&csi.ListSnapshotsRequest{SnapshotId: only}, 1},
		{&csi.ListSnapshotsRequest{SnapshotId: only, SourceVolumeId: ids[0]}, 0},
		{&csi.ListSnapshotsRequest{SnapshotId: "nonsense"}, 0},
		{&csi.ListSnapshotsRequest{SnapshotId: only + "x"}, 0},
	} {
		resp, err := w.ListSnapshots(ctx, tt.req)
		w.must(err)
		if len(resp.Entries) != tt.want {
			t.Errorf("%v: %d entries, want %d", tt.req, len(resp.Entries), tt.want)
		}
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.create("v").VolumeId
	many := mountCap("")
	many.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	for _, tt := range []struct {
		name      string
		id        string
		caps      []*csi.VolumeCapability
		code      codes.Code
		confirmed bool
	}{
		{"both", id, []*csi.VolumeCapability{mountCap("ext4"), blockCap()}, codes.OK, true},
		{"xfs on a small volume", id, []*csi.VolumeCapability{mountCap("xfs")}, codes.OK, false},
		{"one not", id, []*csi.VolumeCapability{mountCap(""), many}, codes.OK, false},
		{"none", id, nil, codes.InvalidArgument, false},
		{"no ID", "", []*csi.VolumeCapability{mountCap("")}, codes.InvalidArgument, false},
		{"missing", noVolume(), []*csi.VolumeCapability{mountCap("")}, codes.NotFound, false},
	} {
		resp, err := w.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: tt.id, VolumeCapabilities: tt.caps})
		wantCode(t, tt.name, err, tt.code)
		if (resp.GetConfirmed() != nil) != tt.confirmed || err == nil && !tt.confirmed && resp.Message == "" {
			t.Errorf("%s: %v", tt.name, resp)
		}
	}
}

func TestGetCapacity(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		req  *csi.GetCapacityRequest
		want int64
	}{
		{&csi.GetCapacityRequest{}, (100<<30 - 64<<20) * 10},
		{&csi.GetCapacityRequest{AccessibleTopology: &csi.Topology{Segments: map[string]string{TopologyKey: node}}}, (100<<30 - 64<<20) * 10},
		{&csi.GetCapacityRequest{AccessibleTopology: &csi.Topology{Segments: map[string]string{TopologyKey: "other"}}}, 0},
		{&csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{mountCap("ntfs")}}, 0},
	} {
		resp, err := w.GetCapacity(context.Background(), tt.req)
		w.must(err)
		if resp.AvailableCapacity != tt.want {
			t.Errorf("%v: %d, want %d", tt.req, resp.AvailableCapacity, tt.want)
		}
		if tt.want > 0 && resp.MaximumVolumeSize.GetValue() != 64<<40 {
			t.Errorf("maximum %v", resp.MaximumVolumeSize)
		}
	}
}

// available = max(0, free - reserve) x overcommit.
func TestCapacityOfADisk(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		what          string
		free, reserve int64
		unknown       bool
		failed        string
		want          int64
	}{
		{"free above the reserve", 3 << 30, 1 << 30, false, "", 20 << 30},
		{"as much as the reserve", 1 << 30, 1 << 30, false, "", 0},
		{"one byte more", 1<<30 + 1, 1 << 30, false, "", 10},
		{"below the reserve", 1 << 20, 1 << 30, false, "", 0},
		{"nothing free", 0, 64 << 20, false, "", 0},
		{"nothing free, no reserve left", 0, 0, false, "", 0},
		{"more than a number can say", 1 << 62, 0, false, "", math.MaxInt64},
		{"statfs answers with zeros", 0, 64 << 20, true, "", blockstore.MaxVolumeSize},
		{"statfs fails", 0, 64 << 20, true, "input/output error", 0},
	} {
		w.engine.SetDisk(func(s *blockstore.Stats) {
			s.DiskFree, s.Reserve, s.DiskUnknown, s.DiskError = tt.free, tt.reserve, tt.unknown, tt.failed
		})
		resp, err := w.GetCapacity(context.Background(), &csi.GetCapacityRequest{})
		w.must(err)
		if resp.AvailableCapacity != tt.want {
			t.Errorf("%s: %d, want %d", tt.what, resp.AvailableCapacity, tt.want)
		}
	}
}

func TestControllerExpandVolume(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.create("v", capacity(8<<20, 0)).VolumeId
	for _, tt := range []struct {
		name            string
		id              string
		required, limit int64
		size            int64
		code            codes.Code
	}{
		{"grow", id, 10<<20 + 1, 0, 11 << 20, codes.OK},
		{"again", id, 10<<20 + 1, 0, 11 << 20, codes.OK},
		{"less", id, 1 << 20, 0, 11 << 20, codes.OK},
		{"above its limit", id, 1 << 20, 8 << 20, 0, codes.OutOfRange},
		{"nothing", id, 0, 0, 0, codes.InvalidArgument},
		{"too large", id, blockstore.MaxVolumeSize + 1, 0, 0, codes.OutOfRange},
		{"missing", noVolume(), 1 << 20, 0, 0, codes.NotFound},
		{"no ID", "", 1 << 20, 0, 0, codes.InvalidArgument},
	} {
		resp, err := w.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
			VolumeId: tt.id, CapacityRange: &csi.CapacityRange{RequiredBytes: tt.required, LimitBytes: tt.limit},
		})
		wantCode(t, tt.name, err, tt.code)
		if resp.GetCapacityBytes() != tt.size || err == nil && !resp.NodeExpansionRequired {
			t.Errorf("%s: %v", tt.name, resp)
		}
	}
	_, err := w.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id})
	wantCode(t, "no range", err, codes.InvalidArgument)
}

// An error of the engine reaches the caller with its code and text.
func TestEngineErrorsKeepTheirText(t *testing.T) {
	w := newWorld(t)
	w.engine.Fail("CreateVolume", fmt.Errorf("disk below /store is full: %w", blockstore.ErrNoSpace))
	_, err := w.CreateVolume(context.Background(), createRequest("v"))
	wantCode(t, "full", err, codes.ResourceExhausted, "disk below /store is full")
	w.engine.Fail("CreateVolume", errors.New("unheard of"))
	_, err = w.CreateVolume(context.Background(), createRequest("v"))
	wantCode(t, "other", err, codes.Internal, "unheard of")
}

// Of two mistakes it is always the same that is told: equal calls have equal answers.
func TestFirstWrongParameterIsTold(t *testing.T) {
	params := map[string]string{"zeta": "", "alpha": "", "mu": "", "compression": "s2"}
	for range 20 {
		_, volume := parseVolumeParameters(params)
		wantCode(t, "volume", toStatus(volume), codes.InvalidArgument, `"alpha"`)
		delete(params, "compression")
		_, snapshot := parseSnapshotParameters(params)
		wantCode(t, "snapshot", toStatus(snapshot), codes.InvalidArgument, `"alpha"`)
	}
}
