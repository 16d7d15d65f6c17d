package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// ErrNoSegment says that every segment of the budget is in use: wait for a fold.
var ErrNoSegment = errors.New("journal pool is in use up to its budget")

// MinSegmentBytes is the smallest segment: a header page and a record of one block.
const MinSegmentBytes = 4 * wal.PageSize

// PoolOptions say how much the pool may use.
type PoolOptions struct {
	Store        [16]byte
	SegmentBytes int64 // multiple of 4096; only for new segments
	BudgetBytes  int64 // no new segment is made above this
	// Allow is called before a segment is handed out. An error (a reserve that cannot be
	// had) is passed on.
	Allow func() error
	// Rand makes log numbers that no guest can guess; nil only with ReadOnly.
	Rand io.Reader
	// ReadOnly opens files for reading and makes none.
	ReadOnly bool
}

// Pool owns the segments of a store. Safe for concurrent use.
type Pool struct {
	fsys vfs.FS
	dir  string
	o    PoolOptions

	mu struct {
		sync.Mutex
		all    map[uint64]*Segment
		free   []*Segment
		next   uint64
		freed  chan struct{} // closed when a segment comes back
		bytes  int64         // of all segments
		pinned int64         // of those that are kept as evidence, outside the budget
		logs   uint64        // numbers given to logs in this epoch
	}
}

// Recovered is a segment found at open whose header names an owner, or whose first
// record does.
type Recovered struct {
	Segment *Segment
	Header  Header
}

// Bad is a file that is no segment, or one whose header cannot be read or does not
// check. Segment is nil or held by nobody: see Inspect. Unread tells that the disk
// answered an error for the header: unlike one that does not check, it need not have been
// torn, so all that the segment holds may count.
type Bad struct {
	Segment *Segment
	Err     error
	Unread  bool
	// Cut is the header of a segment that is shorter than it says: nobody knows how much of
	// the log was in what is gone.
	Cut *Header
}

// OpenPool opens every segment in dir. Segments whose header names an owner are
// returned, in no log: the caller gives each to a log through Recover, or back with
// Release. A segment with a bad header was torn while it was being reused, or is
// damaged: what is in it must be looked at before it is given back.
func OpenPool(fsys vfs.FS, dir string, o PoolOptions) (p *Pool, owned []Recovered, bad []Bad, err error) {
	p = &Pool{fsys: fsys, dir: dir, o: o}
	p.mu.all = make(map[uint64]*Segment)
	p.mu.freed = make(chan struct{})
	names, err := fsys.ReadDir(dir)
	if err == nil && !o.ReadOnly {
		// A process that died after it named a segment may not have synced the name: what
		// is written into a segment is durable only if its name is.
		err = fsys.SyncDir(dir)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open journal pool: %w", err)
	}
	for _, name := range names {
		full := path.Join(dir, name)
		if strings.HasSuffix(name, ".tmp") {
			if !o.ReadOnly {
				if err := fsys.Remove(full); err != nil {
					p.Close()
					return nil, nil, nil, fmt.Errorf("remove unfinished segment: %w", err)
				}
			}
			continue
		}
		num, ok := parseName(name)
		if !ok {
			bad = append(bad, Bad{Err: fmt.Errorf("%s: not a segment's name: %w", full, wal.ErrFormat)})
			continue
		}
		seg, err := p.openSegment(full, num)
		if err != nil {
			p.Close()
			return nil, nil, nil, err
		}
		h, err := seg.readHeader()
		switch {
		case errors.Is(err, wal.ErrVersion):
			p.Close()
			return nil, nil, nil, fmt.Errorf("%s: %w", full, err)
		case err != nil:
			err = fmt.Errorf("%s: %w", full, err)
			if h, ok := seg.guessHeader(o.Store); ok {
				bad = append(bad, Bad{Err: fmt.Errorf("%w; its records are read all the same", err)})
				seg.header = h
				owned = append(owned, Recovered{Segment: seg, Header: h})
				continue
			}
			unread := !errors.Is(err, wal.ErrFormat) && !errors.Is(err, wal.ErrCorrupt)
			bad = append(bad, Bad{Segment: seg, Err: err, Unread: unread})
		case h.Owner == [16]byte{}:
			seg.refs.Store(0)
			p.put(seg)
		case h.Store != o.Store:
			p.Close()
			return nil, nil, nil, fmt.Errorf("%s: belongs to store %x, this is %x: %w", full, h.Store, o.Store, wal.ErrFormat)
		case int64(h.Pages) > seg.pages:
			err := fmt.Errorf("%s: %d pages of %d are left: %w", full, seg.pages, h.Pages, wal.ErrCorrupt)
			bad = append(bad, Bad{Segment: seg, Err: err, Cut: &h})
		default:
			seg.header = h
			owned = append(owned, Recovered{Segment: seg, Header: h})
		}
	}
	return p, owned, bad, nil
}

