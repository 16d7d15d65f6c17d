package blockstore_test

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
)

var (
	csiSeeds = flag.Int("simcsi.seeds", 40, "how many seeds TestSimulationCSI runs")
	csiFirst = flag.Uint64("simcsi.first", 1, "its first seed")
	csiOps   = flag.Int("simcsi.ops", 210, "operations a seed")
	csiTrace = flag.Bool("simcsi.trace", false, "print every operation of the first seed")
)

// csiResult is how one seed ended.
type csiResult struct {
	seed, digest uint64
	ios          int64
	ops, crashes int
	inside       int // crashes in the middle of a call
	problem      string
}

// TestSimulationCSI drives the real driver over its socket's calls, on the real engine, on
// a disk on which processes and power die in the middle of calls; the CO then repeats the
// call with the same arguments. It has the answer of before, or the call is done now: one
// ID for one name, all or nothing, nothing left over (I1, I4, I11, and ListVolumes,
// ListSnapshots, devices, mounts and records against the model).
func TestSimulationCSI(t *testing.T) {
	seeds, results := make(chan uint64), make(chan csiResult)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := range seeds {
				r := simulateCSI(seed, nil)
				if r.problem == "" && seed%10 == 0 {
					if again := simulateCSI(seed, nil); again != r {
						r.problem = fmt.Sprintf("seed %d: not the same twice: %+v, then %+v", seed, r, again)
					}
				}
				results <- r
			}
		})
	}
	go func() {
		for i := range *csiSeeds {
			seeds <- *csiFirst + uint64(i)
		}
		close(seeds)
		wg.Wait()
		close(results)
	}()
	if *csiTrace {
		simulateCSI(*csiFirst, os.Stdout)
	}
	began, sum, runs, bad := time.Now(), csiResult{}, 0, 0
	for r := range results {
		runs++
		sum.ops, sum.crashes, sum.inside, sum.ios = sum.ops+r.ops, sum.crashes+r.crashes, sum.inside+r.inside, sum.ios+r.ios
		if r.problem != "" {
			if bad++; bad <= 5 {
				t.Errorf("%s\nreplay, with a trace: make sim-csi SEEDS=1 FIRST_SEED=%d SIMFLAGS=-simcsi.trace", r.problem, r.seed)
			}
		}
	}
	fmt.Printf("CSI seeds %d to %d: %d operations, %d file operations, %d crashes inside a call, in %v\n",
		*csiFirst, *csiFirst+uint64(*csiSeeds)-1, sum.ops, sum.ios, sum.inside, time.Since(began).Round(time.Second))
	blockstore.SimSummary(fmt.Sprintf("%d runs, %d crashes, %d violations", runs, sum.crashes, bad))
}

// simulateCSI runs one seed.
func simulateCSI(seed uint64, out io.Writer) (r csiResult) {
	hang := time.AfterFunc(5*time.Minute, func() {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "CSI seed %d hangs\n%s\n", seed, buf[:runtime.Stack(buf, true)])
		os.Exit(2)
	})
	defer hang.Stop()
	w := newCSIWorld(seed, out)
	defer func() {
		if p := recover(); p != nil {
			if v, ok := p.(csiViolation); ok {
				r.problem = string(v)
			} else {
				r.problem = fmt.Sprintf("seed %d step %d (%s): panic: %v\n%s", seed, w.step, w.doing, p, debug.Stack())
			}
		}
		r.seed, r.ops, r.crashes, r.inside = seed, w.step, w.crashes, w.inside
		r.digest, r.ios = w.disk.Digest()
		w.close()
	}()
	w.run(*csiOps)
	return r
}
