package dedup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/wal"
)

// Open reads what is in dir. Of sealed files it reads header, footer and trailer;
// one that is damaged there is indexed by scanning its chunks. Open files of the past
// are scanned, cut behind the last whole chunk, written anew and sealed. A file that
// cannot be used is left alone and is among Problems; only failing to list or to
// write the directory is an error.
func Open(dir *blob.Dir, o Options) (*Store, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	cs := newCodecs(o.Workers)
	s := &Store{
		o: o, dir: dir, codecs: cs, workers: make(chan struct{}, o.Workers),
		lists: newListCache(o.ListCache), groups: newGroupCache(o.CacheBytes),
		index: make(map[ChunkID]*chunk), chunks: make(map[uint32]*chunk), files: make(map[FileNum]*file),
		damage: make(map[Slot]Damage), damagedFPs: make(map[Fingerprint][]Slot),
	}
	s.hooks.budget = o.HookBytes
	s.fronts, _ = lru.New[uint32, *front](max(1024, int(o.CacheBytes>>15)))
	if err := s.load(); err != nil {
		cs.close()
		return nil, err
	}
	return s, nil
}

// load fills the index from the directory.
func (s *Store) load() error {
	infos, err := s.dir.List()
	if err != nil {
		return err
	}
	found := make([]*foundFile, 0, len(infos))
	for _, in := range infos {
		num, hash, ok := parseName(in.Name)
		if !ok {
			continue
		}
		if num.Epoch == s.o.Epoch {
			s.counter = max(s.counter, num.Counter)
		}
		found = append(found, &foundFile{Info: in, num: num, sealed: hash != ""})
	}
	var g errgroup.Group
	g.SetLimit(s.readers())
	for _, ff := range found {
		g.Go(func() error { return s.read(ff) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b *foundFile) int { return byNumber(&file{num: a.num}, &file{num: b.num}) })
	for _, ff := range found {
		if err := s.adopt(ff); err != nil {
			return err
		}
	}
	for at := range s.damage { // lost in one file, and written again since
		if s.index[at.Chunk].readable(int(at.Slot)) {
			s.forgetDamage(at)
		}
	}
	return nil
}

// foundFile is a chunk file that Open found and what it read of it.
type foundFile struct {
	blob.Info
	num    FileNum
	sealed bool

	blob     *blob.File
	chunks   []footerChunk
	hooks    []hook
	commit   uint64
	end      int64 // of the last whole chunk
	rescan   bool  // sealed, but read by scanning
	nameless bool  // its header cannot be read: it may be another store's
	refused  bool  // not understood: neither indexed nor touched
	unread   error // of an open file that the disk does not let us read
	silent   bool  // the disk answered an error for a part of it, so that nobody knows what is there
	partial  bool  // open, and with a head whose chunk is not whole
	useless  bool  // open and without a whole chunk
	problems []Problem
}

func (ff *foundFile) note(format string, args ...any) {
	ff.problems = append(ff.problems, Problem{File: ff.Name, Text: fmt.Sprintf(format, args...)})
}

// readers is how many files are read at a time: reading waits for the disk, so more than
// there are workers, but one worker does everything in one order.
func (s *Store) readers() int {
	if s.o.Workers == 1 {
		return 1
	}
	return max(4, s.o.Workers)
}

// read reads a file's index, without changing anything. An error is one of the
// environment.
func (s *Store) read(ff *foundFile) error {
	ff.blob = s.dir.File(ff.Name)
	if !ff.sealed {
		// A process before this one may have met a failed sync (I8): what it left in the
		// page cache only is not there.
		if err := ff.blob.DropCache(); err != nil {
			ff.note("%v", err)
		}
	}
	head := make([]byte, min(ff.Size, fileHeaderSize))
	if _, err := ff.blob.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		// Unreadable, perhaps only here: what the footer lists may still be read.
		ff.note("file header: %v", err)
		ff.nameless, ff.silent = true, true
		if !ff.sealed {
			ff.unread = err
		}
	}
	h, err := parseFileHeader(head)
	switch {
	case err == nil && h.store != s.o.Store:
		err = fmt.Errorf("%w: it belongs to store %x", ErrFormat, h.store)
		fallthrough
	case errors.Is(err, ErrVersion):
		ff.note("%v; the file is left alone", err)
		ff.refused = true
		return nil
	case err == nil && h.num != ff.num:
		ff.note("its header says that it is file %s", h.num.openName())
	case err != nil && ff.sealed && !ff.nameless:
		ff.note("file header: %v", err)
	}
	if err == nil {
		ff.commit = h.commit
	}
	if ff.sealed {
		if err = s.readFooter(ff); err == nil {
			return nil
		}
		ff.note("%v; its chunks were scanned instead", err)
		ff.rescan = true
		ff.silent = ff.silent || !judged(err)
	}
	s.scan(ff)
	ff.refused = ff.refused || ff.nameless && (!ff.sealed || len(ff.chunks) == 0)
	ff.useless = !ff.sealed && len(ff.chunks) == 0
	if ff.unread != nil && !s.o.ReadOnly {
		return fmt.Errorf("%s cannot be read, and it may hold what volumes need: mend the disk, or move the file away to do without it: %w", ff.Name, ff.unread)
	}
	return nil
}

