package blockstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// everyTour is what the reference workload does once, half way through the operations of
// the simulation, so that it comes by every place in the engine that calls the file system.
var everyTour = []simOperation{
	{"fill", 0, (*simWorld).fill},
	{"check", 0, (*simWorld).checkPlanned},
	{"scratch", 0, (*simWorld).scratchPlanned},
	{"dump", 0, (*simWorld).dump},
	{"check stopped", 0, (*simWorld).checkStopped},
	{"reserve", 0, (*simWorld).growReserve},
	{"remove a file in use", 0, (*simWorld).removeInUse},
	{"stats", 0, func(w *simWorld) error { w.s.Stats(true); return nil }},
}

// everyWorkload runs the reference workload: operations of the simulation and of the tour,
// without any crash or error but what plan says, which counts file operations from the
// first of the store's making. It stops where the process dies.
func everyWorkload(plan simPlan) *simWorld {
	w := newClosedWorld(*everySeed, traceTo())
	w.planned, w.disk.plan, w.doing = true, plan, "first open"
	w.o.OpenFiles = 1
	w.disk.tally = everyTally()
	s, err := Open(simFS{w.disk}, testDir, w.o)
	w.s = s
	switch {
	case w.disk.dead:
		return w
	case err != nil && w.disk.fired: // and its process ends
		w.disk.ended(false, 1)
		w.open()
	default:
		w.ok(err, "open")
	}
	for w.step = 0; w.step < *everyOps && !w.disk.dead; w.step++ {
		w.one()
		for i := 0; i < len(everyTour) && w.step == *everyOps/2 && !w.disk.dead; i++ {
			w.do(everyTour[i])
		}
	}
	if !w.disk.dead {
		w.doing = "close"
		w.closePlanned()
	}
	return w
}

// closePlanned is the clean stop at the end of a workload, which may be cut short.
func (w *simWorld) closePlanned() {
	err := w.finishWrites()
	if err == nil {
		err = w.s.Close()
	}
	if !w.disk.dead && !w.disk.fired && !w.hurt {
		w.ok(err, "close")
	}
}

func (w *simWorld) closeAndOpenPlanned() error {
	return w.closeAndOpenOver(func() error { return nil })
}

// closeAndOpenOver is a clean stop and a start, either of which may be cut short, with
// something between that changes nothing.
func (w *simWorld) closeAndOpenOver(between func() error) error {
	if err := w.finishWrites(); err != nil {
		return err
	}
	err := w.s.Close()
	if w.disk.dead {
		return err
	}
	if err != nil || w.hurt {
		w.reopen(false)
		return nil
	}
	for _, m := range w.vols {
		m.settle(m.hist.acked())
		m.v, m.pending = nil, nil
	}
	if err := between(); err != nil && (w.disk.dead || !isInjected(err)) {
		return err
	}
	w.s, err = Open(simFS{w.disk}, testDir, w.o)
	w.coll = nil
	if w.disk.dead {
		return err
	}
	if err != nil {
		w.disk.ended(false, 1)
		w.open()
	}
	for _, m := range w.vols {
		if w.rng.IntN(2) == 0 {
			if ok, err := w.resolve(m.id); !ok {
				return err
			}
			if m.v, err = w.s.OpenVolume(context.Background(), m.id); err != nil {
				return err
			}
		}
	}
	return nil
}

// reportPlanned is told what a check finds: nothing but the errors that were injected.
func (w *simWorld) reportPlanned(p Problem) {
	if !w.disk.dead && !strings.Contains(p.String(), errInjected.Error()) {
		w.fail("check finds %v", p)
	}
}

func (w *simWorld) checkPlanned() error {
	return w.s.Check(context.Background(), CheckOptions{ReadData: true}, w.reportPlanned)
}

// checkStopped checks the store between a clean stop and a start.
func (w *simWorld) checkStopped() error {
	return w.closeAndOpenOver(func() error {
		return CheckStopped(context.Background(), simFS{w.disk}, testDir, CheckOptions{Workers: 1, ReadData: true}, w.reportPlanned)
	})
}

