package blockstore

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// CheckOptions say how thorough a check is.
type CheckOptions struct {
	// ReadData reads and verifies every byte of every chunk and of every journal; else
	// only metadata is read.
	ReadData bool
	// Progress is told about bytes of files done and in all; may be nil.
	Progress func(done, total int64)
}

// Problem is one finding of a check.
type Problem struct {
	Kind     string `json:"kind"` // catalog, chunk-file, map, data, journal
	Volume   string `json:"volume,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
	File     string `json:"file,omitempty"`
	Offset   int64  `json:"offset"`
	Detail   string `json:"detail"`
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Kind)
	if p.Volume != "" {
		fmt.Fprintf(&b, ": volume %s", p.Volume)
	}
	if p.Snapshot != "" {
		fmt.Fprintf(&b, ": snapshot %s", p.Snapshot)
	}
	if p.File != "" {
		fmt.Fprintf(&b, ": %s at %d", p.File, p.Offset)
	}
	return b.String() + ": " + p.Detail
}

// maxPerImage bounds what is reported of one volume or snapshot.
const maxPerImage = 100

// Check verifies the store: records and the names between them, chunk files, every
// image's map down to its slots, journals. Findings go to report; the error is for a
// check that could not be finished. Damaged slots it finds become known: writing their
// content again heals them. Safe beside everything else.
func (s *Store) Check(ctx context.Context, o CheckOptions, report func(Problem)) error {
	s.coll.run.Lock() // what is checked must not be collected meanwhile
	defer s.coll.run.Unlock()
	err := s.check(ctx, o, report)
	return errors.Join(err, s.damageStep())
}

// CheckStopped is Check for a store that no daemon has open (ErrLocked otherwise). It
// changes nothing.
func CheckStopped(ctx context.Context, fsys vfs.FS, dir string, o CheckOptions, report func(Problem)) error {
	lock, err := fsys.Lock(path.Join(dir, "lock"))
	if err != nil {
		return fmt.Errorf("check store %s: %w", dir, err)
	}
	s := &Store{fsys: fsys, dir: dir, o: Options{}.withDefaults(), lock: lock, census: newCensus()}
	s.log = s.o.Logger
	s.mu.volumes = make(map[string]*Volume)
	s.sched.init()
	defer s.closeFiles()
	if err := s.openReadOnly(); err != nil {
		return err
	}
	return s.check(ctx, o, report)
}

// openReadOnly is open without a change on disk.
func (s *Store) openReadOnly() error {
	h, err := readStoreHeader(s.fsys, s.dir)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	s.id = h.store
	if s.cat, err = catalog.Open(s.fsys, path.Join(s.dir, dirCatalog), s.id, catalog.Options{ReadOnly: true}); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	s.reserve = new(reserve) // nothing is written, so nothing is given up
	if err := s.census.load(s.cat.View()); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	if err := s.openChunks(true); err != nil {
		return err
	}
	owned, bad, err := s.openJournal(true)
	if err != nil {
		return err
	}
	if err := s.checkAge(h, owned); err != nil {
		return err
	}
	if err := s.loadDamage(); err != nil {
		return err
	}
	return s.recoverVolumes(owned, bad)
}

// image is a root with a name.
type image struct {
	volume, snapshot string
	root             dedup.Slot
	size             int64
}

type checker struct {
	s       *Store
	o       CheckOptions
	report  func(Problem)
	damaged map[dedup.ChunkID]map[uint16]dedup.Damage
}

func (s *Store) check(ctx context.Context, o CheckOptions, report func(Problem)) error {
	c := &checker{s: s, o: o, report: report}
	view := s.cat.View()
	images := c.records(view)
	if err := c.files(ctx); err != nil {
		return err
	}
	c.damaged = make(map[dedup.ChunkID]map[uint16]dedup.Damage)
	for _, d := range s.chunks.Damaged() {
		if c.damaged[d.Slot.Chunk] == nil {
			c.damaged[d.Slot.Chunk] = make(map[uint16]dedup.Damage)
		}
		c.damaged[d.Slot.Chunk][d.Slot.Slot] = d
	}
	if err := c.maps(ctx, images); err != nil {
		return err
	}
	return c.journals(ctx)
}

// records verifies the catalog's records against each other and lists the images.
func (c *checker) records(view catalog.View) []image {
	bad := func(key, format string, args ...any) {
		c.report(Problem{Kind: "catalog", Detail: key + ": " + fmt.Sprintf(format, args...)})
	}
	names := make(map[string]int) // of cuts
	var images []image
	for _, e := range view.Scan(keyVolume, "", 0) {
		id := strings.TrimPrefix(e.Key, keyVolume)
		var rec volumeRecord
		if err := decode(e, &rec); err != nil {
			bad(e.Key, "%v", err)
			continue
		}
		c.name(view, bad, e.Key, keyVolumeName+rec.Name, id, rec.Deleted)
		if rec.Size < MinVolumeSize || rec.Size > MaxVolumeSize || rec.Size%SizeStep != 0 {
			bad(e.Key, "size %d cannot be", rec.Size)
		}
		if rec.Cut != "" {
			names[rec.Cut]++
		}
		images = append(images, image{volume: id, root: rec.Root.slot(), size: rec.Size})
	}
	for _, e := range view.Scan(keySnapshot, "", 0) {
		id := strings.TrimPrefix(e.Key, keySnapshot)
		var rec snapshotRecord
		if err := decode(e, &rec); err != nil {
			bad(e.Key, "%v", err)
			continue
		}
		c.name(view, bad, e.Key, keySnapshotName+rec.Name, id, false)
		names[rec.Cut]++
		var cut cutRecord
		if _, err := get(view, keyCut+rec.Cut, &cut); err != nil {
			bad(e.Key, "its cut: %v", err)
			continue
		}
		images = append(images, image{snapshot: id, root: cut.Root.slot(), size: cut.Size})
	}
	for _, e := range view.Scan(keyCut, "", 0) {
		id := strings.TrimPrefix(e.Key, keyCut)
		var cut cutRecord
		if err := decode(e, &cut); err != nil {
			bad(e.Key, "%v", err)
			continue
		}
		if cut.Names != names[id] {
			bad(e.Key, "says that %d records name it, but %d do", cut.Names, names[id])
		}
		if _, ok := view.Get(keyVolume + cut.Volume); cut.Pending && !ok {
			bad(e.Key, "waits for volume %s, which is gone", cut.Volume)
		}
		delete(names, id)
	}
	c.publications(view, bad)
	for id, n := range names {
		bad(keyCut+id, "is gone, but %d records name it", n)
	}
	return images
}

// publications verifies that what is published is there.
func (c *checker) publications(view catalog.View, bad func(string, string, ...any)) {
	for e := range view.All(keyPublish) {
		id := strings.TrimPrefix(e.Key, keyPublish)
		var p Publication
		if err := decode(e, &p); err != nil {
			bad(e.Key, "%v", err)
		}
		var rec volumeRecord
		switch _, err := get(view, keyVolume+id, &rec); {
		case errors.Is(err, ErrNotFound):
			bad(e.Key, "is of no volume")
		case err == nil && rec.Deleted: // what cannot be read is reported already
			bad(e.Key, "is of a deleted volume")
		}
	}
}

// name verifies that a record and its name reservation agree.
func (c *checker) name(view catalog.View, bad func(string, string, ...any), key, nameKey, id string, deleted bool) {
	var n nameRecord
	_, err := get(view, nameKey, &n)
	switch {
	case deleted:
	case err != nil:
		bad(key, "its name: %v", err)
	case n.ID != id:
		bad(key, "its name belongs to %s", n.ID)
	}
}

// files verifies every chunk file.
func (c *checker) files(ctx context.Context) error {
	for _, p := range c.s.chunks.Problems() {
		c.chunkProblem(p)
	}
	files := c.s.chunks.Files()
	var done, total int64
	for _, f := range files {
		total += f.Size
	}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.o.Progress != nil {
			c.o.Progress(done, total)
		}
		err := c.s.chunks.VerifyFile(f.Name, c.o.ReadData, c.chunkProblem)
		if err != nil && !errors.Is(err, vfs.ErrNotExist) { // else it was collected meanwhile
			return fmt.Errorf("check %s: %w", f.Name, err)
		}
		done += f.Size
	}
	if c.o.Progress != nil {
		c.o.Progress(total, total)
	}
	return nil
}

func (c *checker) chunkProblem(p dedup.Problem) {
	c.report(Problem{Kind: "chunk-file", File: path.Join(c.s.dir, dirChunks, p.File), Offset: p.Offset, Detail: p.Text})
}

// maps verifies that every image's map can be read and that its slots are there. Nodes
// that images share are read once; only if something is wrong below one of them is
// each image walked by itself, to say what it hits.
func (c *checker) maps(ctx context.Context, images []image) error {
	seen := make(map[dedup.Slot]bool)
	wrong := false
	for _, img := range images {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := c.walk(img, func(s dedup.Slot) bool {
			if seen[s] {
				return true
			}
			seen[s] = true
			return false
		}, func(Problem) bool { wrong = true; return true })
		if err != nil {
			return err
		}
	}
	if !wrong {
		return nil
	}
	for _, img := range images {
		n := 0
		err := c.walk(img, nil, func(p Problem) bool {
			p.Volume, p.Snapshot = img.volume, img.snapshot
			c.report(p)
			n++
			return n < maxPerImage
		})
		if err != nil {
			return err
		}
	}
	return nil
}

var errEnough = errors.New("enough problems reported")

// walk verifies one image; found returns false to end it.
func (c *checker) walk(img image, skip func(dedup.Slot) bool, found func(Problem) bool) error {
	tell := func(p Problem) error {
		if !found(p) {
			return errEnough
		}
		return nil
	}
	err := c.s.tree.Walk(img.root, func(node dedup.Slot, level int, extents []blockmap.Extent) (bool, error) {
		for _, e := range extents {
			if e.IsHole() {
				continue
			}
			if e.End() > uint64(img.size/BlockSize) && e.First >= uint64(img.size/BlockSize) {
				if err := tell(Problem{Kind: "map", Detail: fmt.Sprintf("node %s maps block %d behind the end", node, e.First)}); err != nil {
					return false, err
				}
			}
			if err := c.extent(e, tell); err != nil {
				return false, err
			}
		}
		return true, nil
	}, blockmap.WalkOptions{Skip: skip, OnError: func(node dedup.Slot, first, end uint64, err error) error {
		p := Problem{Kind: "map", Offset: int64(first) * BlockSize, Detail: fmt.Sprintf("node %s of blocks from %d on cannot be read: %v", node, first, err)}
		var de *dedup.DamageError
		if errors.As(err, &de) {
			p.File, p.Offset = path.Join(c.s.dir, dirChunks, de.File), de.Offset
		}
		return tell(p)
	}})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// extent verifies that an extent's slots are present and not known to be damaged.
func (c *checker) extent(e blockmap.Extent, tell func(Problem) error) error {
	if e.Damaged != 0 {
		err := tell(Problem{Kind: "data", Offset: int64(e.First) * BlockSize,
			Detail: fmt.Sprintf("block %d has sectors lost to earlier damage (mask %#02x)", e.First, e.Damaged)})
		if err != nil {
			return err
		}
	}
	damaged := c.damaged[e.Chunk]
	if damaged == nil && c.s.chunks.Has(e.Chunk, e.Slot, int(e.Count)) {
		return nil
	}
	for i := range e.Count {
		slot := e.Slot + uint16(i)
		p := Problem{Kind: "data", Offset: int64(e.First+i) * BlockSize}
		if d, ok := damaged[slot]; ok {
			p.File = path.Join(c.s.dir, dirChunks, d.File)
			p.Detail = fmt.Sprintf("block %d (chunk %s/%d) is damaged: %s", e.First+i, e.Chunk, slot, d.Reason)
			p.Offset = d.Offset
		} else if !c.s.chunks.Has(e.Chunk, slot, 1) {
			p.Detail = fmt.Sprintf("block %d: chunk %s/%d is in no chunk file", e.First+i, e.Chunk, slot)
		} else {
			continue
		}
		if err := tell(p); err != nil {
			return err
		}
	}
	return nil
}

// journals reports volumes that failed and, with ReadData, reads every payload that is
// not folded yet.
func (c *checker) journals(ctx context.Context) error {
	c.s.mu.Lock()
	vols := make([]*Volume, 0, len(c.s.mu.volumes))
	for _, v := range c.s.mu.volumes {
		vols = append(vols, v)
	}
	c.s.mu.Unlock()
	sort.Slice(vols, func(i, j int) bool { return vols[i].id < vols[j].id })
	for _, v := range vols {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.journal(v)
	}
	return nil
}

func (c *checker) journal(v *Volume) {
	v.mu.RLock()
	failed := v.mu.failed
	var sources []*payload
	seen := make(map[*payload]bool)
	for _, l := range v.mu.layers {
		l.tree.Scan(func(_ int64, s span) bool {
			if s.src != nil && !seen[s.src] {
				seen[s.src] = true
				sources = append(sources, s.src)
				s.src.seg.Acquire()
			}
			return true
		})
	}
	v.mu.RUnlock()
	if failed != nil {
		c.report(Problem{Kind: "journal", Volume: v.id, Detail: failed.Error()})
	}
	for _, src := range sources {
		if c.o.ReadData {
			buf := make([]byte, src.n)
			if err := src.read(buf, src.start); err != nil {
				c.report(Problem{Kind: "journal", Volume: v.id, File: src.seg.Name(), Offset: src.off, Detail: err.Error()})
			}
		}
		src.seg.Release()
	}
}
