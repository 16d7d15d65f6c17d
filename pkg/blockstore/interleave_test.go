package blockstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
)

var (
	interleaveOnly = flag.String("interleave.only", "", "run the plays with this in their name only")
	interleaveRuns = flag.Int64("interleave.runs", 300, "try so many schedules of a play at most, and if these are not all as many again at random; -1: all")
	interleaveShow = flag.String("interleave.schedule", "", "run this one schedule, as a failure prints it")
)

// play is a few actors on one store, and what must be true whoever goes first. An actor
// runs in a goroutine of its own, but never two at a time: one runs up to its next pause,
// then another one or the same. A schedule is the order in which they do, and the test
// goes through all of them, each on a fresh copy of the same disk.
//
// An actor pauses before a file operation that its pauses name (never one that is done
// with a lock held that another actor needs) and wherever it calls pause itself. So the
// real fold is stopped between a dedup hit and its commit without a hook in the engine.
type play struct {
	name   string
	disk   func(t testing.TB) *vfs.Mem // made once, never changed
	begin  func(st *stage)             // opens the store, adds the actors
	expect func(st *stage)             // after the last of them
}

// stage is one run of a play under one schedule. Its methods are called by the goroutine
// that has the turn: an actor's, or the director's.
type stage struct {
	testing.TB
	mem    *vfs.Mem
	fs     *vfs.Faulty
	s      *Store
	images map[string]blocks // of volumes and snapshots by name
	seen   uint64            // the commit that catalogIsWhole has looked at
	actors []*actor
	broken bool          // an actor has panicked or hangs: who touches the store may hang too
	turn   *actor        // whose turn it is; nil: the director's
	back   chan struct{} // an actor gives the turn back
}

// actor is one sequence of steps.
type actor struct {
	name    string
	do      func(a *actor) error
	pauses  func(vfs.Op) bool // nil: nowhere
	resume  chan struct{}
	started bool
	ended   bool
	waits   bool // has found that it can only wait for another actor
	err     error
}

// add enters an actor.
func (st *stage) add(name string, pauses func(vfs.Op) bool, do func(a *actor) error) {
	st.actors = append(st.actors, &actor{name: name, do: do, pauses: pauses, resume: make(chan struct{})})
}

// pause gives the turn to whom the schedule says.
func (st *stage) pause() {
	a := st.turn
	st.back <- struct{}{}
	<-a.resume
}

// hook pauses the actor that has the turn before its operations.
func (st *stage) hook(op vfs.Op) error {
	if a := st.turn; a != nil && a.pauses != nil && a.pauses(op) {
		st.pause()
	}
	return nil
}

// stuck is how long an actor may take for one step before it counts as hanging.
const stuck = 20 * time.Second

// step gives an actor the turn until it pauses or ends; false: it hangs.
func (st *stage) step(a *actor) bool {
	st.turn, a.waits = a, false
	if a.started {
		a.resume <- struct{}{}
	} else {
		a.started = true
		go st.play(a)
	}
	select {
	case <-st.back:
		st.turn = nil
		return true
	case <-time.After(stuck):
		st.broken = true
		return false
	}
}

// play is an actor's goroutine.
func (st *stage) play(a *actor) {
	defer func() {
		if r := recover(); r != nil {
			a.err = st.broke(r)
		}
		a.ended = true
		st.back <- struct{}{}
	}()
	a.err = a.do(a)
}

// broke makes an error of a panic: a flaw is one, and anything else is the engine's.
func (st *stage) broke(r any) error {
	if f, ok := r.(flaw); ok {
		return f
	}
	st.broken = true
	return fmt.Errorf("panic: %v\n%s", r, debug.Stack())
}

// choice is a point of a schedule: who could go on, and who did.
type choice struct {
	able  []int // numbers of actors, ascending
	taken int   // index in able
}

// schedule is every choice of a run, in order.
type schedule []choice

func (c schedule) String() string {
	var b strings.Builder
	for _, p := range c {
		fmt.Fprintf(&b, "%d", p.able[p.taken])
	}
	return b.String()
}

// parseSchedule is the numbers of the actors in the order of their turns.
func parseSchedule(text string) (turns []int) {
	for _, c := range text {
		turns = append(turns, int(c-'0'))
	}
	return turns
}

