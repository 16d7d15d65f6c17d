package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// classed fails the test unless err says which of the three questions was answered no.
func classed(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, wal.ErrFormat) && !errors.Is(err, wal.ErrVersion) && !errors.Is(err, wal.ErrCorrupt) {
		t.Fatalf("error of no class: %v", err)
	}
}

// FuzzDecodeHeader takes the first bytes of a segment's header page, the rest is zero,
// and makes the checksum right: what is taken encodes to the same bytes.
func FuzzDecodeHeader(f *testing.F) {
	f.Add(Header{Owner: owner, Epoch: 1, Log: 2, FirstSeq: 3}.Encode()[:128], true)
	f.Add(Header{Store: [16]byte{1}, Pages: 8}.Encode()[:112], false)
	f.Add([]byte("GRJS\x02"), true)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		page := data
		if seal {
			page = make([]byte, wal.PageSize)
			copy(page, data)
			wal.SealPage(page)
		}
		h, err := DecodeHeader(page)
		if err != nil {
			classed(t, err)
			return
		}
		again := h.Encode()
		copy(again[12:16], page[12:16]) // compat feature bits: ignored
		wal.SealPage(again)
		if string(again) != string(page) {
			t.Fatalf("%x encodes to %x", page[:112], again[:112])
		}
	})
}

// FuzzNames: a segment's name has one form.
func FuzzNames(f *testing.F) {
	f.Add(segmentName(0x1f))
	f.Add("000000000000001F.seg")
	f.Fuzz(func(t *testing.T, name string) {
		if n, ok := parseName(name); ok && segmentName(n) != name {
			t.Fatalf("%q is taken for %q", name, segmentName(n))
		}
	})
}

const fuzzPages = 8 // of a segment

// fuzzSegments makes segment files of steps: 16 bytes each, the first of which begins a
// segment. Numbers are small, so that they meet.
//
//	0     what to do      1     to which checksum
//	2, 3  epoch and log   4, 5  sequences         6, 7  pages and place
func fuzzSegments(script []byte) [][]byte {
	var files [][]byte
	page := 1
	for ; len(script) >= 8; script = script[8:] {
		s := script[:8]
		if s[0]%4 == 0 || len(files) == 0 {
			if len(files) == 8 {
				break
			}
			h := Header{
				Store: [16]byte{1}, Owner: owner, Epoch: uint64(s[2]), Log: uint64(s[3]), Number: uint32(s[6]), Pages: fuzzPages,
				FirstSeq: uint64(s[4]), PrevEnd: uint64(s[5]), PrevLog: uint64(s[7] & 15), PrevEpoch: uint64(s[7] >> 4), Commit: 1,
			}
			if s[1]&4 != 0 {
				h.Owner = [16]byte{}
			}
			file := make([]byte, fuzzPages*wal.PageSize)
			copy(file, h.Encode())
			if s[1]&8 != 0 {
				file[s[7]] ^= s[6]
			}
			files, page = append(files, file), 1
			continue
		}
		file := files[len(files)-1]
		if s[0]%4 == 1 { // any bytes anywhere
			at := int(binary.LittleEndian.Uint16(s[2:])) % len(file)
			copy(file[at:], s[4:])
			continue
		}
		payload := make([]byte, wal.PageSize*(int(s[6])%4))
		if page+1+len(payload)/wal.PageSize > fuzzPages {
			continue
		}
		for i := range payload {
			payload[i] = s[7]
		}
		rec := wal.Record{
			Type: wal.TypeWrite, Owner: owner, Epoch: uint64(s[2]), Log: uint64(s[3]), Seq: uint64(s[4]), Synced: uint64(s[5]),
			Offset: uint64(s[7]) * 512, Length: uint64(len(payload)), Pages: uint32(len(payload) / wal.PageSize),
		}
		if len(payload) == 0 {
			rec.Type, rec.Length = wal.TypeHole, 512
		}
		if rec.Validate() != nil {
			continue
		}
		head := file[page*wal.PageSize:][:wal.PageSize]
		wal.EncodeHeader(head, rec, payload)
		copy(file[(page+1)*wal.PageSize:], payload)
		if s[1]&1 != 0 {
			head[s[1]] ^= 0x10
		}
		if s[1]&2 != 0 && len(payload) > 0 {
			file[(page+1)*wal.PageSize] ^= 1
		}
		page += 1 + len(payload)/wal.PageSize
	}
	return files
}

// recovered is what a recovery found.
type recovered struct {
	seqs []uint64
	cut  Cut
	err  error
}

func (r recovered) text() string { return fmt.Sprint(r.seqs, r.cut, r.err) }

