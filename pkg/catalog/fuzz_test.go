package catalog

import (
	"bytes"
	"errors"
	"io"
	"maps"
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

// FuzzDecodeEntries: a payload that is taken encodes to the same bytes.
func FuzzDecodeEntries(f *testing.F) {
	payload, n, _ := encodeOps(7, []Op{put("key", "value"), {Key: "gone"}, put("empty", "")})
	f.Add(payload[:n])
	f.Add([]byte{})
	f.Add([]byte{1, 255, 255, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		err := decodeEntries(data, func(key string, revision uint64, value []byte) error {
			if value == nil {
				again = appendDelete(again, key)
			} else {
				again = appendPut(again, Entry{key, revision, value})
			}
			return nil
		})
		if err != nil {
			classed(t, err)
		} else if string(again) != string(data) {
			t.Fatalf("%x encodes to %x", data, again)
		}
	})
}

// FuzzFileHeader takes the first bytes of a log's header page and makes the checksum
// right: what is taken encodes to the same bytes. Names of logs have one form.
func FuzzFileHeader(f *testing.F) {
	h := fileHeader{store: testStore, log: 3, epoch: 2, commit: 1, firstSeq: 9}
	f.Add(h.encode()[:offHeaderEnd], true, logName(3))
	f.Add(h.encode()[:offHeaderEnd+1], false, "spare")
	f.Add([]byte("GRCL\x01"), true, "000000000000000A.log")
	f.Fuzz(func(t *testing.T, data []byte, seal bool, name string) {
		if n, ok := parseLogName(name); ok && logName(n) != name {
			t.Fatalf("%q is taken for %q", name, logName(n))
		}
		page := data
		if seal {
			page = make([]byte, wal.PageSize)
			copy(page, data)
			wal.SealPage(page)
		}
		h, err := parseFileHeader(page)
		if err != nil {
			classed(t, err)
			return
		}
		again := h.encode()
		copy(again[12:16], page[12:16]) // compat feature bits: ignored
		wal.SealPage(again)
		if !bytes.Equal(again, page) {
			t.Fatalf("%x encodes to %x", page[:offHeaderEnd], again[:offHeaderEnd])
		}
	})
}

// fuzzLog makes a log out of steps: a header, then records that follow each other
// unless a step says otherwise. A record's payload is bytes of the script.
//
//	0  what, and what is wrong with it      1  length of the payload      2...  the payload
func fuzzLog(header fileHeader, script []byte) []byte {
	file := header.encode()
	seq, commit := header.firstSeq, header.commit
	for len(script) >= 2 && len(file) < 64*wal.PageSize {
		what, n := script[0], min(int(script[1]), len(script)-2)
		payload := script[2 : 2+n]
		script = script[2+n:]
		rec := wal.Record{Owner: header.store, Epoch: header.epoch, Log: header.log, Seq: seq, Offset: commit, Length: uint64(n)}
		switch what & 0x1f % 5 {
		case 0:
			rec.Type = wal.TypeCheckpointPart
		case 1: // the payload's first byte says how many entries
			rec.Type, rec.Length = wal.TypeCheckpointEnd, 0
			if n > 0 {
				rec.Length = uint64(payload[0])
			}
			payload = nil
		case 2:
			rec.Type = wal.TypeCommit
			commit++
			rec.Offset, rec.Synced = commit, seq-1
		case 3: // what a journal has
			rec.Type, rec.Offset, rec.Length, payload = wal.TypeHole, 0, 512, nil
		case 4: // bytes that are no record
			file = append(file, pad(bytes.Clone(payload))...)
			continue
		}
		padded := pad(bytes.Clone(payload))
		rec.Pages = uint32(len(padded) / wal.PageSize)
		if what&0x80 != 0 {
			rec.Offset++
		}
		if what&0x40 != 0 {
			rec.Seq++
		}
		if rec.Validate() != nil {
			continue
		}
		head := make([]byte, wal.PageSize)
		wal.EncodeHeader(head, rec, padded)
		if what&0x20 != 0 {
			head[n%wal.PageSize] ^= 1
		}
		file = append(append(file, head...), padded...)
		seq++
	}
	return append(file, make([]byte, max(0, minLogBytes-len(file)))...)
}

// FuzzOpen opens catalogs of any content. Reading and writing see the same; what was
// opened for writing can be opened again, with the same entries and a higher epoch; and
// dump refuses nothing that can be opened.
func FuzzOpen(f *testing.F) {
	entries, n, err := encodeOps(1, []Op{put("volume/a", `{"size":1}`), put("volume/b", ""), {Key: "gone"}})
	if err != nil {
		f.Fatal(err)
	}
	entries = entries[:n]
	step := func(what byte, payload ...byte) []byte { return append([]byte{what, byte(len(payload))}, payload...) }
	join := func(steps ...[]byte) []byte { return bytes.Join(steps, nil) }
	f.Add(uint64(1), uint64(1), uint64(0), uint64(1), join(step(1)))
	f.Add(uint64(2), uint64(3), uint64(1), uint64(9), join(step(0, entries...), step(1, 2), step(2, entries...), step(2, entries[:20]...)))
	f.Add(uint64(2), uint64(3), uint64(1), uint64(9), join(step(1), step(2, entries...), step(0x22), step(2)))
	f.Add(uint64(2), uint64(3), uint64(1), uint64(9), join(step(1), step(0, entries...), step(3)))
	f.Add(^uint64(0), uint64(1), uint64(1), uint64(9), join(step(1)))
	f.Add(uint64(1), ^uint64(0), uint64(1), uint64(9), join(step(1), step(2, entries...)))
	f.Add(uint64(1), uint64(1), ^uint64(0), ^uint64(0), join(step(1), step(2, entries...)))
	f.Fuzz(func(t *testing.T, log, epoch, commit, firstSeq uint64, script []byte) {
		if log == 0 || len(script) > 4096 {
			return
		}
		header := fileHeader{store: testStore, log: log, epoch: epoch, commit: commit, firstSeq: firstSeq}
		mem := vfs.NewMem()
		if err := mem.MkdirAll(testDir); err != nil {
			t.Fatal(err)
		}
		name := testDir + "/" + logName(log)
		if err := vfs.WriteFileAtomic(mem, name, fuzzLog(header, script)); err != nil {
			t.Fatal(err)
		}
		dumped := Dump(io.Discard, mem, name)
		before := mem.Digest()
		r, err := Open(mem, testDir, testStore, Options{ReadOnly: true})
		if before != mem.Digest() {
			t.Fatal("a read-only catalog has changed")
		}
		if err != nil {
			classed(t, err)
			if _, err := Open(mem, testDir, testStore, Options{LogBytes: minLogBytes}); err == nil {
				t.Fatal("it cannot be read, but be written")
			}
			if before != mem.Digest() {
				t.Fatal("a catalog that cannot be opened has changed")
			}
			return
		}
		if dumped != nil {
			t.Fatalf("dump of a good log: %v", dumped)
		}
		want, at := content(r.View()), r.View().Commit()
		for i := uint64(1); i <= 2; i++ {
			c, err := Open(mem, testDir, testStore, Options{LogBytes: minLogBytes})
			if err != nil {
				t.Fatalf("start %d: %v", i, err)
			}
			if got := content(c.View()); !maps.Equal(got, want) || c.View().Commit() != at || c.Epoch() != epoch+i {
				t.Fatalf("start %d: commit %d, epoch %d, %v; want commit %d, epoch %d, %v", i, c.View().Commit(), c.Epoch(), got, at, epoch+i, want)
			}
			if at, err = c.Commit(put("new", "v")); err != nil {
				t.Fatal(err)
			}
			want = content(c.View())
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
