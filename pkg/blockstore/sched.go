package blockstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// markDelay is how long a synced mark may wait for a record to carry it.
const markDelay = 100 * time.Millisecond

// scheduler decides when the step functions run; it knows nothing of what they do.
// Without Run nothing is scheduled and tests call the steps themselves.
type scheduler struct {
	running atomic.Bool
	folding atomic.Int64  // folds under way
	good    atomic.Int64  // folds that came to something
	fold    chan struct{} // wakes a fold worker
	collect chan struct{} // wakes the collector
	damage  chan struct{} // wakes the writer of damage records
	prepare chan struct{} // wakes the maker of journal segments
	note    chan struct{} // wakes who notes how far journals reach
	seal    chan struct{} // wakes who seals what was left unsealed

	mu     sync.Mutex
	done   chan struct{} // closed after the next fold
	claims map[*Volume]bool
}

func (c *scheduler) init() {
	for _, ch := range []*chan struct{}{&c.fold, &c.collect, &c.damage, &c.prepare, &c.note, &c.seal} {
		*ch = make(chan struct{}, 1)
	}
	c.done = make(chan struct{})
	c.claims = make(map[*Volume]bool)
}

func kick(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (c *scheduler) kickFold()    { kick(c.fold) }
func (c *scheduler) kickCollect() { kick(c.collect) }
func (c *scheduler) kickDamage()  { kick(c.damage) }
func (c *scheduler) kickPrepare() { kick(c.prepare) }
func (c *scheduler) kickNote()    { kick(c.note) }
func (c *scheduler) kickSeal()    { kick(c.seal) }

// folded returns a channel that is closed when the next fold or deletion has ended.
func (c *scheduler) folded() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

func (c *scheduler) announceFold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.done)
	c.done = make(chan struct{})
}

// markSoon writes the volume's synced mark within markDelay.
func (c *scheduler) markSoon(v *Volume) {
	if c.running.Load() && v.marking.CompareAndSwap(false, true) {
		time.AfterFunc(markDelay, func() {
			v.marking.Store(false)
			v.markStep()
		})
	}
}

// syncSoon starts a sync of the volume's journal, so that writers need not wait for one
// when too much of it is in memory.
func (c *scheduler) syncSoon(v *Volume) {
	if c.running.Load() && v.syncing.CompareAndSwap(false, true) {
		go func() {
			defer v.syncing.Store(false)
			v.syncJournal() // a failure shows in the volume's state
		}()
	}
}

// Run does the background work until ctx ends, and returns when all of it has ended: it
// folds, collects, records damage, makes journal segments ahead, notes how far journals
// reach and seals what a full disk has left unsealed. Call it once.
func (s *Store) Run(ctx context.Context) {
	s.sched.running.Store(true)
	defer s.sched.running.Store(false)
	var wg sync.WaitGroup
	for range s.o.FoldWorkers {
		wg.Go(func() { s.foldLoop(ctx) })
	}
	wg.Go(func() { s.collectLoop(ctx) })
	wg.Go(func() { loop(ctx, s.sched.damage, 0, s.recordFound) })
	wg.Go(func() { loop(ctx, s.sched.prepare, 0, s.makeSegments) })
	wg.Go(func() { loop(ctx, s.sched.note, noteDelay, s.noteReached) })
	wg.Go(func() { loop(ctx, s.sched.seal, 0, s.sealLeft) })
	wg.Wait()
}

