package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/k8ns/granary/pkg/catalog"
)

// cutPoint is a volume's image at one place of its journal, about to be named.
type cutPoint struct {
	id  string       // of the cut
	cut cutRecord    // Pending, or with the root; Names is 0
	rec volumeRecord // the volume's
}

// errMoved says that the volume's position or its state is no more what it was at the
// mark: mark again.
var errMoved = errors.New("volume moved past the mark")

// withCut marks a volume's journal, syncs it up to the mark and commits what ops makes
// of the cut. Writers wait for no longer than the mark takes.
//
// The layer that ends at the mark knows the cut from the mark on, and no fold of it
// begins before the cut is recorded. A fold that is running already either finds the
// cut's record when it commits, and gives it its root, or commits first: then the cut
// is recorded with that root. So a cut that is pending always stands above its
// volume's position.
//
// The volume's state at the commit is that at the mark, since it is the same as before the
// mark and only goes forward (startAt says what for).
func (s *Store) withCut(ctx context.Context, volumeID string, ops func(catalog.View, cutPoint) ([]catalog.Op, error)) error {
	id := s.newID('c')
	for {
		var before volumeRecord
		if _, err := get(s.cat, keyVolume+volumeID, &before); err != nil {
			return err
		}
		v, l, at, err := s.mark(ctx, volumeID, id, before.Position)
		if err != nil {
			return err
		}
		if l != nil {
			err = v.syncUpTo(at.Seq)
		}
		if err == nil {
			err = s.commitCut(volumeID, id, before.State, at, ops)
		}
		if l != nil {
			v.unhold(l, id, err == nil)
			s.sched.kickFold()
		}
		if !errors.Is(err, errMoved) {
			return err
		}
	}
}

// commitCut commits a cut at a position: pending if the volume has not been folded that
// far, with the volume's root if it has. errMoved if the volume has another state by now.
func (s *Store) commitCut(volumeID, id string, state VolumeState, at position, ops func(catalog.View, cutPoint) ([]catalog.Op, error)) error {
	_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
		c := cutPoint{id: id}
		if _, err := get(view, keyVolume+volumeID, &c.rec); err != nil {
			return nil, err
		}
		if c.rec.Deleted {
			return nil, fmt.Errorf("volume %s: %w", volumeID, ErrNotFound)
		}
		if c.rec.State != state {
			return nil, errMoved
		}
		c.cut = cutRecord{Volume: volumeID, Position: c.rec.Position, Size: c.rec.Size, Mapped: c.rec.Mapped}
		switch {
		case c.rec.Position.Seq < at.Seq:
			c.cut.Pending = true
			c.cut.Position = at
			c.cut.Mapped = 0
		case c.rec.Position.Seq > at.Seq:
			return nil, errMoved
		default:
			c.cut.Root = c.rec.Root
		}
		return ops(view, c)
	})
	return err
}

// mark ends the present layer of a volume. It returns the layer that ends at the mark,
// held for the cut, or nil when everything up to the mark is folded; and the mark's
// position. before is the volume's position some time before: one of which nothing is in
// memory is folded up to there, or farther, and then commitCut says so.
func (s *Store) mark(ctx context.Context, volumeID, cut string, before position) (*Volume, *layer, position, error) {
	if err := s.resolveCut(ctx, volumeID); err != nil {
		return nil, nil, position{}, err
	}
	for {
		folded := s.sched.folded()
		v := s.loaded(volumeID)
		if v == nil {
			return nil, nil, before, nil
		}
		l, at, err := v.hold(cut, s.o.MaxLayers)
		if !errors.Is(err, errWait) {
			return v, l, at, err
		}
		s.sched.kickFold()
		select {
		case <-folded:
		case <-ctx.Done():
			return nil, nil, position{}, fmt.Errorf("volume %s: %d snapshots wait to be folded: %w", volumeID, s.o.MaxLayers, ctx.Err())
		}
	}
}

// hold freezes the active layer, if it has anything, and holds the newest frozen one
// for a cut. errWait if too many layers wait for their fold.
func (v *Volume) hold(cut string, maxLayers int) (*layer, position, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.mu.failed != nil:
		return nil, position{}, fmt.Errorf("volume %s: %w: %w", v.id, ErrFailed, v.mu.failed)
	case v.mu.deleted:
		return nil, position{}, fmt.Errorf("volume %s: %w", v.id, ErrNotFound)
	}
	n := len(v.mu.layers)
	newest := v.mu.layers[n-1]
	switch {
	case newest.data && n > maxLayers:
		return nil, position{}, errWait
	case newest.data:
		v.freeze()
	case n > 1:
		newest = v.mu.layers[n-2]
	default:
		return nil, v.mu.pos, nil
	}
	newest.hold++
	newest.cuts = append(newest.cuts, cut)
	return newest, newest.end(), nil
}

// unhold ends a hold; a cut that was not recorded is forgotten.
func (v *Volume) unhold(l *layer, cut string, recorded bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	l.hold--
	if !recorded {
		l.cuts = slices.DeleteFunc(slices.Clone(l.cuts), func(id string) bool { return id == cut })
	}
}

