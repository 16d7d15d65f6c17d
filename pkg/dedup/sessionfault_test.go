package dedup

import (
	"errors"
	"path"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// failOnce fails the next write of a chunk; what is tried after it would succeed.
func failOnce(faulty *vfs.Faulty, with error) {
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpWrite || op.Off == 0 {
			return nil
		}
		faulty.SetHook(nil)
		return with
	})
}

// ended wants a session of which every call fails with the error that ended it.
func ended(t *testing.T, what string, w *Writer, with error) {
	t.Helper()
	for call, do := range map[string]func() error{
		"Block":       func() error { _, err := w.Block(block(1), Slot{}); return err },
		"AddNode":     func() error { _, _, err := w.AddNode(block(1)); return err },
		"FinishNodes": w.FinishNodes, "Flush": w.Flush, "Sync": w.Sync,
	} {
		if err := do(); !errors.Is(err, with) {
			t.Errorf("%s: the session goes on with %s: %v", what, call, err)
		}
	}
}

// A session whose chunk cannot be appended ends, whichever call closes the chunk; nothing
// of it is indexed, and the next session stores all.
func TestSessionEndsWhereItsChunkFails(t *testing.T) {
	for _, c := range []struct {
		what   string
		blocks int // given before the call that fails
		do     func(w *Writer, n int) error
	}{
		{"Block, which fills the second chunk", 2*MaxSlots - 1, func(w *Writer, n int) error { _, err := w.Block(block(n), Slot{}); return err }},
		{"Flush, with a chunk before the last", MaxSlots + 5, func(w *Writer, _ int) error { return w.Flush() }},
		{"Flush, with one chunk", 5, func(w *Writer, _ int) error { return w.Flush() }},
	} {
		for _, fault := range []error{errBroken, vfs.ErrNoSpace} {
			mem := vfs.NewMem()
			faulty := vfs.NewFaulty(mem)
			s := open(t, faulty, 1, func(o *Options) { o.FileBytes = 1 << 20 })
			at := put(t, s, 5000)
			size := s.Files()[0].Size
			failOnce(faulty, fault)
			w := s.NewWriter(CodecZstd, 3)
			for n := range c.blocks {
				if _, err := w.Block(block(n), Slot{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.do(w, c.blocks); !errors.Is(err, fault) {
				t.Errorf("%s: %v", c.what, err)
			}
			ended(t, c.what, w, fault)
			w.Close()
			if st := s.Stats(); st.Chunks != 1 || s.Files()[0].Size != size {
				t.Errorf("%s: %+v", c.what, st)
			}
			invariants(t, s)
			at = append(at, put(t, s, seq(0, 20)...)...)
			check(t, s, at, append([]int{5000}, seq(0, 20)...)...)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			afterDeath(t, mem, at, append([]int{5000}, seq(0, 20)...)...)
		}
	}
}

// What could not be read back is not written: a group that its codec made wrong, or that
// memory lost, ends the session.
func TestSessionEndsWhereItsChunkIsWrong(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1, func(o *Options) { o.FileBytes = 1 << 20 })
	at := put(t, s, seq(0, 8)...)
	before := fileNames(s)
	for what, spoil := range map[string]func(g *storedGroup){
		"a part of it is missing":     func(g *storedGroup) { *g = storedGroup{codec: CodecRaw, data: make([]byte, 9)} },
		"it is longer than its slots": func(g *storedGroup) { g.codec, g.data = CodecZstd, make([]byte, 9*BlockSize) },
		"it is of no codec":           func(g *storedGroup) { g.codec = 7 },
		"nothing is left of it":       func(g *storedGroup) { g.data = nil },
	} {
		w := s.NewWriter(CodecZstd, 3)
		for n := range 8 {
			if _, err := w.Block(block(100+n), Slot{}); err != nil {
				t.Fatal(err)
			}
		}
		w.data.wait()
		spoil(&w.data.groups[0].out)
		err := w.Flush()
		wantError(t, what, err, ErrCorrupt, "encode chunk "+w.ids[0].String())
		ended(t, what, w, ErrCorrupt)
		w.Close()
		if after := fileNames(s); after != before {
			t.Errorf("%s: %s, was %s", what, after, before)
		}
	}
	invariants(t, s)
	at = append(at, put(t, s, seq(100, 108)...)...)
	check(t, s, at, append(seq(0, 8), seq(100, 108)...)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	afterDeath(t, mem, at, append(seq(0, 8), seq(100, 108)...)...)
}

// rotten is a store with n blocks in one sealed file, every group of which is damaged, and
// known to be.
func rotten(t *testing.T, n int) (mem *vfs.Mem, faulty *vfs.Faulty, s *Store, at []Slot) {
	t.Helper()
	mem = vfs.NewMem()
	s = open(t, mem, 1, func(o *Options) { o.FileBytes = 1 << 20 })
	at = put(t, s, seq(0, n)...)
	c := s.index[at[0].Chunk].copies[0]
	f, err := s.front(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name := s.Files()[0].Name
	mem.Corrupt(path.Join(testDir, name), int64(c.off)+f.payloadAt(), func(b []byte) {
		for _, g := range f.groups {
			b[g.off+3] ^= 1
		}
	})
	faulty = vfs.NewFaulty(mem)
	s = open(t, faulty, 2, func(o *Options) { o.FileBytes = 1 << 20 })
	if err := s.VerifyFile(name, true, func(Problem) {}); err != nil {
		t.Fatal(err)
	}
	if d := s.DamagedCount(); d != n {
		t.Fatalf("%d of %d slots are known damage", d, n)
	}
	return mem, faulty, s, at
}

// A healing copy that cannot be appended ends the session, whichever call stores it: the
// slots stay known damage, and are healed by the next session.
func TestHealingFails(t *testing.T) {
	const n = 2 * maxHeals
	for _, c := range []struct {
		what string
		do   func(w *Writer) error
	}{
		{"Block", func(w *Writer) (err error) {
			for i := 0; i < n && err == nil; i++ {
				_, err = w.Block(block(i), Slot{})
			}
			return err
		}},
		{"AddNode", func(w *Writer) (err error) {
			for i := 0; i < n && err == nil; i++ {
				_, _, err = w.AddNode(block(i))
			}
			return err
		}},
		{"FinishNodes", func(w *Writer) error {
			_, err := w.Block(block(3), Slot{})
			return errors.Join(err, w.FinishNodes())
		}},
		{"Flush", func(w *Writer) error {
			_, err := w.Block(block(3), Slot{})
			return errors.Join(err, w.Flush())
		}},
	} {
		for _, fault := range []error{errBroken, vfs.ErrNoSpace} {
			mem, faulty, s, at := rotten(t, n)
			failOnce(faulty, fault)
			w := s.NewWriter(CodecZstd, 3)
			if err := c.do(w); !errors.Is(err, fault) {
				t.Errorf("%s: %v", c.what, err)
			}
			ended(t, c.what, w, fault)
			if h := w.Healed(); len(h) != 0 {
				t.Errorf("%s: %d slots are healed by what was not stored", c.what, len(h))
			}
			w.Close()
			if d := s.DamagedCount(); d != n {
				t.Errorf("%s: %d slots of %d are known damage", c.what, d, n)
			}
			var de *DamageError
			if _, err := s.ReadNode(at[3]); !errors.As(err, &de) {
				t.Errorf("%s: a damaged slot reads: %v", c.what, err)
			}
			invariants(t, s)
			put(t, s, seq(0, n)...)
			check(t, s, at, seq(0, n)...)
			if d := s.DamagedCount(); d != 0 {
				t.Errorf("%s: %d slots are not healed", c.what, d)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			mem.Crash(nil, 0)
			check(t, open(t, mem, 3), at, seq(0, n)...)
		}
	}
}

// FinishNodes without a node stores what heals.
func TestFinishNodesHeals(t *testing.T) {
	mem, _, s, at := rotten(t, 16)
	w := s.NewWriter(CodecZstd, 3)
	for i := range 16 {
		if _, err := w.Block(block(i), Slot{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.FinishNodes(), w.Sync()); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Healed()); n != 16 || w.Current() != 0 {
		t.Errorf("%d slots healed, %d chunks of nodes", n, w.Current())
	}
	w.Close()
	check(t, s, at, seq(0, 16)...)
	mem.Crash(nil, 0)
	check(t, open(t, mem, 3), at, seq(0, 16)...)
}

// A healing copy that could not be read back is not written.
func TestHealingIsWrong(t *testing.T) {
	_, _, s, at := rotten(t, 16)
	ch := s.chunkOf(at[0].Chunk)
	c := ch.copies[0]
	before := fileNames(s)
	c.shift = maxShift + 1 // memory lost a bit
	w := s.NewWriter(CodecZstd, 3)
	defer w.Close()
	if _, err := w.Block(block(3), Slot{}); err != nil {
		t.Fatal(err)
	}
	err := w.FinishNodes()
	wantError(t, "a copy in groups that there are not", err, ErrCorrupt, "heal chunk "+ch.id.String())
	ended(t, "after it", w, ErrCorrupt)
	if after := fileNames(s); after != before {
		t.Errorf("%s, was %s", after, before)
	}
	c.shift = 3
	put(t, s, seq(0, 16)...)
	check(t, s, at, seq(0, 16)...)
}
