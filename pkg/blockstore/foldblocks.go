package blockstore

import (
	"errors"
	"math"
	"slices"

	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/dedup"
)

// change is one block or one hole of a fold.
type change struct {
	first, count uint64
	ref          dedup.Ref
	hole         bool
	damaged      uint8
	prev         dedup.Slot // of one block, in the base
}

// folder turns a layer into chunks and map changes.
type folder struct {
	s       *Store
	job     *foldJob
	w       *dedup.Writer
	changes []change
	base    []blockmap.Extent // what the base has around the blocks being folded
	added   int64             // blocks that the new root names by another slot than the base, or anew
	result  blockmap.Result   // of remap

	// The block that spans of less than a block are being gathered for.
	partial uint64
	parts   []piece
}

// gather gives every block of the layer to the writer.
func (f *folder) gather() error {
	var err error
	f.job.layer.tree.Scan(func(start int64, s span) bool {
		err = f.span(start, s.end, s.src)
		return err == nil
	})
	if err != nil {
		return err
	}
	return f.flushPartial()
}

// remap makes the new block map, once the writer's data chunks have their IDs.
func (f *folder) remap() (err error) {
	changes := f.extents()
	if end := uint64(f.job.v.Size() / BlockSize); !f.job.root.IsZero() {
		// Nothing is mapped behind the end; saying so lets go of a node that cannot be
		// read once all that the volume has in it was written anew.
		changes = append(changes, blockmap.Extent{First: end, Count: endOfBlocks - end})
	}
	if f.result, err = f.s.tree.Update(f.job.root, changes, f.w); err != nil {
		return err
	}
	if slices.Contains(f.result.Kept, f.job.root) { // the new root stands above it: better none such
		_, err := f.s.chunks.ReadNode(f.job.root)
		if err == nil {
			f.result, err = f.s.tree.Update(f.job.root, changes, f.w)
			return err
		}
		if f.mayReadLater(err) {
			return &unreadError{f.job.v, err}
		}
	}
	return nil
}

// mapped tells how many blocks are mapped below the new root, from how many were before.
// Where a node could not be read they are all counted, if the new tree does without it or it
// can be read by now. If it still cannot, the number stays what is known, until a repair
// counts again: counting would read the map up to that node, in each fold.
func (f *folder) mapped(root dedup.Slot) func(before int64) int64 {
	lost := func(node dedup.Slot) bool { return !f.s.tree.Readable(node) }
	if f.result.Unread && !slices.ContainsFunc(f.result.Kept, lost) {
		if n, err := f.s.tree.NewCounter().Mapped(root); err == nil {
			return func(int64) int64 { return n }
		}
	}
	return func(before int64) int64 { return max(0, before+f.result.MappedDelta) }
}

// replaced is how many blocks and nodes the base names and the new root does not, the
// blocks of holes included: what is mapped after is what was before, less these, more
// what was added. Of each node that was made about one was replaced.
func (f *folder) replaced() int64 {
	if f.job.root.IsZero() {
		return 0
	}
	return max(0, f.added-f.result.MappedDelta) + f.result.Nodes
}

// root is the new root, once the writer's node chunks have their IDs.
func (f *folder) root() dedup.Slot {
	if f.result.InSink {
		return dedup.Slot{Chunk: f.w.ChunkID(f.result.Chunk), Slot: f.result.Slot}
	}
	return f.result.Root
}

// endOfBlocks is behind every block of every volume.
const endOfBlocks = math.MaxUint64

// extents turns the changes into map extents, neighbours with neighbouring slots joined.
func (f *folder) extents() []blockmap.Extent {
	out := make([]blockmap.Extent, 0, len(f.changes))
	for _, c := range f.changes {
		e := blockmap.Extent{First: c.first, Count: c.count, Damaged: c.damaged}
		if !c.hole {
			slot := f.w.Slot(c.ref)
			e.Chunk, e.Slot = slot.Chunk, slot.Slot
			if slot != c.prev {
				f.added++
			}
		}
		if n := len(out); n > 0 && joins(out[n-1], e) {
			out[n-1].Count += e.Count
			continue
		}
		out = append(out, e)
	}
	return out
}

func joins(a, b blockmap.Extent) bool {
	if a.First+a.Count != b.First || a.Damaged != 0 || b.Damaged != 0 || a.Chunk != b.Chunk {
		return false
	}
	return a.IsHole() || uint64(a.Slot)+a.Count == uint64(b.Slot)
}

