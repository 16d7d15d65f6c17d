package admin

import (
	"path/filepath"

	"github.com/k8ns/granary/pkg/blockstore"
)

// SocketName is the socket's name in the data directory.
const SocketName = "granary.sock"

// SocketPath names the admin socket of a data directory.
func SocketPath(dataDir string) string { return filepath.Join(dataDir, SocketName) }

// Names of the operations: the last part of the route and of the command.
const (
	opVolumeCreate   = "volume.create"
	opVolumeList     = "volume.ls"
	opVolumeShow     = "volume.show"
	opVolumeAttach   = "volume.attach"
	opVolumeDetach   = "volume.detach"
	opVolumeResize   = "volume.resize"
	opVolumeSet      = "volume.set"
	opVolumeRemove   = "volume.rm"
	opSnapshotCreate = "snapshot.create"
	opSnapshotList   = "snapshot.ls"
	opSnapshotShow   = "snapshot.show"
	opSnapshotRemove = "snapshot.rm"
	opStats          = "stats"
	opCollect        = "collect"
	opCheck          = "check"
)

// CreateVolume asks for a volume. From names a source, a snapshot or a volume, by
// name or ID; at most one.
type CreateVolume struct {
	Name         string            `json:"name"`
	SizeBytes    int64             `json:"size,omitempty"`
	SectorBytes  int               `json:"sector,omitempty"`
	Compression  string            `json:"compression,omitempty"`
	OnFull       string            `json:"onFull,omitempty"`
	FromSnapshot string            `json:"fromSnapshot,omitempty"`
	FromVolume   string            `json:"fromVolume,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
}

// Target names a volume or a snapshot by name or ID.
type Target struct {
	Ref string `json:"ref"`
}

// ResizeVolume asks for a volume to grow.
type ResizeVolume struct {
	Ref       string `json:"ref"`
	SizeBytes int64  `json:"size"`
}

// SetVolume asks for another setting of a volume.
type SetVolume struct {
	Ref    string `json:"ref"`
	OnFull string `json:"onFull"` // wait or error
}

// Attached tells where a volume is, and what about the machine is dangerous for it.
type Attached struct {
	ID       string   `json:"id"`
	Device   string   `json:"device"`
	Warnings []string `json:"warnings,omitempty"`
}

// CreateSnapshot asks for a snapshot of a volume. With Wait the answer comes when
// the snapshot's root is durable.
type CreateSnapshot struct {
	Volume string            `json:"volume"`
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Wait   bool              `json:"wait,omitempty"`
}

// Page is a part of a list, in the order of IDs: what comes after an ID ("" for the
// first), at most Limit entries; 0 and more than maxPage are maxPage.
type Page struct {
	After string `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"`
}

// maxPage bounds what one answer holds.
const maxPage = 1000

func (p Page) limit() int {
	if p.Limit <= 0 {
		return maxPage
	}
	return min(p.Limit, maxPage)
}

// ListSnapshots asks for the snapshots of a volume, or for all.
type ListSnapshots struct {
	Volume string `json:"volume,omitempty"`
	Page
}

// StatsRequest asks for the store's statistics.
type StatsRequest struct {
	PerVolume bool `json:"perVolume,omitempty"`
}

// Stats is the store's statistics, and what about the machine is dangerous for it.
type Stats struct {
	blockstore.Stats
	Warnings []string `json:"warnings,omitempty"`
}

// Collect asks for one collection. Without Wait the answer comes at once.
type Collect struct {
	Wait bool `json:"wait,omitempty"`
}

// Collected is what a collection did. Started is true when it runs on.
type Collected struct {
	Started bool `json:"started,omitempty"`
	blockstore.CollectResult
}

// Check asks for a check of the store.
type Check struct {
	ReadData bool `json:"readData,omitempty"`
}

// Checked ends a check.
type Checked struct {
	Problems int `json:"problems"`
}

// nothing is the answer of operations that have none.
type nothing struct{}

// event is one line of a stream. One field is set.
type event[T any] struct {
	Progress *progress   `json:"progress,omitempty"`
	Item     any         `json:"item,omitempty"`
	Result   *T          `json:"result,omitempty"`
	Error    *errorValue `json:"error,omitempty"`
}

type progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}
