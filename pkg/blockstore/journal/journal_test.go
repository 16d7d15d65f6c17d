package journal

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

var owner = [16]byte{7}

type reader struct{ *rand.ChaCha8 }

func pool(t *testing.T, fsys vfs.FS, segments int64) (*Pool, []Recovered) {
	t.Helper()
	if err := fsys.MkdirAll("/j"); err != nil {
		t.Fatal(err)
	}
	leaktest.Check(t)
	p, owned, bad, err := OpenPool(fsys, "/j", PoolOptions{
		Store: [16]byte{1}, SegmentBytes: 8 * wal.PageSize, BudgetBytes: segments * 8 * wal.PageSize,
		Rand: reader{rand.NewChaCha8([32]byte{3})},
	})
	if err != nil || len(bad) > 0 {
		t.Fatalf("%v %v", err, bad)
	}
	return p, owned
}

// writer appends one-page records the way a volume does.
type writer struct {
	t    *testing.T
	p    *Pool
	l    *Log
	next uint64
	sync uint64
}

func (w *writer) append() {
	w.t.Helper()
	place, ok := w.l.Place(w.next, 1)
	if !ok {
		seg, err := w.p.Get()
		if err != nil {
			w.t.Fatal(err)
		}
		n := w.l.Prepare(seg, w.next)
		if err := n.Write(); err != nil {
			w.t.Fatal(err)
		}
		w.l.Install(n)
		place, _ = w.l.Place(w.next, 1)
	}
	epoch, number := w.l.ID()
	head, body := make([]byte, wal.PageSize), make([]byte, wal.PageSize)
	body[0] = byte(w.next)
	wal.EncodeHeader(head, wal.Record{
		Type: wal.TypeWrite, Owner: owner, Epoch: epoch, Log: number, Seq: w.next, Synced: w.sync,
		Offset: 0, Length: wal.PageSize, Pages: 1,
	}, body)
	if err := place.Segment.Append(place.Offset, head, body); err != nil {
		w.t.Fatal(err)
	}
	place.Segment.Appended()
	place.Segment.Release()
	w.next++
}

func (w *writer) flush() {
	w.t.Helper()
	for _, s := range w.l.Dirty() {
		if err := s.Datasync(); err != nil {
			w.t.Fatal(err)
		}
		s.Release()
	}
	w.sync = w.next - 1
}

// reopen reads the log back from position from.
func reopen(t *testing.T, fsys vfs.FS, epoch, from uint64) (*writer, []uint64, error) {
	t.Helper()
	p, owned := pool(t, fsys, 16)
	l := NewLog(p, owner, epoch, func() uint64 { return 1 })
	var seqs []uint64
	cut, err := l.Recover(owned, 0, 0, from, 0, func(e Entry) error {
		seqs = append(seqs, e.Record.Seq)
		return nil
	})
	return &writer{t: t, p: p, l: l, next: cut.Last + 1, sync: cut.Synced}, seqs, err
}

func wantSeqs(t *testing.T, got []uint64, first, last uint64) {
	t.Helper()
	if uint64(len(got)) != last-first+1 {
		t.Fatalf("records %v, want %d to %d", got, first, last)
	}
	for i, s := range got {
		if s != first+uint64(i) {
			t.Fatalf("records %v, want %d to %d", got, first, last)
		}
	}
}

// What was flushed comes back after a power loss, over segments, logs and starts; what
// was trimmed does not, though its bytes still stand in recycled segments.
func TestRecoverOverStarts(t *testing.T) {
	for _, keep := range []float64{0, 1} {
		fsys := vfs.NewMem()
		rng := rand.New(rand.NewPCG(1, 1))
		trimmed, last := uint64(0), uint64(0)
		for epoch := uint64(1); epoch <= 8; epoch++ {
			w, seqs, err := reopen(t, fsys, epoch, trimmed)
			if err != nil {
				t.Fatal(err)
			}
			wantSeqs(t, seqs, trimmed+1, w.next-1)
			if w.next-1 < last {
				t.Fatalf("only %d of %d flushed records came back", w.next-1, last)
			}
			for range 13 {
				w.append()
			}
			w.flush()
			last = w.next - 1
			trimmed = last - 5
			w.l.Trim(trimmed)
			for range 4 {
				w.append() // never flushed
			}
			fsys.Crash(rng, keep)
		}
	}
}

