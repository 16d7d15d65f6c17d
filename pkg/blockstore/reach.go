package blockstore

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/catalog"
)

// A journal that has lost its last segment, or has one back as it was earlier, looks like
// one that was never longer. So each volume's record says how far its journal has reached
// on the disk (Durable; FORMAT.md, section 5), and a start asks for that much.
//
// To note every flush there would cost each of them a commit. What must be known before a
// flush is answered is only that the journal reaches into the segment that the flush ends
// in, or past the position if that is behind its first record: without the segment the
// journal ends below. So it takes one commit for each segment, and now and then one more
// after a fold. The rest is noted within noteDelay, beside everything else.
//
// While a fold's commit is on its way, a start may find either position: the one that is
// durable (pos) or the one that the commit moves it to (passed). A flush must hold with
// both. One of records that the commit passes counts with the old position, for the commit
// may never become durable; if it needs a note, that waits for the commit, and a position
// that has passed the records makes the note needless.

// noteDue tells whether a flush of the records up to seq has to be noted before it is
// answered. Called with v.mu held.
func (v *Volume) noteDue(seq uint64) bool {
	known := max(v.mu.log.First(seq), v.mu.pos.Seq+1) // enough to miss the segment by
	if seq > v.mu.passed {
		known = max(known, v.mu.passed+1)
	}
	return known <= seq && v.mu.noted < known && (v.mu.noteRetry.IsZero() || !v.store.o.Now().Before(v.mu.noteRetry))
}

// noteRetryAfter is how long a catalog without room for a number is left alone.
const noteRetryAfter = time.Second

// note notes durably that the journal reaches seq, which is on the disk already. A full
// disk is no error: no flush waits for it (I9), and without the note the journal is as
// good, but for a file that goes bad as a whole.
func (v *Volume) note(seq uint64) error {
	err := v.store.noteReach(reached{v, seq})
	if errors.Is(err, ErrNoSpace) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.mu.noteRetry = v.store.o.Now().Add(noteRetryAfter)
		v.store.log.Warn("no space to note how far the journal reaches", "volume_id", v.id, "err", err)
		return nil
	}
	return err
}

// noteStep notes how far all journals reach that are not folded.
func (s *Store) noteStep() error { return s.noteJournals(s.loadedVolumes()) }

// noteJournals notes how far the journals of volumes reach that are not folded, when all
// of that is durable.
func (s *Store) noteJournals(vols []*Volume) error {
	var reach []reached
	for _, v := range vols {
		v.mu.RLock()
		if v.mu.failed == nil && v.mu.synced > max(v.mu.pos.Seq, v.mu.noted) {
			reach = append(reach, reached{v, v.mu.synced})
		}
		v.mu.RUnlock()
	}
	return s.noteReach(reach...)
}

// reached is a sequence that a volume's journal has reached on the disk.
type reached struct {
	v   *Volume
	seq uint64
}

// noteReach makes what journals have reached durable in their volumes' records, in one
// commit; volumes that are gone are left out.
func (s *Store) noteReach(reach ...reached) error {
	if len(reach) == 0 {
		return nil
	}
	_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
		var ops []catalog.Op
		for _, r := range reach {
			var rec volumeRecord
			e, err := get(view, keyVolume+r.v.id, &rec)
			switch {
			case errors.Is(err, ErrNotFound):
			case err != nil:
				return nil, err
			case r.seq > max(rec.Durable, rec.Position.Seq):
				rec.Durable = r.seq
				ops = append(ops, put(keyVolume+r.v.id, rec, e.Revision))
			}
		}
		return ops, nil
	})
	if err != nil {
		return fmt.Errorf("note how far journals reach: %w", err)
	}
	for _, r := range reach {
		r.v.mu.Lock()
		r.v.mu.noted, r.v.mu.noteRetry = max(r.v.mu.noted, r.seq), time.Time{}
		r.v.mu.Unlock()
	}
	return nil
}

// passing is called by the commit that moves the volume's position to seq, with what the
// record has said of the journal's reach: it returns what the new one says. From here on
// flushes of records behind seq count with the new position too, for the commit may become
// durable at any time; all that were answered before are in what is returned. Flushes up
// to seq go on counting with the old position until the commit is known to be durable: it
// may also never be.
func (v *Volume) passing(seq, durable uint64) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.passed = max(v.mu.passed, seq)
	reach := max(durable, v.mu.synced)
	if v.mu.unfoldable { // the journal went on, and nobody could read how far
		reach = max(reach, seq+1)
	}
	if reach > seq {
		return reach
	}
	return 0
}

// syncBehind makes durable what a recovery has read back behind seq and no sync has
// covered since. A fold calls it before its commit moves the position to seq: the process
// before may have flushed those records, and have noted only what is about to be passed.
// A volume that failed closed is left as it is.
func (v *Volume) syncBehind(seq uint64) error {
	v.mu.RLock()
	due := v.mu.failed == nil && v.mu.found > max(seq, v.mu.synced)
	v.mu.RUnlock()
	if !due {
		return nil
	}
	return v.syncJournal()
}

// reach is the sequence that the volume's journal must reach, given the cuts that wait
// for their root. A deleted volume owes these and nothing more.
func (r *volumeRecord) reach(cuts []pendingCut) (seq uint64) {
	if !r.Deleted {
		seq = r.Durable
	}
	if n := len(cuts); n > 0 {
		seq = max(seq, cuts[n-1].seq)
	}
	return seq
}

// missingJournals makes the volumes fail closed whose journals had reached beyond the
// position and have no segment any more, unless that is known of them.
func (s *Store) missingJournals(found map[string][]journal.Recovered) error {
	for _, e := range scanFor(s.cat.View(), keyVolume, `"durable":`) {
		var rec volumeRecord
		if err := decode(e, &rec); err != nil {
			return err
		}
		id := strings.TrimPrefix(e.Key, keyVolume)
		v := s.mu.volumes[id]
		if rec.reach(nil) > rec.Position.Seq && found[id] == nil && (v == nil || v.mu.failed == nil) {
			s.loseJournal(id, s.pool.Short(rec.Position.Seq, rec.Durable))
		}
	}
	return nil
}
