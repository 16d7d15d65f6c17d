package dedup

import (
	"errors"
	"io"

	"github.com/k8ns/granary/pkg/wal"
)

// lostGroup is the stored length of a group whose content is lost. No codec makes one
// byte of a block, so nothing else has it. A copy of which all groups are like this
// holds no content: it keeps the fingerprints of slots that a repair could not save, so
// that they read as damaged, are no dedup target, and heal when they are written again.
const lostGroup = 1

const lostReason = "lost to earlier damage"

// allLost tells whether the groups of a chunk hold no content; have is nil if all slots
// are present. It needs no more than a footer tells.
func (h *chunkHead) allLost(have *bitmap) bool {
	stored := h.groups()
	if h.present < h.slots {
		stored = 0
		for g := range h.groups() {
			if have.any(g<<h.shift, min((g+1)<<h.shift, int(h.slots))) {
				stored++
			}
		}
	}
	return int(h.payload) == stored*lostGroup
}

// lostGroups are the groups of a copy that holds no content of the slots in have.
func lostGroups(n int, have *bitmap, shift uint8) []storedGroup {
	groups := make([]storedGroup, (n+1<<shift-1)>>shift)
	for g := range groups {
		if have.any(g<<shift, min((g+1)<<shift, n)) {
			data := []byte{0}
			groups[g] = storedGroup{codec: CodecZstd, crc: ^wal.PageCRC(data), data: data}
		}
	}
	return groups
}

// candidate is a place in a file where a chunk is, or may be.
type candidate struct {
	off     int64
	head    chunkHead
	headBad bool    // head is what the footer says, without checksums
	have    *bitmap // as the footer has it; nil: all, or there is no footer
	listed  bool    // the footer has it
	// searched: found by a search through bytes, so that it may be a volume's data made
	// to look like a chunk: only what proves itself by fingerprints counts.
	searched bool
}

// candidates lists where chunks may be in a file: what its footer lists, or what a scan
// meets, whole or not. An error is one of the environment, or of a read: then nobody
// knows what is there.
func (s *Store) candidates(ff *foundFile, footer bool) ([]candidate, error) {
	if !footer {
		return s.scanCandidates(ff.blob, ff.Size)
	}
	var out []candidate
	b := make([]byte, headSize)
	for _, c := range ff.chunks {
		if err := readZeros(ff.blob, b, int64(c.off)); err != nil {
			return nil, err
		}
		at := candidate{off: int64(c.off), head: c.head, have: c.have, listed: true, headBad: true}
		if h, err := parseChunkHead(b); err == nil && h.sameAs(&c.head) {
			at.head, at.headBad = h, false
		}
		out = append(out, at)
	}
	return out, nil
}

// readZeros is a read of a file that has zeros behind its end.
func readZeros(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	clear(b[n:])
	return err
}

// sameAs tells whether a head is the one that a footer lists.
func (h *chunkHead) sameAs(o *chunkHead) bool {
	return h.id == o.id && h.kind == o.kind && h.shift == o.shift && h.slots == o.slots &&
		h.present == o.present && h.front == o.front && h.list == o.list && h.payload == o.payload
}

// scanCandidates goes from head to head as scan does. What a search finds moves it on
// only if all of it proves itself: else another chunk may begin inside.
func (s *Store) scanCandidates(r io.ReaderAt, size int64) ([]candidate, error) {
	var out []candidate
	at, searched := int64(fileHeaderSize), false
	b, w := make([]byte, headSize), newWindow(r, size)
	for at >= 0 && at+headSize <= size && at <= maxFileBytes {
		if err := readZeros(w, b, at); err != nil {
			return nil, err
		}
		h, err := parseChunkHead(b)
		if err == nil {
			out = append(out, candidate{off: at, head: h, searched: searched})
			if whole := at+h.size() <= size; whole && (!searched || s.verifyContent(r, at, &h) == nil) {
				at += h.size()
				continue
			}
		}
		searched = true
		next, err := nextHead(w, at+1)
		if err != nil {
			return nil, err
		}
		at = next
	}
	return out, nil
}

// salvaged is what a candidate still proves.
type salvaged struct {
	candidate
	tree   *tree         // proves the chunk ID; nil: nothing does
	good   bitmap        // slots of tree whose content has its fingerprint
	blocks [][]byte      // contents of those, by slot
	groups []storedGroup // by number, those of which every slot is good, as they are stored
	codec  Codec         // of its groups
	mended bool          // head, front, list or a checksum was bad, but what it is of is known
	raw    *encodedChunk // if nothing proves the ID: the copy as it is, when it can still be read
}

