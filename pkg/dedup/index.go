package dedup

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/zeebo/blake3"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
)

// ErrNoSpace is a full disk.
var ErrNoSpace = vfs.ErrNoSpace

// ErrClosed is returned by a Store or Writer that was closed.
var ErrClosed = errors.New("closed")

// MaxFileBytes is the largest size that chunk files may be sealed at: a footer, which a
// start holds in memory, lists all chunks of a file.
const MaxFileBytes = 256 << 20

// Options are the choices of a Store. The zero value of every field is usable.
type Options struct {
	Store [16]byte // store ID in every file
	Epoch uint32   // of this start; higher than every one before
	// Commit is the last durable catalog commit number (I10); nil means 0.
	Commit func() uint64
	// FileBytes is when a chunk file is sealed; 32 MiB, at most MaxFileBytes.
	FileBytes int64
	// CacheBytes bounds the cache of decoded groups; 64 MiB. Negative: no cache.
	CacheBytes int64
	// ListCache is how many fingerprint lists are cached, about 50 KiB each; 512.
	ListCache int
	// HookBytes bounds the table of hooks; 200 MiB, about a TiB of distinct data at one
	// hook in 32 blocks. A full table keeps one in 64, and so on.
	HookBytes int64
	// Workers is how many groups are compressed at a time; the number of CPUs. With 1
	// all file operations come in one order.
	Workers int
	// NoSpace is called without locks when an append finds the disk full: true means
	// that something was freed and the append is tried again, false that it fails
	// with ErrNoSpace. nil means false.
	NoSpace func() bool
	// OnDamage is called without locks when a slot is found bad that was not known,
	// and no other copy holds it.
	OnDamage func(Damage)
	// ReadOnly writes nothing: open files of the past are indexed as far as they are
	// whole, and left as they are.
	ReadOnly bool
	// Repair leaves open files of the past alone that have chunks which are not whole:
	// Rebuild saves what it can of them, which a start would cut off.
	Repair bool
}

