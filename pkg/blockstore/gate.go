package blockstore

import "sync"

// gate counts the operations that hold dedup hits (folds), so that the collector can
// wait until all that began before its condemnation have ended. An operation that
// waits for space or for a cut must end first and begin again later: so collection
// never waits for one who waits for it.
type gate struct {
	mu     sync.Mutex
	next   uint64
	active map[uint64]struct{}
}

// begin starts an operation; end it with the result.
func (g *gate) begin() (end func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active == nil {
		g.active = make(map[uint64]struct{})
	}
	n := g.next
	g.next++
	g.active[n] = struct{}{}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.active, n)
	}
}

// mark is a point in time: drained tells whether all that began before it has ended.
func (g *gate) mark() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.next
}

func (g *gate) drained(mark uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for n := range g.active {
		if n < mark {
			return false
		}
	}
	return true
}
