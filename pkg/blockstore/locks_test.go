package blockstore

import (
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/locktest"
	"github.com/k8ns/granary/pkg/vfs"
)

func TestCensusIsLocked(t *testing.T) {
	c := newCensus()
	locktest.Wait(t, &c.mu, map[string]func(){
		"a volume":      func() { c.setVolume(rawKey{1}, &volumeCount{}, rawKey{}) },
		"a cut":         func() { c.setCut(rawKey{1}, dedup.Slot{}, 1) },
		"a snapshot":    func() { c.setSnapshot(rawKey{1}, &snapCount{}) },
		"sums":          func() { c.figures() },
		"who has":       func() { c.named(dedup.Slot{}) },
		"snapshots of":  func() { c.snapshotsOf("", "", 0) },
		"commit of any": func() { c.remove(keyVolume + "v") },
	})
}

func TestEstimateIsLocked(t *testing.T) {
	var c collector
	locktest.Wait(t, &c.mu, map[string]func(){
		"what a marking found": func() { c.marked(1, 1, 1) },
		"what is left":         func() { c.swept(1) },
		"take":                 func() { c.takePending() },
		"take back":            func() { c.takeBack(1) },
		"share":                func() { c.share(1) },
		"known":                func() { c.known() },
	})
	s := openStore(t, vfs.NewMem(), smallOptions())
	locktest.Wait(t, &s.coll.mu, map[string]func(){"what is given up": func() { s.addGarbage(1) }})
	locktest.Wait(t, &s.damage.mu, map[string]func(){
		"damage found":    func() { s.onDamage(dedup.Damage{}) },
		"damage recorded": func() { s.damageStep() },
		"damage healed":   func() { s.forgetDamage([]dedup.Slot{{}}) },
	})
}

func TestFoldsAreLocked(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	l := v.mu.layers[0]
	l.hold = 1
	locktest.Wait(t, &s.sched.mu, map[string]func(){
		"wait for a fold": func() { s.sched.folded() },
		"tell of a fold":  func() { s.sched.announceFold() },
		"claimed":         func() { s.claimed(v) },
		"unclaim":         func() { s.unclaim([]*Volume{v}) },
	})
	locktest.Wait(t, &v.mu, map[string]func(){
		"hold":    func() { v.hold(s.newID('c'), 8) },
		"unhold":  func() { v.unhold(l, "c", false) },
		"due":     func() { v.foldDue(time.Now(), false) },
		"small":   func() { v.foldsSmall() },
		"give up": func() { (&folder{s: s, job: &foldJob{v: v}}).mayReadLater(&dedup.DamageError{Unread: true}) },
	})
}

// Who changes a throw-away layer waits for who reads it, and the other way round: its file
// and what is known of it are read in two steps.
func TestScratchIsLocked(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	id, _ := layered(t, s, "v", 1)
	c := openScratch(t, s, id)
	write := func() { c.WriteAt(noise(1, BlockSize), 0) }
	discard := func() { c.Discard(0, BlockSize) }
	locktest.Wait(t, &c.mu, map[string]func(){
		"read":  func() { c.ReadAt(make([]byte, BlockSize), 0) },
		"flush": func() { c.Flush() },
	})
	locktest.Wait(t, c.mu.RLocker(), map[string]func(){"write": write, "discard": discard})
	locktest.Wait(t, c.mu.RLocker(), map[string]func(){"close": func() { c.Close() }})
	ok(t, s.Close())
}
