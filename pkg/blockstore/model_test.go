package blockstore

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sort"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

var (
	modelSeeds = flag.Int("model.seeds", 60, "how many seeds TestModel runs")
	modelFirst = flag.Uint64("model.first", 1, "first seed of TestModel")
	modelOps   = flag.Int("model.ops", 300, "operations a seed")
	modelTrace = flag.Bool("model.trace", false, "print every operation")
)

// TestModel drives the engine on a file system that loses unsynced data at a crash,
// and compares every volume, snapshot and clone with a model: I1 (prefix, flushed and
// acknowledged writes), I4, I5, I6, and check after every reopening.
func TestModel(t *testing.T) {
	for i := range *modelSeeds {
		seed := *modelFirst + uint64(i)
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { newWorld(t, seed).run(*modelOps) }) {
			return
		}
	}
}

// write is one write or discard in the model's history of a volume.
type write struct {
	off   int64
	n     int64
	data  []byte // nil: zeros
	acked bool
}

func (w write) apply(image []byte) {
	if w.data == nil {
		clear(image[w.off : w.off+w.n])
		return
	}
	copy(image[w.off:], w.data)
}

type modelVolume struct {
	id      string
	v       *Volume // nil when detached
	base    []byte  // image before history
	history []write
	flushed int // writes of history known durable
	pending []*inflight
}

// inflight is a write that was begun and not yet acknowledged.
type inflight struct {
	op    *append1
	index int
	done  bool
}

func (m *modelVolume) image() []byte {
	img := bytes.Clone(m.base)
	for _, w := range m.history {
		w.apply(img)
	}
	return img
}

// settle makes what is known durable the base.
func (m *modelVolume) settle(n int) {
	for _, w := range m.history[:n] {
		w.apply(m.base)
	}
	m.history = m.history[n:]
	m.flushed = max(0, m.flushed-n)
	for _, p := range m.pending {
		p.index -= n
	}
}

type modelSnapshot struct {
	id    string
	image []byte
}

type world struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	fs    *vfs.Mem
	s     *Store
	now   time.Time
	vols  []*modelVolume
	snaps []*modelSnapshot
	names int
	coll  *collection
	pool  [][]byte // contents that come again
	step  int
}

type chachaReader struct{ *rand.ChaCha8 }

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), fs: vfs.NewMem(), now: time.Unix(1e9, 0)}
	for range 12 {
		b := make([]byte, 16*BlockSize)
		for i := range b {
			b[i] = byte(w.rng.Uint32()) & 0x3f // compresses a little
		}
		w.pool = append(w.pool, b)
	}
	w.open()
	return w
}

func (w *world) options() Options {
	var key [32]byte
	key[0], key[1] = byte(w.rng.Uint32()), byte(w.rng.Uint32())
	return Options{
		Now:          func() time.Time { w.now = w.now.Add(time.Millisecond); return w.now },
		Rand:         chachaReader{rand.NewChaCha8(key)},
		JournalBytes: 768 << 10, SegmentBytes: 96 << 10, FoldBytes: 256 << 10, UnsyncedBytes: 128 << 10,
		ChunkFileBytes: 128 << 10, CacheBytes: 1 << 20, NodeCache: 16, ListCache: 4, ReserveBytes: 64 << 10,
		Workers: 1, MaxLayers: 4,
	}
}

func (w *world) open() {
	s, err := Open(w.fs, "/store", w.options())
	w.ok(err, "open")
	w.s = s
	w.coll = nil
}

func (w *world) ok(err error, what string, args ...any) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("seed %d step %d: %s: %v", w.seed, w.step, fmt.Sprintf(what, args...), err)
	}
}

func (w *world) trace(format string, args ...any) {
	if *modelTrace {
		w.t.Logf("%d: "+format, append([]any{w.step}, args...)...)
	}
}

func (w *world) run(ops int) {
	for w.step = range ops {
		w.one()
	}
	w.finishWrites()
	w.checkAll()
	w.ok(w.s.Close(), "close")
	w.open()
	w.afterReopen(false)
	w.checkAll()
	w.ok(w.s.Close(), "close")
}

