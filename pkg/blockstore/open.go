package blockstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
)

func codecOf(compression string) dedup.Codec {
	switch compression {
	case "s2":
		return dedup.CodecS2
	case "none":
		return dedup.CodecRaw
	}
	return dedup.CodecZstd
}

// newVolume makes the memory of a volume from its record, without any journal.
func (s *Store) newVolume(id string, rec volumeRecord) *Volume {
	v := &Volume{store: s, id: id, raw: rawID(id), sector: rec.Sector, codec: codecOf(rec.Compression)}
	v.size.Store(rec.Size)
	v.onFull.Store(rec.OnFull)
	v.mu.layers = []*layer{layerFrom(rec.Position)}
	v.mu.root = rec.Root.slot()
	v.mu.pos = rec.Position
	v.mu.next = rec.Position.Seq + 1
	v.mu.appended, v.mu.synced = rec.Position.Seq, rec.Position.Seq
	v.mu.dataSeq, v.mu.marked = rec.Position.Seq, rec.Position.Seq
	v.mu.noted, v.mu.passed = rec.Durable, rec.Position.Seq
	v.mu.deleted, v.mu.gone = rec.Deleted, rec.Deleted
	v.mu.log = journal.NewLog(s.pool, v.raw, s.cat.Epoch(), s.cat.Durable)
	return v
}

// layerFrom is an empty layer behind a position.
func layerFrom(p position) *layer { return &layer{last: p.Seq, epoch: p.Epoch, log: p.Log} }

// end is the position of the layer's last record.
func (l *layer) end() position { return position{l.epoch, l.log, l.last} }

// freeze ends the active layer and begins another. Called with v.mu held.
func (v *Volume) freeze() {
	active := v.mu.layers[len(v.mu.layers)-1]
	v.mu.layers = append(v.mu.layers, layerFrom(active.end()))
}

// busy tells whether the volume has to stay in memory. Called with v.mu held.
func (v *Volume) busy() bool {
	if v.inUse() || v.mu.closing || len(v.mu.layers) > 1 || v.mu.folding || v.mu.failed != nil || v.mu.prep != nil {
		return true
	}
	active := v.mu.layers[0]
	return active.data || active.hold > 0 || active.last > v.mu.pos.Seq
}

// inUse tells whether somebody has the volume open. Called with v.mu held.
func (v *Volume) inUse() bool { return v.mu.open || v.mu.scratch != nil }

// OpenVolume opens a volume for reading and writing; ErrInUse if it is open already,
// ErrFailed if it failed closed, ErrNotFound. A volume that starts at a cut without a root
// waits for it.
func (s *Store) OpenVolume(ctx context.Context, id string) (*Volume, error) {
	if err := checkID('v', id); err != nil {
		return nil, err
	}
	if err := s.resolveCut(ctx, id); err != nil {
		return nil, err
	}
	v, err := s.claim(id, func(v *Volume) { v.mu.open = true })
	if err != nil {
		return nil, err
	}
	s.sched.kickPrepare()
	return v, nil
}

// claim gives a volume that nobody has open to whom take notes in it, and keeps it in
// memory from then on. take is called with v.mu held. Errors are those of OpenVolume.
func (s *Store) claim(id string, take func(v *Volume)) (*Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, fmt.Errorf("store %s: %w", s.dir, ErrClosed)
	}
	var rec volumeRecord
	if _, err := get(s.cat, keyVolume+id, &rec); err != nil {
		return nil, err
	}
	if rec.Deleted || s.mu.deleting[id] {
		return nil, fmt.Errorf("volume %s: %w", id, ErrNotFound)
	}
	v := s.mu.volumes[id]
	if v == nil {
		v = s.newVolume(id, rec)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.inUse():
		return nil, fmt.Errorf("volume %s is attached already: %w", id, ErrInUse)
	case v.mu.failed != nil:
		return nil, fmt.Errorf("volume %s: %w: %w", id, ErrFailed, v.mu.failed)
	}
	take(v)
	s.mu.volumes[id] = v
	return v, nil
}

// Close ends the use of an open volume: it syncs the journal; the fold follows in the
// background. Writes still waiting for room fail with ErrClosed; none is lost that was
// acknowledged.
func (v *Volume) Close() error {
	v.mu.Lock()
	if !v.mu.open {
		v.mu.Unlock()
		return fmt.Errorf("volume %s: %w", v.id, ErrClosed)
	}
	v.mu.open, v.mu.closing = false, true
	v.fed()
	var wait chan struct{}
	if n := len(v.mu.ops); n > 0 {
		last := v.mu.ops[n-1]
		if last.wait == nil {
			last.wait = make(chan struct{})
		}
		wait = last.wait
	}
	v.mu.Unlock()
	v.store.pool.Wake()
	if wait != nil {
		<-wait
	}
	err := v.finish()
	v.store.forget(v)
	v.store.sched.kickFold()
	return err
}

