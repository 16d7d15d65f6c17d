// Package wal is the record format that the volume journal and the catalog log
// share: file heads, record headers with their checksums, and a reader that finds
// the end of a log. FORMAT.md of pkg/blockstore, sections 1 and 3, has the bytes.
//
// Data flow: a writer fills a header page with [EncodeHeader] and writes it in front
// of its payload pages; a reader runs a [Scanner] over the file, and where that stops
// asks [ProvesCorruption] whether the log was torn by a crash or damaged later.
//
// Invariants:
//   - A record is accepted only when its header and every payload page match their
//     checksums and it is of the expected owner, epoch, log and sequence. Space that
//     is zero, or that holds records of an earlier use, never reads as a record.
//   - What is not ours, of another version, or damaged are three different errors
//     ([ErrFormat], [ErrVersion], [ErrCorrupt]), asked in that order.
//   - Everything but the Scanner is a pure function; nothing here writes a file.
//
// It must not know what a volume or a catalog entry is, nor when data is synced.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// PageSize is the unit of the format, in bytes: headers are one page, payloads whole
// pages.
const PageSize = 4096

// MaxPayloadPages is how many payload pages one record can have: as many checksums
// as fit its header page.
const MaxPayloadPages = (PageSize - offPageCRCs) / 4

// Version is the format version that this package writes and reads.
const Version = 1

// Errors that callers distinguish, by errors.Is. They answer three questions, asked
// in this order: is it ours, do we know the version, is it whole.
var (
	ErrFormat  = errors.New("not a granary file")
	ErrVersion = errors.New("unknown format version")
	ErrCorrupt = errors.New("damaged")
)

// castagnoli is the polynomial of every checksum (CRC32C).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// PageCRC is the checksum of a payload page, or of any other bytes.
func PageCRC(page []byte) uint32 { return crc32.Checksum(page, castagnoli) }

// Magic says what kind of file, or what part of one, begins here.
type Magic [4]byte

// String is the magic as text, quoted.
func (m Magic) String() string { return fmt.Sprintf("%q", m[:]) }

// HeadSize is the length of a Head, in bytes.
const HeadSize = 32

// Head is what every file begins with. The format version is not in it: it is
// Version, or the file is refused.
//
//	 0  4  magic
//	 4  2  format version
//	 6  2  zero
//	 8  4  incompat feature bits
//	12  4  compat feature bits
//	16 16  store ID
type Head struct {
	Magic Magic
	// Incompat are features that a reader must know to read the file at all; none is
	// defined yet. Compat are features that it may ignore.
	Incompat, Compat uint32
	Store            [16]byte
}

// knownIncompat are the incompat feature bits that this version can read.
const knownIncompat = 0

// AppendBinary appends the HeadSize bytes of h to b. It never fails.
func (h Head) AppendBinary(b []byte) ([]byte, error) {
	var p [HeadSize]byte
	h.Put(p[:])
	return append(b, p[:]...), nil
}

// Put writes h into the first HeadSize bytes of b.
func (h Head) Put(b []byte) {
	le := binary.LittleEndian
	copy(b, h.Magic[:])
	le.PutUint16(b[4:], Version)
	le.PutUint16(b[6:], 0)
	le.PutUint32(b[8:], h.Incompat)
	le.PutUint32(b[12:], h.Compat)
	copy(b[16:HeadSize], h.Store[:])
}

// ParseHead reads the head at the start of b: ErrFormat if b is too short or has
// another magic, ErrVersion for another version or an unknown incompat bit,
// ErrCorrupt if a field that must be zero is not. The caller then checks the
// checksum of the file's own header (CheckPage), and that the store is its own.
func ParseHead(b []byte, want Magic) (Head, error) {
	if len(b) < HeadSize {
		return Head{}, fmt.Errorf("%w: %d bytes, a file head has %d", ErrFormat, len(b), HeadSize)
	}
	le := binary.LittleEndian
	h := Head{
		Magic:    Magic(b[:4]),
		Incompat: le.Uint32(b[8:]),
		Compat:   le.Uint32(b[12:]),
		Store:    [16]byte(b[16:HeadSize]),
	}
	if h.Magic != want {
		return Head{}, fmt.Errorf("%w: magic %v, want %v", ErrFormat, h.Magic, want)
	}
	if v := le.Uint16(b[4:]); v != Version {
		return Head{}, fmt.Errorf("%w %d of %v, this program knows %d", ErrVersion, v, want, Version)
	}
	if unknown := h.Incompat &^ knownIncompat; unknown != 0 {
		return Head{}, fmt.Errorf("%w: %v needs unknown features %#x", ErrVersion, want, unknown)
	}
	if z := le.Uint16(b[6:]); z != 0 {
		return Head{}, fmt.Errorf("%w: head of %v has %#x where it must be zero", ErrCorrupt, want, z)
	}
	return h, nil
}

// offSeal is where a sealed page has its checksum: the last four bytes.
const offSeal = PageSize - 4

// SealPage puts the checksum of a file's header page (PageSize bytes) into its last
// four bytes.
func SealPage(page []byte) {
	binary.LittleEndian.PutUint32(page[offSeal:PageSize], PageCRC(page[:offSeal]))
}

// CheckPage tells whether a page sealed by SealPage is whole; ErrCorrupt if not.
func CheckPage(page []byte) error {
	if len(page) < PageSize {
		return fmt.Errorf("%w: header page has %d bytes of %d", ErrCorrupt, len(page), PageSize)
	}
	want := binary.LittleEndian.Uint32(page[offSeal:PageSize])
	if got := PageCRC(page[:offSeal]); got != want {
		return fmt.Errorf("%w: header page has checksum %08x, its bytes %08x", ErrCorrupt, want, got)
	}
	return nil
}
