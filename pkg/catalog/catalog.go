// Package catalog keeps named records with compare-and-swap: all of them in memory,
// every change in a log, the log replaced by a checkpoint of the state when it is
// full. FORMAT.md of pkg/blockstore, section 4, has the bytes.
//
// Data flow: Update (and Commit, which is made of it) checks a caller's changes
// against the head, the state with everything queued, applies them there and queues
// one record. The log writer, one goroutine, takes all that is queued, writes it with
// one sync, then moves the durable view up to it and answers the callers. If the log
// has no room it writes a checkpoint of the head into the spare file instead, which
// becomes the next log; the log before it becomes the spare.
//
// Invariants:
//   - One caller's commit is one record and one commit number; numbers go up by one
//     and never restart. All changes of a commit happen or none do.
//   - Nothing is answered, and no reader outside of Update sees anything, that is not
//     durable; that holds for refusals too: what an answer rests on is durable.
//   - Only the log with the highest number counts. It is durable up to its
//     checkpoint's end before it gets its name; only then the one before is retired.
//   - The state fits the spare (and the log, which is the next spare), so replacing a
//     full log never needs disk space. Only a commit that makes the state grow past
//     what the files can hold is refused on a full disk.
//   - A log is never appended to by another process than the one that made it. After
//     a failed write or sync the catalog fails for good (I8).
//
// It must not know what the values mean, nor of volumes, chunks and journals.
package catalog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/k8ns/granary/pkg/wal"
)

// Errors that callers distinguish, by errors.Is. A damaged catalog is wal.ErrCorrupt,
// another store's or another file wal.ErrFormat, a newer one wal.ErrVersion, a full
// disk vfs.ErrNoSpace.
var (
	// ErrConflict: a key does not have the revision that an Op expects.
	ErrConflict = errors.New("changed by somebody else")
	// ErrInvalid: an Op that can never be committed.
	ErrInvalid = errors.New("invalid")
	// ErrFailed: writing failed earlier. Whether commits that were answered with it
	// happened shows when the catalog is opened again.
	ErrFailed = errors.New("catalog failed")
	// ErrReadOnly: a change of a catalog that was opened for reading.
	ErrReadOnly = errors.New("catalog is read-only")
	// ErrClosed: a change after Close.
	ErrClosed = errors.New("catalog is closed")
)

// Options are the choices of Open; the zero value is usable.
type Options struct {
	// LogBytes is the size of a log file, in bytes: 8 MiB if zero, at least 64 KiB,
	// rounded up to whole pages. Two such files exist. They grow when the state needs
	// more than half of one.
	LogBytes int64
	// ReadOnly opens without changing anything. The catalog must have no writer.
	ReadOnly bool
	// Committed is told of every commit, one after the other in order, when it is durable
	// and before a View shows it or it is answered. It must be quick, must not call the
	// catalog and must not keep the values. nil: nobody is told.
	Committed func(ops []Op)
}

const (
	defaultLogBytes = 8 << 20
	minLogBytes     = 64 << 10
)

func (o *Options) withDefaults() {
	if o.LogBytes == 0 {
		o.LogBytes = defaultLogBytes
	}
	o.LogBytes = roundUp(o.LogBytes, wal.PageSize)
}

func (o *Options) validate() error {
	if o.LogBytes < minLogBytes {
		return fmt.Errorf("%w: log size of %d bytes, must be at least %d", ErrInvalid, o.LogBytes, minLogBytes)
	}
	return nil
}

// What a caller's Op expects of its key, beside a revision.
const (
	// ExpectAbsent: there is no such key.
	ExpectAbsent uint64 = 0
	// ExpectAny: whatever there is.
	ExpectAny = ^uint64(0)
)

// Op is one change of a commit.
type Op struct {
	Key   string // 1 to 65535 bytes; at most once in a commit
	Value []byte // nil = delete; else put, which may be empty
	// Expect is the revision that the key must have before the commit. The zero
	// value is ExpectAbsent: an Op that says nothing else makes a new key.
	Expect uint64
}

// Catalog is an open catalog. All methods may be called concurrently.
type Catalog struct {
	opts   Options       // fixed after Open
	epoch  uint64        // fixed after Open
	writer *logWriter    // nil if read-only; used by the goroutine run and nobody else
	ended  chan struct{} // closed when run has returned

	durable atomic.Pointer[View] // the last durable state; moved by run

	mu struct {
		sync.Mutex
		work *sync.Cond // queue or closing has changed

		head  state      // with all that is queued
		queue []*request // not taken by run yet, in order
		last  *request   // the last commit queued, maybe answered; nil before the first
		room  int64      // bytes that a state's log may have
		files fileStats

		err     error // why the catalog has failed
		closing bool
	}
}

