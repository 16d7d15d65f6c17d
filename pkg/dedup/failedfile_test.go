package dedup

import (
	"errors"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

// I8: a chunk file whose append, sync or seal failed is written and synced no more, but for
// being cut to what was durable; what was there stays readable.
func TestFailedFileIsLeftAlone(t *testing.T) {
	broken := errors.New("input/output error")
	for _, kind := range []vfs.OpKind{vfs.OpWrite, vfs.OpDatasync, vfs.OpSync} {
		t.Run(kind.String(), func(t *testing.T) {
			mem := vfs.NewMem()
			faulty := vfs.NewFaulty(mem)
			s := open(t, faulty, 1)
			at := put(t, s, seq(0, 10)...)
			failed, durable := "", s.Files()[0].Size
			faulty.SetHook(func(op vfs.Op) error {
				switch {
				case failed == "" && op.Kind == kind:
					failed = op.Name
					return vfs.ShortWrite{N: 5000, Err: broken}
				case op.Name == failed && (op.Kind == vfs.OpWrite || op.Kind == vfs.OpDatasync || op.Kind == vfs.OpSync):
					t.Errorf("%v of a file whose %v failed", op.Kind, kind)
				case op.Name == failed && op.Kind == vfs.OpTruncate:
					if st, err := mem.Stat(failed); err != nil || op.Off >= st.Size {
						t.Errorf("cut to %d bytes of %d, %v", op.Off, st.Size, err)
					}
				}
				return nil
			})
			if kind == vfs.OpSync { // of a footer
				if err := s.SealOpen(); !errors.Is(err, broken) {
					t.Fatal(err)
				}
			} else if _, err := tryPut(s, seq(10, 20)...); !errors.Is(err, broken) {
				t.Fatal(err)
			}
			if st, err := mem.Stat(failed); err != nil || st.Size != durable {
				t.Errorf("%d bytes are left of a file that was durable up to %d: %v", st.Size, durable, err)
			}
			at = append(at, put(t, s, seq(10, 20)...)...)
			if err := errors.Join(s.SealOpen(), s.Close()); err != nil {
				t.Fatal(err)
			}
			faulty.SetHook(nil)
			invariants(t, s)
			if failed == "" || len(s.Files()) != 2 {
				t.Fatal(failed, fileNames(s))
			}
			mem.Crash(nil, 0)
			s = open(t, mem, 2)
			check(t, s, at, seq(0, 20)...)
			verify(t, s)
		})
	}
}

// An append that a full disk cuts short leaves nothing behind that a footer would not
// cover; and a file that could not even be begun is not there.
func TestShortAppendIsTakenBack(t *testing.T) {
	mem := vfs.NewMem()
	faulty := vfs.NewFaulty(mem)
	s := open(t, faulty, 1)
	failNext := func() {
		faulty.SetHook(func(op vfs.Op) error {
			if op.Kind != vfs.OpWrite {
				return nil
			}
			faulty.SetHook(nil)
			return vfs.ShortWrite{N: int(op.Len) - 1, Err: vfs.ErrNoSpace}
		})
	}
	failNext()
	if _, err := tryPut(s, 1); !errors.Is(err, vfs.ErrNoSpace) {
		t.Fatal(err)
	}
	if names, err := mem.ReadDir(testDir); err != nil || len(names) != 0 {
		t.Errorf("a file that could not be begun: %v, %v", names, err)
	}
	at := put(t, s, seq(0, 10)...)
	failNext()
	if _, err := tryPut(s, seq(100, 140)...); !errors.Is(err, vfs.ErrNoSpace) {
		t.Fatal(err)
	}
	name := path.Join(testDir, s.Files()[0].Name)
	if st, err := mem.Stat(name); err != nil || st.Size != s.Files()[0].Size {
		t.Errorf("%s has %d bytes, %d are of whole chunks: %v", name, st.Size, s.Files()[0].Size, err)
	}
	failNext() // of the footer
	if err := s.SealOpen(); !errors.Is(err, vfs.ErrNoSpace) {
		t.Fatal(err)
	}
	at = append(at, put(t, s, 10)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, mem, 2, func(o *Options) { o.ReadOnly = true })
	if p := s.Problems(); len(p) > 0 {
		t.Error(p)
	}
	for _, f := range s.Files() {
		if !strings.HasSuffix(f.Name, ".chunks") {
			t.Errorf("%s is not sealed", f.Name)
		}
	}
	check(t, s, at, seq(0, 11)...)
	verify(t, s)
}

// A file that is full is sealed, so that collection can pick it, and the next is begun.
func TestFullFileIsSealed(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	for i := range 8 {
		put(t, s, seq(i*10, i*10+10)...)
	}
	files := s.Files()
	if len(files) < 2 {
		t.Fatal(fileNames(s))
	}
	for i, f := range files {
		if full := f.Size >= 64<<10; full != f.Sealed || !full && i < len(files)-1 {
			t.Errorf("file %d: %+v", i, f)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tryPut(s, 1000); !errors.Is(err, ErrClosed) {
		t.Errorf("append after Close: %v", err)
	}
}

// Who needs a file durable while another is syncing it waits for that sync, and fails with
// it: a second one would succeed after a first that failed, and nothing be on the disk (I8).
func TestSyncWaitsForAnother(t *testing.T) {
	faulty := vfs.NewFaulty(vfs.NewMem())
	s := open(t, faulty, 1)
	var writers []*Writer
	for i := range 2 {
		w := s.NewWriter(CodecZstd, 3)
		defer w.Close()
		if _, err := w.Block(block(i), Slot{}); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		writers = append(writers, w)
	}
	broken := errors.New("input/output error")
	entered, goOn := make(chan struct{}), make(chan struct{})
	var syncs atomic.Int32
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpDatasync || syncs.Add(1) > 1 {
			return nil
		}
		close(entered)
		<-goOn
		return broken
	})
	ended := make(chan error, 2)
	go func() { ended <- writers[0].Sync() }()
	<-entered
	go func() { ended <- writers[1].Sync() }()
	select {
	case err := <-ended:
		t.Errorf("synced beside another sync: %v", err)
		ended <- broken
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("a sync of a file whose sync failed")
		}
	}
	if n := syncs.Load(); n != 1 {
		t.Errorf("%d syncs", n)
	}
}

