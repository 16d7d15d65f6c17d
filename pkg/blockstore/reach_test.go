package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// reachStore has two volumes, each with a journal of some segments, all flushed.
type reachStore struct {
	*testing.T
	mem    *vfs.Mem
	s      *Store
	v, w   *Volume
	images map[string][]byte // by ID
	next   int64             // block
}

func newReachStore(t *testing.T) *reachStore {
	x := &reachStore{T: t, mem: vfs.NewMem(), images: map[string][]byte{}}
	x.s = openStore(t, x.mem, tightOptions())
	x.v, x.w = newVolume(t, x.s, "v", 1<<20), newVolume(t, x.s, "w", 1<<20)
	x.images[x.v.ID()], x.images[x.w.ID()] = make([]byte, 1<<20), make([]byte, 1<<20)
	return x
}

// write writes n blocks to a volume, which differ from all others.
func (x *reachStore) write(v *Volume, n int) {
	x.Helper()
	for range n {
		x.next++
		p := noise(uint64(x.next), BlockSize)
		writeAt(x, v, p, x.next*BlockSize)
		copy(x.images[v.ID()][x.next*BlockSize:], p)
	}
}

// flushed writes n blocks and flushes them.
func (x *reachStore) flushed(v *Volume, n int) {
	x.Helper()
	x.write(v, n)
	ok(x, v.Flush())
}

// again is the death of the process and the next start.
func (x *reachStore) again() {
	x.Helper()
	x.die()
	x.s = openStore(x, x.mem, tightOptions())
	x.v, x.w = attach(x, x.s, x.v.ID()), attach(x, x.s, x.w.ID())
}

func (x *reachStore) die() {
	x.s.abandon()
	x.mem.Kill()
}

// segments are the files of v's journal, in log order.
func (x *reachStore) segments() []string { return segmentsOf(x, x.mem, x.v.ID()) }

// perSegment is how many blocks fill a segment of tightOptions.
const perSegment = 11

