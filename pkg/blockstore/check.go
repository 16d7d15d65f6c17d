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

// Problem is one finding of a check. One that touches what a volume or snapshot shows
// names it by ID and name, and tells the range of bytes that cannot be read of it.
type Problem struct {
	Kind         string `json:"kind"`             // catalog, chunk-file, map, data, journal
	Volume       string `json:"volume,omitempty"` // ID
	VolumeName   string `json:"volumeName,omitempty"`
	Snapshot     string `json:"snapshot,omitempty"` // ID
	SnapshotName string `json:"snapshotName,omitempty"`
	Start        int64  `json:"start,omitempty"`  // of the range, in bytes
	Length       int64  `json:"length,omitempty"` // of the range, in bytes; 0 if there is none
	File         string `json:"file,omitempty"`
	Offset       int64  `json:"offset"` // in the file, in bytes
	Detail       string `json:"detail"`
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Kind)
	if p.Volume != "" {
		fmt.Fprintf(&b, ": volume %s", named(p.Volume, p.VolumeName))
	}
	if p.Snapshot != "" {
		fmt.Fprintf(&b, ": snapshot %s", named(p.Snapshot, p.SnapshotName))
	}
	if p.Length > 0 {
		fmt.Fprintf(&b, ": bytes %d to %d", p.Start, p.Start+p.Length-1)
	}
	if p.File != "" {
		fmt.Fprintf(&b, ": %s at %d", p.File, p.Offset)
	}
	return b.String() + ": " + p.Detail
}

// named is an ID with the name that people know it by.
func named(id, name string) string {
	if name == "" {
		return id
	}
	return fmt.Sprintf("%s (%s)", id, name)
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
	volume, snapshot string // ID; one is set
	name             string
	root             dedup.Slot
	size             int64
	pending          string // the volume whose journal still owes it its root; root is that volume's
}

// of makes a problem the image's.
func (img image) of(p Problem) Problem {
	p.Volume, p.Snapshot = img.volume, img.snapshot
	if img.volume != "" {
		p.VolumeName = img.name
	} else {
		p.SnapshotName = img.name
	}
	return p
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
	return c.journals(ctx, images)
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
		img := image{volume: id, name: rec.Name, root: rec.Root.slot(), size: rec.Size}
		var cut cutRecord
		if _, err := get(view, keyCut+rec.Cut, &cut); rec.Cut != "" && err == nil { // one that is gone is reported below
			img = img.at(view, cut)
		}
		images = append(images, img)
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
		images = append(images, image{snapshot: id, name: rec.Name, size: cut.Size}.at(view, cut))
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
	c.attachments(view, bad)
	c.publications(view, bad)
	for id, n := range names {
		bad(keyCut+id, "is gone, but %d records name it", n)
	}
	return images
}

// at gives an image the root that its cut has. One that the cut will have is what the
// volume's journal makes of the volume's root, so that root's problems are its own, but
// for what the journal writes over.
func (img image) at(view catalog.View, cut cutRecord) image {
	img.root = cut.Root.slot()
	var rec volumeRecord
	if !cut.Pending {
		return img
	}
	img.pending = cut.Volume
	if _, err := get(view, keyVolume+cut.Volume, &rec); err != nil { // reported with the cut
		return img
	}
	img.root = rec.Root.slot()
	var source cutRecord
	if _, err := get(view, keyCut+rec.Cut, &source); rec.Cut != "" && err == nil && source.Volume != cut.Volume {
		img = img.at(view, source)
	}
	return img
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

// attachments verifies that what is attached is there.
func (c *checker) attachments(view catalog.View, bad func(string, string, ...any)) {
	for e := range view.All(keyAttach) {
		id := strings.TrimPrefix(e.Key, keyAttach)
		var a Attachment
		if err := decode(e, &a); err != nil {
			bad(e.Key, "%v", err)
		} else if a.Volume != id {
			bad(e.Key, "says that it is of volume %s", a.Volume)
		}
		if _, ok := view.Get(keyVolume + id); !ok {
			bad(e.Key, "is of no volume")
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
		runs := problemRuns{report: c.report}
		err := c.walk(img, nil, func(p Problem) bool {
			return runs.add(img.of(p))
		})
		runs.end()
		if err != nil {
			return err
		}
	}
	return nil
}

// problemRuns makes one problem of neighbours that have one cause, and ends after
// maxPerImage.
type problemRuns struct {
	report func(Problem)
	last   Problem
	n      int
}

// add takes the next problem; false when there were enough.
func (r *problemRuns) add(p Problem) bool {
	if r.n > 0 && p.Length > 0 && p.Start == r.last.Start+r.last.Length && p.File != "" &&
		p.Kind == r.last.Kind && p.File == r.last.File && p.Offset == r.last.Offset {
		r.last.Length += p.Length
		return true
	}
	if r.n == maxPerImage {
		return false
	}
	r.end()
	r.last, r.n = p, r.n+1
	return true
}

// end reports the last.
func (r *problemRuns) end() {
	if r.last.Kind != "" {
		r.report(r.last)
	}
	r.last = Problem{}
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
		p := Problem{Kind: "map", Start: int64(first) * BlockSize, Length: nodeBytes(first, end, img.size), Detail: fmt.Sprintf("node %s of blocks from %d on cannot be read: %v", node, first, err)}
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

// nodeBytes is how many bytes of an image of a size the blocks [first, end) are.
func nodeBytes(first, end uint64, size int64) int64 {
	blocks := uint64(size / BlockSize)
	return int64(min(end, blocks)-min(first, blocks)) * BlockSize
}

// extent verifies that an extent's slots are present and not known to be damaged.
func (c *checker) extent(e blockmap.Extent, tell func(Problem) error) error {
	if e.Damaged != 0 {
		err := tell(Problem{Kind: "data", Start: int64(e.First) * BlockSize, Length: BlockSize,
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
		p := Problem{Kind: "data", Start: int64(e.First+i) * BlockSize, Length: BlockSize}
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
func (c *checker) journals(ctx context.Context, images []image) error {
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
		c.journal(v, images)
	}
	return nil
}

// journal verifies one volume's journal. What cannot be read of it is missing in the
// volume and in what waits for it to be folded.
func (c *checker) journal(v *Volume, images []image) {
	tell := func(p Problem) {
		p.Kind = "journal"
		for _, img := range images {
			if img.volume == v.id || img.pending == v.id {
				c.report(img.of(p))
			}
		}
	}
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
		tell(Problem{Detail: failed.Error()})
	}
	for _, src := range sources {
		if c.o.ReadData {
			buf := make([]byte, src.n)
			if err := src.read(buf, src.start); err != nil {
				tell(Problem{Start: src.start, Length: src.n, File: src.seg.Name(), Offset: src.off, Detail: err.Error()})
			}
		}
		src.seg.Release()
	}
}
