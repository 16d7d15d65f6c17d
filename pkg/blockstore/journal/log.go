package journal

import (
	"fmt"
	"slices"

	"github.com/k8ns/granary/pkg/wal"
)

// Log is the journal of one volume: the segments with records not folded yet, and the
// tail that new records go to. It has no lock of its own: every method but Extend's
// I/O part is called under the volume's mutex.
type Log struct {
	pool   *Pool
	owner  [16]byte
	epoch  uint64
	number uint64 // of the log that records go to; 0 before the first Install
	prev   prevLog
	commit func() uint64

	segs    []*Segment // oldest first; the last is the tail if open
	open    bool       // the last of segs may be appended to
	page    int64      // next free page of the tail
	segment uint32     // number of the next segment in this log
}

type prevLog struct{ epoch, log, end uint64 }

// NewLog starts a volume's journal without any segment. epoch is this process's;
// commit tells the catalog's last durable commit number.
func NewLog(pool *Pool, owner [16]byte, epoch uint64, commit func() uint64) *Log {
	return &Log{pool: pool, owner: owner, epoch: epoch, commit: commit}
}

// Epoch and number of the log that records go to.
func (l *Log) ID() (epoch, number uint64) { return l.epoch, l.number }

// Place is room for one record.
type Place struct {
	Segment *Segment
	Offset  int64 // of the header page; the payload follows
}

// MaxPayload is the largest payload that fits a record in any segment, in bytes.
func (p *Pool) MaxPayload() int {
	return int(min(wal.MaxPayloadPages, p.o.SegmentBytes/wal.PageSize-2)) * wal.PageSize
}

// Place takes room for a record with sequence seq and pages of payload from the tail.
// The segment is acquired for the append: the caller releases it. False when the tail
// has no room: Prepare, Write and Install a new segment first.
func (l *Log) Place(seq uint64, pages int) (Place, bool) {
	if !l.open {
		return Place{}, false
	}
	tail := l.segs[len(l.segs)-1]
	if l.page+1+int64(pages) > tail.pages {
		return Place{}, false
	}
	at := l.page * wal.PageSize
	l.page += 1 + int64(pages)
	tail.last = seq
	tail.Acquire()
	return Place{tail, at}, true
}

// Appended says that an append to the segment has ended, well or not: the segment has
// to be synced again. Called under the volume's mutex.
func (s *Segment) Appended() { s.dirty = true }

// Next is a segment about to become the tail.
type Next struct {
	seg    *Segment
	header Header
	first  bool       // opens a new log: the header is synced before any record
	before []*Segment // to be synced before the header, acquired: what it builds on
}

// Prepare describes the next segment of the log, whose first record will be seq. Not
// more than one may be prepared at a time.
func (l *Log) Prepare(seg *Segment, seq uint64) Next {
	n := Next{seg: seg, first: l.segment == 0}
	number := l.number
	if n.first {
		number = l.pool.logNumber()
	}
	n.header = Header{
		Store: l.pool.o.Store, Owner: l.owner, Epoch: l.epoch, Log: number, Number: l.segment,
		Pages: uint32(seg.pages), FirstSeq: seq,
		PrevEnd: l.prev.end, PrevLog: l.prev.log, PrevEpoch: l.prev.epoch,
		Commit: l.commit(),
	}
	if n.first {
		n.header.PrevEnd = seq - 1
		n.before = l.Dirty()
	}
	return n
}

// Write puts the header on disk; called without the volume's mutex. The header of a new
// log says where the logs before it end, so these are synced first: a power cut must
// not take what a durable header builds on.
func (n Next) Write() error {
	var err error
	for _, s := range n.before {
		if err == nil {
			err = s.Datasync()
		}
		s.Release()
	}
	if err != nil {
		return err
	}
	if _, err := n.seg.file.WriteAt(n.header.Encode(), 0); err != nil {
		n.seg.bad.Store(true)
		return fmt.Errorf("write header of %s: %w", n.seg.Name(), err)
	}
	if !n.first {
		return nil
	}
	return n.seg.Datasync()
}

// Install makes the prepared and written segment the tail.
func (l *Log) Install(n Next) {
	n.seg.header = n.header
	n.seg.last = n.header.FirstSeq - 1
	n.seg.dirty = !n.first
	l.number = n.header.Log
	l.prev.end = n.header.PrevEnd
	l.segs = append(l.segs, n.seg)
	l.open, l.page, l.segment = true, 1, l.segment+1
}

// Dirty returns the segments with an append that ended since they were last returned, oldest first,
// acquired: the caller syncs them in this order and releases them.
func (l *Log) Dirty() []*Segment {
	var out []*Segment
	for _, s := range l.segs {
		if s.dirty {
			s.dirty = false
			s.Acquire()
			out = append(out, s)
		}
	}
	return out
}

// First returns the first sequence of the segment that holds record seq, 0 if none of the
// log's does.
func (l *Log) First(seq uint64) uint64 {
	for i := len(l.segs) - 1; i >= 0; i-- {
		if first := l.segs[i].header.FirstSeq; first <= seq {
			return first
		}
	}
	return 0
}

// Trim lets go of every segment whose records all have sequences up to seq, the tail
// too: the next record then opens a new segment.
func (l *Log) Trim(seq uint64) {
	for len(l.segs) > 0 && l.segs[0].last <= seq {
		if len(l.segs) == 1 {
			l.open = false
		}
		l.segs[0].Release()
		l.segs = l.segs[1:]
	}
}

// Broken tells whether an append or a sync of one of the log's segments has failed: none
// may be written or synced again (I8), so the log takes no more until it is trimmed.
func (l *Log) Broken() bool {
	return slices.ContainsFunc(l.segs, func(s *Segment) bool { return s.bad.Load() })
}

// Pin keeps every segment out of the pool's budget: the log cannot be read back.
func (l *Log) Pin() {
	for _, s := range l.segs {
		l.pool.Pin(s)
	}
}

// Drop lets go of every segment.
func (l *Log) Drop() { l.Trim(^uint64(0)) }
