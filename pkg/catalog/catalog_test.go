package catalog

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

const testDir = "/catalog"

var testStore = [16]byte{0xaa, 1, 2, 3, 15: 0xbb}

// mustOpen opens the catalog and closes it when the test ends.
func mustOpen(t testing.TB, fsys vfs.FS, o Options) *Catalog {
	t.Helper()
	leaktest.Check(t)
	c, err := Open(fsys, testDir, testStore, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mustCommit(t testing.TB, c *Catalog, ops ...Op) uint64 {
	t.Helper()
	n, err := c.Commit(ops...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustClose(t testing.TB, c *Catalog) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(key, value string) Op { return Op{Key: key, Value: []byte(value), Expect: ExpectAny} }

// content is all of a view, as text.
func content(v View) map[string]string {
	m := map[string]string{}
	for e := range v.All("") {
		m[e.Key] = fmt.Sprintf("%d:%s", e.Revision, e.Value)
	}
	return m
}

func wantContent(t *testing.T, v View, want map[string]string) {
	t.Helper()
	if got := content(v); !reflect.DeepEqual(got, want) {
		t.Fatalf("content is %v, want %v", got, want)
	}
}

func TestCatalog_CommitAndReopen(t *testing.T) {
	mem := vfs.NewMem()
	c := mustOpen(t, mem, Options{})
	if c.Epoch() != 1 || c.Durable() != 0 || len(content(c.View())) != 0 {
		t.Fatalf("new catalog: epoch %d, commit %d", c.Epoch(), c.Durable())
	}
	for i, tc := range []struct {
		ops  []Op
		want error
	}{
		{[]Op{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte{}}}, nil}, // commit 1
		{[]Op{{Key: "a", Value: []byte("2")}}, ErrConflict},                      // is there
		{[]Op{{Key: "a", Value: []byte("2"), Expect: 1}}, nil},                   // commit 2
		{[]Op{{Key: "a", Value: []byte("3"), Expect: 1}}, ErrConflict},
		{[]Op{{Key: "c", Expect: ExpectAny, Value: []byte("x")}, {Key: "b", Expect: 9}}, ErrConflict},
		{[]Op{{Key: "nothing", Expect: ExpectAny}}, nil}, // commit 3
		{[]Op{{Key: "nothing"}}, nil},                    // commit 4
		{[]Op{{Key: "b", Expect: 1}, put("d", "4")}, nil},
		{[]Op{put("", "x")}, ErrInvalid},
		{[]Op{put(strings.Repeat("k", 65536), "x")}, ErrInvalid},
		{[]Op{put("k", strings.Repeat("v", maxPayload))}, ErrInvalid},
		{[]Op{put("e", "1"), put("e", "2")}, ErrInvalid},
		{nil, nil},
	} {
		if _, err := c.Commit(tc.ops...); !errors.Is(err, tc.want) {
			t.Errorf("commit %d: %v, want %v", i, err, tc.want)
		}
	}
	if _, err := c.Commit(Op{Key: "a"}); err == nil || !strings.Contains(err.Error(), "a has revision 2, expected no entry") {
		t.Errorf("conflict says %v", err)
	}
	want := map[string]string{"a": "2:2", "d": "5:4"}
	wantContent(t, c.View(), want)
	mustClose(t, c)
	mustClose(t, c)
	if _, err := c.Commit(put("a", "9")); !errors.Is(err, ErrClosed) {
		t.Errorf("commit after Close: %v", err)
	}
	wantContent(t, c.View(), want)

	c = mustOpen(t, mem, Options{})
	wantContent(t, c.View(), want)
	if c.Epoch() != 2 || c.Durable() != 5 {
		t.Errorf("epoch %d, commit %d; want 2, 5", c.Epoch(), c.Durable())
	}
	if n := mustCommit(t, c, put("z", "1")); n != 6 {
		t.Errorf("commit %d, want 6", n)
	}
}

func TestCatalog_LargestCommit(t *testing.T) {
	mem := vfs.NewMem()
	c := mustOpen(t, mem, Options{LogBytes: minLogBytes})
	large := strings.Repeat("v", maxPayload-15-1)
	mustCommit(t, c, put("k", large))
	mustCommit(t, c, put("a", "1"), put("l", large[:len(large)-100]))
	mustClose(t, c)
	c = mustOpen(t, mem, Options{})
	if e, _ := c.Get("k"); string(e.Value) != large || e.Revision != 1 || c.View().Len() != 3 {
		t.Errorf("entry of %d bytes, %d entries", len(e.Value), c.View().Len())
	}
}

func TestView_Scan(t *testing.T) {
	c := mustOpen(t, vfs.NewMem(), Options{})
	for _, k := range []string{"a", "b/", "b/1", "b/2", "b/3", "b0", "c"} {
		mustCommit(t, c, put(k, k))
	}
	for _, tc := range []struct {
		prefix, after string
		limit         int
		want          string
	}{
		{"", "", 0, "a b/ b/1 b/2 b/3 b0 c"},
		{"b/", "", 0, "b/ b/1 b/2 b/3"},
		{"b/", "", 2, "b/ b/1"},
		{"b/", "b/1", 0, "b/2 b/3"},
		{"b/", "b/11", 1, "b/2"},
		{"b/", "b/3", 1, ""},
		{"b/", "a", 1, "b/"},
		{"b/", "c", 0, ""},
		{"", "b/3", -1, "b0 c"},
		{"x", "", 0, ""},
	} {
		var keys []string
		for _, e := range c.Scan(tc.prefix, tc.after, tc.limit) {
			keys = append(keys, e.Key)
		}
		if got := strings.Join(keys, " "); got != tc.want {
			t.Errorf("Scan(%q, %q, %d) = %q, want %q", tc.prefix, tc.after, tc.limit, got, tc.want)
		}
	}
}

func TestView_NeverChanges(t *testing.T) {
	c := mustOpen(t, vfs.NewMem(), Options{LogBytes: minLogBytes})
	rng := rand.New(rand.NewPCG(1, 2))
	type kept struct {
		view View
		want map[string]string
	}
	var views []kept
	value := []byte("v0")
	for i := range 300 {
		copy(value, fmt.Sprintf("v%d", i%10)) // Commit copies
		key := fmt.Sprintf("k%d", rng.IntN(200))
		mustCommit(t, c, Op{Key: key, Value: value, Expect: ExpectAny}, Op{Key: fmt.Sprintf("x%d", rng.IntN(50)), Expect: ExpectAny})
		if i%20 == 0 {
			views = append(views, kept{c.View(), content(c.View())})
		}
	}
	for _, k := range views {
		wantContent(t, k.view, k.want)
	}
}

func TestUpdate_SeesQueuedCommits(t *testing.T) {
	c := mustOpen(t, vfs.NewMem(), Options{})
	const callers, each = 8, 50
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				_, err := c.Update(func(v View) ([]Op, error) {
					e, _ := v.Get("counter")
					return []Op{{Key: "counter", Value: append(e.Value[:len(e.Value):len(e.Value)], 'x'), Expect: e.Revision}}, nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if e, _ := c.Get("counter"); len(e.Value) != callers*each || c.Durable() != callers*each {
		t.Errorf("counter is %d after commit %d", len(e.Value), c.Durable())
	}
	errMine := errors.New("mine")
	if _, err := c.Update(func(View) ([]Op, error) { return []Op{put("a", "1")}, errMine }); err != errMine {
		t.Errorf("error of fn: %v", err)
	}
	if n, err := c.Update(func(View) ([]Op, error) { return nil, nil }); n != callers*each || err != nil {
		t.Errorf("Update without ops: %d, %v", n, err)
	}
}

// TestCommit_Groups: commits that wait while one is being synced go out together, in
// one sync; each is answered for itself; nobody sees or is told what is not durable.
func TestCommit_Groups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faulty := vfs.NewFaulty(vfs.NewMem())
		c := mustOpen(t, faulty, Options{})
		mustCommit(t, c, put("k5", "old"))
		release, syncs := make(chan struct{}), 0
		faulty.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpDatasync {
				syncs++
				<-release
			}
			return nil
		})
		var wg sync.WaitGroup
		var numbers [10]uint64
		var errs [10]error
		for i := range 10 {
			wg.Go(func() { numbers[i], errs[i] = c.Commit(Op{Key: fmt.Sprintf("k%d", i), Value: []byte("new")}) })
			synctest.Wait()
		}
		asked := false
		wg.Go(func() {
			_, err := c.Update(func(v View) ([]Op, error) {
				if _, ok := v.Get("k9"); !ok || v.Commit() != 10 {
					t.Error("Update does not see what is queued")
				}
				return nil, ErrInvalid
			})
			if asked = true; err != ErrInvalid {
				t.Error(err)
			}
		})
		synctest.Wait()
		if asked || c.Durable() != 1 || c.View().Len() != 1 {
			t.Fatalf("before the sync: answered %v, commit %d durable", asked, c.Durable())
		}
		close(release)
		wg.Wait()
		if syncs != 2 {
			t.Errorf("%d syncs for 10 commits, want 2", syncs)
		}
		for i := range 10 {
			switch {
			case i == 5 && !errors.Is(errs[i], ErrConflict):
				t.Errorf("commit 5: %v, want a conflict", errs[i])
			case i < 5 && (errs[i] != nil || numbers[i] != uint64(i+2)), i > 5 && (errs[i] != nil || numbers[i] != uint64(i+1)):
				t.Errorf("commit %d: number %d, %v", i, numbers[i], errs[i])
			}
		}
		mustClose(t, c)
	})
}

