package blockstore

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

var (
	everySeed   = flag.Uint64("every.seed", 3, "seed of the reference workload")
	everyOps    = flag.Int("every.ops", 60, "its operations")
	everyStates = flag.Int("every.states", 4, "states of the disk that are tried after each crash, the first three being the death of the process alone, nothing kept and everything kept")
	everyFrom   = flag.Int64("every.from", 1, "first file operation that is tried")
	everyStep   = flag.Int("every.step", 1, "try each n-th file operation only")
)

// everyWorkload runs the reference workload: operations of the simulation, without any
// crash or error but what plan says, which counts file operations from the first of
// the store's making. It stops where the process dies.
func everyWorkload(plan simPlan) *simWorld {
	w := newClosedWorld(*everySeed, traceTo())
	w.planned, w.disk.plan, w.doing = true, plan, "first open"
	s, err := Open(simFS{w.disk}, testDir, w.o)
	w.s = s
	switch {
	case w.disk.dead:
		return w
	case err != nil && w.disk.fired:
		w.disk.calm()
		w.open()
	default:
		w.ok(err, "open")
	}
	for w.step = 0; w.step < *everyOps && !w.disk.dead; w.step++ {
		w.one()
	}
	if !w.disk.dead {
		w.doing = "close"
		w.closePlanned()
	}
	return w
}

// closePlanned is the clean stop at the end of a workload, which may be cut short.
func (w *simWorld) closePlanned() {
	err := w.finishWrites()
	if err == nil {
		err = w.s.Close()
	}
	if !w.disk.dead && !w.disk.fired && !w.hurt {
		w.ok(err, "close")
	}
}

// closeAndOpenPlanned is a clean stop and a start, either of which may be cut short.
func (w *simWorld) closeAndOpenPlanned() error {
	if err := w.finishWrites(); err != nil {
		return err
	}
	err := w.s.Close()
	if w.disk.dead {
		return err
	}
	if err != nil || w.hurt {
		w.reopen(false)
		return nil
	}
	for _, m := range w.vols {
		m.settle(m.hist.acked())
		m.v, m.pending = nil, nil
	}
	w.s, err = Open(simFS{w.disk}, testDir, w.o)
	w.coll = nil
	if w.disk.dead {
		return err
	}
	if err != nil {
		w.disk.calm()
		w.open()
	}
	for _, m := range w.vols {
		if w.rng.IntN(2) == 0 {
			if ok, err := w.resolve(m.id); !ok {
				return err
			}
			if m.v, err = w.s.OpenVolume(context.Background(), m.id); err != nil {
				return err
			}
		}
	}
	return nil
}

// fork is a world of its own in the same state, whose process has died.
func (w *simWorld) fork(rng *rand.Rand) *simWorld {
	f := *w
	f.rng, f.s, f.coll = rng, nil, nil
	f.disk = newSimDisk(rng)
	f.disk.mem = w.disk.mem.Clone()
	f.disk.fs = vfs.NewFaulty(f.disk.mem)
	f.disk.fs.SetHook(f.disk.hook)
	f.disk.out = w.disk.out
	f.buf = simBuffers.Get().([]byte)
	f.vols = nil
	for _, m := range w.vols {
		h := simHistory{base: m.hist.base.clone(), now: m.hist.now.clone()}
		h.writes = append(h.writes, m.hist.writes...)
		f.vols = append(f.vols, &simVolume{id: m.id, hist: h, loose: m.loose, unnoted: m.unnoted})
	}
	f.snaps = append([]*simSnapshot(nil), w.snaps...)
	f.unsure = append([]func(*simWorld){}, w.unsure...)
	return &f
}

// recoverFrom opens the store after the end of its process, with or without a loss of
// power, compares everything with the model and goes on for a little.
func (w *simWorld) recoverFrom(power bool, keep float64) {
	w.disk.ended(power, keep)
	w.taint, w.hurt = 0, false
	w.open()
	w.settleUnsure()
	w.afterOpen(power, false)
	w.compareAll()
	for range 4 {
		w.one()
	}
	w.compareAll()
	w.ok(w.s.Close(), "close")
	simBuffers.Put(w.buf)
}

// eachPoint calls try for the points of the workload, beside each other, and returns how
// many there were. It stops at the first ones that find something wrong.
func eachPoint(t *testing.T, points int64, what string, try func(point int64)) int64 {
	step := int64(*everyStep)
	if raceEnabled { // the rest runs without the race detector
		step *= 16
	}
	var wg sync.WaitGroup
	var next, done, failed atomic.Int64
	next.Store(*everyFrom - step)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for failed.Load() < 3 {
				point := next.Add(step)
				if point > points {
					return
				}
				func() {
					defer func() {
						if p := recover(); p != nil {
							failed.Add(1)
							v, ok := p.(simViolation)
							if !ok {
								v = simViolation(fmt.Sprintf("panic: %v\n%s", p, debug.Stack()))
							}
							t.Errorf("%s at file operation %d: %s", what, point, v)
						}
					}()
					try(point)
				}()
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return done.Load()
}

// TestEveryCrash lets the process of the reference workload die at every file operation;
// from each death the store is opened as it is, and after power losses that keep nothing,
// everything and random parts of what was not synced (I1 to I6).
func TestEveryCrash(t *testing.T) {
	points := everyWorkload(simPlan{}).disk.ops
	var states atomic.Int64
	n := eachPoint(t, points, "crash", func(point int64) {
		w := everyWorkload(simPlan{in: point, die: true})
		if !w.disk.dead && !w.disk.last {
			return // the workload's last operations are those of abandoning the store
		}
		w.s.abandon()
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
	})
	fmt.Printf("crash: %d of %d file operations, %d states of the disk\n", n, points, states.Load())
}

// everyFault is a kind of error that TestEveryFault injects.
type everyFault struct {
	name  string
	err   error
	times int // how many operations fail in a row
	kinds []vfs.OpKind
}

var everyFaults = func() (all []everyFault) {
	writes := []vfs.OpKind{vfs.OpWrite, vfs.OpCreate, vfs.OpAllocate, vfs.OpRename, vfs.OpMkdir, vfs.OpSync, vfs.OpDatasync, vfs.OpTruncate, vfs.OpSyncDir}
	for _, times := range []int{1, 1 << 30} {
		how := map[int]string{1: "once", 1 << 30: "from there on"}[times]
		all = append(all,
			everyFault{"EIO " + how, fmt.Errorf("%w: %w", errInjected, syscall.EIO), times, nil},
			everyFault{"ENOSPC " + how, fmt.Errorf("%w: %w", errInjected, vfs.ErrNoSpace), times, writes})
	}
	return all
}()

// TestEveryFault fails every file operation of the reference workload, once and from there
// on until the store is opened again, with EIO and ENOSPC, half of the writes after a part
// was written: nothing acknowledged is lost that no failed sync took, and no error makes a
// panic, a hang or a wrong read (I1, I5, I8, I9).
func TestEveryFault(t *testing.T) {
	points := everyWorkload(simPlan{}).disk.ops
	for _, f := range everyFaults {
		n := eachPoint(t, points, f.name, func(point int64) {
			w := everyWorkload(simPlan{in: point, err: f.err, times: f.times, kinds: f.kinds})
			lost := w.disk.unsynced
			w.s.abandon()
			w.disk.ended(false, 1)
			w.open()
			w.settleUnsure()
			w.afterOpen(false, lost)
			w.compareAll()
			w.ok(w.s.Close(), "close")
			simBuffers.Put(w.buf)
		})
		fmt.Printf("%s: %d of %d file operations\n", f.name, n, points)
	}
}
