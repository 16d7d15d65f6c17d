package catalog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// history is the model: what each commit number does. Commits are noted under the
// catalog's lock, before they are answered; what a reopened catalog holds must be a
// prefix of it that contains every commit that was acknowledged.
type history struct {
	mu    sync.Mutex
	ops   map[uint64][]Op   // of commits above base
	base  uint64            // what the last check has found
	state map[string]string // at base
	acked uint64
	epoch uint64
}

func newHistory() *history { return &history{ops: map[uint64][]Op{}, state: map[string]string{}} }

// update commits ops and notes them.
func (h *history) update(c *Catalog, decide func(View) []Op) error {
	n, err := c.Update(func(v View) ([]Op, error) {
		ops := decide(v)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ops[v.Commit()+1] = ops
		return ops, nil
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.acked = max(h.acked, n)
	}
	return err
}

// check holds a catalog just opened against the model and forgets what was lost.
func (h *history) check(t *testing.T, c *Catalog) {
	t.Helper()
	n := c.Durable()
	if n < h.acked {
		t.Fatalf("commit %d was acknowledged, the catalog ends at %d", h.acked, n)
	}
	if c.Epoch() <= h.epoch {
		t.Fatalf("epoch %d after %d", c.Epoch(), h.epoch)
	}
	h.epoch, h.acked = c.Epoch(), n
	for i := h.base + 1; i <= n; i++ {
		ops, ok := h.ops[i]
		if !ok {
			t.Fatalf("commit %d of %d was never made", i, n)
		}
		for _, op := range ops {
			if delete(h.state, op.Key); op.Value != nil {
				h.state[op.Key] = fmt.Sprintf("%d:%s", i, op.Value)
			}
		}
	}
	wantContent(t, c.View(), h.state)
	clear(h.ops)
	h.base = n
}

// randomOps is a commit of 1 to 4 changes, some larger than a page, some of which may
// conflict.
func randomOps(rng *rand.Rand) func(View) []Op {
	return func(v View) []Op {
		ops := make([]Op, 0, 4)
		for _, k := range rng.Perm(30)[:1+rng.IntN(4)] {
			op := Op{Key: fmt.Sprintf("key/%d", k), Expect: ExpectAny}
			if rng.IntN(3) > 0 {
				op.Value = []byte(strings.Repeat(fmt.Sprint(rng.IntN(1000)), 1+rng.IntN(100)*rng.IntN(20)))
			}
			if rng.IntN(2) == 0 {
				e, _ := v.Get(op.Key)
				op.Expect = e.Revision
			} else if rng.IntN(10) == 0 {
				op.Expect = uint64(rng.IntN(20))
			}
			ops = append(ops, op)
		}
		return ops
	}
}

var errPower = errors.New("no power")

// crashAfter makes the file system crash at the n-th operation from now, or be killed
// if keep is below 0; all operations fail from then on, until it is called again.
func crashAfter(faulty *vfs.Faulty, mem *vfs.Mem, n int64, rng *rand.Rand, keep float64) {
	var once sync.Once
	var left atomic.Int64
	left.Store(n)
	faulty.SetHook(func(vfs.Op) error {
		if left.Add(-1) >= 0 {
			return nil
		}
		once.Do(func() {
			if keep < 0 {
				mem.Kill()
			} else {
				mem.Crash(rng, keep)
			}
		})
		return errPower
	})
}

var keeps = []float64{-1, 0, 0.2, 0.5, 0.9, 1}

// TestCatalog_ModelWithCrashes crashes at any operation, those of Open included.
func TestCatalog_ModelWithCrashes(t *testing.T) {
	leaktest.Check(t)
	for seed := range uint64(12) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1))
			mem := vfs.NewMem()
			faulty := vfs.NewFaulty(mem)
			h := newHistory()
			opened := 0
			for range 120 {
				crashAfter(faulty, mem, rng.Int64N(150), rng, keeps[rng.IntN(len(keeps))])
				c, err := Open(faulty, testDir, testStore, Options{LogBytes: minLogBytes + rng.Int64N(3)*8192})
				if err != nil {
					if !errors.Is(err, errPower) {
						t.Fatal(err)
					}
					continue
				}
				opened++
				h.check(t, c)
				for err == nil || errors.Is(err, ErrConflict) {
					err = h.update(c, randomOps(rng))
				}
				if !errors.Is(err, ErrFailed) {
					t.Fatal(err)
				}
				c.Close()
			}
			faulty.SetHook(nil)
			c := mustOpen(t, faulty, Options{})
			h.check(t, c)
			if opened < 20 || h.acked < 100 {
				t.Errorf("opened %d times, %d commits: too few to show anything", opened, h.acked)
			}
		})
	}
}

