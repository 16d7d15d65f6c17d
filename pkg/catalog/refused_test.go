package catalog

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// wantError wants an error of a kind that says text.
func wantError(t *testing.T, what string, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v; want %v and %q", what, err, want, text)
	}
}

func TestDecodeEntries_Refuses(t *testing.T) {
	payload, n, err := encodeOps(7, []Op{put("key", "value"), {Key: "gone"}, put("empty", "")})
	if err != nil {
		t.Fatal(err)
	}
	payload = payload[:n]
	ends := []int{0, 23, 30, n} // of entries
	for cut := range n + 1 {
		err := decodeEntries(payload[:cut], func(string, uint64, []byte) error { return nil })
		if slices.Contains(ends, cut) {
			if err != nil {
				t.Errorf("whole entries of %d bytes: %v", cut, err)
			}
			continue
		}
		wantError(t, "cut", err, wal.ErrCorrupt, "payload ends inside an entry")
	}
	for text, b := range map[string][]byte{
		"entry of kind 3 with a key of 1 bytes": {3, 1, 0, 'k'},
		"entry of kind 2 with a key of 0 bytes": {2, 0, 0},
	} {
		wantError(t, text, decodeEntries(b, nil), wal.ErrCorrupt, text)
	}
	stop := errors.New("stop")
	for _, key := range []string{"key", "gone"} { // a put and a delete
		err := decodeEntries(payload, func(k string, _ uint64, _ []byte) error {
			if k == key {
				return stop
			}
			return nil
		})
		if err != stop {
			t.Errorf("at %q: %v", key, err)
		}
	}
}

// TestOpen_ImpossibleLog: logs whose records all check, in an order or with content that
// no catalog writes, are refused with file and offset, by reading and writing alike.
func TestOpen_ImpossibleLog(t *testing.T) {
	entries, n, err := encodeOps(1, []Op{put("k", "v")})
	if err != nil {
		t.Fatal(err)
	}
	entries = entries[:n]
	late := appendPut(nil, Entry{"k", 9, []byte("v")})
	never := appendPut(nil, Entry{"k", 0, []byte("v")})
	step := func(what byte, payload []byte) []byte { return append([]byte{what, byte(len(payload))}, payload...) }
	header := fileHeader{store: testStore, log: 3, epoch: 2, commit: 1, firstSeq: 5}
	with := func(change func(*fileHeader)) fileHeader {
		h := header
		change(&h)
		return h
	}
	for _, c := range []struct {
		text   string
		header fileHeader
		script []byte
	}{
		{"record 6 at offset 12288: damaged: checkpoint of 2 entries has 1", header, slices.Concat(step(0, entries), step(1, []byte{2}))},
		{`record 5 at offset 4096: damaged: "k" has revision 9 in commit 1`, header, step(0, late)},
		{`"k" has revision 0 in commit 2`, header, slices.Concat(step(1, nil), step(2, never))},
		{"commit record 5 at offset 4096: inside the checkpoint", header, step(2, entries)},
		{"hole record 6 at offset 8192: not one of a catalog", header, slices.Concat(step(1, nil), step(3, nil))},
		{"commit 3 follows 1", header, slices.Concat(step(1, nil), step(2|0x80, entries))},
		{"of commit 2, the checkpoint is of 1", header, step(0|0x80, entries)},
		{"record 5 at offset 4096, part of the checkpoint, is missing", header, nil},
		{"none may be 0", with(func(h *fileHeader) { h.epoch = 0 }), step(1, nil)},
		{"all are below", with(func(h *fileHeader) { h.epoch = maxCounter }), step(1, nil)},
		{"all are below", with(func(h *fileHeader) { h.firstSeq = ^uint64(0) }), step(1, nil)},
		{"header at offset 0 says log 4", with(func(h *fileHeader) { h.log = 4 }), step(1, nil)},
	} {
		mem := vfs.NewMem()
		if err := mem.MkdirAll(testDir); err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFileAtomic(mem, testDir+"/"+logName(3), fuzzLog(c.header, c.script)); err != nil {
			t.Fatal(err)
		}
		for _, readOnly := range []bool{true, false} {
			_, err := Open(mem, testDir, testStore, Options{ReadOnly: readOnly, LogBytes: minLogBytes})
			wantError(t, c.text, err, wal.ErrCorrupt, c.text)
			wantError(t, c.text, err, wal.ErrCorrupt, logName(3))
		}
	}
}

