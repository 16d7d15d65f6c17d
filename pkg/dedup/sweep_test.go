package dedup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
)

// sweepBase is a store as a killed process leaves it: sealed files, one that collection
// would rewrite, one with map nodes, and an open file.
type sweepBase struct {
	mem   *vfs.Mem
	at    []Slot
	nodes []Slot
}

func newSweepBase(t *testing.T) *sweepBase {
	t.Helper()
	b := &sweepBase{mem: vfs.NewMem()}
	s := open(t, b.mem, 1)
	for i := range 6 {
		b.at = append(b.at, put(t, s, seq(30*i, 30*i+30)...)...)
	}
	w := s.NewWriter(CodecS2, 3)
	for i := range 10 {
		chunk, slot, err := w.AddNode(block(900 + i))
		if err != nil || chunk != 0 {
			t.Fatal(chunk, err)
		}
		b.nodes = append(b.nodes, Slot{Slot: slot})
	}
	if err := errors.Join(w.FinishNodes(), w.Sync()); err != nil {
		t.Fatal(err)
	}
	for i := range b.nodes {
		b.nodes[i].Chunk = w.ChunkID(0)
	}
	w.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, b.mem, 2)
	b.at = append(b.at, put(t, s, seq(180, 190)...)...)
	b.mem.Kill() // its file stays open
	return b
}

// sweepOpen opens a store that keeps next to nothing in memory and at most one
// descriptor.
func sweepOpen(fsys vfs.FS, readOnly bool) (*Store, error) {
	dir := blob.ExistingDir(fsys, testDir, 1)
	return Open(dir, Options{Store: testStore, Epoch: 3, FileBytes: 64 << 10, CacheBytes: -1, ListCache: 1, Workers: 1, ReadOnly: readOnly})
}

// sweepOps are the operations of a store, each of which goes on after errors as its users
// do and returns the first.
var sweepOps = []struct {
	name string
	do   func(b *sweepBase, s *Store) error
}{
	{"open", func(*sweepBase, *Store) error { return nil }},
	{"read", (*sweepBase).read},
	{"fingerprint", func(b *sweepBase, s *Store) (err error) {
		for i, at := range b.at {
			fp, e := s.Fingerprint(at)
			if e == nil && fp != FingerprintOf(block(i)) {
				return fmt.Errorf("another fingerprint at %s", at)
			}
			err = errors.Join(err, e)
		}
		return err
	}},
	{"write", func(b *sweepBase, s *Store) error {
		_, err := tryPut(s, seq(150, 250)...)
		return err
	}},
	{"write nodes", func(b *sweepBase, s *Store) (err error) {
		w := s.NewWriter(CodecZstd, 3)
		defer w.Close()
		for i := 0; i < 40 && err == nil; i++ {
			_, _, err = w.AddNode(block(2000 + i))
		}
		err = errors.Join(err, w.FinishNodes())
		if err == nil {
			return w.Sync()
		}
		if e := w.FinishNodes(); e == nil {
			return errors.New("a session goes on after an error")
		}
		return err
	}},
	{"verify", func(b *sweepBase, s *Store) (err error) {
		for _, f := range s.Files() {
			err = errors.Join(err, s.VerifyFile(f.Name, true, func(p Problem) { err = errors.Join(err, corrupt("%s", p.Text)) }))
		}
		return err
	}},
	{"collect", func(b *sweepBase, s *Store) error {
		if err := s.SealOpen(); err != nil {
			return err
		}
		c := s.Plan(liveOf(b.live()), s.Horizon(), PlanOptions{MinLive: 1})
		c.Condemn()
		c.Recheck(liveOf(b.live()))
		for {
			if more, err := c.Step(); err != nil || !more {
				if err != nil {
					c.Abort()
				}
				return err
			}
		}
	}},
	{"close", func(b *sweepBase, s *Store) error {
		_, err := tryPut(s, seq(500, 510)...)
		return errors.Join(err, s.Close())
	}},
}

// live is what the collection keeps: every second block.
func (b *sweepBase) live() (live []Slot) {
	for i, at := range b.at {
		if i%2 == 0 {
			live = append(live, at)
		}
	}
	return append(live, b.nodes...)
}

// read reads all that is live: the right bytes, or an error.
func (b *sweepBase) read(s *Store) (err error) {
	dst := make([]byte, 10*BlockSize)
	for i := 0; i < len(b.at); i += 10 {
		e := s.ReadSlots(b.at[i].Chunk, b.at[i].Slot, 10, dst)
		for k := 0; k < 10 && e == nil; k++ {
			if !bytes.Equal(dst[k*BlockSize:][:BlockSize], block(i+k)) {
				return fmt.Errorf("other bytes at %s", b.at[i+k])
			}
		}
		err = errors.Join(err, e)
	}
	for i, at := range b.nodes {
		p, e := s.ReadNode(at)
		if e == nil && !bytes.Equal(p, block(900+i)) {
			return fmt.Errorf("other bytes in node %s", at)
		}
		err = errors.Join(err, e)
	}
	return err
}