// TestCatalog_ConcurrentWithCrashes does so with several callers, whose commits are
// grouped.
func TestCatalog_ConcurrentWithCrashes(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 2))
		mem := vfs.NewMem()
		faulty := vfs.NewFaulty(mem)
		h := newHistory()
		for range 25 {
			faulty.SetHook(nil)
			c, err := Open(faulty, testDir, testStore, Options{LogBytes: minLogBytes})
			if err != nil {
				t.Fatal(err)
			}
			h.check(t, c)
			crashAfter(faulty, mem, rng.Int64N(100), rand.New(rand.NewPCG(seed, 3)), keeps[rng.IntN(len(keeps))])
			var wg sync.WaitGroup
			for range 6 {
				rng := rand.New(rand.NewPCG(rng.Uint64(), 4))
				wg.Go(func() {
					for {
						before := c.Durable()
						err := h.update(c, randomOps(rng))
						if err != nil && !errors.Is(err, ErrConflict) {
							if !errors.Is(err, ErrFailed) {
								t.Error(err)
							}
							return
						}
						if c.Durable() < before {
							t.Error("durable commit number went back")
						}
					}
				})
			}
			wg.Wait()
			c.Close()
		}
	}
}

// holdSync makes the first Datasync wait until release is called; fail says which of
// them fail, counted from 1. syncing is closed when the first one waits.
func holdSync(faulty *vfs.Faulty, fail func(n int32) bool) (syncing chan struct{}, release func(), syncs *atomic.Int32) {
	syncing, held, syncs := make(chan struct{}), make(chan struct{}), new(atomic.Int32)
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpDatasync {
			return nil
		}
		n := syncs.Add(1)
		if n == 1 {
			close(syncing)
			<-held
		}
		if fail(n) {
			return errPower
		}
		return nil
	})
	return syncing, func() { close(held) }, syncs
}

// waitQueued waits until n commits are queued.
func waitQueued(c *Catalog, n int) {
	for queued := 0; queued < n; {
		runtime.Gosched()
		c.mu.Lock()
		queued = len(c.mu.queue)
		c.mu.Unlock()
	}
}

// commitUnsynced writes n commits in one group, whose sync fails.
func commitUnsynced(t *testing.T, c *Catalog, faulty *vfs.Faulty, h *history, n int, decide func(View) []Op) {
	t.Helper()
	syncing, release, _ := holdSync(faulty, func(n int32) bool { return n > 1 })
	var wg sync.WaitGroup
	wg.Go(func() { h.update(c, func(View) []Op { return []Op{put("first", "")} }) })
	<-syncing
	for range n {
		wg.Go(func() {
			if err := h.update(c, decide); !errors.Is(err, ErrFailed) {
				t.Errorf("unsynced commit: %v", err)
			}
		})
	}
	waitQueued(c, n)
	release()
	wg.Wait()
}

// TestCommit_QueuedBehindFailure: what waits while a sync fails is not written any
// more, and the file is not synced again (I8).
func TestCommit_QueuedBehindFailure(t *testing.T) {
	faulty := vfs.NewFaulty(vfs.NewMem())
	c := mustOpen(t, faulty, Options{})
	syncing, release, syncs := holdSync(faulty, func(n int32) bool { return n == 1 })
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if i > 0 {
				<-syncing
			}
			if _, err := c.Commit(put(fmt.Sprint(i), "")); !errors.Is(err, ErrFailed) {
				t.Errorf("commit %d: %v", i, err)
			}
		})
	}
	<-syncing
	waitQueued(c, 3)
	release()
	wg.Wait()
	if syncs.Load() != 1 || c.Durable() != 0 {
		t.Errorf("%d syncs, commit %d durable", syncs.Load(), c.Durable())
	}
}

