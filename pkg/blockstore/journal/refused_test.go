package journal

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
	"github.com/k8ns/granary/pkg/wal"
)

var errBroken = errors.New("broken")

// wantError wants an error of a kind that says text.
func wantError(t *testing.T, what string, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v; want %v and %q", what, err, want, text)
	}
}

// failing makes the operations of a kind fail, on names with that end.
func failing(fsys *vfs.Faulty, kind vfs.OpKind, suffix string) {
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == kind && strings.HasSuffix(op.Name, suffix) {
			return errBroken
		}
		return nil
	})
}

func open(fsys vfs.FS, o PoolOptions) (*Pool, []Recovered, []Bad, error) {
	o.Store, o.SegmentBytes, o.BudgetBytes = [16]byte{1}, 8*wal.PageSize, 16*8*wal.PageSize
	o.Rand = reader{}
	return OpenPool(fsys, "/j", o)
}

// segmentFile writes a segment with a header and one record of a page.
func segmentFile(t *testing.T, fsys vfs.FS, name string, change func(*Header, []byte)) {
	t.Helper()
	h := Header{Store: [16]byte{1}, Owner: owner, Epoch: 1, Log: 1, Pages: 8, FirstSeq: 1}
	file := make([]byte, 8*wal.PageSize)
	payload := file[2*wal.PageSize : 3*wal.PageSize]
	wal.EncodeHeader(file[wal.PageSize:2*wal.PageSize], wal.Record{
		Type: wal.TypeWrite, Owner: owner, Epoch: 1, Log: 1, Seq: 1, Length: wal.PageSize,
	}, payload)
	if change != nil {
		change(&h, file)
	}
	copy(file, h.Encode())
	if err := fsys.MkdirAll("/j"); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFileAtomic(fsys, name, file); err != nil {
		t.Fatal(err)
	}
}

const segment0 = "/j/0000000000000000.seg"

