package dedup

import (
	"fmt"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/k8ns/granary/pkg/wal"
)

// fpList is a chunk's fingerprint list in memory: what its copies together hold. It
// never changes; whether a slot may be used is asked of the index.
type fpList struct {
	id   ChunkID
	num  uint32 // chunk number
	have bitmap
	fps  []Fingerprint // by slot
}

// at tells whether slot i has this fingerprint.
func (l *fpList) at(i int, fp *Fingerprint) bool {
	return i < len(l.fps) && l.fps[i] == *fp && l.have.has(i)
}

// find looks through the list for a fingerprint: 20 KiB at most, half a microsecond.
func (l *fpList) find(fp *Fingerprint) (int, bool) {
	p := fp.prefix()
	for i := range l.fps {
		if l.fps[i].prefix() == p && l.at(i, fp) {
			return i, true
		}
	}
	return 0, false
}

// listCache keeps the lists of the chunks that were used last, and one map over
// those among them that had a hit or were just written.
type listCache struct {
	mu  sync.Mutex
	lru *simplelru.LRU[uint32, *cachedList]
	fps map[uint64]listPlace // by prefix
}

type cachedList struct {
	*fpList
	mapped bool // in fps
}

type listPlace struct {
	chunk uint32
	slot  uint16
}

func newListCache(chunks int) *listCache {
	c := &listCache{fps: make(map[uint64]listPlace)}
	c.lru, _ = simplelru.NewLRU(max(chunks, 1), func(_ uint32, l *cachedList) { c.unmap(l) })
	return c
}

// get is the cached list of a chunk, nil if it is not there.
func (c *listCache) get(chunk uint32) *fpList {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l, ok := c.lru.Get(chunk); ok {
		return l.fpList
	}
	return nil
}

// add puts a list in the cache; mapped makes its fingerprints known to lookup.
func (c *listCache) add(l *fpList, mapped bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(l.num)
	e := &cachedList{fpList: l}
	c.lru.Add(l.num, e)
	if mapped {
		c.mapIn(e)
	}
}

// hit notes that the chunk was just hit: its fingerprints are known to lookup from
// here on, if its list is cached.
func (c *listCache) hit(chunk uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.lru.Get(chunk); ok && !e.mapped {
		c.mapIn(e)
	}
}

// lookup finds a fingerprint in the lists that had a hit.
func (c *listCache) lookup(fp *Fingerprint) (*fpList, int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.fps[fp.prefix()]
	if !ok {
		return nil, 0, false
	}
	e, ok := c.lru.Peek(at.chunk)
	if !ok || !e.at(int(at.slot), fp) {
		return nil, 0, false
	}
	return e.fpList, int(at.slot), true
}

// drop forgets the list of a chunk.
func (c *listCache) drop(chunk uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(chunk)
}

func (c *listCache) mapIn(e *cachedList) {
	e.mapped = true
	for i := range e.fps {
		if e.have.has(i) {
			c.fps[e.fps[i].prefix()] = listPlace{e.num, uint16(i)}
		}
	}
}

func (c *listCache) unmap(e *cachedList) {
	if !e.mapped {
		return
	}
	for i := range e.fps {
		if p := e.fps[i].prefix(); e.have.has(i) && c.fps[p].chunk == e.num {
			delete(c.fps, p)
		}
	}
}

// loadList is the list of a chunk, from the cache or from its copies. A list loaded here is not
// known to lookup before it has a hit.
func (s *Store) loadList(ch *chunk) (*fpList, error) {
	if l := s.lists.get(ch.num); l != nil {
		return l, nil
	}
	s.mu.RLock()
	copies := ch.copies
	s.mu.RUnlock()
	l := &fpList{id: ch.id, num: ch.num}
	var failed error
	for _, c := range copies {
		if s.listBad(c) || l.fps != nil && c.have != nil && c.have.minus(&l.have) == (bitmap{}) {
			continue
		}
		t, err := s.readTree(c)
		if err != nil {
			failed = err
			continue
		}
		if l.fps == nil {
			l.have, l.fps = t.have, t.fps
		} else {
			l.merge(t)
		}
		if l.have.count() == int(ch.slots) {
			break
		}
	}
	if l.fps == nil {
		if failed == nil {
			failed = missing(Slot{Chunk: ch.id})
		}
		return nil, failed
	}
	s.lists.add(l, false)
	return l, nil
}

// merge adds what another copy of the chunk holds.
func (l *fpList) merge(t *tree) {
	for i := range l.fps {
		if t.have.has(i) && !l.have.has(i) {
			l.fps[i] = t.fps[i]
		}
	}
	l.have = l.have.or(&t.have)
}

// readTree reads the fingerprint list of one copy: one read. The list is believed if
// it matches the checksum in the chunk's head, or, where that is unreadable, if it
// proves the chunk ID. One that does neither is remembered and not read again.
func (s *Store) readTree(c *chunkCopy) (*tree, error) {
	b := make([]byte, headSize+int(c.front)+int(c.list))
	if _, err := c.file.blob.ReadAt(b, int64(c.off)); err != nil {
		return nil, fmt.Errorf("list of chunk %s in %s at %d: %w", c.chunk.id, c.file.blob.Name(), c.off, err)
	}
	list := b[headSize+int(c.front):]
	t := listTree(c.chunk.kind, int(c.chunk.slots), c.slots(), list)
	h, err := parseChunkHead(b)
	if err == nil && h.id == c.chunk.id && h.listCRC == wal.PageCRC(list) {
		return t, nil
	}
	if err := t.prove(c.chunk.id); err != nil {
		s.mu.Lock()
		c.listBad = true
		s.mu.Unlock()
		return nil, fmt.Errorf("list of chunk %s in %s at %d: %w", c.chunk.id, c.file.blob.Name(), c.off, err)
	}
	return t, nil
}

func (s *Store) listBad(c *chunkCopy) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return c.listBad
}
