package dedup

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/k8ns/granary/pkg/wal"
)

// Sizes that the format fixes.
const (
	BlockSize = 4096 // bytes in a slot
	MaxSlots  = 1024 // slots in a chunk
)

// Errors that callers tell apart with errors.Is. ErrFormat, ErrVersion and
// ErrCorrupt are the same values as in package wal.
var (
	// ErrFormat means that a file is not a chunk file.
	ErrFormat = wal.ErrFormat
	// ErrVersion means that a file has another format version or an unknown
	// incompatible feature.
	ErrVersion = wal.ErrVersion
	// ErrCorrupt means that bytes on disk fail their checksum or contradict each other.
	ErrCorrupt = wal.ErrCorrupt
	// ErrMissing means that no chunk file holds the slot.
	ErrMissing = errors.New("no chunk file holds the slot")
)

// Fingerprint is the content hash of a block: BLAKE3 cut to 160 bits.
type Fingerprint [20]byte

// String is the fingerprint in hex.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// IsZero tells whether the fingerprint is unset.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// ChunkID names a chunk by its content: the root of a hash tree over the
// fingerprints of its slots. The zero value names no chunk.
type ChunkID [20]byte

// IsZero tells whether c names no chunk.
func (c ChunkID) IsZero() bool { return c == ChunkID{} }

// String is the ID in hex.
func (c ChunkID) String() string { return hex.EncodeToString(c[:]) }

// MarshalText writes the ID as in String.
func (c ChunkID) MarshalText() ([]byte, error) {
	return hex.AppendEncode(nil, c[:]), nil
}

// UnmarshalText is ParseChunkID.
func (c *ChunkID) UnmarshalText(b []byte) error {
	id, err := ParseChunkID(string(b))
	if err != nil {
		return err
	}
	*c = id
	return nil
}

// ParseChunkID reads what String wrote: 40 lower-case hex digits.
func ParseChunkID(s string) (ChunkID, error) {
	var c ChunkID
	if err := parseHex(c[:], s); err != nil {
		return ChunkID{}, fmt.Errorf("chunk ID %q: %w", s, err)
	}
	return c, nil
}

// ParseFingerprint reads what Fingerprint.String wrote.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	if err := parseHex(f[:], s); err != nil {
		return Fingerprint{}, fmt.Errorf("fingerprint %q: %w", s, err)
	}
	return f, nil
}

// parseHex fills dst from lower-case hex digits, exactly as many as it needs.
func parseHex(dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("want %d hex digits", 2*len(dst))
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return errors.New("want lower-case hex digits")
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err
}

// Slot is the address of a block or map node: a place in a chunk. It stays valid
// for ever, wherever collection moves the chunk. The zero value is no address.
type Slot struct {
	Chunk ChunkID
	Slot  uint16
}

// IsZero tells whether s is no address.
func (s Slot) IsZero() bool { return s.Chunk.IsZero() }

// String is "<chunk ID in hex>/<slot>".
func (s Slot) String() string { return fmt.Sprintf("%s/%d", s.Chunk, s.Slot) }