// I1, I5: after a kill nothing said that a segment had existed, and what was flushed to
// it was silently missing. Now its volume fails closed; no other does, nothing of what is
// left of the journal is used again, and with the file back all is right.
func TestLostSegmentAfterKill(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(x *reachStore) (lost string)
	}{
		{"the only one", func(x *reachStore) string {
			x.flushed(x.v, 1)
			return x.segments()[0]
		}},
		{"the first", func(x *reachStore) string {
			x.flushed(x.v, 2*perSegment+1)
			return x.segments()[0]
		}},
		{"one in the middle", func(x *reachStore) string {
			x.flushed(x.v, 2*perSegment+1)
			return x.segments()[1]
		}},
		{"the last", func(x *reachStore) string {
			x.flushed(x.v, 2*perSegment)
			x.flushed(x.v, 1)
			return x.segments()[2]
		}},
		{"the last, partly folded", func(x *reachStore) string {
			x.flushed(x.v, 3)
			foldLeaving(x, 2)
			return x.segments()[0]
		}},
		{"one taken anew after a fold", func(x *reachStore) string {
			x.flushed(x.v, 3)
			foldAll(x, x.s)
			x.flushed(x.v, 1)
			names := x.segments()
			return names[len(names)-1]
		}},
		{"that of an earlier process", func(x *reachStore) string {
			x.flushed(x.v, 3)
			x.again()
			x.flushed(x.v, 1)
			return x.segments()[0]
		}},
		{"that of a later process", func(x *reachStore) string {
			x.flushed(x.v, 3)
			x.again()
			x.flushed(x.v, 1)
			return x.segments()[1]
		}},
		{"one that was only recovered when a later process began its own", func(x *reachStore) string {
			x.write(x.v, 3)
			x.again()
			x.write(x.v, 1)
			return x.segments()[0]
		}},
		{"one of an earlier process, behind what a fold has passed", func(x *reachStore) string {
			x.write(x.v, 1)
			must(x.s.CreateSnapshot(context.Background(), x.v.ID(), "s", nil))(x)
			x.flushed(x.v, 1) // the catalog knows the segment already
			x.again()
			if did, err := x.s.foldOnce(x.v); err != nil || !did {
				x.Fatalf("fold: %v, %v", did, err)
			}
			return x.segments()[0]
		}},
		{"one that a snapshot has synced", func(x *reachStore) string {
			x.write(x.v, 3)
			must(x.s.CreateSnapshot(context.Background(), x.v.ID(), "s", nil))(x)
			return x.segments()[0]
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newReachStore(t)
			x.flushed(x.w, perSegment+1)
			lost := c.do(x)
			x.die()
			kept := x.mem.Clone()
			ok(t, x.mem.Remove(lost))
			s := openStore(t, x.mem, tightOptions())
			x.wantClosed(s)
			other := attach(t, s, x.w.ID())
			wantImage(t, readAll(t, other), x.images[x.w.ID()], "the other volume")
			for off := int64(0); off < 6*perSegment*BlockSize; off += BlockSize { // would take any segment that is free
				writeAt(t, other, noise(9, BlockSize), off)
				foldAll(t, s)
			}
			ok(t, s.Close())
			data := must(vfs.ReadFile(kept, lost))(t)
			replace(x.mem, path.Join(testDir, dirJournal, "00000000000000ff.seg"), data) // its name may be another's now
			s = openStore(t, x.mem, tightOptions())
			wantImage(t, readAll(t, attach(t, s, x.v.ID())), x.images[x.v.ID()], "with its segment back")
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// A journal that is gone is told of once, and first of all by the cut that it owes.
func TestLostJournalIsToldOnce(t *testing.T) {
	x := newReachStore(t)
	for _, v := range []*Volume{x.v, x.w} {
		x.flushed(v, 1)
		must(x.s.CreateSnapshot(context.Background(), v.ID(), v.ID()[2:], nil))(t)
		x.flushed(v, 1)
	}
	names := append(x.segments(), segmentsOf(t, x.mem, x.w.ID())...)
	x.die()
	for _, name := range names {
		ok(t, x.mem.Remove(name))
	}
	var log bytes.Buffer
	o := tightOptions()
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s := openStore(t, x.mem, o)
	for _, v := range []*Volume{x.v, x.w} {
		if n := strings.Count(log.String(), "volume_id="+v.ID()); n != 1 {
			t.Errorf("a lost journal is told of %d times:\n%s", n, log.String())
		}
		if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "snapshot cut") {
			t.Errorf("open: %v", err)
		}
	}
	s.abandon()
}

// foldLeaving freezes what v has, writes and flushes n more blocks, and folds what was frozen:
// the n stay in a segment that the fold would let go of otherwise.
func foldLeaving(x *reachStore, n int) {
	x.Helper()
	x.v.mu.Lock()
	x.v.freeze()
	x.v.mu.Unlock()
	x.flushed(x.v, n)
	did, err := x.s.foldOnce(x.v)
	if err != nil || !did {
		x.Fatalf("fold: %v, %v", did, err)
	}
}

// wantClosed verifies that v has failed closed, in words that help, and check tells.
func (x *reachStore) wantClosed(s *Store) {
	x.Helper()
	_, err := s.OpenVolume(context.Background(), x.v.ID())
	if !errors.Is(err, ErrFailed) || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), ".seg") {
		x.Fatalf("volume without its segment: %v", err)
	}
	found := problems(x, s)
	if len(found) == 0 || found[0].Kind != "journal" || found[0].Volume != x.v.ID() {
		x.Fatalf("check finds %v", found)
	}
}

// A segment that is as it was earlier ends the journal too early: that shows for all that
// was noted, which is everything a second later.
func TestOlderSegmentAfterKill(t *testing.T) {
	x := newReachStore(t)
	x.flushed(x.v, 2)
	name := x.segments()[0]
	before := must(vfs.ReadFile(x.mem, name))(t)
	x.flushed(x.v, 2)
	ok(t, x.s.noteStep())
	x.write(x.v, 1) // acknowledged only: may count as torn
	x.die()
	replace(x.mem, name, before)
	s := openStore(t, x.mem, tightOptions())
	x.wantClosed(s)
	ok(t, s.Close())
}

