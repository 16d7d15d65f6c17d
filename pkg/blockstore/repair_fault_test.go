package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// A repair meets an error at each operation that looks at something. It ends with it, or
// leaves alone what it could not see: nothing is lost, and it can be run again.
func TestRepairMeetsReadErrors(t *testing.T) {
	x := newBroken(t)
	o := brokenOptions()
	o.OpenFiles = 1 // files are opened again and again
	looks := func(op vfs.Op) bool { return !slices.Contains(changing, op.Kind) && op.Kind != vfs.OpClose }
	opens := func(op vfs.Op) bool { return op.Kind == vfs.OpOpen && strings.Contains(op.Name, "/"+dirChunks+"/") }
	for _, c := range []struct {
		match func(vfs.Op) bool
		step  int
	}{{opens, 1}, {looks, 9}} {
		if raceEnabled {
			c.step *= 5
		}
		failed := 0
		for n := 1; !t.Failed(); n += c.step {
			mem := x.fsys.Clone()
			fsys := vfs.NewFaulty(mem)
			hit := failNth(fsys, n, syscall.EIO, c.match)
			_, err := tryRepair(fsys, o)
			what := hit()
			if what == "" {
				ok(t, err)
				break
			}
			if err != nil {
				failed++
				if !strings.Contains(err.Error(), syscall.EIO.Error()) {
					t.Errorf("%s: %v does not say why", what, err)
				}
			}
			mem.Kill()
			x.lostNothing(t, mem, what)
		}
		if failed == 0 {
			t.Error("no repair failed")
		}
	}
}

// A repair that is told to stop stops between two files, and before it counts what is
// mapped. What it has done holds, and the next goes on from there.
func TestRepairIsStopped(t *testing.T) {
	for _, kind := range []string{"chunk-file", "damage"} {
		x := newBroken(t)
		fsys := x.fsys.Clone()
		ctx, cancel := context.WithCancel(context.Background())
		var mends []Mend
		_, err := Repair(ctx, fsys, testDir, RepairOptions{Store: brokenOptions(), Mended: func(m Mend) {
			mends = append(mends, m)
			if m.Kind == kind {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("stopped at the first %s: %v, want context.Canceled", kind, err)
		}
		if len(mends) == 0 || mends[len(mends)-1].Kind != kind {
			t.Errorf("stopped at the first %s, it mended %v", kind, mends)
		}
		x.lostNothing(t, fsys, fmt.Sprintf("stopped at the first %s", kind))
	}
}