// TestOpenPool_Refuses: a directory that cannot be read, segments of another store or of
// a later version: nothing is opened. What is damaged is told and kept.
func TestOpenPool_Refuses(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	segmentFile(t, fsys, segment0, nil)
	for kind, text := range map[vfs.OpKind]string{
		vfs.OpReadDir: "open journal pool: broken", vfs.OpOpen: "open segment: broken", vfs.OpStat: "open segment " + segment0 + ": broken",
	} {
		failing(fsys, kind, "")
		_, _, _, err := open(fsys, PoolOptions{})
		wantError(t, kind.String(), err, errBroken, text)
	}
	failing(fsys, vfs.OpRead, ".seg")
	p, owned, bad, err := open(fsys, PoolOptions{})
	if err != nil || len(owned) != 0 || len(bad) != 1 || bad[0].Segment == nil {
		t.Fatal(owned, bad, err)
	}
	wantError(t, "unreadable header", bad[0].Err, errBroken, segment0)
	_, err = Inspect(bad[0].Segment)
	wantError(t, "unreadable segment", err, errBroken, "read "+segment0)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	fsys.SetHook(nil)
	if err := vfs.WriteFileAtomic(fsys, "/j/left", nil); err != nil {
		t.Fatal(err)
	}
	if err := fsys.Rename("/j/left", "/j/x.tmp"); err != nil {
		t.Fatal(err)
	}
	failing(fsys, vfs.OpRemove, ".tmp")
	_, _, _, err = open(fsys, PoolOptions{})
	wantError(t, "leftover", err, errBroken, "remove unfinished segment")
	if p, _, _, err := open(fsys, PoolOptions{ReadOnly: true}); err != nil || p.Close() != nil { // touches nothing
		t.Error(err)
	}
	fsys.SetHook(nil)

	segmentFile(t, fsys, segment0, func(h *Header, _ []byte) { h.Store = [16]byte{2} })
	_, _, _, err = open(fsys, PoolOptions{})
	wantError(t, "another store", err, wal.ErrFormat, "belongs to store 02")
	segmentFile(t, fsys, segment0, func(h *Header, _ []byte) { h.Pages *= 2 })
	if p, owned, bad, err = open(fsys, PoolOptions{}); err != nil || len(owned) != 0 || len(bad) != 1 || bad[0].Cut == nil || p.Close() != nil {
		t.Fatal("a segment that has lost its end: ", owned, bad, err)
	}
	wantError(t, "half of a segment", bad[0].Err, wal.ErrCorrupt, segment0+": 8 pages of 16 are left")
	page := Header{Store: [16]byte{1}, Owner: owner}.Encode()
	page[4]++
	if err := vfs.WriteFileAtomic(fsys, segment0, append(page, make([]byte, 7*wal.PageSize)...)); err != nil {
		t.Fatal(err)
	}
	_, _, _, err = open(fsys, PoolOptions{})
	wantError(t, "later version", err, wal.ErrVersion, segment0)

	page = Header{Store: [16]byte{1}, Owner: owner}.Encode()
	page[200] = 1
	wal.SealPage(page)
	_, err = DecodeHeader(page)
	wantError(t, "bytes that must be zero", err, wal.ErrCorrupt, "byte 200 is 0x1, want 0")
	for name, size := range map[string]int{"/j/0000000000000001.seg": wal.PageSize, "/j/1.seg": 1} {
		if err := vfs.WriteFileAtomic(fsys, name, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := vfs.WriteFileAtomic(fsys, segment0, append(page, make([]byte, 7*wal.PageSize)...)); err != nil {
		t.Fatal(err)
	}
	p, owned, bad, err = open(fsys, PoolOptions{})
	if err != nil || len(owned) != 0 || len(bad) != 3 {
		t.Fatal(owned, bad, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpenPool_ClosesWhatItOpened: whichever operation fails, a pool that is not opened
// leaves no file open.
func TestOpenPool_ClosesWhatItOpened(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	for _, name := range []string{segment0, "/j/0000000000000001.seg"} {
		segmentFile(t, fsys, name, nil)
	}
	for n := 0; ; n++ {
		if err := vfs.WriteFileAtomic(fsys, "/j/left", nil); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Rename("/j/left", "/j/x.tmp"); err != nil {
			t.Fatal(err)
		}
		at := 0
		var failed vfs.Op
		var descriptors vfstest.Descriptors
		fsys.SetHook(func(op vfs.Op) error {
			if at++; at == n+1 {
				failed = op
				return errBroken
			}
			descriptors.See(op)
			return nil
		})
		p, _, _, err := open(fsys, PoolOptions{})
		if err == nil {
			fsys.SetHook(nil)
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if at <= n {
				return
			}
			continue // a read that is tried again, or a header that is looked for elsewhere
		}
		if opened := descriptors.Open(); opened != 0 {
			t.Errorf("%d files stay open after %v of %s failed: %v", opened, failed.Kind, failed.Name, err)
		}
		fsys.SetHook(nil)
	}
}

// TestPool_EveryFault: whatever fails while a segment is made, the pool says so, counts
// no segment that it has not, and makes the next one.
func TestPool_EveryFault(t *testing.T) {
	for n := int64(0); ; n++ {
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		p, _ := pool(t, fsys, 4)
		fsys.FailNth(n, errBroken, false)
		seg, err := p.Get()
		if err == nil {
			seg.Release()
			if n < 8 {
				t.Errorf("only %d operations", n)
			}
			break
		}
		wantError(t, "Get", err, errBroken, "make segment")
		if st := p.Stats(); st.Bytes != 0 || st.InUse != 0 {
			t.Fatalf("fault %d: %+v", n, st)
		}
		fsys.FailNth(n, errBroken, false)
		wantError(t, "Prepare", p.Prepare(1), errBroken, "make segment")
		fsys.SetHook(nil)
		if err := p.Prepare(1); err != nil {
			t.Fatal(err)
		}
		names, err := mem.ReadDir("/j")
		if err != nil || strings.Contains(strings.Join(names, " "), ".tmp") {
			t.Fatalf("fault %d leaves %v", n, names)
		}
	}
	// Nothing is handed out that the reserve does not allow.
	p, _, _, err := open(vfs.NewMem(), PoolOptions{Allow: func() error { return errBroken }})
	if err == nil {
		t.Fatal("a pool without a directory")
	}
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/j"); err != nil {
		t.Fatal(err)
	}
	if p, _, _, err = open(mem, PoolOptions{Allow: func() error { return errBroken }}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Get(); err != errBroken {
		t.Error(err)
	}
	if err := p.Prepare(1); err != errBroken {
		t.Error(err)
	}
}

// TestLog_WriteFails: what a new log builds on is synced before its header, and a header
// or a record that cannot be written says where; the file is never used again (I8).
func TestLog_WriteFails(t *testing.T) {
	for _, c := range []struct {
		kind vfs.OpKind
		text string
	}{{vfs.OpDatasync, "sync /j/"}, {vfs.OpWrite, "write header of /j/"}} {
		fsys := vfs.NewFaulty(vfs.NewMem())
		w, _, err := reopen(t, fsys, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.append()
		w.flush()
		w.append()
		w, _, err = reopen(t, fsys, 2, 0) // what was read back is to be synced first
		if err != nil {
			t.Fatal(err)
		}
		seg, err := w.p.Get()
		if err != nil {
			t.Fatal(err)
		}
		next := w.l.Prepare(seg, w.next)
		failing(fsys, c.kind, "")
		wantError(t, c.kind.String(), next.Write(), errBroken, c.text)
	}
	fsys := vfs.NewFaulty(vfs.NewMem())
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.append()
	failing(fsys, vfs.OpWrite, "")
	seg := w.l.segs[0]
	wantError(t, "append", seg.Append(4*wal.PageSize, make([]byte, wal.PageSize), nil), errBroken, "append to /j/")
	if !seg.bad.Load() {
		t.Error("the segment may be used again")
	}
}

// TestRecover_Refuses: reads that fail, a record that cannot be applied, one of a later
// version, and a log that ends before the next one says: each names file and place, and
// every segment stays with the log.
func TestRecover_Refuses(t *testing.T) {
	stop := errors.New("stop")
	later := func(_ *Header, file []byte) {
		head := file[wal.PageSize : 2*wal.PageSize]
		head[6] = 99 // the type
		copy(head[124:128], []byte{0, 0, 0, 0})
		crc := wal.PageCRC(head)
		head[124], head[125], head[126], head[127] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	}
	for _, c := range []struct {
		text   string
		want   error
		change func(*Header, []byte)
		kind   vfs.OpKind
		second uint64 // where the next log says that this one ends; 0: there is no next one
		apply  error
	}{
		{"read " + segment0, errBroken, nil, vfs.OpRead, 0, nil},
		{"read " + segment0, errBroken, func(h *Header, _ []byte) { h.FirstSeq = 5 }, vfs.OpRead, 0, nil},
		{"read " + segment0, wal.ErrVersion, later, 0, 0, nil},
		{"stop", stop, nil, 0, 0, stop},
		{"journal ends at sequence 1 in or before " + segment0 + ", but a later log says that it reached 3", wal.ErrCorrupt, nil, 0, 3, nil},
	} {
		fsys := vfs.NewFaulty(vfs.NewMem())
		segmentFile(t, fsys, segment0, c.change)
		if c.second > 0 {
			segmentFile(t, fsys, "/j/0000000000000001.seg", func(h *Header, _ []byte) { h.Log, h.FirstSeq, h.PrevEnd = 2, c.second+1, c.second })
		}
		p, owned, bad, err := open(fsys, PoolOptions{})
		if err != nil || len(bad) > 0 {
			t.Fatal(bad, err)
		}
		failing(fsys, c.kind, ".seg")
		l := NewLog(p, owner, 9, func() uint64 { return 1 })
		_, err = l.Recover(owned, 0, 0, 0, 0, func(Entry) error { return c.apply })
		wantError(t, "recover", err, c.want, c.text)
		if len(l.segs) != len(owned) {
			t.Errorf("%s: %d of %d segments kept", c.text, len(l.segs), len(owned))
		}
		fsys.SetHook(nil)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// brokenWriter fails from its n-th line on.
type brokenWriter struct{ left int }

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.left--; w.left < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func TestDump_Refuses(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	segmentFile(t, fsys, segment0, nil)
	for _, kind := range []vfs.OpKind{vfs.OpOpen, vfs.OpStat, vfs.OpRead} {
		failing(fsys, kind, "")
		wantError(t, kind.String(), Dump(io.Discard, fsys, segment0), errBroken, "dump")
	}
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Off > 0 {
			return errBroken
		}
		return nil
	})
	wantError(t, "records", Dump(io.Discard, fsys, segment0), errBroken, "dump "+segment0)
	fsys.SetHook(nil)
	wantError(t, "nobody reads", Dump(&brokenWriter{4}, fsys, segment0), errBroken, "")
	if err := vfs.WriteFileAtomic(fsys, "/j/a", make([]byte, wal.PageSize)); err != nil {
		t.Fatal(err)
	}
	wantError(t, "zeros", Dump(io.Discard, fsys, "/j/a"), wal.ErrFormat, "dump /j/a")
	var out strings.Builder
	if err := vfs.WriteFileAtomic(fsys, "/j/a", Header{Pages: 8}.Encode()); err != nil {
		t.Fatal(err)
	}
	if err := Dump(&out, fsys, "/j/a"); err != nil || !strings.HasSuffix(out.String(), "\n  free\n") {
		t.Errorf("free segment: %v, %q", err, out.String())
	}
	// A record that a later one says was durable.
	segmentFile(t, fsys, segment0, func(_ *Header, file []byte) {
		wal.EncodeHeader(file[3*wal.PageSize:4*wal.PageSize], wal.Record{Type: wal.TypeMark, Owner: owner, Epoch: 1, Log: 1, Seq: 2, Synced: 1}, nil)
		file[2*wal.PageSize]++
	})
	out.Reset()
	if err := Dump(&out, fsys, segment0); err != nil || !strings.Contains(out.String(), "DAMAGED: damaged: record 1 is not at offset 4096") {
		t.Errorf("%v, %q", err, out.String())
	}
}
