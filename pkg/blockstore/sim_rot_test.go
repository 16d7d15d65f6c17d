package blockstore

import (
	"errors"
	"math/rand/v2"
	"path"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// noteReach is what is done a second after a flush; and it keeps the journal as it is, to
// be put back in part when the process has died.
func (w *simWorld) noteReach() error {
	if err := w.s.noteStep(); err != nil {
		return err
	}
	for _, m := range w.vols {
		m.unnoted = false
	}
	w.older = make(map[string][]byte)
	for _, name := range w.segments() {
		if data, err := vfs.ReadFile(w.disk.mem, name); err == nil {
			w.older[name] = data
		}
	}
	return nil
}

// segments lists the paths of the journal's segments.
func (w *simWorld) segments() (paths []string) {
	dir := path.Join(testDir, dirJournal)
	names, _ := w.disk.mem.ReadDir(dir)
	for _, name := range names {
		if path.Ext(name) == ".seg" {
			paths = append(paths, path.Join(dir, name))
		}
	}
	return paths
}

// loseSegment takes a segment away in a copy of the world, or puts it back as it was: the
// volume that it was part of fails closed or shows a prefix with all that was flushed, and
// no other is hurt (I1, I5). Called between the death of a process and the next start.
func (w *simWorld) loseSegment() {
	names := w.segments()
	if len(names) == 0 {
		return
	}
	f := w.fork(rand.New(rand.NewPCG(w.rng.Uint64(), 1)))
	defer simBuffers.Put(f.buf)
	name := pick(f.rng, names...)
	data, err := vfs.ReadFile(f.disk.mem, name)
	w.ok(err, "read %s", name)
	h, err := journal.DecodeHeader(data[:wal.PageSize])
	if err != nil || h.Owner == [16]byte{} {
		return // it was torn, or is free
	}
	old, isOld := w.older[name], false
	if isOld = old != nil && f.rng.IntN(2) == 0; isOld {
		replace(f.disk.mem, name, old)
	} else {
		w.ok(f.disk.mem.Remove(name), "remove %s", name)
	}
	f.doing += ", a segment lost"
	f.trace("lost %s of %x, older %v", name, h.Owner, isOld)
	f.open()
	defer f.s.abandon()
	for _, m := range f.vols {
		f.judgeLoss(m, rawID(m.id) == h.Owner, isOld)
	}
	for _, sn := range f.snaps {
		var rec snapshotRecord
		_, err := get(f.s.cat, keySnapshot+sn.id, &rec)
		f.ok(err, "record of snapshot %s", sn.id)
		if f.s.cutLost(rec.Cut) == nil {
			f.compareSnapshot(sn, false)
		}
	}
}

// judgeLoss compares a volume with its history after a segment was lost, its own or another's.
func (w *simWorld) judgeLoss(m *simVolume, own, isOld bool) {
	if w.s.rootLost(m.id) != nil {
		return // it starts at what the other was
	}
	if v := w.s.loaded(m.id); own && v != nil && v.mu.failed != nil {
		if !errors.Is(v.mu.failed, ErrCorrupt) {
			w.fail("volume %s failed closed: %v", m.id, v.mu.failed)
		}
		return
	}
	got, err := w.readVolume(m.id, m.hist.base.size(), false)
	w.ok(err, "read volume %s", m.id)
	if own && (m.loose || isOld && m.unnoted) {
		return // it may count as torn
	}
	if m.hist.prefix(got, 0) < 0 {
		w.fail("volume %s is no prefix of its history, and does not say so", m.id)
	}
}
