package blockstore

import (
	"context"
	"errors"

	"github.com/k8ns/granary/pkg/wal"
)

// attached is one of the volumes that are attached; nil if there is none.
func (w *simWorld) attached() *simVolume {
	var open []*simVolume
	for _, m := range w.vols {
		if m.v != nil {
			open = append(open, m)
		}
	}
	if len(open) == 0 {
		return nil
	}
	return open[w.rng.IntN(len(open))]
}

// hot lists the runs of blocks of a volume that the simulation writes to: few, so that
// writes meet, and comparisons are cheap.
func hot(size int64) (runs [][2]int64) {
	n := size / BlockSize
	for _, r := range [][2]int64{{0, 20}, {128, 144}, {248, 260}, {504, 516}, {760, 772}, {1016, 1024}} {
		if r[0] < n {
			runs = append(runs, [2]int64{r[0], min(r[1], n)})
		}
	}
	return runs
}

// span draws a range to be written, in a hot run.
func (w *simWorld) span(size int64) (off, n int64) {
	runs := hot(size)
	r := runs[w.rng.IntN(len(runs))]
	start, end := r[0]*BlockSize, r[1]*BlockSize
	if w.rng.IntN(2) == 0 {
		n = BlockSize * (1 + w.rng.Int64N(8))
		off = start + w.rng.Int64N(r[1]-r[0])*BlockSize
	} else {
		n = sectorBytes * (1 + w.rng.Int64N(40))
		off = start + w.rng.Int64N((end-start)/sectorBytes)*sectorBytes
	}
	return off, min(n, end-off)
}

func (w *simWorld) content(n int64) []byte {
	p := make([]byte, n)
	for at := int64(0); at < n; at += BlockSize {
		b := &simPool[w.rng.IntN(len(simPool))]
		copy(p[at:], b[:])
	}
	switch w.rng.IntN(8) {
	case 0:
		clear(p) // zeros that are written
	case 1, 2, 3:
		p[w.rng.Int64N(n)]++
	}
	return p
}

// note keeps in mind that a volume failed closed.
func (m *simVolume) note(err error) error {
	if errors.Is(err, ErrFailed) {
		m.failed = true
	}
	return err
}

// begin is Volume.begin; op is nil if the journal has no room. A volume that failed
// closed must take nothing more.
func (w *simWorld) begin(m *simVolume, t wal.Type, off, n int64, data []byte) (*append1, error) {
	op, err := m.v.begin(t, off, n, data)
	if errors.Is(err, errWait) {
		if err := w.finishWrites(); err != nil {
			return nil, err
		}
		for _, o := range w.vols {
			if err := w.foldVolume(o.id); err != nil {
				return nil, err
			}
		}
		op, err = m.v.begin(t, off, n, data)
	}
	if errors.Is(err, errWait) || t == wal.TypeHole && w.refused(err) {
		w.trace("journal full")
		return nil, nil
	}
	if err == nil && m.failed {
		w.fail("volume %s failed closed and took a write", m.id)
	}
	return op, m.note(err)
}

// write begins a write; it may stay in flight while others begin and end.
func (w *simWorld) write() error {
	m := w.attached()
	if m == nil {
		return w.createVolume()
	}
	off, n := w.span(m.v.Size())
	data := w.content(n)
	op, err := w.begin(m, wal.TypeWrite, off, n, data)
	if op == nil || err != nil {
		return err
	}
	w.trace("write %s %d+%d seq %d", m.id[:6], off, n, op.seq)
	m.hist.add(simWrite{off: off, n: n, data: data})
	m.pending = append(m.pending, &simInflight{op: op, index: len(m.hist.writes) - 1})
	for len(m.pending) > w.rng.IntN(4) {
		if err := w.complete(m); err != nil {
			return err
		}
	}
	return nil
}

// complete appends one write in flight, any of them, and acknowledges what may be.
func (w *simWorld) complete(m *simVolume) error {
	todo := m.pending[:0:0]
	for _, p := range m.pending {
		if !p.done {
			todo = append(todo, p)
		}
	}
	if len(todo) > 0 {
		p := todo[w.rng.IntN(len(todo))]
		m.v.append(p.op)
		p.done = true
	}
	for len(m.pending) > 0 && m.pending[0].done {
		p := m.pending[0]
		m.pending = m.pending[1:]
		if err := m.v.acknowledge(p.op); err != nil {
			for _, p := range m.pending { // whoever issued them gets an error too
				if !p.done {
					m.v.append(p.op)
				}
			}
			m.pending = nil
			return m.note(err)
		}
		m.hist.writes[p.index].acked = true
	}
	return nil
}

