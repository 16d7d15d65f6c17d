package dedup

import (
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/k8ns/granary/pkg/vfs"
)

// VerifyFile checks a chunk file: header, chunk heads against the index, lists
// against the chunk IDs, of a sealed file footer and trailer, and with readData every
// group's checksum, every fingerprint and the content hash. What is wrong goes to
// report, in the order of the file; slots found bad become known damage, and known
// damage that reads whole is forgotten. An error
// means that the check could not be made; vfs.ErrNotExist if there is no such file
// (any more).
func (s *Store) VerifyFile(name string, readData bool, report func(Problem)) error {
	num, _, ok := parseName(name)
	s.mu.RLock()
	f := s.files[num]
	if !ok || f == nil || f.private {
		s.mu.RUnlock()
		return fmt.Errorf("chunk file %s: %w", name, vfs.ErrNotExist)
	}
	copies, size, sealed, failed := f.copies, f.size, f.sealed, f.failed
	s.mu.RUnlock()
	if size == 0 {
		return nil // abandoned, and cut, before anything of it was durable
	}
	release, err := f.blob.Hold()
	if err != nil {
		return err
	}
	defer release()
	v := &verifier{s: s, f: f, name: f.blob.Name(), failed: failed, report: report}
	v.header()
	for _, c := range copies {
		v.chunk(c, readData)
		if v.left() {
			break
		}
	}
	if sealed {
		v.footer(size, len(copies), readData)
	}
	if v.left() {
		return fmt.Errorf("chunk file %s: %w", name, vfs.ErrNotExist)
	}
	return nil
}

// verifier is one VerifyFile under way.
type verifier struct {
	s      *Store
	f      *file
	name   string
	failed bool // the file had been abandoned before
	report func(Problem)
}

// left tells whether the file was collected, or abandoned and cut, since the check of it
// began: what cannot be read from then on is no fault of it.
func (v *verifier) left() bool {
	v.s.mu.RLock()
	defer v.s.mu.RUnlock()
	return v.f.gone || v.f.failed && !v.failed
}

func (v *verifier) problem(off int64, at Slot, format string, args ...any) {
	if v.left() {
		return
	}
	v.report(Problem{File: v.name, Offset: off, Slot: at, Text: fmt.Sprintf(format, args...)})
}

func (v *verifier) header() {
	b := make([]byte, fileHeaderSize)
	if _, err := v.f.blob.ReadAt(b, 0); err != nil {
		v.problem(0, Slot{}, "file header: %v", err)
		return
	}
	h, err := parseFileHeader(b)
	switch {
	case err != nil:
		v.problem(0, Slot{}, "file header: %v", err)
	case h.store != v.s.o.Store:
		v.problem(0, Slot{}, "it belongs to store %x", h.store)
	case h.num != v.f.num:
		v.problem(0, Slot{}, "its header says that it is file %s", h.num.openName())
	}
}

// chunk checks one chunk.
func (v *verifier) chunk(c *chunkCopy, readData bool) {
	s, first := v.s, Slot{Chunk: c.chunk.id}
	s.fronts.Remove(c.key) // from the disk, not from memory
	f, err := s.front(c)
	if err != nil {
		v.bad(err, first)
		return
	}
	list := make([]byte, c.list)
	at := int64(c.off) + headSize + int64(c.front)
	var t *tree
	if _, err = v.f.blob.ReadAt(list, at); err == nil {
		t, err = proveList(f, list)
	}
	if err != nil {
		v.problem(at, first, "fingerprint list: %v", err)
		s.mu.Lock()
		c.listBad = true
		s.mu.Unlock()
	}
	if !readData || f.head.allLost(&f.have) {
		return // what was lost is no fault of the file: it is as it was written
	}
	for g, r := range f.groups {
		if r.size > 0 {
			v.group(c, f, t, g)
		}
	}
}

// group checks a group's bytes, and its fingerprints unless t is nil.
func (v *verifier) group(c *chunkCopy, f *front, t *tree, g int) {
	s, r := v.s, f.groups[g]
	buf := s.buffer(int(r.size))
	defer s.release(buf)
	lo, hi, _ := f.slotsIn(g)
	err := s.readStored(c, f, g, *buf)
	var group []byte
	if err == nil {
		group, err = s.decode(c, f, g, *buf)
	}
	if err != nil {
		v.bad(err, Slot{c.chunk.id, uint16(lo)})
		return
	}
	if t == nil {
		return
	}
	wrong := wrongSlots(c, f, t.fps, g, group)
	for _, bad := range wrong {
		v.bad(bad, Slot{c.chunk.id, uint16(bad.lo)})
	}
	if len(wrong) == 0 {
		s.markGood(c, lo, hi)
	}
}

// bad reports an error and makes damage known.
func (v *verifier) bad(err error, at Slot) {
	var bad *badPart
	if !errors.As(err, &bad) {
		v.problem(0, at, "%v", err)
		return
	}
	if v.left() {
		return
	}
	at.Slot = uint16(bad.lo)
	v.problem(bad.off, at, "slots %d to %d: %s", bad.lo, bad.hi-1, bad.reason)
	v.s.markBad(bad)
}

// footer checks trailer, footer and, with readData, the content hash.
func (v *verifier) footer(size int64, chunks int, readData bool) {
	ff := &foundFile{num: v.f.num, blob: v.f.blob}
	ff.Name, ff.Size = v.name, size
	if err := v.s.readFooter(ff); err != nil {
		v.problem(size-trailerSize, Slot{}, "%v", err)
		return
	}
	if len(ff.chunks) != chunks {
		v.problem(size-trailerSize, Slot{}, "footer lists %d chunks, the index %d", len(ff.chunks), chunks)
	}
	if !readData {
		return
	}
	sum, err := contentHash(v.f.blob, size)
	if err != nil {
		v.problem(0, Slot{}, "content hash: %v", err)
		return
	}
	b := make([]byte, trailerSize)
	if _, err := v.f.blob.ReadAt(b, size-trailerSize); err != nil {
		v.problem(size-trailerSize, Slot{}, "trailer: %v", err)
		return
	}
	t, err := parseTrailer(b)
	switch {
	case err != nil:
		v.problem(size-trailerSize, Slot{}, "%v", err)
	case t.hash != sum:
		v.problem(0, Slot{}, "content hash is %x, the trailer says %x", sum, t.hash)
	case v.f.num.sealedName(sum) != v.name:
		v.problem(0, Slot{}, "content hash is %x, the name says otherwise", sum)
	}
}

// contentHash computes the content hash of a sealed file of size bytes.
func contentHash(r io.ReaderAt, size int64) (sum [32]byte, err error) {
	h := blake3.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, size-trailerSize)); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}
