// Package attachtest has an engine and a host in memory for tests of what stands above
// them: packages attach, admin and driver and the commands. Engine keeps volumes as maps
// of blocks, durably as far as the test's process lives; Host is exporttest's. Both
// report what they do to one Trace, which can play a crash at any step.
package attachtest

import (
	"errors"
	"slices"
	"sync"
)

// ErrCrash is what everything returns after the crash.
var ErrCrash = errors.New("attachtest: crashed")

// Trace is the order in which an Engine and a Host did things. The zero value records
// and never crashes. Safe for concurrent use.
type Trace struct {
	mu struct {
		sync.Mutex
		steps   []string
		crashIn int // steps left until the crash; 0 means never
		crashed bool
	}
}

// CrashIn makes the n-th step from now (from 1 on) and all after it fail with ErrCrash
// and change nothing; 0 ends a crash.
func (t *Trace) CrashIn(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.crashIn, t.mu.crashed = n, false
}

// Crashed tells whether a crash came.
func (t *Trace) Crashed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.crashed
}

// Steps lists what was done since the last call of Steps.
func (t *Trace) Steps() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	steps := slices.Clone(t.mu.steps)
	t.mu.steps = nil
	return steps
}

// step is called before each thing that changes the world.
func (t *Trace) step(what string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.crashed {
		return ErrCrash
	}
	if t.mu.crashIn > 0 {
		if t.mu.crashIn--; t.mu.crashIn == 0 {
			t.mu.crashed = true
			return ErrCrash
		}
	}
	t.mu.steps = append(t.mu.steps, what)
	return nil
}