func (o Options) withDefaults() Options {
	if o.Commit == nil {
		o.Commit = func() uint64 { return 0 }
	}
	if o.FileBytes == 0 {
		o.FileBytes = 32 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.ListCache == 0 {
		o.ListCache = 512
	}
	if o.HookBytes == 0 {
		o.HookBytes = 200 << 20
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.NoSpace == nil {
		o.NoSpace = func() bool { return false }
	}
	if o.OnDamage == nil {
		o.OnDamage = func(Damage) {}
	}
	return o
}

func (o Options) validate() error {
	if o.FileBytes < 4096 || o.FileBytes > MaxFileBytes {
		return fmt.Errorf("chunk file size %d: want 4 KiB to %d MiB", o.FileBytes, MaxFileBytes>>20)
	}
	return nil
}

// Store is the chunk files of one dedup domain and what memory knows of them. All
// methods may be called concurrently.
type Store struct {
	o       Options
	dir     *blob.Dir
	codecs  *codecs
	workers chan struct{} // a token for each group being compressed
	bufs    sync.Pool     // *[]byte of 128 KiB capacity

	lists  *listCache
	fronts *lru.Cache[uint32, *front] // by copy key
	groups *groupCache

	// appending is held by who appends to the open file or makes one.
	appending sync.Mutex
	open      *file  // appended to; nil when there is none. Under appending
	counter   uint32 // of the last file made in this epoch. Under appending

	rereading sync.Mutex // held by Reread

	unsealed atomic.Bool // a file was not sealed for want of space, see SealLeft

	// mu guards the index and every field that says so. No disk is touched under it.
	mu         sync.RWMutex
	index      map[ChunkID]*chunk
	chunks     map[uint32]*chunk // by number
	chunkNums  uint32            // numbers given to chunks; never used again, for hooks keep them
	hooks      hookTable
	files      map[FileNum]*file
	problems   []Problem
	silent     []foundFile            // sealed files that could not be read as a whole, see Reread
	damage     map[Slot]Damage        // known bad or lost slots
	damagedFPs map[Fingerprint][]Slot // the same by content, for healing
	collecting bool                   // a Collection is between Plan and its end
	seq        uint64                 // of the last append
	totals     totals                 // of index and files
	copyKeys   uint32                 // the last chunkCopy.key given out
	maxCommit  uint64
	closed     bool

	stats counters
}

// file is a chunk file.
type file struct {
	num  FileNum
	blob *blob.File

	// Under Store.appending while it is the open file, then its sealer's.
	hash  *blake3.Hasher // of everything written
	hooks []hook

	syncing sync.Mutex // held by who syncs or seals

	// Under Store.mu.
	size    int64 // bytes that are appended whole
	synced  int64 // bytes known durable
	sealed  bool
	failed  bool   // a write or sync failed (I8), or it is left for Rebuild: never written to again
	gone    bool   // out of the index
	seq     uint64 // of the last append
	commit  uint64 // highest commit number in it
	copies  []*chunkCopy
	private bool // a collection's output, not in the index yet
	strange bool // not understood: never removed by collection
}

// chunk is what memory keeps of a chunk. Only copies changes, under Store.mu; the
// slice is replaced, never written to.
type chunk struct {
	id     ChunkID
	kind   Kind
	slots  uint16
	num    uint32
	copies []*chunkCopy // newest first
}

// chunkCopy is a chunk in a file. Only the last group of fields changes.
type chunkCopy struct {
	chunk   *chunk
	file    *file
	off     uint32 // in the file
	front   uint32 // bytes
	list    uint32
	payload uint32
	key     uint32 // in the caches; never used again
	present uint16
	shift   uint8
	have    *bitmap // nil: every slot

	// Under Store.mu.
	listBad   bool    // its list cannot be read
	bad       *bitmap // slots found bad; nil: none
	condemned *bitmap // slots that a collection is about to drop; nil: none
}

// end is where the copy ends in its file.
func (c *chunkCopy) end() int64 {
	return int64(c.off) + headSize + int64(c.front) + int64(c.list) + int64(c.payload)
}

// bytes is what the copy takes on disk.
func (c *chunkCopy) bytes() int64 { return c.end() - int64(c.off) }

// allLost tells whether the copy holds no content.
func (c *chunkCopy) allLost() bool {
	h := c.head()
	return h.allLost(c.have)
}

// head is the copy's head, without checksums and commit number.
func (c *chunkCopy) head() chunkHead {
	return chunkHead{
		id: c.chunk.id, kind: c.chunk.kind, slots: c.chunk.slots, present: c.present,
		shift: c.shift, front: c.front, list: c.list, payload: c.payload,
	}
}

// slots is the set of slots present.
func (c *chunkCopy) slots() bitmap {
	if c.have != nil {
		return *c.have
	}
	return fullBitmap(int(c.chunk.slots))
}

// has tells whether the slot is present, good or bad.
func (c *chunkCopy) has(slot int) bool {
	if slot >= int(c.chunk.slots) {
		return false
	}
	return c.have == nil || c.have.has(slot)
}

// good tells whether the slot is present and not known to be bad. Store.mu is held.
func (c *chunkCopy) good(slot int) bool {
	return c.has(slot) && (c.bad == nil || !c.bad.has(slot))
}

// usable tells whether new references to the slot may be made. Store.mu is held.
func (c *chunkCopy) usable(slot int) bool {
	return c.good(slot) && (c.condemned == nil || !c.condemned.has(slot))
}

// usableSlots is the set of slots that new references may be made to. Store.mu is
// held.
func (c *chunkCopy) usableSlots() bitmap {
	b := c.slots()
	if c.bad != nil {
		b = b.minus(c.bad)
	}
	if c.condemned != nil {
		b = b.minus(c.condemned)
	}
	return b
}

// usable is a copy in which a new reference to the slot may be made; nil if there is
// none. Store.mu is held.
func (ch *chunk) usable(slot int) *chunkCopy {
	for _, c := range ch.copies {
		if c.usable(slot) {
			return c
		}
	}
	return nil
}

// holds tells whether some copy holds the slot, good or bad; a chunk that is nil has none.
// Store.mu is held.
func (ch *chunk) holds(slot int) bool {
	return ch != nil && slices.ContainsFunc(ch.copies, func(c *chunkCopy) bool { return c.has(slot) })
}

// readable tells whether some copy holds the slot and is not known to be bad there.
// Store.mu is held.
func (ch *chunk) readable(slot int) bool {
	for _, c := range ch.copies {
		if c.good(slot) {
			return true
		}
	}
	return false
}

// whole tells whether every slot of the chunk is usable. Store.mu is held.
func (ch *chunk) whole() bool {
	var all bitmap
	for _, c := range ch.copies {
		b := c.usableSlots()
		all = all.or(&b)
	}
	return all == fullBitmap(int(ch.slots))
}

// insert adds a copy to the index. s.mu is held for writing.
func (s *Store) insert(f *file, h *chunkHead, off uint32, have *bitmap) *chunkCopy {
	ch := s.index[h.id]
	if ch == nil {
		ch = &chunk{id: h.id, kind: h.kind, slots: h.slots, num: s.chunkNums}
		s.chunkNums++
		s.index[h.id] = ch
		s.chunks[ch.num] = ch
	}
	s.totals.slots -= ch.present()
	s.copyKeys++
	c := &chunkCopy{
		chunk: ch, file: f, off: off, front: h.front, list: h.list, payload: h.payload,
		key: s.copyKeys, present: h.present, shift: h.shift,
	}
	if h.present < h.slots {
		b := *have
		c.have = &b
	}
	ch.copies = append([]*chunkCopy{c}, ch.copies...)
	f.copies = append(f.copies, c)
	s.totals.slots += ch.present()
	s.totals.copies++
	if c.allLost() {
		s.markLost(c)
	}
	return c
}

// remove takes a copy out of the index, but not out of its file's list. s.mu is held
// for writing.
func (s *Store) remove(c *chunkCopy) {
	ch := c.chunk
	indexed := s.index[ch.id] == ch // or of a collection's output
	before := len(ch.copies)
	if indexed {
		s.totals.slots -= ch.present()
	}
	ch.copies = slices.DeleteFunc(slices.Clone(ch.copies), func(o *chunkCopy) bool { return o == c })
	if indexed {
		s.totals.slots += ch.present()
		s.totals.copies -= before - len(ch.copies)
	}
	if len(ch.copies) == 0 && indexed {
		delete(s.index, ch.id)
		delete(s.chunks, ch.num)
		s.lists.drop(ch.num)
	}
	s.fronts.Remove(c.key)
}

// totals are sums that are asked for too often to be counted each time.
type totals struct {
	stored int64 // bytes of files
	slots  int64 // distinct ones in the index
	copies int
}

// present is how many distinct slots the chunk's copies have. Store.mu is held.
func (ch *chunk) present() int64 {
	switch len(ch.copies) {
	case 0:
		return 0
	case 1:
		return int64(ch.copies[0].present)
	}
	var all bitmap
	for _, c := range ch.copies {
		b := c.slots()
		all = all.or(&b)
	}
	return int64(all.count())
}

// addFile makes a file one of the store's. s.mu is held for writing.
func (s *Store) addFile(f *file) {
	s.files[f.num] = f
	s.totals.stored += f.size
}

// dropFile is the inverse of addFile. s.mu is held for writing.
func (s *Store) dropFile(f *file) {
	if s.files[f.num] == f {
		delete(s.files, f.num)
		s.totals.stored -= f.size
	}
}

// unindex takes a file with all its copies out of the index. s.mu is held for writing.
func (s *Store) unindex(f *file) {
	f.gone = true
	for _, c := range f.copies {
		s.remove(c)
	}
	s.dropFile(f)
}

// resize sets the size of one of the store's files. s.mu is held for writing.
func (s *Store) resize(f *file, size int64) {
	if s.files[f.num] == f {
		s.totals.stored += size - f.size
	}
	f.size = size
}

// addHook makes a sampled fingerprint known. s.mu is held for writing.
func (s *Store) addHook(prefix uint64, chunk uint32) {
	s.hooks.put(prefix, chunk, func(n uint32) bool { return s.chunks[n] != nil })
}

// chunkOf is the chunk with this ID; nil if there is none.
func (s *Store) chunkOf(id ChunkID) *chunk {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index[id]
}

// MaxCommit is the highest catalog commit number in any chunk file (I10).
func (s *Store) MaxCommit() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.maxCommit
}

// Problem is something wrong with a chunk file.
type Problem struct {
	File   string
	Offset int64 // bytes; 0 when it concerns the whole file
	Slot   Slot  // zero when no slot is concerned; its Slot is the first of several
	Text   string
}

// String is the problem in one line.
func (p Problem) String() string {
	at := p.File
	if p.Offset > 0 {
		at += fmt.Sprintf(" at %d", p.Offset)
	}
	if !p.Slot.IsZero() {
		at += fmt.Sprintf(" (slot %s)", p.Slot)
	}
	return at + ": " + p.Text
}

// Problems are what Open and later work found wrong with whole files, oldest first.
func (s *Store) Problems() []Problem {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.problems)
}

