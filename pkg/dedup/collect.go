package dedup

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/k8ns/granary/pkg/wal"
)

// LiveSet is the live slots by chunk, as a marking found them: bit i of word i/64 is
// slot i.
type LiveSet map[ChunkID]*[16]uint64

// Add marks a slot live.
func (l LiveSet) Add(at Slot) { l.AddRange(at.Chunk, at.Slot, 1) }

// AddRange marks slots [first, first+n) of a chunk live.
func (l LiveSet) AddRange(id ChunkID, first uint16, n int) {
	b := l[id]
	if b == nil {
		b = new([16]uint64)
		l[id] = b
	}
	for i := int(first); i < min(int(first)+n, MaxSlots); i++ {
		(*bitmap)(b).set(i)
	}
}

// Has tells whether a slot is live.
func (l LiveSet) Has(at Slot) bool {
	b := l[at.Chunk]
	return b != nil && at.Slot < MaxSlots && (*bitmap)(b).has(int(at.Slot))
}

// of is the live slots of a chunk.
func (l LiveSet) of(id ChunkID) bitmap {
	if b := l[id]; b != nil {
		return bitmap(*b)
	}
	return bitmap{}
}

// Horizon is a moment in the life of a Store: what was appended before it.
type Horizon struct{ seq uint64 }

// Horizon is now. A plan made with it never touches what is appended later, so a
// marking that begins after the call sees every reference that counts.
func (s *Store) Horizon() Horizon {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return Horizon{s.seq}
}

// PlanOptions are the choices of a Collection.
type PlanOptions struct {
	// MinLive is the part of its bytes that a file must have live to be left alone;
	// 0 means 0.75.
	MinLive float64
	// MergeSmall also picks files of less than half of Options.FileBytes, if there are
	// two of them or more.
	MergeSmall bool
	// GroupShift makes larger groups of rewritten data: at least 1<<GroupShift blocks.
	// 0 keeps them as they are.
	GroupShift int
}

// Collection is one run of the collector: it drops slots that nobody names from the
// files that Plan picked. The order of calls (FORMAT.md, section 8, 5) is Horizon,
// marking, Plan, Condemn, wait until every operation begun before has ended, marking
// again, Recheck, Step until there is no more. It is not safe for concurrent use;
// readers and Writers go on meanwhile.
type Collection struct {
	s     *Store
	o     PlanOptions
	live  LiveSet
	files []*file // picked; those before next are done
	next  int
	ended bool

	outs  [3]*file   // by kind: files being written, not in the index
	moved []movedOld // copied into outs, not dropped yet
	freed atomic.Int64
}

// movedOld is a file whose live slots are in outs, or in the other copies listed.
type movedOld struct {
	file  *file
	extra []extraSlot
}

// extraSlot is a live slot that is not copied because another copy holds it.
type extraSlot struct {
	copy *chunkCopy // the one that is dropped
	slot int
}

// Plan picks the sealed files that are worth collecting: with dead bytes enough, or with
// bad ones that nobody needs; the dead ones first. Only
// one Collection is under way at a time: while there is one, Plan picks nothing.
func (s *Store) Plan(live LiveSet, h Horizon, o PlanOptions) *Collection {
	if o.MinLive == 0 {
		o.MinLive = 0.75
	}
	c := &Collection{s: s, o: o, live: live, ended: true}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.collecting || s.closed || s.o.ReadOnly {
		return c
	}
	type candidate struct {
		f    *file
		live float64
	}
	var picked, small []candidate
	for _, f := range s.files {
		if !f.sealed || f.failed || f.strange || f.private || f.seq > h.seq {
			continue
		}
		bytes, damaged := s.liveBytes(f, live)
		part := float64(bytes) / float64(max(f.size, 1))
		switch {
		case damaged:
		case bytes == 0 || part < o.MinLive || f.rotten():
			picked = append(picked, candidate{f, part})
		case o.MergeSmall && f.size < s.o.FileBytes/2:
			small = append(small, candidate{f, part})
		}
	}
	if len(small) > 1 {
		picked = append(picked, small...)
	}
	slices.SortFunc(picked, func(a, b candidate) int {
		if (a.live == 0) != (b.live == 0) || a.live != b.live {
			if a.live < b.live {
				return -1
			}
			return 1
		}
		return byNumber(a.f, b.f)
	})
	for _, p := range picked {
		c.files = append(c.files, p.f)
	}
	if len(c.files) > 0 {
		s.collecting, c.ended = true, false
	}
	return c
}

