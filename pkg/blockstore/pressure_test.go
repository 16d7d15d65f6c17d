package blockstore

import (
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

// While somebody waits for space all is folded that there is: it frees segments. Without
// who waits, a full disk is no reason, nor is who waits for a fold alone.
func TestWhoWaitsForSpaceHasAllFolded(t *testing.T) {
	o := smallOptions()
	o.IdleAfter, o.MaxAge = time.Hour, 2*time.Hour
	s := openStore(t, vfs.NewMem(), o)
	a, b := newVolume(t, s, "a", 1<<20), newVolume(t, s, "b", 1<<20)
	writeAt(t, a, noise(1, BlockSize), 0)
	for _, c := range []struct{ full, waits, due bool }{{false, false, false}, {true, false, false}, {false, true, false}, {true, true, true}} {
		s.setFull(c.full, ErrNoSpace)
		b.mu.Lock()
		b.fed()
		b.mu.Unlock()
		if c.waits {
			b.starve(time.Now())
		}
		if vols, _ := s.claimFold(time.Now()); (len(vols) > 0) != c.due {
			t.Errorf("%+v: %d volumes are folded", c, len(vols))
		}
	}
	ok(t, a.Close())
	ok(t, b.Close())
	s.abandon()
}

// Who begins to wait for space wakes who folds.
func TestWaitForSpaceWakesFolds(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	v.starve(time.Now())
	select {
	case <-s.sched.fold:
	default:
		t.Error("nobody is woken")
	}
	ok(t, v.Close())
	ok(t, s.Close())
}

// A writer that gets a segment does not say that there is space: only who has seen room for
// the reserve and a segment does, and wakes all who wait.
func TestOneSegmentIsNoSpace(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	s.setFull(true, ErrNoSpace)
	writeAt(t, v, noise(1, BlockSize), 0)
	if !s.isFull() {
		t.Error("a write of one segment says that there is space")
	}
	room := s.pool.Freed()
	s.probeSpace()
	select {
	case <-room:
	default:
		t.Error("who waits is not woken")
	}
	if s.isFull() {
		t.Error("there is space, and nobody sees it")
	}
	ok(t, v.Close())
	ok(t, s.Close())
}
