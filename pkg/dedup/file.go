package dedup

import (
	"fmt"
	"strings"

	"github.com/k8ns/granary/pkg/wal"
)

// FileNum is a chunk file's number; it is never used twice in a store.
type FileNum struct{ Epoch, Counter uint32 }

// openName is the name while it is appended to.
func (n FileNum) openName() string { return fmt.Sprintf("%08x-%08x.open", n.Epoch, n.Counter) }

// sealedName is the name once sealed.
func (n FileNum) sealedName(hash [32]byte) string {
	return fmt.Sprintf("%08x-%08x-%x.chunks", n.Epoch, n.Counter, hash[:16])
}

func (n FileNum) less(o FileNum) bool {
	return n.Epoch < o.Epoch || n.Epoch == o.Epoch && n.Counter < o.Counter
}

// parseName reads a chunk file's name; ok is false for other names. hash is empty
// for an open file, else 32 hex digits.
func parseName(name string) (n FileNum, hash string, ok bool) {
	base, open := strings.CutSuffix(name, ".open")
	if !open {
		if base, ok = strings.CutSuffix(name, ".chunks"); !ok || len(base) != 17+1+32 || base[17] != '-' {
			return n, "", false
		}
		base, hash = base[:17], base[18:]
		var h [16]byte
		if parseHex(h[:], hash) != nil {
			return n, "", false
		}
	}
	if len(base) != 17 || base[8] != '-' {
		return n, "", false
	}
	var e, c [4]byte
	if parseHex(e[:], base[:8]) != nil || parseHex(c[:], base[9:]) != nil {
		return n, "", false
	}
	be := func(b [4]byte) uint32 {
		return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	}
	return FileNum{be(e), be(c)}, hash, true
}

const (
	fileHeaderSize  = 64       // bytes
	trailerSize     = 96       // bytes
	footerEntrySize = 52       // bytes a chunk
	footerHookSize  = 12       // bytes a hook
	maxFooter       = 64 << 20 // bytes that Open is ready to hold at once for a file
	maxFileBytes    = 1 << 30  // offsets are 32 bits wide
)

var (
	fileMagic    = wal.Magic{'G', 'R', 'C', 'F'}
	trailerMagic = wal.Magic{'G', 'R', 'F', 'T'}
)

// fileHeader begins every chunk file.
type fileHeader struct {
	store  [16]byte
	num    FileNum
	commit uint64 // catalog commit number durable at creation
}

func (h *fileHeader) encode() []byte {
	b := make([]byte, fileHeaderSize)
	wal.Head{Magic: fileMagic, Store: h.store}.Put(b)
	le.PutUint32(b[32:], h.num.Epoch)
	le.PutUint32(b[36:], h.num.Counter)
	le.PutUint64(b[40:], h.commit)
	le.PutUint32(b[60:], wal.PageCRC(b[:60]))
	return b
}

// parseFileHeader reads a file header: ErrFormat, ErrVersion, ErrCorrupt.
func parseFileHeader(b []byte) (h fileHeader, err error) {
	head, err := wal.ParseHead(b, fileMagic)
	if err != nil {
		return h, err
	}
	if len(b) < fileHeaderSize || wal.PageCRC(b[:60]) != le.Uint32(b[60:]) {
		return h, corrupt("checksum of the file header")
	}
	if le.Uint64(b[48:])|uint64(le.Uint32(b[56:])) != 0 {
		return h, corrupt("file header has bits where it must be zero")
	}
	return fileHeader{
		store:  head.Store,
		num:    FileNum{le.Uint32(b[32:]), le.Uint32(b[36:])},
		commit: le.Uint64(b[40:]),
	}, nil
}

// footerChunk is a chunk as a sealed file's footer lists it.
type footerChunk struct {
	head chunkHead // without checksums and commit number
	off  uint32    // of the chunk in the file
	have *bitmap   // nil: every slot is present
}

// hook is a sampled fingerprint of a file.
type hook struct {
	prefix uint64
	chunk  uint16 // number in the file
	slot   uint16
}

// encodeFooter lays out the footer. Chunks behind the 65,536th get no hooks.
func encodeFooter(chunks []footerChunk, hooks []hook) []byte {
	b := make([]byte, 0, len(chunks)*footerEntrySize+len(hooks)*footerHookSize)
	for i := range chunks {
		c := &chunks[i]
		b = append(b, c.head.id[:]...)
		b = le.AppendUint32(b, c.off)
		b = le.AppendUint32(b, c.head.front)
		b = le.AppendUint32(b, c.head.list)
		b = le.AppendUint32(b, c.head.payload)
		b = le.AppendUint16(b, c.head.slots)
		b = le.AppendUint16(b, c.head.present)
		b = append(b, byte(c.head.kind), c.head.shift)
		b = append(b, make([]byte, 10)...)
	}
	for i := range chunks {
		if c := &chunks[i]; c.have != nil {
			b = c.have.appendBytes(b, int(c.head.slots))
		}
	}
	for _, h := range hooks {
		b = le.AppendUint64(b, h.prefix)
		b = le.AppendUint16(b, h.chunk)
		b = le.AppendUint16(b, h.slot)
	}
	return b
}

