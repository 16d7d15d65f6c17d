package blockstore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
)

// foldGroupShift makes groups of 8 slots: 32 KiB, about 40 us to decode.
const foldGroupShift = 3

// errGone says that the volume was deleted while it was folded.
var errGone = errors.New("volume is gone")

// foldJob is one layer on its way into chunks. It works on a frozen layer up to its
// last sequence, never on part of one (a root always is the image at its position).
type foldJob struct {
	v     *Volume
	layer *layer
	root  dedup.Slot
	from  position // the volume's position before
	to    position // and after
	err   error    // of its commit

	durable uint64 // what the commit says of the journal's reach
}

// foldOnce folds the oldest layer of a volume that has one to fold, and tells whether
// it did. Safe for concurrent use; one fold of a volume runs at a time. On an error
// nothing has changed but for garbage in chunk files.
func (s *Store) foldOnce(v *Volume) (bool, error) { return s.foldTogether([]*Volume{v}) }

// foldTogether is foldOnce for several volumes of one compression, whose new blocks and
// nodes share chunks and syncs; each is committed by itself. What goes wrong before the
// commits goes wrong for all of them.
func (s *Store) foldTogether(vols []*Volume) (bool, error) {
	var jobs []*foldJob
	for _, v := range slices.SortedFunc(slices.Values(vols), byID) { // one order of locks
		v.foldMu.Lock()
		defer v.foldMu.Unlock()
		if job, ok := v.startFold(); ok {
			jobs = append(jobs, job)
		}
	}
	if len(jobs) == 0 {
		return false, nil
	}
	s.sched.folding.Add(1)
	defer s.sched.folding.Add(-1)
	if err := s.fold(jobs); err != nil {
		for _, job := range jobs {
			job.err = err
		}
	}
	var errs []error
	for _, job := range jobs {
		job.v.endFold(job.err)
		s.letGo(job.v)
		s.forget(job.v)
		if job.err != nil && !errors.Is(job.err, errGone) {
			errs = append(errs, fmt.Errorf("fold of volume %s: %w", job.v.id, job.err))
		}
	}
	if err := s.reserve.trim(); err != nil {
		s.log.Warn("reserve", "err", err)
	}
	if len(errs) < len(jobs) {
		s.sched.good.Add(1)
	}
	s.pool.Wake() // there may be room for a writer's record, if not a segment
	s.sched.announceFold()
	return len(errs) < len(jobs), errors.Join(errs...)
}

// startFold picks the oldest layer, freezing the active one if it is the only one.
func (v *Volume) startFold() (*foldJob, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	oldest := v.mu.layers[0]
	if !v.foldable() {
		return nil, false
	}
	if len(v.mu.layers) == 1 {
		if oldest.last <= v.mu.pos.Seq && !v.mu.deleted {
			return nil, false
		}
		v.freeze()
	}
	v.mu.folding = true
	return &foldJob{v: v, layer: oldest, root: v.mu.root, from: v.mu.pos, to: oldest.end()}, true
}

// foldable tells whether the oldest layer may be folded. Called with v.mu held.
func (v *Volume) foldable() bool {
	return v.mu.layers[0].hold == 0 && (len(v.mu.layers) > 1 || !v.mu.unfoldable)
}

// endFold ends a fold of the volume, which had err.
func (v *Volume) endFold(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.folding = false
	switch {
	case errors.Is(err, errGone):
		v.discard()
	case err != nil:
		v.mu.retry = v.store.o.Now().Add(time.Second)
		if unread, ok := errors.AsType[*unreadError](err); ok && unread.v == v {
			v.mu.tries++
		}
	}
}

// discard forgets every layer and journal segment of a deleted volume. Called with
// v.mu held.
func (v *Volume) discard() {
	v.mu.deleted = true
	v.payAll()
	v.mu.layers = []*layer{layerFrom(v.mu.pos)}
	v.mu.failed, v.mu.unfoldable = nil, false
	v.mu.log.Drop()
}

// payAll takes the debt of all layers from the store's. Called with v.mu held.
func (v *Volume) payAll() {
	for _, l := range v.mu.layers {
		v.store.reserve.pay(l.debt)
		l.debt = 0
	}
}

