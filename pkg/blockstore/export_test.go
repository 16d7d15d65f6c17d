package blockstore

import (
	"io"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/vfs"
)

// What the simulation of CSI calls (package blockstore_test, for the driver stands above
// this package) sees of the engine beside its API: the simulated disk, and the steps that
// the scheduler would run.

// SimDisk is a file system on which processes die.
type SimDisk = simDisk

// NewSimDisk returns an empty one.
func NewSimDisk(rng *rand.Rand) *SimDisk { return newSimDisk(rng) }

// FS is the disk as an engine sees it.
func (d *simDisk) FS() vfs.FS { return simFS{d} }

// PlanDeath lets the process die at one of the next n operations.
func (d *simDisk) PlanDeath(n int64) { d.plan = simPlan{in: 1 + d.rng.Int64N(n), die: true} }

// Calm takes back what is planned.
func (d *simDisk) Calm() { d.calm() }

// IsDead tells whether the process has died.
func (d *simDisk) IsDead() bool { return d.dead }

// Die lets the process die now.
func (d *simDisk) Die() { d.dead = true }

// Ended is the death of the process, or the loss of power with the share of unsynced
// units that is kept.
func (d *simDisk) Ended(power bool, keep float64) { d.ended(power, keep) }

// Digest is a hash of all operations so far, and how many there were.
func (d *simDisk) Digest() (digest uint64, ops int64) { return d.digest, d.ops }

// TraceTo prints every operation.
func (d *simDisk) TraceTo(out io.Writer) { d.out = out }

// InMemory lists the volumes that are open or have something to fold, by ID.
func (s *Store) InMemory() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.mu.volumes))
	for id := range s.mu.volumes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Fold folds the oldest layer of each volume, together.
func (s *Store) Fold(ids ...string) (bool, error) {
	var vols []*Volume
	for _, id := range ids {
		if v := s.loaded(id); v != nil {
			vols = append(vols, v)
		}
	}
	return s.foldTogether(vols)
}

// WaitsFor is the volume whose fold gives a volume or snapshot its root; "" if it has
// one.
func (s *Store) WaitsFor(id string) string {
	cut := ""
	if strings.HasPrefix(id, "s-") {
		var rec snapshotRecord
		if _, err := get(s.cat, keySnapshot+id, &rec); err == nil {
			cut = rec.Cut
		}
	} else {
		var rec volumeRecord
		if _, err := get(s.cat, keyVolume+id, &rec); err == nil {
			cut = rec.Cut
		}
	}
	var c cutRecord
	if _, err := get(s.cat, keyCut+cut, &c); err != nil || !c.Pending {
		return ""
	}
	return c.Volume
}

// ReadSnapshot reads a ready snapshot's image.
func (s *Store) ReadSnapshot(id string, p []byte, off int64) error {
	var rec snapshotRecord
	if _, err := get(s.cat, keySnapshot+id, &rec); err != nil {
		return err
	}
	var cut cutRecord
	if _, err := get(s.cat, keyCut+rec.Cut, &cut); err != nil {
		return err
	}
	return s.readImage(p, off, cut.Root.slot())
}

// CollectStep does one step of a collection, and begins one for nil. It returns nil when
// the collection has ended.
func (s *Store) CollectStep(c *Collection) (*Collection, error) {
	if c == nil {
		if err := s.sealOpen(); err != nil {
			return nil, err
		}
		return s.newCollection(0.9)
	}
	more, _, err := s.collectStep(c)
	if err != nil && c.plan != nil {
		c.plan.Abort()
	}
	if err != nil || !more {
		return nil, err
	}
	return c, nil
}

// Collection is a collection in the midst of its steps.
type Collection = collection

// Room tells whether a writer would find a journal segment.
func (s *Store) Room() bool { return s.pool.Room() }

// Abandon stops using a store as a dying process does; the disk is dead already.
func (s *Store) Abandon() { s.abandon() }

// SimSummary is printed last.
func SimSummary(text string) { simSummary = text }
