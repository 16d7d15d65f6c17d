package sanity

import (
	"fmt"
	"strings"
)

// handles makes IDs for csi-sanity that are well-formed, unlike its own: a driver may
// answer to nonsense what it must not answer to these.
type handles struct {
	store, node string // of the driver under test
	count       int
}

// newHandles takes the form from a handle that the driver has given out:
// <store>.<volume ID>.<node>.
func newHandles(handle string) *handles {
	parts := strings.SplitN(handle, ".", 3)
	if len(parts) != 3 {
		panic(fmt.Sprintf("the volume handle %q is not <store>.<volume ID>.<node>", handle))
	}
	return &handles{store: parts[0], node: parts[2]}
}

// GenerateUniqueValidVolumeID makes a handle of this store and node that nobody has. One
// of another node would not do: a source there is RESOURCE_EXHAUSTED, not NOT_FOUND, so
// that the scheduler picks that node.
func (h *handles) GenerateUniqueValidVolumeID() string {
	h.count++
	return fmt.Sprintf("%s.v-%032x.%s", h.store, h.count, h.node)
}

// GenerateInvalidVolumeID makes what is nearly a handle: a snapshot's.
func (h *handles) GenerateInvalidVolumeID() string {
	h.count++
	return fmt.Sprintf("%s.s-%032x.%s", h.store, h.count, h.node)
}

// GenerateUniqueValidNodeID makes the longest node ID.
func (h *handles) GenerateUniqueValidNodeID() string {
	h.count++
	return fmt.Sprintf("%063d", h.count)
}

// GenerateInvalidNodeID makes an ID that no node can have.
func (h *handles) GenerateInvalidNodeID() string { return "-" + h.node + "/" }