// rotten tells whether the file has bad slots. If none of them is needed (liveBytes
// tells), writing the rest anew gets rid of them, and of what check says of them.
// Store.mu is held.
func (f *file) rotten() bool {
	return slices.ContainsFunc(f.copies, func(c *chunkCopy) bool { return c.bad != nil })
}

// liveBytes estimates how many stored bytes of a file must stay. damaged tells that a
// live slot is bad in it and good nowhere. s.mu is held.
func (s *Store) liveBytes(f *file, live LiveSet) (bytes int64, damaged bool) {
	for _, c := range f.copies {
		slots := c.slots()
		all := live.of(c.chunk.id)
		keep := slots.and(&all)
		if keep == (bitmap{}) {
			continue
		}
		if len(c.chunk.copies) > 1 || c.bad != nil {
			for i := range int(c.chunk.slots) {
				if !keep.has(i) {
					continue
				}
				if k := keeper(c.chunk, i); k == nil && c.bad != nil && c.bad.has(i) {
					damaged = true
				} else if k != nil && k != c {
					keep[i>>6] &^= 1 << (i & 63)
				}
			}
		}
		bytes += c.bytes() * int64(keep.count()) / int64(c.present)
	}
	return bytes, damaged
}

// keeper is the copy that a slot is counted in: of the good ones in sealed files the
// fullest, of those the newest; nil if there is none. Store.mu is held.
func keeper(ch *chunk, slot int) *chunkCopy {
	var best *chunkCopy
	for _, c := range ch.copies {
		if c.good(slot) && c.file.sealed && (best == nil || c.present > best.present) {
			best = c
		}
	}
	return best
}

// GarbageBytes estimates how many bytes of sealed files nobody names.
func (s *Store) GarbageBytes(live LiveSet) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var garbage int64
	for _, f := range s.files {
		if !f.sealed {
			continue
		}
		stored := int64(0)
		for _, c := range f.copies {
			stored += c.bytes()
		}
		bytes, _ := s.liveBytes(f, live)
		garbage += stored - bytes
	}
	return garbage
}

// Files is how many files were picked.
func (c *Collection) Files() int { return len(c.files) }

// Condemn makes the dead slots of the picked files unusable: from here on no Writer
// refers to them, and chunks that have one are appended anew.
func (c *Collection) Condemn() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, f := range c.files {
		for _, cp := range f.copies {
			live, slots := c.live.of(cp.chunk.id), cp.slots()
			if dead := slots.minus(&live); dead != (bitmap{}) {
				cp.condemned = &dead
			}
		}
	}
	c.live = nil
}

// Recheck keeps what a second marking found live: it is usable again.
func (c *Collection) Recheck(live LiveSet) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, f := range c.files[c.next:] {
		for _, cp := range f.copies {
			if cp.condemned == nil {
				continue
			}
			now := live.of(cp.chunk.id)
			if dead := cp.condemned.minus(&now); dead != (bitmap{}) {
				cp.condemned = &dead
			} else {
				cp.condemned = nil
			}
		}
	}
}

// Freed is how many bytes of chunk files the steps so far have freed. It may be
// called at any time.
func (c *Collection) Freed() int64 { return c.freed.Load() }