// foldLoop folds what is due and sleeps until something is.
func (s *Store) foldLoop(ctx context.Context) {
	for ctx.Err() == nil {
		vols, wait := s.claimFold(s.o.Now())
		if len(vols) > 0 {
			did, err := s.foldTogether(vols)
			s.unclaim(vols)
			if err != nil {
				s.log.Warn("fold failed and will be tried again", "err", err)
			}
			if did {
				s.sched.kickFold() // another worker may have passed it by
			}
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-s.sched.fold:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// spareSegments wait for writers while a volume is open.
const spareSegments = 4

// noteDelay is how long a flush may be unknown to the catalog (reach.go).
const noteDelay = time.Second

// loop does step a delay after each kick, until ctx ends.
func loop(ctx context.Context, kicked <-chan struct{}, delay time.Duration, step func()) {
	for {
		select {
		case <-kicked:
		case <-ctx.Done():
			return
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		step()
	}
}

// warn logs an error that is not a full disk: that is told once for all.
func (s *Store) warn(what string, err error) {
	if err != nil && !errors.Is(err, ErrNoSpace) {
		s.log.Warn(what, "err", err)
	}
}

// recordFound records the damage that was found.
func (s *Store) recordFound() {
	if err := s.damageStep(); err != nil {
		s.log.Error("damage cannot be recorded", "err", err)
	}
}

// makeSegments makes journal segments ahead of the writers.
func (s *Store) makeSegments() {
	s.warn("journal segments cannot be made ahead", s.pool.Prepare(spareSegments))
}

// noteReached notes how far journals reach: one commit for all flushes of a noteDelay.
func (s *Store) noteReached() {
	err := s.noteStep()
	if errors.Is(err, ErrNoSpace) {
		s.sched.kickNote() // no other flush may come
	}
	s.warn("how far journals reach cannot be noted", err)
}

// sealLeft seals the chunk files that were left unsealed on a full disk: there is space
// again.
func (s *Store) sealLeft() {
	s.warn("a chunk file cannot be sealed", s.chunks.SealLeft())
}

// idleWait is how long a worker sleeps when nothing will be due by itself.
const idleWait = time.Hour

// Folds of less than smallFold journal bytes share chunks with others that are due, up
// to maxTogether of them.
const (
	smallFold   = 1 << 20
	maxTogether = 64
)

// claimFold picks the volume whose fold is due longest, so that no other worker takes
// it, and with a small one others; or it tells how long nothing will be due.
func (s *Store) claimFold(now time.Time) ([]*Volume, time.Duration) {
	pressure := !s.pool.Room() || s.isFull() && s.waiting() > 0 // both end with what a fold lets go of
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *Volume
	var bestDue time.Time
	for _, v := range s.mu.volumes {
		due, ok := v.foldDue(now, pressure)
		if !ok || s.claimed(v) {
			continue
		}
		if best == nil || due.Before(bestDue) {
			best, bestDue = v, due
		}
	}
	if best == nil {
		return nil, idleWait
	}
	if wait := bestDue.Sub(now); wait > 0 {
		return nil, wait
	}
	picked := []*Volume{best}
	for _, v := range s.mu.volumes {
		if len(picked) == maxTogether || !best.foldsSmall() {
			break
		}
		due, ok := v.foldDue(now, pressure)
		if ok && v != best && !due.After(now) && v.codec == best.codec && v.foldsSmall() && !s.claimed(v) {
			picked = append(picked, v)
		}
	}
	s.sched.mu.Lock()
	defer s.sched.mu.Unlock()
	for _, v := range picked {
		s.sched.claims[v] = true
	}
	return picked, 0
}

// foldsSmall tells whether the volume's next fold may be one of several: it is small,
// and the last one did not fail (who failed must not fail others again).
func (v *Volume) foldsSmall() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mu.layers[0].bytes < smallFold && v.mu.retry.IsZero() && v.mu.failed == nil
}

func (s *Store) claimed(v *Volume) bool {
	s.sched.mu.Lock()
	defer s.sched.mu.Unlock()
	return s.sched.claims[v]
}

func (s *Store) unclaim(vols []*Volume) {
	s.sched.mu.Lock()
	defer s.sched.mu.Unlock()
	for _, v := range vols {
		delete(s.sched.claims, v)
	}
}

// foldDue tells when the volume's next fold is due; false if there is nothing to fold.
func (v *Volume) foldDue(now time.Time, pressure bool) (time.Time, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	o := v.store.o
	oldest := v.mu.layers[0]
	if !v.foldable() {
		return time.Time{}, false
	}
	due := now
	switch {
	case len(v.mu.layers) > 1 || v.mu.deleted:
	case oldest.last <= v.mu.pos.Seq:
		return time.Time{}, false
	case !v.mu.open || v.mu.failed != nil:
	case pressure:
	case !oldest.data: // only marks: let go of the segment some time
		due = v.mu.written.Add(o.MaxAge)
	case oldest.bytes >= o.FoldBytes:
	default:
		due = v.mu.oldest.Add(o.MaxAge)
		if idle := v.mu.written.Add(o.IdleAfter); oldest.bytes >= o.IdleBytes && idle.Before(due) {
			due = idle
		}
	}
	if due.Before(v.mu.retry) {
		due = v.mu.retry
	}
	return due, true
}
