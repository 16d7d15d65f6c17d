package driver

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore"
)

// Handle is what CSI calls a volume or snapshot ID. It names the store and the node
// too, because calls such as DeleteVolume carry nothing else:
//
//	<first 16 hex digits of the store's ID>.<v- or s- and 32 hex digits>.<node ID>
//
// With the longest node ID it is 115 bytes long; CSI allows 128.
type Handle struct {
	Store string // first 16 digits of the store's ID
	ID    string // the engine's ID
	Node  string
}

// maxNodeID is the longest node ID: it is also the value of a topology label.
const maxNodeID = 63

const nodePattern = `[A-Za-z0-9](?:[-_.A-Za-z0-9]*[A-Za-z0-9])?`

var (
	handlePattern = regexp.MustCompile(`^([0-9a-f]{16})\.([vs]-[0-9a-f]{32})\.(` + nodePattern + `)$`)
	enginePattern = regexp.MustCompile(`^[vs]-[0-9a-f]{32}$`)
	nodeIDPattern = regexp.MustCompile(`^` + nodePattern + `$`)
)

// ParseHandle reads a handle; ErrInvalid if it is not one.
func ParseHandle(s string) (Handle, error) {
	m := handlePattern.FindStringSubmatch(s)
	if m == nil || len(m[3]) > maxNodeID {
		return Handle{}, fmt.Errorf("%.200q is not a Granary handle (<store>.<volume or snapshot ID>.<node>): %w", s, blockstore.ErrInvalid)
	}
	return Handle{Store: m[1], ID: m[2], Node: m[3]}, nil
}

// String is the handle's text; ParseHandle reads it.
func (h Handle) String() string { return h.Store + "." + h.ID + "." + h.Node }

// IsVolume tells a volume's handle from a snapshot's.
func (h Handle) IsVolume() bool { return strings.HasPrefix(h.ID, "v-") }

// CheckNodeID tells whether a node can be called so; ErrInvalid.
func CheckNodeID(id string) error {
	if len(id) > maxNodeID || !nodeIDPattern.MatchString(id) {
		return fmt.Errorf("node ID %q: at most %d letters, digits, '-', '_' and '.', a letter or digit first and last: %w", id, maxNodeID, blockstore.ErrInvalid)
	}
	return nil
}

// handle makes the handle of an engine's ID.
func (d *Driver) handle(id string) string {
	return Handle{Store: d.storeID, ID: id, Node: d.o.NodeID}.String()
}

// volumeID takes the engine's ID out of a volume handle. An empty handle is
// ErrInvalid; one that cannot be ours is ErrNotFound, and errForeign as well if it
// belongs to another node or store.
func (d *Driver) volumeID(handle string) (string, error) {
	h, err := d.parseVolumeHandle(handle)
	if err != nil {
		return "", err
	}
	return d.ours("volume", h)
}

// snapshotID is volumeID for snapshots.
func (d *Driver) snapshotID(handle string) (string, error) {
	h, err := parseHandle("snapshot", handle)
	if err != nil {
		return "", err
	}
	return d.ours("snapshot", h)
}

// parseVolumeHandle reads the handle of a volume that may be another node's; errors as
// volumeID's. A handle of this node but of another store is not found: nobody else
// could answer for it.
func (d *Driver) parseVolumeHandle(handle string) (Handle, error) {
	h, err := parseHandle("volume", handle)
	if err == nil && !d.elsewhere(h) {
		_, err = d.ours("volume", h)
	}
	return h, err
}

// parseHandle reads the handle of a volume or snapshot, whosever it is.
func parseHandle(what, handle string) (Handle, error) {
	if handle == "" {
		return Handle{}, fmt.Errorf("the %s ID is missing: %w", what, blockstore.ErrInvalid)
	}
	h, err := ParseHandle(handle)
	if err != nil || h.IsVolume() != (what == "volume") {
		return Handle{}, fmt.Errorf("%.200q is not the ID of a Granary %s: %w", handle, what, blockstore.ErrNotFound)
	}
	return h, nil
}

// elsewhere tells whether a handle is of another node.
func (d *Driver) elsewhere(h Handle) bool { return h.Node != d.o.NodeID }

// ours takes the engine's ID out of a handle of this node and store; errForeign.
func (d *Driver) ours(what string, h Handle) (string, error) {
	switch {
	case d.elsewhere(h):
		return "", fmt.Errorf("%s %s is on node %s, this is node %s: %w: %w",
			what, h.ID, h.Node, d.o.NodeID, errForeign, blockstore.ErrNotFound)
	case h.Store != d.storeID:
		return "", fmt.Errorf("%s %s is in store %s, this node's store is %s (was its data directory replaced?): %w: %w",
			what, h.ID, h.Store, d.storeID, errForeign, blockstore.ErrNotFound)
	}
	return h.ID, nil
}
