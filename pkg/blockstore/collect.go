package blockstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
)

// Live shares below which a file is rewritten: automatic collections avoid work that
// frees little; one by hand is thorough.
const (
	autoMinLive   = 0.75
	manualMinLive = 0.95
)

// collector is what is known between collections.
type collector struct {
	turn *turn // one collection at a time

	mu struct {
		sync.Mutex
		pending int64 // logical bytes given up since the last marking, an upper estimate
		held    int64 // of those given up before, what markings found still named by others
		garbage int64 // stored bytes that nobody named and the last collection left
	}
}

// The estimate. Bytes are given up when a fold writes over them or discards them, and
// when the last volume with an image is deleted. That is an upper bound: a snapshot, a
// clone or another volume may have them too. A marking finds out; what it finds still
// named is held, and deleting a snapshot gives up its share of that. So what nobody names
// is never more than pending and held together, nothing is marked while nothing is given
// up, and once all is given up all of it is pending.
//
// A clean stop keeps both in the store header. After another everything stored counts as
// pending, so that one marking finds out.

// addGarbage notes that some logical bytes may have become garbage. It takes the same
// time whatever the store holds.
func (s *Store) addGarbage(n int64) {
	if n <= 0 {
		return
	}
	s.coll.mu.Lock()
	s.coll.mu.pending += n
	s.coll.mu.Unlock()
	if s.warrantsCollection() {
		s.sched.kickCollect()
	}
}

// marked takes what a marking has found: stored bytes of garbage, and how many stored
// bytes the store has for a logical one. taken is the estimate that it was to check. It
// returns how many logical bytes have become garbage since the last collection.
func (c *collector) marked(taken, garbage int64, ratio float64) (found int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found = max(0, garbage-c.mu.garbage); ratio > 0 {
		found = int64(float64(found) / ratio)
	}
	c.mu.held = max(0, c.mu.held+taken-found)
	return found
}

// swept takes what is left of the garbage after a collection.
func (c *collector) swept(garbage int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.garbage = garbage
}

// takePending restarts the estimate when a marking begins.
func (c *collector) takePending() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.mu.pending
	c.mu.pending = 0
	return n
}

// takeBack is for a collection that came to nothing.
func (c *collector) takeBack(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.pending += n
}

// share takes one of n equal parts of what is held.
func (c *collector) share(n int) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	part := c.mu.held / int64(max(n, 1))
	c.mu.held -= part
	return part
}

func (c *collector) known() (pending, garbage int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.pending, c.mu.garbage
}

// CollectResult says what a collection did.
type CollectResult struct {
	FreedBytes   int64 `json:"freed"`   // of chunk files that went, less those that took their place
	GarbageBytes int64 `json:"garbage"` // found by the marking
	Nodes        int64 `json:"nodes"`   // map nodes that were read, each once
}

// phase of a collection.
type phase int

const (
	phaseMark phase = iota
	phaseWait
	phaseSweep
	phaseDone
)

// collection is one run: mark, condemn, wait, mark again, sweep (design: condemn and
// recheck). It is for one goroutine.
type collection struct {
	s       *Store
	minLive float64
	horizon dedup.Horizon
	live    dedup.LiveSet
	roots   []dedup.Slot // to be marked
	plan    *dedup.Collection
	gate    uint64
	phase   phase
	garbage int64
	nodes   int64        // marked
	taken   int64        // of the estimate; from the marking on, what it found of that
	breathe func() error // called now and then while a marking lasts: its error ends it
}

// newCollection takes the view that the first marking works on.
func (s *Store) newCollection(minLive float64) (*collection, error) {
	c := &collection{s: s, minLive: minLive, live: make(dedup.LiveSet), breathe: noBreath}
	c.taken = s.coll.takePending()
	c.horizon = s.chunks.Horizon()
	var err error
	if c.roots, err = rootsOf(s.cat.View()); err != nil {
		c.abort()
	}
	return c, err
}

// abort gives back what the collection has taken.
func (c *collection) abort() {
	if c.plan != nil {
		c.plan.Abort()
	}
	c.s.coll.takeBack(c.taken)
	c.taken = 0
}

// rootsOf lists every root that a view of the catalog names, each once.
func rootsOf(view catalog.View) ([]dedup.Slot, error) {
	seen := make(map[dedup.Slot]bool)
	var out []dedup.Slot
	add := func(r *rootRef) {
		if slot := r.slot(); !slot.IsZero() && !seen[slot] {
			seen[slot] = true
			out = append(out, slot)
		}
	}
	for _, e := range view.Scan(keyVolume, "", 0) {
		var rec volumeRecord
		if err := decode(e, &rec); err != nil {
			return nil, err
		}
		add(rec.Root)
	}
	for _, e := range view.Scan(keyCut, "", 0) {
		var rec cutRecord
		if err := decode(e, &rec); err != nil {
			return nil, err
		}
		add(rec.Root)
	}
	return out, nil
}