// fold runs jobs: blocks, maps, sync, commits, publication, in this order (I2). An error
// is everybody's; those of single commits are in the jobs.
func (s *Store) fold(jobs []*foldJob) error {
	end := s.gate.begin()
	defer end()
	w := s.chunks.NewWriter(jobs[0].v.codec, foldGroupShift)
	defer w.Close()
	folders := make([]*folder, len(jobs))
	for i, job := range jobs {
		folders[i] = &folder{s: s, job: job, w: w}
		if err := folders[i].gather(); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range folders {
		if err := f.remap(); err != nil {
			return err
		}
	}
	if err := w.FinishNodes(); err != nil {
		return err
	}
	if err := w.Sync(); err != nil {
		return err
	}
	healed := w.Healed()
	for _, f := range folders {
		root := f.root()
		if f.job.err = f.job.v.syncBehind(f.job.to.Seq); f.job.err != nil {
			continue
		}
		if f.job.err = s.commitFold(f.job, root, f.mapped(root), healed); f.job.err != nil {
			continue
		}
		f.job.v.publish(f.job, root)
		s.addGarbage(f.replaced() * BlockSize)
		s.forgetDamage(healed)
		healed = nil // its records went with this commit
	}
	return nil
}

// commitFold makes root the volume's image at the job's position, and the root of the
// cuts that stand there, in one commit that is conditional on the position before (I7).
// mapped gives the number of blocks mapped below root from the one below the root before.
func (s *Store) commitFold(job *foldJob, root dedup.Slot, mapped func(before int64) int64, healed []dedup.Slot) error {
	_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
		var rec volumeRecord
		e, err := get(view, keyVolume+job.v.id, &rec)
		if errors.Is(err, ErrNotFound) {
			return nil, errGone
		}
		if err != nil {
			return nil, err
		}
		if rec.Position != job.from {
			return nil, fmt.Errorf("volume %s is at %v in the catalog, at %v here: %w", job.v.id, rec.Position, job.from, ErrCorrupt)
		}
		var ops []catalog.Op
		after := mapped(rec.Mapped)
		cuts, last := job.v.owed(job.layer)
		for _, id := range cuts {
			var cut cutRecord
			ce, err := get(view, keyCut+id, &cut)
			if errors.Is(err, ErrNotFound) {
				continue // its last name went, or it is recorded after this commit
			}
			if err != nil {
				return nil, err
			}
			cut.Pending, cut.Root, cut.Mapped = false, refOf(root), after
			ops = append(ops, put(keyCut+id, cut, ce.Revision))
		}
		rec.Root, rec.Position, rec.Mapped = refOf(root), job.to, after
		rec.Durable = job.v.passing(job.to.Seq, rec.Durable)
		job.durable = rec.Durable
		if rec.Deleted && last {
			ops = append(ops, del(keyVolume+job.v.id, e.Revision))
		} else {
			ops = append(ops, put(keyVolume+job.v.id, rec, e.Revision))
		}
		for _, slot := range healed {
			key := damageKey(slot)
			if _, ok := view.Get(key); ok {
				ops = append(ops, del(key, catalog.ExpectAny))
			}
		}
		return ops, nil
	})
	return err
}

// owed lists the cuts of the layer being folded and tells whether nothing later has one: a
// part of the journal that could not be read back may.
func (v *Volume) owed(l *layer) (cuts []string, last bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Clone(l.cuts), !v.mu.unfoldable && !owesCut(v.mu.layers[1:])
}

func owesCut(layers []*layer) bool {
	return slices.ContainsFunc(layers, func(l *layer) bool { return len(l.cuts) > 0 || l.hold > 0 })
}

// publish makes the committed root the volume's base and trims overlay and journal.
func (v *Volume) publish(job *foldJob, root dedup.Slot) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.layers[0] != job.layer {
		return // it was deleted meanwhile
	}
	v.mu.root, v.mu.pos = root, job.to
	v.mu.noted = max(v.mu.noted, job.durable)
	v.mu.layers = v.mu.layers[1:]
	v.store.reserve.pay(job.layer.debt)
	if !v.mu.unfoldable { // else nobody knows what a segment holds
		v.mu.log.Trim(job.to.Seq)
	}
	v.mu.retry, v.mu.tries = time.Time{}, 0
	v.mu.oldest = time.Time{}
	for _, l := range v.mu.layers {
		if l.data {
			v.mu.oldest = v.store.o.Now()
		}
	}
	v.recovered()
}

// recovered lets a volume that failed closed be attached anew, once nobody has it open
// and all of its journal is folded, marks too: a segment that a sync failed on is let go
// of then, and never appended to again (I8). Called with v.mu held.
func (v *Volume) recovered() {
	if v.mu.failed != nil && !v.mu.unfoldable && !v.inUse() && len(v.mu.layers) == 1 && v.mu.layers[0].last <= v.mu.pos.Seq {
		v.mu.failed = nil
	}
}