func recoverFiles(t *testing.T, fsys vfs.FS, epoch, log, from uint64) recovered {
	t.Helper()
	p, owned, bad, err := OpenPool(fsys, "/j", PoolOptions{
		Store: [16]byte{1}, SegmentBytes: fuzzPages * wal.PageSize, BudgetBytes: 64 << 20,
		Rand: reader{rand.NewChaCha8([32]byte{3})},
	})
	if err != nil {
		classed(t, err)
		return recovered{err: err}
	}
	defer p.Close()
	for _, b := range bad {
		classed(t, b.Err)
		if b.Segment != nil {
			if _, err := Inspect(b.Segment); err != nil {
				t.Fatal(err)
			}
			b.Segment.Release()
		}
	}
	l := NewLog(p, owner, 1<<40, func() uint64 { return 1 })
	var mine []Recovered
	for _, o := range owned {
		if o.Header.Owner == owner {
			mine = append(mine, o)
		} else {
			o.Segment.Release()
		}
	}
	var r recovered
	r.cut, r.err = l.Recover(mine, epoch, log, from, 0, func(e Entry) error {
		if e.Record.Owner != owner || len(e.CRCs) != int(e.Record.Pages) {
			t.Fatalf("applied %+v with %d checksums", e.Record, len(e.CRCs))
		}
		payload := make([]byte, e.Record.PayloadSize())
		if _, err := e.Segment.ReadAt(payload, e.Payload); err != nil {
			t.Fatal(err)
		}
		for i, crc := range e.CRCs {
			if wal.PageCRC(payload[i*wal.PageSize:(i+1)*wal.PageSize]) != crc {
				t.Fatalf("record %d was applied with a bad page", e.Record.Seq)
			}
		}
		r.seqs = append(r.seqs, e.Record.Seq)
		return nil
	})
	// Every segment is the log's or the pool's, each of them once.
	l.Drop()
	if st := p.Stats(); st.InUse != 0 {
		t.Fatalf("%d segments are nobody's", st.InUse)
	}
	return r
}

// FuzzRecover recovers a volume from segments of any content, over several logs: what
// is applied is the records from the position on, one after the other, each whole; the
// same files give the same result; and dump prints anything.
func FuzzRecover(f *testing.F) {
	seg := func(epoch, log, first, prevEnd byte) []byte { return []byte{0, 0, epoch, log, first, prevEnd, 0, 0} }
	rec := func(epoch, log, seq, synced, pages byte) []byte {
		return []byte{2, 0, epoch, log, seq, synced, pages, seq}
	}
	join := func(steps ...[]byte) (b []byte) {
		for _, s := range steps {
			b = append(b, s...)
		}
		return b
	}
	f.Add(byte(0), byte(0), byte(0), join(seg(1, 1, 1, 0), rec(1, 1, 1, 0, 1), rec(1, 1, 2, 1, 2)))
	f.Add(byte(0), byte(0), byte(0), join(seg(1, 1, 1, 0), rec(1, 1, 1, 0, 1), rec(1, 1, 2, 1, 0), rec(1, 1, 3, 1, 1),
		seg(2, 1, 3, 2), rec(2, 1, 3, 2, 1), rec(2, 1, 4, 3, 1)))
	f.Add(byte(1), byte(1), byte(2), join(seg(1, 1, 1, 0), rec(1, 1, 1, 0, 3), rec(1, 1, 2, 0, 0), seg(1, 1, 3, 0), rec(1, 1, 3, 2, 1)))
	f.Add(byte(1), byte(1), byte(0), join(seg(1, 1, 1, 0), rec(1, 1, 1, 0, 1), []byte{2, 2, 1, 1, 2, 1, 1, 0}, rec(1, 1, 3, 2, 1)))
	f.Fuzz(func(t *testing.T, epoch, log, from byte, script []byte) {
		if len(script) > 8*128 {
			return
		}
		mem := vfs.NewMem()
		if err := mem.MkdirAll("/j"); err != nil {
			t.Fatal(err)
		}
		for i, file := range fuzzSegments(script) {
			name := "/j/" + segmentName(uint64(i))
			if err := vfs.WriteFileAtomic(mem, name, file); err != nil {
				t.Fatal(err)
			}
			if err := Dump(io.Discard, mem, name); err != nil {
				classed(t, err)
			}
		}
		r := recoverFiles(t, mem, uint64(epoch), uint64(log), uint64(from))
		for i, seq := range r.seqs {
			if seq != uint64(from)+1+uint64(i) {
				t.Fatalf("applied %v from %d on", r.seqs, from)
			}
		}
		if r.err != nil {
			classed(t, r.err)
		} else if r.cut.Last != uint64(from)+uint64(len(r.seqs)) {
			t.Fatalf("ends at %d: applied %v from %d on", r.cut.Last, r.seqs, from)
		}
		if again := recoverFiles(t, mem, uint64(epoch), uint64(log), uint64(from)); again.text() != r.text() {
			t.Fatalf("first %+v, then %+v", r, again)
		}
	})
}