// problem notes a problem.
func (s *Store) problem(p Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, p)
}

// FileInfo describes a chunk file.
type FileInfo struct {
	Name   string
	Size   int64 // bytes
	Sealed bool
	Failed bool // abandoned after an I/O error
	Chunks int
	Slots  int // present in it
}

// Files lists the chunk files by number.
func (s *Store) Files() []FileInfo {
	s.mu.RLock()
	files := make([]*file, 0, len(s.files))
	for _, f := range s.files {
		files = append(files, f)
	}
	slices.SortFunc(files, byNumber)
	out := make([]FileInfo, len(files))
	for i, f := range files {
		out[i] = FileInfo{Size: f.size, Sealed: f.sealed, Failed: f.failed, Chunks: len(f.copies)}
		for _, c := range f.copies {
			out[i].Slots += int(c.present)
		}
	}
	s.mu.RUnlock()
	for i, f := range files {
		out[i].Name = f.blob.Name()
	}
	return out
}

func byNumber(a, b *file) int {
	switch {
	case a.num.less(b.num):
		return -1
	case b.num.less(a.num):
		return 1
	}
	return 0
}

// counters are statistics that go up.
type counters struct {
	blocks, hits, written           atomic.Int64
	cacheHits, cacheMisses, rescued atomic.Int64
}

