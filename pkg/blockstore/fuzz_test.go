package blockstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/catalog"
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

// FuzzStoreHeader takes the first bytes of a store header, the rest is zero, and makes
// the checksum right: what is taken encodes to the same bytes.
func FuzzStoreHeader(f *testing.F) {
	f.Add(storeHeader{store: [16]byte{1, 2}, commit: 9}.encode()[:40], true)
	f.Add(storeHeader{store: [16]byte{1, 2}, commit: 9}.encode()[:40], false)
	f.Add(append(storeHeader{store: [16]byte{1, 2}, commit: 9}.encode()[:40], 0, 0, 1), true)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		page := data
		if seal {
			page = make([]byte, wal.PageSize)
			copy(page, data)
			wal.SealPage(page)
		}
		h, err := decodeStoreHeader(page)
		if err != nil {
			classed(t, err)
			return
		}
		again := h.encode()
		copy(again[12:16], page[12:16]) // compat feature bits: ignored
		wal.SealPage(again)
		if !bytes.Equal(again, page) {
			t.Fatalf("%x encodes to %x", page[:64], again[:64])
		}
	})
}

// FuzzKeys: damage keys have one form, and what passes for an ID or a name makes a key
// that no other has.
func FuzzKeys(f *testing.F) {
	f.Add("damage/0123456789abcdef0123456789abcdef01234567/0012")
	f.Add("damage/0123456789abcdef0123456789abcdef01234567/+12x")
	f.Add("v-0123456789abcdef0123456789abcdef")
	f.Add("a name\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if slot, ok := parseDamageKey(s); ok && damageKey(slot) != s {
			t.Fatalf("%q is taken for %q", s, damageKey(slot))
		}
		for _, kind := range []byte("vsc") {
			if checkID(kind, s) == nil && (len(s) != 34 || s[0] != kind || strings.Contains(s, "/")) {
				t.Fatalf("%q is an ID of kind %c", s, kind)
			}
		}
		if checkName("volume", s) != nil {
			return
		}
		raw, err := json.Marshal(s) // names stand in records
		var back string
		if err != nil || json.Unmarshal(raw, &back) != nil || back != s || strings.Contains(s, "/") {
			t.Fatalf("name %q comes back as %q", s, back)
		}
	})
}

// recordKinds are the records of a catalog: an empty one of each kind, and the key.
func recordKinds() map[string]func() any {
	return map[string]func() any{
		keyVolume:       func() any { return new(volumeRecord) },
		keyVolumeName:   func() any { return new(nameRecord) },
		keySnapshot:     func() any { return new(snapshotRecord) },
		keySnapshotName: func() any { return new(nameRecord) },
		keyCut:          func() any { return new(cutRecord) },
		keyDamage:       func() any { return new(damageRecord) },
		keyAttach:       func() any { return new(Attachment) },
		keyPublish:      func() any { return new(Publication) },
	}
}

// fuzzStore is a store with a volume with data, a snapshot of it and a clone of that,
// part of it in journals, with a record of every kind.
func fuzzStore(t testing.TB) (*vfs.Mem, []catalog.Entry) {
	mem := vfs.NewMem()
	o := smallOptions() // the same IDs each time, or inputs would mean something else
	o.Rand = rand.NewChaCha8([32]byte{4})
	o.Now = func() time.Time { return time.Unix(1e9, 0) }
	s := openStore(t, mem, o)
	v := newVolume(t, s, "source", 1<<20)
	must(v.WriteAt(noise(1, 64<<10), 0))(t)
	snap := must(s.CreateSnapshot(context.Background(), v.ID(), "snap", map[string]string{"k": "v"}))(t)
	_, err := s.foldOnce(v)
	ok(t, err)
	must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: snap.ID}))(t)
	must(v.WriteAt(noise(2, 64<<10), 64<<10))(t)
	must(s.CreateSnapshot(context.Background(), v.ID(), "pending", nil))(t)
	must(v.WriteAt(noise(3, 4<<10), 0))(t)
	ok(t, s.PutAttachment(Attachment{Volume: v.ID(), Device: "/dev/loop7"}))
	_, err = s.commit(put(keyDamage+"0123456789abcdef0123456789abcdef01234567/0003", damageRecord{File: "f", Reason: "r"}, 0),
		put(keyPublish+v.ID(), Publication{Node: "n"}, 0))
	ok(t, err)
	ok(t, s.Close())
	c := must(catalog.Open(mem, path.Join(testDir, dirCatalog), s.id, catalog.Options{ReadOnly: true}))(t)
	return mem, c.Scan("", "", 0)
}

