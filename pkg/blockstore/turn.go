package blockstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// turn is what collections and checks take one after the other: what is checked must not
// be collected meanwhile. Who came first gets it first. newTurn makes one.
type turn struct {
	free chan struct{} // holds a token while nobody has the turn

	mu struct {
		sync.Mutex
		holder *yielding // who has it, if it is given up for space; else nil
	}
}

func newTurn() *turn {
	t := &turn{free: make(chan struct{}, 1)}
	t.free <- struct{}{}
	return t
}

// yielding is a context that also ends when the turn is to be given up. It does not wake
// who waits for its end: whoever works with it asks.
type yielding struct {
	context.Context
	asked atomic.Bool
}

// errGiveWay ends a check that somebody else's need for space is more urgent than.
var errGiveWay = errors.New("space is needed")

func (y *yielding) Err() error {
	if y.asked.Load() {
		return errGiveWay
	}
	return y.Context.Err()
}

// take waits for the turn, or for the end of ctx. What the caller does with it ends with
// holder when space is needed; nil: it goes on to its end. leave gives the turn back.
func (t *turn) take(ctx context.Context, holder *yielding) error {
	select {
	case <-t.free:
	case <-ctx.Done():
		return ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.holder = holder
	return nil
}

// try takes the turn if nobody has it.
func (t *turn) try() bool {
	select {
	case <-t.free:
		return true
	default:
		return false
	}
}

// leave gives the turn to who waits for it longest.
func (t *turn) leave() {
	t.mu.Lock()
	t.mu.holder = nil
	t.mu.Unlock()
	t.free <- struct{}{}
}

// ask asks who has the turn to give it up soon, if that is possible.
func (t *turn) ask() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.holder != nil {
		t.mu.holder.asked.Store(true)
	}
}
