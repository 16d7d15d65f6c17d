package device

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestRandomOperations does what comes to a generator's mind to a volume and keeps a
// model of it in memory: reads, writes, discards, zeroed ranges, bursts of several
// writes at once, snapshots, clones, growing, detaching, collections, restarts and
// kills. Nothing that was acknowledged may be lost (I1), snapshots may not change
// (I4), and every read must give the model's bytes (I5).
func TestRandomOperations(t *testing.T) {
	for _, c := range []struct {
		kind    string
		sector  int64
		size    int64
		journal string // a small one fills up and is folded under the writes
	}{
		{"raw", 512, 24 << 20, "128MiB"},
		{"raw", 4096, 24 << 20, "512MiB"},
		{"ext4", 512, 128 << 20, "512MiB"},
		{"ext4", 4096, 128 << 20, "128MiB"},
		{"xfs", 512, 320 << 20, "128MiB"},
		{"xfs", 4096, 320 << 20, "512MiB"},
	} {
		t.Run(fmt.Sprintf("%s-%d", c.kind, c.sector), func(t *testing.T) {
			e := newEnv(t, 3*time.Minute, "--journal-size", c.journal)
			w := newWorld(e, c.kind, c.sector, c.size)
			w.run()
		})
	}
}

// fileBytes is the most that a file in a file system grows to.
const fileBytes = 16 << 20

// world is a volume under random operations and its model.
type world struct {
	*env
	r       *rand.Rand
	s       *subject
	volume  int64  // size of the volume
	model   []byte // what must be there
	images  []image
	serial  int
	history []string // the last operations, for a failure
}

// image is a snapshot and what it holds.
type image struct {
	name  string
	size  int64 // of the volume
	model []byte
}

func newWorld(e *env, kind string, sector, size int64) *world {
	seed := uint64(time.Now().UnixNano() % 1e9)
	if s := os.Getenv("GRANARY_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			e.Fatal(err)
		}
		seed = n
	}
	e.Logf("GRANARY_SEED=%d", seed)
	w := &world{env: e, r: rand.New(rand.NewPCG(seed, 1)), volume: size}
	e.Cleanup(func() {
		if e.Failed() {
			e.Logf("last operations:\n  %s", strings.Join(w.history[max(0, len(w.history)-20):], "\n  "))
		}
	})
	w.s = &subject{e: e, volume: "subject", kind: kind, unit: sector}
	e.create("subject", fmt.Sprint(size), "--block-size", fmt.Sprint(sector))
	if kind == "raw" {
		w.model = make([]byte, size)
	} else {
		w.s.unit = 1
		device := e.attach("subject")
		e.mkfs(kind, device)
		e.detach("subject")
	}
	w.s.open()
	return w
}

// operations and how often each is done, out of the sum.
var operations = []struct {
	often int
	name  string
	do    func(*world)
}{
	{400, "write", (*world).write},
	{250, "read", (*world).readSome},
	{50, "burst", (*world).burst},
	{40, "discard", (*world).discard},
	{40, "zero", (*world).zero},
	{40, "sync", (*world).sync},
	{20, "length", (*world).length},
	{10, "snapshot", (*world).takeSnapshot},
	{8, "compare a snapshot", (*world).compareSnapshot},
	{4, "drop a snapshot", (*world).dropSnapshot},
	{4, "clone", (*world).cloneVolume},
	{4, "grow", (*world).grow},
	{5, "reattach", (*world).reattach},
	{3, "restart", (*world).restart},
	{4, "kill", (*world).killDaemon},
	{3, "kill in a burst", (*world).killInBurst},
	{3, "collect", (*world).collect},
	{6, "compare all", (*world).compareAll},
}

func (w *world) run() {
	seconds := 24
	if s := os.Getenv("GRANARY_DEVICE_SECONDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			w.Fatal(err)
		}
		seconds = n
	}
	sum := 0
	for _, op := range operations {
		sum += op.often
	}
	done := 0
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); done++ {
		n := w.r.IntN(sum)
		for _, op := range operations {
			if n -= op.often; n < 0 {
				op.do(w)
				break
			}
		}
	}
	w.compareAll()
	for len(w.images) > 0 {
		w.compareSnapshot()
		w.dropSnapshot()
	}
	w.s.close()
	w.Logf("%d operations", done)
}

