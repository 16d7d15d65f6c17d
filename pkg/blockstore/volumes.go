package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
)

// CreateVolume makes a volume: empty, or with the image of a snapshot or of another
// volume as it is at the call (I4: the source's later writes are not seen). It costs
// one commit whatever the size. ErrExists if the name is taken, ErrNotFound for the
// source, ErrInvalid and ErrRange for what cannot be had, ErrNoSpace when the disk has
// nothing left beside the reserve.
func (s *Store) CreateVolume(spec VolumeSpec) (VolumeInfo, error) {
	if err := checkSpec(&spec); err != nil {
		return VolumeInfo{}, err
	}
	if err := s.checkAdmission(); err != nil {
		return VolumeInfo{}, err
	}
	id := s.newID('v')
	var err error
	if spec.FromVolume != "" {
		err = s.cloneVolume(id, spec)
	} else {
		_, err = s.update(func(view catalog.View) ([]catalog.Op, error) {
			if spec.FromSnapshot != "" {
				return restoreOps(view, id, spec, s.newRecord(spec))
			}
			rec := s.newRecord(spec)
			rec.Size, rec.State = spec.SizeBytes, StateEmpty
			return volumeOps(view, id, rec)
		})
	}
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("create volume: %w", err)
	}
	return s.Volume(id)
}

// checkSpec refuses what no volume can have and rounds the size up.
func checkSpec(spec *VolumeSpec) error {
	if err := checkName("volume", spec.Name); err != nil {
		return err
	}
	if spec.FromSnapshot != "" && spec.FromVolume != "" {
		return fmt.Errorf("a volume cannot have a snapshot and a volume as its source: %w", ErrInvalid)
	}
	source := spec.FromSnapshot != "" || spec.FromVolume != ""
	if spec.FromSnapshot != "" {
		if err := checkID('s', spec.FromSnapshot); err != nil {
			return err
		}
	}
	if spec.FromVolume != "" {
		if err := checkID('v', spec.FromVolume); err != nil {
			return err
		}
	}
	if spec.SizeBytes != 0 || !source {
		size, err := roundSize(spec.SizeBytes)
		if err != nil {
			return err
		}
		spec.SizeBytes = size
	}
	switch spec.SectorBytes {
	case 0, 512, 4096:
	default:
		return fmt.Errorf("sector of %d bytes: 512 and 4096 are allowed: %w", spec.SectorBytes, ErrInvalid)
	}
	switch spec.Compression {
	case "", "zstd", "s2", "none":
	default:
		return fmt.Errorf("compression %q: zstd, s2 and none are allowed: %w", spec.Compression, ErrInvalid)
	}
	if spec.OnFull == "" {
		return nil
	}
	return checkOnFull(spec.OnFull)
}

// roundSize rounds a size up to SizeStep; ErrRange outside the limits.
func roundSize(size int64) (int64, error) {
	if size <= 0 {
		return 0, fmt.Errorf("size of %d bytes: %d to %d are allowed: %w", size, MinVolumeSize, int64(MaxVolumeSize), ErrRange)
	}
	if size > MaxVolumeSize {
		return 0, fmt.Errorf("size of %d bytes: at most %d (64 TiB) are allowed: %w", size, int64(MaxVolumeSize), ErrRange)
	}
	return max(roundUp(size, SizeStep), MinVolumeSize), nil
}

// checkAdmission refuses new volumes when only the reserve is left.
func (s *Store) checkAdmission() error {
	s.mu.Lock()
	full, closed := s.mu.full, s.mu.closed
	s.mu.Unlock()
	if closed {
		return fmt.Errorf("store %s: %w", s.dir, ErrClosed)
	}
	if full {
		return fmt.Errorf("no new volume: the disk below %s is full; delete volumes or snapshots, or grow it: %w", s.dir, ErrNoSpace)
	}
	return nil
}

// newRecord is a volume's record as far as the request alone says.
func (s *Store) newRecord(spec VolumeSpec) volumeRecord {
	rec := volumeRecord{
		Name: spec.Name, Created: s.o.Now().UTC(), Sector: spec.SectorBytes,
		Compression: spec.Compression, OnFull: spec.OnFull, Labels: spec.Labels,
	}
	rec.inherit(512, "zstd", OnFullWait)
	return rec
}

