package dedup

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// wantError wants an error of a kind that says text; kind nil is any.
func wantError(t *testing.T, what string, err, kind error, text string) {
	t.Helper()
	if err == nil || kind != nil && !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v; want %v and %q", what, err, kind, text)
	}
}

// TestChunkHead_Refuses: each field out of its limits, under a good checksum.
func TestChunkHead_Refuses(t *testing.T) {
	good := mustHex(t, goldenChunk)[:headSize]
	for _, c := range []struct {
		at   int
		with []byte
		kind error
		text string
	}{
		{0, []byte("GCHX"), ErrFormat, "no chunk begins here"},
		{4, []byte{2}, ErrVersion, "2 of a chunk"},
		{6, []byte{3}, ErrCorrupt, "chunk kind 3"},
		{7, []byte{6}, ErrCorrupt, "group shift 6"},
		{8, make([]byte, 20), ErrCorrupt, "chunk ID is zero"},
		{28, []byte{0, 0}, ErrCorrupt, "2 of 0 slots present"},
		{28, []byte{1, 4}, ErrCorrupt, "2 of 1025 slots present"},
		{30, []byte{0, 0}, ErrCorrupt, "0 of 3 slots present"},
		{30, []byte{4, 0}, ErrCorrupt, "4 of 3 slots present"},
		{32, []byte{0, 0, 1}, ErrCorrupt, "front of 65536 bytes"},
		{36, []byte{61}, ErrCorrupt, "list of 61 bytes for 2 of 3 slots"},
		{36, []byte{20}, ErrCorrupt, "list of 20 bytes"},
		{36, []byte{80}, ErrCorrupt, "list of 80 bytes"},
		{40, []byte{0}, ErrCorrupt, "payload of 0 bytes for 2 slots"},
		{40, []byte{1, 32}, ErrCorrupt, "payload of 8193 bytes for 2 slots"},
		{44, []byte{1}, ErrCorrupt, "bits where it must be zero"},
		{56, []byte{1}, ErrCorrupt, "bits where it must be zero"},
		{72, []byte{1}, ErrCorrupt, "bits where it must be zero"},
	} {
		b := bytes.Clone(good)
		copy(b[c.at:], c.with)
		if _, err := parseChunkHead(b); c.at >= 6 {
			wantError(t, c.text, err, ErrCorrupt, "checksum of the chunk head")
		}
		le.PutUint32(b[76:], wal.PageCRC(b[:76]))
		_, err := parseChunkHead(b)
		wantError(t, c.text, err, c.kind, c.text)
	}
	_, err := parseChunkHead(good[:79])
	wantError(t, "short", err, ErrFormat, "no chunk begins here")
}