// Every operation of a store meets an error at each of its file operations, once and from
// there on: it answers an error that names it, or is right. What is live is there
// afterwards (I5, I6).
func TestEveryOperationFails(t *testing.T) {
	base := newSweepBase(t)
	for _, op := range sweepOps {
		for fault, step := range map[error]int64{syscall.EIO: 1, ErrNoSpace: 5, vfs.ErrNotExist: 5} {
			for _, persistent := range []bool{false, true} {
				for n := int64(0); ; n += step {
					if !base.fail(t, op.name, op.do, n, fault, persistent) {
						break
					}
				}
			}
		}
	}
}

// fail does an operation whose n-th file operation fails; false if it has not so many.
func (b *sweepBase) fail(t *testing.T, name string, do func(*sweepBase, *Store) error, n int64, fault error, persistent bool) bool {
	t.Helper()
	injected := fmt.Errorf("injected: %w", fault)
	mem := b.mem.Clone()
	faulty := vfs.NewFaulty(mem)
	if name == "open" {
		faulty.FailNth(n, injected, persistent)
	}
	from := faulty.Count()
	s, err := sweepOpen(faulty, false)
	if err == nil {
		if name != "open" {
			from = faulty.Count()
			faulty.FailNth(n, injected, persistent)
		}
		err = do(b, s)
	}
	met := faulty.Count()-from > n
	what := fmt.Sprintf("%s, file operation %d, %v, persistent %v", name, n, fault, persistent)
	switch {
	case err != nil && !met:
		t.Fatalf("%s: without an error: %v", what, err)
	case err != nil && !errors.Is(err, fault) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrMissing) && !errors.Is(err, errAbandoned):
		t.Errorf("%s: became another one: %v", what, err)
	}
	faulty.SetHook(nil)
	mem.Crash(rand.New(rand.NewPCG(uint64(n), 3)), 1)
	s, err = sweepOpen(mem, false)
	if err != nil {
		t.Fatalf("%s: the start after: %v", what, err)
	}
	for i := 0; i < len(b.at); i += 2 {
		if p, err := s.ReadNode(b.at[i]); err != nil || !bytes.Equal(p, block(i)) {
			t.Fatalf("%s: block %d afterwards: %v", what, i, err)
		}
	}
	return met && !t.Failed()
}

// What is handed to a session in the wrong size is refused, and the session ends.
func TestWriter_RefusesSizes(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	w := s.NewWriter(CodecZstd, 3)
	defer w.Close()
	_, err := w.Block(make([]byte, 5), Slot{})
	wantError(t, "a block", err, nil, "block of 5 bytes")
	wantError(t, "the session after it", w.Flush(), nil, "block of 5 bytes")
	wantError(t, "the session after it", w.FinishNodes(), nil, "block of 5 bytes")
	_, _, err = w.AddNode(block(1))
	wantError(t, "the session after it", err, nil, "block of 5 bytes")
	w2 := s.NewWriter(CodecZstd, 3)
	defer w2.Close()
	_, _, err = w2.AddNode(make([]byte, 6))
	wantError(t, "a node", err, nil, "map node of 6 bytes")
	if _, err := s.Fingerprint(Slot{ChunkID{1}, 0}); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
}

// A dump of a file of which some bytes cannot be read is that error, or prints it where
// they would be, unless it reads them again.
func TestDump_EveryFault(t *testing.T) {
	base := newSweepBase(t)
	names, err := base.mem.ReadDir(testDir)
	if err != nil || len(names) < 3 {
		t.Fatal(names, err)
	}
	dump := func(w io.Writer, fsys vfs.FS, name string) error {
		return Dump(w, fsys, testDir+"/"+name, func(io.Writer, []byte) error { return errors.New("no node") })
	}
	for _, name := range names {
		var whole bytes.Buffer
		if err := dump(&whole, base.mem, name); err != nil {
			t.Fatal(err)
		}
		told := 0
		for n := 0; ; n++ {
			faulty := vfs.NewFaulty(base.mem)
			asked, kind := 0, vfs.OpKind(0)
			faulty.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpClose { // nothing was written
					return nil
				}
				if asked++; asked != n+1 {
					return nil
				}
				kind = op.Kind
				return syscall.EIO
			})
			var out bytes.Buffer
			err := dump(&out, faulty, name)
			if asked <= n {
				if err != nil || told < 5 {
					t.Errorf("%s: %v, with %d of %d errors told", name, err, told, n)
				}
				break
			}
			if errors.Is(err, syscall.EIO) || strings.Contains(out.String(), syscall.EIO.Error()) {
				told++
			} else if err != nil || out.String() != whole.String() {
				t.Errorf("%s, file operation %d (%v): %v, and it prints:\n%s", name, n, kind, err, out.String())
			}
		}
	}
}
