package blockstore

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/wal"
)

// Volume is an attached volume, or one whose journal is not folded yet.
//
// Lock order, outermost first: Volume.foldMu (of several volumes by ID), Volume.syncMu,
// Store.fullMu, Store.mu, the catalog's lock, Volume.mu. No commit is made and no disk is
// touched under Store.fullMu, Store.mu or Volume.mu, so readers and writers only wait for memory.
type Volume struct {
	// Fixed after construction.
	store  *Store
	id     string
	raw    [16]byte
	sector int
	codec  dedup.Codec

	size    atomic.Int64 // bytes; grows only
	marking atomic.Bool  // a markStep is scheduled
	syncing atomic.Bool  // a sync is on its way because memory fills
	onFull  atomic.Value // string: what the catalog's record says, OnFullWait or OnFullError

	foldMu sync.Mutex // one fold at a time
	syncMu sync.Mutex // one sync of the journal at a time

	mu struct {
		sync.RWMutex
		open       bool     // somebody attached it
		closing    bool     // its last records are being made durable
		scratch    *Scratch // somebody opened it with a throw-away layer; never while open
		layers     []*layer // oldest first; the last is the active one
		root       dedup.Slot
		pos        position
		log        *journal.Log
		next       uint64        // sequence of the next record
		ops        []*append1    // records assigned and not known appended, in order
		appended   uint64        // every record up to here is in the journal's files
		synced     uint64        // every record up to here survives power loss
		dataSeq    uint64        // last write or hole
		marked     uint64        // synced mark of the last record written
		noted      uint64        // the record's Durable, as far as that is durable itself
		found      uint64        // the last sequence that recovery read back
		passed     uint64        // the highest sequence that a fold's commit may have passed, durably or not yet
		noteRetry  time.Time     // no note before: there was no space for it
		unsynced   []*append1    // appended and not synced: their payloads stay in memory
		memory     int64         // bytes of payloads in memory
		prep       chan struct{} // closed when the segment being prepared is in place
		failed     error         // the volume failed closed
		unfoldable bool          // the journal behind the frozen layers cannot be read back
		deleted    bool          // about to be, or is
		gone       bool          // its deletion is durable
		written    time.Time     // last write
		oldest     time.Time     // first write since the last fold
		retry      time.Time     // no fold before
		tries      int           // folds that failed since the last that did not because its base was unread
		folding    bool
		starved    time.Time // since when records wait for disk space; zero: none does
		giveUp     bool      // somebody has said that the present wait is over
	}
}

// append1 is one record on its way into the journal.
type append1 struct {
	seq   uint64
	src   *payload // nil for a hole or a mark
	place journal.Place
	head  []byte
	body  []byte
	crcs  []uint32 // of body's pages
	done  bool
	err   error
	spare bool          // a hole taken on a full disk
	lost  error         // why it was given up before it was known to be appended; guarded by the volume's mutex
	wait  chan struct{} // made by who waits; closed when it and all before it are appended
}

// errWait says that the journal has no room: wait for a fold, or for space.
var errWait = errors.New("journal is full")

// ID returns the volume's ID.
func (v *Volume) ID() string { return v.id }

// Size is the volume's size in bytes.
func (v *Volume) Size() int64 { return v.size.Load() }

// SectorBytes is the size of a logical sector.
func (v *Volume) SectorBytes() int { return v.sector }

