package dedup

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Ref is the address of a block that was given to a Writer. Writer.Slot tells the
// address once the chunk is closed.
type Ref struct {
	slot    Slot   // of a block that was stored before
	pending uint32 // number of the Writer's chunk + 1; 0: slot is the address
}

// Writer is one fold's session: it takes blocks and map nodes, appends chunks and
// makes them durable. It is not safe for concurrent use; several Writers may be at
// work at once and see each other's chunks once they are appended. After an error
// every further call fails with it: the fold is repeated with a new Writer.
type Writer struct {
	s     *Store
	codec Codec
	shift uint8
	err   error

	data    *builder
	ids     []ChunkID             // of the data chunks that are closed, by number
	pending map[Fingerprint]place // blocks that are not appended yet
	queue   []*builder            // closed, being compressed, not appended; oldest first

	nodes   *builder
	nodeIDs []ChunkID

	run  Slot            // behind the slot that the last block hit; zero: it hit none
	need map[*file]int64 // Sync makes each durable up to here

	heals   map[ChunkID]map[int][]byte // contents of damaged slots
	nheals  int
	healing []Slot // stored again, not synced
	healed  []Slot
}

// place is a slot of one of the Writer's chunks.
type place struct {
	chunk int
	slot  uint16
}

// NewWriter begins a session. New groups have 1<<groupShift blocks (1 to 5; 3 is
// 32 KiB). Close it.
func (s *Store) NewWriter(codec Codec, groupShift int) *Writer {
	return &Writer{
		s: s, codec: codec, shift: uint8(min(max(groupShift, 1), maxShift)),
		pending: make(map[Fingerprint]place), need: make(map[*file]int64),
		heals: make(map[ChunkID]map[int][]byte),
	}
}

// Block stores a block of BlockSize bytes, or finds that it is stored already. prev is
// the block's predecessor at the same address, zero if there is none; hints are chunks
// that hold its neighbours. The block is copied. Errors: ErrNoSpace, or an I/O error.
func (w *Writer) Block(block []byte, prev Slot, hints ...ChunkID) (Ref, error) {
	if w.err != nil {
		return Ref{}, w.err
	}
	if len(block) != BlockSize {
		return Ref{}, w.fail(fmt.Errorf("block of %d bytes", len(block)))
	}
	w.s.stats.blocks.Add(1)
	fp := FingerprintOf(block)
	if err := w.heal(fp, block); err != nil {
		return Ref{}, w.fail(err)
	}
	if at, ok := w.find(&fp, prev, hints); ok {
		w.s.stats.hits.Add(1)
		return at, nil
	}
	w.run = Slot{}
	if w.data == nil {
		w.data = w.newBuilder(KindData)
	}
	at := place{len(w.ids), w.data.add(fp, block)}
	w.pending[fp] = at
	if len(w.data.fps) == MaxSlots {
		if err := w.closeData(); err != nil {
			return Ref{}, w.fail(err)
		}
	}
	return Ref{Slot{Slot: at.slot}, uint32(at.chunk) + 1}, nil
}

// find looks for a block that is stored or pending.
func (w *Writer) find(fp *Fingerprint, prev Slot, hints []ChunkID) (Ref, bool) {
	if w.hitAt(w.run, fp) || prev != w.run && w.hitAt(prev, fp) {
		return w.lastHit(), true
	}
	if at, ok := w.pending[*fp]; ok {
		return Ref{Slot{Slot: at.slot}, uint32(at.chunk) + 1}, true
	}
	if l, i, ok := w.s.lists.lookup(fp); ok && w.take(l, i) {
		return w.lastHit(), true
	}
	if !prev.IsZero() && w.hitIn(prev.Chunk, fp) {
		return w.lastHit(), true
	}
	last := prev.Chunk
	for _, h := range hints {
		if h != last && !h.IsZero() && w.hitIn(h, fp) {
			return w.lastHit(), true
		}
		last = h
	}
	if p := fp.prefix(); isHook(p) {
		if ch := w.s.hooked(p); ch != nil && w.hitIn(ch.id, fp) {
			return w.lastHit(), true
		}
	}
	return Ref{}, false
}

// lastHit is the address that take or hitAt took.
func (w *Writer) lastHit() Ref { return Ref{slot: Slot{w.run.Chunk, w.run.Slot - 1}} }

