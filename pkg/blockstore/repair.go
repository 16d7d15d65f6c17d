package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// RepairOptions say how a repair goes about it.
type RepairOptions struct {
	// Store is as in Open; a repair needs its clock, the size of its files and its logger.
	Store Options
	// Progress is told about bytes of files done and in all, by each of its checks; may be
	// nil.
	Progress func(done, total int64)
	// Mended is told of everything that was put right; may be nil.
	Mended func(Mend)
	// Remains is told of what a check finds afterwards; may be nil.
	Remains func(Problem)
}

// Mend is one thing that a repair put right.
type Mend struct {
	Kind   string `json:"repaired"`        // catalog, chunk-file, damage
	File   string `json:"file,omitempty"`  // that was damaged
	New    string `json:"new,omitempty"`   // that was written in its stead
	Moved  string `json:"moved,omitempty"` // where the damaged one is now
	Detail string `json:"detail"`
}

func (m Mend) String() string {
	var b strings.Builder
	b.WriteString("repaired: " + m.Kind)
	if m.File != "" {
		b.WriteString(": " + m.File)
	}
	b.WriteString(": " + m.Detail)
	if m.New != "" {
		b.WriteString("; written anew as " + m.New)
	}
	if m.Moved != "" {
		b.WriteString("; the damaged file is kept as " + m.Moved)
	}
	return b.String()
}

// RepairResult counts what a repair met.
type RepairResult struct {
	Found   int // problems before
	Mended  int // things put right; not one for one
	Remains int // problems afterwards
}

// Repair checks a stopped store, reading all data, puts right what can be proved, and
// checks again. It rewrites damaged chunk files with all that has its fingerprint and
// keeps the damaged ones in quarantine/, deletes records of damage that is none any more,
// and makes records of the catalog anew that follow from others. It never touches
// journals, nor a store that does not open: what is lost there nobody can compute. A
// store without problems is not written to. ErrLocked while a daemon has it open. After an
// error, or a death at any point, nothing is lost, and it may be run again.
func Repair(ctx context.Context, fsys vfs.FS, dir string, o RepairOptions) (RepairResult, error) {
	lock, err := fsys.Lock(path.Join(dir, "lock"))
	if err != nil {
		return RepairResult{}, fmt.Errorf("repair store %s: %w", dir, err)
	}
	defer lock.Close()
	r := &repairer{fsys: fsys, dir: dir, o: o, suspects: make(map[string]bool)}
	if err := r.check(ctx, r.suspect); err != nil {
		return r.result, err
	}
	if r.result.Found = r.found; r.found == 0 {
		return r.result, nil
	}
	if err := r.mend(ctx); err != nil {
		return r.result, fmt.Errorf("repair store %s: %w", dir, err)
	}
	err = r.check(ctx, func(p Problem) {
		if o.Remains != nil {
			o.Remains(p)
		}
	})
	r.result.Remains = r.found
	return r.result, err
}

// repairer is one Repair under way. The directory's lock is held all the time.
type repairer struct {
	fsys     vfs.FS
	dir      string
	o        RepairOptions
	result   RepairResult
	suspects map[string]bool // names of chunk files that a check complains about
	found    int             // problems of the last check
	s        *Store          // open for the repair
}

// unlocked stands for the lock that the repairer holds.
type unlocked struct{}

func (unlocked) Close() error { return nil }

var _ io.Closer = unlocked{}

// check is CheckStopped under the repairer's lock.
func (r *repairer) check(ctx context.Context, report func(Problem)) error {
	r.found = 0
	s := stoppedStore(r.fsys, r.dir, unlocked{}, r.o.Store)
	defer s.closeFiles()
	if err := s.openReadOnly(); err != nil {
		return r.advise(err)
	}
	c := &checker{s: s, stopped: true, o: CheckOptions{ReadData: true, Progress: r.o.Progress}}
	c.report = func(p Problem) {
		r.found++
		report(p)
	}
	return c.run(ctx)
}

// advise adds to the error of a store that does not open what can be done, if what says
// which volumes there are is damaged, old or gone. A disk that does not answer, or files of
// a later version, need nothing put back.
func (r *repairer) advise(err error) error {
	for _, is := range []error{ErrCorrupt, ErrFormat, ErrOlder, vfs.ErrNotExist} {
		if errors.Is(err, is) {
			return fmt.Errorf("%w; a repair cannot make %s and %s anew, for they follow from nothing else: put the newest ones back, both of the same store",
				err, path.Join(r.dir, dirCatalog), path.Join(r.dir, headerName))
		}
	}
	return err
}

// suspect notes the chunk file that a problem is of.
func (r *repairer) suspect(p Problem) {
	if p.Kind == "chunk-file" {
		r.suspects[path.Base(p.File)] = true
	}
}

func (r *repairer) mended(m Mend) {
	r.result.Mended++
	if r.o.Mended != nil {
		r.o.Mended(m)
	}
}

// mend opens the store for writing, as a start does but for the journals, and repairs it.
func (r *repairer) mend(ctx context.Context) (err error) {
	r.s = stoppedStore(r.fsys, r.dir, unlocked{}, r.o.Store)
	defer func() { err = errors.Join(err, r.s.closeFiles()) }()
	if err := r.s.openForRepair(); err != nil {
		return err
	}
	if err := r.verify(); err != nil {
		return err
	}
	if err := r.files(ctx); err != nil {
		return err
	}
	if err := r.damage(); err != nil {
		return err
	}
	if err := r.records(ctx); err != nil {
		return err
	}
	return r.s.closeChunks()
}

