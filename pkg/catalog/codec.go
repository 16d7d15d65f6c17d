package catalog

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/k8ns/granary/pkg/wal"
)

// fileMagic begins every catalog log.
var fileMagic = wal.Magic{'G', 'R', 'C', 'L'}

// fileHeader is the first page of a log.
//
//	  0   32  common head
//	 32    8  log number
//	 40    8  epoch
//	 48    8  commit number of the checkpoint
//	 56    8  sequence of the first record
//	 64 4028  zero
//	4092   4  checksum of the page before it
type fileHeader struct {
	store    [16]byte
	log      uint64
	epoch    uint64
	commit   uint64
	firstSeq uint64
}

const offHeaderEnd = 64

// maxCounter is what no log number, epoch, commit or sequence can have reached by
// counting: a header that says so is damaged. Counting on from below it never wraps.
const maxCounter = 1 << 62

// encode returns the header's page.
func (h fileHeader) encode() []byte {
	page := make([]byte, wal.PageSize)
	wal.Head{Magic: fileMagic, Store: h.store}.Put(page)
	le := binary.LittleEndian
	le.PutUint64(page[32:], h.log)
	le.PutUint64(page[40:], h.epoch)
	le.PutUint64(page[48:], h.commit)
	le.PutUint64(page[56:], h.firstSeq)
	wal.SealPage(page)
	return page
}

// parseFileHeader reads a log's first page: wal.ErrFormat, wal.ErrVersion or
// wal.ErrCorrupt if it is none that this program reads, or not whole.
func parseFileHeader(page []byte) (fileHeader, error) {
	head, err := wal.ParseHead(page, fileMagic)
	if err != nil {
		return fileHeader{}, err
	}
	if err := wal.CheckPage(page); err != nil {
		return fileHeader{}, err
	}
	if !allZero(page[offHeaderEnd : wal.PageSize-4]) {
		return fileHeader{}, fmt.Errorf("%w: header page has bytes set that must be zero", wal.ErrCorrupt)
	}
	le := binary.LittleEndian
	h := fileHeader{
		store:    head.Store,
		log:      le.Uint64(page[32:]),
		epoch:    le.Uint64(page[40:]),
		commit:   le.Uint64(page[48:]),
		firstSeq: le.Uint64(page[56:]),
	}
	if h.log == 0 || h.epoch == 0 || h.firstSeq == 0 {
		return fileHeader{}, fmt.Errorf("%w: log %d, epoch %d, first record %d: none may be 0",
			wal.ErrCorrupt, h.log, h.epoch, h.firstSeq)
	}
	if max(h.log, h.epoch, h.commit, h.firstSeq) >= maxCounter {
		return fileHeader{}, fmt.Errorf("%w: log %d, epoch %d, commit %d, first record %d: all are below %d",
			wal.ErrCorrupt, h.log, h.epoch, h.commit, h.firstSeq, uint64(maxCounter))
	}
	return h, nil
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// What an entry of a payload does.
const (
	opPut    = 1
	opDelete = 2
)

// Limits: a key's length must fit its field, a commit one record.
const (
	maxKey     = 1<<16 - 1
	maxPayload = wal.MaxPayloadPages * wal.PageSize
)

// putSize is the encoded length of an entry that is put, in bytes.
func putSize(key string, value []byte) int64 { return int64(15 + len(key) + len(value)) }

// appendPut appends an entry that is put.
//
//	u8 1, u16 key length, key, u64 revision, u32 value length, value
func appendPut(b []byte, e Entry) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(append(b, opPut), uint16(len(e.Key)))
	b = le.AppendUint64(append(b, e.Key...), e.Revision)
	b = le.AppendUint32(b, uint32(len(e.Value)))
	return append(b, e.Value...)
}

// appendDelete appends an entry that takes a key away.
//
//	u8 2, u16 key length, key
func appendDelete(b []byte, key string) []byte {
	b = binary.LittleEndian.AppendUint16(append(b, opDelete), uint16(len(key)))
	return append(b, key...)
}

// pad fills b up to whole pages with zeros.
func pad(b []byte) []byte {
	return append(b, make([]byte, roundUp(int64(len(b)), wal.PageSize)-int64(len(b)))...)
}

// encodeOps returns the payload of a commit, whole pages, and its length without the
// filling. ErrInvalid if it does not fit a record. Keys have been checked.
func encodeOps(commit uint64, ops []Op) (payload []byte, length int, err error) {
	var size int64
	for _, op := range ops {
		size += putSize(op.Key, op.Value)
	}
	if size > maxPayload {
		return nil, 0, fmt.Errorf("%w: commit of %d bytes, at most %d", ErrInvalid, size, maxPayload)
	}
	payload = make([]byte, 0, roundUp(size, wal.PageSize))
	for _, op := range ops {
		if op.Value == nil {
			payload = appendDelete(payload, op.Key)
		} else {
			payload = appendPut(payload, Entry{op.Key, commit, op.Value})
		}
	}
	return pad(payload), len(payload), nil
}

// decodeEntries calls fn for each entry of a payload, without its filling. value is
// nil for a delete, else part of payload. Errors are wal.ErrCorrupt.
func decodeEntries(payload []byte, fn func(key string, revision uint64, value []byte) error) error {
	short := func() error {
		return fmt.Errorf("%w: payload ends inside an entry", wal.ErrCorrupt)
	}
	le := binary.LittleEndian
	for len(payload) > 0 {
		if len(payload) < 3 {
			return short()
		}
		op, keyLen := payload[0], int(le.Uint16(payload[1:]))
		payload = payload[3:]
		if keyLen == 0 || op != opPut && op != opDelete {
			return fmt.Errorf("%w: entry of kind %d with a key of %d bytes", wal.ErrCorrupt, op, keyLen)
		}
		if len(payload) < keyLen {
			return short()
		}
		key := string(payload[:keyLen])
		payload = payload[keyLen:]
		if op == opDelete {
			if err := fn(key, 0, nil); err != nil {
				return err
			}
			continue
		}
		if len(payload) < 12 {
			return short()
		}
		revision, valueLen := le.Uint64(payload), int64(le.Uint32(payload[8:]))
		payload = payload[12:]
		if int64(len(payload)) < valueLen {
			return short()
		}
		if err := fn(key, revision, payload[:valueLen:valueLen]); err != nil {
			return err
		}
		payload = payload[valueLen:]
	}
	return nil
}
