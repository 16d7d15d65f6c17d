package blockstore_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// csiOperations is the mix, as shares.
var csiOperations = []struct {
	share int
	do    func(w *csiWorld)
}{
	{8, (*csiWorld).createVolume},
	{6, (*csiWorld).createSnapshot},
	{6, (*csiWorld).deleteVolume},
	{4, (*csiWorld).deleteSnapshot},
	{4, (*csiWorld).expand},
	{30, (*csiWorld).nodeCall},
	{20, (*csiWorld).write},
	{8, (*csiWorld).flush},
	{5, (*csiWorld).fold},
	{8, (*csiWorld).collect},
	{2, func(w *csiWorld) { w.disk.Die(); w.reboot(func() {}) }},
	{2, (*csiWorld).check},
}

// run does so many operations.
func (w *csiWorld) run(ops int) {
	w.ok(w.boot(), "start")
	shares := 0
	for _, o := range csiOperations {
		shares += o.share
	}
	for w.step = 0; w.step < ops || w.crashes < 3; w.step++ {
		r := w.rng.IntN(shares)
		for _, o := range csiOperations {
			if r -= o.share; r < 0 {
				o.do(w)
				break
			}
		}
		if w.step > 3*ops {
			w.fail("no crash comes")
		}
	}
	w.check()
}

func engineID(handle string) string { return strings.Split(handle, ".")[1] }

// same notes the ID that an answer gives, and refuses another one for the same call.
func (w *csiWorld) same(have *string, got string) error {
	if *have != "" && *have != got {
		return fmt.Errorf("the call was answered with %s, its repetition with %s", *have, got)
	}
	*have = got
	return nil
}

func (w *csiWorld) createVolume() {
	if len(w.vols) > 6 {
		return
	}
	w.names++
	m := &csiVolume{name: fmt.Sprintf("pvc-%d", w.names), raw: w.rng.IntN(2) == 0, size: pick[int64](w.rng, 1, 2) << 20}
	if !m.raw {
		m.size = 32 << 20
	}
	req := &csi.CreateVolumeRequest{Name: m.name}
	var from *csiVolume
	switch r := w.rng.IntN(3); {
	case r == 0 && len(w.snaps) > 0:
		sn := pick(w.rng, w.snaps...)
		m.size, m.raw, m.source, m.data.base, m.formatted = sn.size, sn.raw, sn.handle, sn.image, sn.formatted
		req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: sn.handle}}}
	case r == 1 && len(w.vols) > 0:
		from = pick(w.rng, w.vols...)
		m.size, m.raw, m.source, m.formatted = from.size, from.raw, from.handle, from.formatted
		req.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: from.handle}}}
	}
	m.size += w.rng.Int64N(2) << 20
	req.CapacityRange = &csi.CapacityRange{RequiredBytes: m.size - w.rng.Int64N(1000)}
	req.VolumeCapabilities = []*csi.VolumeCapability{m.capability()}
	made := false
	w.do(operation{
		what: "CreateVolume " + m.name,
		call: func() error {
			if from != nil && !made {
				m.data.base = from.data.now()
			}
			resp, err := w.CreateVolume(context.Background(), req)
			if err != nil {
				return err
			}
			if v := resp.Volume; v.CapacityBytes != m.size {
				return fmt.Errorf("it has %d bytes, want %d", v.CapacityBytes, m.size)
			}
			return w.same(&m.handle, resp.Volume.VolumeId)
		},
		asked: func() bool { return w.listed("volume", m.name, &m.handle) },
		happened: func() {
			made = true
			w.vols = append(w.vols, m)
			if from != nil {
				from.data.settle()
			}
		},
	})
	other := &csi.CreateVolumeRequest{Name: m.name, VolumeCapabilities: req.VolumeCapabilities, VolumeContentSource: req.VolumeContentSource,
		CapacityRange: &csi.CapacityRange{RequiredBytes: m.size + 10<<20}}
	if _, err := w.CreateVolume(context.Background(), other); status.Code(err) != codes.AlreadyExists {
		w.fail("the name %s with another size: %v, want AlreadyExists", m.name, err)
	}
}

