package blockstore

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
)

// Keys of the catalog (FORMAT.md, section 4).
const (
	keyVolume       = "volume/"
	keyVolumeName   = "volumename/"
	keySnapshot     = "snapshot/"
	keySnapshotName = "snapshotname/"
	keyCut          = "cut/"
	keyDamage       = "damage/"
	keyAttach       = "attach/"
	keyPublish      = "publish/"
)

// position is a place in a volume's journal: folded up to and including Seq.
type position struct {
	Epoch uint64 `json:"epoch"`
	Log   uint64 `json:"log"`
	Seq   uint64 `json:"seq"`
}

// rootRef names a root node; nil in a record means that everything is a hole.
type rootRef struct {
	Chunk dedup.ChunkID `json:"chunk"`
	Slot  uint16        `json:"slot"`
}

func refOf(s dedup.Slot) *rootRef {
	if s.IsZero() {
		return nil
	}
	return &rootRef{s.Chunk, s.Slot}
}

func (r *rootRef) slot() dedup.Slot {
	if r == nil {
		return dedup.Slot{}
	}
	return dedup.Slot{Chunk: r.Chunk, Slot: r.Slot}
}

// volumeRecord is the value of volume/<id>. Durable is a sequence that the journal has
// reached on the disk, 0 if none above the position is known (reach.go).
type volumeRecord struct {
	Name        string            `json:"name"`
	Created     time.Time         `json:"created"`
	Size        int64             `json:"size"` // bytes
	Sector      int               `json:"sector"`
	Compression string            `json:"compression"`
	OnFull      string            `json:"onFull"`
	State       VolumeState       `json:"state"`
	FSType      string            `json:"fsType,omitempty"`
	Source      string            `json:"source,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Root        *rootRef          `json:"root,omitempty"`
	Position    position          `json:"position"`
	Mapped      int64             `json:"mapped"` // blocks
	Durable     uint64            `json:"durable,omitempty"`
	Cut         string            `json:"cut,omitempty"`
	Deleted     bool              `json:"deleted,omitempty"`
}

type snapshotRecord struct {
	Name        string            `json:"name"`
	Created     time.Time         `json:"created"`
	Volume      string            `json:"volume"`
	VolumeName  string            `json:"volumeName"`
	Size        int64             `json:"size"`
	Sector      int               `json:"sector"`
	Compression string            `json:"compression"`
	OnFull      string            `json:"onFull"`
	Cut         string            `json:"cut"`
	Labels      map[string]string `json:"labels,omitempty"`
	State       VolumeState       `json:"state"`
	FSType      string            `json:"fsType,omitempty"`
}

type cutRecord struct {
	Volume   string   `json:"volume"`
	Position position `json:"position"`
	Pending  bool     `json:"pending,omitempty"`
	Root     *rootRef `json:"root,omitempty"`
	Size     int64    `json:"size"`
	Mapped   int64    `json:"mapped"`
	Names    int      `json:"names"`
}

type nameRecord struct {
	ID string `json:"id"`
}

type damageRecord struct {
	Fingerprint string    `json:"fingerprint"`
	File        string    `json:"file"`
	Offset      int64     `json:"offset"`
	Reason      string    `json:"reason"`
	Found       time.Time `json:"found"`
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("blockstore: record cannot be encoded: " + err.Error())
	}
	return b
}

// decode reads a record into v, whatever v held before. Unknown fields are refused: they
// would be lost. So is what no commit of this program can have written: it would be
// believed where nothing looks again.
func decode(e catalog.Entry, v any) error {
	reflect.ValueOf(v).Elem().SetZero()
	d := json.NewDecoder(bytes.NewReader(e.Value))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil && (e.Value[0] != '{' || d.InputOffset() != int64(len(e.Value))) {
		err = errors.New("not one JSON object and nothing else")
	}
	if r, ok := v.(interface{ validate() error }); err == nil && ok {
		err = r.validate()
	}
	if err != nil {
		return fmt.Errorf("catalog record %s: %v: %w", e.Key, err, ErrCorrupt)
	}
	return nil
}

// maxSeq is what no sequence has reached by counting.
const maxSeq = 1 << 62

// validateImage tells what is wrong with the fields that say where an image is.
func validateImage(size int64, p position, root *rootRef) error {
	switch {
	case size < MinVolumeSize || size > MaxVolumeSize || size%BlockSize != 0:
		return fmt.Errorf("size of %d bytes", size)
	case p.Seq >= maxSeq:
		return fmt.Errorf("position at sequence %d", p.Seq)
	case root != nil && (root.Chunk.IsZero() || root.Slot >= dedup.MaxSlots):
		return fmt.Errorf("root in slot %d of chunk %s", root.Slot, root.Chunk)
	}
	return nil
}

func (r *volumeRecord) validate() error {
	if err := validateSector(r.Sector); err != nil {
		return err
	}
	if r.Cut != "" {
		if err := checkID('c', r.Cut); err != nil {
			return err
		}
	}
	if r.Durable >= maxSeq {
		return fmt.Errorf("journal durable up to sequence %d", r.Durable)
	}
	return validateImage(r.Size, r.Position, r.Root)
}

func (r *snapshotRecord) validate() error {
	if err := validateSector(r.Sector); err != nil {
		return err
	}
	if err := checkID('c', r.Cut); err != nil {
		return err
	}
	return validateImage(r.Size, position{}, nil)
}

func (r *cutRecord) validate() error {
	if err := checkID('v', r.Volume); err != nil {
		return err
	}
	return validateImage(r.Size, r.Position, r.Root)
}

func validateSector(bytes int) error {
	if bytes != 512 && bytes != 4096 {
		return fmt.Errorf("sector of %d bytes", bytes)
	}
	return nil
}

// update is catalog.Update with this package's errors. That of a failed catalog is not what
// it failed of: a full disk that it met is none to wait for.
func (s *Store) update(fn func(catalog.View) ([]catalog.Op, error)) (uint64, error) {
	n, err := s.cat.Update(fn)
	switch {
	case errors.Is(err, catalog.ErrClosed):
		err = fmt.Errorf("store %s: %w", s.dir, ErrClosed)
	case errors.Is(err, catalog.ErrFailed):
		err = fmt.Errorf("store %s: %w: %v", s.dir, ErrFailed, err)
	}
	return n, err
}

// commit is catalog.Commit with this package's errors.
func (s *Store) commit(ops ...catalog.Op) (uint64, error) {
	return s.update(func(catalog.View) ([]catalog.Op, error) { return ops, nil })
}

// getter is the part of catalog.View and *catalog.Catalog that lookups need.
type getter interface {
	Get(key string) (catalog.Entry, bool)
}

// get reads record key into v. ErrNotFound if there is none.
func get(g getter, key string, v any) (catalog.Entry, error) {
	e, ok := g.Get(key)
	if !ok {
		return e, fmt.Errorf("%s: %w", describeKey(key), ErrNotFound)
	}
	return e, decode(e, v)
}

func describeKey(key string) string {
	kind, name, _ := strings.Cut(key, "/")
	switch kind + "/" {
	case keyVolumeName:
		return fmt.Sprintf("volume %q", name)
	case keySnapshotName:
		return fmt.Sprintf("snapshot %q", name)
	}
	return kind + " " + name
}

func put(key string, v any, expect uint64) catalog.Op {
	return catalog.Op{Key: key, Value: encode(v), Expect: expect}
}

func del(key string, expect uint64) catalog.Op {
	return catalog.Op{Key: key, Expect: expect}
}

var idPattern = regexp.MustCompile(`^[vsc]-[0-9a-f]{32}$`)

// checkID refuses what the engine did not make, before it becomes a key.
func checkID(kind byte, id string) error {
	if !idPattern.MatchString(id) || id[0] != kind {
		return fmt.Errorf("%q is not an ID of the form %c- and 32 hexadecimal digits: %w", id, kind, ErrInvalid)
	}
	return nil
}

// newID makes a random ID.
func (s *Store) newID(kind byte) string {
	var b [16]byte
	if _, err := s.o.Rand.Read(b[:]); err != nil {
		panic("blockstore: no randomness: " + err.Error())
	}
	return string(kind) + "-" + hex.EncodeToString(b[:])
}

// rawID is the 16 bytes of an ID that passed checkID.
func rawID(id string) (raw [16]byte) {
	hex.Decode(raw[:], []byte(id[2:]))
	return raw
}

// MaxNameBytes limits names of volumes and snapshots.
const MaxNameBytes = 128

func checkName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("a %s needs a name: %w", what, ErrInvalid)
	case len(name) > MaxNameBytes:
		return fmt.Errorf("%s name of %d bytes: at most %d are allowed: %w", what, len(name), MaxNameBytes, ErrInvalid)
	case idPattern.MatchString(name):
		return fmt.Errorf("%s name %q has the form of an ID: %w", what, name, ErrInvalid)
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f || r == '/' || r == 0xfffd {
			return fmt.Errorf("%s name %q: control characters and '/' are not allowed: %w", what, name, ErrInvalid)
		}
	}
	return nil
}
