package dedup

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// classed fails the test unless err says which of the three questions was answered no.
func classed(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrCorrupt) {
		t.Fatalf("error of no class: %v", err)
	}
}

// FuzzChunkHead: a head that is taken encodes to the same bytes.
func FuzzChunkHead(f *testing.F) {
	f.Add(mustHex(f, goldenChunk)[:headSize], false)
	f.Add(mustHex(f, goldenChunk)[:headSize], true)
	f.Add([]byte("GCHK"), true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if b = bytes.Clone(b); seal && len(b) >= headSize {
			le.PutUint32(b[76:], wal.PageCRC(b[:76]))
		}
		h, err := parseChunkHead(b)
		if err != nil {
			classed(t, err)
			return
		}
		if again := h.appendTo(nil); !bytes.Equal(again, b[:headSize]) {
			t.Fatalf("%x encodes to %x", b[:headSize], again)
		}
		if h.size() > maxChunk {
			t.Fatalf("a chunk of %d bytes", h.size())
		}
	})
}

// FuzzChunk: front and list behind a head whose checksums are right. What is taken has
// groups that fill the payload exactly, and encodes to the same bytes.
func FuzzChunk(f *testing.F) {
	for _, keep := range []bitmap{fullBitmap(9), {0x103}, {1}} {
		full := &tree{kind: KindData, n: 9, have: fullBitmap(9), fps: fingerprints(9)}
		id, _ := full.id()
		part, err := full.reduce(&keep)
		if err != nil {
			f.Fatal(err)
		}
		groups := make([]storedGroup, 2)
		if keep.any(0, 8) {
			groups[0] = storedGroup{CodecZstd, 1, make([]byte, 9)}
		}
		if keep.any(8, 9) {
			groups[1] = storedGroup{CodecRaw, 2, make([]byte, BlockSize)}
		}
		e, err := encodeChunk(id, part, 3, groups, 1)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e.meta)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headSize {
			return
		}
		b = bytes.Clone(b)
		rest := b[headSize:]
		n := min(uint64(le.Uint32(b[32:])), uint64(len(rest)))
		m := min(uint64(le.Uint32(b[36:])), uint64(len(rest))-n)
		le.PutUint32(b[64:], wal.PageCRC(rest[:n]))
		le.PutUint32(b[68:], wal.PageCRC(rest[n:n+m]))
		le.PutUint32(b[76:], wal.PageCRC(b[:76]))
		h, err := parseChunkHead(b)
		if err != nil {
			classed(t, err)
			return
		}
		fr, err := parseFront(h, rest[:n])
		if err != nil {
			classed(t, err)
			return
		}
		sum := uint32(0)
		for _, g := range fr.groups {
			sum += g.size
		}
		if sum != h.payload || fr.have.count() != int(h.present) {
			t.Fatalf("groups of %d bytes in a payload of %d; %d slots of %d", sum, h.payload, fr.have.count(), h.present)
		}
		tr, err := parseList(fr, rest[n:n+m])
		if err != nil {
			classed(t, err)
			return
		}
		if id, err := tr.id(); err == nil {
			h.id = id // whatever it says, this is what it proves
			if err := tr.prove(id); err != nil {
				t.Fatal(err)
			}
			groups := make([]storedGroup, len(fr.groups))
			for i, g := range fr.groups {
				if g.size > 0 {
					groups[i] = storedGroup{g.codec, g.crc, make([]byte, g.size)}
				}
			}
			e, err := encodeChunk(id, tr, h.shift, groups, h.commit)
			if err != nil {
				t.Fatalf("a chunk that was read cannot be written: %v", err)
			}
			if want := append(h.appendTo(nil), rest[:n+m]...); !bytes.Equal(e.meta, want) {
				t.Fatalf("%x\nencodes to\n%x", want, e.meta)
			}
		}
	})
}

// FuzzScan: whatever a file is made of, reading it chunk by chunk comes to its end.
func FuzzScan(f *testing.F) {
	chunk := mustHex(f, goldenChunk)
	f.Add(chunk)
	f.Add(append(chunk[:40:40], chunk...))
	f.Add(append(chunk[:len(chunk)-1:len(chunk)-1], chunk...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newWindow(bytes.NewReader(b), int64(len(b)))
		for at := int64(0); at >= 0 && at < int64(len(b)); {
			c, _, err := readWhole(r, at, int64(len(b)))
			if err == nil {
				if at += c.head.size(); at > int64(len(b)) {
					t.Fatalf("chunk up to %d in a file of %d bytes", at, len(b))
				}
				continue
			}
			next, err := nextHead(r, at+1)
			if err != nil {
				t.Fatal(err)
			}
			if next >= 0 && next <= at {
				t.Fatalf("the head behind %d is at %d", at, next)
			}
			at = next
		}
	})
}