// clean tells whether there is nothing wrong with the copy.
func (v *salvaged) clean() bool { return v.tree != nil && v.good == v.tree.have && !v.mended }

// salvage reads a candidate of a file of size bytes and finds out what of it proves
// itself. known gives a list from elsewhere that proves a chunk's ID, or nil. What a
// head says is believed only as far as the chunk ID follows from it. An error is that
// of a read.
func (s *Store) salvage(r io.ReaderAt, size int64, c candidate, known func(ChunkID) *tree) (*salvaged, error) {
	h := c.head
	b := make([]byte, h.size()-headSize)
	if n := min(int64(len(b)), size-c.off-headSize); n > 0 {
		if err := readZeros(r, b[:n], c.off+headSize); err != nil {
			return nil, err
		}
	}
	p := parts{h: h, front: b[:h.front], list: b[h.front : h.front+h.list], payload: b[h.front+h.list:]}
	v := &salvaged{candidate: c, mended: c.headBad, codec: CodecRaw}
	f, exact := p.parseFront(c)
	have, ok := p.slots(f, c)
	if !ok {
		return v, nil
	}
	t := listTree(h.kind, int(h.slots), have, p.list)
	proved := t.prove(h.id) == nil
	if f == nil {
		v.mended = true
		if !proved {
			if t = known(h.id); t == nil || have.minus(&t.have) != (bitmap{}) {
				return v, nil
			}
			if t, _ = t.reduce(&have); t == nil {
				return v, nil
			}
			proved = true
		}
		f = s.guessFront(&p, have, t)
	}
	blocks, fps := s.contents(&p, f)
	if !proved {
		v.mended = true
		if t = proveWith(t, fps, h.id, known); t == nil {
			if exact && !c.searched {
				v.raw = p.verbatim(f, s.o.Commit())
			}
			return v, nil
		}
	}
	if wal.PageCRC(p.list) != h.listCRC {
		v.mended = true
	}
	v.take(s, &p, f, t, blocks, fps)
	return v, nil
}

// take fills in what is good, given the list that proves the ID.
func (v *salvaged) take(s *Store, p *parts, f *front, t *tree, blocks [][]byte, fps map[int]Fingerprint) {
	v.tree, v.blocks = t, make([][]byte, t.n)
	for i, fp := range fps {
		if t.have.has(i) && t.fps[i] == fp {
			v.good.set(i)
			v.blocks[i] = blocks[i]
		}
	}
	v.groups = make([]storedGroup, len(f.groups))
	for g, r := range f.groups {
		lo, hi, k := f.slotsIn(g)
		if r.size == 0 || !v.good.any(lo, hi) {
			continue
		}
		stored := p.payload[r.off : r.off+r.size]
		crc := wal.PageCRC(stored)
		v.mended = v.mended || crc != r.crc // nothing else reads this group
		if v.good.countRange(lo, hi) != k {
			continue
		}
		v.groups[g] = storedGroup{codec: r.codec, crc: crc, data: stored}
		if r.codec != CodecRaw {
			v.codec = r.codec
		}
	}
}

// proveWith makes a list that does not prove its chunk ID one that does: with the
// fingerprints of what can be read in place of what it says of them, or from elsewhere.
// nil if that does not help.
func proveWith(t *tree, fps map[int]Fingerprint, id ChunkID, known func(ChunkID) *tree) *tree {
	for i, fp := range fps {
		t.fps[i] = fp
	}
	if t.prove(id) == nil {
		return t
	}
	k := known(id)
	if k == nil {
		return nil
	}
	both := t.have.and(&k.have)
	if both == (bitmap{}) {
		return nil
	}
	if k, err := k.reduce(&both); err == nil {
		return k
	}
	return nil
}

// parts are the bytes of a chunk behind its head.
type parts struct {
	h                    chunkHead
	front, list, payload []byte
}

// parseFront reads the front if it is good. exact: it has the checksum that a good head
// says.
func (p *parts) parseFront(c candidate) (f *front, exact bool) {
	h := p.h
	if c.headBad {
		h.frontCRC = wal.PageCRC(p.front) // what it says is proved by fingerprints
	}
	f, err := parseFront(h, p.front)
	if err != nil || c.listed && c.head.present < c.head.slots && f.have != *c.have {
		return nil, false
	}
	return f, !c.headBad
}

