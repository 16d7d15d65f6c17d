package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// simViolation is the panic with which a seed ends that shows the engine wrong.
type simViolation string

// simVolume is a volume and what the model knows of it.
type simVolume struct {
	id      string
	v       *Volume // nil when it is not attached
	hist    simHistory
	pending []*simInflight
	failed  bool // it failed closed: it acknowledges nothing until it is opened again
	loose   bool // what is settled came through a loss of power, and no flush was answered since
	unnoted bool // something was settled since the catalog was told how far the journal reaches
	lost    bool // it had when the process ended: what a failed sync was to write is lost
}

// simInflight is a write that was begun and is not acknowledged.
type simInflight struct {
	op    *append1
	index int // in the volume's history
	done  bool
}

// settle makes the first n writes durable.
func (m *simVolume) settle(n int) {
	m.hist.settle(n)
	m.loose, m.unnoted = false, true
	for _, p := range m.pending {
		p.index -= n
	}
}

type simSnapshot struct {
	id    string
	image simImage
}

// simWorld is one seed's store and the model beside it.
type simWorld struct {
	seed     uint64
	rng      *rand.Rand
	disk     *simDisk
	o        Options
	out      io.Writer // of the trace; nil: none
	s        *Store
	now      time.Time
	vols     []*simVolume
	snaps    []*simSnapshot
	names    int
	coll     *collection
	full     bool                // the disk has a limit
	unsealed bool                // it had when the store was opened
	taint    int                 // steps for which errors of an earlier fault are excused
	hurt     bool                // there was a fault since the store was opened: a volume may have failed
	older    map[string][]byte   // journal segments as they were
	unsure   []func(w *simWorld) // settle what an interrupted operation left, once the store is open again
	buf      []byte

	planned bool // deaths and errors come as the test plans them, not at random
	others  int  // volumes that went on when a sync had failed

	step, crashes, inside, faults int
	doing                         string
}

// simPool are contents that come again, the same for every seed. They compress a little.
var simPool = func() (pool [192]simBlock) {
	rng := rand.New(rand.NewPCG(99, 7))
	for i := range pool {
		for j := 0; j < BlockSize; j += 4 {
			x := rng.Uint32() & 0x3f3f3f3f
			pool[i][j], pool[i][j+1], pool[i][j+2], pool[i][j+3] = byte(x), byte(x>>8), byte(x>>16), byte(x>>24)
		}
	}
	return pool
}()

// simBuffers have room for the largest volume.
var simBuffers = sync.Pool{New: func() any { return make([]byte, 5*SizeStep) }}

type chachaReader struct{ *rand.ChaCha8 }

func newSimWorld(seed uint64, out io.Writer) *simWorld {
	w := newClosedWorld(seed, out)
	w.open()
	return w
}

// newClosedWorld is newSimWorld before the store is opened.
func newClosedWorld(seed uint64, out io.Writer) *simWorld {
	w := &simWorld{seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), out: out, now: time.Unix(1e9, 0)}
	w.disk = newSimDisk(w.rng)
	w.disk.out = out
	w.o = w.options()
	w.buf = simBuffers.Get().([]byte)
	return w
}

// pick chooses one of several.
func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

// options draws a configuration: small files that turn over quickly.
func (w *simWorld) options() Options {
	var key [32]byte
	key[0], key[1] = byte(w.rng.Uint32()), byte(w.rng.Uint32())
	segment := pick[int64](w.rng, 40<<10, 64<<10, 96<<10, 160<<10)
	file := pick[int64](w.rng, 32<<10, 64<<10, 256<<10)
	return Options{
		Now:          func() time.Time { w.now = w.now.Add(time.Millisecond); return w.now },
		Rand:         chachaReader{rand.NewChaCha8(key)},
		SegmentBytes: segment, JournalBytes: segment * pick[int64](w.rng, 3, 5, 8), CatalogBytes: 64 << 10,
		FoldBytes: 256 << 10, UnsyncedBytes: pick[int64](w.rng, 16<<10, 128<<10),
		ChunkFileBytes: file, CacheBytes: pick[int64](w.rng, 64<<10, 1<<20),
		NodeCache: pick(w.rng, 1, 16), ListCache: pick(w.rng, 1, 4, 16), ReserveBytes: 2 * file,
		Workers: 1, MaxLayers: pick(w.rng, 2, 4),
	}
}

// fail ends the seed.
func (w *simWorld) fail(format string, args ...any) {
	panic(simViolation(fmt.Sprintf("seed %d step %d (%s): %s", w.seed, w.step, w.doing, fmt.Sprintf(format, args...))))
}

// ok ends the seed if there is an error, in a place where nothing may fail.
func (w *simWorld) ok(err error, what string, args ...any) {
	if err != nil {
		w.fail("%s: %v", fmt.Sprintf(what, args...), err)
	}
}

func (w *simWorld) trace(format string, args ...any) {
	if w.out != nil {
		fmt.Fprintf(w.out, "%d: %s\n", w.step, fmt.Sprintf(format, args...))
	}
}