// FuzzFooter: a footer that is taken encodes to the same bytes, and its chunks lie
// behind each other in the file.
func FuzzFooter(f *testing.F) {
	f.Add(mustHex(f, goldenFooter), uint16(1), uint16(1), uint32(1<<20))
	f.Add([]byte{}, uint16(0), uint16(0), uint32(64))
	f.Fuzz(func(t *testing.T, b []byte, nchunks, nhooks uint16, end uint32) {
		chunks, hooks, err := parseFooter(b, uint32(nchunks), uint32(nhooks), int64(end))
		if err != nil {
			classed(t, err)
			return
		}
		at := int64(fileHeaderSize)
		for i := range chunks {
			if int64(chunks[i].off) < at {
				t.Fatalf("chunk %d at %d, the one before ends at %d", i, chunks[i].off, at)
			}
			at = int64(chunks[i].off) + chunks[i].head.size()
		}
		if len(chunks) > 0 && at > int64(end) {
			t.Fatalf("chunks end at %d, the file's at %d", at, end)
		}
		if again := encodeFooter(chunks, hooks); !bytes.Equal(again, b) {
			t.Fatalf("%x encodes to %x", b, again)
		}
	})
}

// FuzzTrailer: trailer and file header, their checksums right or not.
func FuzzTrailer(f *testing.F) {
	f.Add(mustHex(f, goldenTrailer), true)
	f.Add(mustHex(f, goldenHeader), true)
	f.Add(mustHex(f, goldenHeader), false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		b = bytes.Clone(b)
		if seal && len(b) >= trailerSize {
			le.PutUint32(b[92:], wal.PageCRC(b[:92]))
		}
		if tr, err := parseTrailer(b); err != nil {
			classed(t, err)
		} else if again := tr.encode(); !bytes.Equal(again, b) {
			t.Fatalf("trailer %x encodes to %x", b, again)
		}
		if seal && len(b) >= fileHeaderSize {
			le.PutUint32(b[60:], wal.PageCRC(b[:60]))
		}
		h, err := parseFileHeader(b)
		if err != nil {
			classed(t, err)
			return
		}
		again := h.encode()
		copy(again[12:16], b[12:16]) // compat feature bits: ignored
		le.PutUint32(again[60:], wal.PageCRC(again[:60]))
		if !bytes.Equal(again, b[:fileHeaderSize]) {
			t.Fatalf("file header %x encodes to %x", b[:fileHeaderSize], again)
		}
	})
}

// decompressBudget is what decoding one group may allocate, in bytes: the decoder's own
// tables and a window, but nothing that stored bytes ask for.
const decompressBudget = 8 << 20

// FuzzDecompress: stored bytes of a group never decode to another length and never
// take more memory than their group may; what is compressed comes back.
func FuzzDecompress(f *testing.F) {
	cs := newCodecs(1)
	f.Cleanup(cs.close)
	for _, codec := range []Codec{CodecRaw, CodecZstd, CodecS2} {
		for _, n := range []int{1, 8, 32} {
			g := cs.compress(codec, bytes.Repeat([]byte("granary."), n*BlockSize/8), nil)
			f.Add(byte(g.codec), byte(n), g.data[:min(len(g.data), 512)])
		}
	}
	// A zstd frame with one block of 2 MiB - 1 equal bytes, which says that it is larger yet.
	f.Add(byte(CodecZstd), byte(1), []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0x7f, 0xfb, 0xff, 0xff, 0})
	f.Add(byte(CodecS2), byte(1), []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0})
	f.Fuzz(func(t *testing.T, codec, blocks byte, stored []byte) {
		k := int(blocks)%(1<<maxShift) + 1
		dst := make([]byte, k*BlockSize+1)
		dst[len(dst)-1] = 0xa5 // behind what may be written
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := cs.decompress(Codec(codec%4), dst[:k*BlockSize:k*BlockSize], stored)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > decompressBudget {
			t.Fatalf("%d bytes allocated for a group of %d", n, k*BlockSize)
		}
		if dst[len(dst)-1] != 0xa5 {
			t.Fatal("written behind the end")
		}
		if err != nil {
			classed(t, err)
		}
		src := make([]byte, k*BlockSize)
		for i := 0; len(stored) > 0 && i < len(src); {
			i += copy(src[i:], stored)
		}
		g := cs.compress(Codec(codec%3), src, make([]byte, 0, len(src)))
		back := make([]byte, len(src))
		if err := cs.decompress(g.codec, back, g.data); err != nil || !bytes.Equal(back, src) {
			t.Fatalf("%v: what was compressed does not come back: %v", g.codec, err)
		}
	})
}

