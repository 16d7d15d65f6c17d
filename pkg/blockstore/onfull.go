package blockstore

import (
	"fmt"
	"time"
)

// EventKind says what has happened.
type EventKind string

const (
	// StoreFull: only the reserve is left; Err is what met the full disk.
	StoreFull EventKind = "StoreFull"
	// StoreSpaceBack: the reserve is whole again and there is room.
	StoreSpaceBack EventKind = "StoreSpaceBack"
	// VolumeWaiting: the first of a volume's writes waits for space.
	VolumeWaiting EventKind = "VolumeWaiting"
	// VolumeFailed: the volume failed closed (I8); Err says why.
	VolumeFailed EventKind = "VolumeFailed"
)

// Event is told to Options.Events. Volume is an ID, empty for what is the store's.
type Event struct {
	Kind   EventKind
	Volume string
	Err    error
}

func checkOnFull(onFull string) error {
	if onFull != OnFullWait && onFull != OnFullError {
		return fmt.Errorf("onFull %q: %s and %s are allowed: %w", onFull, OnFullWait, OnFullError, ErrInvalid)
	}
	return nil
}

// SetOnFull says durably what the volume's writes do on a full disk, attached or not. Those
// that wait already are ended at once by OnFullError; OnFullWait lets the next ones wait.
// It works on a full store.
func (s *Store) SetOnFull(id, onFull string) (VolumeInfo, error) {
	if err := checkID('v', id); err != nil {
		return VolumeInfo{}, err
	}
	if err := checkOnFull(onFull); err != nil {
		return VolumeInfo{}, err
	}
	err := s.updateVolume(id, func(rec *volumeRecord) error {
		rec.OnFull = onFull
		return nil
	})
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("set onFull: %w", err)
	}
	s.applyOnFull(id)
	return s.Volume(id)
}

// applyOnFull takes over what the catalog says; of two that change it at once both apply
// the last.
func (s *Store) applyOnFull(id string) {
	v := s.loaded(id)
	if v == nil {
		return
	}
	v.mu.Lock()
	v.loadOnFull()
	if v.errorsWhenFull() {
		v.mu.giveUp = !v.mu.starved.IsZero()
	} else {
		v.fed() // what was refused does not wait; who waits says so again
	}
	v.mu.Unlock()
	s.pool.Wake()
}

// loadOnFull reads the record's setting. Called with v.mu held or before v is shared; of
// the catalog it only takes memory's locks.
func (v *Volume) loadOnFull() {
	var rec volumeRecord
	if _, err := get(v.store.cat, keyVolume+v.id, &rec); err == nil {
		v.onFull.Store(rec.OnFull)
	}
}

func (v *Volume) errorsWhenFull() bool { return v.onFull.Load() == OnFullError }

// holeWait is how long a hole waits on a full disk for a fold that makes room for it:
// reads wait behind it, and there may be no such fold, or none that succeeds.
const holeWait = 5 * time.Second

// holeWaiter is a hole's wait for room, from its first begin to its end.
type holeWaiter struct {
	end  time.Time // on a full disk
	look time.Time // for folds, next
	good int64     // folds that had ended well at the last look
}

func (v *Volume) newHoleWaiter() *holeWaiter {
	end := v.store.o.Now().Add(holeWait)
	return &holeWaiter{end: end, look: end, good: v.store.sched.good.Load()}
}

// awaitRoom waits until room is closed, or as long as a full disk may take. since is when
// the caller first found the disk full, zero if it has not; it returns that time, and
// ErrNoSpace when the wait is over, for a hole after holeWait in all. A wait for a fold alone
// has no limit, but for a hole when no fold succeeds. hole is nil for a write.
func (v *Volume) awaitRoom(room <-chan struct{}, since time.Time, hole *holeWaiter) (time.Time, error) {
	if !v.store.isFull() {
		return since, v.awaitFold(room, hole)
	}
	now := v.store.o.Now()
	if since.IsZero() {
		since = now
	}
	began, giveUp := v.starve(now)
	if hole != nil && !giveUp {
		if !closes(room, hole.end.Sub(now)) {
			return since, fmt.Errorf("volume %s: no fold makes room for a hole: %w", v.id, ErrNoSpace)
		}
		return since, nil
	}
	if !v.errorsWhenFull() {
		<-room
		return since, nil
	}
	if began.Before(since) {
		since = began
	}
	left := since.Add(v.store.o.FullTimeout).Sub(now)
	if giveUp || left <= 0 {
		return since, fmt.Errorf("volume %s: the disk below %s is full since %s; delete volumes or snapshots, or grow it: %w",
			v.id, v.store.dir, since.UTC().Format(time.RFC3339), ErrNoSpace)
	}
	closes(room, left)
	return since, nil
}

// closes tells whether room is closed within d.
func closes(room <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-room:
		return true
	case <-timer.C:
		return false
	}
}

// awaitFold waits until room is closed by a fold. A hole is refused when for a holeWait none
// has ended well and none is under way.
func (v *Volume) awaitFold(room <-chan struct{}, hole *holeWaiter) error {
	if hole == nil {
		<-room
		return nil
	}
	for !closes(room, hole.look.Sub(v.store.o.Now())) {
		good := v.store.sched.good.Load()
		if good == hole.good && v.store.sched.folding.Load() == 0 {
			return fmt.Errorf("volume %s: no fold makes room for a hole: none succeeds: %w", v.id, ErrNoSpace)
		}
		hole.good, hole.look = good, v.store.o.Now().Add(holeWait)
	}
	return nil
}

// starve notes that a record waits for space, and tells since when one does and whether
// the wait is to end.
func (v *Volume) starve(now time.Time) (since time.Time, giveUp bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.usable() != nil {
		return now, false // it has ended meanwhile, and that wakes who waits
	}
	if v.mu.starved.IsZero() {
		v.mu.starved = now
		v.store.sched.kickFold() // all there is to fold is due
		v.store.log.Warn("volume waits for disk space", "volume_id", v.id, "on_full", v.onFull.Load())
		v.store.o.Events(Event{Kind: VolumeWaiting, Volume: v.id})
	}
	return v.mu.starved, v.mu.giveUp
}

// fed ends a wait for space. Called with v.mu held.
func (v *Volume) fed() { v.mu.starved, v.mu.giveUp = time.Time{}, false }

// feed ends the wait of one volume's records: those that still want space say so again.
func (v *Volume) feed() {
	v.mu.Lock()
	v.fed()
	v.mu.Unlock()
	v.store.pool.Wake()
}

// waiting counts the volumes whose records wait for space.
func (s *Store) waiting() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.mu.volumes {
		v.mu.RLock()
		if !v.mu.starved.IsZero() {
			n++
		}
		v.mu.RUnlock()
	}
	return n
}

// feedAll ends the waits of all volumes: those that still want space say so again.
func (s *Store) feedAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.mu.volumes {
		v.mu.Lock()
		v.fed()
		v.mu.Unlock()
	}
}
