package dedup

import (
	"errors"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/k8ns/granary/pkg/wal"
)

// errAbandoned means that a chunk file was given up after an I/O error (I8).
var errAbandoned = errors.New("chunk file abandoned after an I/O error")

// append writes a chunk behind the open file and puts it into the index, unless every
// slot of it is usable already. It returns the copies that the chunk now has. A file
// that is full is sealed on the way.
func (s *Store) append(e *encodedChunk) ([]*chunkCopy, error) {
	for {
		copies, full, err := s.tryAppend(e)
		if full != nil {
			// What the chunk's owner needs is that it is durable, and Sync sees to that.
			s.sealFull(full)
		}
		switch {
		case errors.Is(err, errAbandoned) && errors.Is(err, errRetry):
		case errors.Is(err, ErrNoSpace) && s.o.NoSpace():
		default:
			return copies, err
		}
	}
}

// sealFull seals a file that is full. On a full disk it may stay open: SealLeft, SealOpen
// and Close try again.
func (s *Store) sealFull(f *file) {
	for {
		err := s.seal(f)
		switch {
		case err == nil:
			return
		case !errors.Is(err, ErrNoSpace):
			s.problem(Problem{File: f.blob.Name(), Text: "sealing failed: " + err.Error()})
			return
		case !s.o.NoSpace():
			s.unsealed.Store(true)
			return
		}
	}
}

// errRetry marks an append that another file may take.
var errRetry = errors.New("try the next file")