// FuzzNames: file names and IDs have one form.
func FuzzNames(f *testing.F) {
	n := FileNum{0x12, 0xabcdef01}
	f.Add(n.openName())
	f.Add(n.sealedName([32]byte{1, 2}))
	f.Add("0123456789abcdef0123456789abcdef01234567")
	f.Fuzz(func(t *testing.T, s string) {
		if n, hash, ok := parseName(s); ok {
			again := n.openName()
			if hash != "" {
				again = fmt.Sprintf("%08x-%08x-%s.chunks", n.Epoch, n.Counter, hash)
			}
			if again != s {
				t.Fatalf("%q is taken for %q", s, again)
			}
		}
		if id, err := ParseChunkID(s); err == nil && id.String() != s {
			t.Fatalf("%q is taken for chunk %s", s, id)
		}
		if fp, err := ParseFingerprint(s); err == nil && fp.String() != s {
			t.Fatalf("%q is taken for fingerprint %s", s, fp)
		}
	})
}

// fuzzBase is a chunk file of some chunks of both kinds, one of them without some of
// its slots, as it is open and sealed, and what is in it.
type fuzzBase struct {
	open, sealed []byte
	num          FileNum
	heads        []int64 // where chunks begin
	content      map[Slot][]byte
}

func newFuzzBase(t testing.TB) fuzzBase {
	base := fuzzBase{num: FileNum{1, 1}, content: make(map[Slot][]byte)}
	mem := vfs.NewMem()
	s := open(t, mem, 1, func(o *Options) { o.FileBytes = 1 << 20 })
	keep := bitmap{0b1010010}
	for i, n := range []int{9, 2, 7} {
		full := &tree{kind: Kind(1 + i%2), n: n, have: fullBitmap(n), fps: make([]Fingerprint, n)}
		blocks := make([][]byte, n)
		for j := range blocks {
			blocks[j] = block(100*i + j)
			full.fps[j] = FingerprintOf(blocks[j])
		}
		id, err := full.id()
		if err != nil {
			t.Fatal(err)
		}
		part := full
		if i == 2 {
			if part, err = full.reduce(&keep); err != nil {
				t.Fatal(err)
			}
		}
		e, err := s.encodeMixed(id, part, 3, []Codec{CodecZstd, CodecS2, CodecZstd}[i], nil, func(j int) []byte { return blocks[j] })
		if err != nil {
			t.Fatal(err)
		}
		copies, err := s.append(e)
		if err != nil {
			t.Fatal(err)
		}
		base.heads = append(base.heads, int64(copies[0].off))
		for j := range blocks {
			if part.have.has(j) {
				base.content[Slot{id, uint16(j)}] = blocks[j]
			}
		}
	}
	base.open = readOnly(t, mem)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	base.sealed = readOnly(t, mem)
	return base
}

