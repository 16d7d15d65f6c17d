package blockstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// Directories of a store.
const (
	dirCatalog = "catalog"
	dirChunks  = "chunks"
	dirJournal = "journal"
	dirReserve = "reserve"
	dirScratch = "scratch"
	// dirQuarantine holds damaged chunk files that a repair has replaced. Nothing reads
	// them; they are there for who wants to look, and may be removed.
	dirQuarantine = "quarantine"
)

// Store is a set of volumes that share chunk files and a catalog. Safe for concurrent
// use.
type Store struct {
	// Fixed after Open.
	fsys     vfs.FS
	dir      string
	o        Options
	log      *slog.Logger
	id       [16]byte
	lock     io.Closer
	cat      *catalog.Catalog
	census   *census
	blobs    *blob.Dir
	chunks   *dedup.Store
	tree     *blockmap.Tree
	pool     *journal.Pool
	reserve  *reserve
	maxWrite int // bytes of one journal record

	gate      gate
	sched     scheduler
	scratches atomic.Int64 // scratch files made
	fullMu    sync.Mutex   // one change of mu.full at a time, with all that is told of it

	mu struct {
		sync.Mutex
		volumes  map[string]*Volume // open, or with a journal
		deleting map[string]bool
		closed   bool
		full     bool // writers wait for the disk
	}
	coll   collector
	damage damageQueue
	silent struct {
		sync.Mutex
		looked time.Time // when chunk files that could not be read were looked at last
	}
}

// Open opens the store in dir, making one if the directory holds none. It takes the
// directory's lock (ErrLocked) until Close, raises the store's epoch durably, recovers
// every journal and refuses a catalog older than the files beside it (ErrOlder, I10).
// A volume whose journal is corrupt fails closed by itself; the others are served.
func Open(fsys vfs.FS, dir string, o Options) (*Store, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := fsys.Lock(path.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s := &Store{fsys: fsys, dir: dir, o: o, log: o.Logger, lock: lock, census: newCensus()}
	s.mu.volumes = make(map[string]*Volume)
	s.mu.deleting = make(map[string]bool)
	s.sched.init()
	s.coll.turn = newTurn()
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, err
	}
	return s, nil
}

func (s *Store) open() error {
	h, err := openStoreHeader(s.fsys, s.dir, func() (id [16]byte) {
		if _, err := io.ReadFull(s.o.Rand, id[:]); err != nil {
			panic("blockstore: no randomness: " + err.Error())
		}
		return id
	})
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	s.id = h.store
	if s.reserve, err = openReserve(s.fsys, path.Join(s.dir, dirReserve), s.o.SegmentBytes, s.o.ReserveBytes); err != nil {
		return err
	}
	for { // a start on a full disk costs some of the reserve
		o := catalog.Options{LogBytes: s.o.CatalogBytes, Committed: s.census.committed}
		s.cat, err = catalog.Open(s.fsys, path.Join(s.dir, dirCatalog), s.id, o)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrNoSpace) || !s.reserve.release() {
			return fmt.Errorf("open store: %w", err)
		}
	}
	if err := s.census.load(s.cat.View()); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	clean := s.cat.Durable() == h.commit
	if err := s.openChunks(dedup.Options{}); err != nil {
		return err
	}
	owned, bad, err := s.openJournal(false)
	if err != nil {
		return err
	}
	if err := s.checkAge(h, owned); err != nil {
		return err
	}
	s.removeScratch()
	if err := s.loadDamage(); err != nil {
		return err
	}
	if err := s.recoverVolumes(owned, bad); err != nil {
		return err
	}
	if err := s.removeDeleted(); err != nil {
		return err
	}
	if err := s.reserve.ensure(0); err != nil {
		s.setFull(true, err)
	}
	s.resumeEstimate(h, clean)
	return nil
}

