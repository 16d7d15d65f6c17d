package dedup

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
)

// Rebuilt is a damaged chunk file and what was saved of it. Both are in the index until
// Retire.
type Rebuilt struct {
	New     string   // of the file that was written; "" if there was nothing to save
	Reasons []string // why it had to be
	Slots   int      // slots written anew
	// Lost are slots that were in the file, that somebody may need, and whose content is
	// nowhere. Their fingerprints are kept.
	Lost []Damage

	s   *Store
	old *file // nil when it is not in the index
	ff  *foundFile
}

// Suspects lists chunk files that Open could not use, or only by scanning, by name.
func (s *Store) Suspects() ([]string, error) {
	infos, err := s.dir.List()
	if err != nil {
		return nil, err
	}
	var out []string
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, in := range infos {
		num, _, ok := parseName(in.Name)
		if f := s.files[num]; ok && (f == nil || f.blob.Name() != in.Name || f.strange || f.failed) {
			out = append(out, in.Name)
		}
	}
	return out, nil
}

// Repairable tells whether Rebuild would make something of a chunk file better, if every
// slot of it may be needed. It changes nothing.
func (s *Store) Repairable(name string) (bool, error) {
	r, err := s.newRebuild(name, nil)
	if err != nil || r == nil {
		return false, err
	}
	return len(r.reasons) > 0, nil
}

// Rebuild writes what can be proved of a damaged chunk file into a new one, sealed and
// durable, if that makes something better; else it returns nil. What another sound file
// holds is not written again. Files must have been verified before (VerifyFile), with
// their data, and nobody else may use the Store. needed tells whether a slot may be
// needed; nil: every one may be. A file of another version, or that the disk does not
// let us read, is left alone, as is one whose bad slots are all that is wrong with it: it
// keeps the fingerprints by which they heal. After an error, ErrNoSpace for one, all is as
// it was.
func (s *Store) Rebuild(name string, needed func(Slot) bool) (*Rebuilt, error) {
	r, err := s.newRebuild(name, needed)
	if err != nil || r == nil || len(r.reasons) == 0 {
		return nil, err
	}
	if err := r.write(); err != nil {
		return nil, fmt.Errorf("rebuild %s: %w", name, err)
	}
	return r.out, nil
}

// Retire takes the damaged file out of the index and moves it into the directory dir,
// durably; it returns its name there.
func (r *Rebuilt) Retire(dir string) (string, error) {
	if f := r.old; f != nil {
		r.s.mu.Lock()
		r.s.unindex(f)
		r.s.mu.Unlock()
	}
	return r.ff.blob.MoveTo(dir)
}

// rebuild is one Rebuild under way.
type rebuild struct {
	s       *Store
	ff      *foundFile
	file    *file // nil: not in the index
	cands   []candidate
	needed  func(Slot) bool
	reasons []string
	out     *Rebuilt
	new     *file
}

// newRebuild looks at a file; nil if it must be left alone.
func (s *Store) newRebuild(name string, needed func(Slot) bool) (*rebuild, error) {
	ff, f, err := s.findFile(name)
	if err != nil || ff == nil {
		return nil, err
	}
	if needed == nil {
		needed = func(Slot) bool { return true }
	}
	r := &rebuild{s: s, ff: ff, file: f, needed: needed}
	if f == nil {
		defer ff.blob.Close()
	}
	err = r.examine()
	switch {
	case errors.Is(err, ErrVersion), errors.Is(err, errUnread):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r.out = &Rebuilt{Reasons: r.reasons, s: s, old: r.file, ff: ff}
	return r, nil
}

// findFile is the file with a name in the directory, and the index's file if it is there;
// nil if it is no chunk file. One that the index has is read through the index's
// descriptor, which is closed when it is removed.
func (s *Store) findFile(name string) (*foundFile, *file, error) {
	num, hash, ok := parseName(name)
	if !ok {
		return nil, nil, nil
	}
	infos, err := s.dir.List()
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(infos, func(in blob.Info) bool { return in.Name == name })
	if i < 0 {
		return nil, nil, fmt.Errorf("chunk file %s: %w", name, vfs.ErrNotExist)
	}
	ff := &foundFile{Info: infos[i], num: num, sealed: hash != ""}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if f := s.files[num]; f != nil && f.blob.Name() == name {
		ff.blob = f.blob
		return ff, f, nil
	}
	ff.blob = s.dir.File(name)
	return ff, nil, nil
}

// errUnread says that the disk answered an error: what is there may be whole.
var errUnread = errors.New("the disk does not let us read it")

// unread marks an error of a read.
func unread(err error) error {
	if err == nil || errors.Is(err, vfs.ErrDead) || errors.Is(err, vfs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnread, err)
}

func (r *rebuild) reason(format string, args ...any) {
	r.reasons = append(r.reasons, fmt.Sprintf(format, args...))
}

// examine finds out what is wrong with the file that its rebuilding would put right.
func (r *rebuild) examine() error {
	foreign, err := r.header()
	if err != nil || foreign {
		return err
	}
	hash, err := r.footer()
	if err != nil {
		return err
	}
	if r.cands, err = r.s.candidates(r.ff, hash != nil); err != nil {
		return unread(err)
	}
	clean := true
	for _, c := range r.cands {
		v, err := r.s.salvage(r.ff.blob, r.ff.Size, c, r.known)
		if err != nil {
			return unread(err)
		}
		clean = clean && v.clean()
		r.judge(v)
	}
	if clean && hash != nil {
		return r.content(*hash)
	}
	return nil
}

// header verifies the file header. foreign: the file is another store's, and nothing of
// it is ours.
func (r *rebuild) header() (foreign bool, err error) {
	ff := r.ff
	if r.file == nil && r.s.numberTaken(ff.num) {
		r.reason("another file has its number")
	}
	b := make([]byte, min(ff.Size, fileHeaderSize))
	if _, err := ff.blob.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, unread(err)
	}
	h, err := parseFileHeader(b)
	switch {
	case errors.Is(err, ErrVersion):
		return false, err
	case err == nil && h.store != r.s.o.Store:
		r.reason("it belongs to store %x", h.store)
		return true, nil
	case err != nil && ff.sealed: // a start writes that of an open file anew
		r.reason("file header: %v", err)
	case err == nil && h.num != ff.num:
		r.reason("its header says that it is file %s", h.num.openName())
	}
	return false, nil
}

