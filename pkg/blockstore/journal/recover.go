package journal

import (
	"fmt"
	"slices"
	"sort"

	"github.com/k8ns/granary/pkg/wal"
)

// Entry is one record read back from a journal.
type Entry struct {
	Record  wal.Record
	CRCs    []uint32
	Segment *Segment
	Payload int64 // file offset of the payload
}

// Cut tells how a recovery ended.
type Cut struct {
	Last   uint64 // highest sequence read (or the position it started from)
	Synced uint64 // highest synced mark seen
}

// Recover reads the logs of one volume from segments, calling apply for each record
// with a sequence above from, in order, and makes the segments that matter part of l;
// the others are let go. Entries of a log beyond the cut that a later log states are
// never applied: apply sees only what belongs to the volume.
//
// epoch and log are those of the record from. Logs before that one are over: one that
// a recovery cut may still have segments with records beyond the cut, in the pool, and
// the log that said where it was cut may be gone.
//
// reach is a sequence that the journal is known to have reached on the disk: one that
// ends before it, and does not only end there because all of it is folded, is
// wal.ErrCorrupt. A segment that is gone, or is one that it was before, shows in nothing
// else.
//
// A bad record that a synced mark proves to have been durable is wal.ErrCorrupt,
// naming file and offset; other bad records end the log (a torn tail). After an error
// every segment is part of l: nothing that may be evidence is used again.
func (l *Log) Recover(segments []Recovered, epoch, log, from, reach uint64, apply func(Entry) error) (Cut, error) {
	all := segments
	r := recovery{log: l, next: from + 1, cut: Cut{Last: from}, apply: apply}
	segments = slices.DeleteFunc(slices.Clone(segments), func(s Recovered) bool {
		over := s.Header.Epoch < epoch || s.Header.Epoch == epoch && s.Header.Log < log
		if over {
			r.unused = append(r.unused, s.Segment)
		}
		return over
	})
	err := r.readLogs(segments)
	if err == nil && r.cut.Last < reach {
		err = l.pool.Short(r.cut.Last, reach)
	}
	if err != nil {
		l.segs = l.segs[:0]
		l.Keep(all)
		return r.cut, err
	}
	for _, s := range r.unused {
		s.Release()
	}
	return r.cut, nil
}

// Short is the error of a journal that ends at one sequence and is known to have reached
// another.
func (p *Pool) Short(end, reach uint64) error {
	return fmt.Errorf("%s: the journal ends at sequence %d, but is known to have reached %d: a segment (.seg) is missing, older or damaged: %w",
		p.dir, end, reach, wal.ErrCorrupt)
}

// Keep makes segments part of l without reading them: they may be evidence.
func (l *Log) Keep(segments []Recovered) {
	for _, s := range segments {
		l.segs = append(l.segs, s.Segment)
	}
}

// readLogs reads one log after the other.
func (r *recovery) readLogs(segments []Recovered) error {
	sort.Slice(segments, func(i, j int) bool { return before(segments[i].Header, segments[j].Header) })
	if len(segments) > 0 {
		// The header that a log begins with is durable once what it builds on is.
		if first := segments[0]; first.Header.Number == 0 && first.Header.PrevEnd > r.cut.Last {
			return fmt.Errorf("%s says so: %w", first.Segment.Name(), r.log.pool.Short(r.cut.Last, first.Header.PrevEnd))
		}
	}
	for len(segments) > 0 {
		n := sameLog(segments)
		limit, stated := ^uint64(0), false
		if n < len(segments) {
			// A guess bounds what is read, and says of nothing that it was there: the record
			// behind it may be an unsynced one whose log's beginning was let go of.
			limit, stated = segments[n].Header.PrevEnd, segments[n].Header.Number != guessedNumber
		}
		if err := r.readLog(segments[:n], limit, stated); err != nil {
			return err
		}
		last := segments[n-1].Header
		r.log.prev = prevLog{epoch: last.Epoch, log: last.Log}
		segments = segments[n:]
	}
	return nil
}

