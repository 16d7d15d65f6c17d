package dedup

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// maxReadAt is how many stored bytes one read takes from a file at most.
const maxReadAt = 1 << 20

// ReadSlots fills dst, n times BlockSize, with slots [first, first+n) of a chunk.
// Every byte comes from a group that matched its checksum, and what was found bad before
// has its fingerprint. Errors: *DamageError (an ErrCorrupt) if a slot is bad in every copy,
// ErrMissing if no copy holds one; dst is undefined then.
func (s *Store) ReadSlots(id ChunkID, first uint16, n int, dst []byte) error {
	end := int(first) + n
	if n <= 0 || end > MaxSlots || len(dst) != n*BlockSize {
		return fmt.Errorf("read of %d slots from %s/%d into %d bytes", n, id, first, len(dst))
	}
	for i := int(first); i < end; {
		k, err := s.readRun(id, i, end, dst[(i-int(first))*BlockSize:])
		if err != nil {
			return err
		}
		i += k
	}
	return nil
}

// ReadNode reads a map node, into a fresh slice. Errors as in ReadSlots.
func (s *Store) ReadNode(at Slot) ([]byte, error) {
	b := make([]byte, BlockSize)
	if err := s.ReadSlots(at.Chunk, at.Slot, 1, b); err != nil {
		return nil, err
	}
	return b, nil
}

// Fingerprint is the fingerprint of a slot, from a list. ErrMissing if no readable
// list has it.
func (s *Store) Fingerprint(at Slot) (Fingerprint, error) {
	ch := s.chunkOf(at.Chunk)
	if ch == nil {
		return Fingerprint{}, missing(at)
	}
	l, err := s.loadList(ch)
	if err != nil {
		return Fingerprint{}, err
	}
	if int(at.Slot) >= len(l.fps) || !l.have.has(int(at.Slot)) {
		return Fingerprint{}, missing(at)
	}
	return l.fps[at.Slot], nil
}

// readRun reads slot i and as many behind it, below end, as come from the same copy;
// it returns how many. It goes through every copy of the slot before it fails.
func (s *Store) readRun(id ChunkID, i, end int, dst []byte) (int, error) {
	var tried []*chunkCopy
	var failed *DamageError
	for {
		c, known := s.pick(id, i, tried)
		if c == nil {
			if failed == nil {
				return 0, missing(Slot{id, uint16(i)})
			}
			return 0, failed
		}
		tried = append(tried, c)
		k, err := s.readGood(c, known, i, end, dst)
		if err == nil && (failed != nil || s.Silent() > 0) {
			k, err = s.proveRun(c, i, k, dst)
		}
		if err == nil {
			if failed != nil {
				s.stats.rescued.Add(1)
			}
			return k, nil
		}
		var bad *badPart
		if errors.Is(err, vfs.ErrNotExist) {
			if s.dropped(c) {
				continue // the collector moved it: its new copy is in the index by now
			}
			bad = &badPart{copy: c, hi: int(c.chunk.slots), reason: "the file is gone"}
		} else if !errors.As(err, &bad) {
			return 0, err
		}
		s.markBad(bad)
		unread := failed != nil && failed.Unread
		failed = bad.err(i)
		failed.Unread = failed.Unread || unread // it may be read another time, if only there
	}
}

// readGood is readFrom that ends before a slot that is known to be bad in the copy. Where
// slot i is, its fingerprint tells whether it was only not read before; no other slot is
// read then.
func (s *Store) readGood(c *chunkCopy, known *bitmap, i, end int, dst []byte) (int, error) {
	if known == nil {
		return s.readFrom(c, i, end, dst)
	}
	if !known.has(i) {
		return s.readFrom(c, i, known.next(i, end), dst)
	}
	k, err := s.readFrom(c, i, i+1, dst)
	if err != nil {
		return 0, err
	}
	if bad := s.prove(c, i, dst[:BlockSize], Fingerprint{}); bad != nil {
		return 0, bad
	}
	s.markGood(c, i, i+1)
	return k, nil
}

// proveRun is for slots [i, i+k) of a copy that another one should have answered for: what
// was healed there may be wrong here, and a start knows nothing of it. It returns how many
// have their fingerprints, as far as a list tells.
func (s *Store) proveRun(c *chunkCopy, i, k int, dst []byte) (int, error) {
	l, err := s.loadList(c.chunk)
	if err != nil {
		return k, nil
	}
	for n := range k {
		if l.have.has(i+n) && FingerprintOf(dst[n*BlockSize:][:BlockSize]) != l.fps[i+n] {
			bad := &badPart{copy: c, lo: i + n, hi: i + n + 1, off: int64(c.off), reason: wrongContent}
			if n == 0 {
				return 0, bad
			}
			s.markBad(bad)
			return n, nil
		}
	}
	return k, nil
}

