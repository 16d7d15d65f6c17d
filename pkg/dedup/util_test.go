package dedup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
)

const testDir = "/store/chunks"

var testStore = [16]byte{1, 2, 3}

// block makes a block that only n decides; it compresses to about a half.
func block(n int) []byte {
	rng := rand.New(rand.NewPCG(uint64(n), 77))
	b := make([]byte, BlockSize)
	for i := 0; i < BlockSize/2; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	b[BlockSize-1] = 1
	return b
}

// noise makes a block that does not compress.
func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(uint64(n), 78))
	b := make([]byte, BlockSize)
	for i := 0; i < BlockSize; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
}

// open opens a store of small chunk files.
func open(t testing.TB, fsys vfs.FS, epoch uint32, change ...func(*Options)) *Store {
	t.Helper()
	leaktest.Check(t)
	dir, err := blob.NewDir(fsys, testDir, 8)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Store: testStore, Epoch: epoch, FileBytes: 64 << 10, CacheBytes: 1 << 20, ListCache: 16, Workers: 2}
	for _, f := range change {
		f(&o)
	}
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func noCache(o *Options) { o.CacheBytes = -1 }

// put stores blocks in one session and returns their addresses.
func put(t testing.TB, s *Store, ns ...int) []Slot {
	t.Helper()
	at, err := tryPut(s, ns...)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func tryPut(s *Store, ns ...int) ([]Slot, error) {
	w := s.NewWriter(CodecZstd, 3)
	defer w.Close()
	refs := make([]Ref, len(ns))
	for i, n := range ns {
		var err error
		if refs[i], err = w.Block(block(n), Slot{}); err != nil {
			return nil, err
		}
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	if err := w.Sync(); err != nil {
		return nil, err
	}
	out := make([]Slot, len(ns))
	for i, r := range refs {
		out[i] = w.Slot(r)
	}
	return out, nil
}

// seq is the numbers from lo to hi-1.
func seq(lo, hi int) []int {
	var out []int
	for i := lo; i < hi; i++ {
		out = append(out, i)
	}
	return out
}

// check reads every address one by one and compares.
func check(t testing.TB, s *Store, at []Slot, ns ...int) {
	t.Helper()
	for i, n := range ns {
		b, err := s.ReadNode(at[i])
		if err != nil {
			t.Fatalf("read block %d: %v", n, err)
		}
		if !bytes.Equal(b, block(n)) {
			t.Fatalf("block %d at %s has other bytes", n, at[i])
		}
	}
}

// verify checks every file and fails on problems.
func verify(t testing.TB, s *Store) {
	t.Helper()
	for _, f := range s.Files() {
		err := s.VerifyFile(f.Name, true, func(p Problem) { t.Errorf("verify: %s", p) })
		if err != nil && !errors.Is(err, vfs.ErrNotExist) {
			t.Fatalf("verify %s: %v", f.Name, err)
		}
	}
	if s.DamagedCount() > 0 {
		t.Errorf("damaged: %v", s.Damaged())
	}
}

func (s *Store) DamagedCount() int { return len(s.Damaged()) }

// invariants checks the index against itself.
func invariants(t testing.TB, s *Store) {
	t.Helper()
	s.mu.RLock()
	defer s.mu.RUnlock()
	copies := 0
	counted := totals{}
	for id, ch := range s.index {
		counted.slots += ch.present()
		counted.copies += len(ch.copies)
		if ch.id != id || s.chunks[ch.num] != ch || len(ch.copies) == 0 {
			t.Errorf("chunk %s: index entry", id)
		}
		copies += len(ch.copies)
		for _, c := range ch.copies {
			if s.files[c.file.num] != c.file || c.chunk != ch {
				t.Errorf("chunk %s: copy in a file that is gone", id)
			}
		}
	}
	for _, f := range s.files {
		counted.stored += f.size
		if f.private {
			continue
		}
		copies -= len(f.copies)
		for _, c := range f.copies {
			if c.end() > f.size {
				t.Errorf("%s: copy behind the end", f.blob.Name())
			}
		}
	}
	if counted != s.totals {
		t.Errorf("the totals are %+v, kept as %+v", counted, s.totals)
	}
	if len(s.chunks) != len(s.index) {
		t.Errorf("%d chunks by number, %d by ID", len(s.chunks), len(s.index))
	}
	if copies != 0 {
		t.Errorf("%d copies more in the index than in files", copies)
	}
}

func fileNames(s *Store) string {
	out := ""
	for _, f := range s.Files() {
		out += fmt.Sprintf("%s %d\n", f.Name, f.Size)
	}
	return out
}