// hitAt takes a slot if it has this fingerprint and is usable.
func (w *Writer) hitAt(at Slot, fp *Fingerprint) bool {
	l := w.listOf(at.Chunk)
	return l != nil && l.at(int(at.Slot), fp) && w.take(l, int(at.Slot))
}

// hitIn takes the slot of a chunk that has this fingerprint, if it is usable.
func (w *Writer) hitIn(id ChunkID, fp *Fingerprint) bool {
	l := w.listOf(id)
	if l == nil {
		return false
	}
	i, ok := l.find(fp)
	return ok && w.take(l, i)
}

// listOf is the fingerprint list of a chunk, nil if it has none that can be read.
func (w *Writer) listOf(id ChunkID) *fpList {
	if id.IsZero() {
		return nil
	}
	ch := w.s.chunkOf(id)
	if ch == nil || ch.kind != KindData {
		return nil
	}
	l, err := w.s.loadList(ch)
	if err != nil {
		return nil // a missed duplicate costs space, no more
	}
	return l
}

// take refers to slot i of a listed chunk, if it is usable now.
func (w *Writer) take(l *fpList, i int) bool {
	s := w.s
	s.mu.RLock()
	ch := s.index[l.id]
	if ch == nil || ch.kind != KindData {
		s.mu.RUnlock()
		return false
	}
	c := ch.usable(i)
	if c != nil {
		w.needs(c)
	}
	s.mu.RUnlock()
	if c == nil {
		return false
	}
	if next := (Slot{l.id, uint16(i)}); w.run != next {
		s.lists.hit(ch.num) // a run is noted once
	}
	w.run = Slot{l.id, uint16(i + 1)}
	return true
}

// needs notes that this session refers to a copy, so that Sync makes it durable.
// s.mu is held.
func (w *Writer) needs(c *chunkCopy) {
	if f := c.file; f.synced < c.end() {
		w.need[f] = max(w.need[f], c.end())
	}
}

// hooked is the chunk of a sampled fingerprint, nil if there is none.
func (s *Store) hooked(prefix uint64) *chunk {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n, ok := s.hooks.get(prefix); ok {
		return s.chunks[n]
	}
	return nil
}

// Flush closes the pending data chunk and appends what is pending: every Ref has its
// address now, and every block can be read. What it appended is durable after Sync.
func (w *Writer) Flush() error {
	if w.err != nil {
		return w.err
	}
	if w.data != nil {
		if err := w.closeData(); err != nil {
			return w.fail(err)
		}
	}
	if err := w.drain(0); err != nil {
		return w.fail(err)
	}
	return w.fail(w.flushHeals())
}

// Slot is the address of a block. It is zero as long as its chunk is not closed,
// which Flush does.
func (w *Writer) Slot(r Ref) Slot {
	if r.pending == 0 {
		return r.slot
	}
	if n := int(r.pending - 1); n < len(w.ids) {
		return Slot{w.ids[n], r.slot.Slot}
	}
	return Slot{}
}

// closeData closes the data chunk and appends those before it.
func (w *Writer) closeData() error {
	w.ids = append(w.ids, w.data.close())
	w.queue = append(w.queue, w.data)
	w.data = nil
	return w.drain(1)
}

// drain appends closed chunks until no more than left of them are queued.
func (w *Writer) drain(left int) error {
	for len(w.queue) > left {
		b := w.queue[0]
		w.queue = w.queue[1:]
		if err := w.store(b); err != nil {
			return err
		}
		for _, fp := range b.fps {
			delete(w.pending, fp) // from here on the cached list knows it
		}
	}
	return nil
}

// store appends a closed chunk.
func (w *Writer) store(b *builder) error {
	defer b.free()
	b.wait()
	groups := make([]storedGroup, len(b.groups))
	for i, g := range b.groups {
		groups[i] = g.out
	}
	t := b.tree()
	e, err := encodeChunk(b.id, t, b.w.shift, groups, w.s.o.Commit())
	if err != nil {
		return err
	}
	copies, err := w.s.append(e)
	if err != nil {
		return err
	}
	w.stored(copies)
	if b.kind == KindData {
		l := &fpList{id: b.id, num: copies[0].chunk.num, have: t.have, fps: t.fps}
		w.s.lists.add(l, true)
	}
	return nil
}

// stored notes what Sync has to make durable and what has become whole again.
func (w *Writer) stored(copies []*chunkCopy) {
	s := w.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, c := range copies {
		w.needs(c)
	}
	if len(s.damage) == 0 {
		return
	}
	ch := copies[0].chunk
	for i := range int(ch.slots) {
		at := Slot{ch.id, uint16(i)}
		if _, bad := s.damage[at]; bad && ch.readable(i) {
			w.healing = append(w.healing, at)
		}
	}
}