// collectStep does a bounded piece of the collection. wait says that it cannot go on
// before a fold that began earlier has ended. After an error the collection is void;
// nothing reachable was dropped (a reachable node that cannot be read stops the
// marking: what lies below it is not known, so nothing may go).
func (s *Store) collectStep(c *collection) (more, wait bool, err error) {
	switch c.phase {
	case phaseMark:
		if len(c.roots) > 0 {
			root := c.roots[0]
			c.roots = c.roots[1:]
			return true, false, c.mark(root)
		}
		if c.plan == nil {
			c.garbage = s.chunks.GarbageBytes(c.live)
			c.taken = s.coll.marked(c.taken, c.garbage, ratioOf(s.chunks.Stats()))
			c.plan = s.chunks.Plan(c.live, c.horizon, dedup.PlanOptions{MinLive: c.minLive, MergeSmall: true})
			c.plan.Condemn()
			c.gate = s.gate.mark()
			c.phase = phaseWait
			return true, false, nil
		}
		c.plan.Recheck(c.live)
		c.phase = phaseSweep
		return true, false, nil
	case phaseWait:
		if !s.gate.drained(c.gate) {
			return true, true, nil
		}
		// One view of the catalog: what was named by then stays. Nodes marked before are
		// not walked again; what only they reached is kept for another time. The empty
		// update waits for the commits before it: one whose outcome is not known may
		// name what would be dropped, and then nothing may be.
		var view catalog.View
		_, err = s.update(func(v catalog.View) ([]catalog.Op, error) {
			view = v
			return nil, nil
		})
		if err == nil {
			c.roots, err = rootsOf(view)
		}
		c.phase = phaseMark
		return true, false, err
	case phaseSweep:
		more, err := c.plan.Step()
		if !more && err == nil {
			c.phase = phaseDone
		}
		s.pool.Wake()
		return more, false, err
	}
	return false, false, nil
}

// mark adds everything that root reaches to the live set.
func (c *collection) mark(root dedup.Slot) error {
	return c.s.tree.Walk(root, func(node dedup.Slot, level int, extents []blockmap.Extent) (bool, error) {
		c.live.Add(node)
		if c.nodes++; c.nodes%breathEvery == 0 {
			if err := c.breathe(); err != nil {
				return false, err
			}
		}
		for _, e := range extents {
			if !e.IsHole() {
				c.live.AddRange(e.Chunk, e.Slot, int(e.Count))
			}
		}
		return true, nil
	}, blockmap.WalkOptions{Skip: func(node dedup.Slot) bool {
		return c.live.Has(node)
	}})
}

// Collect runs a whole collection: it returns the space of what was overwritten,
// discarded or deleted before the call, as far as it is folded. Safe against
// everything that runs meanwhile.
func (s *Store) Collect(ctx context.Context) (CollectResult, error) {
	if err := s.coll.turn.take(ctx, nil); err != nil {
		return CollectResult{}, fmt.Errorf("collect: %w", err)
	}
	defer s.leaveTurn()
	if err := s.sealOpen(); err != nil {
		return CollectResult{}, fmt.Errorf("collect: %w", err)
	}
	return s.runCollection(ctx, manualMinLive, 0, noBreath)
}

// leaveTurn ends a collection or a check that somebody asked for: what was to be collected
// meanwhile is due.
func (s *Store) leaveTurn() {
	s.coll.turn.leave()
	s.sched.kickCollect()
}

// sealOpen makes the open chunk file one that can be collected, at the cost of the
// reserve if the disk is full. Without any, that file is not collected this time: others may
// need no space to go.
func (s *Store) sealOpen() error {
	err := s.onReserve(s.chunks.SealOpen)
	if errors.Is(err, ErrNoSpace) {
		s.log.Warn("open chunk file is not collected", "err", err)
		return nil
	}
	return err
}

// breathEvery is how many nodes a marking reads between two breaths: some milliseconds.
const breathEvery = 64

func noBreath() error { return nil }

