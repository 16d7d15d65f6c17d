package blockstore

import (
	"errors"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// TestRecords_Refused: what no commit of this program has written is not believed, and
// the error names the record and what is wrong.
func TestRecords_Refused(t *testing.T) {
	cut, vol := "c-"+strings.Repeat("0", 32), "v-"+strings.Repeat("0", 32)
	chunk := dedup.ChunkID{1}
	volume := func(change func(*volumeRecord)) any {
		r := volumeRecord{Size: 1 << 20, Sector: 512, Cut: cut, Root: &rootRef{chunk, 1}}
		change(&r)
		return r
	}
	for _, c := range []struct {
		text string
		into any
		rec  any
	}{
		{"size of 0 bytes", new(volumeRecord), volume(func(r *volumeRecord) { r.Size = 0 })},
		{"size of -4096 bytes", new(volumeRecord), volume(func(r *volumeRecord) { r.Size = -4096 })},
		{"size of 1048577 bytes", new(volumeRecord), volume(func(r *volumeRecord) { r.Size++ })},
		{"size of 70368744181760 bytes", new(volumeRecord), volume(func(r *volumeRecord) { r.Size = MaxVolumeSize + BlockSize })},
		{"sector of 0 bytes", new(volumeRecord), volume(func(r *volumeRecord) { r.Sector = 0 })},
		{"position at sequence 4611686018427387904", new(volumeRecord), volume(func(r *volumeRecord) { r.Position.Seq = maxSeq })},
		{"journal durable up to sequence 4611686018427387904", new(volumeRecord), volume(func(r *volumeRecord) { r.Durable = maxSeq })},
		{"root in slot 1024 of chunk 01", new(volumeRecord), volume(func(r *volumeRecord) { r.Root.Slot = 1024 })},
		{"root in slot 1 of chunk 00", new(volumeRecord), volume(func(r *volumeRecord) { r.Root.Chunk = dedup.ChunkID{} })},
		{`"x" is not an ID of the form c-`, new(volumeRecord), volume(func(r *volumeRecord) { r.Cut = "x" })},
		{"sector of 1024 bytes", new(snapshotRecord), snapshotRecord{Size: 1 << 20, Sector: 1024, Cut: cut}},
		{`"" is not an ID of the form c-`, new(snapshotRecord), snapshotRecord{Size: 1 << 20, Sector: 512}},
		{"size of 1 bytes", new(snapshotRecord), snapshotRecord{Size: 1, Sector: 512, Cut: cut}},
		{`"" is not an ID of the form v-`, new(cutRecord), cutRecord{Size: 1 << 20}},
		{"size of 1 bytes", new(cutRecord), cutRecord{Size: 1, Volume: vol}},
	} {
		err := decode(catalog.Entry{Key: "kind/name", Value: encode(c.rec)}, c.into)
		if !errors.Is(err, ErrCorrupt) || !strings.HasPrefix(err.Error(), "catalog record kind/name: ") || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v, want %q", err, c.text)
		}
	}
	ok(t, decode(catalog.Entry{Value: encode(volume(func(*volumeRecord) {}))}, new(volumeRecord)))
	for text, value := range map[string]string{
		`unknown field "more"`: `{"id":"x","more":1}`, "EOF": "", "not one JSON object and nothing else": "null", "cannot unmarshal": `{"id":1}`,
	} {
		if err := decode(catalog.Entry{Key: "k", Value: []byte(value)}, new(nameRecord)); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, want %q", value, err, text)
		}
	}
	for _, more := range []string{"{}", " ", "\n"} {
		err := decode(catalog.Entry{Key: "k", Value: []byte(`{"id":"x"}` + more)}, new(nameRecord))
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "nothing else") {
			t.Errorf("followed by %q: %v", more, err)
		}
	}
}

func TestStoreHeader_Refused(t *testing.T) {
	good := storeHeader{store: [16]byte{1}, commit: 5}.encode()
	for _, c := range []struct {
		text string
		kind error
		page func([]byte) []byte
	}{
		{"5 bytes instead of 4096", ErrCorrupt, func(b []byte) []byte { return b[:5] }},
		{"4097 bytes instead of 4096", ErrCorrupt, func(b []byte) []byte { return append(b, 0) }},
		{"magic", ErrFormat, func(b []byte) []byte { b[0]++; return b }},
		{"unknown format version 2", ErrVersion, func(b []byte) []byte { b[4]++; return b }},
		{"header page has checksum", ErrCorrupt, func(b []byte) []byte { b[33]++; return b }},
		{"bytes are set that must be zero", ErrCorrupt, func(b []byte) []byte { b[2000]++; wal.SealPage(b); return b }},
	} {
		mem := vfs.NewMem()
		ok(t, mem.MkdirAll(testDir))
		ok(t, vfs.WriteFileAtomic(mem, testDir+"/"+headerName, c.page(append([]byte(nil), good...))))
		_, err := Open(mem, testDir, smallOptions())
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), testDir+"/"+headerName+": ") || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v, want %q", err, c.text)
		}
	}
}

// An epoch that chunk files' numbers have no room for is refused before one is made.
func TestEpoch_Refused(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, smallOptions())
	ok(t, s.Close())
	name := testDir + "/" + dirCatalog + "/" + must(mem.ReadDir(testDir + "/" + dirCatalog))(t)[0]
	mem.Corrupt(name, 0, func(b []byte) {
		for at := 0; at+wal.PageSize <= len(b); at += wal.PageSize {
			page := b[at : at+wal.PageSize]
			if at == 0 {
				page[44] = 1 // the epoch's fifth byte
				wal.SealPage(page)
			} else if rec, crcs, err := wal.DecodeHeader(page); err == nil {
				rec.Epoch |= 1 << 32
				wal.EncodeHeaderCRCs(page, rec, crcs)
			}
		}
	})
	_, err := Open(mem, testDir, smallOptions())
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "epoch 4294967298: a chunk file's number has room for 4294967295") {
		t.Error(err)
	}
	names := must(mem.ReadDir(testDir + "/" + dirChunks))(t)
	if len(names) > 0 {
		t.Errorf("made %v", names)
	}
}
