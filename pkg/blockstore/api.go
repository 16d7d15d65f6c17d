package blockstore

import "time"

// BlockSize is the unit of addressing and of dedup, in bytes.
const BlockSize = 4096

// Limits of a volume's size, in bytes. Sizes are multiples of SizeStep.
const (
	SizeStep      = 1 << 20
	MinVolumeSize = 1 << 20
	MaxVolumeSize = 64 << 40
)

// VolumeState guards mkfs (I11). A volume goes from empty to formatting (durable
// before mkfs runs) to used (durable before the first mount), never back. A copy begins
// with the state that its source had when it was copied.
type VolumeState string

const (
	StateEmpty      VolumeState = "empty"
	StateFormatting VolumeState = "formatting"
	StateUsed       VolumeState = "used"
)

// What a volume's writes do when the disk is full: wait without limit, or fail with
// ErrNoSpace after Options.FullTimeout.
const (
	OnFullWait  = "wait"
	OnFullError = "error"
)

// VolumeSpec is what CreateVolume makes a volume from. Zero fields take defaults, or
// the source's values when there is a source.
type VolumeSpec struct {
	Name        string
	SizeBytes   int64  // rounded up to SizeStep; 0 = the source's size
	SectorBytes int    // logical sector: 512 (default) or 4096; inherited
	Compression string // zstd (default), s2 or none; inherited
	OnFull      string // OnFullWait (default) or OnFullError; inherited
	// FromSnapshot or FromVolume name a source by ID; at most one.
	FromSnapshot string
	FromVolume   string
	Labels       map[string]string // kept for the caller, never interpreted
}

// VolumeInfo describes a volume.
type VolumeInfo struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	SizeBytes   int64             `json:"size"`
	SectorBytes int               `json:"sector"`
	Compression string            `json:"compression"`
	OnFull      string            `json:"onFull"`
	State       VolumeState       `json:"state"`
	FSType      string            `json:"fsType,omitempty"`
	Source      string            `json:"source,omitempty"` // ID of the snapshot or volume it was made from
	Labels      map[string]string `json:"labels,omitempty"`
	Created     time.Time         `json:"created"`
	Open        bool              `json:"attached"`
	Device      string            `json:"device,omitempty"`
	Publication *Publication      `json:"publication,omitempty"` // nil: there is none
	MappedBytes int64             `json:"logical"`               // not holes, as of the last fold
	// JournalBytes is what is not folded yet.
	JournalBytes int64 `json:"journal"`
	// WaitingSince is when the first of the writes that wait for disk space began to, or
	// are refused because that took too long; nil: none is.
	WaitingSince *time.Time `json:"waitingSince,omitempty"`
	// Failed says why the volume failed closed; empty when it is well.
	Failed string `json:"failed,omitempty"`
}

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	VolumeID    string            `json:"volume"`
	VolumeName  string            `json:"volumeName"`
	SizeBytes   int64             `json:"size"`
	Created     time.Time         `json:"created"`
	Ready       bool              `json:"ready"` // its root is durable
	FSType      string            `json:"fsType,omitempty"`
	MappedBytes int64             `json:"logical"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// Attachment is host state of an open volume that a start has to clear.
type Attachment struct {
	Volume string `json:"volume"`
	Device string `json:"device"` // /dev/loopN
	// Uses are the paths at which the volume is staged or published; the order is the
	// order of use.
	Uses []Use `json:"uses,omitempty"`
	// ReadOnly and Scratch say how it is attached: a device that refuses writes; writes
	// that are thrown away.
	ReadOnly bool `json:"readOnly,omitempty"`
	Scratch  bool `json:"scratch,omitempty"`
}

// Use is a path at which a volume is staged or published. Purpose is kept for the caller,
// never interpreted.
type Use struct {
	Path    string `json:"path"`
	Purpose string `json:"purpose,omitempty"`
}

// Publication says that a CO was told that a volume is published to a node; kept for
// the caller, never interpreted.
type Publication struct {
	Node       string    `json:"node"`
	ReadOnly   bool      `json:"readOnly,omitempty"`
	Capability string    `json:"capability"` // caller's text
	Created    time.Time `json:"created"`
	Released   bool      `json:"released,omitempty"` // the node has let the volume go since
}

// Stats describes a store. All sizes in bytes.
type Stats struct {
	Volumes          int     `json:"volumes"`
	Snapshots        int     `json:"snapshots"`
	Logical          int64   `json:"logical"`          // mapped bytes of volumes, and of snapshots whose image no volume or other snapshot has
	LogicalVolumes   int64   `json:"logicalVolumes"`   // mapped bytes of volumes alone
	Unique           int64   `json:"unique"`           // distinct blocks present in chunk files
	Stored           int64   `json:"stored"`           // every byte of chunk files, and of the catalog what is written
	Reduction        float64 `json:"reduction"`        // Logical / Stored
	Garbage          int64   `json:"garbage"`          // estimate of stored bytes nobody names, as of the last marking
	JournalUsed      int64   `json:"journalUsed"`      // not folded yet
	JournalAllocated int64   `json:"journalAllocated"` // segments on disk
	Reserve          int64   `json:"reserve"`          // allocated for folding on a full disk, and for the catalog to grow into
	CacheBytes       int64   `json:"cacheBytes"`
	CacheLimit       int64   `json:"cacheLimit"`
	CacheHits        int64   `json:"cacheHits"`
	CacheMisses      int64   `json:"cacheMisses"`
	DiskFree         int64   `json:"diskFree"`
	DiskUnknown      bool    `json:"diskUnknown,omitempty"` // the file system does not tell how large it is, or answered with DiskError
	DiskError        string  `json:"diskError,omitempty"`
	Full             bool    `json:"full"`    // only the reserve is left; writers that need space wait
	Waiting          int     `json:"waiting"` // volumes whose writes wait for space or are refused
	Damaged          int     `json:"damaged"`
	ChunkFiles       int     `json:"chunkFiles"`
	Chunks           int     `json:"chunks"`

	PerVolume []VolumeInfo `json:"perVolume,omitempty"`
}