// readFooter reads trailer and footer of a sealed file.
func (s *Store) readFooter(ff *foundFile) error {
	const tail = 16 << 10 // most footers fit
	size := min(ff.Size, tail)
	b := make([]byte, size)
	if _, err := ff.blob.ReadAt(b, ff.Size-size); err != nil {
		return fmt.Errorf("trailer: %w", err)
	}
	if size < trailerSize {
		return corrupt("file of %d bytes", ff.Size)
	}
	t, err := parseTrailer(b[size-trailerSize:])
	if err != nil {
		return err
	}
	end := ff.Size - trailerSize - int64(t.footer)
	if end < fileHeaderSize {
		return corrupt("footer of %d bytes in a file of %d", t.footer, ff.Size)
	}
	if int64(t.footer)+trailerSize <= size {
		b = b[size-trailerSize-int64(t.footer) : size-trailerSize]
	} else {
		b = make([]byte, t.footer)
		if _, err := ff.blob.ReadAt(b, end); err != nil {
			return fmt.Errorf("footer: %w", err)
		}
	}
	if wal.PageCRC(b) != t.footerCRC {
		return corrupt("checksum of the footer")
	}
	if ff.chunks, ff.hooks, err = parseFooter(b, t.chunks, t.hooks, end); err != nil {
		return err
	}
	ff.end, ff.commit = ff.Size, max(ff.commit, t.commit)
	return nil
}

// scan finds the whole chunks of a file without a footer. Behind one that is not
// whole it goes on, and looks for the next head byte by byte: bytes in the midst of a
// file that were good once may have gone bad.
//
// What such a search finds may be a volume's data made to look like a chunk. So from
// there on a chunk's blocks must have the fingerprints that prove its ID (then it is
// that chunk, whoever wrote it), and its commit number says nothing. Such data costs no
// more than a few times the reading of the file for each of its forged heads: what is
// checked is little until much of it is right.
func (s *Store) scan(ff *foundFile) {
	at := int64(fileHeaderSize)
	gap, searched := false, false
	r := newWindow(ff.blob, ff.Size)
	for at < ff.Size {
		c, hooks, err := readWhole(r, at, ff.Size)
		if err == nil && searched {
			err = s.verifyContent(ff.blob, at, &c.head)
			c.head.commit = 0
		}
		if err == nil {
			c.off = uint32(at)
			for i := range hooks {
				hooks[i].chunk = uint16(len(ff.chunks))
			}
			if len(ff.chunks) <= 1<<16-1 {
				ff.hooks = append(ff.hooks, hooks...)
			}
			if gap && ff.sealed { // in an open file, a power cut takes what it likes of what was not synced
				ff.problems = append(ff.problems, Problem{File: ff.Name, Offset: ff.end, Text: "bytes that are no whole chunk, before others that are"})
			}
			ff.chunks = append(ff.chunks, *c)
			ff.commit = max(ff.commit, c.head.commit)
			at += c.head.size()
			ff.end, gap = at, false
			continue
		}
		if !judged(err) {
			if ff.silent = true; !ff.sealed {
				ff.leaveAlone(err)
				return
			}
		}
		gap = true
		ff.partial = ff.partial || c != nil && !ff.sealed
		if c != nil && !searched { // its head is good, so its length is
			at += c.head.size()
			continue
		}
		searched = true
		if at, err = nextHead(r, at+1); err != nil && !ff.sealed {
			ff.leaveAlone(err)
			return
		}
		if at < 0 {
			return
		}
	}
}

// judged tells whether an error is about bytes that were read.
func judged(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) || errors.Is(err, ErrFormat)
}

// leaveAlone gives up an open file because the disk did not answer: what is there may be
// whole, and durable. Cutting it off would lose it for good, and so would folding over
// what it misses.
func (ff *foundFile) leaveAlone(err error) {
	ff.note("%v; the file is left alone", err)
	ff.refused, ff.unread = true, err
}

