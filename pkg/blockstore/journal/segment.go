package journal

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// Magic leads every segment file.
var Magic = wal.Magic{'G', 'R', 'J', 'S'}

// Header is page 0 of a segment. The zero Owner means that the segment is free.
type Header struct {
	Store     [16]byte
	Owner     [16]byte // volume ID
	Epoch     uint64
	Log       uint64
	Number    uint32 // of this segment in its log, from 0
	Pages     uint32 // size of the segment, in pages
	FirstSeq  uint64 // sequence of the first record
	PrevEnd   uint64 // sequence at which the logs before this one end
	PrevLog   uint64
	PrevEpoch uint64
	Commit    uint64 // catalog commit number durable when this was written (I10)
}

// The bytes of a header that say whose log it is: Owner, Epoch and Log.
const headerLog, headerLogEnd = 32, 64

// Encode fills a page.
func (h Header) Encode() []byte {
	page := make([]byte, wal.PageSize)
	wal.Head{Magic: Magic, Store: h.Store}.Put(page)
	copy(page[32:48], h.Owner[:])
	le := binary.LittleEndian
	le.PutUint64(page[48:], h.Epoch)
	le.PutUint64(page[56:], h.Log)
	le.PutUint32(page[64:], h.Number)
	le.PutUint32(page[68:], h.Pages)
	le.PutUint64(page[72:], h.FirstSeq)
	le.PutUint64(page[80:], h.PrevEnd)
	le.PutUint64(page[88:], h.PrevLog)
	le.PutUint64(page[96:], h.PrevEpoch)
	le.PutUint64(page[104:], h.Commit)
	wal.SealPage(page)
	return page
}

// DecodeHeader reads page 0 of a segment. Errors: wal.ErrFormat, ErrVersion, ErrCorrupt.
func DecodeHeader(page []byte) (Header, error) {
	var h Header
	head, err := wal.ParseHead(page, Magic)
	if err != nil {
		return h, err
	}
	if err := wal.CheckPage(page); err != nil {
		return h, err
	}
	for i, b := range page[112:4092] {
		if b != 0 {
			return h, fmt.Errorf("segment header byte %d is %#x, want 0: %w", 112+i, b, wal.ErrCorrupt)
		}
	}
	h.Store = head.Store
	copy(h.Owner[:], page[32:48])
	le := binary.LittleEndian
	h.Epoch = le.Uint64(page[48:])
	h.Log = le.Uint64(page[56:])
	h.Number = le.Uint32(page[64:])
	h.Pages = le.Uint32(page[68:])
	h.FirstSeq = le.Uint64(page[72:])
	h.PrevEnd = le.Uint64(page[80:])
	h.PrevLog = le.Uint64(page[88:])
	h.PrevEpoch = le.Uint64(page[96:])
	h.Commit = le.Uint64(page[104:])
	return h, nil
}

// Segment is one file of the pool.
type Segment struct {
	// Fixed after the pool opened or made it.
	pool  *Pool
	file  vfs.File
	num   uint64
	pages int64

	// One for the log that holds it, one for each reader and append in flight. At
	// zero the segment goes back to the pool.
	refs atomic.Int32
	bad  atomic.Bool // an append or a sync failed: the file is never used again (I8)

	pinned bool // under the pool's mutex: kept as evidence, outside the budget

	// Owned by the Log that holds the segment, under its volume's mutex.
	header Header
	last   uint64 // highest sequence in it
	dirty  bool   // appended to since the last sync
}

// Name is the path of the segment's file.
func (s *Segment) Name() string { return s.file.Name() }

// Acquire keeps the segment from being recycled until Release. The caller must hold
// the mutex of the volume whose log has the segment, or another reference.
func (s *Segment) Acquire() { s.refs.Add(1) }

// Release ends an Acquire.
func (s *Segment) Release() {
	switch n := s.refs.Add(-1); {
	case n == 0:
		s.pool.put(s)
	case n < 0:
		panic("journal: segment released more often than acquired")
	}
}

// ReadAt reads from the segment's file. The caller must hold a reference.
func (s *Segment) ReadAt(p []byte, off int64) (int, error) { return s.file.ReadAt(p, off) }

// Append writes a record's header page and payload at its place. Several appends may
// run at once, in any order. The caller must hold a reference.
func (s *Segment) Append(off int64, header, payload []byte) error {
	bufs := [][]byte{header, payload}
	if len(payload) == 0 {
		bufs = bufs[:1]
	}
	if _, err := s.file.WriteVec(bufs, off); err != nil {
		s.bad.Store(true)
		return fmt.Errorf("append to %s at %d: %w", s.Name(), off, err)
	}
	return nil
}

// Datasync makes every completed append durable. After an error it must not be called
// again (I8).
func (s *Segment) Datasync() error {
	if err := s.file.Datasync(); err != nil {
		s.bad.Store(true)
		return fmt.Errorf("sync %s: %w", s.Name(), err)
	}
	return nil
}