func (w *simWorld) finishWrites() error {
	for _, m := range w.vols {
		for len(m.pending) > 0 {
			if err := w.complete(m); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *simWorld) discard() error {
	m := w.attached()
	if m == nil {
		return nil
	}
	if err := w.finishWrites(); err != nil {
		return err
	}
	off, n := w.span(m.v.Size())
	if w.rng.IntN(4) == 0 {
		n = w.rng.Int64N((m.v.Size()-off)/sectorBytes+1) * sectorBytes
	}
	if n == 0 {
		return nil
	}
	op, err := w.begin(m, wal.TypeHole, off, n, nil)
	if op == nil || err != nil {
		return err
	}
	w.trace("discard %s %d+%d", m.id[:6], off, n)
	m.hist.add(simWrite{off: off, n: n})
	m.v.append(op)
	if err := m.note(m.v.acknowledge(op)); err != nil {
		return err
	}
	m.hist.writes[len(m.hist.writes)-1].acked = true
	return nil
}

func (w *simWorld) flush() error {
	m := w.attached()
	if m == nil {
		return nil
	}
	acked := m.hist.acked()
	if err := m.v.Flush(); err != nil {
		return m.note(err)
	}
	if m.failed {
		w.fail("volume %s failed closed and answered a flush", m.id)
	}
	w.watchFlush(m)
	w.trace("flush %s: %d writes", m.id[:6], acked)
	m.settle(acked)
	return nil
}

func (w *simWorld) mark() error {
	if m := w.attached(); m != nil {
		m.v.markStep()
	}
	return nil
}

// attachOrDetach opens or closes a volume. Closing syncs.
func (w *simWorld) attachOrDetach() error {
	if len(w.vols) == 0 {
		return nil
	}
	if err := w.finishWrites(); err != nil {
		return err
	}
	m := w.vols[w.rng.IntN(len(w.vols))]
	if m.v != nil {
		w.trace("detach %s", m.id[:6])
		acked := m.hist.acked()
		err := m.v.Close()
		m.v = nil
		if err == nil {
			m.settle(acked)
		}
		return m.note(err)
	}
	if ok, err := w.resolve(m.id); !ok {
		return err
	}
	v, err := w.s.OpenVolume(context.Background(), m.id)
	if err != nil {
		return err
	}
	w.trace("attach %s", m.id[:6])
	m.v = v
	if m.failed { // it has been folded from memory: all that was acknowledged is there
		m.failed = false
		plan := w.disk.plan // a death or an error in the midst of the comparison would prove nothing
		w.disk.plan = simPlan{}
		w.matchPrefix(m, m.hist.acked())
		w.disk.plan = plan
	}
	return nil
}

// scratch opens a volume with a throw-away layer, writes to it and looks.
func (w *simWorld) scratch() error {
	if len(w.vols) == 0 {
		return nil
	}
	m := w.vols[w.rng.IntN(len(w.vols))]
	if m.v != nil || m.failed {
		return nil
	}
	return w.scratchOf(m)
}

// scratchOf is scratch for one volume, which nobody has open.
func (w *simWorld) scratchOf(m *simVolume) error {
	if ok, err := w.resolve(m.id); !ok {
		return err
	}
	c, err := w.s.OpenScratch(context.Background(), m.id)
	if w.full && errors.Is(err, ErrNoSpace) {
		return nil
	}
	if err != nil {
		return err
	}
	w.trace("scratch %s", m.id[:6])
	img := m.hist.now.clone()
	for range 3 {
		off, n := w.span(c.Size())
		data := w.content(n)
		if _, err := c.WriteAt(data, off); err != nil {
			c.Close()
			if w.full && errors.Is(err, ErrNoSpace) {
				return nil
			}
			return err
		}
		img.put(off, n, data, nil)
	}
	got := make(map[int]*simBlock)
	err = w.readHot(got, c.Size(), func(p []byte, off int64) error { _, err := c.ReadAt(p, off); return err })
	if err != nil {
		c.Close()
		return err
	}
	w.same(got, img, "throw-away layer of "+m.id)
	return c.Close()
}

// foldVolume folds a volume's oldest layer, if it is in memory.
func (w *simWorld) foldVolume(id string) error {
	v := w.s.loaded(id)
	if v == nil {
		return nil
	}
	for _, l := range v.mu.layers {
		w.trace("  layer last %d data %v cuts %v hold %d", l.last, l.data, l.cuts, l.hold)
	}
	did, err := w.foldFull(func() (bool, error) { return w.s.foldOnce(v) })
	w.trace("fold %s %v", id[:6], did)
	return err
}

// foldFull folds. On a full disk what folds that died have left may have to be collected
// first, as the engine does by itself: then it must succeed (I9).
func (w *simWorld) foldFull(fold func() (bool, error)) (bool, error) {
	did, err := fold()
	if err == nil || !w.refused(err) || w.disk.dead || w.disk.fired {
		return did, err
	}
	w.trace("fold on a full disk: %v", err)
	if w.coll != nil && w.coll.plan != nil {
		w.coll.plan.Abort()
	}
	w.coll = nil
	if _, err := w.s.Collect(context.Background()); err != nil {
		return false, err
	}
	return fold()
}

// fold folds a volume, or several together; deleted ones that owe a cut too.
func (w *simWorld) fold() error {
	ids := w.loadedIDs()
	if len(ids) == 0 {
		return nil
	}
	if w.rng.IntN(3) > 0 {
		return w.foldVolume(ids[w.rng.IntN(len(ids))])
	}
	var vols []*Volume
	codec := -1
	for _, id := range ids {
		v := w.s.loaded(id)
		if w.rng.IntN(2) == 0 && (codec < 0 || int(v.codec) == codec) {
			codec = int(v.codec)
			vols = append(vols, v)
		}
	}
	did, err := w.foldFull(func() (bool, error) { return w.s.foldTogether(vols) })
	w.trace("fold %d together %v", len(vols), did)
	return err
}

// collect takes some steps of a collection.
func (w *simWorld) collect() error {
	for range 1 + w.rng.IntN(6) {
		if w.coll == nil {
			if w.rng.IntN(2) == 0 {
				if err := w.s.sealOpen(); err != nil {
					return err
				}
			}
			c, err := w.s.newCollection(pick(w.rng, autoMinLive, 0.9, 1))
			if err != nil {
				return err
			}
			w.coll = c
		}
		more, _, err := w.s.collectStep(w.coll)
		if err != nil {
			if w.coll.plan != nil {
				w.coll.plan.Abort()
			}
			w.coll = nil
			if errors.Is(err, ErrNoSpace) && w.s.noSpace() {
				continue
			}
			return err
		}
		if !more {
			w.trace("collected")
			w.coll = nil
		}
	}
	return nil
}

func (w *simWorld) readSome() error {
	m := w.attached()
	if m == nil || m.failed {
		return nil
	}
	got := make(map[int]*simBlock)
	off, n := w.span(m.v.Size())
	off, n = off/BlockSize*BlockSize, roundUp(off+n, BlockSize)-off/BlockSize*BlockSize
	if err := w.readRun(got, off, n, func(p []byte, off int64) error { _, err := m.v.ReadAt(p, off); return err }); err != nil {
		return m.note(err)
	}
	w.same(got, m.hist.now, "volume "+m.id)
	return nil
}

// fillOrFree gives the disk a limit near what it has, or takes the limit away.
func (w *simWorld) fillOrFree() error {
	if w.planned {
		return nil
	}
	w.calm()
	if w.full {
		w.trace("the disk has space")
		w.disk.mem.SetCapacity(0)
		w.full = false
		w.s.probeSpace()
		return nil
	}
	sp, err := w.disk.mem.Space(testDir)
	if err != nil {
		return err
	}
	used := sp.Total - sp.Free
	left := pick[int64](w.rng, 0, 40<<10, 300<<10)
	w.trace("the disk is full but for %d", left)
	w.disk.mem.SetCapacity(used + left)
	w.full = true
	return nil
}