// readWhole reads the chunk at an offset and checks all of it but what its groups
// decode to. With an error the chunk is returned if its head is good.
func readWhole(r *window, at, size int64) (*footerChunk, []hook, error) {
	b := make([]byte, headSize)
	if at+headSize > size || at > maxFileBytes {
		return nil, nil, corrupt("chunk cut off")
	}
	if _, err := r.ReadAt(b, at); err != nil {
		return nil, nil, err
	}
	h, err := parseChunkHead(b)
	if err != nil {
		return nil, nil, err
	}
	c := &footerChunk{head: h}
	if at+h.size() > size {
		return nil, nil, corrupt("chunk cut off")
	}
	b = make([]byte, h.front)
	if _, err := r.ReadAt(b, at+headSize); err != nil {
		return c, nil, err
	}
	f, err := parseFront(h, b)
	if err != nil {
		return c, nil, err
	}
	b = make([]byte, h.list)
	if _, err := r.ReadAt(b, at+headSize+int64(h.front)); err != nil {
		return c, nil, err
	}
	t, err := proveList(f, b)
	if err != nil {
		return c, nil, err
	}
	payload := make([]byte, h.payload)
	if _, err := r.ReadAt(payload, at+f.payloadAt()); err != nil {
		return c, nil, err
	}
	for g, r := range f.groups {
		if r.size > 0 && wal.PageCRC(payload[r.off:r.off+r.size]) != r.crc {
			return c, nil, corrupt("checksum of group %d", g)
		}
	}
	if h.present < h.slots {
		c.have = &f.have
	}
	return c, hooksOf(t, 0), nil
}

// verifyContent tells whether the blocks of a whole chunk have the fingerprints in its
// list.
func (s *Store) verifyContent(r io.ReaderAt, at int64, h *chunkHead) error {
	return eachSlot(s.codecs, r, at, h, func(t *tree, slot int, content []byte) error {
		if FingerprintOf(content) != t.fps[slot] {
			return corrupt("content of slot %d", slot)
		}
		return nil
	})
}

// eachSlot reads the chunk at an offset and calls fn with every slot present, in order,
// until it fails. content is valid during the call.
func eachSlot(cs *codecs, r io.ReaderAt, at int64, h *chunkHead, fn func(t *tree, slot int, content []byte) error) error {
	b := make([]byte, h.size()-headSize)
	if _, err := r.ReadAt(b, at+headSize); err != nil {
		return err
	}
	f, err := parseFront(*h, b[:h.front])
	if err != nil {
		return err
	}
	t, err := proveList(f, b[h.front:h.front+h.list])
	if err != nil {
		return err
	}
	payload := b[h.front+h.list:]
	block := make([]byte, BlockSize<<h.shift)
	for g, r := range f.groups {
		if r.size == 0 {
			continue
		}
		lo, hi, k := f.slotsIn(g)
		content := block[:k*BlockSize]
		if err := cs.decompress(r.codec, content, payload[r.off:r.off+r.size]); err != nil {
			return err
		}
		for slot := lo; slot < hi; slot++ {
			if !f.have.has(slot) {
				continue
			}
			if err := fn(t, slot, content[:BlockSize]); err != nil {
				return err
			}
			content = content[BlockSize:]
		}
	}
	return nil
}

// hooks are the sampled fingerprints of a chunk that is number n in its file. One whose
// list proves nothing, or that holds no content, has none.
func (e *encodedChunk) hooks(n uint16) []hook {
	if e.tree == nil || e.front.head.allLost(&e.front.have) {
		return nil
	}
	return hooksOf(e.tree, n)
}

// hooksOf are the sampled fingerprints of a chunk that is number n in its file. Nodes
// have none: they are not looked for one by one.
func hooksOf(t *tree, n uint16) []hook {
	var hooks []hook
	if t.kind != KindData {
		return nil
	}
	for i := range t.fps {
		if p := t.fps[i].prefix(); t.have.has(i) && isHook(p) {
			hooks = append(hooks, hook{p, n, uint16(i)})
		}
	}
	return hooks
}

// nextHead is the offset of the next chunk head at or behind an offset; -1 if there is
// none, or with the error of a read.
func nextHead(r *window, at int64) (int64, error) {
	for at+headSize <= r.size {
		b, err := r.from(at, headSize)
		if err != nil || len(b) < headSize {
			return -1, err
		}
		for from := 0; ; from++ {
			i := bytes.Index(b[from:], chunkMagic[:])
			if i < 0 || from+i+headSize > len(b) {
				break
			}
			from += i
			if _, err := parseChunkHead(b[from:]); err == nil {
				return at + int64(from), nil
			}
		}
		at += int64(len(b) - headSize + 1)
	}
	return -1, nil
}

