package driver

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/k8ns/granary/pkg/blockstore"
)

func TestLogsHaveNoSecrets(t *testing.T) {
	w := newWorld(t)
	var log lockedBuffer
	w.driver.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	id := w.create("v").VolumeId
	const canary = "canary-5ac1"
	secret := map[string]string{"password": canary}
	ctx := context.Background()
	_, _ = w.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: "w", VolumeCapabilities: []*csi.VolumeCapability{mountCap("")}, Secrets: secret, Parameters: map[string]string{"csi.storage.k8s.io/pvc/name": canary}})
	_, _ = w.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: w.paths().staging, VolumeCapability: mountCap(""), Secrets: secret,
		VolumeContext: map[string]string{"csi.storage.k8s.io/serviceAccount.tokens": canary}, PublishContext: secret,
	})
	_, _ = w.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "nonsense", Secrets: secret})
	text := log.String()
	if strings.Contains(text, canary) {
		t.Errorf("the log has a secret:\n%s", text)
	}
	for _, want := range []string{"method=CreateVolume", "method=NodeStageVolume", "method=DeleteVolume", "took=", id, "stripped"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log has no %q:\n%s", want, text)
		}
	}
}

// A call of megabytes does not write megabytes.
func TestLogLinesAreCut(t *testing.T) {
	w := newWorld(t)
	var log lockedBuffer
	w.driver.log = slog.New(slog.NewTextHandler(&log, nil))
	_, err := w.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: noVolume()})
	w.must(err)
	wantCode(t, "a long path", w.stage(noVolume(), paths{staging: strings.Repeat("p", 1<<20)}, mountCap("")), codes.InvalidArgument)
	if text := log.String(); len(text) > 4*maxLogged || !strings.Contains(text, noVolume()) {
		t.Errorf("%d bytes are logged: %.300s", len(text), text)
	}
}

// Whatever field a message of the spec has, now or later: no text of a map or a field
// that CSI calls secret is logged.
func TestNoMessageLogsItsSecrets(t *testing.T) {
	const canary = "canary-5ac1"
	messages := csi.File_csi_proto.Messages()
	for i := range messages.Len() {
		m := dynamicpb.NewMessage(messages.Get(i))
		fields := m.Descriptor().Fields()
		for j := range fields.Len() {
			if f := fields.Get(j); f.IsMap() && f.MapValue().Kind() == protoreflect.StringKind && f.Name() != "segments" {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString(canary))
			}
		}
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		typed := csiMessage(t, string(m.Descriptor().FullName()))
		if err := proto.Unmarshal(raw, typed); err != nil {
			t.Fatal(err)
		}
		if text := loggable(typed); strings.Contains(text, canary) {
			t.Errorf("%s: %s", m.Descriptor().FullName(), text)
		}
		if again, _ := proto.Marshal(typed); len(again) != len(raw) {
			t.Errorf("%s was changed by logging it", m.Descriptor().FullName())
		}
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	w.create("v")
	_, err := w.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{})
	wantCode(t, "delete", err, codes.InvalidArgument)
	found := w.metrics()
	for key, want := range map[string]float64{
		"csi_plugin_operations_seconds granary.csi.k8ns.io OK /csi.v1.Controller/CreateVolume":              1,
		"csi_plugin_operations_seconds granary.csi.k8ns.io InvalidArgument /csi.v1.Controller/DeleteVolume": 1,
		"granary_store_volumes":          1,
		"granary_store_stored_bytes":     4 << 30,
		"granary_store_full":             0,
		"granary_store_disk_free_bytes":  100 << 30,
		"granary_store_attached_volumes": 0,
	} {
		if got, ok := found[key]; !ok || got != want {
			t.Errorf("%s = %v, %v; want %v in %v", key, got, ok, want, found)
		}
	}
}

// metrics are the values, by name and labels.
func (w *world) metrics() map[string]float64 {
	w.t.Helper()
	families, err := w.driver.o.Metrics.(*prometheus.Registry).Gather()
	w.must(err)
	found := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			key := f.GetName()
			for _, l := range m.Label {
				key += " " + l.GetValue()
			}
			found[key] = m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return found
}

// What is free on a disk that does not tell is not 0: alerts are for that.
func TestFreeSpaceIsAMetricWhereItIsKnown(t *testing.T) {
	w := newWorld(t)
	for _, unknown := range []bool{true, false} {
		w.engine.SetDisk(func(s *blockstore.Stats) { s.DiskFree, s.DiskUnknown = 0, unknown })
		found := w.metrics()
		if free, there := found["granary_store_disk_free_bytes"]; there == unknown || free != 0 || len(found) < 10 {
			t.Errorf("unknown %v: %v, there: %v, of %d metrics", unknown, free, there, len(found))
		}
	}
}

// The second of two calls that would get in each other's way is ABORTED, and calls
// that only look are answered meanwhile.
func TestLocks(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	v := w.create("v").VolumeId
	snap := w.snapshot(v, "snap")
	l, err := w.attached.Lock(w.engineID(v))
	w.must(err)
	p := w.paths()
	expand := &csi.CapacityRange{RequiredBytes: 16 << 20}
	for name, call := range map[string]func() error{
		"DeleteVolume":    func() error { _, err := w.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v}); return err },
		"publish":         func() error { _, err := w.controllerPublish(v, node, mountCap(""), false); return err },
		"unpublish":       func() error { return w.controllerUnpublish(v, node) },
		"NodeStageVolume": func() error { return w.stage(v, p, mountCap("")) },
		"NodeUnstage":     func() error { return w.unstage(v, p) },
		"NodePublish":     func() error { return w.publish(v, p, mountCap("")) },
		"NodeUnpublish":   func() error { return w.unpublish(v, p) },
		"ControllerExpand": func() error {
			_, err := w.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: v, CapacityRange: expand})
			return err
		},
		"NodeExpand": func() error {
			_, err := w.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: v, VolumePath: p.target})
			return err
		},
	} {
		wantCode(t, name, call(), codes.Aborted, "try again")
	}
	w.listedNodes(v)
	w.snapshot(v, "meanwhile")
	l.Unlock()
	for _, key := range []string{"volume v", "snapshot snap", "snapshot ID " + snap} {
		if !w.driver.names.Try(key) {
			t.Fatalf("%q is locked", key)
		}
	}
	_, err = w.CreateVolume(ctx, createRequest("v"))
	wantCode(t, "CreateVolume", err, codes.Aborted, "try again")
	_, err = w.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: v, Name: "snap"})
	wantCode(t, "CreateSnapshot", err, codes.Aborted)
	_, err = w.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snap})
	wantCode(t, "DeleteSnapshot", err, codes.Aborted)
}

// A panic lets go of the lock that its call held.
func TestPanicLetsGoOfTheLock(t *testing.T) {
	w := newWorld(t)
	id := w.create("v").VolumeId
	host := w.driver.host
	w.driver.host = nil
	wantCode(t, "panic", w.stage(id, w.paths(), mountCap("")), codes.Internal, "panic in NodeStageVolume")
	w.driver.host = host
	w.must(w.stage(id, w.paths(), mountCap("")))
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
