package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// Who comes first has the turn first, whoever else has had it before.
func TestTurnIsFair(t *testing.T) {
	turn := newTurn()
	ok(t, turn.take(context.Background(), nil))
	if turn.try() {
		t.Fatal("two have the turn")
	}
	if err := turn.take(canceled(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("waited beyond its context: %v", err)
	}
	var order []int
	ended := make(chan struct{})
	for i := range 3 {
		go func() {
			turn.take(context.Background(), nil)
			order = append(order, i)
			turn.leave()
			ended <- struct{}{}
		}()
		time.Sleep(20 * time.Millisecond) // it waits by now
	}
	turn.leave()
	for range 3 {
		<-ended
	}
	if order[0] != 0 || order[1] != 1 || order[2] != 2 {
		t.Errorf("order %v", order)
	}
	if !turn.try() {
		t.Error("nobody has the turn, and it is not to be had")
	}
	turn.leave()
	turn.ask()
	holder := &yielding{Context: context.Background()}
	ok(t, turn.take(context.Background(), holder))
	ok(t, holder.Err())
	turn.ask()
	if err := holder.Err(); !errors.Is(err, errGiveWay) {
		t.Errorf("asked to give way: %v", err)
	}
	turn.leave()
	holder.asked.Store(false)
	turn.ask()
	ok(t, holder.Err())
}

// longCheck begins a check that lasts until release is called, or its context ends.
func longCheck(t *testing.T, s *Store) (ended <-chan error, release func()) {
	t.Helper()
	v := newVolume(t, s, "checked", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	ok(t, v.Close())
	foldAll(t, s)
	began, goOn, out := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	first := true
	go func() {
		out <- s.Check(context.Background(), CheckOptions{Progress: func(_, _ int64) {
			if first {
				first = false
				close(began)
				<-goOn
			}
		}}, func(Problem) {})
	}()
	<-began
	return out, func() { close(goOn) }
}

// A check keeps collections off, but nothing else: the collector does not wait for it, nor
// does the end of the background work, and it goes on looking at a full disk. What was to
// be collected meanwhile is, once the check has ended.
func TestCheckHoldsNobodyUp(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	ended, release := longCheck(t, s)
	if _, err := s.Collect(canceled()); !errors.Is(err, context.Canceled) {
		t.Errorf("collection beside a check: %v", err)
	}
	if err := s.Check(canceled(), CheckOptions{}, func(Problem) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("check beside a check: %v", err)
	}
	stop := runStore(t, s)
	s.addGarbage(1 << 40)
	s.sched.kickCollect()
	s.setFull(true, ErrNoSpace)
	waitFor(t, 10*time.Second, "somebody looks for space", func() bool { return !s.isFull() })
	within(t, 10*time.Second, "end of the background work", stop)
	release()
	<-ended
	stop = runStore(t, s)
	s.sched.kickCollect()
	waitFor(t, 10*time.Second, "the collection", func() bool { pending, _ := s.coll.known(); return pending == 0 })
	stop()
	ok(t, s.Close())
}

// The end of a check wakes the collector.
func TestEndOfACheckWakesTheCollector(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	ended, release := longCheck(t, s)
	s.addGarbage(1 << 40)
	within(t, 10*time.Second, "the collector", func() {
		if _, ran := s.collectNow(context.Background(), false); ran {
			t.Error("collected beside a check")
		}
	})
	<-s.sched.collect
	release()
	within(t, 10*time.Second, "the end of the check", func() { ok(t, <-ended) })
	select {
	case <-s.sched.collect:
	default:
		t.Error("nobody woke the collector")
	}
	ok(t, s.Close())
}

// On a full disk a check gives way to a collection, and says so.
func TestCheckGivesWayOnAFullDisk(t *testing.T) {
	for _, full := range []bool{false, true} {
		s := openStore(t, vfs.NewMem(), smallOptions())
		ended, release := longCheck(t, s)
		s.addGarbage(1 << 40)
		s.setFull(full, ErrNoSpace)
		stop := runStore(t, s)
		s.sched.kickCollect()
		asked := func() bool {
			s.coll.turn.mu.Lock()
			defer s.coll.turn.mu.Unlock()
			return s.coll.turn.mu.holder.asked.Load()
		}
		if full {
			waitFor(t, 10*time.Second, "the check is asked to give way", asked)
		}
		stop()
		if asked() != full {
			t.Errorf("full %v, asked %v", full, asked())
		}
		release()
		err := <-ended
		if full != errors.Is(err, ErrNoSpace) || full != (err != nil) {
			t.Errorf("full %v: %v", full, err)
		}
		if full && !strings.Contains(err.Error(), "not finished: the disk below "+testDir+" is full") {
			t.Errorf("it says %q", err)
		}
		if through, _ := s.collectNow(context.Background(), full); !through {
			t.Error("not collected after the check")
		}
		ok(t, s.Close())
	}
}

// A check does not give way to collections that get nowhere, as with a damaged map: it is
// what is needed then.
func TestCheckBesideCollectionsThatFail(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	ok(t, v.Close())
	foldAll(t, s)
	ok(t, s.Close())
	s = openStore(t, fsys, smallOptions())
	s.addGarbage(1)
	tries := make(chan struct{}, 100)
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpAllocate {
			return vfs.ErrNoSpace
		}
		if op.Kind == vfs.OpRead && strings.Contains(op.Name, "/"+dirChunks+"/") {
			tries <- struct{}{}
			return syscall.EIO
		}
		return nil
	})
	s.setFull(true, ErrNoSpace)
	for _, full := s.reserve.drop(), s.reserve.drop(); len(s.reserve.mu.files) > 0; full = s.reserve.drop() {
		ok(t, full) // so that there is something to allocate
	}
	stop := runStore(t, s)
	<-tries
	waitFor(t, 10*time.Second, "the first collection has failed", s.coll.turn.try)
	time.Sleep(20 * time.Millisecond) // the loop knows
	s.coll.turn.leave()
	checked := make(chan error, 1)
	go func() {
		checked <- s.Check(context.Background(), CheckOptions{Progress: func(done, _ int64) {
			if done == 0 {
				time.Sleep(probeEvery + probeEvery/2)
			}
		}}, func(Problem) {})
	}()
	if err := <-checked; err != nil || !s.isFull() {
		t.Errorf("check beside a collection that fails: %v, full %v", err, s.isFull())
	}
	stop()
	s.abandon()
}