// listed looks in the store by name for what an interrupted call may have made.
func (w *csiWorld) listed(kind, name string, handle *string) bool {
	id := ""
	if kind == "volume" {
		if info, err := w.s.Volume(name); err == nil {
			id = info.ID
		}
	} else if info, err := w.s.Snapshot(name); err == nil {
		id = info.ID
	}
	if id == "" {
		return false
	}
	*handle = fmt.Sprintf("%s.%s.%s", w.s.ID()[:16], id, csiNode)
	return true
}

func (w *csiWorld) createSnapshot() {
	if len(w.vols) == 0 || len(w.snaps) > 6 {
		return
	}
	m := pick(w.rng, w.vols...)
	w.names++
	sn := &csiSnapshot{name: fmt.Sprintf("snap-%d", w.names), source: m.handle, size: m.size, raw: m.raw, formatted: m.formatted}
	made := false
	w.do(operation{
		what: "CreateSnapshot " + sn.name,
		call: func() error {
			if !made {
				sn.image = m.data.now()
			}
			resp, err := w.CreateSnapshot(context.Background(), &csi.CreateSnapshotRequest{Name: sn.name, SourceVolumeId: m.handle})
			if err != nil {
				return err
			}
			if s := resp.Snapshot; s.SizeBytes != sn.size || s.SourceVolumeId != sn.source {
				return fmt.Errorf("it is %v, want %d bytes of %s", s, sn.size, sn.source)
			}
			return w.same(&sn.handle, resp.Snapshot.SnapshotId)
		},
		asked:    func() bool { return w.listed("snapshot", sn.name, &sn.handle) },
		happened: func() { made = true; w.snaps = append(w.snaps, sn); m.data.settle() },
	})
}

func (w *csiWorld) deleteVolume() {
	i := slices.IndexFunc(w.vols, func(m *csiVolume) bool { return !m.published && m.device == "" })
	if i < 0 {
		return
	}
	m := w.vols[i]
	w.do(operation{
		what: "DeleteVolume " + m.name,
		call: func() error {
			_, err := w.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: m.handle})
			return err
		},
		asked:    func() bool { h := ""; return !w.listed("volume", m.name, &h) },
		happened: func() { w.vols = slices.DeleteFunc(w.vols, func(o *csiVolume) bool { return o == m }) },
	})
}

func (w *csiWorld) deleteSnapshot() {
	if len(w.snaps) == 0 {
		return
	}
	sn := pick(w.rng, w.snaps...)
	w.do(operation{
		what: "DeleteSnapshot " + sn.name,
		call: func() error {
			_, err := w.DeleteSnapshot(context.Background(), &csi.DeleteSnapshotRequest{SnapshotId: sn.handle})
			return err
		},
		asked:    func() bool { h := ""; return !w.listed("snapshot", sn.name, &h) },
		happened: func() { w.snaps = slices.DeleteFunc(w.snaps, func(o *csiSnapshot) bool { return o == sn }) },
	})
}