// inherit fills what the request left open.
func (r *volumeRecord) inherit(sector int, compression, onFull string) {
	if r.Sector == 0 {
		r.Sector = sector
	}
	if r.Compression == "" {
		r.Compression = compression
	}
	if r.OnFull == "" {
		r.OnFull = onFull
	}
}

// volumeOps makes a volume's record and reserves its name.
func volumeOps(view catalog.View, id string, rec volumeRecord, more ...catalog.Op) ([]catalog.Op, error) {
	var taken nameRecord
	if _, err := get(view, keyVolumeName+rec.Name, &taken); err == nil {
		return nil, fmt.Errorf("volume %q is %s: %w", rec.Name, taken.ID, ErrExists)
	} else if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return append(more,
		put(keyVolume+id, rec, catalog.ExpectAbsent),
		put(keyVolumeName+rec.Name, nameRecord{id}, catalog.ExpectAbsent)), nil
}

// source is what a new volume starts from.
type source struct {
	id          string
	size        int64
	sector      int
	compression string
	onFull      string
	state       VolumeState
	fsType      string
}

// startAt sizes rec by the source and gives it the source's state, so that a copy of a
// volume without a filesystem can get one: as used it could never be mounted.
//
// I11 asks that this state is not behind the image, which is the one at the mark, taken
// before the commit that reads the state. Whatever is in the image was written before the
// mark, in a state that was durable before the write: formatting before mkfs, used before
// the first mount and before any raw use. States only go forward and a commit sees every
// state that was durable before it, so it sees that one or a later one:
//
//   - Nothing moved between mark and commit: the state is the one that the image was
//     written in. An empty copy has never been written to; in a formatting one there is at
//     most what a mkfs left, over which mkfs may run again, as after a crash of the source's.
//   - It moved before the mark: the commit sees it.
//   - It moved between mark and commit: it is ahead of the image. That keeps I11, but from
//     formatting to used it would leave a used copy with half a filesystem. So withCut marks
//     again, and the state is always that at the mark.
//
// A snapshot keeps the state of its own commit, by the same argument, and its image never
// changes (I4).
func (r *volumeRecord) startAt(src source, spec VolumeSpec) error {
	r.Size = spec.SizeBytes
	if r.Size == 0 {
		r.Size = src.size
	}
	if r.Size < src.size {
		return fmt.Errorf("size of %d bytes is below the source's %d: %w", r.Size, src.size, ErrRange)
	}
	if spec.SectorBytes != 0 && spec.SectorBytes != src.sector {
		return fmt.Errorf("sector of %d bytes: the source has %d, which cannot change: %w", spec.SectorBytes, src.sector, ErrInvalid)
	}
	r.Sector, r.Compression, r.OnFull = spec.SectorBytes, spec.Compression, spec.OnFull
	r.inherit(src.sector, src.compression, src.onFull)
	r.Source, r.FSType = src.id, src.fsType
	r.State = src.state
	return nil
}

// restoreOps makes a volume out of a snapshot.
func restoreOps(view catalog.View, id string, spec VolumeSpec, rec volumeRecord) ([]catalog.Op, error) {
	var snap snapshotRecord
	if _, err := get(view, keySnapshot+spec.FromSnapshot, &snap); err != nil {
		return nil, err
	}
	var cut cutRecord
	ce, err := get(view, keyCut+snap.Cut, &cut)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s has lost its cut: %w", spec.FromSnapshot, errors.Join(ErrCorrupt, err))
	}
	src := source{spec.FromSnapshot, snap.Size, snap.Sector, snap.Compression, snap.OnFull, snap.State, snap.FSType}
	if err := rec.startAt(src, spec); err != nil {
		return nil, err
	}
	var more []catalog.Op
	if cut.Pending {
		cut.Names++
		rec.Cut = snap.Cut
		more = append(more, put(keyCut+snap.Cut, cut, ce.Revision))
	} else {
		rec.Root, rec.Mapped = cut.Root, cut.Mapped
	}
	return volumeOps(view, id, rec, more...)
}