// TestOpen_InTheWay: what cannot be removed or read before the first log is told.
func TestOpen_InTheWay(t *testing.T) {
	mem := vfs.NewMem()
	if _, err := Open(mem, testDir, testStore, Options{ReadOnly: true}); !errors.Is(err, vfs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if err := mem.MkdirAll(testDir); err != nil {
		t.Fatal(err)
	}
	_, err := Open(mem, testDir, testStore, Options{ReadOnly: true})
	wantError(t, "empty directory", err, vfs.ErrNotExist, "no log")
	for _, name := range []string{spareName, "x" + tmpSuffix} {
		if err := vfs.WriteFileAtomic(mem, testDir+"/"+name, make([]byte, minLogBytes)); err != nil {
			t.Fatal(err)
		}
	}
	faulty, broken := vfs.NewFaulty(mem), errors.New("broken")
	for _, c := range []struct {
		kind vfs.OpKind
		name string
	}{{vfs.OpOpen, spareName}, {vfs.OpRead, spareName}, {vfs.OpStat, spareName}, {vfs.OpRemove, "x" + tmpSuffix}} {
		faulty.SetHook(func(op vfs.Op) error {
			if op.Kind == c.kind && op.Name == testDir+"/"+c.name {
				return broken
			}
			return nil
		})
		_, err := Open(faulty, testDir, testStore, Options{LogBytes: minLogBytes})
		wantError(t, c.kind.String(), err, broken, "open catalog "+testDir)
	}
	faulty.SetHook(nil)
	mustOpen(t, faulty, Options{LogBytes: minLogBytes})
}

// A checkpoint is never written behind the end of its file, and nobody waits for room in
// a catalog that is closed.
func TestCheckpoint_KeepsToItsFile(t *testing.T) {
	mem := vfs.NewMem()
	f, err := mem.Create("/log")
	if err != nil {
		t.Fatal(err)
	}
	s := newState()
	s.put(Entry{"k", 1, make([]byte, 3*wal.PageSize)})
	w := checkpointWriter{file: f, size: 4 * wal.PageSize, off: wal.PageSize, seq: 1, record: wal.Record{Owner: testStore, Epoch: 1, Log: 1}}
	wantError(t, "checkpoint", w.write(s), vfs.ErrNoSpace, "needs more than the 16384 bytes of /log")
	c := mustOpen(t, vfs.NewMem(), Options{LogBytes: minLogBytes})
	mustClose(t, c)
	if err := c.grow(1 << 20); !errors.Is(err, ErrClosed) {
		t.Errorf("grow of a closed catalog: %v", err)
	}
}

func TestDump_Refuses(t *testing.T) {
	mem := vfs.NewMem()
	wantError(t, "no file", Dump(io.Discard, mem, "/x"), vfs.ErrNotExist, "/x")
	header := fileHeader{store: testStore, log: 3, epoch: 2, commit: 1, firstSeq: 5}
	for text, b := range map[string][]byte{
		"/x: header at offset 0: not a granary file":                                         []byte("something else"),
		"/x: checkpoint-part record 5 at offset 4096: damaged: payload ends inside an entry": fuzzLog(header, []byte{0, 2, 1, 1}),
		"/x: header at offset 0: damaged: header page has checksum":                          bytes.Replace(header.encode(), []byte{2, 0}, []byte{3, 0}, 1),
		"/x: damaged: record 5 at offset 4096, part of the checkpoint, is missing":           header.encode(),
		"/x: damaged: commit record 5 at offset 4096: inside the checkpoint":                 fuzzLog(header, []byte{2, 0}),
	} {
		if err := vfs.WriteFileAtomic(mem, "/x", b); err != nil {
			t.Fatal(err)
		}
		if err := Dump(io.Discard, mem, "/x"); err == nil || !strings.HasPrefix(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
}