// TestCommit_SyncFails: everybody who waits is told, for good, and the file is not
// synced again (I8).
func TestCommit_SyncFails(t *testing.T) {
	mem := vfs.NewMem()
	faulty := vfs.NewFaulty(mem)
	c := mustOpen(t, faulty, Options{})
	mustCommit(t, c, put("a", "1"))
	errDisk, syncs := errors.New("disk on fire"), 0
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync || op.Kind == vfs.OpSync {
			if syncs++; syncs == 1 {
				return errDisk
			}
		}
		return nil
	})
	for range 3 {
		if _, err := c.Commit(put("a", "2")); !errors.Is(err, ErrFailed) || !errors.Is(err, errDisk) {
			t.Fatalf("got %v", err)
		}
	}
	if _, err := c.Update(func(View) ([]Op, error) { return nil, nil }); !errors.Is(err, ErrFailed) {
		t.Errorf("Update: %v", err)
	}
	if e, _ := c.Get("a"); string(e.Value) != "1" || c.Durable() != 1 || syncs != 1 {
		t.Errorf("a is %q, commit %d, %d syncs", e.Value, c.Durable(), syncs)
	}
	mustClose(t, c)
}

// TestCheckpoint_SyncFails: the next log, whose sync failed before it had its name, is not
// left for the next start, which would sync that file again (I8).
func TestCheckpoint_SyncFails(t *testing.T) {
	mem := vfs.NewMem()
	faulty := vfs.NewFaulty(mem)
	c := mustOpen(t, faulty, Options{LogBytes: minLogBytes})
	errDisk, begun, syncs := errors.New("disk on fire"), false, 0
	faulty.SetHook(func(op vfs.Op) error {
		switch {
		case path.Base(op.Name) != spareName: // which a log is called here even when it has its name
		case op.Kind == vfs.OpWrite:
			begun = begun || op.Off == 0
		case begun && (op.Kind == vfs.OpDatasync || op.Kind == vfs.OpSync):
			syncs++
			return errDisk
		}
		return nil
	})
	var err error
	for n := 0; err == nil && n < 10_000; n++ {
		_, err = c.Commit(put("a", strings.Repeat("x", 1000)))
	}
	if !errors.Is(err, ErrFailed) || !errors.Is(err, errDisk) {
		t.Fatal(err)
	}
	if _, err := mem.Stat(path.Join(testDir, spareName)); !errors.Is(err, vfs.ErrNotExist) || syncs != 1 {
		t.Errorf("spare: %v, %d syncs", err, syncs)
	}
	mustClose(t, c)
	mustClose(t, mustOpen(t, mem, Options{LogBytes: minLogBytes}))
}