// cloneWait is how long a clone waits for folds of its source that must come first.
const cloneWait = 30 * time.Second

// cloneVolume makes a volume out of another one's present image.
func (s *Store) cloneVolume(id string, spec VolumeSpec) error {
	ctx, cancel := context.WithTimeout(context.Background(), cloneWait)
	defer cancel()
	return s.withCut(ctx, spec.FromVolume, func(view catalog.View, c cutPoint) ([]catalog.Op, error) {
		rec := s.newRecord(spec)
		src := source{spec.FromVolume, c.rec.Size, c.rec.Sector, c.rec.Compression, c.rec.OnFull, c.rec.State, c.rec.FSType}
		if err := rec.startAt(src, spec); err != nil {
			return nil, err
		}
		if !c.cut.Pending {
			rec.Root, rec.Mapped = c.cut.Root, c.cut.Mapped
			return volumeOps(view, id, rec)
		}
		rec.Cut = c.id
		c.cut.Names = 1
		return volumeOps(view, id, rec, put(keyCut+c.id, c.cut, catalog.ExpectAbsent))
	})
}

// DeleteVolume removes a volume; its name is free at once, its space returns with
// collections. Snapshots and clones of it live on. ErrInUse while it is open.
func (s *Store) DeleteVolume(id string) error {
	if err := checkID('v', id); err != nil {
		return err
	}
	v, owes, err := s.startDelete(id)
	if err != nil {
		return err
	}
	var rec volumeRecord
	var source string // the volume of the cut that it starts at
	_, err = s.update(func(view catalog.View) (ops []catalog.Op, err error) {
		ops, rec, err = deleteOps(view, id, owes)
		source = cutVolume(view, rec.Cut)
		return ops, err
	})
	s.endDelete(id, v, err)
	if err != nil {
		return fmt.Errorf("delete volume: %w", err)
	}
	if !s.census.named(rec.Root.slot()) {
		s.addGarbage(rec.Mapped * BlockSize)
	}
	s.letGo(s.loaded(source))
	s.sched.kickFold()
	s.sched.announceFold() // who waits for a fold of it is told
	return nil
}

// startDelete makes sure that nobody opens the volume meanwhile. owes tells that a cut
// may still get its root from the volume's journal: one that a layer ends at, or one of a
// journal that could not be read back, which may be possible another time.
func (s *Store) startDelete(id string) (v *Volume, owes bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.deleting[id] {
		return nil, false, fmt.Errorf("volume %s is being deleted: %w", id, ErrBusy)
	}
	v = s.mu.volumes[id]
	if v != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.mu.gone {
			return nil, false, fmt.Errorf("volume %s: %w", id, ErrNotFound)
		}
		if v.inUse() {
			return nil, false, fmt.Errorf("volume %s is attached: detach it first: %w", id, ErrInUse)
		}
		owes = owesCut(v.mu.layers) || v.mu.unfoldable
		v.mu.deleted = true
	}
	s.mu.deleting[id] = true
	return v, owes, nil
}

// endDelete ends a deletion: it forgets the volume's memory and journal, as far as nothing
// needs them, or all about the deletion if it could not be committed.
func (s *Store) endDelete(id string, v *Volume, err error) {
	s.mu.Lock()
	delete(s.mu.deleting, id)
	if v != nil {
		v.mu.Lock()
		v.mu.deleted, v.mu.gone = err == nil, err == nil
		v.mu.Unlock()
	}
	s.mu.Unlock()
	s.letGo(v)
}