// Segments that went back to the pool are missed by nobody, whatever became of them.
func TestReleasedSegmentIsNotMissed(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(x *reachStore, names []string)
	}{
		{"left alone", func(*reachStore, []string) {}},
		{"taken by another volume", func(x *reachStore, _ []string) { x.flushed(x.w, 2*perSegment+1) }},
		{"gone", func(x *reachStore, names []string) {
			for _, name := range names {
				ok(x, x.mem.Remove(name))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newReachStore(t)
			x.flushed(x.v, 2*perSegment+1)
			names := x.segments()
			foldAll(t, x.s)
			c.do(x, names)
			x.again()
			wantImage(t, readAll(t, x.v), x.images[x.v.ID()], "volume")
			wantImage(t, readAll(t, x.w), x.images[x.w.ID()], "other volume")
			wantClean(t, x.s)
			ok(t, x.s.Close())
		})
	}
}

// Two volumes' segments may change names: what is in them says whose they are.
func TestSwappedSegmentsAfterKill(t *testing.T) {
	x := newReachStore(t)
	x.flushed(x.v, perSegment+1)
	x.flushed(x.w, 1)
	names := append(x.segments(), segmentsOf(t, x.mem, x.w.ID())...)
	x.die()
	for i, a := range names {
		for _, b := range names[i+1:] {
			fsys := x.mem.Clone()
			one, two := must(vfs.ReadFile(fsys, a))(t), must(vfs.ReadFile(fsys, b))(t)
			replace(fsys, a, two)
			replace(fsys, b, one)
			s := openStore(t, fsys, tightOptions())
			wantImage(t, readAll(t, attach(t, s, x.v.ID())), x.images[x.v.ID()], "volume")
			wantImage(t, readAll(t, attach(t, s, x.w.ID())), x.images[x.w.ID()], "other volume")
			ok(t, s.Close())
		}
	}
}

// A deleted volume owes its cuts their roots and nothing else: what is lost behind the
// last of them is not missed.
func TestDeletedVolumeOwesItsCutsAlone(t *testing.T) {
	x := newReachStore(t)
	x.flushed(x.v, perSegment-1)
	image := bytes.Clone(x.images[x.v.ID()])
	snap := must(x.s.CreateSnapshot(context.Background(), x.v.ID(), "s", nil))(t)
	x.flushed(x.v, perSegment)
	names := x.segments()
	ok(t, x.v.Close())
	ok(t, x.s.DeleteVolume(x.v.ID()))
	x.die()
	ok(t, x.mem.Remove(names[len(names)-1]))
	s := openStore(t, x.mem, tightOptions())
	foldAll(t, s)
	clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: snap.ID}))(t)
	wantImage(t, readAll(t, attach(t, s, clone.ID)), image, "snapshot")
	wantClean(t, s)
	ok(t, s.Close())
}

// A deleted volume owes its cuts all that is in them: one that the journal does not reach
// any more is not made of what is left.
func TestDeletedVolumeOwesItsCutsAll(t *testing.T) {
	x := newReachStore(t)
	x.flushed(x.v, 2*perSegment-1)
	snap := must(x.s.CreateSnapshot(context.Background(), x.v.ID(), "s", nil))(t)
	names := x.segments()
	ok(t, x.v.Close())
	ok(t, x.s.DeleteVolume(x.v.ID()))
	x.die()
	if len(names) != 2 {
		t.Fatal(names)
	}
	ok(t, x.mem.Remove(names[1]))
	s := openStore(t, x.mem, tightOptions())
	foldAll(t, s)
	if _, err := s.WaitSnapshot(context.Background(), snap.ID); !errors.Is(err, ErrFailed) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("snapshot that has lost its end: %v", err)
	}
	s.abandon()
}

