package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Type is the kind of a record. The numbers are never reused; 0 is invalid, so that
// zeroed space is never a record.
type Type uint16

// The record types. Offset and Length mean:
const (
	TypeWrite Type = 1 // volume byte offset and length; the payload is the bytes
	TypeHole  Type = 2 // volume byte offset and length; no payload
	TypeMark  Type = 3 // both 0; only carries the synced mark

	TypeCheckpointPart Type = 16 // commit number, payload bytes
	TypeCheckpointEnd  Type = 17 // commit number, number of entries in all parts
	TypeCommit         Type = 18 // commit number, payload bytes
)

// String names the type.
func (t Type) String() string {
	switch t {
	case TypeWrite:
		return "write"
	case TypeHole:
		return "hole"
	case TypeMark:
		return "mark"
	case TypeCheckpointPart:
		return "checkpoint-part"
	case TypeCheckpointEnd:
		return "checkpoint-end"
	case TypeCommit:
		return "commit"
	}
	return fmt.Sprintf("type-%d", uint16(t))
}

// Record is what a record's header says, apart from the checksums.
type Record struct {
	Type  Type
	Owner [16]byte // volume ID (journal) or store ID (catalog)
	Epoch uint64   // of the writer
	Log   uint64   // log number
	Seq   uint64   // the owner's previous record's + 1
	// Synced is the highest sequence known durable when the record was written; it
	// is below Seq. It is what tells damage from a torn tail.
	Synced uint64
	Offset uint64 // by Type
	Length uint64 // by Type; bytes, or entries for TypeCheckpointEnd
	Pages  uint32 // payload pages
}

// PayloadSize is the length of the payload with its filling, in bytes.
func (r Record) PayloadSize() int { return int(r.Pages) * PageSize }

// Size is the length of the whole record in its file, in bytes.
func (r Record) Size() int64 { return int64(PageSize + r.PayloadSize()) }

// sectorSize is what volume offsets and lengths are multiples of, in bytes.
const sectorSize = 512

// Validate tells whether the fields agree with each other and with the type:
// ErrVersion for a type this version does not know, else ErrCorrupt.
func (r Record) Validate() error {
	bad := func(why string) error {
		return fmt.Errorf("%w: %v record %d: %s (offset %d, length %d, %d pages, synced %d)",
			ErrCorrupt, r.Type, r.Seq, why, r.Offset, r.Length, r.Pages, r.Synced)
	}
	if r.Pages > MaxPayloadPages {
		return bad("too many pages")
	}
	if r.Synced >= r.Seq {
		return bad("synced mark not below its sequence")
	}
	switch r.Type {
	case TypeWrite, TypeHole:
		if r.Offset%sectorSize != 0 || r.Length%sectorSize != 0 || r.Length == 0 {
			return bad("offset or length not whole sectors")
		}
		if r.Offset+r.Length < r.Offset {
			return bad("range overflows")
		}
	case TypeMark:
		if r.Offset != 0 || r.Length != 0 {
			return bad("offset and length must be zero")
		}
	case TypeCheckpointPart, TypeCheckpointEnd, TypeCommit:
	default:
		return fmt.Errorf("%w: record %d has type %d", ErrVersion, r.Seq, uint16(r.Type))
	}
	switch r.Type {
	case TypeWrite, TypeCheckpointPart, TypeCommit:
		if size := uint64(r.PayloadSize()); r.Length > size || size-r.Length >= PageSize {
			return bad("length and pages disagree")
		}
	default:
		if r.Pages != 0 {
			return bad("payload where none belongs")
		}
	}
	return nil
}

// recordMagic begins every record's header page.
var recordMagic = Magic{'G', 'R', 'E', 'C'}

// Where the fields of a header page are; FORMAT.md, section 3.
const (
	offVersion   = 4
	offType      = 6
	offOwner     = 8
	offEpoch     = 24
	offLog       = 32
	offSeq       = 40
	offSynced    = 48
	offOffset    = 56
	offLength    = 64
	offPages     = 72
	offZero      = 76
	offHeaderCRC = 124
	offPageCRCs  = 128
)

// EncodeHeader fills page (PageSize bytes, overwritten) with the header of r and the
// checksums of payload, and returns the checksums in a fresh slice, nil without
// payload. The number of pages is payload's, whatever r.Pages says; its last page
// must be filled up with zeros. It panics if the record would not pass Validate or
// payload is not whole pages: such a record could never be read back.
func EncodeHeader(page []byte, r Record, payload []byte) []uint32 {
	crcs := PayloadCRCs(payload)
	EncodeHeaderCRCs(page, r, crcs)
	return crcs
}