// CreateSnapshot takes a snapshot of a volume as it is now: every write acknowledged
// before the call is in it, none begun after the return. It costs what a Flush costs and
// one commit; Ready follows with a fold in the background. ErrExists if the name is
// taken.
func (s *Store) CreateSnapshot(ctx context.Context, volumeID, name string, labels map[string]string) (SnapshotInfo, error) {
	if err := checkName("snapshot", name); err != nil {
		return SnapshotInfo{}, err
	}
	if err := checkID('v', volumeID); err != nil {
		return SnapshotInfo{}, err
	}
	if err := nameFree(s.cat, name); err != nil {
		return SnapshotInfo{}, fmt.Errorf("create snapshot: %w", err)
	}
	id := s.newID('s')
	err := s.withCut(ctx, volumeID, func(view catalog.View, c cutPoint) ([]catalog.Op, error) {
		if err := nameFree(view, name); err != nil {
			return nil, err
		}
		c.cut.Names = 1
		rec := snapshotRecord{
			Name: name, Created: s.o.Now().UTC(), Volume: volumeID, VolumeName: c.rec.Name,
			Size: c.rec.Size, Sector: c.rec.Sector, Compression: c.rec.Compression, OnFull: c.rec.OnFull,
			Cut: c.id, Labels: labels, State: c.rec.State, FSType: c.rec.FSType,
		}
		return []catalog.Op{
			put(keyCut+c.id, c.cut, catalog.ExpectAbsent),
			put(keySnapshot+id, rec, catalog.ExpectAbsent),
			put(keySnapshotName+name, nameRecord{id}, catalog.ExpectAbsent),
		}, nil
	})
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("create snapshot: %w", err)
	}
	return s.Snapshot(id)
}

func nameFree(g getter, name string) error {
	var n nameRecord
	_, err := get(g, keySnapshotName+name, &n)
	if err == nil {
		return fmt.Errorf("snapshot %q is %s: %w", name, n.ID, ErrExists)
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}

// WaitSnapshot returns when the snapshot is ready.
func (s *Store) WaitSnapshot(ctx context.Context, id string) (SnapshotInfo, error) {
	for {
		wait := s.sched.folded()
		info, cut, err := s.snapshot(id)
		if err != nil || info.Ready {
			return info, err
		}
		if err := s.cutLost(cut); err != nil {
			return info, fmt.Errorf("snapshot %s: %w", info.ID, err)
		}
		s.sched.kickFold()
		select {
		case <-wait:
		case <-ctx.Done():
			return info, fmt.Errorf("snapshot %s is not ready yet: %w", id, ctx.Err())
		}
	}
}

// DeleteSnapshot removes a snapshot; clones of it live on.
func (s *Store) DeleteSnapshot(id string) error {
	if err := checkID('s', id); err != nil {
		return err
	}
	var source string // its volume
	_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
		var rec snapshotRecord
		e, err := get(view, keySnapshot+id, &rec)
		if err != nil {
			return nil, err
		}
		source = cutVolume(view, rec.Cut)
		ops := []catalog.Op{del(keySnapshot+id, e.Revision), del(keySnapshotName+rec.Name, catalog.ExpectAny)}
		var cut cutRecord
		ce, err := get(view, keyCut+rec.Cut, &cut)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		if err == nil {
			ops = append(ops, unname(rec.Cut, cut, ce.Revision))
		}
		return ops, nil
	})
	if err != nil {
		return fmt.Errorf("delete snapshot: %w", err)
	}
	s.addGarbage(s.coll.share(s.census.figures().snapshots + 1))
	s.letGo(s.loaded(source))
	s.sched.announceFold() // who waits for it is told
	return nil
}

// Snapshot describes a snapshot by ID or name; ErrNotFound.
func (s *Store) Snapshot(idOrName string) (SnapshotInfo, error) {
	info, _, err := s.snapshot(idOrName)
	return info, err
}

// snapshot is Snapshot, with the snapshot's cut.
func (s *Store) snapshot(idOrName string) (info SnapshotInfo, cut string, err error) {
	id := idOrName
	view := s.cat.View() // one moment: it may be deleted meanwhile
	if !idPattern.MatchString(id) {
		var n nameRecord
		if _, err := get(view, keySnapshotName+idOrName, &n); err != nil {
			return SnapshotInfo{}, "", err
		}
		id = n.ID
	}
	var rec snapshotRecord
	if _, err := get(view, keySnapshot+id, &rec); err != nil {
		return SnapshotInfo{}, "", err
	}
	return describeSnapshot(view, id, rec), rec.Cut, nil
}

func describeSnapshot(g getter, id string, rec snapshotRecord) SnapshotInfo {
	info := SnapshotInfo{
		ID: id, Name: rec.Name, VolumeID: rec.Volume, VolumeName: rec.VolumeName,
		SizeBytes: rec.Size, Created: rec.Created, Labels: rec.Labels, FSType: rec.FSType,
	}
	var cut cutRecord
	if _, err := get(g, keyCut+rec.Cut, &cut); err == nil {
		info.Ready = !cut.Pending
		info.MappedBytes = cut.Mapped * BlockSize
	}
	return info
}