// A bad record that a later one says was synced is corruption; the last one is a torn
// tail.
func TestRecoverTellsCorruptionFromTornTail(t *testing.T) {
	fsys := vfs.NewMem()
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.append()
		w.flush()
	}
	w.append()
	w.flush()
	name := w.l.segs[0].Name()
	fsys.Kill()
	torn := fsys.Clone()
	torn.Corrupt(name, 6*wal.PageSize, func(b []byte) { b[0] ^= 1 }) // the last record's payload
	_, seqs, err := reopen(t, torn, 2, 0)
	if err != nil {
		t.Fatalf("torn tail: %v", err)
	}
	wantSeqs(t, seqs, 1, 2)
	fsys.Corrupt(name, 2*wal.PageSize, func(b []byte) { b[0] ^= 1 }) // the first record's
	if _, _, err = reopen(t, fsys, 2, 0); !errors.Is(err, wal.ErrCorrupt) {
		t.Fatalf("damage below the synced mark: %v", err)
	}
}

// A segment goes back to the pool only when log and readers have let it go.
func TestSegmentIsRecycledAfterItsReaders(t *testing.T) {
	fsys := vfs.NewMem()
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.append()
	seg := w.l.segs[0]
	seg.Acquire()
	w.l.Trim(1)
	if st := w.p.Stats(); st.Free != 0 {
		t.Fatal("recycled while it is read")
	}
	freed := w.p.Freed()
	seg.Release()
	select {
	case <-freed:
	default:
		t.Fatal("nobody was told")
	}
	if st := w.p.Stats(); st.Free != 1 {
		t.Fatalf("%+v", st)
	}
	if _, ok := w.l.Place(2, 1); ok {
		t.Fatal("the log still appends to a segment that it let go")
	}
}

// A segment whose I/O failed is never used again (I8).
func TestBadSegmentIsRemoved(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.append()
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync {
			return errors.New("broken")
		}
		return nil
	})
	seg := w.l.Dirty()[0]
	if seg.Datasync() == nil {
		t.Fatal("sync of a broken disk")
	}
	seg.Release()
	fsys.SetHook(nil)
	name := seg.Name()
	w.l.Drop()
	if st := w.p.Stats(); st.Free != 0 || st.Bytes != 0 {
		t.Fatalf("%+v", st)
	}
	if _, err := mem.Stat(name); !errors.Is(err, vfs.ErrNotExist) {
		t.Fatal(err)
	}
}

