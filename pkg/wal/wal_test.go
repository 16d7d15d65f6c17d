package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

var testOwner = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

const (
	testEpoch = 7
	testLog   = 3
)

// payloadOf returns n bytes of noise filled up to whole pages.
func payloadOf(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, (n+PageSize-1)/PageSize*PageSize)
	for i := range n {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// testRecord is a write record of n bytes.
func testRecord(seq, synced uint64, n int) (Record, []byte) {
	return Record{
		Type: TypeWrite, Owner: testOwner, Epoch: testEpoch, Log: testLog,
		Seq: seq, Synced: synced, Offset: seq * 4096, Length: uint64(n),
		Pages: uint32((n + PageSize - 1) / PageSize),
	}, payloadOf(seq, n)
}

// appendRecord appends a record to a file image.
func appendRecord(file []byte, r Record, payload []byte) []byte {
	page := make([]byte, PageSize)
	EncodeHeader(page, r, payload)
	return append(append(file, page...), payload...)
}

// reseal makes a header page's checksum right again.
func reseal(page []byte) {
	binary.LittleEndian.PutUint32(page[offHeaderCRC:], headerCRC(page))
}

func TestMaxPayloadPages(t *testing.T) {
	if MaxPayloadPages != 992 {
		t.Fatalf("MaxPayloadPages = %d, FORMAT.md says 992", MaxPayloadPages)
	}
}

func TestHead_RoundTrip(t *testing.T) {
	h := Head{Magic: Magic{'G', 'R', 'S', 'T'}, Compat: 5, Store: testOwner}
	b, err := h.AppendBinary([]byte("x"))
	if err != nil || len(b) != 1+HeadSize {
		t.Fatalf("AppendBinary: %d bytes, %v", len(b), err)
	}
	got, err := ParseHead(b[1:], h.Magic)
	if err != nil || got != h {
		t.Fatalf("ParseHead = %+v, %v; want %+v", got, err, h)
	}
	used := bytes.Repeat([]byte{0xff}, HeadSize) // Put leaves nothing of what was there
	if h.Put(used); !bytes.Equal(used, b[1:]) {
		t.Errorf("Put over other bytes: %x, want %x", used, b[1:])
	}
	h.Incompat = 1 << 9
	if _, err := ParseHead(must(h.AppendBinary(nil)), h.Magic); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "0x200") {
		t.Errorf("a feature of a newer version: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestParseHead_Refuses(t *testing.T) {
	magic := Magic{'G', 'R', 'C', 'L'}
	good, _ := Head{Magic: magic, Store: testOwner}.AppendBinary(nil)
	for _, tc := range []struct {
		name string
		edit func(b []byte) []byte
		want error
	}{
		{"empty", func([]byte) []byte { return nil }, ErrFormat},
		{"short", func(b []byte) []byte { return b[:HeadSize-1] }, ErrFormat},
		{"zeroed", func(b []byte) []byte { clear(b); return b }, ErrFormat},
		{"other magic, other version", func(b []byte) []byte { b[0], b[4] = 'X', 9; return b }, ErrFormat},
		{"newer version, zero field set", func(b []byte) []byte { b[4], b[6] = 2, 1; return b }, ErrVersion},
		{"unknown incompat bit", func(b []byte) []byte { b[11] = 0x80; return b }, ErrVersion},
		{"zero field set", func(b []byte) []byte { b[7] = 1; return b }, ErrCorrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := ParseHead(tc.edit(bytes.Clone(good)), magic); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestSealPage(t *testing.T) {
	page := payloadOf(1, PageSize)
	SealPage(page)
	if err := CheckPage(page); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 100, offSeal - 1, offSeal, PageSize - 1} {
		page[i] ^= 4
		if err := CheckPage(page); !errors.Is(err, ErrCorrupt) {
			t.Errorf("bit flipped in byte %d: %v", i, err)
		}
		page[i] ^= 4
	}
	if err := CheckPage(page[:PageSize-1]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("short page: %v", err)
	}
}

func TestHeader_RoundTrip(t *testing.T) {
	page := payloadOf(99, PageSize) // what was there must not matter
	for _, tc := range []struct {
		name string
		rec  Record
		size int
	}{
		{"write of a sector", Record{Type: TypeWrite, Seq: 1, Offset: 512, Length: 512}, 512},
		{"largest write", Record{Type: TypeWrite, Seq: 9, Synced: 8, Length: MaxPayloadPages * PageSize}, MaxPayloadPages * PageSize},
		{"hole", Record{Type: TypeHole, Seq: 2, Synced: 1, Offset: 1 << 40, Length: 1 << 45}, 0},
		{"mark", Record{Type: TypeMark, Seq: 3, Synced: 2}, 0},
		{"checkpoint part", Record{Type: TypeCheckpointPart, Seq: 4, Offset: 77, Length: 5000}, 5000},
		{"checkpoint end", Record{Type: TypeCheckpointEnd, Seq: 5, Offset: 77, Length: 123456}, 0},
		{"commit", Record{Type: TypeCommit, Seq: 1<<64 - 1, Synced: 1<<64 - 2, Offset: 78, Length: 1}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			payload := payloadOf(1, tc.size)
			tc.rec.Owner, tc.rec.Epoch, tc.rec.Log = testOwner, testEpoch, testLog
			crcs := EncodeHeader(page, tc.rec, payload)
			tc.rec.Pages = uint32(len(payload) / PageSize)
			got, gotCRCs, err := DecodeHeader(page)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.rec || !reflect.DeepEqual(gotCRCs, crcs) {
				t.Errorf("got %+v, want %+v", got, tc.rec)
			}
			for i := range crcs {
				if crcs[i] != PageCRC(payload[i*PageSize:(i+1)*PageSize]) {
					t.Fatalf("checksum of page %d is wrong", i)
				}
			}
		})
	}
}

// TestHeader_Layout holds the bytes to FORMAT.md, independent of the constants.
func TestHeader_Layout(t *testing.T) {
	rec := Record{
		Type: TypeWrite, Owner: testOwner, Epoch: 0x1112131415161718, Log: 0x2122232425262728,
		Seq: 0x3132333435363738, Synced: 0x3132333435363737, Offset: 0x4142434445464800, Length: 4608,
	}
	page := make([]byte, PageSize)
	crcs := EncodeHeader(page, rec, payloadOf(5, 4608))
	le := binary.LittleEndian
	want := []byte("GREC\x01\x00\x01\x00")
	want = append(want, testOwner[:]...)
	for _, v := range []uint64{rec.Epoch, rec.Log, rec.Seq, rec.Synced, rec.Offset, rec.Length} {
		want = le.AppendUint64(want, v)
	}
	want = le.AppendUint32(want, 2)
	want = append(want, make([]byte, 48)...)
	if !bytes.Equal(page[:124], want) {
		t.Errorf("header is\n%x, want\n%x", page[:124], want)
	}
	if got := []uint32{le.Uint32(page[128:]), le.Uint32(page[132:])}; !reflect.DeepEqual(got, crcs) {
		t.Errorf("page checksums %x, want %x", got, crcs)
	}
	crc := le.Uint32(page[124:])
	clear(page[124:128])
	if crc != PageCRC(page) {
		t.Error("header checksum does not cover the page with its own field zero")
	}
}

func TestDecodeHeader_Refuses(t *testing.T) {
	le := binary.LittleEndian
	for _, tc := range []struct {
		name string
		edit func(p []byte) []byte
		want error
	}{
		{"zeroed", func(p []byte) []byte { clear(p); return p }, ErrFormat},
		{"short", func(p []byte) []byte { return p[:PageSize-1] }, ErrFormat},
		{"nil", func([]byte) []byte { return nil }, ErrFormat},
		{"newer version, checksum wrong", func(p []byte) []byte { p[4] = 2; return p }, ErrVersion},
		{"flipped bit", func(p []byte) []byte { p[60] ^= 1; return p }, ErrCorrupt},
		{"flipped bit behind the checksums", func(p []byte) []byte { p[4095] ^= 1; return p }, ErrCorrupt},
		{"type 0", func(p []byte) []byte { p[6] = 0; reseal(p); return p }, ErrVersion},
		{"unknown type", func(p []byte) []byte { p[6] = 99; reseal(p); return p }, ErrVersion},
		{"too many pages", func(p []byte) []byte { le.PutUint32(p[72:], 993); reseal(p); return p }, ErrCorrupt},
		{"2^32-1 pages", func(p []byte) []byte { le.PutUint32(p[72:], 1<<32-1); reseal(p); return p }, ErrCorrupt},
		{"length over pages", func(p []byte) []byte { le.PutUint64(p[64:], 8704); reseal(p); return p }, ErrCorrupt},
		{"length under pages", func(p []byte) []byte { le.PutUint64(p[64:], 4096); reseal(p); return p }, ErrCorrupt},
		{"odd offset", func(p []byte) []byte { p[56] = 1; reseal(p); return p }, ErrCorrupt},
		{"hole with payload", func(p []byte) []byte { p[6] = 2; reseal(p); return p }, ErrCorrupt},
		{"synced not below seq", func(p []byte) []byte { p[48] = 9; reseal(p); return p }, ErrCorrupt},
		{"zero field set", func(p []byte) []byte { p[80] = 1; reseal(p); return p }, ErrCorrupt},
		{"checksum behind the last", func(p []byte) []byte { p[136] = 1; reseal(p); return p }, ErrCorrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec, payload := testRecord(9, 8, 8192)
			page := make([]byte, PageSize)
			EncodeHeader(page, rec, payload)
			if _, _, err := DecodeHeader(tc.edit(page)); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// TestValidate_Refuses: fields that disagree, and what is said of them.
func TestValidate_Refuses(t *testing.T) {
	for text, r := range map[string]Record{
		"too many pages":          {Type: TypeWrite, Seq: 1, Length: 512, Pages: MaxPayloadPages + 1},
		"synced mark not below":   {Type: TypeMark, Seq: 1, Synced: 1},
		"not whole sectors":       {Type: TypeHole, Seq: 1, Length: 511},
		"length 0,":               {Type: TypeHole, Seq: 1, Offset: 512},
		"offset 511":              {Type: TypeHole, Seq: 1, Offset: 511, Length: 512},
		"(offset 512":             {Type: TypeMark, Seq: 1, Offset: 512},
		"range overflows":         {Type: TypeHole, Seq: 1, Offset: 1<<64 - 512, Length: 1024},
		"must be zero":            {Type: TypeMark, Seq: 1, Length: 512},
		"length and pages":        {Type: TypeCommit, Seq: 1, Length: 1},
		"payload where none":      {Type: TypeCheckpointEnd, Seq: 1, Pages: 1},
		"record 1 has type 65535": {Type: 65535, Seq: 1},
	} {
		want := ErrCorrupt
		if r.Type == 65535 {
			want = ErrVersion
		}
		if err := r.Validate(); !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: %v, want %q", r, err, text)
		}
	}
}

func TestEncodeHeader_Panics(t *testing.T) {
	page := make([]byte, PageSize)
	rec, payload := testRecord(9, 8, 8192)
	for name, f := range map[string]func(){
		"short page":      func() { EncodeHeader(page[1:], rec, payload) },
		"long page":       func() { EncodeHeader(append(page, 0), rec, payload) },
		"ragged payload":  func() { EncodeHeader(page, rec, payload[1:]) },
		"ragged alone":    func() { PayloadCRCs(payload[1:]) },
		"huge payload":    func() { EncodeHeader(page, rec, make([]byte, (MaxPayloadPages+1)*PageSize)) },
		"synced not past": func() { r := rec; r.Synced = 9; EncodeHeader(page, r, payload) },
		"type 0":          func() { r := rec; r.Type = 0; EncodeHeader(page, r, payload) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

// testFile is a file image: a header page, records of the given payload sizes with
// sequences from 1 on and a synced mark two behind, then pages of zeros.
func testFile(sizes []int, zeroPages int) (file []byte, offs []int64) {
	file = make([]byte, PageSize)
	for i, n := range sizes {
		seq := uint64(i + 1)
		synced := uint64(max(0, i-1))
		offs = append(offs, int64(len(file)))
		rec, payload := testRecord(seq, synced, n)
		file = appendRecord(file, rec, payload)
	}
	offs = append(offs, int64(len(file)))
	return append(file, make([]byte, zeroPages*PageSize)...), offs
}

func scannerOf(file []byte) *Scanner {
	return NewScanner(bytes.NewReader(file), int64(len(file)), PageSize, testOwner, testEpoch, testLog, 1)
}

// readAll reads to the end and checks each record against what testFile wrote.
func readAll(t *testing.T, s *Scanner) (n int, err error) {
	t.Helper()
	for {
		at := s.Offset()
		rec, crcs, off, payload, ok, err := s.Next()
		if err != nil || !ok {
			if s.Offset() != at {
				t.Fatalf("offset moved from %d to %d at the end", at, s.Offset())
			}
			return n, err
		}
		n++
		want, wantPayload := testRecord(uint64(n), rec.Synced, int(rec.Length))
		if rec != want || off != at+PageSize || len(crcs) != int(rec.Pages) || !bytes.Equal(payload, wantPayload) {
			t.Fatalf("record %d: %+v at %d, %d checksums; want %+v", n, rec, off, len(crcs), want)
		}
	}
}

func TestScanner_ReadsAll(t *testing.T) {
	sizes := []int{512, 4096, MaxPayloadPages * PageSize, 512, 1 << 20, 1<<20 - 4096, 100 * 512, MaxPayloadPages * PageSize, 4096}
	for _, zeros := range []int{0, 1, 700} {
		file, offs := testFile(sizes, zeros)
		s := scannerOf(file)
		if n, err := readAll(t, s); n != len(sizes) || err != nil {
			t.Fatalf("%d zero pages: %d records, %v", zeros, n, err)
		}
		if s.Offset() != offs[len(sizes)] || s.NextSeq() != uint64(len(sizes)+1) {
			t.Errorf("stopped at %d, record %d", s.Offset(), s.NextSeq())
		}
		if err := s.CheckTail(); err != nil {
			t.Error(err)
		}
		if n, err := readAll(t, s); n != 0 || err != nil { // Next at the end says the same
			t.Errorf("again: %d, %v", n, err)
		}
	}
}

func TestScanner_Stops(t *testing.T) {
	sizes := []int{512, 8192, 4096, 4096, 4096}
	type edit func(file []byte, offs []int64) []byte
	rehead := func(i int, change func(*Record)) edit {
		return func(file []byte, offs []int64) []byte {
			rec, payload := testRecord(uint64(i+1), 0, sizes[i])
			change(&rec)
			EncodeHeader(file[offs[i]:offs[i]+PageSize], rec, payload)
			return file
		}
	}
	for _, tc := range []struct {
		name    string
		edit    edit
		records int
		err     error // of Next
		tail    error // of CheckTail
	}{
		{"header damaged, marked synced", func(f []byte, o []int64) []byte { f[o[1]+70] ^= 1; return f }, 1, nil, ErrCorrupt},
		{"payload damaged, marked synced", func(f []byte, o []int64) []byte { f[o[1]+9000] ^= 1; return f }, 1, nil, ErrCorrupt},
		{"header zeroed, marked synced", func(f []byte, o []int64) []byte { clear(f[o[2] : o[2]+4096]); return f }, 2, nil, ErrCorrupt},
		{"header torn, followed by unsynced", func(f []byte, o []int64) []byte { f[o[3]+70] ^= 1; return f }, 3, nil, nil},
		{"last payload torn", func(f []byte, o []int64) []byte { f[o[4]+4096+512] ^= 1; return f }, 4, nil, nil},
		{"cut inside the last payload", func(f []byte, o []int64) []byte { return f[:o[4]+PageSize+10] }, 4, ErrCorrupt, nil},
		{"cut inside the last header", func(f []byte, o []int64) []byte { return f[:o[4]+10] }, 4, nil, nil},
		{"other owner", rehead(4, func(r *Record) { r.Owner[15]++ }), 4, nil, nil},
		{"other epoch", rehead(4, func(r *Record) { r.Epoch-- }), 4, nil, nil},
		{"other log", rehead(4, func(r *Record) { r.Log-- }), 4, nil, nil},
		{"repeated sequence", rehead(4, func(r *Record) { r.Seq-- }), 4, nil, nil},
		{"skipped sequence, not synced", rehead(4, func(r *Record) { r.Seq++; r.Synced = 4 }), 4, nil, nil},
		{"skipped sequence, synced", rehead(4, func(r *Record) { r.Seq++; r.Synced = 5 }), 4, nil, ErrCorrupt},
		{"skipped sequence, synced, other owner", rehead(4, func(r *Record) { r.Seq++; r.Synced = 5; r.Owner[15]++ }), 4, nil, nil},
		{"skipped sequence, synced, other epoch", rehead(4, func(r *Record) { r.Seq++; r.Synced = 5; r.Epoch-- }), 4, nil, nil},
		{"skipped sequence, synced, other log", rehead(4, func(r *Record) { r.Seq++; r.Synced = 5; r.Log-- }), 4, nil, nil},
		{"newer type", func(f []byte, o []int64) []byte { f[o[4]+6] = 200; reseal(f[o[4] : o[4]+4096]); return f }, 4, ErrVersion, nil},
		{"newer record version", func(f []byte, o []int64) []byte { f[o[4]+4] = 2; reseal(f[o[4] : o[4]+4096]); return f }, 4, nil, nil},
		{"empty", func(f []byte, o []int64) []byte { return f[:PageSize] }, 0, nil, nil},
		{"shorter than its start", func(f []byte, o []int64) []byte { return f[:100] }, 0, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := scannerOf(tc.edit(testFile(sizes, 3)))
			n, err := readAll(t, s)
			if n != tc.records || !errors.Is(err, tc.err) {
				t.Fatalf("%d records, %v; want %d, %v", n, err, tc.records, tc.err)
			}
			if err := s.CheckTail(); !errors.Is(err, tc.tail) {
				t.Errorf("CheckTail: %v, want %v", err, tc.tail)
			}
		})
	}
}

// TestScanner_RecycledSpace: records of an earlier use, at the very place where the
// next record would be and with the right sequence, are not taken for new ones.
func TestScanner_RecycledSpace(t *testing.T) {
	file, offs := testFile([]int{4096, 4096, 4096, 4096}, 0)
	rec, payload := testRecord(1, 0, 4096)
	rec.Log++
	EncodeHeader(file[PageSize:2*PageSize], rec, payload)
	s := NewScanner(bytes.NewReader(file), int64(len(file)), PageSize, testOwner, testEpoch, testLog+1, 1)
	if _, _, _, _, ok, err := s.Next(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, _, _, _, ok, err := s.Next(); ok || err != nil || s.Offset() != offs[1] {
		t.Fatal("read a record of the log before", ok, err)
	}
	if err := s.CheckTail(); err != nil {
		t.Error("old records taken as proof:", err)
	}
}

// failingReader fails reads that touch bytes from off on.
type failingReader struct {
	r   io.ReaderAt
	off int64
	err error
}

func (f failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.off {
		return 0, f.err
	}
	return f.r.ReadAt(p, off)
}

func TestScanner_ReadErrors(t *testing.T) {
	file, _ := testFile([]int{4096, 2 << 20, 4096}, 1)
	errDisk := errors.New("disk on fire")
	for off := int64(0); off < int64(len(file)); off += 40 * PageSize {
		r := failingReader{bytes.NewReader(file), off, errDisk}
		s := NewScanner(r, int64(len(file)), PageSize, testOwner, testEpoch, testLog, 1)
		if _, err := readAll(t, s); !errors.Is(err, errDisk) {
			t.Fatalf("fault at %d: %v", off, err)
		}
		if err := s.CheckTail(); !errors.Is(err, errDisk) {
			t.Fatalf("fault at %d: CheckTail: %v", off, err)
		}
	}
	// A file shorter than its stated size is a failed read, not an end.
	s := NewScanner(bytes.NewReader(file), int64(len(file))+PageSize, PageSize, testOwner, testEpoch, testLog, 1)
	if _, err := readAll(t, s); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("file shorter than stated: %v", err)
	}
}

// FuzzDecodeHeader takes the first bytes of a header page, the rest is zero, and makes
// the checksum right, or the fuzzer never gets behind it.
func FuzzDecodeHeader(f *testing.F) {
	page := make([]byte, PageSize)
	for _, n := range []int{512, 8192} {
		rec, payload := testRecord(9, 8, n)
		EncodeHeader(page, rec, payload)
		f.Add(bytes.Clone(page[:offPageCRCs+8]), true)
	}
	EncodeHeader(page, Record{Type: TypeHole, Seq: 1, Length: 512}, nil)
	f.Add(bytes.Clone(page[:offPageCRCs]), true)
	f.Add([]byte("GREC"), false)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		page := make([]byte, PageSize)
		copy(page, data)
		if seal {
			reseal(page)
		}
		rec, crcs, err := DecodeHeader(page)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		if err := rec.Validate(); err != nil || len(crcs) != int(rec.Pages) {
			t.Fatalf("decoded %+v with %d checksums: %v", rec, len(crcs), err)
		}
		if rec.Pages == 0 {
			again := make([]byte, PageSize)
			if EncodeHeader(again, rec, nil); !bytes.Equal(again, page) {
				t.Fatalf("%+v encodes to other bytes", rec)
			}
		}
	})
}

// fuzzChunk is what FuzzScanner makes a page of: the page's first bytes and a last
// one whose bits say which checksums to make right.
const fuzzChunk = offPageCRCs + 8 + 1

// fuzzFile makes a file image of chunks.
func fuzzFile(data []byte) []byte {
	file := make([]byte, PageSize)
	var fix []byte
	for len(data) > 0 {
		chunk := make([]byte, fuzzChunk)
		data = data[copy(chunk, data):]
		page := make([]byte, PageSize)
		copy(page, chunk[:fuzzChunk-1])
		file, fix = append(file, page...), append(fix, chunk[fuzzChunk-1])
	}
	for i := len(fix) - 1; i >= 0; i-- {
		page := file[(i+1)*PageSize:]
		n := int(binary.LittleEndian.Uint32(page[offPages:]))
		for p := 0; fix[i]&1 != 0 && p < min(n, MaxPayloadPages, len(page)/PageSize-1); p++ {
			binary.LittleEndian.PutUint32(page[offPageCRCs+4*p:], PageCRC(page[(p+1)*PageSize:][:PageSize]))
		}
		if fix[i]&2 != 0 {
			reseal(page[:PageSize])
		}
	}
	return file
}

func FuzzScanner(f *testing.F) {
	for _, sizes := range [][]int{{}, {512}, {4096, 512}, {8192, 512, 4096, 512}} {
		file, _ := testFile(sizes, 1)
		var data []byte
		for off := PageSize; off < len(file); off += PageSize {
			data = append(append(data, file[off:off+fuzzChunk-1]...), 3)
		}
		f.Add(data, uint64(2))
	}
	f.Fuzz(func(t *testing.T, data []byte, expected uint64) {
		if len(data) > 64*fuzzChunk {
			return
		}
		file := fuzzFile(data)
		s := scannerOf(file)
		for seq := uint64(1); ; seq++ {
			at := s.Offset()
			rec, crcs, off, payload, ok, err := s.Next()
			if err != nil || !ok {
				break
			}
			if rec.Seq != seq || rec.Owner != testOwner || rec.Epoch != testEpoch || rec.Log != testLog {
				t.Fatalf("took %+v for record %d", rec, seq)
			}
			if off != at+PageSize || len(payload) != rec.PayloadSize() || s.Offset() != at+rec.Size() || s.Offset() > int64(len(file)) {
				t.Fatalf("record %d at %d: payload %d+%d, next %d, file %d", seq, at, off, len(payload), s.Offset(), len(file))
			}
			if !bytes.Equal(payload, file[off:off+int64(len(payload))]) || len(crcs) != int(rec.Pages) {
				t.Fatalf("record %d: wrong payload", seq)
			}
			for i := range crcs {
				if PageCRC(payload[i*PageSize:(i+1)*PageSize]) != crcs[i] {
					t.Fatalf("record %d: wrong checksum", seq)
				}
			}
		}
		if err := s.CheckTail(); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if _, _, err := ProvesCorruption(bytes.NewReader(file), int64(len(file)), 0, testOwner, testEpoch, testLog, expected); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkScanner(b *testing.B) {
	var file []byte
	for i := range 64 {
		rec, payload := testRecord(uint64(i+1), 0, 1<<20)
		file = appendRecord(file, rec, payload)
	}
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		s := NewScanner(bytes.NewReader(file), int64(len(file)), 0, testOwner, testEpoch, testLog, 1)
		n := 0
		for {
			_, _, _, _, ok, err := s.Next()
			if err != nil {
				b.Fatal(err)
			}
			if !ok {
				break
			}
			n++
		}
		if n != 64 {
			b.Fatal(n)
		}
	}
}

func BenchmarkEncodeHeader(b *testing.B) {
	rec, payload := testRecord(9, 8, 128<<10)
	page := make([]byte, PageSize)
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		EncodeHeader(page, rec, payload)
	}
}