func before(a, b Header) bool {
	if a.Epoch != b.Epoch {
		return a.Epoch < b.Epoch
	}
	if a.Log != b.Log {
		return a.Log < b.Log
	}
	if a.FirstSeq != b.FirstSeq {
		return a.FirstSeq < b.FirstSeq
	}
	return a.Number < b.Number // the first of them was let go of before it held anything
}

func sameLog(segments []Recovered) int {
	a, n := segments[0].Header, 1
	for n < len(segments) && segments[n].Header.Epoch == a.Epoch && segments[n].Header.Log == a.Log {
		n++
	}
	return n
}

type recovery struct {
	log   *Log
	next  uint64 // sequence wanted next
	cut   Cut
	apply func(Entry) error

	unused []*Segment // let go if all goes well
}

// readLog reads one log's segments up to sequence limit; stated: which they must reach.
func (r *recovery) readLog(segments []Recovered, limit uint64, stated bool) error {
	torn := false
	for i, s := range segments {
		useful := false
		switch {
		case torn || s.Header.FirstSeq > r.next:
			// A segment is missing before this one, or the log ended: what is here can
			// only be a tail that was never acknowledged, unless a mark proves otherwise.
			torn = true
			if r.next <= limit {
				if err := r.prove(s, wal.PageSize); err != nil {
					return err
				}
			}
		case i+1 < len(segments) && segments[i+1].Header.FirstSeq <= r.next && segments[i+1].Header.Number != s.Header.Number:
			// All of it is folded. Of two with one number, which are one segment at two times,
			// either may be the one that goes on.
		case r.next > limit:
		default:
			n, err := r.readSegment(s, limit)
			if err != nil {
				return err
			}
			useful = n > 0
		}
		if useful {
			r.log.segs = append(r.log.segs, s.Segment)
		} else {
			r.unused = append(r.unused, s.Segment)
		}
	}
	if stated && r.next <= limit {
		name := segments[len(segments)-1].Segment.Name()
		return fmt.Errorf("journal ends at sequence %d in or before %s, but a later log says that it reached %d: %w",
			r.next-1, name, limit, wal.ErrCorrupt)
	}
	return nil
}

// readSegment applies the records of one segment and returns how many were applied.
func (r *recovery) readSegment(s Recovered, limit uint64) (int, error) {
	seg, h := s.Segment, s.Header
	size := seg.pages * wal.PageSize
	sc := wal.NewScanner(seg, size, wal.PageSize, h.Owner, h.Epoch, h.Log, h.FirstSeq)
	applied := 0
	for {
		rec, crcs, payload, _, ok, err := sc.Next()
		if err != nil {
			return applied, fmt.Errorf("read %s: %w", seg.Name(), err)
		}
		if !ok {
			break
		}
		if rec.Seq < r.next {
			continue
		}
		if rec.Seq > limit {
			return applied, nil
		}
		e := Entry{Record: rec, CRCs: append([]uint32(nil), crcs...), Segment: seg, Payload: payload}
		if err := r.apply(e); err != nil {
			return applied, err
		}
		applied++
		seg.last = rec.Seq
		seg.dirty = true // read back is not yet durable: the process may have died alone
		r.next, r.cut.Last = rec.Seq+1, rec.Seq
		r.cut.Synced = max(r.cut.Synced, rec.Synced)
	}
	if r.next > limit {
		return applied, nil
	}
	// A record's synced mark is below its own sequence, so no mark that was read covers
	// what is missing here: only what stands behind can prove that it was durable.
	return applied, r.prove(s, sc.Offset())
}

// prove looks behind off for a record whose synced mark covers the one wanted next.
func (r *recovery) prove(s Recovered, off int64) error {
	h := s.Header
	at, proved, err := wal.ProvesCorruption(s.Segment, s.Segment.pages*wal.PageSize, off, h.Owner, h.Epoch, h.Log, r.next)
	if err != nil {
		return fmt.Errorf("read %s: %w", s.Segment.Name(), err)
	}
	if proved {
		return fmt.Errorf("%s: no good record %d at offset %d, though the record at %d says it was synced: %w",
			s.Segment.Name(), r.next, off, at, wal.ErrCorrupt)
	}
	return nil
}