// readOnly reads the one file of the directory.
func readOnly(t testing.TB, mem *vfs.Mem) []byte {
	t.Helper()
	names, err := mem.ReadDir(testDir)
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	b, err := vfs.ReadFile(mem, testDir+"/"+names[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// edit changes a file as the script says: steps of six bytes, what to do, where, and
// with what.
func edit(b, script []byte) []byte {
	b = bytes.Clone(b)
	for ; len(script) >= 6 && len(b) > 0; script = script[6:] {
		at := int(le.Uint32(script[1:])) % len(b)
		switch arg := script[5]; script[0] % 6 {
		case 0:
			b[at] ^= max(arg, 1)
		case 1:
			b[at] = arg
		case 2:
			b = b[:at]
		case 3: // a sector that was lost
			clear(b[at/512*512 : min(at/512*512+512, len(b))])
		case 4: // bytes from somewhere else
			copy(b[at:], b[len(b)*int(arg)/256:][:min(512, len(b)-len(b)*int(arg)/256)])
		case 5: // more at the end
			b = append(b, b[at:min(at+4*int(arg), len(b))]...)
		}
	}
	return b
}

// What FuzzChunkFile makes right again behind its edits.
const (
	fixHeads = 1 << iota
	fixLists
	fixFooter
	fixHeader
)

func (base *fuzzBase) fix(b []byte, what byte) {
	for _, at := range base.heads {
		if at+headSize > int64(len(b)) {
			continue
		}
		h := b[at:]
		front, list := uint64(le.Uint32(h[32:])), uint64(le.Uint32(h[36:]))
		if end := headSize + front + list; what&fixLists != 0 && end <= uint64(len(h)) {
			le.PutUint32(h[64:], wal.PageCRC(h[headSize:headSize+front]))
			le.PutUint32(h[68:], wal.PageCRC(h[headSize+front:end]))
		}
		if what&fixHeads != 0 {
			le.PutUint32(h[76:], wal.PageCRC(h[:76]))
		}
	}
	if n := len(b) - trailerSize; what&fixFooter != 0 && n >= 0 {
		t := b[n:]
		if size := int(le.Uint32(t[16:])); size >= 0 && size <= n {
			le.PutUint32(t[20:], wal.PageCRC(b[n-size:n]))
		}
		le.PutUint32(t[92:], wal.PageCRC(t[:92]))
	}
	if what&fixHeader != 0 && len(b) >= fileHeaderSize {
		le.PutUint32(b[60:], wal.PageCRC(b[:60]))
	}
}

// FuzzChunkFile damages a chunk file, open or sealed, in every way that it can think
// of, with checksums put right where it likes, and opens the store: no read ever
// returns wrong bytes (I5), what can be read can be read after the next start too, and
// dump and check look at anything.
func FuzzChunkFile(f *testing.F) {
	base := newFuzzBase(f)
	f.Add(false, byte(0), []byte{})
	f.Add(true, byte(0), []byte{})
	f.Add(true, byte(fixFooter), []byte{2, 100, 0, 0, 0, 0})
	f.Add(false, byte(fixHeads|fixLists), []byte{0, 96, 0, 0, 0, 1})
	for i, at := range base.heads {
		f.Add(i%2 == 0, byte(fixHeads), le.AppendUint32([]byte{0}, uint32(at)+40))
		f.Add(i%2 == 0, byte(0), append(le.AppendUint32([]byte{4}, uint32(at)), 128))
	}
	f.Fuzz(func(t *testing.T, sealed bool, what byte, script []byte) {
		if len(script) > 6*32 {
			return
		}
		from, name := base.open, base.num.openName()
		if sealed {
			from, name = base.sealed, base.num.sealedName([32]byte{9})
		}
		b := edit(from, script)
		if len(b) > 1<<20 {
			return
		}
		base.fix(b, what)
		mem := vfs.NewMem()
		if err := mem.MkdirAll(testDir); err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFileAtomic(mem, testDir+"/"+name, b); err != nil {
			t.Fatal(err)
		}
		if err := Dump(io.Discard, mem, testDir+"/"+name, nil); err != nil && len(b) >= fileHeaderSize {
			classed(t, err)
		}
		// Who makes head and footer agree on a forged ID has made another chunk of it: only
		// check finds that, by the fingerprints.
		forged := sealed && what&fixHeads != 0 && what&fixFooter != 0
		good := base.read(t, mem, 2, forged)
		for at := range base.read(t, mem, 3, forged) {
			delete(good, at)
		}
		if len(good) > 0 {
			t.Fatalf("readable before the second start, not after it: %v", good)
		}
	})
}

// read opens the store in epoch, reads all that the base has and returns the slots that
// are there.
func (base *fuzzBase) read(t *testing.T, mem *vfs.Mem, epoch uint32, forged bool) map[Slot]bool {
	t.Helper()
	dir, err := blob.NewDir(mem, testDir, 8)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, Options{Store: testStore, Epoch: epoch, FileBytes: 64 << 10, CacheBytes: 1 << 20, ListCache: 16, Workers: 1})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	good := make(map[Slot]bool)
	for at, want := range base.content {
		got, err := s.ReadNode(at)
		if err == nil && !bytes.Equal(got, want) && !forged {
			t.Fatalf("slot %s has other bytes than were written", at)
		}
		if err != nil && !errors.Is(err, ErrMissing) && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("slot %s: %v", at, err)
		}
		if err == nil {
			good[at] = true
		}
	}
	for _, file := range s.Files() {
		if err := s.VerifyFile(file.Name, true, func(Problem) {}); err != nil {
			t.Fatalf("verify %s: %v", file.Name, err)
		}
	}
	invariants(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return good
}