// TestCatalog_AbandonedStarts: a start reads what a killed process has not synced, and
// loses power before its own log has a name. The next start, which does not see those
// commits, uses the same file, log number and epoch; what is left must not be taken
// for its records, nor as proof that some are missing. The sizes are such that the end
// record of the first start, two pages and one sequence number further on, is where
// the second one expects its first commit.
func TestCatalog_AbandonedStarts(t *testing.T) {
	for n := range int64(50) {
		unsynced, crashAt := 1+4*int(n%2), n/2
		mem := vfs.NewMem()
		faulty := vfs.NewFaulty(mem)
		h := newHistory()
		c := mustOpen(t, faulty, Options{LogBytes: minLogBytes})
		h.update(c, func(View) []Op { return []Op{put("a", "1")} })
		commitUnsynced(t, c, faulty, h, unsynced, func(View) []Op { return []Op{put("b", strings.Repeat("2", 4500))} })
		c.Close()
		mem.Kill()
		rng := rand.New(rand.NewPCG(uint64(n), 5))
		crashAfter(faulty, mem, crashAt, rng, 0)
		if c, err := Open(faulty, testDir, testStore, Options{LogBytes: minLogBytes}); err == nil {
			c.Close()
		}
		faulty.SetHook(nil)
		mem.Crash(rng, 0)
		for range 2 {
			c = mustOpen(t, faulty, Options{LogBytes: minLogBytes})
			h.check(t, c)
			mem.Crash(rng, 0)
		}
		c = mustOpen(t, faulty, Options{LogBytes: minLogBytes})
		h.update(c, func(View) []Op { return []Op{put("c", "3")} })
		mem.Crash(rng, 0)
		c = mustOpen(t, faulty, Options{LogBytes: minLogBytes})
		h.check(t, c)
	}
}

// TestCatalog_EveryFault fails the n-th operation, once and for good, for all n.
func TestCatalog_EveryFault(t *testing.T) {
	errDisk := errors.New("disk on fire")
	for _, persistent := range []bool{false, true} {
		for n := int64(0); ; n++ {
			rng := rand.New(rand.NewPCG(uint64(n), 6))
			mem := vfs.NewMem()
			faulty := vfs.NewFaulty(mem)
			h := newHistory()
			c := mustOpen(t, faulty, Options{LogBytes: minLogBytes})
			for range 3 {
				h.update(c, randomOps(rng))
			}
			mustClose(t, c)
			faulty.FailNth(n, errDisk, persistent)
			before := faulty.Count()
			c, err := Open(faulty, testDir, testStore, Options{LogBytes: minLogBytes})
			if err == nil {
				h.check(t, c)
				for i := 0; i < 60 && (err == nil || errors.Is(err, ErrConflict)); i++ {
					err = h.update(c, randomOps(rng))
				}
				if err == nil || errors.Is(err, ErrConflict) { // makes the files grow
					err = h.update(c, func(View) []Op { return []Op{put("large", strings.Repeat("v", 1<<20))} })
				}
				if closeErr := c.Close(); err == nil {
					err = closeErr
				}
			}
			clean := faulty.Count()-before <= n
			if err != nil && !errors.Is(err, errDisk) {
				t.Fatalf("fault %d: %v", n, err)
			}
			faulty.SetHook(nil)
			mem.Crash(rng, keeps[1+n%5])
			h.check(t, mustOpen(t, faulty, Options{LogBytes: minLogBytes}))
			if clean {
				if n < 100 {
					t.Errorf("only %d operations", n)
				}
				break
			}
		}
	}
}