// slots is the set of slots that the list is for; false if nobody knows.
func (p *parts) slots(f *front, c candidate) (bitmap, bool) {
	n := int(p.h.slots)
	switch {
	case f != nil:
		return f.have, true
	case p.h.present == p.h.slots:
		return fullBitmap(n), true
	case c.have != nil:
		return *c.have, true
	case len(p.front) < (n+7)/8:
		return bitmap{}, false
	}
	have, ok := parseBitmap(p.front[:(n+7)/8], n)
	return have, ok && have.count() == int(p.h.present)
}

// guessFront makes a group table from a front that is damaged: entries are believed as
// long as their groups decode to what the list says, from the first on and from the
// last back, and what is between two is one group. Groups that this does not find have
// no size.
func (s *Store) guessFront(p *parts, have bitmap, t *tree) *front {
	f := &front{head: p.h, have: have, groups: make([]groupRef, p.h.groups())}
	entries := p.front
	if p.h.present < p.h.slots {
		entries = entries[min(len(entries), (int(p.h.slots)+7)/8):]
	}
	var stored []int // numbers of the groups that have an entry
	for g := range f.groups {
		if _, _, k := f.slotsIn(g); k > 0 {
			stored = append(stored, g)
		}
	}
	if len(entries) != len(stored)*groupEntry {
		return f
	}
	try := func(g int, r groupRef) bool {
		ok := s.proves(p, f, g, r, t)
		if ok {
			f.groups[g] = r
		}
		return ok
	}
	first, from := 0, uint32(0)
	for ; first < len(stored); first++ {
		r := entryAt(entries, first, from)
		if !try(stored[first], r) {
			break
		}
		from += r.size
	}
	last, to := len(stored)-1, uint32(len(p.payload))
	for ; last > first; last-- {
		r := entryAt(entries, last, 0)
		if r.off = to - r.size; r.size > to || !try(stored[last], r) {
			break
		}
		to = r.off
	}
	if first == last && to > from {
		for codec := CodecRaw; codec <= CodecS2; codec++ {
			r := groupRef{off: from, size: to - from, codec: codec}
			r.crc = wal.PageCRC(p.payload[from:to])
			if try(stored[first], r) {
				break
			}
		}
	}
	return f
}

// entryAt is the i-th entry of a group table, for a group stored at an offset.
func entryAt(entries []byte, i int, off uint32) groupRef {
	e := entries[i*groupEntry:]
	w := le.Uint32(e)
	return groupRef{off: off, size: w & 0xffffff, codec: Codec(w >> 24), crc: le.Uint32(e[4:])}
}

// proves tells whether a group decodes to content that the list has.
func (s *Store) proves(p *parts, f *front, g int, r groupRef, t *tree) bool {
	content := s.tryDecode(p, f, g, r)
	lo, hi, _ := f.slotsIn(g)
	for i := lo; i < hi && content != nil; i++ {
		if !f.have.has(i) {
			continue
		}
		if FingerprintOf(content[:BlockSize]) == t.fps[i] {
			return true
		}
		content = content[BlockSize:]
	}
	return false
}

// tryDecode decodes a group whatever its checksum; nil if it does not decode.
func (s *Store) tryDecode(p *parts, f *front, g int, r groupRef) []byte {
	_, _, k := f.slotsIn(g)
	if r.size == 0 || r.codec > CodecS2 || uint64(r.off)+uint64(r.size) > uint64(len(p.payload)) {
		return nil
	}
	b := make([]byte, k*BlockSize)
	if s.codecs.decompress(r.codec, b, p.payload[r.off:r.off+r.size]) != nil {
		return nil
	}
	return b
}

// contents decodes every group that can be: blocks and their fingerprints, by slot.
func (s *Store) contents(p *parts, f *front) ([][]byte, map[int]Fingerprint) {
	blocks, fps := make([][]byte, f.head.slots), make(map[int]Fingerprint)
	for g, r := range f.groups {
		b := s.tryDecode(p, f, g, r)
		lo, hi, _ := f.slotsIn(g)
		for i := lo; i < hi && b != nil; i++ {
			if f.have.has(i) {
				blocks[i], fps[i] = b[:BlockSize], FingerprintOf(b[:BlockSize])
				b = b[BlockSize:]
			}
		}
	}
	return blocks, fps
}

// verbatim is the chunk as it is, written anew: its groups can be read, though its list
// proves nothing.
func (p *parts) verbatim(f *front, commit uint64) *encodedChunk {
	h := p.h
	h.commit = commit
	meta := h.appendTo(nil)
	meta = append(append(meta, p.front...), p.list...)
	return &encodedChunk{front: &front{head: h, have: f.have, groups: f.groups}, meta: meta, data: [][]byte{p.payload}}
}