// prove tells what is wrong with the content of a slot of a copy, by its fingerprint: that
// in a list, or if none can be read the one given, unless it is zero.
func (s *Store) prove(c *chunkCopy, i int, content []byte, fp Fingerprint) *badPart {
	bad := &badPart{copy: c, lo: i, hi: i + 1, off: int64(c.off), reason: wrongContent}
	l, err := s.loadList(c.chunk)
	switch {
	case err == nil && l.have.has(i):
		fp = l.fps[i]
	case fp.IsZero():
		bad.reason = "it was found bad, and no fingerprint tells whether it is"
		bad.unread = err != nil && !errors.Is(err, ErrCorrupt)
		return bad
	}
	if FingerprintOf(content) != fp {
		return bad
	}
	return nil
}

// wrongContent is what is wrong with a slot whose group has the right checksum.
const wrongContent = "content has another fingerprint"

// pick is a copy that holds the slot and was not tried: one that is not known to be
// bad there, newest first, else any. nil if there is none. known are the slots known to be
// bad in it; nil: none.
func (s *Store) pick(id ChunkID, slot int, tried []*chunkCopy) (c *chunkCopy, known *bitmap) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ch := s.index[id]
	if ch == nil {
		return nil, nil
	}
	var last *chunkCopy
	for _, c := range ch.copies {
		if !c.has(slot) || slices.Contains(tried, c) {
			continue
		}
		if c.good(slot) {
			return c, c.bad
		}
		if last == nil {
			last = c
		}
	}
	if last == nil {
		return nil, nil
	}
	return last, last.bad
}

// dropped tells whether the copy has left the index.
func (s *Store) dropped(c *chunkCopy) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return !slices.Contains(c.chunk.copies, c)
}

// readFrom reads slot i of a copy and what follows it there, and returns how many
// slots that were; only a failure at slot i is an error. A *badPart is damage.
func (s *Store) readFrom(c *chunkCopy, i, end int, dst []byte) (int, error) {
	f, err := s.front(c)
	if err != nil {
		return 0, err
	}
	done := 0
	for i < end && f.have.has(i) {
		g := i >> c.shift
		last := g
		for last < (end-1)>>c.shift && f.groups[last+1].size > 0 &&
			f.groups[last+1].off+f.groups[last+1].size-f.groups[g].off <= maxReadAt {
			last++
		}
		k, err := s.readGroups(c, f, g, last, i, end, dst)
		if done += k; err != nil {
			if done > 0 {
				return done, nil // the next call begins at the bad slot
			}
			return 0, err
		}
		i += k
		dst = dst[k*BlockSize:]
	}
	return done, nil
}

// readGroups copies slots from i on, below end, out of groups g to last of a copy,
// up to the first slot that the copy has not, and returns how many.
func (s *Store) readGroups(c *chunkCopy, f *front, g, last, i, end int, dst []byte) (int, error) {
	done := 0
	var stored []byte // of groups from storedFrom to last; read when the first is needed
	var storedFrom int
	for ; g <= last; g++ {
		group, ok := s.groups.get(groupKey{c.key, g})
		if ok {
			s.stats.cacheHits.Add(1)
		} else {
			s.stats.cacheMisses.Add(1)
			if stored == nil {
				buf := s.buffer(int(f.groups[last].off + f.groups[last].size - f.groups[g].off))
				defer s.release(buf)
				stored, storedFrom = *buf, g
				err := s.readStored(c, f, g, stored)
				if errors.As(err, new(*badPart)) && last > g {
					k, err := s.readGroups(c, f, g, g, i, end, dst[done*BlockSize:])
					return done + k, err // which group it is that cannot be read
				}
				if err != nil {
					return done, err
				}
			}
			r := f.groups[g]
			at := r.off - f.groups[storedFrom].off
			var err error
			if group, err = s.decode(c, f, g, stored[at:at+r.size]); err != nil {
				return done, err
			}
			s.groups.put(groupKey{c.key, g}, group)
		}
		lo, hi, _ := f.slotsIn(g)
		for ; i < min(hi, end); i++ {
			if !f.have.has(i) {
				return done, nil
			}
			at := f.have.countRange(lo, i) * BlockSize
			copy(dst[done*BlockSize:(done+1)*BlockSize], group[at:])
			done++
		}
	}
	return done, nil
}

// readStored reads stored bytes from group g of a copy on.
func (s *Store) readStored(c *chunkCopy, f *front, g int, b []byte) error {
	off := int64(c.off) + f.payloadAt() + int64(f.groups[g].off)
	return s.readFile(c, b, off, g)
}