func (w *world) one() {
	switch r := w.rng.IntN(100); {
	case r < 40:
		w.write()
	case r < 44:
		w.discard()
	case r < 50:
		w.flush()
	case r < 54:
		w.snapshot()
	case r < 57:
		w.createVolume()
	case r < 59:
		w.deleteSomething()
	case r < 61:
		w.resize()
	case r < 64:
		w.attachOrDetach()
	case r < 72:
		w.fold()
	case r < 82:
		w.collect()
	case r < 92:
		w.readSome()
	case r < 95:
		w.mark()
	case r < 97:
		w.kill()
	case r < 99:
		w.crash()
	default:
		w.checkAll()
	}
}

func (w *world) open1() *modelVolume {
	var open []*modelVolume
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

func (w *world) content(n int64) []byte {
	p := make([]byte, n)
	for at := int64(0); at < n; at += BlockSize {
		src := w.pool[w.rng.IntN(len(w.pool))]
		k := w.rng.IntN(16)
		copy(p[at:], src[k*BlockSize:(k+1)*BlockSize])
	}
	if w.rng.IntN(3) == 0 && n > 0 {
		p[w.rng.Int64N(n)]++
	}
	return p
}

func (w *world) span(size int64) (off, n int64) {
	if w.rng.IntN(2) == 0 {
		n = BlockSize * (1 + w.rng.Int64N(8))
		off = w.rng.Int64N(size/BlockSize) * BlockSize
	} else {
		n = sectorBytes * (1 + w.rng.Int64N(40))
		off = w.rng.Int64N(size/sectorBytes) * sectorBytes
	}
	return off, min(n, size-off)
}

// write begins a write; it may stay in flight while others begin and end.
func (w *world) write() {
	m := w.open1()
	if m == nil {
		w.createVolume()
		return
	}
	off, n := w.span(m.v.Size())
	data := w.content(n)
	op, err := m.v.begin(wal.TypeWrite, off, n, data)
	if errors.Is(err, errWait) {
		w.finishWrites()
		for _, o := range w.vols {
			w.foldVolume(o.id)
		}
		op, err = m.v.begin(wal.TypeWrite, off, n, data)
		if errors.Is(err, errWait) {
			w.trace("journal full")
			return
		}
	}
	w.ok(err, "begin write")
	w.trace("write %s %d+%d seq %d", m.id[:6], off, n, op.seq)
	m.history = append(m.history, write{off: off, n: n, data: data})
	m.pending = append(m.pending, &inflight{op: op, index: len(m.history) - 1})
	for len(m.pending) > w.rng.IntN(4) {
		w.complete(m)
	}
}

// complete appends one write in flight, any of them, and acknowledges what may be.
func (w *world) complete(m *modelVolume) {
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
		w.ok(m.v.acknowledge(m.pending[0].op), "acknowledge")
		m.history[m.pending[0].index].acked = true
		m.pending = m.pending[1:]
	}
}

func (w *world) finishWrites() {
	for _, m := range w.vols {
		for len(m.pending) > 0 {
			w.complete(m)
		}
	}
}

func (w *world) discard() {
	m := w.open1()
	if m == nil {
		return
	}
	w.finishWrites()
	off, n := w.span(m.v.Size())
	if w.rng.IntN(4) == 0 {
		n = w.rng.Int64N((m.v.Size()-off)/sectorBytes+1) * sectorBytes
	}
	if n == 0 {
		return
	}
	op, err := m.v.begin(wal.TypeHole, off, n, nil)
	if errors.Is(err, errWait) {
		return
	}
	w.ok(err, "begin discard")
	w.trace("discard %s %d+%d", m.id[:6], off, n)
	m.v.append(op)
	w.ok(m.v.acknowledge(op), "discard")
	m.history = append(m.history, write{off: off, n: n, acked: true})
}