// adopt puts a file into the index, after sealing it if it is an open one.
func (s *Store) adopt(ff *foundFile) error {
	s.problems = append(s.problems, ff.problems...)
	if ff.silent && ff.sealed {
		s.silent = append(s.silent, foundFile{Info: ff.Info, num: ff.num, sealed: true})
	}
	if ff.refused {
		return nil
	}
	if s.files[ff.num] != nil {
		s.problems = append(s.problems, Problem{File: ff.Name, Text: "another file has this number; left alone"})
		return nil
	}
	s.maxCommit = max(s.maxCommit, ff.commit)
	leave := s.o.ReadOnly || s.o.Repair && ff.partial
	if ff.useless {
		if leave {
			return nil
		}
		return ff.blob.Remove()
	}
	f := &file{num: ff.num, blob: ff.blob, size: ff.Size, sealed: ff.sealed, strange: ff.rescan || ff.nameless}
	if !ff.sealed {
		f.size, f.failed = ff.end, leave && !s.o.ReadOnly
		if !leave {
			w, err := s.dir.OpenWrite(ff.Name)
			if err != nil {
				return err
			}
			f.blob = w
		}
	}
	f.synced, f.commit = f.size, ff.commit
	f.hooks = ff.hooks
	s.addFile(f)
	for i := range ff.chunks {
		s.insert(f, &ff.chunks[i].head, ff.chunks[i].off, ff.chunks[i].have)
	}
	for _, h := range f.hooks {
		s.addHook(h.prefix, f.copies[h.chunk].chunk.num)
	}
	if ff.sealed || leave {
		f.hooks = nil
		return nil
	}
	if err := s.rewrite(f, ff); err != nil {
		return fmt.Errorf("seal %s: %w", ff.Name, err)
	}
	return nil
}

// rewrite cuts an open file of the past, writes its bytes anew and seals it. They are
// written anew because the last process may have died over a failed sync, after
// which the page cache shows bytes that are not on the disk and that a sync would not
// write.
func (s *Store) rewrite(f *file, ff *foundFile) error {
	w := f.blob.Writer()
	if err := retryNoSpace(s.o.NoSpace, func() error { return w.Truncate(f.size) }); err != nil {
		return err
	}
	f.hash = blake3.New()
	h := fileHeader{store: s.o.Store, num: f.num, commit: ff.commit}
	b := make([]byte, min(1<<20, max(f.size, fileHeaderSize)))
	for at := int64(0); at < f.size; at += int64(len(b)) {
		b = b[:min(int64(cap(b)), f.size-at)]
		if _, err := w.ReadAt(b, at); err != nil {
			return err
		}
		if at == 0 {
			if _, err := parseFileHeader(b); err != nil {
				copy(b, h.encode()) // its chunks are good, so it is ours
			}
		}
		if err := retryNoSpace(s.o.NoSpace, func() error { _, err := w.WriteAt(b, at); return err }); err != nil {
			return err
		}
		f.hash.Write(b)
	}
	// Sync, not Datasync, which need not make a shorter size durable: then the footer
	// would not be at the end.
	if err := w.Sync(); err != nil {
		return err
	}
	if err := s.seal(f); !errors.Is(err, ErrNoSpace) {
		return err
	}
	s.unsealed.Store(true)
	s.problems = append(s.problems, unsealedProblem(f.num))
	return nil
}

// unsealedProblem is told of a file from a past life until it is sealed.
func unsealedProblem(n FileNum) Problem {
	return Problem{File: n.openName(), Text: "not sealed for want of space"}
}

// retryNoSpace repeats do as long as the disk is full and something was freed.
func retryNoSpace(freed func() bool, do func() error) error {
	for {
		err := do()
		if !errors.Is(err, ErrNoSpace) || !freed() {
			return err
		}
	}
}

// SealOpen seals the open chunk file, and those whose sealing failed for want of
// space, so that collection can pick them.
func (s *Store) SealOpen() error { return s.sealUnsealed(true) }

// SealLeft seals the chunk files whose sealing failed for want of space, now that there is
// some. Without such files it does nothing. ErrNoSpace if it only has to be called again.
func (s *Store) SealLeft() error {
	if !s.unsealed.Swap(false) {
		return nil
	}
	return s.sealUnsealed(false)
}

// sealUnsealed seals every file that is not and could be, whatever becomes of the others;
// the one that is appended to only if it is to be ended. ErrNoSpace if that is all that was
// wrong.
func (s *Store) sealUnsealed(end bool) error {
	s.appending.Lock()
	open := s.open
	if end {
		s.open, open = nil, nil // so that nobody appends to what is sealed below
	}
	s.mu.RLock()
	var files []*file
	for _, f := range s.files {
		if f != open && !f.sealed && !f.failed && !f.private && !s.o.ReadOnly {
			files = append(files, f)
		}
	}
	s.mu.RUnlock()
	s.appending.Unlock()
	slices.SortFunc(files, byNumber)
	var errs []error
	var full error
	for _, f := range files {
		err := s.seal(f)
		if errors.Is(err, ErrNoSpace) {
			s.unsealed.Store(true)
			full = err
			continue
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return full
}

// Close seals the open file and closes descriptors. Every Writer must be closed and
// every read ended.
func (s *Store) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	err := s.SealOpen()
	s.dir.Close()
	s.codecs.close()
	return err
}