// TestFront_Refuses: fronts and lists that disagree with a good head, under checksums
// that are good.
func TestFront_Refuses(t *testing.T) {
	all := mustHex(t, goldenChunk)
	h, err := parseChunkHead(all)
	if err != nil {
		t.Fatal(err)
	}
	fr, list := all[headSize:][:h.front], all[headSize+h.front:][:h.list]
	for _, c := range []struct {
		text  string
		front []byte
		head  func(*chunkHead)
	}{
		{"front has 8 bytes of 9", fr[:8], nil},
		{"checksum of the front", fr, func(h *chunkHead) { h.frontCRC++ }},
		{"no room for its bitmap", []byte{}, func(h *chunkHead) { h.front = 0 }},
		{"bitmap of a chunk with 2 of 3 slots", append([]byte{7}, fr[1:]...), nil},
		{"bitmap of a chunk with 2 of 3 slots", append([]byte{0x81}, fr[1:]...), nil},
		{"front ends before its groups", fr[:8], func(h *chunkHead) { h.front = 8 }},
		{"group 0: 0 bytes of codec", append([]byte{fr[0], 0, 0, 0}, fr[4:]...), nil},
		{"of codec 3 for 2 slots", append([]byte{fr[0], fr[1], fr[2], fr[3], 3}, fr[5:]...), nil},
		{"of codec 0 for 2 slots", append([]byte{fr[0], fr[1], fr[2], fr[3], 0}, fr[5:]...), nil},
		{"front and payload length disagree", fr, func(h *chunkHead) { h.payload++ }},
		{"front and payload length disagree", append(bytes.Clone(fr), 0), func(h *chunkHead) { h.front++ }},
	} {
		h := h
		h.frontCRC = wal.PageCRC(c.front)
		if c.head != nil {
			c.head(&h)
		}
		_, err := parseFront(h, c.front)
		wantError(t, c.text, err, ErrCorrupt, c.text)
	}
	f, err := parseFront(h, fr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = parseList(f, list[:40])
	wantError(t, "short list", err, ErrCorrupt, "list has 40 bytes of 60")
	bad := bytes.Clone(list)
	bad[5]++
	_, err = parseList(f, bad)
	wantError(t, "list", err, ErrCorrupt, "checksum of the list")
	f.head.listCRC = wal.PageCRC(bad)
	_, err = proveList(f, bad)
	wantError(t, "another list", err, ErrCorrupt, "list proves chunk ")
	f.head.list, f.head.listCRC = 40, wal.PageCRC(list[:40])
	_, err = proveList(f, list[:40])
	wantError(t, "list without the absent slot's hash", err, ErrCorrupt, errProof.Error())
	whole := &tree{kind: KindData, n: 3, have: fullBitmap(3), fps: fingerprints(3)}
	id, err := whole.id()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := whole.reduce(&bitmap{1}); err != nil {
		t.Fatal(err)
	}
	_, err = (&tree{kind: KindData, n: 3, have: bitmap{3}, fps: whole.fps}).reduce(&bitmap{1})
	wantError(t, "a tree without a hash that it needs", err, errProof, "")
	// What could not be read back is not written.
	_, err = encodeChunk(id, whole, 3, nil, 1)
	wantError(t, "no payload", err, ErrCorrupt, "encode chunk "+id.String())
	_, err = encodeChunk(id, whole, 3, []storedGroup{{CodecRaw, 1, make([]byte, 9)}}, 1)
	wantError(t, "group", err, ErrCorrupt, "group 0: 9 bytes of codec 0 for 3 slots")
}

func TestFooter_Refuses(t *testing.T) {
	good := mustHex(t, goldenFooter)
	with := func(at int, b ...byte) []byte {
		c := bytes.Clone(good)
		copy(c[at:], b)
		return c
	}
	hooks := len(good) - footerHookSize
	for _, c := range []struct {
		text           string
		b              []byte
		chunks, nhooks uint32
	}{
		{"footer of 65 bytes for 2 chunks and 1 hooks", good, 2, 1},
		{"footer entry 0: damaged: chunk kind 9", with(40, 9), 1, 1},
		{"footer entry 0", with(20, 1), 1, 1},                  // inside the file's header
		{"footer entry 0", with(22, 0xff), 1, 1},               // behind the end
		{"footer entry 0", with(50, 1), 1, 1},                  // where it must be zero
		{"footer bitmap 0", with(footerEntrySize, 7), 1, 1},    // three slots, two are present
		{"footer bitmap 0", with(footerEntrySize, 0x82), 1, 1}, // a slot that is none
		{"footer has no room for its bitmaps", good[:footerEntrySize], 1, 0},
		{"footer length", good, 1, 0},
		{"footer length", append(bytes.Clone(good), 0), 1, 1},
		{"footer hook 0", with(hooks, 1), 1, 1},    // not a sampled fingerprint
		{"footer hook 0", with(hooks+8, 1), 1, 1},  // of a chunk that is none
		{"footer hook 0", with(hooks+10, 3), 1, 1}, // of a slot that is none
	} {
		_, _, err := parseFooter(c.b, c.chunks, c.nhooks, 1<<20)
		wantError(t, c.text, err, ErrCorrupt, c.text)
	}
	tr := mustHex(t, goldenTrailer)
	h := mustHex(t, goldenHeader)
	for _, c := range []struct {
		at   int
		kind error
		text string
	}{
		{0, ErrFormat, "no chunk file trailer"}, {4, ErrVersion, "of a chunk file trailer"}, {6, ErrCorrupt, "fields of the trailer"},
		{19, ErrCorrupt, "fields of the trailer"}, {24, ErrCorrupt, "fields of the trailer"}, {88, ErrCorrupt, "fields of the trailer"},
	} {
		b := bytes.Clone(tr)
		b[c.at] += 8
		if c.at >= 6 {
			_, err := parseTrailer(b)
			wantError(t, c.text, err, ErrCorrupt, "checksum of the trailer")
		}
		le.PutUint32(b[92:], wal.PageCRC(b[:92]))
		_, err := parseTrailer(b)
		wantError(t, c.text, err, c.kind, c.text)
	}
	h[48]++
	_, err := parseFileHeader(h)
	wantError(t, "header", err, ErrCorrupt, "checksum of the file header")
	le.PutUint32(h[60:], wal.PageCRC(h[:60]))
	_, err = parseFileHeader(h)
	wantError(t, "header", err, ErrCorrupt, "file header has bits where it must be zero")
}

func TestIDs_Refused(t *testing.T) {
	for _, s := range []string{"", "00", strings.Repeat("0", 39) + "G", strings.Repeat("A", 40), strings.Repeat("0", 41)} {
		_, err := ParseChunkID(s)
		wantError(t, s, err, nil, "chunk ID \""+s+"\": want ")
		wantError(t, s, new(ChunkID).UnmarshalText([]byte(s)), nil, "chunk ID \""+s+"\": want ")
		_, err = ParseFingerprint(s)
		wantError(t, s, err, nil, "fingerprint \""+s+"\": want ")
	}
}

// TestWriter_Refuses: what is no block ends a session; everything later says the same.
func TestWriter_Refuses(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	defer s.Close()
	for text, do := range map[string]func(*Writer) error{
		"block of 5 bytes":    func(w *Writer) error { _, err := w.Block(make([]byte, 5), Slot{}); return err },
		"map node of 5 bytes": func(w *Writer) error { _, _, err := w.AddNode(make([]byte, 5)); return err },
	} {
		w := s.NewWriter(CodecZstd, 3)
		wantError(t, text, do(w), nil, text)
		for what, again := range map[string]func() error{
			"Block":       func() error { _, err := w.Block(block(1), Slot{}); return err },
			"AddNode":     func() error { _, _, err := w.AddNode(block(1)); return err },
			"FinishNodes": w.FinishNodes, "Flush": w.Flush, "Sync": w.Sync,
		} {
			wantError(t, what, again(), nil, text)
		}
		w.Close()
	}
	for _, c := range []struct{ first, n, bytes int }{{0, 0, 0}, {1023, 2, 2 * BlockSize}, {0, 1, 5}, {5, -1, 0}} {
		err := s.ReadSlots(ChunkID{1}, uint16(c.first), c.n, make([]byte, c.bytes))
		wantError(t, "ReadSlots", err, nil, "read of ")
	}
	wantError(t, "a file that is gone", s.VerifyFile("00000001-00000009.open", true, func(Problem) {}), vfs.ErrNotExist, "chunk file 00000001-00000009.open")
	dir, err := blob.NewDir(vfs.NewMem(), testDir, 8)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{1, 257 << 20} {
		_, err := Open(dir, Options{FileBytes: n})
		wantError(t, "file size", err, nil, "want 4 KiB to 256 MiB")
	}
}

// TestDump_Refuses: files that cannot be opened or read, or are none; what can be
// printed is.
func TestDump_Refuses(t *testing.T) {
	base := newFuzzBase(t)
	fsys := vfs.NewFaulty(vfs.NewMem())
	write := func(b []byte) {
		if err := vfs.WriteFileAtomic(fsys, "/f", b); err != nil {
			t.Fatal(err)
		}
	}
	write(base.sealed)
	broken := errors.New("broken")
	for _, kind := range []vfs.OpKind{vfs.OpOpen, vfs.OpStat, vfs.OpRead} {
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == kind {
				return broken
			}
			return nil
		})
		wantError(t, kind.String(), Dump(io.Discard, fsys, "/f", nil), broken, "broken")
	}
	fsys.SetHook(nil)
	write([]byte("something else"))
	wantError(t, "another file", Dump(io.Discard, fsys, "/f", nil), ErrFormat, "")
	write(append(bytes.Clone(base.open), "more"...))
	wantError(t, "tail", Dump(io.Discard, fsys, "/f", nil), ErrCorrupt, "/f at ")
	b := bytes.Clone(base.sealed)
	b[base.heads[0]+headSize] ^= 1
	b[len(b)-trailerSize-1] ^= 1
	write(b)
	var out strings.Builder
	if err := Dump(&out, fsys, "/f", func(w io.Writer, page []byte) error { return broken }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"checksum of the front", "footer: damaged", "slot 1: broken", "1 groups s2, 4119 bytes", "trailer: 3 chunks"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("dump has no %q:\n%s", want, out.String())
		}
	}
}