// openChunks opens the chunk files; how says whether read-only or for a repair, the rest of
// it is filled in.
func (s *Store) openChunks(how dedup.Options) (err error) {
	if e := s.cat.Epoch(); e > math.MaxUint32 { // numbers of chunk files would repeat
		return fmt.Errorf("open store: epoch %d: a chunk file's number has room for %d: %w", e, uint32(math.MaxUint32), ErrCorrupt)
	}
	dir := path.Join(s.dir, dirChunks)
	if how.ReadOnly {
		s.blobs = blob.ExistingDir(s.fsys, dir, s.o.OpenFiles)
	} else if s.blobs, err = blob.NewDir(s.fsys, dir, s.o.OpenFiles); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	how.Store, how.Epoch, how.Commit = s.id, uint32(s.cat.Epoch()), s.cat.Durable
	how.FileBytes, how.CacheBytes, how.ListCache = s.o.ChunkFileBytes, s.o.CacheBytes, s.o.ListCache
	how.Workers, how.NoSpace, how.OnDamage = s.o.Workers, s.noSpace, s.onDamage
	if s.chunks, err = dedup.Open(s.blobs, how); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	for _, p := range s.chunks.Problems() {
		s.log.Warn("chunk file", "problem", fmt.Sprint(p))
	}
	s.tree = blockmap.New(s.chunks, s.o.NodeCache)
	return nil
}

func (s *Store) openJournal(readOnly bool) ([]journal.Recovered, []journal.Bad, error) {
	dir := path.Join(s.dir, dirJournal)
	if !readOnly {
		if err := s.fsys.MkdirAll(dir); err != nil {
			return nil, nil, fmt.Errorf("open store: %w", err)
		}
	}
	pool, owned, bad, err := journal.OpenPool(s.fsys, dir, journal.PoolOptions{
		Store: s.id, SegmentBytes: s.o.SegmentBytes, BudgetBytes: s.o.JournalBytes,
		Allow: s.allowSegment, Rand: s.o.Rand, ReadOnly: readOnly,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	s.pool = pool
	s.maxWrite = min(pool.MaxPayload(), 1<<20)
	return owned, bad, nil
}

// checkAge refuses a catalog older than what was written beside it (I10).
func (s *Store) checkAge(h storeHeader, owned []journal.Recovered) error {
	newest, where := h.commit, headerName
	if c := s.chunks.MaxCommit(); c > newest {
		newest, where = c, "a chunk file"
	}
	for _, o := range owned {
		if o.Header.Commit > newest {
			newest, where = o.Header.Commit, o.Segment.Name()
		}
	}
	if have := s.cat.Durable(); have < newest {
		return fmt.Errorf("%s: the catalog ends at commit %d, but %s was written after commit %d: an older catalog is never served: %w",
			s.dir, have, where, newest, ErrOlder)
	}
	return nil
}

// scan lists all records below a prefix.
func (s *Store) scan(prefix string) []catalog.Entry { return s.cat.View().Scan(prefix, "", 0) }

// ID is the store's ID, 32 hexadecimal digits.
func (s *Store) ID() string { return hex.EncodeToString(s.id[:]) }

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

// Close syncs and closes every volume, seals what is open and lets go of the
// directory. Run must have returned. Volumes still open are closed; their journals are
// folded after the next start.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return nil
	}
	s.mu.closed = true
	s.mu.Unlock()
	vols := s.loadedVolumes() // no other is opened any more
	var errs []error
	for _, v := range vols {
		err := v.shut()
		if errors.Is(err, ErrClosed) { // nobody has it open, but its journal may not be durable
			err = v.syncRecovered()
		}
		errs = append(errs, err)
	}
	s.damageStep()
	errs = append(errs, s.onReserve(func() error { return s.noteJournals(vols) }))
	errs = append(errs, s.closeChunks())
	if len(errs) == 0 || errors.Join(errs...) == nil {
		err := s.onReserve(func() error { return writeStoreHeader(s.fsys, s.dir, s.cleanHeader()) })
		if errors.Is(err, ErrNoSpace) { // it says more of a clean stop, and nothing needs it
			s.log.Warn("store header not written", "err", err)
			err = nil
		}
		errs = append(errs, err)
	}
	errs = append(errs, s.closeFiles())
	return errors.Join(errs...)
}

// closeChunks closes the chunk files. One that a full disk does not let us seal stays open,
// and the next start seals it.
func (s *Store) closeChunks() error {
	err := s.chunks.Close()
	if errors.Is(err, ErrNoSpace) {
		s.log.Warn("chunk file not sealed", "err", err)
		return nil
	}
	return err
}

