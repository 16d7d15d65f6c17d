package journal

import (
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// Every field of a header is read back as it was written, each from a place of its own.
func TestHeader_RoundTrip(t *testing.T) {
	h := Header{
		Store: [16]byte{1, 15: 2}, Owner: [16]byte{3, 15: 4}, Epoch: 5 << 40, Log: 6 << 40, Number: 7 << 20, Pages: 8 << 20,
		FirstSeq: 9 << 40, PrevEnd: 10 << 40, PrevLog: 11 << 40, PrevEpoch: 12 << 40, Commit: 13 << 40,
	}
	if got, err := DecodeHeader(h.Encode()); err != nil || got != h {
		t.Errorf("%+v, %v; want %+v", got, err, h)
	}
}

// A segment whose header could not be written is not used again (I8).
func TestFailedHeaderSpoilsItsSegment(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpWrite, vfs.OpDatasync} {
		fsys := vfs.NewFaulty(vfs.NewMem())
		p, _ := pool(t, fsys, 4)
		l := NewLog(p, owner, 1, func() uint64 { return 0 })
		seg, err := p.Get()
		if err != nil {
			t.Fatal(err)
		}
		n := l.Prepare(seg, 1)
		failing(fsys, kind, ".seg")
		wantError(t, kind.String()+" of a header", n.Write(), errBroken, seg.Name())
		fsys.SetHook(nil)
		seg.Release()
		if st := p.Stats(); st != (PoolStats{}) {
			t.Errorf("failed %v of a header: the pool has %+v", kind, st)
		}
		if names, err := fsys.ReadDir("/j"); err != nil || len(names) != 0 {
			t.Errorf("failed %v of a header: %v, %v", kind, names, err)
		}
	}
}

// A new log's header is durable before any record, and what it builds on before it.
func TestNewLogIsDurable(t *testing.T) {
	fsys := vfs.NewMem()
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.append()
	w.append() // acknowledged, and not flushed
	fsys.Kill()
	w, seqs, err := reopen(t, fsys, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	wantSeqs(t, seqs, 1, 2)
	seg, err := w.p.Get()
	if err != nil {
		t.Fatal(err)
	}
	n := w.l.Prepare(seg, w.next)
	if err := n.Write(); err != nil {
		t.Fatal(err)
	}
	w.l.Install(n)
	for _, s := range w.l.segs {
		if got := s.refs.Load(); got != 1 {
			t.Errorf("%s has %d references, want the log's", s.Name(), got)
		}
	}
	fsys.Crash(nil, 0)
	_, seqs, err = reopen(t, fsys, 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	wantSeqs(t, seqs, 1, 2)
}

// A new segment never takes the name of one that is there.
func TestNumbersGoOn(t *testing.T) {
	fsys := vfs.NewMem()
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 { // two segments
		w.append()
	}
	w.flush()
	fsys.Kill()
	w, _, err = reopen(t, fsys, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		seg, err := w.p.Get()
		if err != nil {
			t.Fatal(err)
		}
		if seg.num < 2 {
			t.Errorf("%s is made anew", seg.Name())
		}
	}
	if names, err := fsys.ReadDir("/j"); err != nil || len(names) != 4 {
		t.Errorf("%v, %v; want four segments", names, err)
	}
}

// A segment without room for a record goes when it is let go of.
func TestTooSmallSegmentGoes(t *testing.T) {
	fsys := vfs.NewMem()
	h := Header{Store: [16]byte{1}, Owner: owner, Epoch: 1, Log: 1, Pages: 2, FirstSeq: 1}
	if err := fsys.MkdirAll("/j"); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFileAtomic(fsys, segment0, append(h.Encode(), make([]byte, wal.PageSize)...)); err != nil {
		t.Fatal(err)
	}
	p, owned := pool(t, fsys, 4)
	if len(owned) != 1 {
		t.Fatal(owned)
	}
	owned[0].Segment.Release()
	if st := p.Stats(); st != (PoolStats{}) {
		t.Errorf("%+v", st)
	}
}

// Letting go of a segment more often than it was acquired would give it to two logs.
func TestReleasedTooOften(t *testing.T) {
	p, _ := pool(t, vfs.NewMem(), 4)
	seg, err := p.Get()
	if err != nil {
		t.Fatal(err)
	}
	seg.Release()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	seg.Release()
}

// A log's number has a part that no guest can guess: what guests wrote stands in recycled
// segments.
func TestLogNumbersAreRandom(t *testing.T) {
	low := make(map[uint32]bool)
	last := uint64(0)
	p, _ := pool(t, vfs.NewMem(), 4)
	for range 8 {
		n := p.logNumber()
		if n <= last {
			t.Errorf("log %#x follows %#x", n, last)
		}
		last = n
		low[uint32(n)] = true
	}
	if len(low) < 7 {
		t.Errorf("only %d low halves of 8 numbers differ", len(low))
	}
}

// A new segment is written over its whole length, once, before it has its name: later
// syncs then change no allocation.
func TestNewSegmentIsWritten(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	p, _ := pool(t, fsys, 4)
	p.o.SegmentBytes = 5 << 19 // more than is written at a time
	p.o.BudgetBytes = 4 * p.o.SegmentBytes
	written := int64(0)
	fsys.SetHook(func(op vfs.Op) error {
		switch {
		case op.Kind == vfs.OpWrite && op.Off <= written && written <= op.Off+op.Len:
			written = op.Off + op.Len
		case op.Kind == vfs.OpWrite:
			t.Errorf("%d bytes at %d, behind %d", op.Len, op.Off, written)
		case op.Kind == vfs.OpSync && written != p.o.SegmentBytes:
			t.Errorf("synced with %d bytes of %d", written, p.o.SegmentBytes)
		}
		return nil
	})
	if _, err := p.Get(); err != nil {
		t.Fatal(err)
	}
	if written != p.o.SegmentBytes {
		t.Errorf("%d bytes of %d were written", written, p.o.SegmentBytes)
	}
}

// A segment that could not be made leaves no file, under whatever name: nobody would count
// its space.
func TestFailedSegmentLeavesNothing(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpAllocate, vfs.OpWrite, vfs.OpSync, vfs.OpRename, vfs.OpSyncDir, vfs.OpOpen} {
		fsys := vfs.NewFaulty(vfs.NewMem())
		p, _ := pool(t, fsys, 4)
		failing(fsys, kind, "")
		if _, err := p.Get(); err == nil {
			t.Errorf("failing %v: no error", kind)
		}
		fsys.SetHook(nil)
		if names, err := fsys.ReadDir("/j"); err != nil || len(names) != 0 || p.Stats() != (PoolStats{}) {
			t.Errorf("failing %v: %v, %v, %+v", kind, names, err, p.Stats())
		}
	}
}