// TestOpen_Damage: what is damaged below a synced mark, or in the checkpoint, is
// reported with file and offset; what is above it is cut off.
func TestOpen_Damage(t *testing.T) {
	const name = testDir + "/0000000000000002.log"
	// Log 2: 0 header, 4096 part (2 pages), 12288 end, 16384 commit 2, 24576 commit
	// 3, 32768 commit 4, 40960 nothing.
	build := func(t *testing.T) *vfs.Mem {
		mem := vfs.NewMem()
		c := mustOpen(t, mem, Options{LogBytes: minLogBytes})
		mustCommit(t, c, put("a", "1"))
		mustClose(t, c)
		c = mustOpen(t, mem, Options{LogBytes: minLogBytes})
		for _, k := range []string{"b", "c", "d"} {
			mustCommit(t, c, put(k, k))
		}
		mustClose(t, c)
		return mem
	}
	flip := func(b []byte) { b[0] ^= 1 }
	for _, tc := range []struct {
		name   string
		off    int64
		n      int
		change func([]byte)
		want   error
		says   string // part of the error
		commit uint64 // without an error
	}{
		{"nothing", 0, 1, func([]byte) {}, nil, "", 4},
		{"magic", 0, 1, flip, wal.ErrFormat, "offset 0", 0},
		{"version", 4, 1, flip, wal.ErrVersion, "offset 0", 0},
		{"incompat feature", 8, 1, flip, wal.ErrVersion, "offset 0", 0},
		{"epoch", 40, 1, flip, wal.ErrCorrupt, "offset 0", 0},
		{"other store", 0, 4096, func(b []byte) { b[16] ^= 1; wal.SealPage(b) }, wal.ErrFormat, "store", 0},
		{"other log's header", 0, 4096, func(b []byte) { b[32] = 7; wal.SealPage(b) }, wal.ErrCorrupt, "log 7", 0},
		{"header zero field", 0, 4096, func(b []byte) { b[100] = 7; wal.SealPage(b) }, wal.ErrCorrupt, "zero", 0},
		{"header zeroed", 0, 4096, func(b []byte) { clear(b) }, wal.ErrFormat, "offset 0", 0},
		{"checkpoint part's header", 4096 + 60, 1, flip, wal.ErrCorrupt, "offset 4096", 0},
		{"checkpoint part's payload", 8192 + 4000, 1, flip, wal.ErrCorrupt, "offset 4096", 0},
		{"checkpoint end", 12288 + 40, 1, flip, wal.ErrCorrupt, "offset 12288", 0},
		{"first commit", 16384 + 1000, 1, flip, wal.ErrCorrupt, "offset 16384", 0},
		{"first commit zeroed", 16384, 8192, func(b []byte) { clear(b) }, wal.ErrCorrupt, "offset 16384", 0},
		{"second commit's payload", 28672, 1, flip, wal.ErrCorrupt, "offset 24576", 0},
		{"last commit", 32768 + 8, 1, flip, nil, "", 3},
		{"last commit's payload", 36864 + 4095, 1, flip, nil, "", 3},
		{"noise behind the end", 40960, 8192, func(b []byte) { copy(b, "GREC\x01\x00") }, nil, "", 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mem := build(t)
			before := make([]byte, tc.n)
			mem.Corrupt(name, tc.off, func(b []byte) {
				b = b[:min(len(b), tc.n)]
				copy(before, b)
				tc.change(b)
			})
			digest := mem.Digest()
			for _, readOnly := range []bool{true, false} {
				c, err := Open(mem, testDir, testStore, Options{LogBytes: minLogBytes, ReadOnly: readOnly})
				if !errors.Is(err, tc.want) {
					t.Fatalf("got %v, want %v", err, tc.want)
				}
				if err != nil {
					if s := err.Error(); !strings.Contains(s, "0000000000000002.log") || !strings.Contains(s, tc.says) {
						t.Errorf("error does not say where: %v", err)
					}
					if mem.Digest() != digest {
						t.Error("a failed Open has changed files")
					}
					continue
				}
				if c.Durable() != tc.commit {
					t.Errorf("commit %d, want %d", c.Durable(), tc.commit)
				}
				mustClose(t, c)
			}
		})
	}
}

// rename does so in the catalog's directory.
func rename(t *testing.T, mem *vfs.Mem, from, to string) {
	t.Helper()
	if err := mem.Rename(testDir+"/"+from, testDir+"/"+to); err != nil {
		t.Fatal(err)
	}
}