// PayloadCRCs returns the checksums of payload's pages, nil without payload. It panics
// if payload is not whole pages.
func PayloadCRCs(payload []byte) []uint32 {
	if len(payload)%PageSize != 0 {
		panic(fmt.Sprintf("wal: payload of %d bytes", len(payload)))
	}
	if len(payload) == 0 {
		return nil
	}
	crcs := make([]uint32, len(payload)/PageSize)
	for i := range crcs {
		crcs[i] = PageCRC(payload[i*PageSize : (i+1)*PageSize])
	}
	return crcs
}

// EncodeHeaderCRCs is EncodeHeader for a payload whose checksums are known.
func EncodeHeaderCRCs(page []byte, r Record, crcs []uint32) {
	if len(page) != PageSize || len(crcs) > MaxPayloadPages {
		panic(fmt.Sprintf("wal: header page of %d bytes, payload of %d pages", len(page), len(crcs)))
	}
	r.Pages = uint32(len(crcs))
	if err := r.Validate(); err != nil {
		panic("wal: encode: " + err.Error())
	}
	clear(page)
	le := binary.LittleEndian
	copy(page, recordMagic[:])
	le.PutUint16(page[offVersion:], Version)
	le.PutUint16(page[offType:], uint16(r.Type))
	copy(page[offOwner:offEpoch], r.Owner[:])
	le.PutUint64(page[offEpoch:], r.Epoch)
	le.PutUint64(page[offLog:], r.Log)
	le.PutUint64(page[offSeq:], r.Seq)
	le.PutUint64(page[offSynced:], r.Synced)
	le.PutUint64(page[offOffset:], r.Offset)
	le.PutUint64(page[offLength:], r.Length)
	le.PutUint32(page[offPages:], r.Pages)
	for i, crc := range crcs {
		le.PutUint32(page[offPageCRCs+4*i:], crc)
	}
	le.PutUint32(page[offHeaderCRC:], headerCRC(page))
}

// headerCRC is the checksum of a header page with its own field taken as zero.
func headerCRC(page []byte) uint32 {
	var zero [4]byte
	crc := PageCRC(page[:offHeaderCRC])
	crc = crc32.Update(crc, castagnoli, zero[:])
	return crc32.Update(crc, castagnoli, page[offHeaderCRC+4:PageSize])
}

// DecodeHeader reads a header page (PageSize bytes) and returns the record and the
// checksum of each payload page, in a fresh slice. ErrFormat: not a record (zeroed
// space, or a payload page). ErrVersion: of another format version, or of a type
// that this one does not know. ErrCorrupt: checksum wrong or fields that disagree.
func DecodeHeader(page []byte) (Record, []uint32, error) {
	r, err := parseHeader(page)
	if err != nil {
		return Record{}, nil, err
	}
	if err := r.Validate(); err != nil {
		return Record{}, nil, err
	}
	if err := checkZeros(page, r); err != nil {
		return Record{}, nil, err
	}
	return r, pageCRCs(page, r.Pages), nil
}

// parseHeader asks for magic, version and checksum and reads the fields; it does not
// ask whether they make sense.
func parseHeader(page []byte) (Record, error) {
	if len(page) != PageSize || Magic(page[:4]) != recordMagic {
		return Record{}, fmt.Errorf("%w: no record header", ErrFormat)
	}
	le := binary.LittleEndian
	if v := le.Uint16(page[offVersion:]); v != Version {
		return Record{}, fmt.Errorf("%w: record of version %d, this program knows %d", ErrVersion, v, Version)
	}
	want := le.Uint32(page[offHeaderCRC:])
	if got := headerCRC(page); got != want {
		return Record{}, fmt.Errorf("%w: record header has checksum %08x, its bytes %08x", ErrCorrupt, want, got)
	}
	return Record{
		Type:   Type(le.Uint16(page[offType:])),
		Owner:  [16]byte(page[offOwner:offEpoch]),
		Epoch:  le.Uint64(page[offEpoch:]),
		Log:    le.Uint64(page[offLog:]),
		Seq:    le.Uint64(page[offSeq:]),
		Synced: le.Uint64(page[offSynced:]),
		Offset: le.Uint64(page[offOffset:]),
		Length: le.Uint64(page[offLength:]),
		Pages:  le.Uint32(page[offPages:]),
	}, nil
}

// checkZeros refuses a header whose zero fields are not; r has passed Validate.
func checkZeros(page []byte, r Record) error {
	for _, zero := range [][]byte{page[offZero:offHeaderCRC], page[offPageCRCs+4*int(r.Pages):]} {
		for _, b := range zero {
			if b != 0 {
				return fmt.Errorf("%w: record %d has bytes set that must be zero", ErrCorrupt, r.Seq)
			}
		}
	}
	return nil
}

// pageCRCs reads the checksums of the n payload pages; nil for none.
func pageCRCs(page []byte, n uint32) []uint32 {
	if n == 0 {
		return nil
	}
	crcs := make([]uint32, n)
	for i := range crcs {
		crcs[i] = binary.LittleEndian.Uint32(page[offPageCRCs+4*i:])
	}
	return crcs
}