// note keeps an operation for the report of a failure.
func (w *world) note(format string, args ...any) {
	w.history = append(w.history, fmt.Sprintf(format, args...))
	if len(w.history) > 4000 {
		w.history = w.history[2000:]
	}
}

// must ends the test unless all is well.
func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// extent picks a range that starts inside of the model's reach and is no longer than
// most; short ones are the most frequent.
func (w *world) extent(reach, most int64) (off, n int64) {
	u := w.s.unit
	switch w.r.IntN(4) {
	case 0:
		n = u * (1 + w.r.Int64N(8))
	case 1:
		n = 4096 * (1 + w.r.Int64N(8))
	default:
		n = u * (1 + w.r.Int64N(max(1, 1<<w.r.Int64N(18)/u)))
	}
	n = min(n, most, reach)
	off = w.r.Int64N(reach-n+1) / u * u
	if w.r.IntN(3) == 0 {
		off = off / 4096 * 4096
	}
	return off, n / u * u
}

// reach is how far writes may go.
func (w *world) reach() int64 {
	if w.s.kind == "raw" {
		return w.volume
	}
	return fileBytes
}

// content makes bytes to write: noise, text, what is elsewhere already, or zeros.
func (w *world) content(n int64) []byte {
	b := aligned(n)
	switch k := w.r.IntN(10); {
	case k < 3:
		for i := range b {
			b[i] = byte(w.r.Uint32())
		}
	case k < 7:
		line := fmt.Sprintf("line %d of the test ", w.r.IntN(1000))
		for i := range b {
			b[i] = line[i%len(line)]
		}
	case k < 9 && int64(len(w.model)) > n:
		off := w.r.Int64N(int64(len(w.model))-n+1) / 4096 * 4096
		copy(b, w.model[off:])
	}
	return b
}

// put brings bytes into the model.
func (w *world) put(p []byte, off int64) {
	if end := off + int64(len(p)); end > int64(len(w.model)) {
		w.model = append(w.model, make([]byte, end-int64(len(w.model)))...)
	}
	copy(w.model[off:], p)
}

func (w *world) write() {
	off, n := w.extent(w.reach(), 512<<10)
	b := w.content(n)
	w.note("write %d+%d", off, n)
	w.must(w.s.write(b, off))
	w.put(b, off)
}

func (w *world) readSome() {
	if len(w.model) == 0 {
		return
	}
	off, n := w.extent(int64(len(w.model)), 1<<20)
	if n > 0 {
		w.compare(w.s, w.model, off, n, "volume")
	}
}

// compare reads a range and compares it with a model.
func (w *world) compare(s *subject, model []byte, off, n int64, what string) {
	w.Helper()
	got := aligned(n)
	w.must(s.read(got, off))
	want := model[off : off+n]
	if bytes.Equal(got, want) {
		return
	}
	at, count := int64(-1), 0
	for i := range got {
		if got[i] != want[i] {
			if at < 0 {
				at = int64(i)
			}
			count++
		}
	}
	w.Fatalf("%s: read of %d+%d: %d bytes differ, the first at %d (block %d, sector %d of it)\n got %.32x\nwant %.32x\noperations there, all others left out:\n  %s",
		what, off, n, count, off+at, (off+at)/4096, (off+at)%4096/512, got[at:], want[at:], strings.Join(w.historyAt(off+at), "\n  "))
}

// historyAt picks the operations that touched an offset, and those without a range.
func (w *world) historyAt(at int64) []string {
	var lines []string
	for i, h := range w.history {
		fields := strings.Fields(h)
		var off, n int64
		if _, err := fmt.Sscanf(fields[len(fields)-1], "%d+%d", &off, &n); err == nil && (at < off || at >= off+n) {
			continue
		}
		lines = append(lines, fmt.Sprintf("%4d before: %s", len(w.history)-i, h))
	}
	return lines[max(0, len(lines)-40):]
}

