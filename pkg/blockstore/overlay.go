package blockstore

import (
	"fmt"
	"sync/atomic"

	"github.com/tidwall/btree"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/wal"
)

// sectorBytes is the finest unit of a write, in bytes.
const sectorBytes = 512

// payload is where the bytes of one journal record are. Fixed after construction but
// for mem, which leaves once the record is synced (I8: until then it is the only copy
// that a failed fsync cannot take).
type payload struct {
	start int64 // volume offset of the first byte
	n     int64 // bytes
	seg   *journal.Segment
	off   int64    // file offset of the first byte
	crcs  []uint32 // of each 4 KiB of the payload
	mem   atomic.Pointer[[]byte]
}

// read copies the payload's bytes from volume offset at on into dst. Bytes that come
// from the journal's file are checked against the record's CRCs (I5). The caller holds
// a reference to the segment.
func (p *payload) read(dst []byte, at int64) error {
	rel := at - p.start
	if mem := p.mem.Load(); mem != nil {
		copy(dst, (*mem)[rel:rel+int64(len(dst))])
		return nil
	}
	first := rel / wal.PageSize
	last := (rel + int64(len(dst)) + wal.PageSize - 1) / wal.PageSize
	buf := dst
	exact := rel%wal.PageSize == 0 && len(dst)%wal.PageSize == 0
	if !exact {
		buf = make([]byte, (last-first)*wal.PageSize)
	}
	if _, err := p.seg.ReadAt(buf, p.off+first*wal.PageSize); err != nil {
		return fmt.Errorf("read %s at %d: %w", p.seg.Name(), p.off+first*wal.PageSize, err)
	}
	for i := first; i < last; i++ {
		page := buf[(i-first)*wal.PageSize:][:wal.PageSize]
		if wal.PageCRC(page) != p.crcs[i] {
			return fmt.Errorf("%s at %d: checksum of a journal page does not match: %w",
				p.seg.Name(), p.off+i*wal.PageSize, ErrCorrupt)
		}
	}
	if !exact {
		copy(dst, buf[rel-first*wal.PageSize:])
	}
	return nil
}

// span is what a range of sectors holds: bytes of a payload, or a hole (nil).
type span struct {
	end int64 // sector behind the last
	src *payload
}

// layer is an interval map of the writes between two cuts: sector -> payload or hole.
// Later writes replace earlier ones. The active layer is guarded by its volume's mutex;
// a frozen one never changes.
type layer struct {
	tree  btree.Map[int64, span]
	last  uint64 // highest sequence in it, marks included
	epoch uint64 // of the log with that record
	log   uint64
	bytes int64 // journal bytes of its records
	debt  int64 // what folding it can append at most, in bytes; guarded by the volume's mutex
	data  bool  // has a write or a hole

	// Guarded by the volume's mutex, frozen layers too.
	cuts []string // IDs of pending cuts at the layer's end
	hold int      // cuts being recorded: the layer must not be folded yet
}

// put makes [start, end) sectors read from src (nil: a hole).
func (l *layer) put(start, end int64, src *payload) {
	l.clear(start, end)
	l.tree.Set(start, span{end, src})
	l.data = true
}

// clear removes what is known of [start, end) sectors.
func (l *layer) clear(start, end int64) {
	if k, s, ok := l.before(start); ok && s.end > start {
		l.tree.Set(k, span{start, s.src})
		if s.end > end {
			l.tree.Set(end, s)
			return
		}
	}
	for {
		var key int64
		var found span
		ok := false
		l.tree.Ascend(start, func(k int64, s span) bool {
			if k < end {
				key, found, ok = k, s, true
			}
			return false
		})
		if !ok {
			return
		}
		l.tree.Delete(key)
		if found.end > end {
			l.tree.Set(end, found)
			return
		}
	}
}

// before finds the last interval that begins below sector.
func (l *layer) before(sector int64) (key int64, found span, ok bool) {
	l.tree.Descend(sector-1, func(k int64, s span) bool {
		key, found, ok = k, s, true
		return false
	})
	return key, found, ok
}

// each calls fn for the known parts of [start, end) sectors in order, clipped, until fn
// returns false.
func (l *layer) each(start, end int64, fn func(start, end int64, src *payload) bool) {
	from := start
	if _, s, ok := l.before(start); ok && s.end > start {
		if !fn(start, min(s.end, end), s.src) || s.end >= end {
			return
		}
		from = s.end
	}
	l.tree.Ascend(from, func(k int64, s span) bool {
		if k >= end {
			return false
		}
		return fn(k, min(s.end, end), s.src)
	})
}