// run does so many operations, three or more of them a crash, then closes the store and
// opens it again.
func (w *simWorld) run(ops int) {
	crashes := map[int]bool{}
	for len(crashes) < 3+w.rng.IntN(3) {
		crashes[ops/10+w.rng.IntN(ops-ops/10)] = true
	}
	for w.step = 0; w.step < ops; w.step++ {
		if crashes[w.step] {
			w.doing = "crash"
			w.crash()
			continue
		}
		w.one()
	}
	w.doing = "end"
	w.calm()
	w.finishWrites()
	w.compareAll()
	w.ok(w.s.Close(), "close")
	w.open()
	w.afterOpen(false)
	w.compareAll()
	w.ok(w.s.Close(), "close")
}

// simOperation is something that a seed may do, and how often.
type simOperation struct {
	name  string
	share int
	do    func(w *simWorld) error
}

var simOperations = []simOperation{
	{"write", 40, (*simWorld).write},
	{"discard", 4, (*simWorld).discard},
	{"flush", 6, (*simWorld).flush},
	{"snapshot", 4, (*simWorld).snapshot},
	{"create", 4, (*simWorld).createVolume},
	{"delete", 2, (*simWorld).deleteSomething},
	{"resize", 1, (*simWorld).resize},
	{"attach or detach", 4, (*simWorld).attachOrDetach},
	{"scratch", 1, (*simWorld).scratch},
	{"fold", 9, (*simWorld).fold},
	{"collect", 10, (*simWorld).collect},
	{"read", 6, (*simWorld).readSome},
	{"mark", 3, (*simWorld).mark},
	{"note", 2, (*simWorld).noteReach},
	{"disk full", 1, (*simWorld).fillOrFree},
	{"compare", 1, (*simWorld).compare},
	{"reopen", 1, (*simWorld).closeAndOpen},
}

var simShares = func() (n int) {
	for _, o := range simOperations {
		n += o.share
	}
	return n
}()

// one does one operation, perhaps with a death or an error in the middle of it.
func (w *simWorld) one() {
	r := w.rng.IntN(simShares)
	var op simOperation
	for _, op = range simOperations {
		if r -= op.share; r < 0 {
			break
		}
	}
	if w.taint > 0 {
		w.taint--
	} else if !w.planned {
		switch w.rng.IntN(60) {
		case 0:
			w.disk.planDeath()
		case 1:
			w.disk.planFault()
		}
	}
	w.do(op)
}

// do does an operation, and what follows from its death or error.
func (w *simWorld) do(op simOperation) {
	w.doing = op.name
	err := op.do(w)
	switch {
	case w.disk.dead && w.planned:
	case w.disk.dead:
		w.trace("died in %s: %v", op.name, err)
		w.inside++
		w.reopen(w.rng.IntN(2) == 0)
	case w.disk.fired:
		w.faults++
		w.trace("fault in %s: %v", op.name, err)
		if w.disk.fired = false; w.disk.plan.times <= 0 {
			w.disk.calm()
		}
		w.taint, w.hurt = 8, true
		if w.planned && w.disk.plan.in == 0 && w.disk.syncs > 0 {
			w.othersGoOn()
		}
		if err != nil {
			w.faulted(err)
		}
	case err != nil && (w.taint > 0 || w.hurt && errors.Is(err, ErrFailed)):
		w.trace("after a fault, %s: %v", op.name, err)
		w.faulted(err)
	case err != nil:
		w.fail("%v", err)
	case w.taint == 0 && w.disk.plan.in == 0 && len(w.unsure) > 0:
		w.fail("an operation that went well left something unsure")
	}
}

// faulted goes on after an operation met an error that was injected: a reopening, at once
// or, if only a volume is concerned, a little later.
func (w *simWorld) faulted(err error) {
	if !errors.Is(err, ErrFailed) && !errors.Is(err, ErrNoSpace) && !isInjected(err) {
		w.fail("an injected error became another one: %v", err)
	}
	if len(w.unsure) > 0 || w.taint <= 1 || w.rng.IntN(2) == 0 || w.s.catalogFailed() {
		w.reopen(w.rng.IntN(2) == 0)
	}
}

// calm takes back what is planned; who still has an error to come gets a reopening.
func (w *simWorld) calm() {
	w.disk.calm()
	w.s.probeSpace() // an injected ENOSPC may have made it believe that the disk is full
	if w.taint > 0 || w.hurt {
		w.reopen(true)
	}
}

// crash is the death of the process, at once or at one of the next operations.
func (w *simWorld) crash() {
	w.reopen(w.rng.IntN(2) == 0)
}