// perform runs a play: the first turns as given, then any actor's if there is a rng, and
// else always the first one's that can go on. It returns the choices, and whether the run
// was cut short because an actor only waited where others could go on: the same is tried
// with that actor later.
func (p *play) perform(t testing.TB, disk *vfs.Mem, turns []int, rng *rand.Rand) (made schedule, cut bool, err error) {
	st := &stage{TB: t, mem: disk.Clone(), images: make(map[string]blocks), back: make(chan struct{})}
	st.fs = vfs.NewFaulty(st.mem)
	defer func() {
		if r := recover(); r != nil {
			err = st.broke(r)
		}
		if st.s != nil && !st.broken {
			err = errors.Join(err, st.leave())
		}
	}()
	p.begin(st)
	st.fs.SetHook(st.hook)
	for {
		able := st.able()
		if len(able) == 0 {
			break
		}
		c := choice{able: able}
		if n := len(made); n < len(turns) {
			if c.taken = slices.Index(able, turns[n]); c.taken < 0 {
				return made, false, fmt.Errorf("turn %d is not that of actor %d: the play is not the same each time", n, turns[n])
			}
		} else if rng != nil {
			c.taken = rng.IntN(len(able))
		}
		made = append(made, c)
		a := st.actors[able[c.taken]]
		if !st.step(a) {
			buf := make([]byte, 1<<20)
			return made, false, fmt.Errorf("%s hangs\n%s", a.name, buf[:runtime.Stack(buf, true)])
		}
		if a.err != nil {
			return made, false, fmt.Errorf("%s: %w", a.name, a.err)
		}
		st.catalogIsWhole()
		if a.waits && len(able) > 1 {
			return made, true, nil
		}
	}
	st.fs.SetHook(nil)
	p.expect(st)
	return made, false, nil
}

// able lists who can go on. One that waits is able again once another one has had a turn
// (the run was cut otherwise), or if there is nobody else, which is a flaw.
func (st *stage) able() (able []int) {
	for i, a := range st.actors {
		if !a.ended {
			able = append(able, i)
		}
	}
	if len(able) == 1 && st.actors[able[0]].waits {
		st.flaw("%s waits, and there is nobody to wait for", st.actors[able[0]].name)
	}
	return able
}

// leave ends the actors that a cut or failed run has left, and the store.
func (st *stage) leave() error {
	st.fs.SetHook(nil)
	st.mem.Kill()
	for left, round := true, 0; left; round++ {
		left = false
		for _, a := range st.actors {
			if !a.started || a.ended {
				continue
			}
			if left = true; round == 1000 || !st.step(a) {
				return fmt.Errorf("%s does not end", a.name)
			}
		}
	}
	st.s.abandon()
	return nil
}

// flaw is what a run has found to be wrong.
type flaw string

func (f flaw) Error() string { return string(f) }

func (st *stage) flaw(format string, args ...any) { panic(flaw(fmt.Sprintf(format, args...))) }

func (st *stage) ok(err error, what string) {
	if err != nil {
		st.flaw("%s: %v", what, err)
	}
}

// sum is what a search has come to.
type sum struct {
	runs, cut, longest atomic.Int64
	stop               atomic.Bool
	limit              int64 // of runs; negative: none
}

// add counts a run and tells whether to go on.
func (s *sum) add(t testing.TB, p *play, made schedule, cut bool, err error) bool {
	if err != nil {
		s.stop.Store(true)
		t.Errorf("schedule %v: %v\nreplay: -test.run '^TestEveryInterleaving$' -interleave.only '%s' -interleave.schedule %v", made, err, p.name, made)
		return false
	}
	if cut {
		s.cut.Add(1)
		return true
	}
	s.longest.Store(max(s.longest.Load(), int64(len(made))))
	if n := s.runs.Add(1); s.limit >= 0 && n >= s.limit {
		s.stop.Store(true)
	}
	return !s.stop.Load()
}

// search goes depth-first through all schedules that begin with turns, whose first fixed
// choices stay.
func (p *play) search(t testing.TB, disk *vfs.Mem, turns []int, fixed int, sum *sum) {
	for !sum.stop.Load() {
		made, cut, err := p.perform(t, disk, turns, nil)
		if !sum.add(t, p, made, cut, err) {
			return
		}
		if turns = next(made, fixed); turns == nil {
			return
		}
	}
}