// fill makes two sealed chunk files.
func (w *simWorld) fill() error {
	for tries := 0; w.attached() == nil && tries < 100; tries++ {
		next := w.attachOrDetach
		if len(w.vols) == 0 {
			next = w.createVolume
		}
		if err := next(); err != nil {
			return err
		}
	}
	m := w.attached()
	for n := 0; n < 2 && m != nil; n++ {
		if err := w.putAndFlush(m); err != nil {
			return m.note(err)
		}
		if err := w.foldVolume(m.id); err != nil {
			return err
		}
		if err := w.s.sealOpen(); err != nil {
			return err
		}
	}
	return nil
}

// growReserve allocates more of the reserve than is needed, and lets go of it.
func (w *simWorld) growReserve() error {
	if err := w.s.reserve.ensure(8 * w.s.reserve.fileBytes); err != nil {
		return err
	}
	return w.s.reserve.trim()
}

// removeInUse has somebody read a chunk file while it goes, for which it takes two.
func (w *simWorld) removeInUse() error {
	f, err := w.s.blobs.Create("in-use")
	if err != nil {
		return err
	}
	f.Finish()
	release, err := f.Hold()
	if err == nil {
		defer release()
	}
	return errors.Join(err, f.Remove())
}

// scratchPlanned opens a volume with a throw-away layer, for which it may have to be
// detached; before that it cannot be.
func (w *simWorld) scratchPlanned() error {
	if err := w.finishWrites(); err != nil {
		return err
	}
	for _, m := range w.vols {
		if m.failed {
			continue
		}
		if m.v != nil {
			if _, err := w.s.OpenScratch(context.Background(), m.id); !errors.Is(err, ErrInUse) {
				return err
			}
			acked := m.hist.acked()
			err := m.v.Close()
			m.v = nil
			if err != nil {
				return m.note(err)
			}
			m.settle(acked)
		}
		return w.scratchOf(m)
	}
	return nil
}