// numberTaken tells whether a file in the index has the number.
func (s *Store) numberTaken(num FileNum) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.files[num] != nil
}

// footer reads the footer of a sealed file and returns the content hash in its trailer;
// nil if there is no good footer.
func (r *rebuild) footer() (*[32]byte, error) {
	ff := r.ff
	if !ff.sealed {
		return nil, nil
	}
	err := r.s.readFooter(ff)
	switch {
	case errors.Is(err, ErrVersion):
		return nil, err
	case errors.Is(err, io.EOF):
		r.reason("it is shorter than its size: %v", err)
		return nil, nil
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrFormat):
		r.reason("%v", err)
		return nil, nil
	case err != nil:
		return nil, unread(err)
	}
	b := make([]byte, trailerSize)
	if _, err := ff.blob.ReadAt(b, ff.Size-trailerSize); err != nil {
		return nil, unread(err)
	}
	t, err := parseTrailer(b)
	if err != nil {
		return nil, err
	}
	if ff.num.sealedName(t.hash) != ff.Name {
		r.reason("its name is not that of its content")
	}
	return &t.hash, nil
}

// content verifies the content hash of a file with nothing else wrong: what differs is
// in nobody's chunk.
func (r *rebuild) content(want [32]byte) error {
	sum, err := contentHash(r.ff.blob, r.ff.Size)
	if err != nil {
		return unread(err)
	}
	if sum != want {
		r.reason("content hash")
	}
	return nil
}

// judge notes what rebuilding a chunk would put right.
func (r *rebuild) judge(v *salvaged) {
	if !r.ff.sealed {
		r.judgeOpen(v)
		return
	}
	if v.tree != nil && v.mended && !v.searched {
		r.reason("chunk %s at %d: head, front, list or a checksum", v.head.id, v.off)
	}
	if v.tree == nil || v.good == v.tree.have {
		return
	}
	d := r.decide(v)
	if gone := v.tree.have.minus(&v.good); d.lost != gone {
		r.reason("chunk %s at %d: bad slots that another copy holds, or that nobody needs", v.head.id, v.off)
	}
}

// judgeOpen is judge for an open file: a start seals it and cuts off what is not whole,
// so it is rebuilt if something needed is in such a part.
func (r *rebuild) judgeOpen(v *salvaged) {
	if v.tree == nil || v.clean() {
		return
	}
	d := r.decide(v)
	for i := range v.tree.n {
		at := Slot{v.head.id, uint16(i)}
		if d.keep.has(i) && r.needed(at) && !r.s.Has(at.Chunk, at.Slot, 1) {
			r.reason("chunk %s at %d is not whole, but a part of it is good", v.head.id, v.off)
			return
		}
	}
}

// decision is what becomes of the slots of a copy: those kept are written, of those
// lost the fingerprints are kept, the others go.
type decision struct{ keep, lost bitmap }

func (r *rebuild) decide(v *salvaged) (d decision) {
	for i := range v.tree.n {
		if !v.tree.have.has(i) {
			continue
		}
		elsewhere, marked := r.elsewhere(v.head.id, i)
		at := Slot{v.head.id, uint16(i)}
		switch {
		case elsewhere, v.searched && !r.needed(at):
		case v.good.has(i):
			d.keep.set(i)
		case marked:
			r.marked(at)
		case r.needed(at):
			d.lost.set(i)
		}
	}
	return d
}