// parseFooter reads the footer of a file whose chunks end before end. It allocates
// no more than a few times len(b).
func parseFooter(b []byte, nchunks, nhooks uint32, end int64) ([]footerChunk, []hook, error) {
	if uint64(nchunks)*footerEntrySize+uint64(nhooks)*footerHookSize > uint64(len(b)) {
		return nil, nil, corrupt("footer of %d bytes for %d chunks and %d hooks", len(b), nchunks, nhooks)
	}
	chunks := make([]footerChunk, nchunks)
	at := int64(fileHeaderSize)
	for i := range chunks {
		c := &chunks[i]
		c.head = chunkHead{
			id: ChunkID(b[:20]), front: le.Uint32(b[24:]), list: le.Uint32(b[28:]), payload: le.Uint32(b[32:]),
			slots: le.Uint16(b[36:]), present: le.Uint16(b[38:]), kind: Kind(b[40]), shift: b[41],
		}
		c.off = le.Uint32(b[20:])
		if err := c.head.validate(); err != nil {
			return nil, nil, fmt.Errorf("footer entry %d: %w", i, err)
		}
		if int64(c.off) < at || int64(c.off)+c.head.size() > end || uint64(le.Uint16(b[42:]))|le.Uint64(b[44:]) != 0 {
			return nil, nil, corrupt("footer entry %d", i)
		}
		at = int64(c.off) + c.head.size()
		b = b[footerEntrySize:]
	}
	for i := range chunks {
		c := &chunks[i]
		if c.head.present == c.head.slots {
			continue
		}
		n := (int(c.head.slots) + 7) / 8
		if len(b) < n {
			return nil, nil, corrupt("footer has no room for its bitmaps")
		}
		have, ok := parseBitmap(b[:n], int(c.head.slots))
		if !ok || have.count() != int(c.head.present) {
			return nil, nil, corrupt("footer bitmap %d", i)
		}
		c.have = &have
		b = b[n:]
	}
	if uint64(len(b)) != uint64(nhooks)*footerHookSize {
		return nil, nil, corrupt("footer length")
	}
	hooks := make([]hook, nhooks)
	for i := range hooks {
		h := hook{le.Uint64(b), le.Uint16(b[8:]), le.Uint16(b[10:])}
		if !isHook(h.prefix) || uint32(h.chunk) >= nchunks || h.slot >= chunks[h.chunk].head.slots {
			return nil, nil, corrupt("footer hook %d", i)
		}
		hooks[i] = h
		b = b[footerHookSize:]
	}
	return chunks, hooks, nil
}

// trailer ends a sealed file. At offset 64 it keeps the highest catalog commit number
// in the file's header and chunk heads, so that a start learns it without reading them.
type trailer struct {
	chunks    uint32
	hooks     uint32
	footer    uint32 // bytes
	footerCRC uint32
	hash      [32]byte // BLAKE3 of the file up to the trailer
	commit    uint64
}

func (t *trailer) encode() []byte {
	b := make([]byte, trailerSize)
	copy(b, trailerMagic[:])
	le.PutUint16(b[4:], wal.Version)
	le.PutUint32(b[8:], t.chunks)
	le.PutUint32(b[12:], t.hooks)
	le.PutUint32(b[16:], t.footer)
	le.PutUint32(b[20:], t.footerCRC)
	copy(b[32:], t.hash[:])
	le.PutUint64(b[64:], t.commit)
	le.PutUint32(b[92:], wal.PageCRC(b[:92]))
	return b
}

// parseTrailer reads a trailer: ErrFormat (there is none), ErrVersion, ErrCorrupt.
func parseTrailer(b []byte) (t trailer, err error) {
	if len(b) != trailerSize || wal.Magic(b[:4]) != trailerMagic {
		return t, fmt.Errorf("%w: no chunk file trailer", ErrFormat)
	}
	if v := le.Uint16(b[4:]); v != wal.Version {
		return t, fmt.Errorf("%w %d of a chunk file trailer", ErrVersion, v)
	}
	if wal.PageCRC(b[:92]) != le.Uint32(b[92:]) {
		return t, corrupt("checksum of the trailer")
	}
	zeros := uint64(le.Uint16(b[6:])) | le.Uint64(b[24:]) | le.Uint64(b[72:]) | le.Uint64(b[80:]) | uint64(le.Uint32(b[88:]))
	t = trailer{
		chunks: le.Uint32(b[8:]), hooks: le.Uint32(b[12:]), footer: le.Uint32(b[16:]),
		footerCRC: le.Uint32(b[20:]), hash: [32]byte(b[32:64]), commit: le.Uint64(b[64:]),
	}
	if zeros != 0 || t.footer > maxFooter {
		return t, corrupt("fields of the trailer")
	}
	return t, nil
}