func touch(t *testing.T, mem *vfs.Mem, name string) {
	t.Helper()
	f, err := mem.Create(testDir + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// TestOpen_Leftovers: what crashes leave in the directory.
func TestOpen_Leftovers(t *testing.T) {
	for _, tc := range []struct {
		name  string
		leave func(t *testing.T, mem *vfs.Mem) // there are log 2 and the spare, once log 1
		want  []string                         // names after Open; nil = ErrCorrupt
	}{
		{"nothing", func(*testing.T, *vfs.Mem) {}, []string{logName(3), spareName}},
		{"two logs, no spare", func(t *testing.T, mem *vfs.Mem) { rename(t, mem, spareName, logName(1)) }, []string{logName(3), spareName}},
		{"no spare", func(t *testing.T, mem *vfs.Mem) { mem.Remove(testDir + "/" + spareName) }, []string{logName(3), spareName}},
		{"two logs and a spare", func(t *testing.T, mem *vfs.Mem) { touch(t, mem, logName(1)) }, []string{logName(3), spareName}},
		{"temporary files", func(t *testing.T, mem *vfs.Mem) { touch(t, mem, "spare.tmp"); touch(t, mem, "x.tmp") }, []string{logName(3), spareName}},
		{"files of others", func(t *testing.T, mem *vfs.Mem) { touch(t, mem, "9.log"); touch(t, mem, "FF.log") }, []string{logName(3), "9.log", "FF.log", spareName}},
		{"spare too short", func(t *testing.T, mem *vfs.Mem) { mem.Remove(testDir + "/" + spareName); touch(t, mem, spareName) }, []string{logName(3), spareName}},
		{"newest log empty", func(t *testing.T, mem *vfs.Mem) { touch(t, mem, logName(9)) }, nil},
		{"newest log is the one before", func(t *testing.T, mem *vfs.Mem) { rename(t, mem, spareName, logName(3)) }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mem := vfs.NewMem()
			mustClose(t, mustOpen(t, mem, Options{LogBytes: minLogBytes}))
			c := mustOpen(t, mem, Options{LogBytes: minLogBytes})
			mustCommit(t, c, put("a", "1"))
			mustClose(t, c)
			tc.leave(t, mem)
			c, err := Open(mem, testDir, testStore, Options{LogBytes: minLogBytes})
			if tc.want == nil {
				if !errors.Is(err, wal.ErrCorrupt) && !errors.Is(err, wal.ErrFormat) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantContent(t, c.View(), map[string]string{"a": "1:1"})
			mustClose(t, c)
			if names, _ := mem.ReadDir(testDir); !reflect.DeepEqual(names, tc.want) {
				t.Errorf("files %v, want %v", names, tc.want)
			}
		})
	}
}

func TestOpen_LogLost(t *testing.T) {
	mem := vfs.NewMem()
	for range 3 {
		mustClose(t, mustOpen(t, mem, Options{LogBytes: minLogBytes}))
	}
	if err := mem.Remove(testDir + "/" + logName(3)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(mem, testDir, testStore, Options{}); !errors.Is(err, wal.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

// TestTrace holds the order of operations to what FORMAT.md promises.
func TestTrace(t *testing.T) {
	faulty := vfs.NewFaulty(vfs.NewMem())
	var trace []string
	record := func(op vfs.Op) error {
		switch op.Kind {
		case vfs.OpCreate, vfs.OpAllocate, vfs.OpWrite, vfs.OpSync, vfs.OpDatasync, vfs.OpRename, vfs.OpSyncDir:
			s := fmt.Sprintf("%v %s", op.Kind, strings.TrimPrefix(op.Name, testDir+"/"))
			if op.To != "" {
				s += " " + strings.TrimPrefix(op.To, testDir+"/")
			}
			if n := len(trace); n == 0 || trace[n-1] != s {
				trace = append(trace, s)
			}
		}
		return nil
	}
	want := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(trace, want) {
			t.Errorf("%s:\n%s\nwant:\n%s", what, strings.Join(trace, "\n"), strings.Join(want, "\n"))
		}
		trace = nil
	}
	makeSpare := []string{"create spare.tmp", "allocate spare.tmp", "write spare.tmp", "sync spare.tmp", "rename spare.tmp spare", "syncdir " + testDir}
	next := func(n uint64) []string {
		return []string{"write spare", "datasync spare", "rename spare " + logName(n), "syncdir " + testDir}
	}
	faulty.SetHook(record)
	c := mustOpen(t, faulty, Options{LogBytes: minLogBytes})
	want("first open", slices.Concat(makeSpare, next(1), makeSpare)...)
	mustCommit(t, c, put("a", "1"))
	want("commit", "write spare", "datasync spare") // the name that log 1 was opened by
	for c.Stats().Log == 1 {
		trace = nil
		mustCommit(t, c, put("a", "1"))
	}
	want("full log", append(next(2), "rename "+logName(1)+" spare")...)
	mustClose(t, c)
	mustOpen(t, faulty, Options{LogBytes: minLogBytes})
	want("second open", append(next(3), "rename "+logName(2)+" spare")...)
}