func (w *world) flush() {
	m := w.open1()
	if m == nil {
		return
	}
	acked := 0
	for acked < len(m.history) && m.history[acked].acked {
		acked++
	}
	w.ok(m.v.Flush(), "flush")
	w.trace("flush %s", m.id[:6])
	m.flushed = max(m.flushed, acked)
}

func (w *world) mark() {
	if m := w.open1(); m != nil {
		m.v.markStep()
	}
}

func (w *world) name() string {
	w.names++
	return fmt.Sprintf("n%d", w.names)
}

func (w *world) snapshot() {
	if len(w.vols) == 0 || len(w.snaps) > 8 {
		return
	}
	w.finishWrites()
	m := w.vols[w.rng.IntN(len(w.vols))]
	if v := w.s.loaded(m.id); v != nil && len(v.mu.layers) >= 4 {
		w.foldVolume(m.id)
	}
	if !w.resolve(m.id) {
		return
	}
	info, err := w.s.CreateSnapshot(context.Background(), m.id, w.name(), nil)
	w.ok(err, "snapshot")
	w.trace("snapshot %s of %s ready %v", info.ID[:6], m.id[:6], info.Ready)
	w.snaps = append(w.snaps, &modelSnapshot{info.ID, m.image()})
	m.settle(len(m.history)) // the cut made everything before it durable
}

// resolve folds what a volume's cut waits for.
func (w *world) resolve(id string) bool {
	var rec volumeRecord
	_, err := get(w.s.cat, keyVolume+id, &rec)
	w.ok(err, "record")
	if rec.Cut == "" {
		return true
	}
	var cut cutRecord
	_, err = get(w.s.cat, keyCut+rec.Cut, &cut)
	w.ok(err, "cut")
	for i := 0; cut.Pending && i < 10; i++ {
		w.foldVolume(cut.Volume)
		_, err = get(w.s.cat, keyCut+rec.Cut, &cut)
		w.ok(err, "cut")
	}
	return !cut.Pending
}

func (w *world) createVolume() {
	if len(w.vols) > 6 {
		return
	}
	w.finishWrites()
	spec := VolumeSpec{Name: w.name()}
	var img []byte
	switch r := w.rng.IntN(3); {
	case r == 0 && len(w.snaps) > 0:
		sn := w.snaps[w.rng.IntN(len(w.snaps))]
		spec.FromSnapshot, img = sn.id, bytes.Clone(sn.image)
	case r == 1 && len(w.vols) > 0:
		m := w.vols[w.rng.IntN(len(w.vols))]
		if v := w.s.loaded(m.id); v != nil && len(v.mu.layers) >= 4 {
			w.foldVolume(m.id)
		}
		if !w.resolve(m.id) {
			return
		}
		spec.FromVolume, img = m.id, m.image()
		defer func() { m.settle(len(m.history)) }()
	default:
		spec.SizeBytes = 1
		img = make([]byte, SizeStep)
	}
	if img != nil && w.rng.IntN(4) == 0 {
		spec.SizeBytes = int64(len(img)) + SizeStep
		img = append(img, make([]byte, SizeStep)...)
	}
	info, err := w.s.CreateVolume(spec)
	w.ok(err, "create volume")
	w.trace("create %s from %q %q", info.ID[:6], spec.FromSnapshot, spec.FromVolume)
	m := &modelVolume{id: info.ID, base: img}
	w.vols = append(w.vols, m)
	if w.rng.IntN(3) > 0 && w.resolve(m.id) {
		m.v, err = w.s.OpenVolume(context.Background(), m.id)
		w.ok(err, "open volume")
	}
}

func (w *world) deleteSomething() {
	if w.rng.IntN(2) == 0 && len(w.snaps) > 0 {
		i := w.rng.IntN(len(w.snaps))
		w.trace("delete snapshot %s", w.snaps[i].id[:6])
		w.ok(w.s.DeleteSnapshot(w.snaps[i].id), "delete snapshot")
		w.snaps = append(w.snaps[:i], w.snaps[i+1:]...)
		return
	}
	for i, m := range w.vols {
		if m.v == nil {
			w.trace("delete volume %s", m.id[:6])
			w.ok(w.s.DeleteVolume(m.id), "delete volume")
			w.vols = append(w.vols[:i], w.vols[i+1:]...)
			return
		}
	}
}