// reopen lets the process die or the power go, perhaps again while the store recovers,
// and compares what is left with the model.
func (w *simWorld) reopen(power bool) {
	w.noteLost()
	lost := w.disk.unsynced
	w.taint, w.hurt = 0, false
	w.coll = nil
	for again := 0; ; again++ {
		w.s.abandon()
		keep := pick(w.rng, 0, 1, w.rng.Float64())
		w.trace("end of the process, power loss %v, keeping %.2f", power, keep)
		w.disk.ended(power, keep)
		w.crashes++
		if power || lost {
			w.older = nil // it has what was lost then
		}
		if again == 0 && !lost && len(w.unsure) == 0 && w.rng.IntN(2) == 0 {
			w.loseSegment()
		}
		if again < 3 && w.rng.IntN(4) == 0 {
			w.disk.planDeath()
		}
		s, err := Open(simFS{w.disk}, testDir, w.o)
		if w.disk.dead {
			w.inside++
			if err == nil {
				w.s = s
			}
			power = power || w.rng.IntN(2) == 0
			continue
		}
		w.disk.calm()
		w.ok(err, "open")
		w.s, w.unsealed = s, w.full
		break
	}
	w.settleUnsure()
	w.afterOpen(power)
}

// noteLost is called at the end of the process: which volumes have failed closed?
func (w *simWorld) noteLost() {
	for _, m := range w.vols {
		if w.s != nil && w.s.cat != nil {
			v := w.s.loaded(m.id)
			m.lost = v != nil && v.mu.failed != nil
		}
	}
}

// settleUnsure finds out what interrupted operations did.
func (w *simWorld) settleUnsure() {
	for _, f := range w.unsure {
		f(w)
	}
	w.unsure = nil
}

func (w *simWorld) open() {
	s, err := Open(simFS{w.disk}, testDir, w.o)
	w.ok(err, "open")
	w.s, w.coll, w.unsealed = s, nil, w.full
}

// compare compares everything, where no error is to come in the middle of it.
func (w *simWorld) compare() error {
	if w.planned {
		return w.readSome()
	}
	w.calm()
	return w.compareAll()
}

// closeAndOpen is a clean stop: nothing acknowledged is lost.
func (w *simWorld) closeAndOpen() error {
	if w.planned {
		return w.closeAndOpenPlanned()
	}
	w.calm()
	w.finishWrites()
	w.ok(w.s.Close(), "close")
	for _, m := range w.vols {
		m.settle(m.hist.acked())
	}
	w.open()
	w.afterOpen(false)
	return nil
}

// afterOpen finds out which prefix of each history the store has: all that was flushed,
// and if only the process died, and the volume had not failed, all that was acknowledged.
func (w *simWorld) afterOpen(power bool) {
	w.doing += ", reopened"
	w.checkStore()
	for _, m := range w.vols {
		m.v, m.pending, m.failed = nil, nil, false
		least := 0
		if !power && !m.lost {
			least = m.hist.acked()
		}
		m.lost = false
		w.matchPrefix(m, least)
		if power { // what came through a power loss is on the disk
			m.settle(len(m.hist.writes))
			m.loose = true
		}
		if w.rng.IntN(2) == 0 {
			v, err := w.s.OpenVolume(context.Background(), m.id)
			w.ok(err, "attach again")
			m.v = v
		}
	}
}

// matchPrefix compares a volume with the prefixes of its history.
func (w *simWorld) matchPrefix(m *simVolume, least int) {
	got, err := w.readVolume(m.id, m.hist.base.size(), w.rng.IntN(8) == 0)
	w.ok(err, "read volume %s", m.id)
	found := m.hist.prefix(got, least)
	if found < 0 {
		w.fail("volume %s is no prefix of its history of %d writes with the first %d", m.id, len(m.hist.writes), least)
	}
	w.trace("volume %s has %d of %d writes (%d needed)", m.id[:6], found, len(m.hist.writes), least)
	m.hist.cut(found)
}

// resolve folds what a volume's cut waits for; false if that cannot be done now.
func (w *simWorld) resolve(id string) (bool, error) {
	var rec volumeRecord
	if _, err := get(w.s.cat, keyVolume+id, &rec); err != nil {
		return false, err
	}
	if rec.Cut == "" {
		return true, nil
	}
	return w.resolveCut(rec.Cut)
}

func (w *simWorld) resolveCut(id string) (bool, error) {
	for range 10 {
		var cut cutRecord
		if _, err := get(w.s.cat, keyCut+id, &cut); err != nil || !cut.Pending {
			return err == nil, err
		}
		if err := w.foldVolume(cut.Volume); err != nil {
			return false, err
		}
	}
	return false, fmt.Errorf("cut %s gets no root", id)
}

// abandon stops using a store as a dying process does: nothing is synced or sealed.
func (s *Store) abandon() {
	if s == nil {
		return
	}
	if s.pool != nil {
		s.pool.Close()
	}
	if s.cat != nil {
		s.cat.Close()
	}
}

func (s *Store) catalogFailed() bool {
	_, err := s.cat.Commit()
	return err != nil
}

// isInjected tells whether an injected error is behind err; not all wrap it, and a fold
// whose chunk file went may only say so.
func isInjected(err error) bool {
	return strings.Contains(err.Error(), errInjected.Error()) || strings.Contains(err.Error(), "abandoned after an I/O error")
}
