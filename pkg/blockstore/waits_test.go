package blockstore

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// Slots are condemned before the folds are counted that have to end first: one that began
// in between would not be waited for and could still refer to them (I6).
func TestCondemnedBeforeFoldsAreCounted(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	old := noise(1, 8*BlockSize)
	for i := range uint64(2) {
		writeAt(t, v, noise(i+1, 8*BlockSize), 0)
		foldAll(t, s)
	}
	ok(t, s.sealOpen())
	stored := func() int64 { // blocks of old that a writer has to store anew
		w := s.chunks.NewWriter(v.codec, foldGroupShift)
		defer w.Close()
		before := s.chunks.Stats().Hits
		for i := range 8 {
			must(w.Block(old[i*BlockSize:][:BlockSize], dedup.Slot{}))(t)
		}
		return 8 - (s.chunks.Stats().Hits - before)
	}
	if n := stored(); n != 0 {
		t.Fatalf("%d blocks are not found before the collection", n)
	}
	c := must(s.newCollection(manualMinLive))(t)
	for len(c.roots) > 0 {
		stepOf(t, c)
	}
	s.gate.mu.Lock() // no fold can be counted
	stepped := make(chan error, 1)
	go func() {
		_, _, err := s.collectStep(c)
		stepped <- err
	}()
	for began := time.Now(); stored() == 0; time.Sleep(time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Error("folds are counted while nothing is condemned")
			break
		}
	}
	s.gate.mu.Unlock()
	ok(t, <-stepped)
	c.abort()
	ok(t, v.Close())
	ok(t, s.Close())
}

// stepOf does a step of a collection.
func stepOf(t *testing.T, c *collection) {
	t.Helper()
	_, _, err := c.s.collectStep(c)
	ok(t, err)
}

// A collection looks at the roots again behind every commit that began before: one that
// is under way may name what would go, and if nobody knows what became of it nothing goes
// (I6).
func TestCollectionWaitsForCommits(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeAt(t, v, noise(1, 8*BlockSize), 0)
	foldAll(t, s)
	c := must(s.newCollection(manualMinLive))(t)
	for c.phase != phaseWait {
		stepOf(t, c)
	}
	syncing, goOn := make(chan struct{}), make(chan struct{})
	once := false
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpDatasync || !strings.Contains(op.Name, "/"+dirCatalog+"/") || once {
			return nil
		}
		once = true
		close(syncing)
		<-goOn
		return syscall.EIO
	})
	created := make(chan error, 1)
	go func() {
		_, err := s.CreateVolume(VolumeSpec{Name: "w", SizeBytes: 1 << 20})
		created <- err
	}()
	<-syncing
	stepped := make(chan error, 1)
	go func() {
		_, _, err := s.collectStep(c)
		stepped <- err
	}()
	select {
	case err := <-stepped:
		t.Errorf("went on beside a commit: %v", err)
		stepped <- err
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-created; !errors.Is(err, ErrFailed) {
		t.Errorf("the commit: %v", err)
	}
	if err := <-stepped; !errors.Is(err, ErrFailed) {
		t.Errorf("behind a commit that failed: %v, want ErrFailed", err)
	}
	c.abort()
}

// foldUnseen folds what a volume has while sched.mu is held, and wakes who waits by then.
func foldUnseen(t *testing.T, s *Store, v *Volume) {
	t.Helper()
	v.foldMu.Lock()
	defer v.foldMu.Unlock()
	for {
		job, due := v.startFold()
		if !due {
			break
		}
		ok(t, s.fold([]*foldJob{job}))
		v.endFold(job.err)
		ok(t, job.err)
	}
	close(s.sched.done)
	s.sched.done = make(chan struct{})
}

// Who waits for a fold looks what there is only once he would be woken by the next: a fold
// that ends just then may be the last for long.
func TestNoFoldIsMissed(t *testing.T) {
	o := smallOptions()
	o.MaxLayers = 1
	for _, c := range []struct {
		what string
		wait func(ctx context.Context, s *Store, source, clone string, snap SnapshotInfo) error
		last bool // it looks under the volume's mutex, the last that it does before it waits
	}{
		{"a snapshot to be ready", func(ctx context.Context, s *Store, _, _ string, snap SnapshotInfo) error {
			_, err := s.WaitSnapshot(ctx, snap.ID)
			return err
		}, false},
		{"a clone to be opened", func(ctx context.Context, s *Store, _, clone string, _ SnapshotInfo) error {
			_, err := s.OpenVolume(ctx, clone)
			return err
		}, false},
		{"a volume with too many snapshots", func(ctx context.Context, s *Store, source, _ string, _ SnapshotInfo) error {
			_, err := s.CreateSnapshot(ctx, source, "another", nil)
			return err
		}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := openStore(t, vfs.NewMem(), o)
			source, snap, _ := unfolded(t, s, "v")
			clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: snap.ID}))(t)
			v := attach(t, s, source.ID)
			writeAt(t, v, noise(2, BlockSize), 0)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			ended := make(chan error, 1)
			if c.last {
				v.mu.Lock()
			} else {
				s.sched.mu.Lock()
			}
			go func() { ended <- c.wait(ctx, s, source.ID, clone.ID, snap) }()
			time.Sleep(20 * time.Millisecond) // it has come as far as it can
			if c.last {
				s.sched.mu.Lock()
				v.mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
			foldUnseen(t, s, v)
			s.sched.mu.Unlock()
			if err := <-ended; err != nil {
				t.Errorf("%v, though all is folded", err)
			}
		})
	}
}