func segmentName(num uint64) string { return fmt.Sprintf("%016x.seg", num) }

// parseName is the inverse of segmentName; other names of the same number are none.
func parseName(name string) (uint64, bool) {
	n, err := strconv.ParseUint(strings.TrimSuffix(name, ".seg"), 16, 64)
	return n, err == nil && name == segmentName(n)
}

func (p *Pool) openFile(full string) (vfs.File, error) {
	if p.o.ReadOnly {
		return p.fsys.OpenReadOnly(full)
	}
	return p.fsys.Open(full)
}

func (p *Pool) openSegment(full string, num uint64) (*Segment, error) {
	f, err := p.openFile(full)
	if err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	// A process before this one may have met a failed sync (I8): what it left in the page
	// cache only must not be taken for what the journal holds.
	size, err := f.Size()
	if err == nil {
		err = f.DropCache()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open segment %s: %w", full, err)
	}
	if num >= p.mu.next {
		p.mu.next = num + 1
	}
	if size < wal.PageSize { // it has its size before its name: this is no crash's work
		f.Close()
		return nil, fmt.Errorf("%s: shorter than a segment's header, and it may have held acknowledged writes of any volume: mend the disk, or move the file away to do without them: %w", full, wal.ErrCorrupt)
	}
	seg := &Segment{pool: p, file: f, num: num, pages: size / wal.PageSize}
	seg.refs.Store(1)
	seg.bad.Store(size < MinSegmentBytes) // of no use: it goes when it is let go of
	p.mu.all[num] = seg
	p.mu.bytes += size
	return seg, nil
}

func (s *Segment) readHeader() (Header, error) {
	page := make([]byte, wal.PageSize)
	if _, err := s.file.ReadAt(page, 0); err != nil {
		if _, err = s.file.ReadAt(page, 0); err != nil { // once more: what it holds matters
			return Header{}, err
		}
	}
	return DecodeHeader(page)
}

// guessedNumber stands for a segment's number in its log that nobody knows. It is not 0,
// which would promise that what the log builds on is durable.
const guessedNumber = ^uint32(0)

// guessHeader makes a header from the first record of a segment whose header is bad. It
// names the log whose record was written at that place last, which the header must name too
// where it can be read: if the segment was torn while it was being reused, the record may be
// of any log that a recovery has cut since, and would come back from there.
func (s *Segment) guessHeader(store [16]byte) (Header, bool) {
	page := make([]byte, wal.PageSize)
	if _, err := s.file.ReadAt(page, wal.PageSize); err != nil {
		return Header{}, false
	}
	rec, _, err := wal.DecodeHeader(page)
	if err != nil {
		return Header{}, false
	}
	names := Header{Owner: rec.Owner, Epoch: rec.Epoch, Log: rec.Log}.Encode()[headerLog:headerLogEnd]
	if _, err := s.file.ReadAt(page, 0); err == nil && !bytes.Equal(page[headerLog:headerLogEnd], names) {
		return Header{}, false
	}
	return Header{
		Store: store, Owner: rec.Owner, Epoch: rec.Epoch, Log: rec.Log, Pages: uint32(s.pages), FirstSeq: rec.Seq,
		Number: guessedNumber,
		// If the log begins here, this is where the ones before it end; if not, the
		// segment that it begins in says so.
		PrevEnd: rec.Seq - 1,
	}, true
}

// Get hands out a segment, making one if none is free and the budget allows.
// ErrNoSegment: wait on Freed; vfs.ErrNoSpace: the disk is full.
func (p *Pool) Get() (*Segment, error) {
	if p.o.Allow != nil {
		if err := p.o.Allow(); err != nil {
			return nil, err
		}
	}
	seg, err := p.GetFree()
	if err != nil {
		return p.grow()
	}
	return seg, nil
}

// GetFree hands out a segment that is there, whatever PoolOptions.Allow says, and makes
// none. ErrNoSegment: wait on Freed.
func (p *Pool) GetFree() (*Segment, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.mu.free)
	if n == 0 {
		return nil, ErrNoSegment
	}
	seg := p.mu.free[n-1]
	p.mu.free = p.mu.free[:n-1]
	seg.refs.Store(1)
	seg.last, seg.dirty = 0, false
	return seg, nil
}

// grow makes one more segment, which the caller holds; ErrNoSegment above the budget.
func (p *Pool) grow() (*Segment, error) {
	p.mu.Lock()
	if used := p.mu.bytes - p.mu.pinned; used+p.o.SegmentBytes > p.o.BudgetBytes && used > 0 {
		p.mu.Unlock()
		return nil, ErrNoSegment
	}
	num := p.mu.next
	p.mu.next++
	p.mu.bytes += p.o.SegmentBytes
	p.mu.Unlock()
	seg, err := p.create(num)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.mu.bytes -= p.o.SegmentBytes
		return nil, err
	}
	p.mu.all[num] = seg
	return seg, nil
}