// runCollection collects; on a full disk it gives up parts of the reserve until it gets
// through. breathe is called all along.
func (s *Store) runCollection(ctx context.Context, minLive float64, rest int, breathe func() error) (CollectResult, error) {
	defer s.reserve.ended()
	s.chunks.Reread() // a map node that cannot be read ends a marking
	freed := int64(0)
	for {
		c, err := s.newCollection(minLive)
		c.breathe = func() error { return cmp.Or(ctx.Err(), breathe()) }
		if err == nil {
			err = s.stepCollection(ctx, c, rest)
		}
		if c.plan != nil {
			freed += c.plan.Freed()
		}
		if errors.Is(err, ErrNoSpace) && s.lendSpace() {
			continue
		}
		s.pool.Wake()
		if err != nil {
			return CollectResult{}, fmt.Errorf("collect: %w", err)
		}
		if err := s.tidyDamage(); err != nil {
			s.log.Warn("records of healed damage cannot be deleted", "err", err)
		}
		s.log.Info("collected", "freed_bytes", freed, "garbage_bytes", c.garbage, "nodes", c.nodes)
		s.coll.swept(max(0, c.garbage-freed))
		return CollectResult{FreedBytes: freed, GarbageBytes: c.garbage, Nodes: c.nodes}, nil
	}
}

// minRest is the shortest rest: timers are not good for less, and a marking has a step
// for every root.
const minRest = 5 * time.Millisecond

// stepCollection steps a collection to its end. It rests after some steps for rest times
// as long as they took, but not on a full disk.
func (s *Store) stepCollection(ctx context.Context, c *collection, rest int) error {
	owed := time.Duration(0)
	for more, wait := true, false; more; {
		began := s.o.Now()
		folded := s.sched.folded()
		var err error
		more, wait, err = s.collectStep(c)
		if err == nil {
			err = cmp.Or(ctx.Err(), c.breathe())
		}
		if err != nil {
			c.abort()
			return err
		}
		if owed += time.Duration(rest) * s.o.Now().Sub(began); s.isFull() {
			owed = 0
		}
		switch {
		case wait:
			select {
			case <-folded:
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		case owed >= minRest:
			sleep(ctx, min(owed, time.Second))
			owed = 0
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// autoRest keeps automatic collections to about a third of the time.
const autoRest = 2

// collectLoop collects when the estimated garbage warrants it. While the disk is full it
// collects what it can, once and then again whenever something was given up, and looks
// each second whether there is space.
func (s *Store) collectLoop(ctx context.Context) {
	swept, sick := false, false // since the disk became full: collected; no collection gets through
	for {
		select {
		case <-s.sched.collect:
		case <-ctx.Done():
			return
		}
		if !s.isFull() {
			swept, sick = false, false
			if s.warrantsCollection() {
				s.collectNow(ctx, false) // else the end of what keeps it off wakes us
			}
			continue
		}
		if pending, _ := s.coll.known(); pending > 0 || !swept {
			if !sick {
				s.coll.turn.ask() // a check
			}
			var ran bool
			swept, ran = s.collectNow(ctx, true)
			sick = ran && !swept
		}
		s.probeSpace()
		if s.isFull() {
			sleep(ctx, probeEvery)
			s.sched.kickCollect()
		}
	}
}

// collectNow runs one collection in the background: in its own time, or, on a full disk,
// at once and thoroughly. It tells whether it got through, and whether it ran: it does not
// wait for one that somebody asked for, nor for a check. The end of that wakes the collector.
func (s *Store) collectNow(ctx context.Context, full bool) (through, ran bool) {
	if !s.coll.turn.try() {
		return false, false
	}
	defer s.coll.turn.leave()
	rest, minLive := autoRest, autoMinLive
	var err error
	if full {
		rest, minLive = 0, manualMinLive
		err = s.sealOpen()
	}
	if err == nil {
		_, err = s.runCollection(ctx, minLive, rest, s.lookForSpace())
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("collection failed and will be tried again", "err", err)
	}
	return err == nil, true
}

// probeEvery is how often a full disk is looked at.
const probeEvery = time.Second

// lookForSpace looks each probeEvery whether a full disk has space, as often as it is
// called: nobody else does while the collector is busy.
func (s *Store) lookForSpace() func() error {
	var looked time.Time
	return func() error {
		if now := s.o.Now(); s.isFull() && now.Sub(looked) >= probeEvery {
			looked = now
			s.probeSpace()
		}
		return nil
	}
}

func (s *Store) isFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.full
}

// minGarbage is the least that starts a collection by itself, in bytes.
const minGarbage = 256 << 20

// warrantsCollection compares what was given up since the last marking, taken at the
// store's average reduction, with the threshold.
func (s *Store) warrantsCollection() bool {
	pending, _ := s.coll.known()
	if pending == 0 || (s.o.GarbageBytes == 0 && pending < minGarbage) {
		return false
	}
	st := s.chunks.Stats()
	limit := s.o.GarbageBytes
	if limit == 0 {
		limit = max(st.Stored/4, minGarbage)
	}
	return float64(pending)*ratioOf(st) >= float64(limit)
}

// ratioOf is how many bytes the store keeps for a byte of distinct blocks; 1 without any.
func ratioOf(st dedup.Stats) float64 {
	if st.Slots == 0 {
		return 1
	}
	return float64(st.Stored) / float64(st.Slots*BlockSize)
}
