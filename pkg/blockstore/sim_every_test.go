package blockstore

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
)

var (
	everySeed     = flag.Uint64("every.seed", 3, "seed of the reference workload")
	everyOps      = flag.Int("every.ops", 60, "its operations drawn at random; a round of the others comes between")
	everyStates   = flag.Int("every.states", 4, "states of the disk that are tried after each crash, the first three being the death of the process alone, nothing kept and everything kept")
	everyFrom     = flag.Int64("every.from", 1, "first file operation that is tried")
	everyStep     = flag.Int64("every.step", 1, "try each n-th file operation only")
	everyRecovery = flag.Int64("every.recovery", 250, "try every file operation of the recovery from each n-th crash")
	everyEINTR    = flag.Bool("every.eintr", false, "fail every file operation with EINTR too")
)

// eachPoint calls try for the file operations 1, 2, 3, ... (or as the flags say), beside
// each other, until there is one at which nothing happens. It returns at how many something
// did, and stops at the first ones that find something wrong.
func eachPoint(t *testing.T, what string, step int64, try func(point int64) bool) int64 {
	if raceEnabled { // the rest runs without the race detector
		step *= 16
	}
	var wg sync.WaitGroup
	var next, done, failed atomic.Int64
	var over atomic.Bool
	next.Store(*everyFrom - step)
	one := func(point int64) (happened bool) {
		defer func() {
			if p := recover(); p != nil {
				happened = true
				failed.Add(1)
				v, ok := p.(simViolation)
				if !ok {
					v = simViolation(fmt.Sprintf("panic: %v\n%s", p, debug.Stack()))
				}
				t.Errorf("%s at file operation %d: %s", what, point, v)
			}
		}()
		return try(point)
	}
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for failed.Load() < 3 && !over.Load() {
				if one(next.Add(step)) {
					done.Add(1)
				} else {
					over.Store(true)
				}
			}
		})
	}
	wg.Wait()
	everyViolations.Add(failed.Load())
	return done.Load()
}

// everyViolations counts them over all tests here, for what is printed in the end, and
// everyRan the tests.
var everyViolations, everyRan atomic.Int64

// crashedAt lets the process of the reference workload die at a file operation; nil if
// there are not so many.
func crashedAt(point int64) *simWorld {
	w := everyWorkload(simPlan{in: point, die: true})
	w.s.abandon()
	if !w.disk.dead && !w.disk.last { // the last operations are those of abandoning the store
		simBuffers.Put(w.buf)
		return nil
	}
	return w
}

// TestEveryCrash lets the process of the reference workload die at every file operation;
// from each death the store is opened as it is, and after power losses that keep nothing,
// everything and random parts of what was not synced (I1 to I6).
func TestEveryCrash(t *testing.T) {
	var states atomic.Int64
	n := eachPoint(t, "crash", *everyStep, func(point int64) bool {
		w := crashedAt(point)
		if w == nil {
			return false
		}
		for k := range *everyStates {
			rng := rand.New(rand.NewPCG(uint64(point), uint64(k)))
			keep := rng.Float64()
			if k < 3 {
				keep = float64(k - 1)
			}
			w.fork(rng).recoverFrom(k > 0, keep)
			states.Add(1)
		}
		simBuffers.Put(w.buf)
		return true
	})
	everyRan.Add(1)
	fmt.Printf("crash: at %d file operations of %d, %d states of the disk\n", n, everyWorkload(simPlan{}).disk.ops, states.Load())
}

// everyFault is a kind of error that is injected.
type everyFault struct {
	name  string
	err   error
	times int          // how many operations fail in a row
	kinds []vfs.OpKind // that fail; nil: all
	short bool         // a part is written before
}

// plan injects the fault at a file operation, counted among those that it hits.
func (f everyFault) plan(point int64) simPlan {
	return simPlan{name: f.name, in: point, err: f.err, times: f.times, kinds: f.kinds, short: f.short}
}

// hits tells whether operations of a kind can fail so.
func (f everyFault) hits(kind vfs.OpKind) bool {
	for _, k := range f.kinds {
		if k == kind {
			return true
		}
	}
	return len(f.kinds) == 0
}

// everyFaults lists them, once each and then from some operation on.
var everyFaults = sync.OnceValue(func() (all []everyFault) {
	growing := []vfs.OpKind{vfs.OpWrite, vfs.OpCreate, vfs.OpAllocate, vfs.OpRename, vfs.OpMkdir, vfs.OpSync, vfs.OpDatasync, vfs.OpTruncate, vfs.OpSyncDir}
	writes := []vfs.OpKind{vfs.OpWrite}
	for _, often := range []struct {
		times int
		how   string
	}{{1, " once"}, {1 << 30, " from there on"}} {
		add := func(name string, err error, kinds []vfs.OpKind, short bool) {
			all = append(all, everyFault{name + often.how, fmt.Errorf("%w: %w", errInjected, err), often.times, kinds, short})
		}
		add("EIO", syscall.EIO, nil, false)
		add("ENOSPC", vfs.ErrNoSpace, growing, false)
		add("short write and EIO", syscall.EIO, writes, true)
		add("short write and ENOSPC", vfs.ErrNoSpace, writes, true)
		if *everyEINTR {
			add("EINTR", syscall.EINTR, nil, false)
		}
	}
	return all
})

