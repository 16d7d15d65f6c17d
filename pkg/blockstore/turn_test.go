package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
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
		if s.collectNow(context.Background(), false) {
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
		if s.collectNow(context.Background(), full) {
			t.Error("collected beside a check")
		}
		release()
		err := <-ended
		if full != errors.Is(err, ErrNoSpace) || full != (err != nil) {
			t.Errorf("full %v: %v", full, err)
		}
		if full && !strings.Contains(err.Error(), "not finished: the disk below "+testDir+" is full") {
			t.Errorf("it says %q", err)
		}
		if !s.collectNow(context.Background(), full) {
			t.Error("not collected after the check")
		}
		ok(t, s.Close())
	}
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

// A hole waits for a fold as long as folds succeed. When they all fail it is refused: reads
// wait behind it.
func TestHoleWaitsForNoFoldThatFails(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	over := func() <-chan time.Time {
		c := make(chan time.Time, 1)
		c <- time.Time{}
		return c
	}
	room := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := v.awaitRoom(room, time.Time{}, over())
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("did not wait for a fold: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(room)
	ok(t, <-ended)
	for _, fails := range []bool{true, false} {
		writeAt(t, v, noise(1, BlockSize), 0)
		fsys.SetHook(func(op vfs.Op) error {
			if fails && op.Kind == vfs.OpCreate && strings.Contains(op.Name, "/"+dirChunks+"/") {
				return errors.New("no file can be made")
			}
			return nil
		})
		if did, err := s.foldOnce(v); did == fails {
			t.Fatal(did, err)
		}
		if s.sched.failing.Load() != fails {
			t.Errorf("folds fail: %v, want %v", !fails, fails)
		}
		if fails {
			within(t, 10*time.Second, "a hole beside folds that fail", func() {
				if _, err := v.awaitRoom(make(chan struct{}), time.Time{}, over()); !errors.Is(err, ErrNoSpace) {
					t.Errorf("hole: %v", err)
				}
			})
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
	v.append(op)
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