// next is how the schedule begins that follows one in depth-first order; nil after the
// last with the same first choices.
func next(made schedule, fixed int) []int {
	for n := len(made) - 1; n >= fixed; n-- {
		c := made[n]
		if c.taken+1 == len(c.able) {
			continue
		}
		turns := make([]int, 0, n+1)
		for _, before := range made[:n] {
			turns = append(turns, before.able[before.taken])
		}
		return append(turns, c.able[c.taken+1])
	}
	return nil
}

// starts are the beginnings of all schedules, depth choices long or shorter, if they end
// there: what can be searched beside each other.
func (p *play) starts(t testing.TB, disk *vfs.Mem, depth int) (all [][]int) {
	var turns []int
	for {
		made, _, err := p.perform(t, disk, turns, nil)
		if err != nil {
			t.Fatalf("schedule %v: %v", made, err)
		}
		made = made[:min(depth, len(made))]
		var begin []int
		for _, c := range made {
			begin = append(begin, c.able[c.taken])
		}
		all = append(all, begin)
		if turns = next(made, 0); turns == nil {
			return all
		}
	}
}

// TestEveryInterleaving goes through every order in which folds, snapshots, clones,
// deletes, reads and the steps of a collection can follow each other: whatever it is, no
// image has lost a byte, check finds nothing, and nothing that is reachable was dropped
// (I4, I5, I6). After each step the catalog's records agree with each other.
func TestEveryInterleaving(t *testing.T) {
	leaktest.Check(t)
	for _, p := range plays() {
		if !strings.Contains(p.name, *interleaveOnly) {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			disk := p.disk(t)
			if *interleaveShow != "" {
				if made, _, err := p.perform(t, disk, parseSchedule(*interleaveShow), nil); err != nil {
					t.Fatalf("schedule %v: %v", made, err)
				}
				return
			}
			limit := *interleaveRuns
			if raceEnabled { // the rest runs without the race detector
				limit = 20
			}
			s := &sum{limit: limit}
			p.searchAll(t, disk, s)
			if !s.stop.Load() {
				t.Logf("all %d schedules of up to %d turns; %d more ended where one could only wait", s.runs.Load(), s.longest.Load(), s.cut.Load())
				return
			}
			r := &sum{limit: limit}
			p.sample(t, disk, r)
			t.Logf("the first %d schedules and %d at random, of up to %d turns", s.runs.Load(), r.runs.Load(), max(s.longest.Load(), r.longest.Load()))
		})
	}
}

// An actor that panics is told with its schedule, as one that finds a flaw is, and the rest
// of the run comes to an end.
func TestInterleaving_ActorPanics(t *testing.T) {
	leaktest.Check(t)
	for what, do := range map[string]func(st *stage) error{
		"flaw: x is wrong":  func(st *stage) error { st.flaw("flaw: %s is wrong", "x"); return nil },
		"panic: assignment": func(st *stage) error { var none map[string]int; none["x"] = 1; return nil },
		"boom":              func(*stage) error { panic("boom") },
	} {
		t.Run(what, func(t *testing.T) {
			p := &play{begin: func(st *stage) {
				st.open()
				t.Cleanup(func() { st.s.abandon() }) // no lock is held here
				st.add("other", nil, func(*actor) error { return nil })
				st.add("sick", nil, func(*actor) error { st.pause(); return do(st) })
			}}
			made, _, err := p.perform(t, garbageDisk(false)(t), []int{1, 0, 1}, nil)
			if fmt.Sprint(made) != "101" || err == nil || !strings.Contains(err.Error(), "sick: ") || !strings.Contains(err.Error(), what) {
				t.Errorf("schedule %v: %v", made, err)
			}
		})
	}
}