func TestOpen_ReadOnlyChangesNothing(t *testing.T) {
	mem := vfs.NewMem()
	if _, err := Open(mem, testDir, testStore, Options{ReadOnly: true}); !errors.Is(err, vfs.ErrNotExist) {
		t.Errorf("read-only without a catalog: %v", err)
	}
	c := mustOpen(t, mem, Options{})
	mustCommit(t, c, put("a", "1"))
	mustClose(t, c)
	before := mem.Digest()
	c = mustOpen(t, mem, Options{ReadOnly: true})
	wantContent(t, c.View(), map[string]string{"a": "1:1"})
	if _, err := c.Commit(put("a", "2")); !errors.Is(err, ErrReadOnly) {
		t.Errorf("commit: %v", err)
	}
	if s := c.Stats(); c.Epoch() != 1 || s.Log != 1 || s.Records != 1 || s.DiskBytes != 2*defaultLogBytes {
		t.Errorf("epoch %d, %+v", c.Epoch(), s)
	}
	mustClose(t, c)
	if mem.Digest() != before {
		t.Error("a read-only catalog has changed files")
	}
}

func TestOptions_Refused(t *testing.T) {
	if _, err := Open(vfs.NewMem(), testDir, testStore, Options{LogBytes: 4096}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// diskBytes is what the catalog's files take.
func diskBytes(t *testing.T, fsys vfs.FS) (total int64) {
	t.Helper()
	names, err := fsys.ReadDir(testDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		info, err := fsys.Stat(testDir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size
	}
	return total
}

// TestCommit_FullDisk: on a disk with no byte left, commits and new logs go on for as
// long as the state fits; only what makes it grow further is refused.
func TestCommit_FullDisk(t *testing.T) {
	mem := vfs.NewMem()
	c := mustOpen(t, mem, Options{LogBytes: minLogBytes})
	mem.SetCapacity(diskBytes(t, mem))
	value := strings.Repeat("v", 1000)
	keys := 0
	for {
		_, err := c.Commit(put(fmt.Sprintf("k%03d", keys), value))
		if errors.Is(err, vfs.ErrNoSpace) && !errors.Is(err, ErrFailed) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		keys++
	}
	if keys < 40 || keys > 60 {
		t.Errorf("%d keys of 1000 bytes fit a log of %d", keys, minLogBytes)
	}
	check := func() {
		t.Helper()
		if c.View().Len() != keys {
			t.Fatalf("%d keys, want %d", c.View().Len(), keys)
		}
		for i := range 200 { // same size, and smaller
			mustCommit(t, c, put(fmt.Sprintf("k%03d", i%keys), value[:1000-i%2]))
		}
	}
	check()
	log := c.Stats().Log
	mustClose(t, c)
	c = mustOpen(t, mem, Options{LogBytes: minLogBytes})
	check()
	if c.Stats().Log < log+10 {
		t.Errorf("only %d logs for 200 commits", c.Stats().Log-log)
	}
	mem.Crash(nil, 1)
	c = mustOpen(t, mem, Options{LogBytes: minLogBytes})
	check()
	for i := range keys {
		mustCommit(t, c, Op{Key: fmt.Sprintf("k%03d", i), Expect: ExpectAny})
	}
	mustCommit(t, c, put("new", value))
	mem.SetCapacity(0)
	for i := range 3 * keys {
		mustCommit(t, c, put(fmt.Sprintf("k%03d", i), value))
	}
	mustClose(t, c)
	c = mustOpen(t, mem, Options{LogBytes: minLogBytes})
	if c.View().Len() != 3*keys+1 {
		t.Errorf("%d keys, want %d", c.View().Len(), 3*keys+1)
	}
}

// TestCommit_GrowOnFullDisk: whoever asks for more room than there is is refused
// alone; there are always two files that hold the state.
func TestCommit_GrowOnFullDisk(t *testing.T) {
	for spare := range int64(10) {
		mem := vfs.NewMem()
		c := mustOpen(t, mem, Options{LogBytes: minLogBytes})
		mem.SetCapacity(diskBytes(t, mem) + spare<<20)
		value := strings.Repeat("v", 4000)
		fitted, full := 0, false
		for i := 0; i < 600 && !full; i++ {
			_, err := c.Commit(put(fmt.Sprintf("k%03d", i), value))
			if full = errors.Is(err, vfs.ErrNoSpace); full {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			fitted++
		}
		for i := range 100 {
			mustCommit(t, c, put(fmt.Sprintf("k%03d", i%fitted), value))
		}
		if room := min(c.writer.size, c.writer.spare); checkpointBytes(c.Stats().StateBytes) > room {
			t.Fatalf("state of %d bytes, files hold %d", c.Stats().StateBytes, room)
		}
		mustClose(t, c)
		c = mustOpen(t, mem, Options{LogBytes: minLogBytes})
		if c.View().Len() != fitted {
			t.Fatalf("%d keys, want %d", c.View().Len(), fitted)
		}
		mustClose(t, c)
	}
}

func TestCatalog_FilesGrow(t *testing.T) {
	mem := vfs.NewMem()
	c := mustOpen(t, mem, Options{LogBytes: minLogBytes})
	value := strings.Repeat("v", 2000)
	for i := range 2000 {
		mustCommit(t, c, put(fmt.Sprintf("k%04d", i), value))
	}
	s := c.Stats()
	if need := checkpointBytes(s.StateBytes); s.LogBytes < need || s.DiskBytes > 16*need || s.Log > 20 {
		t.Errorf("state of %d bytes: %+v", s.StateBytes, s)
	}
	mustClose(t, c)
	c = mustOpen(t, mem, Options{LogBytes: minLogBytes})
	if c.View().Len() != 2000 {
		t.Error(c.View().Len())
	}
	log := c.Stats().Log
	for i := range 500 {
		mustCommit(t, c, put(fmt.Sprintf("k%04d", i), value))
	}
	if s := c.Stats(); s.Log > log+2 {
		t.Errorf("%d logs for 500 commits of a state of 2000", s.Log-log)
	}
}

func TestDump(t *testing.T) {
	mem := vfs.NewMem()
	c := mustOpen(t, mem, Options{LogBytes: minLogBytes})
	mustCommit(t, c, put("volume/1", `{"size":4096}`))
	mustClose(t, c)
	c = mustOpen(t, mem, Options{LogBytes: minLogBytes})
	mustCommit(t, c, put("bin", "\x00\xff"), Op{Key: "volume/1", Expect: 1})
	mustClose(t, c)
	var out strings.Builder
	if err := Dump(&out, mem, testDir+"/"+logName(2)); err != nil {
		t.Fatal(err)
	}
	want := `log 2  epoch 2  store aa0102030000000000000000000000bb  size 65536  checkpoint of commit 1  first record 3
      4096  record 3  checkpoint-part  commit 1  length 36  pages 1  synced 0
            put     "volume/1"  revision 1  {"size":4096}
     12288  record 4  checkpoint-end  commit 1  length 1  pages 0  synced 0
     16384  record 5  commit  commit 2  length 31  pages 1  synced 4
            put     "bin"  revision 2  "\x00\xff"
            delete  "volume/1"
     24576  end: next record 6, 40960 bytes left
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if err := Dump(io.Discard, mem, testDir+"/"+spareName); err != nil { // it has been log 1
		t.Error(err)
	}
	mem.Corrupt(testDir+"/"+logName(2), 5000, func(b []byte) { b[0] ^= 1 })
	if err := Dump(io.Discard, mem, testDir+"/"+logName(2)); !errors.Is(err, wal.ErrCorrupt) {
		t.Error(err)
	}
}

func BenchmarkOpen_100000(b *testing.B) {
	mem := vfs.NewMem()
	c := mustOpen(b, mem, Options{})
	value := []byte(`{"name":"pvc-0a1b2c3d","size":1073741824,"sector":512,"compression":"zstd","onFull":"wait","state":"used","root":{"chunk":"0123456789012345678901234567890123456789","slot":17},"position":{"epoch":3,"log":9,"seq":123456}}`)
	for i := 0; i < 100000; i += 1000 {
		ops := make([]Op, 1000)
		for j := range ops {
			ops[j] = Op{Key: fmt.Sprintf("volume/v-%032x", i+j), Value: value}
		}
		mustCommit(b, c, ops...)
	}
	mustClose(b, c)
	for _, readOnly := range []bool{true, false} {
		b.Run(fmt.Sprintf("readonly=%v", readOnly), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, err := Open(mem, testDir, testStore, Options{ReadOnly: readOnly})
				if err != nil || c.View().Len() != 100000 {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}

func BenchmarkCommit_Disk(b *testing.B) {
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			c, err := Open(vfs.NewOS(), b.TempDir()+"/catalog", testStore, Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			value := make([]byte, 300)
			var wg sync.WaitGroup
			for i := range callers {
				wg.Go(func() {
					for j := i; j < b.N; j += callers {
						if _, err := c.Commit(Op{Key: fmt.Sprintf("k%d", j%1000), Value: value, Expect: ExpectAny}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