// TestEveryFault fails every file operation of the reference workload, once and from there
// on until the store is opened again, with EIO, ENOSPC, EINTR and short writes. Nothing
// acknowledged is lost but what a failed sync took from the volume that failed over it,
// neither when the process is killed nor when the power goes; a failed sync is never
// repeated nor answered well, and the other volumes go on; no error makes a panic, a hang
// or a wrong read (I1, I5, I8, I9).
func TestEveryFault(t *testing.T) {
	leaktest.Check(t)
	for _, f := range everyFaults() {
		var others atomic.Int64
		n := eachPoint(t, f.name, *everyStep, func(point int64) bool {
			w := everyWorkload(f.plan(point))
			w.noteLost()
			w.s.abandon()
			for _, power := range []bool{false, true} {
				w.fork(rand.New(rand.NewPCG(uint64(point), 0))).recoverFrom(power, 0)
			}
			simBuffers.Put(w.buf)
			others.Add(int64(w.others))
			return w.disk.faulted
		})
		fmt.Printf("%s: at %d file operations, other volumes went on after a failed sync %d times\n", f.name, n, others.Load())
		if !raceEnabled && f.times == 1 && f.hits(vfs.OpDatasync) && others.Load() == 0 {
			t.Errorf("%s: no other volume was there to go on", f.name)
		}
	}
	everyRan.Add(1)
}

// TestEveryRecovery lets the process die again at every file operation of the recovery, and
// fails each of them in every way: after every n-th crash of the reference workload, after
// those whose recovery comes by a place that was not failed in every way before, and from
// what is rarely left behind.
func TestEveryRecovery(t *testing.T) {
	if raceEnabled {
		t.Skip("runs without the race detector")
	}
	ways := everyFaults()
	var tried atomic.Int64
	all := func(w *simWorld, power bool, keep float64, seed uint64, r everyRemain) {
		for k := range 1 + len(ways) {
			for at := int64(1); ; at++ {
				plan := simPlan{name: "death", in: at, die: true}
				if k > 0 {
					plan = ways[k-1].plan(at)
				}
				f := w.fork(rand.New(rand.NewPCG(seed, uint64(at))))
				if !f.recoverTwice(plan, power, keep, r) {
					break
				}
				tried.Add(1)
			}
		}
	}
	var from atomic.Int64
	points := eachPoint(t, "recovery", 1, func(point int64) bool {
		w := crashedAt(point)
		if w == nil {
			return false
		}
		for k := range uint64(3) {
			seed := uint64(point)<<2 | k
			keep := rand.New(rand.NewPCG(seed, 1)).Float64()
			visited := w.fork(rand.New(rand.NewPCG(seed, 0))).visits(k > 0, keep)
			if point%*everyRecovery == int64(k) || everyTally().wants(visited, ways) {
				from.Add(1)
				all(w, k > 0, keep, seed, everyRemain{})
			}
		}
		simBuffers.Put(w.buf)
		return true
	})
	eachPoint(t, "recovery from what is rare", 1, func(point int64) bool {
		if point > int64(len(everyRemains)) {
			return false
		}
		r := everyRemains[point-1]
		w := everyWorkload(simPlan{}).fork(rand.New(rand.NewPCG(uint64(point), 2)))
		w.doing = r.name
		w.disk.ended(false, 1)
		r.make(w)
		all(w, false, 1, uint64(point), r)
		return true
	})
	everyRan.Add(1)
	fmt.Printf("recovery: from %d crashes at %d file operations and %d other states, cut short or failed at a file operation %d times\n",
		from.Load(), points, len(everyRemains), tried.Load())
}

// everyTally is the tally of call sites that all tests here share; nil where it would only
// cost time.
var everyTally = sync.OnceValue(func() *ioTally {
	if raceEnabled {
		return nil
	}
	sites, err := ioSites("../..")
	if err != nil {
		panic(err)
	}
	return newIOTally(sites)
})

// TestEverySite prints the places in the engine that call the file system and that none of
// the tests above has executed, or failed in every way: there are none.
func TestEverySite(t *testing.T) {
	if raceEnabled || *everyStep != 1 || *everyFrom != 1 || everyRan.Load() < 3 {
		t.Skip("says something behind the three tests above only")
	}
	tally := everyTally()
	executed, failed := tally.missing(everyFaults())
	fmt.Printf("call sites: %d, never executed: %d, not failed in every way: %d\n", len(tally.sites), len(executed), len(failed))
	for _, s := range executed {
		t.Errorf("never executed: %s", s)
	}
	for _, s := range failed {
		t.Errorf("never failed: %s", s)
	}
	fmt.Printf("violations: %d\n", everyViolations.Load())
}