func (w *csiWorld) expand() {
	if len(w.vols) == 0 {
		return
	}
	m := pick(w.rng, w.vols...)
	size := m.size + 1<<20
	w.do(operation{
		what: "ControllerExpandVolume " + m.name,
		call: func() error {
			resp, err := w.ControllerExpandVolume(context.Background(), &csi.ControllerExpandVolumeRequest{
				VolumeId: m.handle, CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
			if err == nil && resp.CapacityBytes != size {
				err = fmt.Errorf("it has %d bytes, want %d", resp.CapacityBytes, size)
			}
			return err
		},
		asked:    func() bool { info, err := w.s.Volume(m.name); return err == nil && info.SizeBytes == size },
		happened: func() { m.size = size },
	})
	if m.device == "" {
		return
	}
	w.do(operation{
		what: "NodeExpandVolume " + m.name, once: true,
		call: func() error {
			_, err := w.NodeExpandVolume(context.Background(), &csi.NodeExpandVolumeRequest{
				VolumeId: m.handle, VolumePath: w.staging(m), CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
			if err != nil {
				return err
			}
			if got, err := w.host.DeviceSize(m.device); err != nil || got != size {
				return fmt.Errorf("the device has %d bytes, want %d: %w", got, size, err)
			}
			return nil
		},
	})
}

func (w *csiWorld) staging(m *csiVolume) string { return filepath.Join(w.dir, "stage-"+m.name) }

// nodeCall takes a volume one step on or back on its way to a pod.
func (w *csiWorld) nodeCall() {
	if len(w.vols) == 0 {
		return
	}
	m, forth := pick(w.rng, w.vols...), w.rng.IntN(3) > 0
	switch {
	case forth && !m.published:
		w.publish(m)
	case forth && m.device == "" && m.published:
		w.stage(m)
	case forth && m.target == "" && m.published:
		w.nodePublish(m)
	case !forth && m.target != "":
		w.nodeUnpublish(m)
	case !forth && m.device != "":
		w.unstage(m)
	case !forth && m.published:
		w.unpublish(m)
	}
}

func (w *csiWorld) publish(m *csiVolume) {
	w.do(operation{
		what: "ControllerPublishVolume " + m.name,
		call: func() error {
			_, err := w.ControllerPublishVolume(context.Background(), &csi.ControllerPublishVolumeRequest{
				VolumeId: m.handle, NodeId: csiNode, VolumeCapability: m.capability()})
			return err
		},
		asked:    func() bool { return w.s.Publications()[m.id()].Node != "" },
		happened: func() { m.published = true },
	})
}

func (w *csiWorld) unpublish(m *csiVolume) {
	w.do(operation{
		what: "ControllerUnpublishVolume " + m.name,
		call: func() error {
			_, err := w.ControllerUnpublishVolume(context.Background(), &csi.ControllerUnpublishVolumeRequest{VolumeId: m.handle, NodeId: csiNode})
			return err
		},
		asked:    func() bool { return w.s.Publications()[m.id()].Node == "" },
		happened: func() { m.published = false },
	})
}

func (w *csiWorld) stage(m *csiVolume) {
	w.do(operation{
		what: "NodeStageVolume " + m.name,
		call: func() error {
			if err := w.room(); err != nil {
				return err
			}
			before := w.mkfsCalls()
			_, err := w.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{
				VolumeId: m.handle, StagingTargetPath: w.staging(m), VolumeCapability: m.capability()})
			if made := w.mkfsCalls() > before; made && m.formatted {
				w.fail("mkfs ran over the filesystem of %s (I11)", m.name)
			}
			if err == nil {
				m.device, m.formatted = w.deviceOf(m), !m.raw
			}
			return err
		},
	})
}

func (w *csiWorld) mkfsCalls() (n int) {
	for _, c := range w.host.Calls() {
		if strings.HasPrefix(c, "Mkfs ") {
			n++
		}
	}
	return n
}

// deviceOf is where a volume is attached.
func (w *csiWorld) deviceOf(m *csiVolume) string {
	at, ok := w.s.Attachment(m.id())
	if !ok || at.Device == "" {
		w.fail("%s is staged, and no device is on record", m.name)
	}
	return at.Device
}

func (w *csiWorld) unstage(m *csiVolume) {
	w.do(operation{
		what: "NodeUnstageVolume " + m.name,
		call: func() error {
			_, err := w.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: m.handle, StagingTargetPath: w.staging(m)})
			if err == nil {
				m.device = ""
			}
			return err
		},
		happened: func() { m.data.settle() },
		asked:    func() bool { return false },
	})
}

func (w *csiWorld) nodePublish(m *csiVolume) {
	target := filepath.Join(w.dir, "pod-"+m.name)
	w.do(operation{
		what: "NodePublishVolume " + m.name, once: true,
		call: func() error {
			_, err := w.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{
				VolumeId: m.handle, StagingTargetPath: w.staging(m), TargetPath: target, VolumeCapability: m.capability()})
			if err == nil {
				m.target = target
			}
			return err
		},
	})
}

func (w *csiWorld) nodeUnpublish(m *csiVolume) {
	target := m.target
	w.do(operation{
		what: "NodeUnpublishVolume " + m.name,
		call: func() error {
			_, err := w.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: m.handle, TargetPath: target})
			if err == nil {
				m.target = ""
			}
			return err
		},
	})
}
