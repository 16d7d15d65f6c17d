package wal

import (
	"errors"
	"fmt"
	"io"
)

// readAhead is how much a Scanner reads at once, in bytes, unless a record is longer.
const readAhead = 1 << 20

// Scanner reads the records of one log out of one file (or one segment of the log),
// in order, and stops at the first thing that is not the next record. It is for one
// goroutine.
type Scanner struct {
	win   window
	owner [16]byte
	epoch uint64
	log   uint64

	off  int64  // where the next record would be
	next uint64 // its sequence
}

// NewScanner reads r, a file of size bytes, from off (a multiple of PageSize) on.
// nextSeq is the sequence that the first record must have. Bytes behind size are
// never read; what is left of a last page that is not whole neither.
func NewScanner(r io.ReaderAt, size, off int64, owner [16]byte, epoch, log, nextSeq uint64) *Scanner {
	return &Scanner{
		win:   window{r: r, size: size - size%PageSize},
		owner: owner, epoch: epoch, log: log,
		off: off, next: nextSeq,
	}
}

// Offset is where the next record would be: behind the last one that Next returned.
func (s *Scanner) Offset() int64 { return s.off }

// NextSeq is the sequence that the next record must have.
func (s *Scanner) NextSeq() uint64 { return s.next }

// Next returns the next record, the checksums of its payload pages (a fresh slice),
// the file offset of its payload and the payload itself, with its filling; payload
// is valid until the next call. Header and payload have matched their checksums.
//
// ok is false at the end: the first page that is not the next record. Whether it is
// the torn tail of a crash or damage is for ProvesCorruption to say. Calling Next
// again says the same.
//
// err is a failed read; or ErrVersion or ErrCorrupt for a record whose checksum is
// good and which is the next one, but which cannot be (a type that this version does
// not know, fields that disagree, a payload behind the end of the file). No crash
// leaves such a record, so it must not be cut off.
func (s *Scanner) Next() (rec Record, crcs []uint32, payloadOff int64, payload []byte, ok bool, err error) {
	if s.off+PageSize > s.win.size {
		return Record{}, nil, 0, nil, false, nil
	}
	head, err := s.win.bytes(s.off, PageSize)
	if err != nil {
		return Record{}, nil, 0, nil, false, err
	}
	rec, ok, err = s.header(head)
	if err != nil || !ok {
		return Record{}, nil, 0, nil, false, err
	}
	crcs = pageCRCs(head, rec.Pages)
	payloadOff = s.off + PageSize
	payload, err = s.win.bytes(payloadOff, rec.PayloadSize())
	if err != nil {
		return Record{}, nil, 0, nil, false, err
	}
	for i, crc := range crcs {
		if PageCRC(payload[i*PageSize:(i+1)*PageSize]) != crc {
			return Record{}, nil, 0, nil, false, nil
		}
	}
	s.off += rec.Size()
	s.next++
	return rec, crcs, payloadOff, payload, true, nil
}

// header decides whether a header page is the next record's.
func (s *Scanner) header(page []byte) (rec Record, ok bool, err error) {
	rec, err = parseHeader(page)
	if err != nil || rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {
		return Record{}, false, nil
	}
	rec, _, err = DecodeHeader(page)
	if err == nil && rec.Size() > s.win.size-s.off {
		err = fmt.Errorf("%w: record %d goes %d bytes behind the end of the file",
			ErrCorrupt, rec.Seq, rec.Size()-(s.win.size-s.off))
	}
	if err != nil {
		return Record{}, false, fmt.Errorf("at offset %d: %w", s.off, err)
	}
	return rec, true, nil
}

// ProvesCorruption searches the pages of a file of size bytes from off on for proof
// that record expected, which is not there, had been durable: a good header of the
// same owner, epoch and log, of a higher sequence, whose synced mark covers it. It
// returns the offset of that header. Without proof the log ends in a torn tail that
// may be cut. If the log goes on in more segments, each has to be asked, from its
// first record on. err is a failed read.
func ProvesCorruption(r io.ReaderAt, size, off int64, owner [16]byte, epoch, log, expected uint64) (at int64, proved bool, err error) {
	win := window{r: r, size: size - size%PageSize}
	for ; off+PageSize <= win.size; off += PageSize {
		page, err := win.bytes(off, PageSize)
		if err != nil {
			return 0, false, err
		}
		rec, err := parseHeader(page)
		if err != nil {
			continue
		}
		if rec.Owner == owner && rec.Epoch == epoch && rec.Log == log && rec.Seq > expected && rec.Synced >= expected {
			return off, true, nil
		}
	}
	return 0, false, nil
}

// CheckTail is ProvesCorruption for where the scan has stopped: nil for a torn tail,
// ErrCorrupt naming the offsets if the record missing there had been durable.
func (s *Scanner) CheckTail() error {
	at, proved, err := ProvesCorruption(s.win.r, s.win.size, s.off, s.owner, s.epoch, s.log, s.next)
	if err != nil {
		return err
	}
	if proved {
		return fmt.Errorf("%w: record %d is not at offset %d, but the record at offset %d says that it was durable",
			ErrCorrupt, s.next, s.off, at)
	}
	return nil
}

// window reads a file sequentially in large pieces and hands out parts of them.
type window struct {
	r    io.ReaderAt
	size int64 // nothing behind it is read

	buf []byte // bytes of the file from off on
	off int64
}

// bytes returns the n bytes at off, valid until the next call. What lies before off
// is forgotten. The range must be inside size.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	have := w.buf
	if off >= w.off && off-w.off <= int64(len(w.buf)) {
		have = w.buf[off-w.off:]
	} else {
		have = nil
	}
	if len(have) >= n {
		return have[:n], nil
	}
	want := min(max(int64(n), readAhead), w.size-off)
	buf := w.buf[:0]
	if int64(cap(buf)) < want {
		buf = make([]byte, 0, want)
	}
	kept := copy(buf[:want], have)
	buf = buf[:want]
	got, err := w.r.ReadAt(buf[kept:], off+int64(kept))
	if kept+got < len(buf) {
		w.buf = nil
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %d bytes at offset %d: %w", want-int64(kept), off+int64(kept), err)
	}
	w.buf, w.off = buf, off
	return buf[:n], nil
}