// tryAppend is one attempt of append. full is a file to be sealed.
func (s *Store) tryAppend(e *encodedChunk) (copies []*chunkCopy, full *file, err error) {
	s.appending.Lock()
	defer s.appending.Unlock()
	s.mu.RLock()
	closed := s.closed || s.o.ReadOnly
	if ch := s.index[e.front.head.id]; ch != nil && e.front.head.present == e.front.head.slots && ch.whole() {
		copies = ch.copies
	}
	if s.open != nil && s.open.failed {
		s.open = nil
	}
	s.mu.RUnlock()
	if copies != nil {
		return copies, nil, nil
	}
	if closed {
		return nil, nil, ErrClosed
	}
	if s.open == nil {
		if s.open, err = s.create(); err != nil {
			return nil, nil, err
		}
	}
	f := s.open
	c, err := s.appendTo(f, e, true)
	if err != nil {
		if !errors.Is(err, ErrNoSpace) {
			s.open = nil
		}
		return nil, nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if copies = c.chunk.copies; f.size >= s.o.FileBytes {
		s.open, full = nil, f
	}
	return copies, full, nil
}

// create makes a new chunk file, its name durable, its header written. s.appending is
// held.
func (s *Store) create() (*file, error) {
	s.counter++
	num := FileNum{s.o.Epoch, s.counter}
	commit := s.o.Commit()
	b, err := s.dir.Create(num.openName())
	if err != nil {
		return nil, err
	}
	head := (&fileHeader{store: s.o.Store, num: num, commit: commit}).encode()
	if _, err := b.Writer().WriteAt(head, 0); err != nil {
		b.Remove()
		return nil, fmt.Errorf("write %s: %w", num.openName(), err)
	}
	f := &file{num: num, blob: b, size: fileHeaderSize, commit: commit, hash: blake3.New()}
	f.hash.Write(head)
	s.mu.Lock()
	s.addFile(f)
	s.maxCommit = max(s.maxCommit, commit)
	s.mu.Unlock()
	return f, nil
}

// appendTo writes a chunk behind a file that the caller alone appends to. With
// indexed it enters the index at once, otherwise its copy is only in the file's list.
// After ErrNoSpace the next append goes to the same offset; after any other error the
// file is abandoned.
func (s *Store) appendTo(f *file, e *encodedChunk, indexed bool) (*chunkCopy, error) {
	s.mu.RLock()
	at := f.size
	s.mu.RUnlock()
	bufs := append([][]byte{e.meta}, e.data...)
	if _, err := f.blob.Writer().WriteVec(bufs, at); err != nil {
		err = fmt.Errorf("append to %s: %w", f.blob.Name(), err)
		s.takeBack(f, at, err)
		return nil, err
	}
	for _, b := range bufs {
		f.hash.Write(b)
	}
	h := &e.front.head
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.failed {
		return nil, fmt.Errorf("%s: %w: %w", f.blob.Name(), errAbandoned, errRetry)
	}
	s.seq++
	f.seq = s.seq
	s.resize(f, at+h.size())
	f.commit = max(f.commit, h.commit)
	s.maxCommit = max(s.maxCommit, h.commit)
	s.stats.written.Add(h.size())
	hooks := e.hooks(uint16(len(f.copies)))
	if len(f.copies) < 1<<16 {
		f.hooks = append(f.hooks, hooks...)
	}
	var c *chunkCopy
	if indexed {
		c = s.insert(f, h, uint32(at), &e.front.have)
		for _, h := range hooks {
			s.addHook(h.prefix, c.chunk.num)
		}
		s.fronts.Add(c.key, e.front)
	} else {
		c = s.detached(f, h, uint32(at), &e.front.have)
	}
	return c, nil
}

// takeBack ends a write at the end of a file that failed with err. On a full disk what
// was written of it is cut off, as it must not follow a footer, and the file goes on;
// if that fails as well, and after any other error, the file is abandoned.
func (s *Store) takeBack(f *file, size int64, err error) {
	if errors.Is(err, ErrNoSpace) {
		cut := f.blob.Writer().Truncate(size)
		if cut == nil {
			return
		}
		err = errors.Join(err, cut)
	}
	s.abandon(f, err)
}

// detached is a copy that is in its file's list, but not in the index yet. s.mu is
// held for writing.
func (s *Store) detached(f *file, h *chunkHead, off uint32, have *bitmap) *chunkCopy {
	s.copyKeys++
	c := &chunkCopy{
		chunk: &chunk{id: h.id, kind: h.kind, slots: h.slots}, file: f, off: off,
		front: h.front, list: h.list, payload: h.payload, key: s.copyKeys, present: h.present, shift: h.shift,
	}
	if h.present < h.slots {
		b := *have
		c.have = &b
	}
	f.copies = append(f.copies, c)
	return c
}

// syncFile makes a file durable up to end at least. Concurrent callers share one
// fdatasync. When that fails the file is abandoned.
func (s *Store) syncFile(f *file, end int64) error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	s.mu.RLock()
	size, synced, failed := f.size, f.synced, f.failed
	s.mu.RUnlock()
	switch {
	case synced >= end:
		return nil
	case failed:
		return fmt.Errorf("%s: %w", f.blob.Name(), errAbandoned)
	}
	if err := f.blob.Writer().Datasync(); err != nil {
		err = fmt.Errorf("sync %s: %w", f.blob.Name(), err)
		s.abandon(f, err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.failed { // an append failed meanwhile: what it left behind is cut, no more
		return fmt.Errorf("%s: %w", f.blob.Name(), errAbandoned)
	}
	f.synced = max(f.synced, size)
	return nil
}

// abandon gives a file up after an I/O error: chunks that were not synced leave the
// index, nothing is written to it any more but the cut that keeps the next start from
// finding in the page cache what never reached the disk (I8).
func (s *Store) abandon(f *file, why error) {
	s.mu.Lock()
	if f.failed {
		s.mu.Unlock()
		return
	}
	f.failed = true
	s.resize(f, f.synced)
	var kept []*chunkCopy
	for _, c := range f.copies {
		if c.end() <= f.synced {
			kept = append(kept, c)
		} else {
			s.remove(c)
		}
	}
	f.copies = kept
	cut := f.size
	s.problems = append(s.problems, Problem{File: f.blob.Name(), Offset: cut, Text: "abandoned: " + why.Error()})
	s.mu.Unlock()
	if w := f.blob.Writer(); w != nil {
		w.Truncate(cut) // an error leaves the file as it is: the next start checks it
	}
}

// seal writes footer and trailer of a file that nobody appends to any more, syncs it
// and gives it its final name. ErrNoSpace leaves it open: it can be tried again.
func (s *Store) seal(f *file) error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	s.mu.RLock()
	skip := f.sealed || f.failed || f.gone
	size, commit := f.size, f.commit
	chunks := make([]footerChunk, len(f.copies))
	for i, c := range f.copies {
		chunks[i] = footerChunk{off: c.off, have: c.have, head: c.head()}
	}
	s.mu.RUnlock()
	if skip {
		return nil
	}
	if len(chunks) == 0 {
		return s.forget(f)
	}
	footer := encodeFooter(chunks, f.hooks)
	hash := f.hash.Clone()
	hash.Write(footer)
	t := trailer{chunks: uint32(len(chunks)), hooks: uint32(len(f.hooks)), footer: uint32(len(footer)), footerCRC: wal.PageCRC(footer), commit: commit}
	hash.Sum(t.hash[:0])
	w := f.blob.Writer()
	if _, err := w.WriteVec([][]byte{footer, t.encode()}, size); err != nil {
		err = fmt.Errorf("seal %s: %w", f.blob.Name(), err)
		s.takeBack(f, size, err)
		return err
	}
	// To the size that it has: some file systems, xfs above all, allocate as much again
	// behind what is appended, and keep it as long as the file is open for reading.
	err := w.Truncate(size + int64(len(footer)) + trailerSize)
	if err == nil {
		err = w.Sync() // the size too: an append may have been cut off
	}
	if err != nil {
		err = fmt.Errorf("seal %s: %w", f.blob.Name(), err)
		s.abandon(f, err)
		return err
	}
	err = f.blob.Seal(f.num.sealedName(t.hash))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resize(f, size+int64(len(footer))+trailerSize)
	f.synced = f.size
	if err != nil {
		f.failed = true // durable as it is, under one name or the other; never tried again
		return err
	}
	f.sealed = true
	f.hooks, f.hash = nil, nil
	s.problems = slices.DeleteFunc(s.problems, func(p Problem) bool { return p == unsealedProblem(f.num) })
	return nil
}

// forget takes a file out of the index and removes it. Its copies have left the index
// before.
func (s *Store) forget(f *file) error {
	s.mu.Lock()
	f.gone = true
	s.dropFile(f)
	s.mu.Unlock()
	return f.blob.Remove()
}