func (w *world) resize() {
	if len(w.vols) == 0 {
		return
	}
	m := w.vols[w.rng.IntN(len(w.vols))]
	if len(m.base) > 3*SizeStep {
		return
	}
	info, err := w.s.ResizeVolume(m.id, int64(len(m.base))+1)
	w.ok(err, "resize")
	m.base = append(m.base, make([]byte, info.SizeBytes-int64(len(m.base)))...)
}

func (w *world) attachOrDetach() {
	if len(w.vols) == 0 {
		return
	}
	w.finishWrites()
	m := w.vols[w.rng.IntN(len(w.vols))]
	if m.v != nil {
		w.trace("detach %s", m.id[:6])
		w.ok(m.v.Close(), "close volume")
		m.v = nil
		m.settle(len(m.history))
		return
	}
	if !w.resolve(m.id) {
		return
	}
	v, err := w.s.OpenVolume(context.Background(), m.id)
	w.ok(err, "open volume")
	w.trace("attach %s", m.id[:6])
	m.v = v
}

func (w *world) foldVolume(id string) {
	if v := w.s.loaded(id); v != nil {
		for _, l := range v.mu.layers {
			w.trace("  layer last %d data %v cuts %v hold %d", l.last, l.data, l.cuts, l.hold)
		}
		did, err := w.s.foldOnce(v)
		w.ok(err, "fold")
		w.trace("fold %s %v", id[:6], did)
	}
}

func (w *world) fold() {
	w.s.mu.Lock()
	ids := make([]string, 0, len(w.s.mu.volumes)) // deleted ones that owe a cut too
	for id := range w.s.mu.volumes {
		ids = append(ids, id)
	}
	w.s.mu.Unlock()
	sort.Strings(ids)
	if len(ids) == 0 {
		return
	}
	if w.rng.IntN(3) > 0 {
		w.foldVolume(ids[w.rng.IntN(len(ids))])
		return
	}
	var vols []*Volume
	for _, id := range ids {
		if w.rng.IntN(2) == 0 {
			vols = append(vols, w.s.loaded(id))
		}
	}
	did, err := w.s.foldTogether(vols)
	w.ok(err, "fold together")
	w.trace("fold %d together %v", len(vols), did)
}

func (w *world) collect() {
	for range 1 + w.rng.IntN(6) {
		if w.coll == nil {
			if w.rng.IntN(2) == 0 {
				w.ok(w.s.chunks.SealOpen(), "seal")
			}
			c, err := w.s.newCollection(0.9)
			w.ok(err, "collection")
			w.coll = c
		}
		more, _, err := w.s.collectStep(w.coll)
		w.ok(err, "collect")
		if !more {
			w.trace("collected")
			w.coll = nil
		}
	}
}

func (w *world) readSome() {
	m := w.open1()
	if m == nil {
		return
	}
	off, n := w.span(m.v.Size())
	got := make([]byte, n)
	_, err := m.v.ReadAt(got, off)
	w.ok(err, "read %s %d+%d", m.id, off, n)
	w.equal(got, m.image()[off:off+n], off, "volume "+m.id)
}

func (w *world) equal(got, want []byte, at int64, what string) {
	w.t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			w.t.Fatalf("seed %d step %d: %s differs at byte %d (block %d): %#x, want %#x",
				w.seed, w.step, what, at+int64(i), (at+int64(i))/BlockSize, got[i], want[i])
		}
	}
}

// kill is the death of the process: nothing acknowledged may be lost.
func (w *world) kill() {
	w.trace("kill")
	w.s.abandon()
	w.fs.Kill()
	w.open()
	w.afterReopen(true)
}

