package blockstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/dedup"
)

// ReadError is a range of a volume that cannot be read. It wraps the reason; for
// damage that names the chunk file or journal segment and the place in it.
type ReadError struct {
	Volume string
	Offset int64 // bytes
	Bytes  int64
	Err    error
}

func (e *ReadError) Error() string {
	return fmt.Sprintf("volume %s: cannot read %d bytes at %d: %v", e.Volume, e.Bytes, e.Offset, e.Err)
}

func (e *ReadError) Unwrap() error { return e.Err }

// errDamagedSectors is a block that was folded over an unreadable one.
var errDamagedSectors = fmt.Errorf("sectors lost when the block below them was damaged: %w", ErrCorrupt)

// piece is a part of a read that the overlay answers.
type piece struct {
	start, end int64 // sectors
	src        *payload
}

// ReadAt fills p from off; both must be multiples of 512 bytes. Damage is a
// *ReadError, never wrong data (I5). Safe for concurrent use.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if err := v.checkRange("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	var lastRoot dedup.Slot
	for first := true; ; first = false {
		root, err := v.readOnce(p, off)
		if err == nil {
			return len(p), nil
		}
		// A fold may have replaced the root and the collector dropped what only the
		// old one reached: look again with the new root.
		again := errors.Is(err, ErrMissing) && (first || root != lastRoot) || v.store.rereadFor(err)
		if !again {
			return 0, err
		}
		lastRoot = root
	}
}

// rereadEvery is the shortest time between two looks at chunk files that could not be read.
const rereadEvery = time.Second

// reread looks whether chunk files can be read that could not when the store was opened,
// and tells whether one of them can.
func (s *Store) reread() bool {
	before := s.chunks.Silent()
	if before == 0 {
		return false
	}
	s.silent.Lock()
	defer s.silent.Unlock()
	if now := s.o.Now(); now.Sub(s.silent.looked) >= rereadEvery {
		s.silent.looked = now
		s.chunks.Reread()
	}
	return s.chunks.Silent() < before
}

// rereadFor is reread for a read that met an error which another copy might spare it.
func (s *Store) rereadFor(err error) bool {
	return (errors.Is(err, ErrMissing) || errors.Is(err, ErrCorrupt)) && s.reread()
}

// readOnce reads with one view of the volume and returns its root.
func (v *Volume) readOnce(p []byte, off int64) (dedup.Slot, error) {
	start, end := off/sectorBytes, (off+int64(len(p)))/sectorBytes
	v.mu.RLock()
	if v.mu.failed != nil {
		err := v.mu.failed
		v.mu.RUnlock()
		return dedup.Slot{}, fmt.Errorf("volume %s: %w: %w", v.id, ErrFailed, err)
	}
	root := v.mu.root
	pieces := overlayPieces(v.mu.layers, start, end)
	for _, pc := range pieces {
		if pc.src != nil {
			pc.src.seg.Acquire()
		}
	}
	v.mu.RUnlock()
	err := v.fill(p, off, pieces, root)
	for _, pc := range pieces {
		if pc.src != nil {
			pc.src.seg.Release()
		}
	}
	return root, err
}

// overlayPieces finds what the layers know of [start, end), newest first, in order.
func overlayPieces(layers []*layer, start, end int64) []piece {
	var pieces []piece
	gaps := []piece{{start: start, end: end}}
	for i := len(layers) - 1; i >= 0 && len(gaps) > 0; i-- {
		l := layers[i]
		if !l.data {
			continue
		}
		var left []piece
		for _, g := range gaps {
			at := g.start
			l.each(g.start, g.end, func(s, e int64, src *payload) bool {
				if s > at {
					left = append(left, piece{start: at, end: s})
				}
				pieces = append(pieces, piece{s, e, src})
				at = e
				return true
			})
			if at < g.end {
				left = append(left, piece{start: at, end: g.end})
			}
		}
		gaps = left
	}
	sortPieces(pieces)
	return pieces
}

func sortPieces(p []piece) {
	for i := 1; i < len(p); i++ { // nearly sorted and short
		for j := i; j > 0 && p[j].start < p[j-1].start; j-- {
			p[j], p[j-1] = p[j-1], p[j]
		}
	}
}

// fill reads pieces from the overlay and the rest from the block map.
func (v *Volume) fill(p []byte, off int64, pieces []piece, root dedup.Slot) error {
	at, end := off, off+int64(len(p))
	for _, pc := range pieces {
		ps, pe := pc.start*sectorBytes, pc.end*sectorBytes
		if ps > at {
			if err := v.readMap(p[at-off:ps-off], at, root); err != nil {
				return err
			}
		}
		dst := p[ps-off : pe-off]
		if pc.src == nil {
			clear(dst)
		} else if err := pc.src.read(dst, ps); err != nil {
			return &ReadError{v.id, ps, int64(len(dst)), err}
		}
		at = pe
	}
	if at < end {
		return v.readMap(p[at-off:], at, root)
	}
	return nil
}

// readMap reads a range from a root, whatever the overlay says.
func (v *Volume) readMap(p []byte, off int64, root dedup.Slot) error {
	err := v.store.readImage(p, off, root)
	var re *ReadError
	if errors.As(err, &re) {
		re.Volume = v.id
	}
	return err
}

// readImage reads a range of the image that root names; off and len(p) are multiples
// of 512. Errors are *ReadError without a volume.
func (s *Store) readImage(p []byte, off int64, root dedup.Slot) error {
	if root.IsZero() {
		clear(p)
		return nil
	}
	end := off + int64(len(p))
	first := uint64(off / BlockSize)
	count := uint64((end+BlockSize-1)/BlockSize) - first
	err := s.tree.Lookup(root, first, count, func(e blockmap.Extent) error {
		es, ee := int64(e.First)*BlockSize, int64(e.First+e.Count)*BlockSize
		from, to := max(es, off), min(ee, end)
		dst := p[from-off : to-off]
		if e.IsHole() {
			clear(dst)
			return nil
		}
		return s.readExtent(dst, from, es, e)
	})
	var ne *blockmap.NodeError
	if errors.As(err, &ne) {
		return &ReadError{Offset: off, Bytes: int64(len(p)), Err: err}
	}
	return err
}

// readExtent reads dst, which begins at byte offset from, out of an extent that begins
// at byte offset es.
func (s *Store) readExtent(dst []byte, from, es int64, e blockmap.Extent) error {
	to := from + int64(len(dst))
	if e.Damaged != 0 {
		for sector := from / sectorBytes; sector < to/sectorBytes; sector++ {
			if e.Damaged&(1<<(sector%8)) != 0 {
				return &ReadError{Offset: sector * sectorBytes, Bytes: sectorBytes, Err: errDamagedSectors}
			}
		}
	}
	skip, tail := (from-es)%BlockSize, (to-es)%BlockSize
	firstBlock := (from - es) / BlockSize
	blocks := int((to-es+BlockSize-1)/BlockSize - firstBlock)
	buf := dst
	if skip != 0 || tail != 0 {
		buf = make([]byte, blocks*BlockSize)
	}
	if err := s.chunks.ReadSlots(e.Chunk, e.Slot+uint16(firstBlock), blocks, buf); err != nil {
		return &ReadError{Offset: from, Bytes: int64(len(dst)), Err: err}
	}
	if skip != 0 || tail != 0 {
		copy(dst, buf[skip:])
	}
	return nil
}