// FuzzRecord puts any bytes in the place of a catalog record, as if a commit had made
// it so. What is taken encodes to what is taken for the same. The store opens or says
// why not; then listing, reading and checking it end without harm, and never with
// another error than one that says what is wrong.
func FuzzRecord(f *testing.F) {
	mem, entries := fuzzStore(f)
	kinds := recordKinds()
	seen := map[string]int{}
	for i, e := range entries {
		kind, _, _ := strings.Cut(e.Key, "/")
		if seen[kind]++; seen[kind] <= 2 {
			f.Add(byte(i), e.Value)
		}
		if kind == "volume" {
			for _, change := range [][2]string{
				{`"sector":512`, `"sector":0`}, {`"size":1048576`, `"size":-512`}, {`"size":1048576`, `"size":9223372036854775807`},
				{`"slot":0`, `"slot":65535`}, {`"seq":`, `"seq":1844674407370955161`},
			} {
				f.Add(byte(i), bytes.Replace(e.Value, []byte(change[0]), []byte(change[1]), 1))
			}
			f.Add(byte(i), append(bytes.Clone(e.Value), "{}"...))
			f.Add(byte(i), []byte("null"))
		}
	}
	f.Fuzz(func(t *testing.T, at byte, value []byte) {
		if value == nil || len(value) > 64<<10 {
			return
		}
		e := entries[int(at)%len(entries)]
		e.Value = value
		kind, _, _ := strings.Cut(e.Key, "/")
		rec, again := kinds[kind+"/"](), kinds[kind+"/"]()
		err := decode(e, rec)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), e.Key) {
				t.Fatalf("refused without saying what: %v", err)
			}
		} else if first := encode(rec); decode(catalog.Entry{Key: e.Key, Value: first}, again) != nil || !bytes.Equal(encode(again), first) {
			t.Fatalf("%s becomes %s becomes %s", value, first, encode(again))
		}
		useStore(t, mem.Clone(), e)
	})
}

// useStore opens a store with one record replaced and does with it what can be done.
func useStore(t *testing.T, mem *vfs.Mem, e catalog.Entry) {
	id := must(readStoreHeader(mem, testDir))(t).store
	c := must(catalog.Open(mem, path.Join(testDir, dirCatalog), id, catalog.Options{}))(t)
	_, err := c.Commit(catalog.Op{Key: e.Key, Value: e.Value, Expect: catalog.ExpectAny})
	ok(t, err)
	ok(t, c.Close())
	s, err := Open(mem, testDir, smallOptions())
	if err != nil {
		classed(t, err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // nothing may wait: what waits for a fold ends at once
	for _, info := range s.Volumes() {
		v, err := s.OpenVolume(ctx, info.ID)
		if err != nil {
			wantSaid(t, err)
			continue
		}
		p := make([]byte, 128<<10)
		if _, err := v.ReadAt(p, 0); err != nil {
			wantSaid(t, err)
		}
		if _, err := v.WriteAt(p[:4096], 0); err != nil {
			wantSaid(t, err)
		}
		if _, err := s.foldOnce(v); err != nil {
			wantSaid(t, err)
		}
		if err := v.Close(); err != nil {
			wantSaid(t, err)
		}
	}
	s.Snapshots("")
	s.Stats(true)
	s.Attachments()
	if err := s.Check(context.Background(), CheckOptions{ReadData: true}, func(Problem) {}); err != nil {
		wantSaid(t, err)
	}
	for _, info := range s.Snapshots("") {
		if err := s.DeleteSnapshot(info.ID); err != nil {
			wantSaid(t, err)
		}
	}
	if err := s.Close(); err != nil {
		wantSaid(t, err)
	}
}

// wantSaid fails the test unless the error is of the closed set.
func wantSaid(t *testing.T, err error) {
	t.Helper()
	for _, known := range []error{
		ErrCorrupt, ErrFormat, ErrVersion, ErrMissing, ErrFailed, ErrNotFound, ErrInvalid, ErrRange, ErrInUse, ErrClosed, ErrExists,
		context.Canceled,
	} {
		if errors.Is(err, known) {
			return
		}
	}
	t.Fatalf("error of no class: %v", err)
}

// FuzzDump: whatever file it is given, dump prints it or says what is wrong with it.
func FuzzDump(f *testing.F) {
	f.Add(storeHeader{store: [16]byte{1, 2}, commit: 9}.encode(), uint16(0))
	f.Add(journal.Header{Owner: [16]byte{7}, Epoch: 1, Log: 2, FirstSeq: 3}.Encode(), uint16(4))
	leaf := must(blockmap.NewLeaf(nil))(f)
	f.Add(must(blockmap.EncodeNode(leaf))(f)[:16], uint16(1))
	mem, _ := fuzzStore(f)
	for _, dir := range []string{dirCatalog, dirJournal, dirChunks} {
		for _, name := range must(mem.ReadDir(path.Join(testDir, dir)))(f) {
			b := must(vfs.ReadFile(mem, path.Join(testDir, dir, name)))(f)
			f.Add(b[:min(len(b), 12<<10)], uint16(2))
		}
	}
	f.Add([]byte("GN"), uint16(0))
	f.Add([]byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, zeros uint16) {
		mem := vfs.NewMem()
		ok(t, vfs.WriteFileAtomic(mem, "/file", append(bytes.Clone(b), make([]byte, zeros)...)))
		if err := DumpFile(io.Discard, mem, "/file"); err != nil && !errors.Is(err, io.EOF) {
			classed(t, err)
		}
	})
}