// What is folded at once, what later and what not at all.
func TestFoldIsDue(t *testing.T) {
	o := smallOptions()
	o.IdleAfter, o.MaxAge = time.Hour, 2*time.Hour
	for what, c := range map[string]struct {
		prepare   func(t *testing.T, s *Store, v *Volume)
		now, ever bool
	}{
		"nothing written":     {func(*testing.T, *Store, *Volume) {}, false, false},
		"written":             {func(t *testing.T, _ *Store, v *Volume) { writeAt(t, v, noise(1, BlockSize), 0) }, false, true},
		"written, and closed": {func(t *testing.T, _ *Store, v *Volume) { writeAt(t, v, noise(1, BlockSize), 0); ok(t, v.Close()) }, true, true},
		"written, and failed": {func(t *testing.T, _ *Store, v *Volume) {
			writeAt(t, v, noise(1, BlockSize), 0)
			v.mu.failed = ErrClosed
		}, true, true},
		"written, and deleted": {func(t *testing.T, _ *Store, v *Volume) { writeAt(t, v, noise(1, BlockSize), 0); v.mu.deleted = true }, true, true},
		"deleted":              {func(_ *testing.T, _ *Store, v *Volume) { v.mu.deleted = true }, true, true},
		"snapshotted": {func(t *testing.T, s *Store, v *Volume) {
			writeAt(t, v, noise(1, BlockSize), 0)
			must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
		}, true, true},
		"held for a cut": {func(t *testing.T, s *Store, v *Volume) {
			writeAt(t, v, noise(1, BlockSize), 0)
			_, _, err := v.hold(s.newID('c'), o.MaxLayers)
			ok(t, err)
		}, false, false},
		"unfoldable": {func(t *testing.T, _ *Store, v *Volume) {
			writeAt(t, v, noise(1, BlockSize), 0)
			ok(t, v.Close())
			v.mu.unfoldable = true
		}, false, false},
		"tried just now": {func(t *testing.T, s *Store, v *Volume) {
			writeAt(t, v, noise(1, BlockSize), 0)
			ok(t, v.Close())
			v.mu.retry = s.o.Now().Add(time.Hour)
		}, false, true},
	} {
		t.Run(what, func(t *testing.T) {
			s := openStore(t, vfs.NewMem(), o)
			v := newVolume(t, s, "v", 1<<20)
			c.prepare(t, s, v)
			now := time.Now().Add(time.Minute)
			due, ever := v.foldDue(now, false)
			if ever != c.ever || ever && due.After(now) == c.now {
				t.Errorf("due %v at %v, is it %v", ever, due.Sub(now), now)
			}
			if vols, _ := s.claimFold(now); (len(vols) > 0) != c.now {
				t.Errorf("%d volumes are claimed", len(vols))
			}
		})
	}
}

// A volume that one worker folds is not another's, alone or together with others.
func TestClaimedVolumeIsNotClaimedAgain(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	claim := func(name string) (*Volume, []*Volume) {
		v := newVolume(t, s, name, 1<<20)
		writeAt(t, v, noise(1, BlockSize), 0)
		ok(t, v.Close())
		vols, _ := s.claimFold(time.Now().Add(time.Minute))
		return v, vols
	}
	a, first := claim("a")
	b, second := claim("b")
	if len(first) != 1 || first[0] != a || len(second) != 1 || second[0] != b {
		t.Errorf("claimed %v, then %v", first, second)
	}
	if third, _ := s.claimFold(time.Now().Add(time.Minute)); len(third) > 0 {
		t.Errorf("claimed %v again", third)
	}
	s.unclaim(first)
	if again, _ := s.claimFold(time.Now().Add(time.Minute)); len(again) != 1 || again[0] != a {
		t.Errorf("let go of and not claimed: %v", again)
	}
}

// Syncs and marks in the background go on for as long as a volume is written to.
func TestSyncsAndMarksGoOn(t *testing.T) {
	o := smallOptions()
	o.UnsyncedBytes, o.IdleAfter, o.MaxAge = 64<<10, time.Hour, time.Hour
	s := openStore(t, vfs.NewMem(), o)
	stop := runStore(t, s)
	v := newVolume(t, s, "v", 1<<20)
	await := func(what string, is func() bool) {
		t.Helper()
		waitFor(t, 10*time.Second, what, func() bool {
			v.mu.RLock()
			defer v.mu.RUnlock()
			return is()
		})
	}
	await("Run begins", s.sched.running.Load)
	for i := range int64(3) {
		writeAt(t, v, noise(uint64(i), 12*BlockSize), i*12*BlockSize)
		await("less than half of what may be unsynced is", func() bool { return v.mu.memory <= o.UnsyncedBytes/2 })
		await("the sync ends", func() bool { return !v.syncing.Load() })
		await("a mark says what is synced", func() bool { return v.mu.synced > 0 && v.mu.marked >= v.mu.synced })
	}
	ok(t, v.Close())
	stop()
	ok(t, s.Close())
}
