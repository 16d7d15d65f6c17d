package dedup

import (
	"errors"
	"fmt"
	"slices"
)

// Damage is a slot found bad, and where.
type Damage struct {
	Slot        Slot
	Fingerprint Fingerprint // zero when the list cannot be read
	File        string
	Offset      int64 // of the group or of what else is bad in the file, in bytes
	Reason      string
}

// DamageError is a read of a slot whose bytes are bad in every copy. It is an
// ErrCorrupt.
type DamageError struct {
	Slot
	File   string
	Offset int64 // bytes
	Reason string
	// Unread: the disk answered an error, so nobody knows what is stored there. It may
	// be read another time, other than bytes that failed a check.
	Unread bool
}

// Error names slot, file and offset.
func (e *DamageError) Error() string {
	return fmt.Sprintf("slot %s in %s at %d: %s", e.Slot, e.File, e.Offset, e.Reason)
}

// Unwrap is ErrCorrupt.
func (e *DamageError) Unwrap() error { return ErrCorrupt }

// missing is an ErrMissing that names the slot.
func missing(at Slot) error { return fmt.Errorf("slot %s: %w", at, ErrMissing) }

// badPart is a part of a copy that failed a check: slots [lo, hi).
type badPart struct {
	copy   *chunkCopy
	lo, hi int
	off    int64 // in the file
	reason string
	unread bool // see DamageError
}

func (b *badPart) Error() string { return b.reason }

// err is the error of a read of one slot in the part.
func (b *badPart) err(slot int) *DamageError {
	return &DamageError{
		Slot: Slot{b.copy.chunk.id, uint16(slot)}, File: b.copy.file.blob.Name(), Offset: b.off, Reason: b.reason,
		Unread: b.unread,
	}
}

// markBad remembers that a part of a copy is bad, and reports the slots that this
// leaves without a good copy. No lock is held.
func (s *Store) markBad(b *badPart) {
	c := b.copy
	var fps []Fingerprint
	if l, err := s.loadList(c.chunk); err == nil {
		fps = l.fps
	}
	name := c.file.blob.Name()
	var found []Damage
	s.mu.Lock()
	for i := b.lo; i < b.hi; i++ {
		if !c.good(i) {
			continue
		}
		d := Damage{Slot: Slot{c.chunk.id, uint16(i)}, File: name, Offset: b.off, Reason: b.reason}
		if i < len(fps) {
			d.Fingerprint = fps[i]
		}
		found = append(found, d)
	}
	c.setBad(b.lo, b.hi)
	if c.file.gone {
		found = nil
	}
	found = slices.DeleteFunc(found, func(d Damage) bool { return c.chunk.readable(int(d.Slot.Slot)) })
	for _, d := range found {
		s.noteDamage(d)
	}
	s.mu.Unlock()
	for _, d := range found {
		s.o.OnDamage(d)
	}
}

// markLost makes the slots of a copy without content known damage. s.mu is held for
// writing.
func (s *Store) markLost(c *chunkCopy) {
	all := c.slots()
	c.bad = &all
	for i := range int(c.chunk.slots) {
		if at := (Slot{c.chunk.id, uint16(i)}); all.has(i) && s.damage[at] == (Damage{}) {
			s.noteDamage(Damage{Slot: at, File: c.file.blob.Name(), Offset: int64(c.off), Reason: lostReason})
		}
	}
}

// markGood takes back that slots [lo, hi) of a copy are bad: they were just read and
// have their fingerprints. The disk may have failed once, or shown other bytes.
func (s *Store) markGood(c *chunkCopy, lo, hi int) {
	some := func() bool { return c.bad != nil && c.bad.any(lo, hi) }
	s.mu.RLock()
	any := some()
	s.mu.RUnlock()
	if !any {
		return // as nearly always
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !some() {
		return
	}
	bad := *c.bad
	for i := lo; i < hi; i++ {
		if c.has(i) {
			bad[i>>6] &^= 1 << (i & 63)
			s.forgetDamage(Slot{c.chunk.id, uint16(i)})
		}
	}
	if c.bad = &bad; bad == (bitmap{}) {
		c.bad = nil
	}
}

// ForgetLost forgets the damage of slots that no copy holds, good or bad: they were
// collected, or their file is gone. There is nothing left to be healed. Slots of a file
// that is there, but that this start could not read as a whole, stay: they are bad when it
// can be read again. That the files are gone is durable before anything is forgotten: else a
// power cut could bring bad slots back that nobody knows.
func (s *Store) ForgetLost() error {
	infos, err := s.dir.List()
	if err != nil {
		return err
	}
	there := make(map[FileNum]bool)
	for _, in := range infos {
		if num, _, ok := parseName(in.Name); ok {
			there[num] = true
		}
	}
	lost := s.lost(there)
	if len(lost) == 0 {
		return nil
	}
	if err := s.dir.Sync(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range lost {
		if !s.index[at.Chunk].holds(int(at.Slot)) { // or it was stored again meanwhile
			s.forgetDamage(at)
		}
	}
	return nil
}

// lost lists the damaged slots that no copy holds and no file that is there may hold.
func (s *Store) lost(there map[FileNum]bool) (lost []Slot) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for at, d := range s.damage {
		num, _, _ := parseName(d.File)
		f := s.files[num]
		if there[num] && (f == nil || f.strange || f.failed) {
			continue
		}
		if !s.index[at.Chunk].holds(int(at.Slot)) {
			lost = append(lost, at)
		}
	}
	return lost
}

// Settled tells whether nothing is left to be known of damage of a slot: a copy that is
// durable holds it and is not known to be bad there, or no copy holds it and its damage was
// forgotten.
func (s *Store) Settled(at Slot) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ch, i := s.index[at.Chunk], int(at.Slot)
	if ch.holds(i) {
		return slices.ContainsFunc(ch.copies, func(c *chunkCopy) bool { return c.good(i) && c.end() <= c.file.synced })
	}
	_, known := s.damage[at]
	return !known
}