// sample tries schedules at random, the same ones each time, but for who is first to the
// limit.
func (p *play) sample(t testing.TB, disk *vfs.Mem, sum *sum) {
	var wg sync.WaitGroup
	for i := range runtime.GOMAXPROCS(0) {
		rng := rand.New(rand.NewPCG(uint64(i), 9))
		wg.Go(func() {
			for !t.Failed() {
				made, cut, err := p.perform(t, disk, nil, rng)
				if !sum.add(t, p, made, cut, err) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// searchAll goes through all schedules.
func (p *play) searchAll(t testing.TB, disk *vfs.Mem, sum *sum) {
	const depth = 3
	work := make(chan []int)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for turns := range work {
				p.search(t, disk, turns, len(turns), sum)
			}
		})
	}
	for _, turns := range p.starts(t, disk, depth) {
		work <- turns
	}
	close(work)
	wg.Wait()
}

// catalogIsWhole looks at the catalog, if something was committed since it did.
func (st *stage) catalogIsWhole() {
	view := st.s.cat.View()
	if view.Commit() == st.seen {
		return
	}
	st.seen = view.Commit()
	st.ok(wholeCatalog(view), "catalog")
	st.ok(st.s.listsAnswer(), "lists")
}

// blocks is an image by block number; what is not in it is zeros. Nothing is written
// behind the first playBlocks.
type blocks map[int64][]byte

const playBlocks = 16

// differs compares the first blocks of an image.
func (want blocks) differs(got []byte) error {
	for b := range int64(playBlocks) {
		if w, g := want[b], got[b*BlockSize:][:BlockSize]; w == nil && !isZero(g) || w != nil && string(g) != string(w) {
			return fmt.Errorf("block %d differs", b)
		}
	}
	return nil
}

// compare reads whatever there is by name and wants the images.
func (st *stage) compare(when string) {
	seen := 0
	got := make([]byte, playBlocks*BlockSize)
	check := func(kind, name string, root *rootRef) {
		want, known := st.images[name]
		if !known {
			st.flaw("%s: %s %s is there", when, kind, name)
		}
		seen++
		if err := st.s.readImage(got, 0, root.slot()); err != nil {
			st.flaw("%s: %s %s: %v", when, kind, name, err)
		}
		if err := want.differs(got); err != nil {
			st.flaw("%s: %s %s: %v", when, kind, name, err)
		}
	}
	view := st.s.cat.View()
	for _, e := range view.Scan(keyVolume, "", 0) {
		var rec volumeRecord
		st.ok(decode(e, &rec), "record of a volume")
		root := rec.Root
		if rec.Cut != "" {
			var cut cutRecord
			_, err := get(view, keyCut+rec.Cut, &cut)
			st.ok(err, "cut of volume "+rec.Name)
			root = cut.Root
		}
		if !rec.Deleted {
			check("volume", rec.Name, root)
		}
	}
	for _, e := range view.Scan(keySnapshot, "", 0) {
		var rec snapshotRecord
		st.ok(decode(e, &rec), "record of a snapshot")
		var cut cutRecord
		_, err := get(view, keyCut+rec.Cut, &cut)
		st.ok(err, "cut of snapshot "+rec.Name)
		if cut.Pending {
			st.flaw("%s: snapshot %s has no root", when, rec.Name)
		}
		check("snapshot", rec.Name, cut.Root)
	}
	if seen != len(st.images) {
		st.flaw("%s: %d volumes and snapshots are there, want %d", when, seen, len(st.images))
	}
}

// settle folds what is left, and wants every image right, now, after another collection
// and after a loss of power; and check clean.
func (st *stage) settle() {
	st.foldAll()
	st.compare("at the end")
	st.check()
	_, err := st.s.Collect(context.Background())
	st.ok(err, "collection at the end")
	st.compare("after another collection")
	st.check()
	st.s.abandon()
	st.mem.Crash(nil, 0)
	st.s, err = Open(st.mem, testDir, interleaveOptions())
	st.ok(err, "start after a loss of power")
	st.compare("after a loss of power")
	st.check()
}

func (st *stage) foldAll() {
	for again := true; again; {
		again = false
		for _, id := range st.s.InMemory() {
			did, err := st.s.foldOnce(st.s.loaded(id))
			st.ok(err, "fold at the end")
			again = again || did
		}
	}
}

func (st *stage) check() {
	err := st.s.Check(context.Background(), CheckOptions{ReadData: true}, func(p Problem) { st.flaw("check: %v", p) })
	st.ok(err, "check")
}