// openForRepair raises the epoch durably before any file is made (I7). Nothing is taken
// from the reserve: a repair that finds no space is done again when there is some.
func (s *Store) openForRepair() error {
	h, err := readStoreHeader(s.fsys, s.dir)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	s.id = h.store
	s.reserve = new(reserve)
	o := catalog.Options{LogBytes: s.o.CatalogBytes, Committed: s.census.committed}
	if s.cat, err = catalog.Open(s.fsys, path.Join(s.dir, dirCatalog), s.id, o); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	if err := s.census.load(s.cat.View()); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	if err := s.openChunks(dedup.Options{Repair: true}); err != nil {
		return err
	}
	return s.loadDamage()
}

// verify reads what was found bad again, so that it is known here, and what is recorded
// as bad, which may be good again. All else was found good by the check before.
func (r *repairer) verify() error {
	names, err := r.s.chunks.Suspects()
	if err != nil {
		return err
	}
	for _, name := range names {
		r.suspects[name] = true
	}
	check := make(map[string]bool)
	for name := range r.suspects {
		check[name] = true
	}
	for _, e := range r.s.scan(keyDamage) {
		var rec damageRecord
		if decode(e, &rec) == nil { // loadDamage has refused any other
			check[rec.File] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(check)) {
		err := r.s.chunks.VerifyFile(name, true, func(dedup.Problem) {})
		if err != nil && !errors.Is(err, vfs.ErrNotExist) {
			return err
		}
	}
	return r.s.damageStep()
}

// files rebuilds the suspects: once with all that the maps can name, as far as they can
// be read, and again if more of them can be read after that.
func (r *repairer) files(ctx context.Context) error {
	for known := false; !known; {
		live, err := r.s.liveSlots()
		if known = err == nil; err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrMissing) {
			return err
		}
		var needed func(dedup.Slot) bool
		if known {
			needed = live.Has
		}
		did := false
		for _, name := range slices.Sorted(maps.Keys(r.suspects)) {
			if err := ctx.Err(); err != nil {
				return err
			}
			rebuilt, err := r.file(name, needed)
			if err != nil {
				return err
			}
			did = did || rebuilt
		}
		if !did {
			return nil
		}
	}
	return nil
}

// liveSlots is what the images name. An error if a part of a map cannot be read: then
// anything may be needed.
func (s *Store) liveSlots() (dedup.LiveSet, error) {
	roots, err := rootsOf(s.cat.View())
	if err != nil {
		return nil, err
	}
	c := &collection{s: s, live: make(dedup.LiveSet), breathe: noBreath}
	for _, root := range roots {
		if err := c.mark(root); err != nil {
			var ne *blockmap.NodeError
			if errors.As(err, &ne) && !errors.Is(err, vfs.ErrDead) {
				return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			return nil, err
		}
	}
	return c.live, nil
}

// file rebuilds one chunk file, if that makes something better. The order keeps a death
// at any point harmless: the new file is durable, then what is known of the slots that are
// lost, then the damaged one is moved.
func (r *repairer) file(name string, needed func(dedup.Slot) bool) (bool, error) {
	b, err := r.s.chunks.Rebuild(name, needed)
	switch {
	case errors.Is(err, vfs.ErrNotExist):
		delete(r.suspects, name)
		return false, nil
	case err != nil || b == nil:
		return false, err
	}
	if err := r.s.recordLost(b.Lost); err != nil {
		return false, err
	}
	moved, err := b.Retire(path.Join(r.dir, dirQuarantine))
	if err != nil {
		return false, err
	}
	delete(r.suspects, name)
	m := Mend{
		Kind: "chunk-file", File: path.Join(r.dir, dirChunks, name), Moved: path.Join(r.dir, dirQuarantine, moved),
		Detail: fmt.Sprintf("%s: %d blocks saved, %d lost", strings.Join(b.Reasons, ", "), b.Slots, len(b.Lost)),
	}
	if b.New != "" {
		m.New = path.Join(r.dir, dirChunks, b.New)
	}
	r.mended(m)
	return true, nil
}

// recordLost records slots whose content is nowhere, in place of what is recorded of them.
func (s *Store) recordLost(lost []dedup.Damage) error {
	for len(lost) > 0 {
		n := min(len(lost), damageBatch)
		batch := lost[:n]
		lost = lost[n:]
		_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
			var ops []catalog.Op
			seen := make(map[string]bool)
			for _, d := range batch {
				rec, key := s.newDamageRecord(d), damageKey(d.Slot)
				var old damageRecord
				e, err := get(view, key, &old)
				if err == nil {
					rec.Found = old.Found
				}
				if !seen[key] {
					ops = append(ops, put(key, rec, e.Revision))
				}
				seen[key] = true
			}
			return ops, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// damage deletes the records of slots that read whole again, from this copy or another.
func (r *repairer) damage() error {
	before := len(r.s.scan(keyDamage))
	if err := r.s.tidyDamage(); err != nil {
		return err
	}
	if n := before - len(r.s.scan(keyDamage)); n > 0 {
		r.mended(Mend{Kind: "damage", Detail: fmt.Sprintf("records of %d blocks deleted that read whole, or that nobody has any more", n)})
	}
	return nil
}

// records makes records anew that follow from others.
func (r *repairer) records(ctx context.Context) error {
	c := &checker{s: r.s, report: func(Problem) {}}
	view := r.s.cat.View()
	c.records(view)
	if err := c.mapped(ctx, view); err != nil {
		return err
	}
	did, err := r.s.apply(c.mends)
	for _, m := range did {
		r.mended(Mend{Kind: "catalog", Detail: m.key + ": " + m.detail})
	}
	return err
}