// request is what a caller waits for.
type request struct {
	commit  uint64 // a commit's number
	ops     []Op   // a commit's changes
	payload []byte // a commit's entries, whole pages
	length  int    // of payload without the filling
	grow    int64  // if not 0: no commit, but room for so many bytes of entries

	done chan struct{} // closed once err is set
	err  error
}

func newRequest() *request { return &request{done: make(chan struct{})} }

// answer lets the waiting caller go on.
func (r *request) answer(err error) {
	r.err = err
	close(r.done)
}

// wait returns how the request ended. A nil request has ended well.
func (r *request) wait() error {
	if r == nil {
		return nil
	}
	<-r.done
	return r.err
}

// Epoch is a number that each Open for writing raises, durably, before it returns; a
// read-only catalog has the epoch of its last writer.
func (c *Catalog) Epoch() uint64 { return c.epoch }

// View is the last durable state. It takes no lock and no time.
func (c *Catalog) View() View { return *c.durable.Load() }

// Durable is the number of the last durable commit, 0 before the first.
func (c *Catalog) Durable() uint64 { return c.View().Commit() }

// Get returns the durable entry of key. Its Value must not be changed.
func (c *Catalog) Get(key string) (Entry, bool) { return c.View().Get(key) }

// Scan returns durable entries; see View.Scan.
func (c *Catalog) Scan(prefix, after string, limit int) []Entry {
	return c.View().Scan(prefix, after, limit)
}

// Stats are figures of a catalog.
type Stats struct {
	Records    int    // entries in the durable state
	StateBytes int64  // what they take in a checkpoint, about
	DiskBytes  int64  // of the log and the spare
	LogBytes   int64  // of the log
	LogUsed    int64  // of the log, bytes that are written
	Log        uint64 // number of the log
	Commit     uint64 // the last durable one
}

// Stats returns the figures of now.
func (c *Catalog) Stats() Stats {
	v := c.View()
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.mu.files
	return Stats{
		Records: v.Len(), StateBytes: v.state.bytes, Commit: v.Commit(),
		DiskBytes: f.size + f.spare, LogBytes: f.size, LogUsed: f.used, Log: f.log,
	}
}

// Commit makes all the changes durable or none, and returns the commit's number,
// which is the revision of every entry it has put. Without ops it waits until what
// was committed before is durable. Values are copied.
//
// Errors: ErrConflict if a key does not have the revision its Op expects, ErrInvalid,
// ErrReadOnly, ErrClosed, vfs.ErrNoSpace if the state has grown and the disk is full:
// nothing has changed then. ErrFailed: see there.
func (c *Catalog) Commit(ops ...Op) (uint64, error) {
	return c.Update(func(View) ([]Op, error) { return ops, nil })
}

// Update commits the changes that fn decides on, and returns the commit's number. fn
// sees the state that the commit will apply to, with the commits queued before it,
// whose number is View.Commit; the commit gets the next one. No ops: no commit, the
// number is that of the last commit that fn saw. An error of fn is returned.
//
// Whatever fn decides, Update returns only when all that fn saw is durable, and with
// ErrFailed if it never will be. fn runs under the catalog's lock: it must be quick
// and must not call the catalog. It may run more than once, when the files must grow
// first; the last run counts.
//
// Errors are those of Commit.
func (c *Catalog) Update(fn func(View) ([]Op, error)) (uint64, error) {
	for {
		commit, last, err := c.admit(fn)
		if need, ok := errors.AsType[needRoom](err); ok {
			if err := c.grow(int64(need)); err != nil {
				return 0, err
			}
			continue
		}
		if failed := last.wait(); failed != nil {
			return 0, failed
		}
		if err != nil {
			return 0, err
		}
		return commit, nil
	}
}

// needRoom is the answer of admit to a commit that makes the state so many bytes
// long, which the files cannot hold.
type needRoom int64

func (n needRoom) Error() string { return fmt.Sprintf("needs room for %d bytes", int64(n)) }

// admit lets fn decide, applies its changes to the head and queues them. last is the
// request that must have ended well before the answer may be given.
func (c *Catalog) admit(fn func(View) ([]Op, error)) (commit uint64, last *request, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refusal(); err != nil {
		return 0, nil, err
	}
	view := View{c.mu.head.copy()}
	ops, err := fn(view)
	if err != nil || len(ops) == 0 {
		return view.Commit(), c.mu.last, err
	}
	commit = view.Commit() + 1
	if err := checkOps(view, ops); err != nil {
		return 0, c.mu.last, err
	}
	payload, length, err := encodeOps(commit, ops)
	if err != nil {
		return 0, c.mu.last, err
	}
	bytes := c.mu.head.bytesWith(ops)
	if bytes > c.mu.head.bytes && checkpointBytes(bytes) > c.mu.room {
		return 0, nil, needRoom(bytes)
	}
	c.mu.head.apply(commit, ops)
	r := newRequest()
	r.commit, r.ops, r.payload, r.length = commit, ops, payload, length
	c.enqueue(r)
	c.mu.last = r
	return commit, r, nil
}

