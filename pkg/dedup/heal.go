package dedup

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// maxHeals is how many contents a Writer keeps before it stores them.
const maxHeals = 64

// heal keeps the content of a block for every damaged slot that has the same
// fingerprint, so that references to them work again.
func (w *Writer) heal(fp Fingerprint, block []byte) error {
	for _, at := range w.s.damagedLike(fp) {
		slots := w.heals[at.Chunk]
		if slots == nil {
			slots = make(map[int][]byte)
			w.heals[at.Chunk] = slots
		}
		if slots[int(at.Slot)] == nil {
			slots[int(at.Slot)] = bytes.Clone(block)
			w.nheals++
		}
	}
	if w.nheals < maxHeals {
		return nil
	}
	return w.flushHeals()
}

// flushHeals appends a partial copy of each damaged chunk with the slots whose
// content is known again.
func (w *Writer) flushHeals() error {
	for _, id := range slices.SortedFunc(maps.Keys(w.heals), func(a, b ChunkID) int { return bytes.Compare(a[:], b[:]) }) {
		if err := w.healChunk(id, w.heals[id]); err != nil {
			return fmt.Errorf("heal chunk %s: %w", id, err)
		}
	}
	clear(w.heals)
	w.nheals = 0
	return nil
}

// healChunk appends a copy of a chunk that holds just these slots, with the hashes
// that prove its ID. A chunk no list of which can be read cannot be healed like this;
// that is no error.
func (w *Writer) healChunk(id ChunkID, slots map[int][]byte) error {
	s := w.s
	ch := s.chunkOf(id)
	if ch == nil {
		return nil
	}
	s.mu.RLock()
	copies := ch.copies
	s.mu.RUnlock()
	left := maps.Clone(slots)
	for _, c := range copies {
		var keep bitmap
		for i, block := range left {
			if c.has(i) && block != nil {
				keep.set(i)
			}
		}
		if keep == (bitmap{}) || s.listBad(c) {
			continue
		}
		t, err := s.readTree(c)
		if err != nil {
			continue
		}
		if t, err = t.reduce(&keep); err != nil {
			continue
		}
		e, err := s.encodeMixed(id, t, c.shift, w.codec, nil, func(i int) []byte { return left[i] })
		if err != nil {
			return err
		}
		now, err := s.append(e)
		if err != nil {
			return err
		}
		w.stored(now)
		for i := range left {
			if keep.has(i) {
				delete(left, i)
			}
		}
	}
	return nil
}

// encodeMixed lays out a copy with the slots of t: groups that are given as they are,
// the others from the contents that block returns, compressed.
func (s *Store) encodeMixed(id ChunkID, t *tree, shift uint8, codec Codec, groups []storedGroup, block func(int) []byte) (*encodedChunk, error) {
	n := (t.n + 1<<shift - 1) >> shift
	out := make([]storedGroup, n)
	for g := range out {
		if g < len(groups) && groups[g].data != nil {
			out[g] = groups[g]
			continue
		}
		var src []byte
		for i := g << shift; i < min((g+1)<<shift, t.n); i++ {
			if t.have.has(i) {
				src = append(src, block(i)...)
			}
		}
		if len(src) > 0 {
			out[g] = s.codecs.compress(codec, src, make([]byte, 0, len(src)))
		}
	}
	return encodeChunk(id, t, shift, out, s.o.Commit())
}