// Sync makes durable what this session made or referred to: one fdatasync for each
// chunk file with bytes that are not. After an error nothing of it may be named by a
// root: the file was abandoned, and the fold is repeated with a new Writer.
func (w *Writer) Sync() error {
	if w.err != nil {
		return w.err
	}
	for _, f := range slices.SortedFunc(maps.Keys(w.need), byNumber) {
		if err := w.s.syncFile(f, w.need[f]); err != nil {
			return w.fail(err)
		}
	}
	clear(w.need)
	w.s.mu.Lock()
	for _, at := range w.healing {
		_, bad := w.s.damage[at] // not if it is listed twice
		if ch := w.s.index[at.Chunk]; bad && ch != nil && ch.readable(int(at.Slot)) {
			w.s.forgetDamage(at)
			w.healed = append(w.healed, at)
		}
	}
	w.s.mu.Unlock()
	w.healing = nil
	return nil
}

// Healed lists the slots that were damaged and whose content this session stored
// again, durably since the last Sync, each once.
func (w *Writer) Healed() []Slot { return slices.Clone(w.healed) }

// Close ends the session, also one that failed. What it appended and nobody names is
// left to collection.
func (w *Writer) Close() {
	for _, b := range append(w.queue, w.data, w.nodes) {
		if b != nil {
			b.wait()
			b.free()
		}
	}
	w.queue, w.data, w.nodes = nil, nil, nil
	if w.err == nil {
		w.err = fmt.Errorf("writer: %w", ErrClosed)
	}
}

// fail makes an error stick.
func (w *Writer) fail(err error) error {
	if err != nil && w.err == nil {
		w.err = err
	}
	return err
}

// builder is a chunk being filled. Groups are compressed by goroutines as they fill;
// the result does not depend on who is first.
type builder struct {
	w      *Writer
	kind   Kind
	id     ChunkID // once closed
	fps    []Fingerprint
	fill   *[]byte // the group being filled
	groups []*groupJob
	busy   sync.WaitGroup
}

// groupJob is a group and, once its worker is done, its stored form.
type groupJob struct {
	src, buf *[]byte
	out      storedGroup
}

func (w *Writer) newBuilder(kind Kind) *builder {
	return &builder{w: w, kind: kind, fps: make([]Fingerprint, 0, 64)}
}

// add puts a block into the next slot.
func (b *builder) add(fp Fingerprint, block []byte) uint16 {
	if b.fill == nil {
		b.fill = b.w.s.buffer(0)
	}
	slot := len(b.fps)
	b.fps = append(b.fps, fp)
	*b.fill = append(*b.fill, block...)
	if len(*b.fill) == BlockSize<<b.w.shift {
		b.submit()
	}
	return uint16(slot)
}

// submit hands the filled group to a worker.
func (b *builder) submit() {
	s := b.w.s
	j := &groupJob{src: b.fill}
	b.fill = nil
	b.groups = append(b.groups, j)
	if b.w.codec == CodecRaw {
		j.out = s.codecs.compress(CodecRaw, *j.src, nil)
		return
	}
	j.buf = s.buffer(len(*j.src) + len(*j.src)/4 + 64)
	s.workers <- struct{}{}
	b.busy.Go(func() {
		j.out = s.codecs.compress(b.w.codec, *j.src, *j.buf)
		<-s.workers
	})
}

// close ends the chunk and computes its ID. All its slots are present, so its list is
// never short of a hash.
func (b *builder) close() ChunkID {
	if b.fill != nil {
		b.submit()
	}
	b.id, _ = b.tree().id()
	return b.id
}

// tree is the chunk's fingerprints; all slots are present.
func (b *builder) tree() *tree {
	return &tree{kind: b.kind, n: len(b.fps), have: fullBitmap(len(b.fps)), fps: b.fps}
}

// wait waits for the workers.
func (b *builder) wait() { b.busy.Wait() }

// free gives the buffers back.
func (b *builder) free() {
	if b.fill != nil {
		b.w.s.release(b.fill)
		b.fill = nil
	}
	for _, j := range b.groups {
		b.w.s.release(j.src)
		if j.buf != nil {
			b.w.s.release(j.buf)
		}
	}
	b.groups = nil
}