// burst is several writes at once to ranges that do not touch, often to parts of the
// same block.
func (w *world) burst() {
	for _, j := range w.manyWrites("burst") {
		w.must(j.err)
		w.put(j.p, j.off)
	}
}

type oneWrite struct {
	p   []byte
	off int64
	err error
}

func (w *world) manyWrites(name string) []*oneWrite {
	return w.manyWritesDuring(name, func() {})
}

// manyWritesDuring writes eight ranges while it does something else.
func (w *world) manyWritesDuring(name string, during func()) []*oneWrite {
	var jobs []*oneWrite
	u := w.s.unit
	step := u * (1 + w.r.Int64N(max(1, 1<<w.r.Int64N(17)/u)))
	off := w.r.Int64N(w.reach()-9*step) / u * u
	var wg sync.WaitGroup
	for range 8 {
		n := max(u, (step-w.r.Int64N(step))/u*u)
		j := &oneWrite{p: w.content(n), off: off}
		off += step
		jobs = append(jobs, j)
		w.note("%s %d+%d", name, j.off, n)
		wg.Go(func() { j.err = w.s.write(j.p, j.off) })
	}
	during()
	wg.Wait()
	return jobs
}

func (w *world) hole(name string, do func(off, n int64) error) {
	if len(w.model) == 0 {
		return
	}
	off, n := w.extent(int64(len(w.model)), 8<<20)
	if w.r.IntN(10) == 0 { // a large one now and then
		n = min(int64(len(w.model))-off, 1<<w.r.Int64N(24)) / w.s.unit * w.s.unit
	}
	if n == 0 {
		return
	}
	w.note("%s %d+%d", name, off, n)
	w.must(do(off, n))
	clear(w.model[off : off+n])
}

func (w *world) discard() {
	if w.r.IntN(2) == 0 {
		w.hole("punch", w.s.punch)
		return
	}
	w.hole("discard", w.s.discard)
}

func (w *world) zero() { w.hole("zero", w.s.zero) }

func (w *world) sync() {
	w.note("sync")
	w.must(w.s.sync())
	w.must(w.s.forget())
}

// length makes a file shorter or longer.
func (w *world) length() {
	if w.s.kind == "raw" {
		return
	}
	to := w.r.Int64N(fileBytes)
	w.note("truncate %d", to)
	w.must(w.s.file.Truncate(to))
	if to <= int64(len(w.model)) {
		w.model = w.model[:to:to]
		return
	}
	w.put(nil, to)
}

// compareAll reads everything.
func (w *world) compareAll() {
	w.note("compare all")
	w.sync()
	w.compareImage(w.s, w.model, "volume")
}

func (w *world) compareImage(s *subject, model []byte, what string) {
	w.Helper()
	if info, err := s.file.Stat(); err != nil || s.kind != "raw" && info.Size() != int64(len(model)) {
		w.must(errors.Join(err, fmt.Errorf("%s: file of %d bytes, want %d", what, info.Size(), len(model))))
	}
	for off := int64(0); off < int64(len(model)); off += 1 << 20 {
		w.compare(s, model, off, min(1<<20, int64(len(model))-off), what)
	}
}

func (w *world) takeSnapshot() {
	if len(w.images) == 4 {
		return
	}
	w.sync()
	w.serial++
	name := fmt.Sprintf("snap-%d", w.serial)
	var more []string
	if w.r.IntN(2) == 0 {
		more = []string{"--wait"}
	}
	w.note("snapshot %s", name)
	if s := w.snapshot("subject", name, more...); s.Size != w.volume {
		w.Fatalf("snapshot of %d bytes, the volume has %d", s.Size, w.volume)
	}
	w.images = append(w.images, image{name, w.volume, bytes.Clone(w.model)})
}

