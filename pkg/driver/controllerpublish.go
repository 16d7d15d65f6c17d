package driver

import (
	"context"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// A volume is on one node, so publishing it to a node means saying whether it is that
// one. Attachers run once in a cluster, beside any driver: calls about another node's
// volume are answered from its handle, and leave no trace. What was said of a volume
// of this node's store is on record, so that it can be listed and contradictions are
// noticed. A record may outlive its publication: the call that ended it may have come
// to another driver. So it does not bind for ever (see holds).

// contextReadOnly is the key in the publish context that makes a stage read-only.
const contextReadOnly = "readOnly"

// publicationBinds is how long a publication counts as a use of a volume that the node
// never staged. A CO stages within minutes.
const publicationBinds = time.Hour

// holds tells whether a volume is in use, as far as anybody has told us.
func (d *Driver) holds(info blockstore.VolumeInfo) bool {
	return info.Device != "" || info.Publication != nil && d.binds(*info.Publication)
}

func (d *Driver) binds(p blockstore.Publication) bool {
	return !p.Released && d.o.Now().Sub(p.Created) < publicationBinds
}

// publishedNodes lists the nodes that a volume is published to: this one or none.
func (d *Driver) publishedNodes(info blockstore.VolumeInfo) []string {
	if info.Publication == nil && info.Device == "" {
		return nil
	}
	return []string{d.o.NodeID}
}

// ControllerPublishVolume implements csi.ControllerServer.
func (d *Driver) ControllerPublishVolume(ctx context.Context, req *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if req.GetNodeId() == "" {
		return nil, fmt.Errorf("the node ID is missing: %w", blockstore.ErrInvalid)
	}
	if req.GetVolumeCapability() == nil {
		return nil, fmt.Errorf("the volume capability is missing: %w", blockstore.ErrInvalid)
	}
	h, err := d.parseVolumeHandle(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	a, err := parseAccess(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if req.GetNodeId() != h.Node {
		return nil, fmt.Errorf("volume %s is on node %s; node %s cannot reach it, or is not there: %w",
			h.ID, h.Node, req.GetNodeId(), blockstore.ErrNotFound)
	}
	a.readOnly = a.readOnly || req.GetReadonly()
	if !d.elsewhere(h) {
		if err := d.recordPublication(ctx, req, a); err != nil {
			return nil, err
		}
	}
	resp := &csi.ControllerPublishVolumeResponse{}
	if a.readOnly {
		resp.PublishContext = map[string]string{contextReadOnly: "true"}
	}
	return resp, nil
}

// recordPublication puts on record that a volume of this node's store is published.
// ErrExists if it is so already in another way, attach.ErrLimit if the node has as
// many as it can take.
func (d *Driver) recordPublication(ctx context.Context, req *csi.ControllerPublishVolumeRequest, a access) error {
	_, info, err := d.locked(ctx, req.GetVolumeId())
	if err != nil {
		return err
	}
	if err := a.suits(info.Source); err != nil {
		return err
	}
	want := blockstore.Publication{Node: d.o.NodeID, ReadOnly: req.GetReadonly(), Capability: a.String(), Created: d.o.Now().UTC()}
	if have := info.Publication; have != nil {
		same := have.ReadOnly == want.ReadOnly && have.Capability == want.Capability
		if same && d.binds(*have) {
			return nil
		}
		if !same && d.holds(info) {
			return fmt.Errorf("volume %s is published as %s, read-only %t: %w", info.ID, have.Capability, have.ReadOnly, blockstore.ErrExists)
		}
	}
	d.counting.Lock()
	defer d.counting.Unlock()
	if err := d.checkLimit(info.ID); err != nil {
		return err
	}
	return d.store.PutPublication(info.ID, want)
}

// checkLimit refuses one published volume more than the node can take. Called with
// d.counting held.
func (d *Driver) checkLimit(id string) error {
	if d.o.MaxVolumes == 0 {
		return nil
	}
	held := make(map[string]bool)
	for other, p := range d.store.Publications() {
		if d.binds(p) {
			held[other] = true
		}
	}
	for _, at := range d.attached.List() {
		held[at.Volume] = true
	}
	if !held[id] && len(held) >= d.o.MaxVolumes {
		return fmt.Errorf("node %s: %w: %d", d.o.NodeID, attach.ErrLimit, d.o.MaxVolumes)
	}
	return nil
}

// ControllerUnpublishVolume implements csi.ControllerServer. A volume that is not
// there, or that was never on that node, is not published to it.
func (d *Driver) ControllerUnpublishVolume(ctx context.Context, req *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	resp := &csi.ControllerUnpublishVolumeResponse{}
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("the volume ID is missing: %w", blockstore.ErrInvalid)
	}
	id, err := d.volumeID(req.GetVolumeId())
	if err != nil || req.GetNodeId() != "" && req.GetNodeId() != d.o.NodeID {
		return resp, nil
	}
	return resp, d.store.RemovePublication(id)
}

// release notes on the publication that the node has let the volume go.
func (d *Driver) release(info blockstore.VolumeInfo) error {
	if info.Publication == nil || info.Publication.Released {
		return nil
	}
	p := *info.Publication
	p.Released = true
	return d.store.PutPublication(info.ID, p)
}