const sectorsPerBlock = BlockSize / sectorBytes

// span folds the sectors [start, end), which all read from src.
func (f *folder) span(start, end int64, src *payload) error {
	for start < end {
		block := uint64(start / sectorsPerBlock)
		if start%sectorsPerBlock == 0 && end-start >= sectorsPerBlock {
			n := (end - start) / sectorsPerBlock
			if err := f.flushPartial(); err != nil {
				return err
			}
			if err := f.blocks(block, uint64(n), src); err != nil {
				return err
			}
			start += n * sectorsPerBlock
			continue
		}
		to := min(end, int64(block+1)*sectorsPerBlock)
		if len(f.parts) > 0 && f.partial != block {
			if err := f.flushPartial(); err != nil {
				return err
			}
		}
		f.partial = block
		f.parts = append(f.parts, piece{start, to, src})
		start = to
	}
	return nil
}

// blocks folds n whole blocks.
func (f *folder) blocks(first, n uint64, src *payload) error {
	if src == nil {
		f.hole(first, n)
		return nil
	}
	const batch = 256
	buf := make([]byte, min(n, batch)*BlockSize)
	for n > 0 {
		k := min(n, batch)
		data := buf[:k*BlockSize]
		damaged, err := f.readPayload(src, data, int64(first)*BlockSize)
		if err != nil {
			return err
		}
		f.loadBase(first, k)
		for i := range k {
			var mask uint8
			if damaged != nil {
				mask = damaged[i]
			}
			if err := f.block(first+i, data[i*BlockSize:][:BlockSize], mask); err != nil {
				return err
			}
		}
		first, n = first+k, n-k
	}
	return nil
}

// readPayload reads whole blocks of a journal payload. If the journal is damaged there,
// it returns for each block which sectors are lost: one bad page must not keep the
// volume, and with it the pool, from being folded. What is lost reads as an error.
func (f *folder) readPayload(src *payload, data []byte, off int64) (damaged []uint8, err error) {
	err = src.read(data, off)
	if !errors.Is(err, ErrCorrupt) {
		return nil, f.journalError(err)
	}
	f.s.log.Error("folding a damaged journal page", "volume_id", f.job.v.id, "err", err)
	damaged = make([]uint8, len(data)/BlockSize)
	for at := 0; at < len(data); at += sectorBytes {
		sector := data[at : at+sectorBytes]
		if err := src.read(sector, off+int64(at)); errors.Is(err, ErrCorrupt) {
			clear(sector)
			damaged[at/BlockSize] |= 1 << (at % BlockSize / sectorBytes)
		} else if err != nil {
			return nil, f.journalError(err)
		}
	}
	return damaged, nil
}

// journalError makes the volume fail closed if its journal cannot be read: it must not
// grow while it cannot be folded, and the others do not wait for its segments and its part
// of the reserve.
func (f *folder) journalError(err error) error {
	if err != nil {
		v := f.job.v
		v.mu.Lock()
		v.payAll()
		v.mu.log.Pin()
		v.fail(err)
		v.mu.Unlock()
		f.s.pool.Wake()
	}
	return err
}

func (f *folder) hole(first, n uint64) {
	f.changes = append(f.changes, change{first: first, count: n, hole: true})
}

// loadBase looks up what the base has at the blocks and just before them. A part of
// the map that cannot be read gives no hints; Update keeps what it can of it.
func (f *folder) loadBase(first, n uint64) {
	f.base = f.base[:0]
	if f.job.root.IsZero() {
		return
	}
	before := min(first, 1)
	f.s.tree.Lookup(f.job.root, first-before, n+before, func(e blockmap.Extent) error {
		if !e.IsHole() {
			f.base = append(f.base, e)
		}
		return nil
	})
}

// baseAt finds the base's slot of a block, and the chunk of the block or its neighbour.
func (f *folder) baseAt(block uint64) (slot dedup.Slot, hint dedup.ChunkID) {
	for len(f.base) > 1 && f.base[0].First+f.base[0].Count <= block && f.base[1].First <= block {
		f.base = f.base[1:]
	}
	if len(f.base) == 0 {
		return slot, hint
	}
	e := f.base[0]
	if block >= e.First && block < e.First+e.Count {
		if e.Damaged == 0 {
			slot = dedup.Slot{Chunk: e.Chunk, Slot: e.Slot + uint16(block-e.First)}
		}
	}
	return slot, e.Chunk
}