// noteDamage enters a damaged slot in the maps. s.mu is held for writing.
func (s *Store) noteDamage(d Damage) {
	old, known := s.damage[d.Slot]
	s.damage[d.Slot] = d
	if known && old.Fingerprint == d.Fingerprint {
		return
	}
	if !d.Fingerprint.IsZero() {
		s.damagedFPs[d.Fingerprint] = append(s.damagedFPs[d.Fingerprint], d.Slot)
	}
}

// forgetDamage takes a slot out of the maps. s.mu is held for writing.
func (s *Store) forgetDamage(at Slot) {
	d, ok := s.damage[at]
	if !ok {
		return
	}
	delete(s.damage, at)
	left := slices.DeleteFunc(slices.Clone(s.damagedFPs[d.Fingerprint]), func(o Slot) bool { return o == at })
	if len(left) == 0 {
		delete(s.damagedFPs, d.Fingerprint)
	} else {
		s.damagedFPs[d.Fingerprint] = left
	}
}

// LoadDamage makes damage known that was found before this start. It is called after
// Open, before the first Writer. A record names one file in which its slot is bad; what
// other files hold of it is read, and is good if it has its fingerprint.
func (s *Store) LoadDamage(ds []Damage) {
	for _, d := range ds {
		num, _, ok := parseName(d.File)
		i := int(d.Slot.Slot)
		var others []*chunkCopy
		s.mu.Lock()
		ch := s.index[d.Slot.Chunk]
		if ok && ch != nil {
			for _, c := range ch.copies {
				switch {
				case !c.has(i):
				case c.file.num == num:
					c.setBad(i, i+1)
				case c.good(i):
					others = append(others, c)
				}
			}
		}
		s.mu.Unlock()
		for _, c := range others {
			s.verifySlot(c, i, d.Fingerprint)
		}
		s.mu.Lock()
		if ch == nil || !ch.readable(i) {
			s.noteDamage(d)
		}
		s.mu.Unlock()
	}
}

// verifySlot reads a slot of a copy and marks what is bad. fp is its fingerprint where no
// list tells it; zero: not known.
func (s *Store) verifySlot(c *chunkCopy, i int, fp Fingerprint) {
	content := make([]byte, BlockSize)
	_, err := s.readFrom(c, i, i+1, content)
	bad, ok := errors.AsType[*badPart](err)
	if err == nil {
		bad = s.prove(c, i, content, fp)
	} else if !ok {
		bad = &badPart{copy: c, lo: i, hi: i + 1, off: int64(c.off), reason: "read: " + err.Error(), unread: true}
	}
	if bad != nil {
		s.markBad(bad)
	}
}

// setBad makes slots [lo, hi), as far as the copy has them, known to be bad in it. Store.mu
// is held for writing.
func (c *chunkCopy) setBad(lo, hi int) {
	var bad bitmap // replaced, not written to: other copies of the pointer may be read
	if c.bad != nil {
		bad = *c.bad
	}
	for i := lo; i < hi; i++ {
		if c.has(i) {
			bad.set(i)
		}
	}
	c.bad = &bad
}

// Damaged lists the slots that are known bad or lost in every copy, by address.
func (s *Store) Damaged() []Damage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Damage
	for at, d := range s.damage {
		if ch := s.index[at.Chunk]; ch == nil || !ch.readable(int(at.Slot)) {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b Damage) int {
		if c := slices.Compare(a.Slot.Chunk[:], b.Slot.Chunk[:]); c != 0 {
			return c
		}
		return int(a.Slot.Slot) - int(b.Slot.Slot)
	})
	return out
}

// damagedLike lists the slots with this content that no copy holds well.
func (s *Store) damagedLike(fp Fingerprint) []Slot {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Slot
	for _, at := range s.damagedFPs[fp] {
		if ch := s.index[at.Chunk]; ch != nil && !ch.readable(int(at.Slot)) {
			out = append(out, at)
		}
	}
	return out
}
