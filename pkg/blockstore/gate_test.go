package blockstore

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
)

// A mark waits for what began before it, and for nothing else.
func TestGate(t *testing.T) {
	var g gate
	if !g.drained(g.mark()) {
		t.Error("nothing has begun")
	}
	first := g.begin()
	second := g.begin()
	mark := g.mark()
	third := g.begin()
	if g.drained(mark) {
		t.Error("two have begun before the mark")
	}
	first()
	if g.drained(mark) {
		t.Error("one has begun before the mark")
	}
	second()
	if !g.drained(mark) {
		t.Error("all that began before the mark have ended")
	}
	third()
}

// A collection that has condemned slots does not go on before a fold that began earlier
// has ended: the fold may refer to them (I6).
func TestCollectionWaitsForFolds(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, 8*BlockSize), 0)
	var c *collection
	asked := 0
	fsys.SetHook(func(op vfs.Op) error {
		if !strings.Contains(op.Name, "/"+dirChunks+"/") || op.Kind != vfs.OpWrite && op.Kind != vfs.OpDatasync {
			return nil
		}
		if c == nil {
			c = must(s.newCollection(0.9))(t)
			for c.phase != phaseWait {
				if _, _, err := s.collectStep(c); err != nil {
					t.Error(err)
					return nil
				}
			}
		}
		if _, wait, err := s.collectStep(c); err != nil || !wait {
			t.Errorf("a collection goes on beside a fold that began before it: %v", err)
		}
		asked++
		return nil
	})
	foldAll(t, s)
	fsys.SetHook(nil)
	if asked < 2 {
		t.Fatalf("the fold wrote and synced %d times", asked)
	}
	if _, wait, err := s.collectStep(c); err != nil || wait {
		t.Errorf("a collection waits for a fold that has ended: %v", err)
	}
	for more := true; more; {
		var err error
		more, _, err = s.collectStep(c)
		ok(t, err)
	}
	want := make([]byte, v.Size())
	copy(want, noise(1, 8*BlockSize))
	wantImage(t, readAll(t, v), want, "volume")
	ok(t, v.Close())
	ok(t, s.Close())
}

// A fold commits only onto the position that it began at, and a cut is recorded only at
// the position that it was marked at (I7).
func TestCommitsAreConditional(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	for i := range uint64(3) {
		writeAt(t, v, noise(i, BlockSize), 0)
	}
	foldAll(t, s)
	writeAt(t, v, noise(4, BlockSize), 0)
	var before, moved volumeRecord
	must(get(s.cat, keyVolume+v.ID(), &before))(t)
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/"+dirChunks+"/") && moved.Position == (position{}) {
			moved = before
			moved.Position.Seq--
			must(s.update(func(catalog.View) ([]catalog.Op, error) {
				return []catalog.Op{put(keyVolume+v.ID(), moved, catalog.ExpectAny)}, nil
			}))(t)
		}
		return nil
	})
	if did, err := s.foldOnce(v); did || !errors.Is(err, ErrCorrupt) {
		t.Errorf("fold onto another position: %v, %v", did, err)
	}
	fsys.SetHook(nil)
	var after volumeRecord
	must(get(s.cat, keyVolume+v.ID(), &after))(t)
	if moved.Position == (position{}) || after.Position != moved.Position || after.Root.slot() != before.Root.slot() {
		t.Errorf("the record is %+v, was %+v", after, moved)
	}
	at := after.Position
	at.Seq--
	err := s.commitCut(v.ID(), s.newID('c'), after.State, at, func(catalog.View, cutPoint) ([]catalog.Op, error) {
		t.Error("a cut behind the volume's position")
		return nil, nil
	})
	if !errors.Is(err, errMoved) {
		t.Errorf("a cut that was marked before the volume's position: %v", err)
	}
}

// What collection marks is every image that anything names: volumes', and those of cuts
// whose volume has gone on or is gone (I6).
func TestRootsOfCuts(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	first, second := noise(1, 4*BlockSize), noise(2, 4*BlockSize)
	writeAt(t, v, first, 0)
	snap := must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
	clone := must(s.CreateVolume(VolumeSpec{Name: "c", FromSnapshot: snap.ID}))(t) // before the cut has a root
	foldAll(t, s)
	writeAt(t, v, second, 0)
	foldAll(t, s)
	if roots := must(rootsOf(s.cat.View()))(t); len(roots) != 2 {
		t.Errorf("%d roots, want the volume's and the cut's", len(roots))
	}
	ok(t, s.DeleteSnapshot(snap.ID))
	ok(t, v.Close())
	ok(t, s.DeleteVolume(v.ID()))
	must(s.Collect(context.Background()))(t)
	want := make([]byte, 1<<20)
	copy(want, first)
	wantImage(t, readAll(t, attach(t, s, clone.ID)), want, "clone of a snapshot that is gone")
	wantClean(t, s)
	ok(t, s.Close())
}

// A collection that is asked for beside another waits for it and then looks anew: what
// became garbage after the first had marked is returned when the second answers.
func TestCollectWaitsForAnother(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	fill := func(seed uint64) {
		writeAt(t, v, noise(seed, 32*BlockSize), 0)
		foldAll(t, s)
		ok(t, s.sealOpen())
	}
	fill(1)
	fill(2)
	removing, goOn := make(chan struct{}), make(chan struct{})
	once := false
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRemove && strings.Contains(op.Name, "/"+dirChunks+"/") && !once {
			once = true
			close(removing)
			<-goOn
		}
		return nil
	})
	type answer struct {
		CollectResult
		err error
	}
	collect := func() chan answer {
		done := make(chan answer, 1)
		go func() {
			r, err := s.Collect(context.Background())
			done <- answer{r, err}
		}()
		return done
	}
	first := collect()
	<-removing
	fill(3)
	second := collect()
	early := false
	select {
	case r := <-second:
		early = true
		t.Errorf("the second collection answered beside the first: %+v", r)
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	within(t, 10*time.Second, "both collections", func() {
		if r := <-first; r.err != nil || r.FreedBytes <= 0 {
			t.Errorf("first: %+v", r)
		}
		if early {
			return
		}
		if r := <-second; r.err != nil || r.FreedBytes < 32*BlockSize {
			t.Errorf("second: %+v", r)
		}
	})
	fsys.SetHook(nil)
	ok(t, v.Close())
	ok(t, s.Close())
}