// letGo forgets a deleted volume once no cut waits for its journal: memory, journal and,
// where it was kept for a cut, the record. nil is a volume that has no memory. A volume that is being folded is let go of after
// that, whatever becomes of the fold. What cannot be committed is tried again by the next
// fold, deletion or start.
func (s *Store) letGo(v *Volume) {
	if v == nil {
		return
	}
	v.mu.RLock()
	gone := v.mu.gone && !v.mu.folding && !slices.ContainsFunc(v.mu.layers, func(l *layer) bool { return l.hold > 0 })
	v.mu.RUnlock()
	if !gone {
		return
	}
	forget := func(view catalog.View) ([]catalog.Op, error) {
		if err := owesNothing(view, v); err != nil {
			return nil, err
		}
		var rec volumeRecord
		e, err := get(view, keyVolume+v.id, &rec)
		if errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		return []catalog.Op{del(keyVolume+v.id, e.Revision)}, err
	}
	err := s.onReserve(func() error {
		_, err := s.update(forget)
		return err
	})
	if err != nil {
		if !errors.Is(err, errOwes) {
			s.log.Warn("deleted volume cannot be forgotten", "volume_id", v.id, "err", err)
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.folding { // began meanwhile, and uses what would be thrown away: its end comes back here
		return
	}
	v.discard()
	if s.mu.volumes[v.id] == v {
		delete(s.mu.volumes, v.id)
	}
}

// errOwes says that a cut still waits for its root from a deleted volume's journal.
var errOwes = errors.New("a cut waits for it")

// owesNothing is errOwes if a cut waits for its root from the volume's journal.
func owesNothing(view catalog.View, v *Volume) error {
	v.mu.RLock()
	unfoldable := v.mu.unfoldable
	var ids []string
	for _, l := range v.mu.layers {
		ids = append(ids, l.cuts...)
	}
	v.mu.RUnlock()
	if unfoldable { // the layers do not tell of all
		cuts, err := pendingCuts(view)
		if err == nil && len(cuts[v.id]) > 0 {
			err = errOwes
		}
		return err
	}
	for _, id := range ids {
		if _, ok := view.Get(keyCut + id); ok {
			return errOwes
		}
	}
	return nil
}

// deleteOps removes the record and the name; a volume whose journal owes a cut its root
// stays as deleted until the fold.
func deleteOps(view catalog.View, id string, owes bool) (ops []catalog.Op, rec volumeRecord, err error) {
	e, err := get(view, keyVolume+id, &rec)
	if err != nil {
		return nil, rec, err
	}
	if rec.Deleted {
		return nil, rec, fmt.Errorf("volume %s: %w", id, ErrNotFound)
	}
	ops = append(ops, del(keyVolumeName+rec.Name, catalog.ExpectAny))
	if rec.Cut != "" {
		var cut cutRecord
		ce, err := get(view, keyCut+rec.Cut, &cut)
		if err == nil {
			ops = append(ops, unname(rec.Cut, cut, ce.Revision))
		} else if !errors.Is(err, ErrNotFound) {
			return nil, rec, err
		}
	}
	for _, kind := range []string{keyAttach, keyPublish} { // nobody asks for them any more
		if _, ok := view.Get(kind + id); ok {
			ops = append(ops, del(kind+id, catalog.ExpectAny))
		}
	}
	if owes {
		rec.Deleted = true
		return append(ops, put(keyVolume+id, rec, e.Revision)), rec, nil
	}
	return append(ops, del(keyVolume+id, e.Revision)), rec, nil
}

// cutVolume is the ID of the volume that a cut is of; empty if there is no such cut.
func cutVolume(view catalog.View, id string) string {
	var cut cutRecord
	get(view, keyCut+id, &cut) // what cannot be read tells nothing
	return cut.Volume
}

// ResizeVolume grows a volume, open or not; the new part is a hole. ErrRange for less
// than it has. With the size that it has already it does nothing.
func (s *Store) ResizeVolume(id string, size int64) (VolumeInfo, error) {
	if err := checkID('v', id); err != nil {
		return VolumeInfo{}, err
	}
	size, err := roundSize(size)
	if err != nil {
		return VolumeInfo{}, err
	}
	err = s.updateVolume(id, func(rec *volumeRecord) error {
		if size < rec.Size {
			return fmt.Errorf("size of %d bytes is below the present %d: volumes only grow: %w", size, rec.Size, ErrRange)
		}
		rec.Size = size
		return nil
	})
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("resize volume: %w", err)
	}
	if v := s.loaded(id); v != nil {
		for old := v.size.Load(); old < size && !v.size.CompareAndSwap(old, size); old = v.size.Load() {
		}
	}
	return s.Volume(id)
}

// SetVolumeState moves a volume on from empty to formatting to used (I11), durably; a
// step back is ErrInvalid. fsType is kept unless it is empty.
func (s *Store) SetVolumeState(id string, state VolumeState, fsType string) error {
	order := map[VolumeState]int{StateEmpty: 1, StateFormatting: 2, StateUsed: 3}
	if order[state] == 0 {
		return fmt.Errorf("volume state %q: empty, formatting and used are allowed: %w", state, ErrInvalid)
	}
	if err := checkID('v', id); err != nil {
		return err
	}
	return s.updateVolume(id, func(rec *volumeRecord) error {
		if order[state] < order[rec.State] {
			return fmt.Errorf("volume %s is %s and cannot become %s: %w", id, rec.State, state, ErrInvalid)
		}
		rec.State = state
		if fsType != "" {
			rec.FSType = fsType
		}
		return nil
	})
}

// updateVolume changes a volume's record in one commit.
func (s *Store) updateVolume(id string, fn func(*volumeRecord) error) error {
	_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
		var rec volumeRecord
		e, err := get(view, keyVolume+id, &rec)
		if err != nil {
			return nil, err
		}
		if rec.Deleted {
			return nil, fmt.Errorf("volume %s: %w", id, ErrNotFound)
		}
		if err := fn(&rec); err != nil {
			return nil, err
		}
		return []catalog.Op{put(keyVolume+id, rec, e.Revision)}, nil
	})
	return err
}