// Step works on one file: a dead one is removed; of another the live slots are copied
// into a file of the collection, and it is removed once that is sealed. more tells
// whether there is a further step. A file with a bad live slot is left alone. After
// an error the collection has ended; nothing was lost. ErrNoSpace: there was no room
// for the copies.
func (c *Collection) Step() (more bool, err error) {
	if c.ended {
		return false, nil
	}
	if c.next == len(c.files) {
		err := c.finish()
		c.end()
		return false, err
	}
	f := c.files[c.next]
	plans, extra, ok := c.examine(f)
	if ok && len(plans) > 0 {
		ok, err = c.copyLive(plans)
	}
	switch {
	case errors.Is(err, ErrNoSpace) && len(c.moved) > 0:
		if err = c.finish(); err == nil {
			return true, nil // that freed something: the same file again
		}
	case err != nil:
	case !ok:
		c.spare(f)
		c.next++
	case len(plans) == 0:
		c.next++
		err = c.drop([]movedOld{{f, extra}})
	default:
		c.next++
		c.moved = append(c.moved, movedOld{f, extra})
		if c.outSize() >= c.s.o.FileBytes {
			err = c.finish()
		}
	}
	if err != nil {
		c.Abort()
		return false, fmt.Errorf("collect %s: %w", f.blob.Name(), err)
	}
	return true, nil
}

// copyPlan is a copy and the slots of it that must be copied.
type copyPlan struct {
	copy *chunkCopy
	keep bitmap
}

// examine decides for every slot of a file that is not condemned whether it must be
// copied or another copy, which is read and checked, holds it. ok is false if the
// file must be left alone.
func (c *Collection) examine(f *file) (plans []copyPlan, extra []extraSlot, ok bool) {
	type check struct {
		copy  *chunkCopy
		group int
	}
	var checks []check // each once, in the order in which they were needed
	listed := make(map[check]bool)
	s := c.s
	s.mu.RLock()
	for _, cp := range f.copies {
		keep := cp.slots()
		if cp.condemned != nil {
			keep = keep.minus(cp.condemned)
		}
		for i := range int(cp.chunk.slots) {
			if !keep.has(i) {
				continue
			}
			if o := c.other(cp, i); o != nil {
				keep[i>>6] &^= 1 << (i & 63)
				extra = append(extra, extraSlot{cp, i})
				if k := (check{o, i >> o.shift}); !listed[k] {
					listed[k] = true
					checks = append(checks, k)
				}
			} else if !cp.good(i) && c.copied(cp, i) {
				keep[i>>6] &^= 1 << (i & 63)
				extra = append(extra, extraSlot{cp, i})
			} else if !cp.good(i) {
				s.mu.RUnlock()
				return nil, nil, false
			}
		}
		if keep != (bitmap{}) {
			plans = append(plans, copyPlan{cp, keep})
		}
	}
	s.mu.RUnlock()
	for _, k := range checks {
		if err := s.checkGroup(k.copy, k.group); err != nil {
			return nil, nil, false // what it holds is now known; the next plan sees it
		}
	}
	return plans, extra, true
}

// other is a copy of a slot that makes this one dispensable: good, durable, and not
// about to be dropped. s.mu is held.
func (c *Collection) other(cp *chunkCopy, slot int) *chunkCopy {
	if len(cp.chunk.copies) < 2 {
		return nil
	}
	for _, o := range cp.chunk.copies {
		if o == cp || o.file == cp.file || !o.usable(slot) || !o.file.sealed || o.file.failed {
			continue
		}
		if !slices.ContainsFunc(c.moved, func(m movedOld) bool { return m.file == o.file }) {
			return o
		}
	}
	return nil
}

// copied tells whether a slot that is bad in cp was copied from another file, so that
// it is good once the collection's files are in the index; drop makes sure. s.mu is
// held.
func (c *Collection) copied(cp *chunkCopy, slot int) bool {
	return slices.ContainsFunc(c.moved, func(m movedOld) bool {
		return slices.ContainsFunc(cp.chunk.copies, func(o *chunkCopy) bool { return o.file == m.file && o.usable(slot) })
	})
}

// checkGroup reads a group and checks it, fingerprints too; what is bad becomes known.
func (s *Store) checkGroup(c *chunkCopy, g int) error {
	err := s.proveGroup(c, g)
	var bad *badPart
	if errors.As(err, &bad) {
		s.markBad(bad)
	}
	return err
}