// refusal says why no change is taken; nil if one is. +checklocks:c.mu
func (c *Catalog) refusal() error {
	switch {
	case c.opts.ReadOnly:
		return ErrReadOnly
	case c.mu.err != nil:
		return c.mu.err
	case c.mu.closing:
		return ErrClosed
	}
	return nil
}

// enqueue hands r to the log writer. +checklocks:c.mu
func (c *Catalog) enqueue(r *request) {
	c.mu.queue = append(c.mu.queue, r)
	c.mu.work.Signal()
}

// grow asks the log writer for files that hold a state of so many bytes of entries.
func (c *Catalog) grow(bytes int64) error {
	r := newRequest()
	r.grow = bytes
	c.mu.Lock()
	if err := c.refusal(); err != nil {
		c.mu.Unlock()
		return err
	}
	c.enqueue(r)
	c.mu.Unlock()
	return r.wait()
}

// checkOps tells whether the ops may be applied to view.
func checkOps(view View, ops []Op) error {
	seen := make(map[string]struct{}, len(ops))
	for _, op := range ops {
		if len(op.Key) == 0 || len(op.Key) > maxKey {
			return fmt.Errorf("%w: key of %d bytes, must be 1 to %d", ErrInvalid, len(op.Key), maxKey)
		}
		if _, ok := seen[op.Key]; ok {
			return fmt.Errorf("%w: key %q twice in one commit", ErrInvalid, op.Key)
		}
		seen[op.Key] = struct{}{}
		if op.Expect == ExpectAny {
			continue
		}
		e, _ := view.Get(op.Key) // revision 0 = ExpectAbsent
		if e.Revision != op.Expect {
			return fmt.Errorf("%w: %s has %s, expected %s", ErrConflict, op.Key,
				revisionText(e.Revision), revisionText(op.Expect))
		}
	}
	return nil
}

func revisionText(revision uint64) string {
	if revision == ExpectAbsent {
		return "no entry"
	}
	return fmt.Sprintf("revision %d", revision)
}

// run is the log writer's goroutine; it ends after Close, with the queue empty.
func (c *Catalog) run() {
	defer close(c.ended)
	for {
		c.mu.Lock()
		for len(c.mu.queue) == 0 && !c.mu.closing {
			c.mu.work.Wait()
		}
		group := c.mu.queue
		c.mu.queue = nil
		if len(group) == 0 {
			c.mu.Unlock()
			return
		}
		head, err := c.mu.head.copy(), c.mu.err
		c.mu.Unlock()

		if err == nil {
			err = c.process(group, head)
		}
		for _, r := range group {
			if r.grow == 0 || err != nil {
				r.answer(err)
			}
		}
	}
}

// process makes a group of requests durable and publishes head, the state behind
// them. Requests to grow it answers itself, unless the catalog fails, which is what
// its error says.
func (c *Catalog) process(group []*request, head state) error {
	var commits, grows []*request
	var need int64
	for _, r := range group {
		if r.grow > 0 {
			grows, need = append(grows, r), max(need, r.grow)
		} else {
			commits = append(commits, r)
		}
	}
	err := c.writer.commit(commits, head)
	var noRoom error
	if err == nil && len(grows) > 0 {
		noRoom, err = c.writer.grow(need, head)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrFailed, err)
	} else {
		c.tell(commits)
		c.durable.Store(&View{head})
	}
	c.mu.Lock()
	c.mu.err = err
	c.mu.room, c.mu.files = c.writer.room(), c.writer.stats()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	for _, r := range grows {
		r.answer(noRoom)
	}
	return nil
}

// tell hands commits to Options.Committed.
func (c *Catalog) tell(commits []*request) {
	for _, r := range commits {
		if c.opts.Committed != nil {
			c.opts.Committed(r.ops)
		}
	}
}

// Close waits for what is queued and lets go of the files. A second Close does
// nothing. Views stay usable. What was answered is durable whatever Close returns.
func (c *Catalog) Close() error {
	if c.writer == nil {
		return nil
	}
	c.mu.Lock()
	again := c.mu.closing
	c.mu.closing = true
	c.mu.work.Signal()
	c.mu.Unlock()
	<-c.ended
	if again {
		return nil
	}
	return c.writer.close()
}

// roundUp is the next multiple of step.
func roundUp(n, step int64) int64 { return (n + step - 1) / step * step }