// A segment whose header and first records are spoiled, so that nothing says whose it is
// but the records behind them, is not used again: it is all that is left of what was
// flushed, for whoever can mend it.
func TestBadSegmentIsEvidence(t *testing.T) {
	x := newReachStore(t)
	x.flushed(x.v, 5)
	x.flushed(x.v, 1) // its record says that those before it are durable
	name := x.segments()[0]
	x.die()
	x.mem.Corrupt(name, 0, func(p []byte) { clear(p[:4*wal.PageSize]) })
	before := must(vfs.ReadFile(x.mem, name))(t)
	s := openStore(t, x.mem, tightOptions())
	if _, err := s.OpenVolume(context.Background(), x.v.ID()); !errors.Is(err, ErrFailed) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("volume that has lost flushed records: %v", err)
	}
	w := attach(t, s, x.w.ID())
	for range 3 {
		fillPool(t, w, x.images[w.ID()], 0)
		foldAll(t, s)
	}
	if !bytes.Equal(must(vfs.ReadFile(x.mem, name))(t), before) {
		t.Error("the segment was written over")
	}
	s.abandon()
}

// The guard costs a flush nothing but where it is the first in its segment, or behind a
// fold that has passed all that was known.
func TestCommitsOfFlushes(t *testing.T) {
	x := newReachStore(t)
	commits := func(what string, want uint64, do func()) {
		t.Helper()
		before := x.s.cat.Durable()
		do()
		if got := x.s.cat.Durable() - before; got != want {
			t.Errorf("%s: %d commits, want %d", what, got, want)
		}
	}
	const segments = 3
	commits("flushes of single blocks", segments, func() {
		for range segments*perSegment - 4 {
			x.flushed(x.v, 1)
		}
	})
	commits("a fold beside flushes", 1, func() { foldLeaving(x, 2) })
	commits("flushes in what is left of the segment", 0, func() { x.flushed(x.v, 1) })
	commits("a fold of everything, and its three layers", 1, func() { foldAll(t, x.s) })
	commits("the first flush after it", 1, func() { x.flushed(x.v, 1); x.flushed(x.v, 1) })
	commits("what is left to note", 1, func() { ok(t, x.s.noteStep()) })
	commits("nothing to note", 0, func() { ok(t, x.s.noteStep()) })
	ok(t, x.s.Close())
}

// I1: a flush that ends while a fold's commit is on its way to the disk counted with the
// position before it, and was not noted.
func TestFlushWhileFoldCommits(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := openStore(t, fsys, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	ok(t, v.Flush())
	committing, goOn := make(chan struct{}), make(chan struct{})
	held := false
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/catalog/") && !held {
			held = true
			close(committing)
			<-goOn
		}
		return nil
	})
	folded, flushed := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.foldOnce(v); folded <- err }()
	<-committing
	writeAt(t, v, noise(2, BlockSize), BlockSize)
	name := segmentsOf(t, mem, v.ID())[0]
	synced := make(chan struct{})
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync && op.Name == name {
			close(synced)
		}
		return nil
	})
	go func() { flushed <- v.Flush() }()
	<-synced
	close(goOn)
	ok(t, <-folded)
	ok(t, <-flushed)
	s.abandon()
	mem.Kill()
	ok(t, mem.Remove(name))
	s = openStore(t, mem, tightOptions())
	if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("volume without its segment: %v", err)
	}
	ok(t, s.Close())
}

// I1: a flush of records that a fold is about to pass was answered without a note, though
// the fold's commit might never become durable: with the segment gone, nothing was missed.
func TestFlushOfWhatAFoldIsAboutToPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		s := openStore(t, fsys, tightOptions())
		v := newVolume(t, s, "v", 1<<20)
		writeAt(t, v, noise(1, BlockSize), 0)
		name := segmentsOf(t, mem, v.ID())[0]
		goOn := make(chan struct{})
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpWrite && strings.Contains(op.Name, "/catalog/") {
				<-goOn
			}
			return nil
		})
		folded, flushed := make(chan error, 1), make(chan error, 1)
		go func() { _, err := s.foldOnce(v); folded <- err }()
		synctest.Wait()
		if v.mu.passed != v.mu.appended || v.mu.pos.Seq != 0 {
			t.Fatalf("position %d, about to pass %d of %d", v.mu.pos.Seq, v.mu.passed, v.mu.appended)
		}
		go func() { flushed <- v.Flush() }()
		synctest.Wait()
		select {
		case err := <-flushed:
			t.Errorf("a flush was answered (%v), and nothing durable says that the journal was ever so long", err)
			flushed <- err
		default:
		}
		without := func() *Store {
			disk := mem.Clone()
			disk.Kill()
			ok(t, disk.Remove(name))
			return openStore(t, disk, tightOptions())
		}
		image := make([]byte, 1<<20)
		died := without()
		wantImage(t, readAll(t, attach(t, died, v.ID())), image, "before the commit: not flushed, so it may be gone")
		ok(t, died.Close())
		close(goOn)
		ok(t, <-folded)
		ok(t, <-flushed)
		copy(image, noise(1, BlockSize))
		died = without()
		wantImage(t, readAll(t, attach(t, died, v.ID())), image, "after the commit")
		ok(t, died.Close())
		ok(t, s.Close())
	})
}