// dump prints a file of each kind, and a map node. What is damaged is that by the errors
// before.
func (w *simWorld) dump() error {
	if made, err := w.writeNode("/node"); !made {
		return err
	}
	if err := w.dumpFile("/node"); err != nil {
		return err
	}
	for _, dir := range []string{"", dirCatalog, dirChunks, dirJournal} {
		names, err := w.disk.mem.ReadDir(path.Join(testDir, dir))
		if err != nil {
			return err
		}
		suffixes := map[string]bool{"": true, ".tmp": true}
		for _, name := range names {
			if suffixes[path.Ext(name)] {
				continue
			}
			suffixes[path.Ext(name)] = true
			if err := w.dumpFile(path.Join(testDir, dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *simWorld) dumpFile(name string) error {
	err := DumpFile(io.Discard, simFS{w.disk}, name)
	if w.disk.faulted && (errors.Is(err, ErrCorrupt) || errors.Is(err, ErrFormat)) {
		return nil
	}
	return err
}

// writeNode makes a file of a volume's topmost map node; false if there is none.
func (w *simWorld) writeNode(name string) (made bool, err error) {
	for _, m := range w.vols {
		var rec volumeRecord
		if _, err := get(w.s.cat, keyVolume+m.id, &rec); err != nil || rec.Root == nil {
			continue
		}
		page, err := w.s.chunks.ReadNode(rec.Root.slot())
		if err != nil {
			return false, err
		}
		return true, vfs.WriteFileAtomic(w.disk.mem, name, page)
	}
	return false, nil
}

// othersGoOn is called when one sync has failed. No more than one volume fails over it, and
// it says so; the others take writes and flush them. Where it was one of the catalog, which
// all share, nothing is committed any more.
func (w *simWorld) othersGoOn() {
	if w.s.catalogFailed() {
		return
	}
	failed := 0
	for _, m := range w.vols {
		v := w.s.loaded(m.id)
		if v == nil {
			continue
		}
		info, err := w.s.Volume(m.id)
		w.ok(err, "volume %s", m.id)
		if bad := v.mu.failed != nil; bad != (info.Failed != "") {
			w.fail("volume %s has failed: %v, and says %q", m.id, bad, info.Failed)
		}
		switch {
		case v.mu.failed != nil:
			failed++
			if err := v.Flush(); m.v != nil && !errors.Is(err, ErrFailed) {
				w.fail("volume %s failed closed and answered a flush: %v", m.id, err)
			}
		case m.v != nil:
			w.ok(w.putAndFlush(m), "volume %s, when another has failed", m.id)
			w.others++
		}
	}
	if failed > 1 {
		w.fail("%d volumes failed over one failed sync", failed)
	}
}

// putAndFlush ends the writes in flight of a volume, writes a block and flushes.
func (w *simWorld) putAndFlush(m *simVolume) error {
	for len(m.pending) > 0 {
		if err := w.complete(m); err != nil {
			return err
		}
	}
	data := w.content(BlockSize)
	binary.LittleEndian.PutUint64(data, uint64(w.disk.ops)) // which was never there before
	op, err := m.v.begin(wal.TypeWrite, 0, BlockSize, data)
	if err == nil {
		m.hist.add(simWrite{off: 0, n: BlockSize, data: data})
		m.v.append(op)
		if err = m.v.acknowledge(op); err == nil {
			m.hist.writes[len(m.hist.writes)-1].acked = true
		}
	}
	if err != nil && !errors.Is(err, errWait) {
		return err
	}
	acked := m.hist.acked()
	if err := m.v.Flush(); err != nil {
		return err
	}
	w.watchFlush(m)
	m.settle(acked)
	return nil
}

// fork is a world of its own in the same state, whose process has died.
func (w *simWorld) fork(rng *rand.Rand) *simWorld {
	f := *w
	f.rng, f.s, f.coll = rng, nil, nil
	f.disk = newSimDisk(rng)
	f.disk.mem = w.disk.mem.Clone()
	f.disk.fs = vfs.NewFaulty(f.disk.mem)
	f.disk.fs.SetHook(f.disk.hook)
	f.disk.out, f.disk.tally, f.disk.faulted = w.disk.out, w.disk.tally, w.disk.faulted
	f.buf = simBuffers.Get().([]byte)
	f.vols = nil
	for _, m := range w.vols {
		h := simHistory{base: m.hist.base.clone(), now: m.hist.now.clone()}
		h.writes = append(h.writes, m.hist.writes...)
		f.vols = append(f.vols, &simVolume{id: m.id, hist: h, lost: m.lost, loose: m.loose, unnoted: m.unnoted})
	}
	f.snaps = append([]*simSnapshot(nil), w.snaps...)
	f.unsure = append([]func(*simWorld){}, w.unsure...)
	return &f
}

// recoverTwice opens the store after the end of its process over a death or error that is
// planned, and recovers from that. It tells whether anything happened as planned. r is what
// was left behind, if it is more than a crash leaves.
func (w *simWorld) recoverTwice(plan simPlan, power bool, keep float64, r everyRemain) bool {
	w.doing = fmt.Sprintf("recovery, power loss %v, %s at file operation %d %s", power, plan.name, plan.in, r.name)
	w.disk.ended(power, keep)
	w.disk.plan = plan
	s, err := r.start(w)
	happened := w.disk.dead || w.disk.last || w.disk.fired
	switch {
	case r.refused != nil && err == nil, !happened && !errors.Is(err, r.refused):
		w.fail("start: %v, want %v", err, r.refused)
	case err != nil && !w.disk.dead && !isInjected(err) && !errors.Is(err, r.refused):
		w.fail("an injected error became another one: %v", err)
	}
	w.disk.calm()
	s.abandon()
	if r.refused != nil {
		simBuffers.Put(w.buf)
		return happened
	}
	if r.repair != nil {
		w.disk.ended(false, 1)
		w.ok(r.repair(w), "repair once more")
	}
	// A repair that finds nothing to do does not write, so a loss of power may still undo
	// what the one that died had not synced, and leave it to be done again.
	again := w.rng.IntN(2) == 0 && r.repair == nil
	w.recovered(power || again, again, pick(w.rng, 0, 1, w.rng.Float64()))
	return happened
}

// visits lists the call sites that the recovery comes by if nothing happens.
func (w *simWorld) visits(power bool, keep float64) map[*ioSite]bool {
	w.disk.ended(power, keep)
	visited := map[*ioSite]bool{}
	w.disk.visited = visited
	w.open()
	w.disk.visited = nil
	w.s.abandon()
	simBuffers.Put(w.buf)
	return visited
}

// recoverFrom opens the store after the end of its process, with or without a loss of
// power, compares everything with the model and goes on for a little.
func (w *simWorld) recoverFrom(power bool, keep float64) { w.recovered(power, power, keep) }

// recovered is recoverFrom where the power may have been lost before: then what is there
// may be less than what was acknowledged, whatever happens now.
func (w *simWorld) recovered(lost, power bool, keep float64) {
	w.disk.ended(power, keep)
	w.taint, w.hurt = 0, false
	w.open()
	w.settleUnsure()
	w.afterOpen(lost)
	w.compareAll()
	for range 4 {
		w.one()
	}
	w.compareAll()
	w.ok(w.s.Close(), "close")
	simBuffers.Put(w.buf)
}

// everyRemain is what a process can leave behind, and is rarely left.
type everyRemain struct {
	name    string
	make    func(w *simWorld)
	refused error                   // the answer of a start; nil: it succeeds
	repair  func(w *simWorld) error // comes in place of the first start; may be repeated
}

var everyRemains = []everyRemain{
	{"a chunk file whose footer is large", (*simWorld).leaveLargeFooter, nil, nil},
	{"an older catalog log beside a spare", (*simWorld).leaveOldLog, nil, nil},
	{"a journal segment that was cut short", (*simWorld).leaveShortSegment, ErrCorrupt, nil},
	{"a chunk file with a bad footer", (*simWorld).leaveBadFooter, nil, (*simWorld).repair},
	{"an empty volume, and a disk too small for the reserve", (*simWorld).leaveEmptyVolume, nil, (*simWorld).holeOnFullDisk},
}

// start is the first start over what was left.
func (r everyRemain) start(w *simWorld) (*Store, error) {
	if r.repair != nil {
		return nil, r.repair(w)
	}
	return Open(simFS{w.disk}, testDir, w.o)
}

// repair leaves nothing to be repaired, but where something is planned.
func (w *simWorld) repair() error {
	planned, o := w.disk.plan.name != "", w.o
	o.OpenFiles = 16 // the damaged file is open when it is moved
	_, err := Repair(context.Background(), simFS{w.disk}, testDir, RepairOptions{Store: o, Remains: func(p Problem) {
		if !planned {
			w.fail("remains: %v", p)
		}
	}})
	return err
}

// leaveBadFooter changes a byte in the footer of a sealed chunk file, one in the head of the
// first chunk of another, and one in the header of a third, and copies a file as if it came
// from another store: nothing is lost with these, nor with a damaged slot that is nowhere.
func (w *simWorld) leaveBadFooter() {
	w.open()
	w.s.onDamage(dedup.Damage{Slot: dedup.Slot{Chunk: dedup.ChunkID{7}}, File: "gone", Reason: "test"})
	w.ok(w.fill(), "fill")
	w.ok(w.fill(), "fill again")
	w.ok(w.s.Close(), "close")
	dir := path.Join(testDir, dirChunks)
	names, err := w.disk.mem.ReadDir(dir)
	names = slices.DeleteFunc(names, func(name string) bool { return path.Ext(name) != ".chunks" })
	if err != nil || len(names) < 3 {
		w.fail("chunk files: %v, %v", names, err)
	}
	foreign, err := vfs.ReadFile(w.disk.mem, path.Join(dir, names[0]))
	w.ok(err, "read a chunk file")
	foreign[16] ^= 1 // in the store's ID
	binary.LittleEndian.PutUint32(foreign[60:], wal.PageCRC(foreign[:60]))
	w.ok(vfs.WriteFileAtomic(w.disk.mem, path.Join(dir, "000000ff"+names[0][8:]), foreign), "copy it")
	info, err := w.disk.mem.Stat(path.Join(dir, names[0]))
	w.ok(err, "chunk file")
	w.disk.mem.Corrupt(path.Join(dir, names[0]), info.Size-1, func(b []byte) { b[0] ^= 1 })
	w.disk.mem.Corrupt(path.Join(dir, names[1]), 0, func(b []byte) { b[bytes.Index(b, []byte("GCHK"))+8] ^= 1 })
	w.disk.mem.Corrupt(path.Join(dir, names[2]), 0, func(b []byte) { b[20] ^= 1 })
}

// leaveLargeFooter seals a chunk file of many chunks.
func (w *simWorld) leaveLargeFooter() {
	w.o.ChunkFileBytes = 8 << 20
	w.open()
	m := &simVolume{hist: newSimHistory(newSimImage(SizeStep))}
	info, err := w.s.CreateVolume(VolumeSpec{Name: "many folds", SizeBytes: SizeStep})
	w.ok(err, "create")
	m.id, w.vols = info.ID, append(w.vols, m)
	m.v, err = w.s.OpenVolume(context.Background(), m.id)
	w.ok(err, "attach")
	for range 600 {
		w.ok(w.putAndFlush(m), "write")
		w.ok(w.foldVolume(m.id), "fold")
	}
	m.settle(len(m.hist.writes))
	w.ok(w.s.Close(), "close")
}

func (w *simWorld) leaveEmptyVolume() {
	w.open()
	info, err := w.s.CreateVolume(VolumeSpec{Name: "empty", SizeBytes: SizeStep})
	w.ok(err, "create")
	w.vols = append(w.vols, &simVolume{id: info.ID, hist: newSimHistory(newSimImage(SizeStep))})
	w.ok(w.s.Close(), "close")
}

// holeOnFullDisk starts with less space than the reserve needs, wants it whole while a
// collection uses a part of it, and makes a hole in the last volume, where there is nothing.
func (w *simWorld) holeOnFullDisk() error {
	mem, dir := w.disk.mem, path.Join(testDir, dirReserve)
	mem.SetCapacity(0)
	defer mem.SetCapacity(0)
	files, err := mem.ReadDir(dir)
	w.ok(err, "list the reserve")
	for _, name := range files {
		w.ok(mem.Remove(path.Join(dir, name)), "remove a file of the reserve")
	}
	sp, err := mem.Space(testDir)
	w.ok(err, "space")
	room := w.o.SegmentBytes // a start needs some, a reserve more
	if _, err := mem.Stat(path.Join(testDir, dirCatalog, "spare")); errors.Is(err, vfs.ErrNotExist) {
		room += w.o.CatalogBytes // one whose sync failed is made anew
	}
	mem.SetCapacity(sp.Total - sp.Free + room)
	s, err := Open(simFS{w.disk}, testDir, w.o)
	if err != nil {
		return err
	}
	defer s.abandon()
	s.reserve.mu.lent = 1
	if err := s.wholeReserve(0); !errors.Is(err, ErrNoSpace) {
		return cmp.Or(err, errors.New("what a collection uses was taken from it"))
	}
	s.reserve.ended()
	v, err := s.OpenVolume(context.Background(), w.vols[len(w.vols)-1].id)
	if err == nil {
		if !s.isFull() {
			w.fail("the disk is not full")
		}
		err = v.Discard(0, sectorBytes)
	}
	if errors.Is(err, ErrNoSpace) { // a hole may find no room, and an attach no segment
		return nil
	}
	return err
}

// leaveOldLog puts a copy of the catalog's log beside it, under the number before.
func (w *simWorld) leaveOldLog() {
	dir := path.Join(testDir, dirCatalog)
	names, err := w.disk.mem.ReadDir(dir)
	w.ok(err, "list the catalog")
	for _, name := range names {
		var n uint64
		if _, err := fmt.Sscanf(name, "%016x.log", &n); err != nil {
			continue
		}
		data, err := vfs.ReadFile(w.disk.mem, path.Join(dir, name))
		w.ok(err, "read the log")
		w.ok(vfs.WriteFileAtomic(w.disk.mem, path.Join(dir, fmt.Sprintf("%016x.log", n-1)), data), "write an older log")
		return
	}
	w.fail("no log in %v", names)
}

func (w *simWorld) leaveShortSegment() {
	dir := path.Join(testDir, dirJournal)
	names, err := w.disk.mem.ReadDir(dir)
	if err != nil || len(names) == 0 {
		w.fail("no segment: %v", err)
	}
	f, err := w.disk.mem.Open(path.Join(dir, names[0]))
	w.ok(err, "open a segment")
	w.ok(f.Truncate(100), "cut it")
	w.ok(f.Sync(), "sync it")
}
