package blockstore

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/leaktest"
)

var (
	simSeeds = flag.Int("sim.seeds", 60, "how many seeds TestSimulation runs")
	simFirst = flag.Uint64("sim.first", 1, "its first seed")
	simOps   = flag.Int("sim.ops", 210, "operations a seed")
	simTwice = flag.Int("sim.twice", 50, "run every n-th seed twice and compare the digests; 0: none")
	simTrace = flag.Bool("sim.trace", false, "print every operation")
)

// simHang is how long a seed may take before it counts as a hang: thousands of times of
// what it needs.
const simHang = 5 * time.Minute

// simResult is how one seed ended.
type simResult struct {
	seed    uint64
	digest  uint64
	ops     int
	crashes int   // losses of power and deaths of the process
	inside  int   // of these, in the middle of an operation
	faults  int   // errors injected
	ios     int64 // file operations
	problem string
}

// TestSimulation drives the real engine on a file system that loses, reorders and tears
// unsynced writes and drops unsynced names, and compares every read, snapshot and clone
// with a model: I1 (prefix, flushed and acknowledged writes), I3 to I6, I8 to I10, and
// check after every reopening. Nothing in a seed runs at random but by the seed, so one
// seed is one trace. Seeds run beside each other.
//
//	go test ./pkg/blockstore -run '^TestSimulation$' -sim.seeds 1000 -sim.first 1
func TestSimulation(t *testing.T) {
	leaktest.Check(t)
	seeds := make(chan uint64)
	results := make(chan simResult)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := range seeds {
				results <- simulate(seed)
			}
		})
	}
	go func() {
		for i := range *simSeeds {
			seeds <- *simFirst + uint64(i)
		}
		close(seeds)
		wg.Wait()
		close(results)
	}()
	debug.SetGCPercent(200) // a seed's garbage is small and young
	began := time.Now()
	var sum simResult
	runs, violations := 0, 0
	for r := range results {
		runs++
		sum.ops, sum.crashes, sum.inside = sum.ops+r.ops, sum.crashes+r.crashes, sum.inside+r.inside
		sum.faults, sum.ios = sum.faults+r.faults, sum.ios+r.ios
		if r.problem != "" {
			violations++
			if violations <= 5 {
				t.Errorf("%s\nreplay, with a trace: make sim SEEDS=1 FIRST_SEED=%d SIMFLAGS='-sim.trace -sim.ops %d'", r.problem, r.seed, *simOps)
			} else if violations <= 100 {
				first, _, _ := strings.Cut(r.problem, "\n")
				t.Errorf("seed %d too: %s", r.seed, first)
			}
		}
		if r.crashes < 3 && r.problem == "" {
			t.Errorf("seed %d had %d crashes", r.seed, r.crashes)
		}
	}
	fmt.Printf("seeds %d to %d: %d operations, %d file operations, %d crashes inside an operation, %d injected errors, in %v\n",
		*simFirst, *simFirst+uint64(*simSeeds)-1, sum.ops, sum.ios, sum.inside, sum.faults, time.Since(began).Round(time.Second))
	simSummary = fmt.Sprintf("%d runs, %d crashes, %d violations", runs, sum.crashes, violations)
}

// simSummary is what is printed last, when the reports of the violations are out.
var simSummary string

func TestMain(m *testing.M) {
	code := leaktest.Main(m)
	if simSummary != "" {
		fmt.Println(simSummary)
	}
	os.Exit(code)
}

// simulate runs one seed, and some seeds twice.
func simulate(seed uint64) simResult {
	r := simulateOnce(seed)
	if n := uint64(*simTwice); r.problem == "" && n > 0 && seed%n == 0 {
		if again := simulateOnce(seed); again.digest != r.digest || again.ios != r.ios {
			r.problem = fmt.Sprintf("seed %d: digest %016x after %d file operations, and %016x after %d the second time",
				seed, r.digest, r.ios, again.digest, again.ios)
		}
	}
	return r
}

// simulateOnce runs one seed and turns what goes wrong into a problem's text.
func simulateOnce(seed uint64) (r simResult) {
	hang := time.AfterFunc(simHang, func() {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "seed %d hangs\n%s\n", seed, buf[:runtime.Stack(buf, true)])
		os.Exit(2)
	})
	defer hang.Stop()
	w := newSimWorld(seed, traceTo())
	defer func() {
		if p := recover(); p != nil {
			if v, ok := p.(simViolation); ok {
				r.problem = string(v)
			} else {
				r.problem = fmt.Sprintf("seed %d step %d (%s): panic: %v\n%s", seed, w.step, w.doing, p, debug.Stack())
			}
		}
		r.seed, r.digest, r.ops, r.ios = seed, w.disk.digest, w.step, w.disk.ops
		r.crashes, r.inside, r.faults = w.crashes, w.inside, w.faults
		w.s.abandon()
		simBuffers.Put(w.buf)
	}()
	w.run(*simOps)
	return r
}

func traceTo() io.Writer {
	if *simTrace {
		return os.Stdout
	}
	return nil
}

// TestSimulationRepeats runs seeds twice: the same operations reach the file system, the
// catalog's included, with the same bytes and the same answers.
func TestSimulationRepeats(t *testing.T) {
	leaktest.Check(t)
	for seed := uint64(1); seed <= 20; seed++ {
		a, b := simulateOnce(seed), simulateOnce(seed)
		if a.problem != "" {
			t.Fatal(a.problem)
		}
		if a.digest != b.digest || a.ios != b.ios {
			t.Errorf("seed %d: digest %016x after %d file operations, then %016x after %d", seed, a.digest, a.ios, b.digest, b.ios)
		}
	}
}