// Stats describes a store.
type Stats struct {
	Files       int
	Chunks      int
	Copies      int
	Slots       int64 // distinct slots that some copy holds
	Stored      int64 // bytes of chunk files
	Hooks       int
	HookBytes   int64 // memory of the hook table
	Damaged     int   // slots known bad or lost
	Blocks      int64 // given to Writers since Open
	Hits        int64 // of those, found stored already
	Written     int64 // bytes of chunks appended since Open
	CacheBytes  int64 // decoded groups in memory
	CacheHits   int64 // groups
	CacheMisses int64 // groups
	Rescued     int64 // reads that another copy answered
}

// Stats is what is counted all along: it takes the same time whatever the store holds.
func (s *Store) Stats() Stats {
	st := Stats{
		Blocks: s.stats.blocks.Load(), Hits: s.stats.hits.Load(), Written: s.stats.written.Load(),
		CacheHits: s.stats.cacheHits.Load(), CacheMisses: s.stats.cacheMisses.Load(),
		CacheBytes: s.groups.size(), Rescued: s.stats.rescued.Load(),
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.Files, st.Chunks = len(s.files), len(s.index)
	st.Hooks, st.HookBytes, st.Damaged = s.hooks.n, s.hooks.bytes(), len(s.damage)
	st.Stored, st.Copies, st.Slots = s.totals.stored, s.totals.copies, s.totals.slots
	return st
}