// cleanHeader is the header that a clean stop leaves.
func (s *Store) cleanHeader() storeHeader {
	s.coll.mu.Lock()
	defer s.coll.mu.Unlock()
	return storeHeader{store: s.id, commit: s.cat.Durable(), pending: s.coll.mu.pending, held: s.coll.mu.held}
}

// resumeEstimate takes the garbage that the last process has estimated, if it stopped
// cleanly and nothing was committed since.
func (s *Store) resumeEstimate(h storeHeader, clean bool) {
	if clean {
		s.coll.mu.pending, s.coll.mu.held = h.pending, h.held
	} else {
		s.coll.mu.pending = s.chunks.Stats().Slots * BlockSize
	}
	if s.warrantsCollection() {
		s.sched.kickCollect()
	}
}

// closeFiles closes what open opened, without sealing anything.
func (s *Store) closeFiles() error {
	var errs []error
	if s.pool != nil {
		errs = append(errs, s.pool.Close())
	}
	if s.blobs != nil {
		s.blobs.Close()
	}
	if s.cat != nil {
		errs = append(errs, s.cat.Close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// charge is asked before a record is taken from a writer: the reserve must cover folding
// it, with what is kept for holes if spare. errWait if the disk is full; for a hole it is
// ErrNoSpace when it would wait as a write does.
func (s *Store) charge(n int64, spare bool) error {
	if spare {
		space, _ := s.fsys.Space(s.dir) // what is not known is none
		return s.reserve.chargeHole(n, space.Free)
	}
	err := s.reserve.charge(n)
	if errors.Is(err, ErrNoSpace) {
		s.setFull(true, err)
		return fmt.Errorf("%w: %w", errWait, err)
	}
	return err
}

// allowSegment is asked before a segment goes to a writer: the reserve must be whole.
func (s *Store) allowSegment() error { return s.wholeReserve(0) }

// wholeReserve sees that the reserve covers more bytes than folding needs now.
func (s *Store) wholeReserve(more int64) error {
	if s.reserve == nil {
		return nil
	}
	err := s.reserve.ensure(more)
	if errors.Is(err, ErrNoSpace) {
		s.setFull(true, err)
	}
	return err
}

// probeSpace finds out whether a full disk has room again for the reserve and for the
// next segment, and lets the writers look.
func (s *Store) probeSpace() {
	err := s.wholeReserve(s.reserve.fileBytes) // room for records too, or they find it full again
	if err == nil {
		err = s.pool.Prepare(1)
	}
	if err == nil {
		s.setFull(false, nil)
	}
	s.pool.Wake()
}

// noSpace is called by a fold or collection that met a full disk: true if something of
// the reserve was given up, so that it can go on.
func (s *Store) noSpace() bool {
	ok := s.reserve != nil && s.reserve.release()
	s.setFull(true, ErrNoSpace)
	return ok
}

// lendSpace is noSpace for a collection.
func (s *Store) lendSpace() bool {
	ok := s.reserve.lend()
	s.setFull(true, ErrNoSpace)
	return ok
}

// onReserve does what must succeed on a full disk: it is tried again as long as some of
// the reserve can be given up for it.
func (s *Store) onReserve(do func() error) error {
	for {
		err := do()
		if !errors.Is(err, ErrNoSpace) || !s.noSpace() {
			return err
		}
	}
}

// setFull notes whether the disk is full, and tells who has to know, in the order of the
// changes. Called without Store.mu and Volume.mu.
func (s *Store) setFull(full bool, err error) {
	s.fullMu.Lock()
	defer s.fullMu.Unlock()
	s.mu.Lock()
	changed := s.mu.full != full
	s.mu.full = full
	s.mu.Unlock()
	if !changed {
		return
	}
	if full {
		s.o.Events(Event{Kind: StoreFull, Err: err})
		s.log.Warn("disk is full: writers wait until space returns", "dir", s.dir, "err", err)
		s.sched.kickCollect()
	} else {
		s.feedAll()
		s.sched.kickSeal()
		s.sched.kickDamage() // found on the full disk
		s.o.Events(Event{Kind: StoreSpaceBack})
		s.log.Info("disk has space again", "dir", s.dir)
	}
}