// Prepare makes segments until free ones wait for writers, as far as the budget and the
// disk allow, so that a writer need not wait for the making.
func (p *Pool) Prepare(free int) error {
	for {
		st := p.Stats()
		if st.Free >= free {
			return nil
		}
		if p.o.Allow != nil {
			if err := p.o.Allow(); err != nil {
				return err
			}
		}
		seg, err := p.grow()
		if errors.Is(err, ErrNoSegment) {
			return nil
		}
		if err != nil {
			return err
		}
		seg.Release()
	}
}

// create makes a segment file: temporary name, zeros, fsync, rename, fsync of the
// directory. A half made file goes.
func (p *Pool) create(num uint64) (*Segment, error) {
	full := path.Join(p.dir, segmentName(num))
	tmp := full + ".tmp"
	f, err := p.fsys.Create(tmp)
	if err != nil {
		return nil, fmt.Errorf("make segment: %w", err)
	}
	err = p.fill(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = p.fsys.Rename(tmp, full)
	}
	if err == nil {
		err = p.fsys.SyncDir(p.dir)
	}
	if err == nil {
		f, err = p.fsys.Open(full)
	}
	if err != nil { // under one name or the other, nobody would count its space
		p.fsys.Remove(tmp)
		p.fsys.Remove(full)
		return nil, fmt.Errorf("make segment %s: %w", full, err)
	}
	seg := &Segment{pool: p, file: f, num: num, pages: p.o.SegmentBytes / wal.PageSize}
	seg.refs.Store(1)
	return seg, nil
}

func (p *Pool) fill(f vfs.File) error {
	if err := f.Allocate(0, p.o.SegmentBytes); err != nil {
		return err
	}
	free := Header{Store: p.o.Store, Pages: uint32(p.o.SegmentBytes / wal.PageSize)}.Encode()
	if _, err := f.WriteAt(free, 0); err != nil {
		return err
	}
	const step = 1 << 20
	zeros := make([]byte, min(step, p.o.SegmentBytes))
	for off := int64(wal.PageSize); off < p.o.SegmentBytes; off += step {
		n := min(step, p.o.SegmentBytes-off)
		if _, err := f.WriteAt(zeros[:n], off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// put takes back a segment that nobody uses. One whose I/O failed is removed (I8).
func (p *Pool) put(s *Segment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.pinned {
		s.pinned = false
		p.mu.pinned -= s.pages * wal.PageSize
	}
	if s.bad.Load() && !p.o.ReadOnly {
		delete(p.mu.all, s.num)
		p.mu.bytes -= s.pages * wal.PageSize
		s.file.Close()
		p.fsys.Remove(s.Name())
	} else {
		p.mu.free = append(p.mu.free, s)
	}
	close(p.mu.freed)
	p.mu.freed = make(chan struct{})
}

// Pin takes a segment that must be kept, because nobody can read it back, out of the
// budget, so that other volumes can write. It ends when the segment is released.
func (p *Pool) Pin(s *Segment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !s.pinned {
		s.pinned = true
		p.mu.pinned += s.pages * wal.PageSize
	}
}

// Wake wakes who waits on Freed, to look again whether something has changed.
func (p *Pool) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.mu.freed)
	p.mu.freed = make(chan struct{})
}

// Freed returns a channel that is closed when the next segment comes back.
func (p *Pool) Freed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.freed
}

// Room tells whether Get would find a segment without waiting for a fold.
func (p *Pool) Room() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.free) > 0 || p.mu.bytes-p.mu.pinned+p.o.SegmentBytes <= p.o.BudgetBytes
}

// PoolStats describe the pool, in bytes and segments.
type PoolStats struct {
	Bytes       int64
	InUse, Free int
}

// Stats describes the pool.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PoolStats{p.mu.bytes, len(p.mu.all) - len(p.mu.free), len(p.mu.free)}
}

// logNumber gives a number that no other log of this epoch has, of whatever volume, and
// that is higher than the ones before. Its low half is random: a recycled segment holds
// what guests wrote, and one that could guess epoch and log number might write a page
// that a recovery takes for the next record.
func (p *Pool) logNumber() uint64 {
	var random [4]byte
	if _, err := io.ReadFull(p.o.Rand, random[:]); err != nil {
		panic("journal: no randomness: " + err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.logs++
	return p.mu.logs<<32 | uint64(binary.LittleEndian.Uint32(random[:]))
}

// Close closes every file. No log may be in use any more.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	nums := make([]uint64, 0, len(p.mu.all))
	for n := range p.mu.all {
		nums = append(nums, n)
	}
	sort.Slice(nums, func(i, j int) bool { return nums[i] < nums[j] })
	var first error
	for _, n := range nums {
		if err := p.mu.all[n].file.Close(); err != nil && first == nil {
			first = err
		}
	}
	p.mu.all, p.mu.free = map[uint64]*Segment{}, nil
	return first
}