// manyNodes makes a volume of more than n map nodes.
func manyNodes(t *testing.T, s *Store, n int64) *Volume {
	t.Helper()
	v := newVolume(t, s, "many nodes", 1<<30)
	p := bytes.Repeat(noise(1, BlockSize), 256) // no two of its blocks are one extent
	for off := range n * 5 {
		writeAt(t, v, p, off<<20)
		if off%3 == 2 {
			foldAll(t, s)
		}
	}
	return v
}

// A marking ends with its context, in the midst of an image, and so does a check.
func TestMarkingEndsInAnImage(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := manyNodes(t, s, breathEvery+10)
	ctx, cancel := context.WithCancel(context.Background())
	c, err := s.newCollection(manualMinLive)
	ok(t, err)
	c.breathe = func() error { cancel(); return ctx.Err() }
	for err == nil && c.plan == nil {
		_, _, err = s.collectStep(c)
	}
	if !errors.Is(err, context.Canceled) || c.nodes != breathEvery {
		t.Errorf("after %d nodes: %v", c.nodes, err)
	}
	c.abort()
	if _, err := s.Collect(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("collection: %v", err)
	}
	k := &checker{s: s, report: func(Problem) {}}
	seen := make(map[dedup.Slot]bool)
	if err := k.walk(ctx, image{root: v.mu.root, size: v.Size()}, seen, func(Problem) bool { return true }); !errors.Is(err, context.Canceled) || len(seen) > 1 {
		t.Errorf("check after %d nodes: %v", len(seen), err)
	}
	counter := s.tree.NewCounter()
	asked := 0
	counter.Breathe = func() error { asked++; return ctx.Err() }
	if _, err := counter.Mapped(v.mu.root); !errors.Is(err, context.Canceled) || asked != 1 {
		t.Errorf("count of mapped blocks: %v, asked %d times", err, asked)
	}
	calls := &countdown{Context: context.Background(), left: 5}
	if err := k.mapped(calls, s.cat.View()); !errors.Is(err, context.Canceled) || calls.after != 1 {
		t.Errorf("check of the counts: %v, went on for %d", err, calls.after-1)
	}
	ok(t, v.Close())
	ok(t, s.Close())
}