// failCatalog lets operations on the catalog's files meet a full disk.
func failCatalog(fsys *vfs.Faulty, kinds ...vfs.OpKind) {
	fsys.SetHook(func(op vfs.Op) error {
		if slices.Contains(kinds, op.Kind) && strings.Contains(op.Name, "/catalog/") {
			return fmt.Errorf("no room: %w", vfs.ErrNoSpace)
		}
		return nil
	})
}

// fillCatalog fills the catalog until it has no room for one byte, and cannot get any.
func fillCatalog(t *testing.T, fsys *vfs.Faulty, s *Store) {
	t.Helper()
	failCatalog(fsys, vfs.OpCreate, vfs.OpAllocate)
	n := 0
	for step := 32 << 10; step > 0; {
		_, err := s.cat.Commit(catalog.Op{Key: "filling", Value: make([]byte, n+step), Expect: catalog.ExpectAny})
		switch {
		case err == nil:
			n += step
		case errors.Is(err, ErrNoSpace):
			step /= 2
		default:
			t.Fatal(err)
		}
	}
}

// What a catalog without room could not note is noted when there is some, without another
// flush.
func TestNoteIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := vfs.NewFaulty(vfs.NewMem())
		o := tightOptions()
		o.CatalogBytes = 64 << 10
		s := openStore(t, fsys, o)
		v := newVolume(t, s, "v", 1<<20)
		fillCatalog(t, fsys, s)
		stop := runStore(t, s)
		writeAt(t, v, noise(1, BlockSize), 0)
		ok(t, v.Flush())
		noted := func() uint64 {
			time.Sleep(3 * noteDelay)
			var rec volumeRecord
			must(get(s.cat, keyVolume+v.ID(), &rec))(t)
			return rec.Durable
		}
		if n := noted(); n != 0 {
			t.Fatalf("noted up to %d: the catalog was to be full", n)
		}
		fsys.SetHook(nil)
		if n := noted(); n != v.mu.synced {
			t.Errorf("noted up to %d of %d", n, v.mu.synced)
		}
		stop()
		ok(t, s.Close())
	})
}

// I8, I9: a flush that cannot be noted fails closed; on a disk that has no space for the
// note it is answered, and noted when there is.
func TestFlushThatCannotBeNoted(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	o := tightOptions()
	o.CatalogBytes = 64 << 10
	s := openStore(t, fsys, o)
	v := newVolume(t, s, "v", 1<<20)
	fillCatalog(t, fsys, s)
	writeAt(t, v, noise(1, BlockSize), 0)
	ok(t, v.Flush())
	var rec volumeRecord
	must(get(s.cat, keyVolume+v.ID(), &rec))(t)
	if rec.Durable != 0 {
		t.Fatalf("noted up to %d: the catalog was to be full", rec.Durable)
	}
	fsys.SetHook(nil)
	ok(t, s.noteStep())
	must(get(s.cat, keyVolume+v.ID(), &rec))(t)
	if rec.Durable != v.mu.synced {
		t.Errorf("noted up to %d of %d", rec.Durable, v.mu.synced)
	}
	foldAll(t, s)
	failCatalog(fsys, vfs.OpWrite) // a catalog that fails at it has failed, whatever the error
	writeAt(t, v, noise(2, BlockSize), 0)
	for range 2 { // the second finds nothing new, and must not be answered either
		if err := v.Flush(); !errors.Is(err, ErrFailed) {
			t.Errorf("flush without a catalog: %v", err)
		}
	}
}
