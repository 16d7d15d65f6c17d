package dedup

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/k8ns/granary/pkg/wal"
)

// Kind says what the slots of a chunk hold. A chunk never mixes kinds.
type Kind uint8

const (
	KindData  Kind = 1 // blocks of volumes
	KindNodes Kind = 2 // nodes of block maps
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case KindData:
		return "data"
	case KindNodes:
		return "nodes"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Codec is how a group is compressed.
type Codec uint8

const (
	CodecRaw  Codec = 0
	CodecZstd Codec = 1
	CodecS2   Codec = 2
)

// String names the codec as volume records do.
func (c Codec) String() string {
	switch c {
	case CodecRaw:
		return "none"
	case CodecZstd:
		return "zstd"
	case CodecS2:
		return "s2"
	}
	return fmt.Sprintf("codec-%d", uint8(c))
}

// Limits of a chunk, all of them checked before anything is allocated.
const (
	headSize   = 80 // bytes
	maxShift   = 5  // at most 32 slots, 128 KiB, in a group
	groupEntry = 8  // bytes in the front for each group that is stored
	maxFront   = MaxSlots/8 + groupEntry*MaxSlots
	maxList    = 20 * MaxSlots
	maxPayload = BlockSize * MaxSlots
	maxChunk   = headSize + maxFront + maxList + maxPayload
)

var chunkMagic = [4]byte{'G', 'C', 'H', 'K'}

var le = binary.LittleEndian

// corrupt is an ErrCorrupt with a reason.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// chunkHead is the head of a chunk in its file; FORMAT.md, section 6.
type chunkHead struct {
	kind     Kind
	shift    uint8 // 1<<shift slots are compressed together
	id       ChunkID
	slots    uint16
	present  uint16
	front    uint32 // bytes
	list     uint32 // bytes
	payload  uint32 // bytes
	commit   uint64 // catalog commit number durable when written
	frontCRC uint32
	listCRC  uint32
}

// size is the length of the whole chunk in bytes.
func (h *chunkHead) size() int64 {
	return headSize + int64(h.front) + int64(h.list) + int64(h.payload)
}

// groups is how many groups the slots fall into, stored or not.
func (h *chunkHead) groups() int { return (int(h.slots) + 1<<h.shift - 1) >> h.shift }

func (h *chunkHead) appendTo(dst []byte) []byte {
	var b [headSize]byte
	copy(b[0:], chunkMagic[:])
	le.PutUint16(b[4:], wal.Version)
	b[6], b[7] = byte(h.kind), h.shift
	copy(b[8:], h.id[:])
	le.PutUint16(b[28:], h.slots)
	le.PutUint16(b[30:], h.present)
	le.PutUint32(b[32:], h.front)
	le.PutUint32(b[36:], h.list)
	le.PutUint32(b[40:], h.payload)
	le.PutUint64(b[48:], h.commit)
	le.PutUint32(b[64:], h.frontCRC)
	le.PutUint32(b[68:], h.listCRC)
	le.PutUint32(b[76:], wal.PageCRC(b[:76]))
	return append(dst, b[:]...)
}

// parseChunkHead reads the first headSize bytes of b. ErrFormat: no chunk begins
// here; ErrVersion, ErrCorrupt.
func parseChunkHead(b []byte) (h chunkHead, err error) {
	if len(b) < headSize || [4]byte(b[:4]) != chunkMagic {
		return h, fmt.Errorf("%w: no chunk begins here", ErrFormat)
	}
	if v := le.Uint16(b[4:]); v != wal.Version {
		return h, fmt.Errorf("%w %d of a chunk", ErrVersion, v)
	}
	if wal.PageCRC(b[:76]) != le.Uint32(b[76:]) {
		return h, corrupt("checksum of the chunk head")
	}
	h = chunkHead{
		kind: Kind(b[6]), shift: b[7], id: ChunkID(b[8:28]),
		slots: le.Uint16(b[28:]), present: le.Uint16(b[30:]),
		front: le.Uint32(b[32:]), list: le.Uint32(b[36:]), payload: le.Uint32(b[40:]),
		commit: le.Uint64(b[48:]), frontCRC: le.Uint32(b[64:]), listCRC: le.Uint32(b[68:]),
	}
	if le.Uint32(b[44:])|le.Uint32(b[72:]) != 0 || le.Uint64(b[56:]) != 0 {
		return h, corrupt("chunk head has bits where it must be zero")
	}
	return h, h.validate()
}

// validate tells whether the fields are within their limits and agree.
func (h *chunkHead) validate() error {
	switch {
	case h.kind != KindData && h.kind != KindNodes:
		return corrupt("chunk kind %d", h.kind)
	case h.shift > maxShift:
		return corrupt("group shift %d", h.shift)
	case h.id.IsZero():
		return corrupt("chunk ID is zero")
	case h.slots == 0 || h.slots > MaxSlots || h.present == 0 || h.present > h.slots:
		return corrupt("%d of %d slots present", h.present, h.slots)
	case h.front > maxFront:
		return corrupt("front of %d bytes", h.front)
	case h.list%20 != 0 || h.list < 20*uint32(h.present) || h.list > 20*uint32(h.slots):
		return corrupt("list of %d bytes for %d of %d slots", h.list, h.present, h.slots)
	case h.payload == 0 || h.payload > BlockSize*uint32(h.present):
		return corrupt("payload of %d bytes for %d slots", h.payload, h.present)
	}
	return nil
}

// groupRef says where a group is stored; size 0 if none of its slots is present.
type groupRef struct {
	off   uint32 // in the payload
	size  uint32 // stored bytes
	crc   uint32 // of the stored bytes
	codec Codec
}

// front is what a read needs to find a slot in a copy of a chunk.
type front struct {
	head   chunkHead
	have   bitmap
	groups []groupRef // by group number
}

// slotsIn is the range of slots of group g and how many of them are present.
func (f *front) slotsIn(g int) (lo, hi, present int) {
	lo = g << f.head.shift
	hi = min(lo+1<<f.head.shift, int(f.head.slots))
	return lo, hi, f.have.countRange(lo, hi)
}

// payloadAt is the offset of the payload in its chunk.
func (f *front) payloadAt() int64 {
	return headSize + int64(f.head.front) + int64(f.head.list)
}

// parseFront reads the front of a chunk whose head is h.
func parseFront(h chunkHead, b []byte) (*front, error) {
	if len(b) != int(h.front) {
		return nil, corrupt("front has %d bytes of %d", len(b), h.front)
	}
	if wal.PageCRC(b) != h.frontCRC {
		return nil, corrupt("checksum of the front")
	}
	f := &front{head: h, have: fullBitmap(int(h.slots))}
	if h.present < h.slots {
		n := (int(h.slots) + 7) / 8
		if len(b) < n {
			return nil, corrupt("front has no room for its bitmap")
		}
		var ok bool
		if f.have, ok = parseBitmap(b[:n], int(h.slots)); !ok || f.have.count() != int(h.present) {
			return nil, corrupt("bitmap of a chunk with %d of %d slots", h.present, h.slots)
		}
		b = b[n:]
	}
	f.groups = make([]groupRef, h.groups())
	off := uint32(0)
	for g := range f.groups {
		_, _, k := f.slotsIn(g)
		if k == 0 {
			continue
		}
		if len(b) < groupEntry {
			return nil, corrupt("front ends before its groups")
		}
		w := le.Uint32(b)
		r := groupRef{off: off, size: w & 0xffffff, codec: Codec(w >> 24), crc: le.Uint32(b[4:])}
		full := uint32(k * BlockSize)
		if r.codec > CodecS2 || r.size == 0 || r.size > full || (r.codec == CodecRaw) != (r.size == full) {
			return nil, corrupt("group %d: %d bytes of codec %d for %d slots", g, r.size, r.codec, k)
		}
		f.groups[g] = r
		off += r.size
		b = b[groupEntry:]
	}
	if len(b) != 0 || off != h.payload {
		return nil, corrupt("front and payload length disagree")
	}
	return f, nil
}

// parseList reads the fingerprint list of a chunk. It does not compute the chunk ID.
func parseList(f *front, b []byte) (*tree, error) {
	if len(b) != int(f.head.list) || len(b)%20 != 0 {
		return nil, corrupt("list has %d bytes of %d", len(b), f.head.list)
	}
	if wal.PageCRC(b) != f.head.listCRC {
		return nil, corrupt("checksum of the list")
	}
	return listTree(f.head.kind, int(f.head.slots), f.have, b), nil
}

// listTree reads a list whose length was checked: whole hashes, at least one for each
// slot present.
func listTree(kind Kind, n int, have bitmap, b []byte) *tree {
	t := &tree{kind: kind, n: n, have: have, fps: make([]Fingerprint, n)}
	for i := range t.fps {
		if t.have.has(i) {
			t.fps[i] = Fingerprint(b[:20])
			b = b[20:]
		}
	}
	for ; len(b) > 0; b = b[20:] {
		t.absent = append(t.absent, Fingerprint(b[:20]))
	}
	return t
}

// proveList is parseList and checks that the list proves the chunk ID.
func proveList(f *front, b []byte) (*tree, error) {
	t, err := parseList(f, b)
	if err != nil {
		return nil, err
	}
	return t, t.prove(f.head.id)
}

// prove tells whether the list is that of this chunk; ErrCorrupt if not.
func (t *tree) prove(want ChunkID) error {
	id, err := t.id()
	if err != nil {
		return corrupt("%v", err)
	}
	if id != want {
		return corrupt("list proves chunk %s, not %s", id, want)
	}
	return nil
}

// storedGroup is a group ready to be written.
type storedGroup struct {
	codec Codec
	crc   uint32
	data  []byte // nil: no slot of the group is present
}

// encodedChunk is a chunk ready to be written: meta, then the groups' data.
type encodedChunk struct {
	front *front
	tree  *tree
	meta  []byte // head, front and list
	data  [][]byte
}

// encodeChunk lays out a chunk. groups are by group number and must match t.have.
func encodeChunk(id ChunkID, t *tree, shift uint8, groups []storedGroup, commit uint64) (*encodedChunk, error) {
	h := chunkHead{
		kind: t.kind, shift: shift, id: id, commit: commit,
		slots: uint16(t.n), present: uint16(t.have.count()),
	}
	var fr, data = []byte(nil), [][]byte(nil)
	if h.present < h.slots {
		fr = t.have.appendBytes(fr, t.n)
	}
	for _, g := range groups {
		if len(g.data) == 0 {
			continue
		}
		fr = le.AppendUint32(fr, uint32(len(g.data))|uint32(g.codec)<<24)
		fr = le.AppendUint32(fr, g.crc)
		h.payload += uint32(len(g.data))
		data = append(data, g.data)
	}
	list := make([]byte, 0, 20*(int(h.present)+len(t.absent)))
	for i := range t.n {
		if t.have.has(i) {
			list = append(list, t.fps[i][:]...)
		}
	}
	for i := range t.absent {
		list = append(list, t.absent[i][:]...)
	}
	h.front, h.frontCRC = uint32(len(fr)), wal.PageCRC(fr)
	h.list, h.listCRC = uint32(len(list)), wal.PageCRC(list)
	meta := h.appendTo(make([]byte, 0, headSize+len(fr)+len(list)))
	meta = append(append(meta, fr...), list...)

	// Verify before write: what cannot be read back must not reach the disk.
	back, err := parseChunkHead(meta)
	if err != nil {
		return nil, fmt.Errorf("encode chunk %s: %w", id, err)
	}
	f, err := parseFront(back, meta[headSize:headSize+len(fr)])
	if err != nil {
		return nil, fmt.Errorf("encode chunk %s: %w", id, err)
	}
	return &encodedChunk{front: f, tree: t, meta: meta, data: data}, nil
}

// codecs compresses and decompresses groups. Its methods may be called concurrently.
type codecs struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

// newCodecs makes room for workers calls at a time, one or more. What it asks for is fixed,
// and the codecs have it: their errors are for options that they do not know.
func newCodecs(workers int) *codecs {
	enc, encErr := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(workers), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(BlockSize<<maxShift))
	dec, decErr := zstd.NewReader(nil, zstd.WithDecoderConcurrency(max(workers, 4)),
		zstd.WithDecoderMaxMemory(1<<20), zstd.WithDecoderMaxWindow(1<<20),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err := errors.Join(encErr, decErr); err != nil {
		panic("dedup: zstd refuses its options: " + err.Error())
	}
	return &codecs{enc: enc, dec: dec}
}

func (c *codecs) close() {
	c.enc.Close()
	c.dec.Close()
}

// compress stores src with the codec, raw if that is not smaller. The result is in
// buf if it fits there, or is src itself.
func (c *codecs) compress(codec Codec, src, buf []byte) storedGroup {
	var out []byte
	switch codec {
	case CodecZstd:
		out = c.enc.EncodeAll(src, buf[:0])
	case CodecS2:
		out = s2.Encode(buf[:cap(buf)], src)
	}
	if len(out) == 0 || len(out) >= len(src) {
		codec, out = CodecRaw, src
	}
	return storedGroup{codec: codec, crc: wal.PageCRC(out), data: out}
}

// decompress fills dst, whose length is what the group must have, from stored bytes
// that matched their checksum.
func (c *codecs) decompress(codec Codec, dst, stored []byte) error {
	n := -1
	switch codec {
	case CodecRaw:
		if len(stored) == len(dst) {
			n = copy(dst, stored)
		}
	case CodecZstd:
		out, err := c.dec.DecodeAll(stored, dst[:0:len(dst)])
		if err != nil {
			return corrupt("zstd: %v", err)
		}
		n = len(out)
	case CodecS2:
		if m, err := s2.DecodedLen(stored); err != nil || m != len(dst) {
			return corrupt("s2 group is not %d bytes", len(dst))
		}
		out, err := s2.Decode(dst, stored)
		if err != nil {
			return corrupt("s2: %v", err)
		}
		n = len(out)
	}
	if n != len(dst) {
		return corrupt("group does not decode to %d bytes", len(dst))
	}
	return nil
}