// A check ends with its context wherever it counts, and where it goes through images anew to
// say what damage hits.
func TestCheckEndsAnywhere(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	for i := range uint64(3) { // the cuts' maps are their own
		writeAt(t, v, noise(i, BlockSize), 0)
		must(s.CreateSnapshot(context.Background(), v.ID(), fmt.Sprint("s", i), nil))(t)
		foldAll(t, s)
	}
	writeAt(t, v, noise(9, BlockSize), 0)
	foldAll(t, s)
	k := &checker{s: s, report: func(p Problem) { t.Errorf("found %v", p) }}
	gone := image{root: dedup.Slot{Chunk: dedup.ChunkID{9}}, size: 1 << 20}
	for what, step := range map[string]func(ctx context.Context) error{
		"counts": func(ctx context.Context) error { return k.mapped(ctx, s.cat.View()) },
		"maps": func(ctx context.Context) error {
			return (&checker{s: s, report: func(Problem) {}}).maps(ctx, []image{gone})
		},
	} {
		n := 0
		for ctx := (&countdown{Context: context.Background()}); ; n++ {
			ctx.left, ctx.after = n, 0
			err := step(ctx)
			if ctx.after == 0 {
				ok(t, err)
				break
			}
			if !errors.Is(err, context.Canceled) || ctx.after > 1 {
				t.Errorf("%s, ended at question %d: %v, and went on for %d", what, n, err, ctx.after-1)
			}
		}
		if n < 2 {
			t.Errorf("%s: the context was asked %d times", what, n)
		}
	}
	ok(t, v.Close())
	ok(t, s.Close())
}

// A collection in its own time looks for space while the disk is full, and does not rest.
func TestCollectionOnADiskThatBecameFull(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	for i := range uint64(20) { // each is a step of a marking
		v := newVolume(t, s, fmt.Sprint("v", i), 1<<20)
		writeAt(t, v, noise(i, BlockSize), 0)
		ok(t, v.Close())
		foldAll(t, s)
	}
	now := time.Now()
	s.o.Now = func() time.Time { now = now.Add(time.Minute); return now } // every step owes a rest of its length
	s.setFull(true, ErrNoSpace)
	within(t, 10*time.Second, "a collection without a rest", func() {
		c, err := s.newCollection(autoMinLive)
		ok(t, err)
		ok(t, s.stepCollection(context.Background(), c, autoRest))
	})
	look := s.lookForSpace()
	ok(t, look())
	if s.isFull() {
		t.Error("space was not looked for")
	}
	probes := 0
	s.o.Now = func() time.Time { return now }
	for range 3 {
		s.setFull(true, ErrNoSpace)
		ok(t, look())
		if !s.isFull() {
			probes++
		}
	}
	if probes != 0 {
		t.Errorf("looked for space %d times within %v", probes, probeEvery)
	}
	ok(t, s.Close())
}