// The pool keeps to its budget and says so.
func TestPoolBudget(t *testing.T) {
	p, _ := pool(t, vfs.NewMem(), 2)
	for range 2 {
		if _, err := p.Get(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Get(); !errors.Is(err, ErrNoSegment) {
		t.Fatal(err)
	}
}

// TestNameOfASegmentIsDurableAfterAStart: a process may die between naming a segment and
// syncing the name. The next one finds the file, and what it flushes into it must survive a
// power loss (I1).
func TestNameOfASegmentIsDurableAfterAStart(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	p, _ := pool(t, fsys, 4)
	dead := false
	fsys.SetHook(func(op vfs.Op) error {
		if dead = dead || op.Kind == vfs.OpSyncDir; dead {
			return vfs.ErrDead
		}
		return nil
	})
	if _, err := p.Get(); !errors.Is(err, vfs.ErrDead) {
		t.Fatalf("%v, want the death", err)
	}
	fsys.SetHook(nil)
	mem.Kill()
	p, owned := pool(t, fsys, 4)
	if len(owned) != 0 || p.Stats().Free != 1 {
		t.Fatalf("%d segments owned, %d free; want the one that was made, free", len(owned), p.Stats().Free)
	}
	w := &writer{t: t, p: p, l: NewLog(p, owner, 2, func() uint64 { return 0 }), next: 1}
	w.append()
	w.flush()
	mem.Crash(nil, 0)
	if _, owned := pool(t, fsys, 4); len(owned) != 1 {
		t.Fatalf("%d segments survive the power loss, want 1", len(owned))
	}
}

// The first header of a log is durable once what it builds on is. So a log without the
// ones before it, which go on to where it begins, has lost them (I1).
func TestLogsBeforeAreMissed(t *testing.T) {
	fsys := vfs.NewMem()
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.append()
	}
	lost := w.l.segs[0].Name()
	fsys.Kill()
	if w, _, err = reopen(t, fsys, 2, 0); err != nil {
		t.Fatal(err)
	}
	w.append()
	fsys.Kill()
	folded := fsys.Clone()
	for _, fsys := range []*vfs.Mem{fsys, folded} {
		if err := fsys.Remove(lost); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := reopen(t, fsys, 3, 2); !errors.Is(err, wal.ErrCorrupt) {
		t.Errorf("record 3 is missing: %v", err)
	}
	_, seqs, err := reopen(t, folded, 3, 3)
	if err != nil {
		t.Fatalf("nothing is missing behind record 3: %v", err)
	}
	wantSeqs(t, seqs, 4, 4)
}

// A log says where the one before ended, even if nothing of that was left to read: all was
// folded. So a catalog that is older than the log shows.
func TestLogSaysWhereTheFoldedOneEnded(t *testing.T) {
	fsys := vfs.NewMem()
	w, _, err := reopen(t, fsys, 1, 5)
	if err != nil {
		t.Fatal(err)
	}
	w.append()
	if end := w.l.segs[0].header.PrevEnd; end != 5 {
		t.Errorf("the log before ended at %d, want 5", end)
	}
	fsys.Kill()
	if _, _, err := reopen(t, fsys, 2, 4); !errors.Is(err, wal.ErrCorrupt) {
		t.Errorf("a position before the log's beginning: %v", err)
	}
	_, seqs, err := reopen(t, fsys, 2, 5)
	if err != nil {
		t.Fatal(err)
	}
	wantSeqs(t, seqs, 6, 6)
}

// A journal that is known to have reached a record must reach it, and what is left of one
// that does not is kept.
func TestRecoverReach(t *testing.T) {
	fsys := vfs.NewMem()
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.append()
	}
	fsys.Kill()
	for reach, want := range map[uint64]error{0: nil, 2: nil, 3: wal.ErrCorrupt} {
		p, owned := pool(t, fsys.Clone(), 16)
		l := NewLog(p, owner, 2, func() uint64 { return 1 })
		_, err := l.Recover(owned, 0, 0, 0, reach, func(Entry) error { return nil })
		if !errors.Is(err, want) {
			t.Errorf("reach %d: %v", reach, err)
		}
		if p.Stats().Free != 0 {
			t.Errorf("reach %d: a segment that may be evidence is free", reach)
		}
	}
}

// A segment may be let go of before it has held a record; then the next one of its log has
// the same first sequence, and counts.
func TestEmptySegmentBesideItsSuccessor(t *testing.T) {
	fsys := vfs.NewMem()
	p, _ := pool(t, fsys, 2)
	l := NewLog(p, owner, 1, func() uint64 { return 1 })
	var segs [2]*Segment
	for i := range segs {
		seg, err := p.Get()
		if err != nil {
			t.Fatal(err)
		}
		segs[i] = seg
	}
	for _, seg := range []*Segment{segs[1], segs[0]} { // the later one comes first by name
		l.Trim(0)
		n := l.Prepare(seg, 1)
		if err := n.Write(); err != nil {
			t.Fatal(err)
		}
		l.Install(n)
	}
	w := &writer{t: t, p: p, l: l, next: 1}
	w.append()
	w.flush()
	fsys.Kill()
	_, seqs, err := reopen(t, fsys, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	wantSeqs(t, seqs, 1, 1)
}

// A segment that was torn while it was being reused may show a record of an earlier owner,
// or of a log that a recovery has cut since: it is no part of that one's journal.
func TestTornReuseBringsNothingBack(t *testing.T) {
	for _, at := range []int{32, 48, 56} { // owner, epoch, log
		fsys := vfs.NewMem()
		w, _, err := reopen(t, fsys, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.append()
		name := w.l.segs[0].Name()
		fsys.Kill()
		fsys.Corrupt(name, 0, func(b []byte) { b[at] ^= 1 })
		_, owned, bad, err := OpenPool(fsys, "/j", PoolOptions{Store: [16]byte{1}, SegmentBytes: 8 * wal.PageSize, BudgetBytes: 1 << 30})
		if err != nil || len(bad) != 1 || bad[0].Segment == nil || len(owned) != 0 {
			t.Errorf("byte %d: %v, %+v bad, %d owned", at, err, bad, len(owned))
		}
	}
}

// The first record of a segment whose header was torn says nothing of the logs before: of
// its own log's segments the ones before it may be torn as well.
func TestTornHeadersPromiseNothing(t *testing.T) {
	fsys := vfs.NewMem()
	w, _, err := reopen(t, fsys, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 7 { // three segments
		w.append()
	}
	names := []string{w.l.segs[1].Name(), w.l.segs[2].Name()}
	fsys.Kill()
	for _, name := range names { // as a loss of power may leave what no flush covers
		fsys.Corrupt(name, 0, func(b []byte) { clear(b[512:wal.PageSize]) })
	}
	fsys.Corrupt(names[0], wal.PageSize, func(b []byte) { clear(b[:wal.PageSize]) })
	for _, from := range []uint64{0, 3} { // with the first segment, and when it is folded
		p, owned, bad, err := OpenPool(fsys, "/j", PoolOptions{Store: [16]byte{1}, SegmentBytes: 8 * wal.PageSize, BudgetBytes: 1 << 30})
		if err != nil || len(bad) != 2 || len(owned) != 2 {
			t.Fatalf("%v, %d bad, %d owned", err, len(bad), len(owned))
		}
		if from == 3 {
			owned = owned[1:]
		}
		l := NewLog(p, owner, 2, func() uint64 { return 1 })
		cut, err := l.Recover(owned, 0, 0, from, 0, func(Entry) error { return nil })
		if err != nil || cut.Last != 3 {
			t.Errorf("from %d: ends at %d, %v", from, cut.Last, err)
		}
	}
}