// proveGroup is checkGroup that leaves it at telling.
func (s *Store) proveGroup(c *chunkCopy, g int) error {
	f, err := s.front(c)
	if err != nil {
		return err
	}
	l, err := s.loadList(c.chunk)
	if err != nil {
		return err
	}
	if slots := c.slots(); slots.minus(&l.have) != (bitmap{}) {
		return corrupt("no list tells all fingerprints of chunk %s in %s", c.chunk.id, c.file.blob.Name())
	}
	buf := s.buffer(int(f.groups[g].size))
	defer s.release(buf)
	if err := s.readStored(c, f, g, *buf); err != nil {
		return err
	}
	group, err := s.decode(c, f, g, *buf)
	if err != nil {
		return err
	}
	if wrong := wrongSlots(c, f, l.fps, g, group); len(wrong) > 0 {
		return wrong[0]
	}
	return nil
}

// wrongSlots are the slots of a group that have not their fingerprints.
func wrongSlots(c *chunkCopy, f *front, fps []Fingerprint, g int, group []byte) (wrong []*badPart) {
	lo, hi, _ := f.slotsIn(g)
	for i := lo; i < hi; i++ {
		if !f.have.has(i) {
			continue
		}
		if FingerprintOf(group[:BlockSize]) != fps[i] {
			off := int64(c.off) + f.payloadAt() + int64(f.groups[g].off)
			wrong = append(wrong, &badPart{copy: c, lo: i, hi: i + 1, off: off, reason: wrongContent})
		}
		group = group[BlockSize:]
	}
	return wrong
}

// copyLive copies slots into the collection's files. ok is false if one of them turned
// out bad; what was copied before it does no harm.
func (c *Collection) copyLive(plans []copyPlan) (ok bool, err error) {
	for i := range plans {
		p := &plans[i]
		e, err := c.s.compact(p.copy, &p.keep, uint8(min(max(c.o.GroupShift, 0), maxShift)))
		var bad *badPart
		if errors.As(err, &bad) {
			c.s.markBad(bad)
			return false, nil
		}
		if errors.Is(err, ErrCorrupt) {
			return false, nil // its list: it cannot prove what would be left
		}
		if err != nil {
			return false, err
		}
		out, err := c.out(p.copy.chunk.kind)
		if err != nil {
			return false, err
		}
		if _, err := c.s.appendTo(out, e, false); err != nil {
			return false, err
		}
	}
	return true, nil
}

// out is the file that chunks of a kind are copied into.
func (c *Collection) out(kind Kind) (*file, error) {
	if f := c.outs[kind]; f != nil {
		return f, nil
	}
	f, err := c.s.createPrivate()
	if err != nil {
		return nil, err
	}
	c.outs[kind] = f
	return f, nil
}

// createPrivate makes a new chunk file whose copies enter the index all at once, by
// publish.
func (s *Store) createPrivate() (*file, error) {
	s.appending.Lock()
	defer s.appending.Unlock()
	f, err := s.create()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.private = true
	return f, nil
}

// sealPrivate seals a private file; an error if that cannot be done, or was not because the
// file failed before.
func (s *Store) sealPrivate(f *file) error {
	if err := s.seal(f); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if f.failed {
		return fmt.Errorf("%s: %w", f.blob.Name(), errAbandoned)
	}
	return nil
}

// outSize is how many bytes were copied and not published yet.
func (c *Collection) outSize() int64 {
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	var n int64
	for _, f := range c.outs {
		if f != nil {
			n += f.size
		}
	}
	return n
}

// compact encodes a copy's slots in keep. Groups that stay whole are taken as they
// are, after a check; others are compressed again by the chunk's codec. Errors: a
// *badPart, ErrCorrupt for a bad list, or one of the environment.
func (s *Store) compact(c *chunkCopy, keep *bitmap, shift uint8) (*encodedChunk, error) {
	f, err := s.front(c)
	if err != nil {
		return nil, err
	}
	t, err := s.readTree(c)
	if err != nil {
		return nil, err
	}
	if t, err = t.reduce(keep); err != nil {
		return nil, corrupt("%v", err)
	}
	shift = max(shift, c.shift)
	codec := CodecRaw
	for _, g := range f.groups {
		if g.size > 0 && g.codec != CodecRaw {
			codec = g.codec
			break
		}
	}
	payload, err := s.readPayload(c, f)
	if err != nil {
		return nil, err
	}
	blocks := make([][]byte, t.n)
	whole := make([]storedGroup, len(f.groups))
	verbatim := shift == c.shift
	for g, r := range f.groups {
		lo, hi, k := f.slotsIn(g)
		kept := keep.countRange(lo, hi)
		if kept == 0 {
			continue
		}
		stored := payload[r.off : r.off+r.size]
		if verbatim && kept == k && wal.PageCRC(stored) == r.crc {
			whole[g] = storedGroup{codec: r.codec, crc: r.crc, data: stored}
			continue
		}
		group, err := s.decode(c, f, g, stored)
		if err != nil {
			return nil, err
		}
		for i, at := lo, 0; i < hi; i++ {
			if f.have.has(i) {
				blocks[i] = group[at : at+BlockSize]
				at += BlockSize
			}
		}
	}
	return s.encodeMixed(c.chunk.id, t, shift, codec, whole, func(i int) []byte { return blocks[i] })
}