// compareSnapshot makes a volume of a snapshot, compares it, writes to it and throws
// it away. Sometimes it is larger than its source.
func (w *world) compareSnapshot() {
	if len(w.images) == 0 {
		return
	}
	i := w.images[w.r.IntN(len(w.images))]
	size := ""
	model := i.model
	if w.r.IntN(3) == 0 {
		size = fmt.Sprint(i.size + 3<<20)
		if w.s.kind == "raw" {
			model = append(bytes.Clone(model), make([]byte, 3<<20)...)
		}
	}
	w.note("compare %s", i.name)
	w.useClone(model, size, "--from-snapshot", i.name)
}

// cloneVolume does the same with a clone of the volume as it is.
func (w *world) cloneVolume() {
	w.sync()
	w.note("clone")
	w.useClone(w.model, "", "--from-volume", "subject")
}

func (w *world) useClone(model []byte, size string, from ...string) {
	w.Helper()
	w.serial++
	name := fmt.Sprintf("clone-%d", w.serial)
	w.create(name, size, from...)
	c := &subject{e: w.env, volume: name, kind: w.s.kind, unit: w.s.unit}
	c.open()
	w.compareImage(c, model, name)
	if len(model) > 0 {
		off, n := w.extent(int64(len(model)), 256<<10)
		if n > 0 {
			b := w.content(n)
			w.must(c.write(b, off))
			model = bytes.Clone(model)
			copy(model[off:], b)
			w.compare(c, model, off, n, name)
		}
	}
	c.close()
	w.do("volume", "rm", name)
}

func (w *world) dropSnapshot() {
	if len(w.images) == 0 {
		return
	}
	n := w.r.IntN(len(w.images))
	w.note("drop %s", w.images[n].name)
	w.do("snapshot", "rm", w.images[n].name)
	w.images = append(w.images[:n], w.images[n+1:]...)
}

func (w *world) grow() {
	if w.serial++; w.volume > 512<<20 {
		return
	}
	w.volume += (1 + w.r.Int64N(3)) << 20
	w.note("grow to %d", w.volume)
	w.s.grow(w.volume)
	if w.s.kind == "raw" {
		w.put(nil, w.volume)
	}
}

func (w *world) reattach() {
	w.note("reattach")
	w.s.close()
	w.s.open()
}

func (w *world) restart() {
	w.note("restart")
	w.s.close()
	w.stop()
	w.serve()
	w.s.open()
}

// killDaemon kills the daemon when it has acknowledged everything. A file system's
// own cache dies with the device, so a file is synced first; a raw device is not.
func (w *world) killDaemon() {
	if w.s.kind != "raw" {
		w.sync()
	}
	w.note("kill")
	w.kill()
	w.s.bury()
	w.serve()
	w.s.open()
	w.compareAll()
}

// killInBurst kills it while it writes. Of the writes in flight each block is old or
// new afterwards; the model takes over what is there.
func (w *world) killInBurst() {
	if w.s.kind != "raw" {
		return
	}
	pause := time.Duration(w.r.IntN(3000)) * time.Microsecond
	jobs := w.manyWritesDuring("kill in burst", func() {
		time.Sleep(pause)
		w.kill()
	})
	w.s.bury()
	w.serve()
	w.s.open()
	for _, j := range jobs {
		if j.err == nil {
			w.put(j.p, j.off)
			continue
		}
		w.adopt(j)
	}
	w.compareAll()
}

// adopt takes what is there after a write that was not acknowledged into the model.
func (w *world) adopt(j *oneWrite) {
	got := aligned(int64(len(j.p)))
	w.must(w.s.read(got, j.off))
	for at := 0; at < len(got); {
		n := min(len(got)-at, int(4096-(j.off+int64(at))%4096))
		isNew := bytes.Equal(got[at:at+n], j.p[at:at+n])
		isOld := bytes.Equal(got[at:at+n], w.model[j.off+int64(at):][:n])
		if !isNew && !isOld {
			w.must(fmt.Errorf("block at %d is neither old nor new after a kill", j.off+int64(at)))
		}
		at += n
	}
	w.put(got, j.off)
}

func (w *world) collect() {
	w.note("collect")
	w.do("collect", "--wait")
}