// readFile is a read of a copy's file; what is bad is group g, or all for g < 0.
func (s *Store) readFile(c *chunkCopy, b []byte, off int64, g int) error {
	release, err := c.file.blob.Hold()
	if err != nil {
		return err // gone, or no descriptor to be had: says nothing of the bytes
	}
	defer release()
	if _, err = c.file.blob.ReadAt(b, off); err != nil {
		_, err = c.file.blob.ReadAt(b, off) // once more: a slot that counts as bad costs much
	}
	if err == nil || errors.Is(err, vfs.ErrNotExist) || errors.Is(err, vfs.ErrDead) || errors.Is(err, fs.ErrClosed) {
		return err
	}
	bad := &badPart{copy: c, hi: int(c.chunk.slots), off: off, reason: "read: " + err.Error(), unread: true}
	if g >= 0 {
		bad.lo, bad.hi = g<<c.shift, min((g+1)<<c.shift, int(c.chunk.slots))
	}
	return bad
}

// decode checks and decompresses the stored bytes of a group, into a fresh slice.
func (s *Store) decode(c *chunkCopy, f *front, g int, stored []byte) ([]byte, error) {
	lo, hi, k := f.slotsIn(g)
	r := f.groups[g]
	reason := "checksum of the group"
	if r.size == lostGroup {
		reason = lostReason
	}
	if wal.PageCRC(stored) == r.crc {
		b := make([]byte, k*BlockSize)
		err := s.codecs.decompress(r.codec, b, stored)
		if err == nil {
			return b, nil
		}
		reason = err.Error()
	}
	return nil, &badPart{copy: c, lo: lo, hi: hi, off: int64(c.off) + f.payloadAt() + int64(r.off), reason: reason}
}

// front is the group table of a copy: from the cache, or one read.
func (s *Store) front(c *chunkCopy) (*front, error) {
	if f, ok := s.fronts.Get(c.key); ok {
		return f, nil
	}
	b := make([]byte, headSize+int(c.front))
	if err := s.readFile(c, b, int64(c.off), -1); err != nil {
		return nil, err
	}
	f, err := s.parseCopyFront(c, b)
	if err != nil {
		return nil, &badPart{copy: c, hi: int(c.chunk.slots), off: int64(c.off), reason: err.Error()}
	}
	return f, nil
}

// parseCopyFront parses head and front of a copy, compares them with the index and
// caches the result.
func (s *Store) parseCopyFront(c *chunkCopy, b []byte) (*front, error) {
	h, err := parseChunkHead(b)
	if err != nil {
		return nil, err
	}
	if indexed := c.head(); !h.sameAs(&indexed) {
		return nil, corrupt("chunk head and index disagree")
	}
	f, err := parseFront(h, b[headSize:])
	if err != nil {
		return nil, err
	}
	if f.have != c.slots() {
		return nil, corrupt("bitmaps of chunk and index disagree")
	}
	s.fronts.Add(c.key, f)
	return f, nil
}

// buffer is a scratch buffer of n bytes, for release.
func (s *Store) buffer(n int) *[]byte {
	b, _ := s.bufs.Get().(*[]byte)
	if b == nil || cap(*b) < n {
		m := make([]byte, max(n, BlockSize<<maxShift))
		b = &m
	}
	*b = (*b)[:n]
	return b
}

func (s *Store) release(b *[]byte) { s.bufs.Put(b) }

// groupKey names a decoded group: a copy and the group's number in it.
type groupKey struct {
	copy  uint32
	group int
}

// groupCache is an LRU of decoded groups that were checked, bounded in bytes. Groups
// in it are never written to, so that a reader may use one after it was displaced.
type groupCache struct {
	max   int64
	mu    sync.Mutex
	bytes int64
	lru   *list.List // of *cachedGroup, youngest first
	at    map[groupKey]*list.Element
}

type cachedGroup struct {
	key  groupKey
	data []byte
}

func newGroupCache(bytes int64) *groupCache {
	return &groupCache{max: bytes, lru: list.New(), at: make(map[groupKey]*list.Element)}
}

func (c *groupCache) get(k groupKey) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.at[k]
	if !ok {
		return nil, false
	}
	c.lru.MoveToFront(e)
	return e.Value.(*cachedGroup).data, true
}

func (c *groupCache) put(k groupKey, data []byte) {
	if c.max < int64(len(data)) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.at[k]; ok {
		return
	}
	c.at[k] = c.lru.PushFront(&cachedGroup{k, data})
	for c.bytes += int64(len(data)); c.bytes > c.max; {
		e := c.lru.Back()
		old := c.lru.Remove(e).(*cachedGroup)
		delete(c.at, old.key)
		c.bytes -= int64(len(old.data))
	}
}

func (c *groupCache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}