// shut is Close for whoever has the volume open, in whatever way.
func (v *Volume) shut() error {
	v.mu.RLock()
	c := v.mu.scratch
	v.mu.RUnlock()
	if c != nil {
		return c.Close()
	}
	return v.Close()
}

// forget drops a volume from memory that nothing keeps there.
func (s *Store) forget(v *Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.busy() || s.mu.volumes[v.id] != v {
		return
	}
	v.mu.log.Drop()
	delete(s.mu.volumes, v.id)
}

// loaded returns the volume's memory, nil if it has none: then its record says all.
func (s *Store) loaded(id string) *Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.volumes[id]
}

// loadedVolumes lists the volumes that have memory, by ID: one order for one state.
func (s *Store) loadedVolumes() []*Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.mu.volumes), byID)
}

// byID is the order of volumes' IDs.
func byID(a, b *Volume) int { return strings.Compare(a.id, b.id) }

// resolveCut gives a volume that starts at a cut the cut's root, waiting for it.
func (s *Store) resolveCut(ctx context.Context, id string) error {
	for {
		wait := s.sched.folded()
		done := true
		_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
			var err error
			var ops []catalog.Op
			done, ops, err = resolve(view, id)
			return ops, err
		})
		if err != nil || done {
			return err
		}
		if err := s.rootLost(id); err != nil {
			return err
		}
		s.sched.kickFold()
		select {
		case <-wait:
		case <-ctx.Done():
			return fmt.Errorf("volume %s waits for its source to be folded: %w", id, ctx.Err())
		}
	}
}

// rootLost tells why the cut that a volume starts at never gets its root: the journal
// that it stands in cannot be read back, or is gone.
func (s *Store) rootLost(id string) error {
	var rec volumeRecord
	if _, err := get(s.cat, keyVolume+id, &rec); err != nil || rec.Cut == "" {
		return err
	}
	if err := s.cutLost(rec.Cut); err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return nil
}

// cutLost is rootLost for a cut.
func (s *Store) cutLost(id string) error {
	var cut cutRecord
	for range 2 { // a volume without memory may have been folded since the record was read
		if _, err := get(s.cat, keyCut+id, &cut); err != nil || !cut.Pending {
			return ignoreNotFound(err)
		}
		if v := s.loaded(cut.Volume); v != nil {
			return v.journalLost(id)
		}
	}
	return fmt.Errorf("the journal of volume %s, from which it would get its data, is gone: %w", cut.Volume, ErrCorrupt)
}

// journalLost is cutLost for a cut that stands in the volume's journal.
func (v *Volume) journalLost(cut string) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	whole := slices.ContainsFunc(v.mu.layers, func(l *layer) bool { return slices.Contains(l.cuts, cut) })
	if v.mu.unfoldable && !whole {
		return fmt.Errorf("the journal of volume %s, from which it would get its data, cannot be read back: %w: %w", v.id, ErrFailed, v.mu.failed)
	}
	return nil
}

func ignoreNotFound(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// resolve makes the operations that end a volume's dependence on its cut; done is
// false while the cut has no root.
func resolve(view catalog.View, id string) (done bool, ops []catalog.Op, err error) {
	var rec volumeRecord
	e, err := get(view, keyVolume+id, &rec)
	if err != nil || rec.Cut == "" {
		return true, nil, err
	}
	var cut cutRecord
	ce, err := get(view, keyCut+rec.Cut, &cut)
	if err != nil {
		return true, nil, fmt.Errorf("volume %s starts at a cut that is gone: %w", id, errors.Join(ErrCorrupt, err))
	}
	if cut.Pending {
		return false, nil, nil
	}
	ops = append(ops, unname(rec.Cut, cut, ce.Revision))
	rec.Root, rec.Mapped, rec.Cut = cut.Root, cut.Mapped, ""
	return true, append(ops, put(keyVolume+id, rec, e.Revision)), nil
}

// unname takes one name from a cut, which goes with its last.
func unname(id string, cut cutRecord, revision uint64) catalog.Op {
	if cut.Names <= 1 {
		return del(keyCut+id, revision)
	}
	cut.Names--
	return put(keyCut+id, cut, revision)
}
