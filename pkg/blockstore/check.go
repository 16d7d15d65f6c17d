package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
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
	// Workers is how many chunk files of a stopped store are opened at a time; 0: as many as
	// the store's own default.
	Workers int
	// Progress is told about bytes of files done and in all; may be nil.
	Progress func(done, total int64)
}

// Problem is one finding of a check. One that touches what a volume or snapshot shows
// names it by ID and name, and tells the range of bytes that cannot be read of it.
type Problem struct {
	Kind         string `json:"kind"`             // catalog, chunk-file, map, data, journal, damage
	Volume       string `json:"volume,omitempty"` // ID
	VolumeName   string `json:"volumeName,omitempty"`
	Snapshot     string `json:"snapshot,omitempty"` // ID
	SnapshotName string `json:"snapshotName,omitempty"`
	Start        int64  `json:"start,omitempty"`  // of the range, in bytes
	Length       int64  `json:"length,omitempty"` // of the range, in bytes; 0 if there is none
	File         string `json:"file,omitempty"`
	Offset       int64  `json:"offset"` // in the file, in bytes
	Detail       string `json:"detail"`
	// Repairable: Repair would put it right, or save what can be saved of the file.
	Repairable bool `json:"repairable,omitempty"`
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
// content again heals them; known ones that it reads whole are forgotten. Safe beside
// everything else. On a full disk it gives way to a collection that may free something:
// ErrNoSpace then.
func (s *Store) Check(ctx context.Context, o CheckOptions, report func(Problem)) error {
	patient := &yielding{Context: ctx}
	if err := s.coll.turn.take(ctx, patient); err != nil { // what is checked must not be collected meanwhile
		return fmt.Errorf("check: %w", err)
	}
	defer s.leaveTurn()
	s.chunks.Reread()
	c := &checker{s: s, o: o, report: report}
	err := c.run(patient)
	if errors.Is(err, errGiveWay) {
		err = fmt.Errorf("check: not finished: the disk below %s is full, and what may free something goes first: %w", s.dir, ErrNoSpace)
	}
	err = errors.Join(err, s.damageStep())
	if err := s.tidyDamage(); err != nil {
		s.log.Warn("records of healed damage cannot be deleted", "err", err)
	}
	return err
}

// CheckStopped is Check for a store that no daemon has open (ErrLocked otherwise). It
// changes nothing.
func CheckStopped(ctx context.Context, fsys vfs.FS, dir string, o CheckOptions, report func(Problem)) error {
	lock, err := fsys.Lock(path.Join(dir, "lock"))
	if err != nil {
		return fmt.Errorf("check store %s: %w", dir, err)
	}
	s := stoppedStore(fsys, dir, lock, Options{Workers: o.Workers})
	defer s.closeFiles()
	if err := s.openReadOnly(); err != nil {
		return err
	}
	c := &checker{s: s, o: o, report: report, stopped: true}
	return c.run(ctx)
}

// stoppedStore is the memory of a store that nobody serves.
func stoppedStore(fsys vfs.FS, dir string, lock io.Closer, o Options) *Store {
	s := &Store{fsys: fsys, dir: dir, o: o.withDefaults(), lock: lock, census: newCensus()}
	s.log = s.o.Logger
	s.mu.volumes = make(map[string]*Volume)
	s.sched.init()
	s.coll.turn = newTurn()
	return s
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
	if err := s.openChunks(dedup.Options{ReadOnly: true}); err != nil {
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
	stopped bool // the store is: damage records that are not true any more are findings
	damaged map[dedup.ChunkID]map[uint16]dedup.Damage
	mends   []mend // that put findings of the catalog right
	// unread: the record of a volume or a snapshot cannot be, so nobody knows what it
	// names. What seems to have no name, or too many, may be all that it has.
	unread bool
}

// bad reports a finding of the catalog and, if there is one, what puts it right.
func (c *checker) bad(key string, m *mend, format string, args ...any) {
	detail := fmt.Sprintf(format, args...)
	if m != nil {
		m.detail = detail
		c.mends = append(c.mends, *m)
	}
	c.report(Problem{Kind: "catalog", Detail: key + ": " + detail, Repairable: m != nil})
}

// ifAllRead is m, for what follows from the records of all volumes and snapshots.
func (c *checker) ifAllRead(m *mend) *mend {
	if c.unread {
		return nil
	}
	return m
}

func (c *checker) run(ctx context.Context) error {
	s := c.s
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
	c.staleDamage(view)
	if err := c.maps(ctx, images); err != nil {
		return err
	}
	if err := c.mapped(ctx, view); err != nil {
		return err
	}
	return c.journals(ctx, images)
}

// records verifies the catalog's records against each other and lists the images.
func (c *checker) records(view catalog.View) []image {
	names := make(map[string]int) // of cuts
	images := append(c.volumes(view, names), c.snapshots(view, names)...)
	c.cuts(view, names)
	c.reservations(view, keyVolumeName, keyVolume)
	c.reservations(view, keySnapshotName, keySnapshot)
	c.attachments(view)
	c.publications(view)
	return images
}

// volumes verifies the records of volumes and counts the cuts that they name.
func (c *checker) volumes(view catalog.View, names map[string]int) (images []image) {
	for _, e := range view.Scan(keyVolume, "", 0) {
		id := strings.TrimPrefix(e.Key, keyVolume)
		var rec volumeRecord
		if err := decode(e, &rec); err != nil {
			c.bad(e.Key, nil, "%v", err)
			c.unread = true
			continue
		}
		if !rec.Deleted {
			c.name(view, e.Key, keyVolumeName+rec.Name, id)
		}
		if rec.Size < MinVolumeSize || rec.Size > MaxVolumeSize || rec.Size%SizeStep != 0 {
			c.bad(e.Key, nil, "size %d cannot be", rec.Size)
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
	return images
}

// snapshots is volumes for the records of snapshots.
func (c *checker) snapshots(view catalog.View, names map[string]int) (images []image) {
	for _, e := range view.Scan(keySnapshot, "", 0) {
		id := strings.TrimPrefix(e.Key, keySnapshot)
		var rec snapshotRecord
		if err := decode(e, &rec); err != nil {
			c.bad(e.Key, nil, "%v", err)
			c.unread = true
			continue
		}
		c.name(view, e.Key, keySnapshotName+rec.Name, id)
		names[rec.Cut]++
		var cut cutRecord
		if _, err := get(view, keyCut+rec.Cut, &cut); err != nil {
			c.bad(e.Key, nil, "its cut: %v", err)
			continue
		}
		images = append(images, image{snapshot: id, name: rec.Name, size: cut.Size}.at(view, cut))
	}
	return images
}

// cuts verifies the records of cuts, given how many records name each.
func (c *checker) cuts(view catalog.View, names map[string]int) {
	for _, e := range view.Scan(keyCut, "", 0) {
		id := strings.TrimPrefix(e.Key, keyCut)
		var cut cutRecord
		if err := decode(e, &cut); err != nil {
			c.bad(e.Key, nil, "%v", err)
			continue
		}
		switch n := names[id]; {
		case n == 0:
			c.bad(e.Key, c.ifAllRead(remove(e.Key)), "nobody names it")
		case n != cut.Names:
			c.bad(e.Key, c.ifAllRead(recount(e.Key, n)), "says that %d records name it, but %d do", cut.Names, n)
		}
		if _, ok := view.Get(keyVolume + cut.Volume); cut.Pending && !ok {
			c.bad(e.Key, nil, "waits for volume %s, which is gone", cut.Volume)
		}
		delete(names, id)
	}
	for _, id := range slices.Sorted(maps.Keys(names)) {
		c.bad(keyCut+id, nil, "is gone, but %d records name it", names[id])
	}
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
func (c *checker) publications(view catalog.View) {
	for e := range view.All(keyPublish) {
		id := strings.TrimPrefix(e.Key, keyPublish)
		var p Publication
		if err := decode(e, &p); err != nil {
			c.bad(e.Key, nil, "%v", err)
		}
		var rec volumeRecord
		switch _, err := get(view, keyVolume+id, &rec); {
		case errors.Is(err, ErrNotFound):
			c.bad(e.Key, remove(e.Key), "is of no volume")
		case err == nil && rec.Deleted: // what cannot be read is reported already
			c.bad(e.Key, remove(e.Key), "is of a deleted volume")
		}
	}
}

// attachments verifies that what is attached is there. One of no volume is cleared by the
// next start of a daemon, which has a device to look for.
func (c *checker) attachments(view catalog.View) {
	for e := range view.All(keyAttach) {
		id := strings.TrimPrefix(e.Key, keyAttach)
		var a Attachment
		if err := decode(e, &a); err != nil {
			c.bad(e.Key, nil, "%v", err)
		} else if a.Volume != id {
			c.bad(e.Key, nil, "says that it is of volume %s", a.Volume)
		}
		if _, ok := view.Get(keyVolume + id); !ok {
			c.bad(e.Key, nil, "is of no volume")
		}
	}
}

// name verifies that the name of a record is reserved for it.
func (c *checker) name(view catalog.View, key, nameKey, id string) {
	owner, err := nameOwner(view, nameKey)
	switch {
	case owner == id:
	case owner != "":
		c.bad(key, nil, "its name belongs to %s", owner)
	case err != nil:
		c.bad(key, reserveName(nameKey, id), "its name: %v", err)
	default:
		c.bad(key, reserveName(nameKey, id), "its name is reserved for what does not have it")
	}
}

// reservations verifies that every name reserved is that of a record.
func (c *checker) reservations(view catalog.View, prefix, records string) {
	for e := range view.All(prefix) {
		owner, err := nameOwner(view, e.Key)
		switch {
		case owner != "":
		case err != nil:
			c.bad(e.Key, c.ifAllRead(removeName(e.Key)), "%v", err)
		default:
			c.bad(e.Key, removeName(e.Key), "is reserved for a %s that is gone or has another name", strings.TrimSuffix(records, "/"))
		}
	}
}

// files verifies every chunk file.
func (c *checker) files(ctx context.Context) error {
	found := make(map[string][]dedup.Problem)
	for _, p := range c.s.chunks.Problems() {
		found[p.File] = append(found[p.File], p)
	}
	files := c.s.chunks.Files()
	var done, total int64
	for _, f := range files {
		total += f.Size
	}
	var ended error
	for _, f := range files {
		if ended = ctx.Err(); ended != nil {
			break
		}
		if c.o.Progress != nil {
			c.o.Progress(done, total)
		}
		err := c.s.chunks.VerifyFile(f.Name, c.o.ReadData, func(p dedup.Problem) { found[p.File] = append(found[p.File], p) })
		if err != nil && !errors.Is(err, vfs.ErrNotExist) { // else it was collected meanwhile
			return fmt.Errorf("check %s: %w", f.Name, err)
		}
		done += f.Size
	}
	if c.o.Progress != nil && ended == nil {
		c.o.Progress(total, total)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if err := c.file(name, found[name]); err != nil {
			return err
		}
	}
	return ended
}

// file reports what was found in a chunk file, and whether a repair would better it.
func (c *checker) file(name string, found []dedup.Problem) error {
	repairable, err := c.s.chunks.Repairable(name)
	if err != nil && !errors.Is(err, vfs.ErrNotExist) {
		return fmt.Errorf("check %s: %w", name, err)
	}
	for _, p := range found {
		c.report(Problem{Kind: "chunk-file", File: path.Join(c.s.dir, dirChunks, p.File), Offset: p.Offset, Detail: p.Text, Repairable: repairable})
	}
	return nil
}

// staleDamage reports damage records of slots that were just read whole. A running store
// deletes them after the check.
func (c *checker) staleDamage(view catalog.View) {
	if !c.stopped || !c.o.ReadData {
		return
	}
	for e := range view.All(keyDamage) {
		slot, ok := parseDamageKey(e.Key)
		if _, bad := c.damaged[slot.Chunk][slot.Slot]; ok && !bad {
			c.report(Problem{Kind: "damage", Detail: e.Key + ": is recorded as damaged, but reads whole", Repairable: true})
		}
	}
}

// mapped verifies the counts of mapped blocks of volumes and cuts whose maps can be read.
func (c *checker) mapped(ctx context.Context, view catalog.View) error {
	counter := c.s.tree.NewCounter()
	counter.Breathe = ctx.Err
	compare := func(key string, root dedup.Slot, says int64) error {
		n, err := counter.Mapped(root)
		if _, unread := errors.AsType[*blockmap.NodeError](err); unread {
			return ctx.Err() // it is reported with the maps
		}
		if err == nil && n != says {
			c.bad(key, setMapped(key, root, n), "says that %d blocks are mapped, but %d are", says, n)
		}
		return err
	}
	for e := range view.All(keyVolume) {
		var rec volumeRecord
		if decode(e, &rec) == nil && rec.Cut == "" {
			if err := compare(e.Key, rec.Root.slot(), rec.Mapped); err != nil {
				return err
			}
		}
	}
	for e := range view.All(keyCut) {
		var cut cutRecord
		if decode(e, &cut) == nil && !cut.Pending {
			if err := compare(e.Key, cut.Root.slot(), cut.Mapped); err != nil {
				return err
			}
		}
	}
	return nil
}

// maps verifies that every image's map can be read and that its slots are there. Nodes
// that images share are read once; only if something is wrong below one of them is
// each image walked by itself, to say what it hits.
func (c *checker) maps(ctx context.Context, images []image) error {
	seen := make(map[dedup.Slot]bool)
	wrong := false
	for _, img := range images {
		if err := c.walk(ctx, img, seen, func(Problem) bool { wrong = true; return true }); err != nil {
			return err
		}
	}
	if !wrong {
		return nil
	}
	for _, img := range images {
		runs := problemRuns{report: c.report}
		err := c.walk(ctx, img, make(map[dedup.Slot]bool), func(p Problem) bool {
			return runs.add(img.of(p))
		})
		if runs.end(); err != nil {
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

// walk verifies one image but for the nodes seen before, and enters those that it reads;
// found returns false to end it. Nothing else does but the end of ctx, which is returned:
// what cannot be read is a problem too.
func (c *checker) walk(ctx context.Context, img image, seen map[dedup.Slot]bool, found func(Problem) bool) error {
	tell := func(p Problem) error {
		if !found(p) {
			return errEnough
		}
		return nil
	}
	ended := ctx.Err()
	if ended != nil {
		return ended
	}
	c.s.tree.Walk(img.root, func(node dedup.Slot, level int, extents []blockmap.Extent) (bool, error) {
		seen[node] = true
		if ended = ctx.Err(); ended != nil {
			return false, ended
		}
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
	}, blockmap.WalkOptions{Skip: func(node dedup.Slot) bool { return seen[node] }, OnError: func(node dedup.Slot, first, end uint64, err error) error {
		p := Problem{Kind: "map", Start: int64(first) * BlockSize, Length: nodeBytes(first, end, img.size), Detail: fmt.Sprintf("node %s of blocks from %d on cannot be read: %v", node, first, err)}
		var de *dedup.DamageError
		if errors.As(err, &de) {
			p.File, p.Offset = path.Join(c.s.dir, dirChunks, de.File), de.Offset
		}
		return tell(p)
	}})
	return ended
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
	for _, v := range c.s.loadedVolumes() {
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