// readPayload reads all groups of a copy: in one read, or if that fails one by one, so
// that the *badPart is the group that cannot be read.
func (s *Store) readPayload(c *chunkCopy, f *front) ([]byte, error) {
	payload := make([]byte, c.payload)
	err := s.readFile(c, payload, int64(c.off)+f.payloadAt(), 0)
	var bad *badPart
	if !errors.As(err, &bad) {
		return payload, err
	}
	for g, r := range f.groups {
		if r.size == 0 {
			continue
		}
		if err := s.readStored(c, f, g, payload[r.off:r.off+r.size]); err != nil {
			return nil, err
		}
	}
	return payload, nil
}

// finish seals the collection's files, puts them into the index and drops the files
// that they replace.
func (c *Collection) finish() error {
	s := c.s
	for _, f := range c.outs {
		if f == nil {
			continue
		}
		if err := s.sealPrivate(f); err != nil {
			return err
		}
	}
	s.mu.Lock()
	for _, f := range c.outs {
		if f != nil && !f.gone {
			s.publish(f)
			c.freed.Add(-f.size)
		}
	}
	s.mu.Unlock()
	c.outs = [3]*file{}
	moved := c.moved
	c.moved = nil
	return c.drop(moved)
}

// publish puts the copies of a sealed private file into the index. s.mu is held for
// writing.
func (s *Store) publish(f *file) {
	copies := f.copies
	f.copies, f.private = nil, false
	for _, d := range copies {
		h := d.head()
		s.insert(f, &h, d.off, d.have)
	}
}

// drop takes files out of the index and removes them, unless a slot that another copy
// was to hold is not there any more.
func (c *Collection) drop(olds []movedOld) error {
	s := c.s
	var files []*file
	s.mu.Lock()
	for _, m := range olds {
		if slices.ContainsFunc(m.extra, func(x extraSlot) bool { return c.other(x.copy, x.slot) == nil }) {
			s.uncondemn(m.file)
			continue
		}
		s.unindex(m.file)
		files = append(files, m.file)
	}
	s.mu.Unlock()
	var failed error
	for _, f := range files {
		if err := f.blob.Remove(); err != nil {
			failed = err // its slots are elsewhere; the next start finds it again
			continue
		}
		c.freed.Add(f.size)
	}
	return failed
}

// spare leaves a file alone.
func (c *Collection) spare(f *file) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.uncondemn(f)
}

// uncondemn makes the dead slots of a file usable again. s.mu is held for writing.
func (s *Store) uncondemn(f *file) {
	for _, cp := range f.copies {
		cp.condemned = nil
	}
}

// Abort ends the collection: what it has not dropped stays and is usable again.
func (c *Collection) Abort() {
	if c.ended {
		return
	}
	s := c.s
	for i, f := range c.outs {
		if f != nil {
			s.forget(f) // at worst the next start finds further copies
			c.outs[i] = nil
		}
	}
	s.mu.Lock()
	for _, f := range c.files {
		s.uncondemn(f)
	}
	s.mu.Unlock()
	c.moved = nil
	c.end()
}

// end lets the next collection begin.
func (c *Collection) end() {
	c.ended = true
	c.s.mu.Lock()
	c.s.collecting = false
	c.s.mu.Unlock()
}