// crash is a power loss: nothing flushed may be lost.
func (w *world) crash() {
	keep := []float64{0, 1, w.rng.Float64()}[w.rng.IntN(3)]
	w.trace("crash keeping %.2f", keep)
	w.s.abandon()
	w.fs.Crash(w.rng, keep)
	w.open()
	w.afterReopen(false)
}

// afterReopen finds out which prefix of each history the store has: all that was
// flushed, after a kill all that was acknowledged.
func (w *world) afterReopen(killed bool) {
	w.checkStore()
	for _, m := range w.vols {
		m.v, m.pending = nil, nil
		least := m.flushed
		if killed {
			for i, h := range m.history {
				if h.acked {
					least = max(least, i+1)
				}
			}
		}
		got := w.readVolume(m.id, int64(len(m.base)))
		img := bytes.Clone(m.base)
		found := -1
		for k := 0; ; k++ {
			if k >= least && bytes.Equal(got, img) {
				found = k // the longest prefix that fits
			}
			if k == len(m.history) {
				break
			}
			m.history[k].apply(img)
		}
		if found < 0 {
			w.t.Fatalf("seed %d step %d: volume %s is no prefix of its history of %d writes with the first %d",
				w.seed, w.step, m.id, len(m.history), least)
		}
		w.trace("volume %s has %d of %d writes (%d needed)", m.id[:6], found, len(m.history), least)
		m.history = m.history[:found]
		for i := range m.history {
			m.history[i].acked = true // read back: as good as acknowledged from now on
		}
		if !killed { // what came through a power loss is on the disk
			m.settle(found)
		}
		if w.rng.IntN(2) == 0 {
			v, err := w.s.OpenVolume(context.Background(), m.id)
			w.ok(err, "attach again")
			m.v = v
		}
	}
}

// readVolume reads a whole volume, attached or not.
func (w *world) readVolume(id string, size int64) []byte {
	w.t.Helper()
	got := make([]byte, size)
	if !w.resolve(id) {
		w.t.Fatalf("seed %d step %d: the cut that volume %s starts at gets no root", w.seed, w.step, id)
	}
	v := w.s.loaded(id)
	if v == nil {
		var err error
		v, err = w.s.OpenVolume(context.Background(), id)
		w.ok(err, "open %s", id)
		defer v.Close()
	}
	if v.Size() != size {
		w.t.Fatalf("seed %d step %d: volume %s has %d bytes, want %d", w.seed, w.step, id, v.Size(), size)
	}
	_, err := v.ReadAt(got, 0)
	w.ok(err, "read volume %s", id)
	return got
}

func (w *world) checkStore() {
	w.t.Helper()
	err := w.s.Check(context.Background(), CheckOptions{ReadData: w.rng.IntN(4) == 0}, func(p Problem) {
		w.t.Errorf("seed %d step %d: check: %v", w.seed, w.step, p)
	})
	w.ok(err, "check")
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// checkAll compares every volume and snapshot with the model.
func (w *world) checkAll() {
	w.finishWrites()
	w.checkStore()
	for _, m := range w.vols {
		w.equal(w.readVolume(m.id, int64(len(m.base))), m.image(), 0, "volume "+m.id)
	}
	for _, sn := range w.snaps {
		var rec snapshotRecord
		_, err := get(w.s.cat, keySnapshot+sn.id, &rec)
		w.ok(err, "snapshot record")
		var cut cutRecord
		_, err = get(w.s.cat, keyCut+rec.Cut, &cut)
		w.ok(err, "cut of %s", sn.id)
		for i := 0; cut.Pending && i < 10; i++ {
			w.foldVolume(cut.Volume)
			_, err = get(w.s.cat, keyCut+rec.Cut, &cut)
			w.ok(err, "cut")
		}
		if cut.Pending {
			w.t.Fatalf("seed %d step %d: snapshot %s gets no root", w.seed, w.step, sn.id)
		}
		got := make([]byte, len(sn.image))
		w.ok(w.s.readImage(got, 0, cut.Root.slot()), "read snapshot %s", sn.id)
		w.equal(got, sn.image, 0, "snapshot "+sn.id)
	}
}