// Volume describes a volume by ID or name; ErrNotFound.
func (s *Store) Volume(idOrName string) (VolumeInfo, error) {
	id := idOrName
	view := s.cat.View() // one moment: the volume may be deleted meanwhile, its publication with it
	if !idPattern.MatchString(id) {
		var n nameRecord
		if _, err := get(view, keyVolumeName+idOrName, &n); err != nil {
			return VolumeInfo{}, err
		}
		id = n.ID
	}
	var rec volumeRecord
	if _, err := get(view, keyVolume+id, &rec); err != nil {
		return VolumeInfo{}, err
	}
	if rec.Deleted {
		return VolumeInfo{}, fmt.Errorf("volume %s: %w", id, ErrNotFound)
	}
	info := s.describe(id, rec)
	if e, ok := view.Get(keyPublish + id); ok {
		if p, ok := s.publication(e); ok {
			info.Publication = &p
		}
	}
	return info, nil
}

// describe tells all but the publication.
func (s *Store) describe(id string, rec volumeRecord) VolumeInfo {
	info := VolumeInfo{
		ID: id, Name: rec.Name, SizeBytes: rec.Size, SectorBytes: rec.Sector,
		Compression: rec.Compression, OnFull: rec.OnFull, State: rec.State, FSType: rec.FSType,
		Source: rec.Source, Labels: rec.Labels, Created: rec.Created, MappedBytes: rec.Mapped * BlockSize,
	}
	if rec.Cut != "" { // not resolved yet: the cut knows more
		var cut cutRecord
		if _, err := get(s.cat, keyCut+rec.Cut, &cut); err == nil {
			info.MappedBytes = cut.Mapped * BlockSize
		}
	}
	var att Attachment
	if _, err := get(s.cat, keyAttach+id, &att); err == nil {
		info.Device = att.Device
	}
	if v := s.loaded(id); v != nil {
		v.mu.RLock()
		info.Open = v.inUse()
		info.JournalBytes = v.unfolded()
		if since := v.mu.starved; !since.IsZero() {
			info.WaitingSince = &since
		}
		if v.mu.failed != nil {
			info.Failed = v.mu.failed.Error()
		}
		v.mu.RUnlock()
	}
	return info
}

// unfolded is how many bytes of journal wait for a fold. Called with v.mu held.
func (v *Volume) unfolded() (n int64) {
	for _, l := range v.mu.layers {
		if l.data {
			n += l.bytes
		}
	}
	return n
}