// A hole waits for a fold as long as folds succeed, or one is under way. When none does it is
// refused: reads wait behind it. On a full disk it waits for a holeWait in all, however
// often it is woken.
func TestHoleWaitsForNoFoldThatFails(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	never, closed := make(chan struct{}), make(chan struct{})
	close(closed)
	past := func() *holeWaiter { return &holeWaiter{good: s.sched.good.Load()} }
	refused := func(what string, want bool, hole *holeWaiter, room chan struct{}) {
		t.Helper()
		ended := make(chan error, 1)
		go func() {
			_, err := v.awaitRoom(room, time.Time{}, hole)
			ended <- err
		}()
		select {
		case err := <-ended:
			if want != errors.Is(err, ErrNoSpace) || !want && (err != nil || room == never) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(100 * time.Millisecond):
			if want {
				t.Errorf("%s: waits on", what)
			}
		}
	}
	refused("no fold has ended well", true, past(), never)
	refused("it waits not long yet", false, v.newHoleWaiter(), never)
	s.sched.folding.Add(1)
	refused("a fold is under way", false, past(), never)
	s.sched.folding.Add(-1)
	writeAt(t, v, noise(1, BlockSize), 0)
	hole := past()
	foldAll(t, s)
	refused("a fold has ended well", false, hole, never)
	refused("there is room", false, v.newHoleWaiter(), closed)
	s.setFull(true, ErrNoSpace)
	refused("on a full disk", true, past(), never)
	refused("on a full disk, not long yet", false, v.newHoleWaiter(), never)
	s.abandon()
}

// Folds that fail are none that end well.
func TestFoldsThatEndWell(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	for _, fails := range []bool{true, false} {
		fsys.SetHook(func(op vfs.Op) error {
			if s.sched.folding.Load() != 1 {
				t.Error("no fold is under way")
			}
			if fails && op.Kind == vfs.OpCreate && strings.Contains(op.Name, "/"+dirChunks+"/") {
				return errors.New("no file can be made")
			}
			return nil
		})
		good := s.sched.good.Load()
		if did, err := s.foldOnce(v); did == fails {
			t.Fatal(did, err)
		}
		fsys.SetHook(nil)
		if (s.sched.good.Load() == good) != fails || s.sched.folding.Load() != 0 {
			t.Errorf("fails %v: %d folds ended well, %d are under way", fails, s.sched.good.Load()-good, s.sched.folding.Load())
		}
	}
	ok(t, v.Close())
	ok(t, s.Close())
}

// A write whose volume fails, and is good again before the write looks, is refused. It
// waited for ever.
func TestWriteLostByAFailure(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	op, err := v.begin(wal.TypeWrite, 0, BlockSize, noise(1, BlockSize))
	ok(t, err)
	failure := errors.New("test")
	v.mu.Lock()
	v.fail(failure)
	v.mu.failed = nil
	v.mu.Unlock()
	within(t, 10*time.Second, "the write", func() {
		if err := v.acknowledge(op); !errors.Is(err, ErrFailed) || !errors.Is(err, failure) {
			t.Errorf("write: %v", err)
		}
	})
	v.mu.Lock()
	v.fail(failure)
	v.mu.failed = nil
	v.mu.Unlock()
	op.place.Segment.Acquire()
	op.place.Offset = -1 // the append fails too, later
	v.append(op)
	if v.mu.failed != nil {
		t.Errorf("an append of before the failure fails the volume anew: %v", v.mu.failed)
	}
	s.abandon()
}

// A volume that is closed while a segment is made for a write of it is let go of by that
// write, with its segment.
func TestClosedWhileASegmentIsMade(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, BlockSize), 0)
	foldAll(t, s)
	made := make(chan struct{})
	v.mu.Lock()
	v.mu.prep = made
	v.mu.Unlock()
	written := make(chan error, 1)
	go func() {
		_, err := v.WriteAt(noise(1, BlockSize), 0)
		written <- err
	}()
	time.Sleep(20 * time.Millisecond) // it waits for the segment by now
	ok(t, v.Close())
	if s.loaded(v.ID()) == nil {
		t.Fatal("it is forgotten, whoever works on it")
	}
	v.mu.Lock()
	v.mu.prep = nil
	close(made)
	v.mu.Unlock()
	if err := <-written; !errors.Is(err, ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if s.loaded(v.ID()) != nil || s.pool.Stats().InUse != 0 {
		t.Error("the volume is kept in memory for nothing")
	}
	ok(t, s.Close())
}
