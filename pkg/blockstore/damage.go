package blockstore

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
)

// damageQueue holds damage that was found and is not recorded yet. The chunk store
// knows it already: it is no dedup target from the moment it was found.
type damageQueue struct {
	mu    sync.Mutex
	found []dedup.Damage
}

// onDamage is called by a read that found a bad slot, without locks.
func (s *Store) onDamage(d dedup.Damage) {
	s.log.Error("damaged data found", "chunk", d.Slot.Chunk, "slot", d.Slot.Slot, "file", d.File, "offset", d.Offset, "reason", d.Reason)
	s.damage.mu.Lock()
	s.damage.found = append(s.damage.found, d)
	s.damage.mu.Unlock()
	s.sched.kickDamage()
}

// damageStep records what was found, durably, until it is healed.
func (s *Store) damageStep() error {
	for {
		s.damage.mu.Lock()
		n := min(len(s.damage.found), damageBatch)
		found := s.damage.found[:n:n]
		s.damage.found = s.damage.found[n:]
		s.damage.mu.Unlock()
		if n == 0 {
			return nil
		}
		if err := s.recordDamage(found); err != nil {
			s.damage.mu.Lock()
			s.damage.found = append(found, s.damage.found...)
			s.damage.mu.Unlock()
			return err
		}
	}
}

// damageBatch records go into one commit at most.
const damageBatch = 1000

func (s *Store) recordDamage(found []dedup.Damage) error {
	_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
		var ops []catalog.Op
		seen := make(map[string]bool)
		for _, d := range found {
			key := damageKey(d.Slot)
			if _, ok := view.Get(key); ok || seen[key] {
				continue
			}
			seen[key] = true
			ops = append(ops, put(key, s.newDamageRecord(d), catalog.ExpectAbsent))
		}
		return ops, nil
	})
	return err
}

// newDamageRecord is the record of what was found now.
func (s *Store) newDamageRecord(d dedup.Damage) damageRecord {
	rec := damageRecord{File: d.File, Offset: d.Offset, Reason: d.Reason, Found: s.o.Now().UTC()}
	if !d.Fingerprint.IsZero() {
		rec.Fingerprint = d.Fingerprint.String()
	}
	return rec
}

// loadDamage tells the chunk store what is recorded.
func (s *Store) loadDamage() error {
	var known []dedup.Damage
	for _, e := range s.scan(keyDamage) {
		var rec damageRecord
		if err := decode(e, &rec); err != nil {
			return err
		}
		slot, ok := parseDamageKey(e.Key)
		if !ok {
			s.log.Warn("damage record with a strange key", "key", e.Key)
			continue
		}
		d := dedup.Damage{Slot: slot, File: rec.File, Offset: rec.Offset, Reason: rec.Reason}
		if rec.Fingerprint != "" {
			fp, err := dedup.ParseFingerprint(rec.Fingerprint)
			if err != nil {
				s.log.Warn("damage record with a strange fingerprint", "key", e.Key)
			} else {
				d.Fingerprint = fp
			}
		}
		known = append(known, d)
	}
	s.chunks.LoadDamage(known)
	return nil
}

// tidyDamage deletes records of slots that are whole again or gone for good, durably: read
// and verified, copied from another copy, or collected. What is recorded is known to the
// chunk store before, so the records are read first.
func (s *Store) tidyDamage() error {
	recorded := s.scan(keyDamage)
	if len(recorded) == 0 {
		return nil
	}
	if err := s.chunks.ForgetLost(); err != nil {
		return err
	}
	var gone []catalog.Op
	for _, e := range recorded {
		if slot, ok := parseDamageKey(e.Key); ok && s.chunks.Settled(slot) {
			gone = append(gone, del(e.Key, e.Revision))
		}
	}
	for batch := range slices.Chunk(gone, damageBatch) {
		_, err := s.commit(batch...)
		if err != nil && !errors.Is(err, catalog.ErrConflict) { // healed by a fold meanwhile: another time
			return err
		}
	}
	return nil
}

// forgetDamage drops findings that were healed before they were recorded.
func (s *Store) forgetDamage(healed []dedup.Slot) {
	if len(healed) == 0 {
		return
	}
	gone := make(map[dedup.Slot]bool, len(healed))
	for _, slot := range healed {
		s.log.Info("damaged data healed", "chunk", slot.Chunk, "slot", slot.Slot)
		gone[slot] = true
	}
	s.damage.mu.Lock()
	defer s.damage.mu.Unlock()
	kept := s.damage.found[:0]
	for _, d := range s.damage.found {
		if !gone[d.Slot] {
			kept = append(kept, d)
		}
	}
	s.damage.found = kept
}

// damageKey is the catalog key of a slot's damage record.
func damageKey(slot dedup.Slot) string {
	return fmt.Sprintf("%s%s/%04d", keyDamage, slot.Chunk, slot.Slot)
}

// parseDamageKey is the inverse of damageKey.
func parseDamageKey(key string) (slot dedup.Slot, ok bool) {
	chunk, num, _ := strings.Cut(strings.TrimPrefix(key, keyDamage), "/")
	id, err := dedup.ParseChunkID(chunk)
	if err != nil {
		return slot, false
	}
	n, err := strconv.ParseUint(num, 10, 16)
	slot = dedup.Slot{Chunk: id, Slot: uint16(n)}
	return slot, err == nil && n < dedup.MaxSlots && damageKey(slot) == key
}
