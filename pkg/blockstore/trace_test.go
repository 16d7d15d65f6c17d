package blockstore

import (
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

var traceUpdate = flag.Bool("trace.update", false, "write what TestTrace sees to its golden file")

const traceFile = "testdata/trace.txt"

// tracer writes down what changes files, and in which order.
type tracer struct {
	mem    *vfs.Mem
	faulty *vfs.Faulty
	lines  []string
}

func newTracer() *tracer {
	r := &tracer{mem: vfs.NewMem()}
	r.faulty = vfs.NewFaulty(r.mem)
	r.faulty.SetHook(r.note)
	return r
}

// hashInName is the part of a sealed chunk file's name that its content decides.
var hashInName = regexp.MustCompile(`-[0-9a-f]{32}\.chunks`)

func (r *tracer) note(op vfs.Op) error {
	switch op.Kind {
	case vfs.OpOpen, vfs.OpReadDir, vfs.OpStat, vfs.OpRead, vfs.OpSpace, vfs.OpClose:
		return nil
	}
	name := func(full string) string {
		rel := strings.TrimPrefix(strings.TrimPrefix(full, testDir), "/")
		return hashInName.ReplaceAllString(rel, "-*.chunks")
	}
	line := "  " + op.Kind.String() + " " + name(op.Name)
	if op.To != "" {
		line += " " + name(op.To)
	}
	if n := len(r.lines); r.lines[n-1] != line { // a file is written in pieces
		r.lines = append(r.lines, line)
	}
	return nil
}

func (r *tracer) step(what string, f func()) {
	r.lines = append(r.lines, what)
	f()
}

// TestTrace holds every file operation but reads, of one of each kind of change, to the
// order in testdata/trace.txt: a sync, a directory's sync or a rename that is not there
// any more, or comes later than it did, shows as a difference. One that is meant is
// looked at against FORMAT.md, section 8, and written with
//
//	go test ./pkg/blockstore -run '^TestTrace$' -trace.update
func TestTrace(t *testing.T) {
	r := newTracer()
	now := time.Unix(1e9, 0)
	var key [32]byte
	o := smallOptions()
	o.Workers, o.ReserveBytes = 1, 128<<10
	o.SegmentBytes, o.CatalogBytes, o.ChunkFileBytes = 64<<10, 64<<10, 128<<10
	o.Rand = chachaReader{rand.NewChaCha8(key)}
	o.Now = func() time.Time { return now }
	var s *Store
	var v *Volume
	var id, snap string
	open := func() { s = openStore(t, r.faulty, o) }
	fold := func() { foldAll(t, s) }

	r.step("open a new store", open)
	r.step("create a volume", func() {
		id = must(s.CreateVolume(VolumeSpec{Name: "a", SizeBytes: 1 << 20}))(t).ID
	})
	r.step("open it", func() { v = attach(t, s, id) })
	r.step("write", func() { writeAt(t, v, noise(1, 8*BlockSize), 0) })
	r.step("write", func() { writeAt(t, v, noise(2, 4*BlockSize), 8*BlockSize) })
	r.step("flush", func() { ok(t, v.Flush()) })
	r.step("flush with nothing new", func() { ok(t, v.Flush()) })
	r.step("write into the next segment", func() { writeAt(t, v, noise(3, 4*BlockSize), 16*BlockSize) })
	r.step("flush", func() { ok(t, v.Flush()) })
	r.step("write", func() { writeAt(t, v, noise(4, BlockSize), 24*BlockSize) })
	r.step("snapshot", func() {
		snap = must(s.CreateSnapshot(context.Background(), id, "s", nil))(t).ID
	})
	r.step("fold", fold)
	r.step("clone", func() {
		must(s.CreateVolume(VolumeSpec{Name: "b", FromSnapshot: snap}))(t)
	})
	r.step("discard", func() { ok(t, v.Discard(0, 6*BlockSize)) })
	r.step("grow", func() { must(s.ResizeVolume(id, 2<<20))(t) })
	r.step("die", func() {
		r.mem.Kill()
		s.abandon()
	})
	r.step("open after the process died", open)
	r.step("open the volume", func() { v = attach(t, s, id) })
	r.step("flush what was read back", func() { ok(t, v.Flush()) })
	r.step("write", func() { writeAt(t, v, noise(5, 20*BlockSize), 32*BlockSize) })
	r.step("fold until a chunk file is full", fold)
	r.step("write", func() { writeAt(t, v, noise(6, 20*BlockSize), 32*BlockSize) })
	r.step("fold", fold)
	r.step("write", func() { writeAt(t, v, noise(7, 20*BlockSize), 64*BlockSize) })
	r.step("fold", fold)
	r.step("delete the snapshot", func() { ok(t, s.DeleteSnapshot(snap)) })
	r.step("collect", func() { must(s.Collect(context.Background()))(t) })
	r.step("write", func() { writeAt(t, v, noise(8, BlockSize), 0) })
	r.step("close the volume", func() { ok(t, v.Close()) })
	r.step("stop", func() { ok(t, s.Close()) })
	r.step("open after a stop", open)
	r.step("open the volume", func() { v = attach(t, s, id) })
	r.step("write", func() { writeAt(t, v, noise(9, BlockSize), 0) })
	r.step("fold", fold)
	r.step("lose power", func() {
		r.mem.Crash(nil, 0)
		s.abandon()
	})
	r.step("open after a loss of power", open)
	r.step("stop", func() { ok(t, s.Close()) })
	r.compare(t)
}

// compare tells the first step that differs from the golden file.
func (r *tracer) compare(t *testing.T) {
	t.Helper()
	if *traceUpdate {
		text := []byte(strings.Join(r.lines, "\n") + "\n")
		ok(t, os.MkdirAll(path.Dir(traceFile), 0o755))
		ok(t, os.WriteFile(traceFile, text, 0o644))
		return
	}
	text, err := os.ReadFile(traceFile)
	ok(t, err)
	want := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if slices.Equal(r.lines, want) {
		return
	}
	at := 0
	for at < min(len(want), len(r.lines)) && want[at] == r.lines[at] {
		at++
	}
	around := func(lines []string) string {
		from := at
		for from > 0 && (from >= len(lines) || strings.HasPrefix(lines[from], " ")) {
			from--
		}
		return strings.Join(lines[from:min(len(lines), at+5)], "\n")
	}
	t.Errorf("line %d differs. Now:\n%s\nbefore:\n%s", at+1, around(r.lines), around(want))
}