// block folds one block's content; damaged marks sectors that cannot be read.
func (f *folder) block(block uint64, data []byte, damaged uint8) error {
	prev, hint := f.baseAt(block)
	if damaged == 0 && isZero(data) {
		f.hole(block, 1)
		return nil
	}
	var hints []dedup.ChunkID
	if !hint.IsZero() {
		hints = []dedup.ChunkID{hint}
	}
	ref, err := f.w.Block(data, prev, hints...)
	if err != nil {
		return err
	}
	f.changes = append(f.changes, change{first: block, count: 1, ref: ref, damaged: damaged, prev: prev})
	return nil
}

// flushPartial folds the block that was gathered from spans of less than a block,
// merged with the base below it. An unreadable base never stops the fold: the sectors
// that only it had are marked, and read as errors from then on.
func (f *folder) flushPartial() error {
	if len(f.parts) == 0 {
		return nil
	}
	data := make([]byte, BlockSize)
	blockStart := int64(f.partial) * sectorsPerBlock
	var covered uint8
	for _, p := range f.parts {
		for s := p.start; s < p.end; s++ {
			covered |= 1 << (s - blockStart)
		}
	}
	var damaged uint8
	if covered != 0xff {
		lost, err := f.readBase(f.partial, data)
		if err != nil {
			return err
		}
		damaged = lost &^ covered
	}
	for _, p := range f.parts {
		dst := data[(p.start-blockStart)*sectorBytes : (p.end-blockStart)*sectorBytes]
		if p.src == nil {
			clear(dst)
		} else if err := p.src.read(dst, p.start*sectorBytes); errors.Is(err, ErrCorrupt) {
			f.s.log.Error("folding a damaged journal page", "volume_id", f.job.v.id, "err", err)
			clear(dst)
			for s := p.start; s < p.end; s++ {
				damaged |= 1 << (s - blockStart)
			}
		} else if err != nil {
			return f.journalError(err)
		}
	}
	f.parts = f.parts[:0]
	f.loadBase(f.partial, 1)
	return f.block(f.partial, data, damaged)
}

// readBase reads the base's content of a block and returns which sectors are damaged.
// Any other error than damage is returned: the fold is tried again.
func (f *folder) readBase(block uint64, data []byte) (damaged uint8, err error) {
	lost := func(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrMissing) }
	off := int64(block) * BlockSize
	err = f.s.readImage(data, off, f.job.root)
	if f.s.rereadFor(err) {
		err = f.s.readImage(data, off, f.job.root)
	}
	if !lost(err) {
		return 0, err
	}
	if f.mayReadLater(err) {
		return 0, &unreadError{f.job.v, err}
	}
	f.s.log.Error("folding over a damaged block", "volume_id", f.job.v.id, "offset", off, "err", err)
	for i := range sectorsPerBlock {
		sector := data[i*sectorBytes:][:sectorBytes]
		err := f.s.readImage(sector, off+int64(i)*sectorBytes, f.job.root)
		if lost(err) {
			clear(sector)
			damaged |= 1 << i
		} else if err != nil {
			return 0, err
		}
	}
	return damaged, nil
}

// unreadTries is how many folds in a row fail, a second apart, before sectors that the
// disk answers errors for are given up.
const unreadTries = 5

// unreadError ends a fold that is worth another try.
type unreadError struct {
	v   *Volume // whose base was not read
	err error
}

func (e *unreadError) Error() string { return e.err.Error() }
func (e *unreadError) Unwrap() error { return e.err }

// mayReadLater tells whether a read that failed is worth another fold: the disk answered
// an error, now or when the store was opened, and not yet for long. What is folded over is
// lost even if the disk recovers.
func (f *folder) mayReadLater(err error) bool {
	damage, ok := errors.AsType[*dedup.DamageError](err)
	if f.s.chunks.Silent() == 0 && !(ok && damage.Unread) {
		return false
	}
	f.job.v.mu.RLock()
	defer f.job.v.mu.RUnlock()
	return f.job.v.mu.tries < unreadTries
}

var zeroBlock [BlockSize]byte

func isZero(b []byte) bool { return string(b) == string(zeroBlock[:len(b)]) }