// WriteAt writes p at off; both must be multiples of 512 bytes. On return the write
// survives the death of the process (I1); after the next Flush it survives power
// loss. On a full disk it waits (I9); with OnFullError it is ErrNoSpace after
// Options.FullTimeout, and what the returned count leaves out is not written. p is not
// kept. ErrFailed once the volume has failed closed. Safe for concurrent use; writes that
// overlap in time have no order.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	if err := v.checkRange("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		n := min(len(p)-done, v.store.maxWrite)
		if err := v.run(wal.TypeWrite, off+int64(done), int64(n), p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// Discard makes the range read as zeros; exact to 512 bytes. Durability as WriteAt. On a full
// disk it does not wait as a write does: it uses what is kept for it, waits some seconds for a
// fold to make room if need be, and is ErrNoSpace, and nothing is done, when there is none. The
// caller may write zeros instead, and wait.
func (v *Volume) Discard(off, n int64) error {
	if err := v.checkRange("discard", off, n); err != nil || n == 0 {
		return err
	}
	return v.run(wal.TypeHole, off, n, nil)
}

// WriteZeroes is Discard: zeros are holes.
func (v *Volume) WriteZeroes(off, n int64) error { return v.Discard(off, n) }

func (v *Volume) checkRange(what string, off, n int64) error {
	if off < 0 || n < 0 || off%sectorBytes != 0 || n%sectorBytes != 0 {
		return fmt.Errorf("%s of %d bytes at %d of volume %s: must be multiples of %d: %w", what, n, off, v.id, sectorBytes, ErrInvalid)
	}
	if off > v.Size() || n > v.Size()-off {
		return fmt.Errorf("%s of %d bytes at %d of volume %s, which ends at %d: %w", what, n, off, v.id, v.Size(), ErrRange)
	}
	return nil
}

// run takes one record all the way: place, append, acknowledge. It waits for room.
func (v *Volume) run(t wal.Type, off, n int64, p []byte) error {
	var room <-chan struct{}
	var since time.Time // first time that the disk was found full
	var hole *holeWaiter
	for {
		op, err := v.begin(t, off, n, p)
		if errors.Is(err, errWait) {
			if room == nil { // try once more, so that no wake-up is missed
				room = v.store.pool.Freed()
				continue
			}
			v.store.sched.kickFold()
			if t == wal.TypeHole && hole == nil {
				hole = v.newHoleWaiter()
			}
			if since, err = v.awaitRoom(room, since, hole); err == nil {
				room = nil
				continue
			}
		}
		if t == wal.TypeHole && !since.IsZero() {
			v.feed() // it waits no more, taken or refused; others who do say so again
		}
		if errors.Is(err, ErrClosed) {
			v.store.forget(v) // the segment that was made for it may have kept the volume in memory
		}
		if err != nil {
			return err
		}
		v.append(op)
		return v.acknowledge(op)
	}
}

// begin takes a record from a writer, once the reserve covers folding it: it assigns
// sequence, journal place and overlay entry. errWait if journal or disk have no room.
func (v *Volume) begin(t wal.Type, off, n int64, p []byte) (*append1, error) {
	v.mu.RLock()
	err := v.usable() // else a closed volume would wait for space
	v.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	debt := foldDebt(t, off, n)
	spare := t == wal.TypeHole && v.store.isFull()
	if err := v.store.charge(debt, spare); err != nil {
		return nil, err
	}
	op, err := v.take(t, off, n, p, spare)
	if err != nil {
		v.store.reserve.pay(debt)
	}
	return op, err
}

// take is begin for a record that is paid for, with what is kept for holes if spare; all of
// it happens under one lock.
func (v *Volume) take(t wal.Type, off, n int64, p []byte, spare bool) (*append1, error) {
	op := &append1{spare: spare}
	if t == wal.TypeWrite {
		op.body = append([]byte(nil), p...) // copied without being zeroed before
		if pad := int(roundUp(n, wal.PageSize) - n); pad > 0 {
			op.body = append(op.body, zeroBlock[:pad]...)
		}
		op.crcs = wal.PayloadCRCs(op.body)
	}
	v.mu.Lock()
	for {
		if err := v.usable(); err != nil {
			v.mu.Unlock()
			return nil, err
		}
		// A prepared segment says which sequence comes first in it: nobody may take
		// one meanwhile.
		if wait := v.mu.prep; wait != nil {
			v.mu.Unlock()
			<-wait
			v.mu.Lock()
			continue
		}
		if v.mu.memory > v.store.o.UnsyncedBytes {
			v.mu.Unlock()
			if err := v.syncJournal(); err != nil {
				return nil, err
			}
			v.mu.Lock()
			continue
		}
		place, ok := v.mu.log.Place(v.mu.next, len(op.body)/wal.PageSize)
		if ok {
			op.place = place
			break
		}
		if err := v.extend(spare); err != nil {
			v.mu.Unlock()
			return nil, err
		}
	}
	defer v.mu.Unlock()
	v.assign(op, t, off, n)
	return op, nil
}

func (v *Volume) usable() error {
	switch {
	case v.mu.failed != nil:
		return fmt.Errorf("volume %s: %w: %w", v.id, ErrFailed, v.mu.failed)
	case v.mu.deleted:
		return fmt.Errorf("volume %s is deleted: %w", v.id, ErrNotFound)
	case !v.mu.open:
		return fmt.Errorf("volume %s is not attached: %w", v.id, ErrClosed)
	}
	return nil
}

// extend gives the journal another segment; spare: one that is there, though the disk is
// full. Called with v.mu held, which it drops for the I/O, and with no segment being prepared.
func (v *Volume) extend(spare bool) error {
	done := make(chan struct{})
	v.mu.prep = done
	v.mu.Unlock()
	get := v.store.pool.Get
	if spare {
		get = v.store.pool.GetFree
	}
	seg, err := get()
	v.store.sched.kickPrepare()
	noSpace := errors.Is(err, ErrNoSpace)
	if noSpace {
		v.store.setFull(true, err)
	}
	if err == nil {
		err = v.install(seg)
	}
	v.mu.Lock()
	if err == nil && !spare {
		v.fed()
	}
	v.mu.prep = nil
	close(done)
	if noSpace || errors.Is(err, journal.ErrNoSegment) {
		return fmt.Errorf("%w: %w", errWait, err)
	}
	return err
}

// install makes seg the journal's tail. It counts as a sync, because the header of a
// new log makes durable what it builds on: neither a Flush nor a cut may be answered
// beside it.
func (v *Volume) install(seg *journal.Segment) error {
	v.syncMu.Lock()
	defer v.syncMu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.usable(); err != nil && !(v.mu.closing && errors.Is(err, ErrClosed)) { // closed meanwhile
		seg.Release()
		return err
	}
	next := v.mu.log.Prepare(seg, v.mu.next)
	v.mu.Unlock()
	err := next.Write()
	v.mu.Lock()
	if err != nil {
		v.fail(err)
		seg.Release()
		return fmt.Errorf("volume %s: %w: %w", v.id, ErrFailed, v.mu.failed)
	}
	v.mu.log.Install(next)
	return nil
}

// assign gives op its sequence, header and overlay entry. Called with v.mu held.
func (v *Volume) assign(op *append1, t wal.Type, off, n int64) {
	epoch, number := v.mu.log.ID()
	op.seq = v.mu.next
	v.mu.next++
	rec := wal.Record{
		Type: t, Owner: v.raw, Epoch: epoch, Log: number, Seq: op.seq, Synced: v.mu.synced,
		Offset: uint64(off), Length: uint64(n), Pages: uint32(len(op.body) / wal.PageSize),
	}
	op.head = make([]byte, wal.PageSize)
	wal.EncodeHeaderCRCs(op.head, rec, op.crcs)
	v.mu.marked = v.mu.synced
	v.mu.ops = append(v.mu.ops, op)
	active := v.mu.layers[len(v.mu.layers)-1]
	active.last, active.epoch, active.log = op.seq, epoch, number
	active.bytes += rec.Size()
	if t == wal.TypeMark {
		return
	}
	active.debt += foldDebt(t, off, n)
	if !op.spare {
		v.fed()
	}
	v.mu.dataSeq = op.seq
	now := v.store.o.Now()
	v.mu.written = now
	crossed := func(mark int64) bool { return active.bytes >= mark && active.bytes-rec.Size() < mark }
	if v.mu.oldest.IsZero() || crossed(v.store.o.FoldBytes) || crossed(v.store.o.IdleBytes) {
		v.store.sched.kickFold()
	}
	if v.mu.oldest.IsZero() {
		v.mu.oldest = now
	}
	if t == wal.TypeWrite {
		op.src = &payload{start: off, n: n, seg: op.place.Segment, off: op.place.Offset + wal.PageSize, crcs: op.crcs}
		body := op.body
		op.src.mem.Store(&body)
	}
	active.put(off/sectorBytes, (off+n)/sectorBytes, op.src)
}

// append writes op into the journal's file. Appends of several ops may run in any
// order and at the same time.
func (v *Volume) append(op *append1) {
	seg := op.place.Segment
	err := seg.Append(op.place.Offset, op.head, op.body)
	v.mu.Lock()
	defer v.mu.Unlock()
	seg.Appended()
	seg.Release()
	op.done, op.err, op.head = true, err, nil
	if op.lost != nil {
		return // of a failure that may be over
	}
	if err != nil {
		v.fail(err)
		return
	}
	if v.mu.failed != nil {
		return
	}
	for len(v.mu.ops) > 0 && v.mu.ops[0].done {
		first := v.mu.ops[0]
		v.mu.ops = v.mu.ops[1:]
		v.mu.appended = first.seq
		if first.src != nil {
			v.mu.unsynced = append(v.mu.unsynced, first)
			v.mu.memory += int64(len(first.body))
		}
		first.body = nil
		if v.mu.memory > v.store.o.UnsyncedBytes/2 {
			v.store.sched.syncSoon(v)
		}
		if first.wait != nil {
			close(first.wait)
		}
	}
}

// acknowledge waits until every record up to op's is appended.
func (v *Volume) acknowledge(op *append1) error {
	v.mu.Lock()
	if op.lost == nil && v.mu.appended < op.seq {
		if op.wait == nil {
			op.wait = make(chan struct{})
		}
		wait := op.wait
		v.mu.Unlock()
		<-wait
		v.mu.Lock()
	}
	defer v.mu.Unlock()
	if op.lost != nil {
		return fmt.Errorf("volume %s: %w: %w", v.id, ErrFailed, op.lost)
	}
	return nil
}

// fail makes the volume refuse everything from now on (I8). Called with v.mu held.
func (v *Volume) fail(err error) {
	if v.mu.failed != nil {
		return
	}
	if errors.Is(err, ErrNoSpace) { // not an error that space would end
		err = errors.New(err.Error())
	}
	v.mu.failed = err
	v.fed() // who waited is told that it failed
	v.store.log.Error("volume failed closed", "volume_id", v.id, "err", err)
	v.store.o.Events(Event{Kind: VolumeFailed, Volume: v.id, Err: err})
	for _, op := range v.mu.ops {
		op.lost = err
		if op.wait != nil {
			close(op.wait)
		}
	}
	v.mu.ops = nil
	v.store.pool.Wake()
}

// Flush returns when every write that was acknowledged before the call survives power
// loss. With nothing new it returns at once. After an error the volume has failed
// closed (I8).
func (v *Volume) Flush() error {
	v.mu.RLock()
	err := v.usable()
	clean := v.mu.dataSeq <= v.mu.synced
	v.mu.RUnlock()
	if err != nil || clean {
		return err
	}
	return v.syncJournal()
}

// syncUpTo waits until every record up to seq is appended and makes them durable.
func (v *Volume) syncUpTo(seq uint64) error {
	v.mu.Lock()
	var last *append1
	for _, op := range v.mu.ops {
		if op.seq > seq {
			break
		}
		last = op
	}
	if last != nil && last.wait == nil {
		last.wait = make(chan struct{})
	}
	v.mu.Unlock()
	if last != nil {
		<-last.wait
	}
	return v.syncJournal()
}

// syncJournal makes every record appended so far durable: one fdatasync for each
// segment with an append since the last, oldest first. Where the catalog does not know yet
// that the journal reaches so far, a commit follows that says so (noteDue). After an error
// the volume has failed closed; what was read back by a start counts as appended.
func (v *Volume) syncJournal() error {
	v.mu.RLock()
	target := v.mu.appended
	v.mu.RUnlock()
	v.syncMu.Lock()
	defer v.syncMu.Unlock()
	v.mu.Lock()
	if v.mu.failed != nil {
		defer v.mu.Unlock()
		return fmt.Errorf("volume %s: %w: %w", v.id, ErrFailed, v.mu.failed)
	}
	if v.mu.synced >= target {
		v.mu.Unlock()
		return nil
	}
	upto := v.mu.appended
	segs := v.mu.log.Dirty()
	v.mu.Unlock()
	var err error
	for _, seg := range segs {
		if err == nil {
			err = seg.Datasync()
		}
		seg.Release()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for err == nil && v.noteDue(upto) {
		v.mu.Unlock()
		err = v.note(upto)
		v.mu.Lock()
	}
	if err != nil {
		v.fail(err)
		return fmt.Errorf("volume %s: %w: %w", v.id, ErrFailed, v.mu.failed)
	}
	v.mu.synced = max(v.mu.synced, upto)
	v.dropMemory(upto)
	v.store.sched.markSoon(v)
	v.store.sched.kickNote()
	return nil
}

// syncRecovered makes durable what a recovery has read back and no sync has covered
// since, of a volume that nobody has open. One that failed closed is left as it is.
func (v *Volume) syncRecovered() error {
	v.mu.Lock()
	if v.mu.failed != nil {
		v.mu.Unlock()
		return nil
	}
	v.mu.closing = true
	v.mu.Unlock()
	return v.finish()
}

// finish makes everything durable, and a mark behind it that says so: from then on a bad
// record is damage and no torn tail. It ends closing.
func (v *Volume) finish() error {
	err := v.syncJournal()
	if err == nil {
		v.markStep()
		err = v.syncJournal()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.closing = false
	v.recovered()
	return err
}

// dropMemory lets payloads of records up to seq leave memory. Called with v.mu held.
func (v *Volume) dropMemory(seq uint64) {
	n := 0
	for _, op := range v.mu.unsynced {
		if op.seq > seq {
			break
		}
		v.mu.memory -= int64(len(*op.src.mem.Load()))
		op.src.mem.Store(nil)
		n++
	}
	v.mu.unsynced = v.mu.unsynced[n:]
}

// markStep writes the synced mark as a record of its own, if no record has carried it
// yet and the tail has room. Without it a bad record could be taken for a torn tail.
func (v *Volume) markStep() {
	op := &append1{}
	v.mu.Lock()
	if v.mu.failed != nil || !v.mu.open && !v.mu.closing || v.mu.marked >= v.mu.synced || v.mu.prep != nil {
		v.mu.Unlock()
		return
	}
	place, ok := v.mu.log.Place(v.mu.next, 0)
	if !ok && v.mu.closing && v.extend(false) == nil { // the last chance to say it
		place, ok = v.mu.log.Place(v.mu.next, 0)
	}
	if !ok {
		v.mu.Unlock()
		return
	}
	op.place = place
	v.assign(op, wal.TypeMark, 0, 0)
	v.mu.Unlock()
	v.append(op)
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