// One collection at a time, and only of what was there before its marking began.
func TestPlanPicks(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	put(t, s, seq(0, 10)...)
	if err := s.SealOpen(); err != nil {
		t.Fatal(err)
	}
	h := s.Horizon()
	put(t, s, seq(10, 20)...)
	if err := s.SealOpen(); err != nil {
		t.Fatal(err)
	}
	first := s.Plan(LiveSet{}, h, PlanOptions{})
	if n := first.Files(); n != 1 {
		t.Errorf("%d files, one is older than the horizon", n)
	}
	if n := s.Plan(LiveSet{}, s.Horizon(), PlanOptions{}).Files(); n != 0 {
		t.Errorf("a second collection beside the first has %d files", n)
	}
	first.Abort()
	second := s.Plan(LiveSet{}, s.Horizon(), PlanOptions{})
	if n := second.Files(); n != 2 {
		t.Errorf("%d files of two", n)
	}
	second.Abort()
}

// A file that cannot be sealed keeps no other from it, and one that waits for space is
// tried again.
func TestSealLeftTriesEveryFile(t *testing.T) {
	broken := errors.New("input/output error")
	faulty := vfs.NewFaulty(vfs.NewMem())
	s := open(t, faulty, 1)
	var fail map[string]error // by name; else a full disk
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && op.Off >= 64<<10 { // a footer
			if err, ok := fail[path.Base(op.Name)]; ok || fail != nil {
				return err
			}
			return vfs.ErrNoSpace
		}
		return nil
	})
	var at []Slot
	for i := 0; i < 120; i += 40 { // each fills a file
		at = append(at, put(t, s, seq(i, i+40)...)...)
	}
	var open []string
	for _, f := range s.Files() {
		if !f.Sealed && f.Size >= 64<<10 {
			open = append(open, f.Name)
		}
	}
	if len(open) < 3 {
		t.Fatalf("%d files wait for space", len(open))
	}
	fail = map[string]error{open[0]: broken, open[1]: vfs.ErrNoSpace}
	if err := s.SealLeft(); !errors.Is(err, broken) || errors.Is(err, ErrNoSpace) { // that would be passed over
		t.Errorf("%v", err)
	}
	fail = map[string]error{}
	if err := s.SealLeft(); err != nil {
		t.Error(err)
	}
	for _, f := range s.Files() {
		if want := f.Size >= 64<<10 && f.Name != open[0]; f.Sealed != want {
			t.Errorf("%s: sealed %v", f.Name, f.Sealed)
		}
	}
	check(t, s, at, seq(0, 120)...)
	faulty.SetHook(nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