// marked notes a slot whose fingerprint an earlier rebuilding has kept.
func (r *rebuild) marked(at Slot) {
	if r.out == nil {
		return // only looking
	}
	r.s.mu.RLock()
	d, ok := r.s.damage[at]
	r.s.mu.RUnlock()
	if !ok {
		return
	}
	if d.Fingerprint.IsZero() { // nobody has recorded it: a death came before
		if fp, err := r.s.Fingerprint(at); err == nil {
			d.Fingerprint = fp
		}
	}
	r.out.Lost = append(r.out.Lost, d)
}

// elsewhere tells whether another sound file holds a slot well, or its fingerprint.
func (r *rebuild) elsewhere(id ChunkID, slot int) (good, marked bool) {
	s := r.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	ch := s.index[id]
	if ch == nil {
		return false, false
	}
	for _, c := range ch.copies {
		if c.file == r.file || !c.file.sealed || c.file.failed || c.file.strange || !c.has(slot) {
			continue
		}
		good = good || c.good(slot)
		marked = marked || c.allLost()
	}
	return good, marked
}

// known is a list from another file that proves a chunk's ID.
func (r *rebuild) known(id ChunkID) *tree {
	s := r.s
	s.mu.RLock()
	var copies []*chunkCopy
	if ch := s.index[id]; ch != nil {
		copies = ch.copies
	}
	s.mu.RUnlock()
	var best *tree
	for _, c := range copies {
		if c.file == r.file {
			continue
		}
		t, err := s.readTree(c)
		if err == nil && t.prove(id) == nil && (best == nil || t.have.count() > best.have.count()) {
			best = t
		}
	}
	return best
}

// write makes the new file, if there is something to put into it.
func (r *rebuild) write() error {
	err := r.copyAll()
	if err == nil && r.new != nil {
		err = r.s.sealPrivate(r.new)
	}
	if err != nil {
		if r.new != nil && !r.new.sealed {
			return errors.Join(err, r.s.forget(r.new))
		}
		return err
	}
	if r.new == nil {
		return nil
	}
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publish(r.new)
	r.out.New = r.new.blob.Name()
	for i := range r.out.Lost {
		if d := &r.out.Lost[i]; d.File == "" {
			d.File = r.out.New
			s.noteDamage(*d)
		}
	}
	return nil
}

// copyAll appends what is kept of every chunk to the new file.
func (r *rebuild) copyAll() error {
	for _, c := range r.cands {
		v, err := r.s.salvage(r.ff.blob, r.ff.Size, c, r.known)
		if err != nil {
			return err
		}
		if v.tree == nil {
			err = r.copyRaw(v)
		} else {
			err = r.copy(v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyRaw copies a chunk as it is that can be read but not proved, unless all of it is
// elsewhere.
func (r *rebuild) copyRaw(v *salvaged) error {
	if v.raw == nil {
		return nil
	}
	have := v.raw.front.have
	for i := range int(v.head.slots) {
		if good, _ := r.elsewhere(v.head.id, i); have.has(i) && !good {
			r.out.Slots += have.count()
			_, err := r.append(v.raw)
			return err
		}
	}
	return nil
}

// copy appends the good slots of a chunk as one copy, and the fingerprints of lost ones
// as another.
func (r *rebuild) copy(v *salvaged) error {
	d := r.decide(v)
	if d.keep != (bitmap{}) {
		t, err := v.tree.reduce(&d.keep)
		if err != nil {
			return err
		}
		whole := make([]storedGroup, len(v.groups))
		for g := range v.groups {
			lo, hi := g<<v.head.shift, min((g+1)<<v.head.shift, t.n)
			if d.keep.countRange(lo, hi) == v.tree.have.countRange(lo, hi) {
				whole[g] = v.groups[g]
			}
		}
		e, err := r.s.encodeMixed(v.head.id, t, v.head.shift, v.codec, whole, func(i int) []byte { return v.blocks[i] })
		if err != nil {
			return err
		}
		r.out.Slots += d.keep.count()
		if _, err := r.append(e); err != nil {
			return err
		}
	}
	if d.lost == (bitmap{}) {
		return nil
	}
	return r.markLost(v, d)
}

// markLost appends a copy that keeps the fingerprints of the lost slots of a chunk.
func (r *rebuild) markLost(v *salvaged, d decision) error {
	t, err := v.tree.reduce(&d.lost)
	if err != nil {
		return err
	}
	e, err := encodeChunk(v.head.id, t, v.head.shift, lostGroups(t.n, &d.lost, v.head.shift), r.s.o.Commit())
	if err != nil {
		return err
	}
	c, err := r.append(e)
	if err != nil {
		return err
	}
	for i := range t.n {
		if d.lost.has(i) {
			r.out.Lost = append(r.out.Lost, Damage{
				Slot: Slot{v.head.id, uint16(i)}, Fingerprint: t.fps[i], Offset: int64(c.off),
				Reason: lostReason + " of " + r.ff.Name,
			})
		}
	}
	return nil
}

// append appends a copy to the new file, which it makes first.
func (r *rebuild) append(e *encodedChunk) (_ *chunkCopy, err error) {
	if r.new == nil {
		if r.new, err = r.s.createPrivate(); err != nil {
			return nil, err
		}
	}
	return r.s.appendTo(r.new, e, false)
}
