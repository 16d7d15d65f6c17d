package blockstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
)

const testDir = "/store"

// smallOptions make a store whose files turn over quickly.
func smallOptions() Options {
	return Options{
		JournalBytes: 4 << 20, SegmentBytes: 256 << 10, FoldBytes: 1 << 20, UnsyncedBytes: 1 << 20,
		ChunkFileBytes: 512 << 10, CacheBytes: 2 << 20, NodeCache: 64, ListCache: 16, ReserveBytes: 1 << 20,
		Workers: 2, MaxLayers: 8, IdleAfter: 50 * time.Millisecond, IdleBytes: 1,
	}
}

// openStore opens a store that is let go of when the test ends, if not before, and then
// nothing of it may be left. One that was closed is not let go of once more: what Close
// leaves open is to be seen.
func openStore(t testing.TB, fsys vfs.FS, o Options) *Store {
	t.Helper()
	leaktest.Check(t)
	s, err := Open(fsys, testDir, o)
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(func() {
		s.mu.Lock()
		closed := s.mu.closed
		s.mu.Unlock()
		if !closed {
			s.abandon()
		}
	})
	return s
}

// runStore schedules the background work until stop is called or the test ends.
func runStore(t testing.TB, s *Store) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	stop = func() {
		cancel()
		within(t, 30*time.Second, "Run ends", func() { <-ended })
	}
	t.Cleanup(cancel)
	return stop
}

// within fails the test if f has not returned after d.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s: not within %v", what, d)
	}
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noise fills n bytes that no codec shrinks and that differ by seed.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

func newVolume(t testing.TB, s *Store, name string, size int64) *Volume {
	t.Helper()
	info := must(s.CreateVolume(VolumeSpec{Name: name, SizeBytes: size}))(t)
	return attach(t, s, info.ID)
}

func attach(t testing.TB, s *Store, id string) *Volume {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return must(s.OpenVolume(ctx, id))(t)
}

func writeAt(t testing.TB, v *Volume, p []byte, off int64) {
	t.Helper()
	if _, err := v.WriteAt(p, off); err != nil {
		t.Fatalf("write: %v", err)
	}
}

func readAll(t testing.TB, v *Volume) []byte {
	t.Helper()
	p := make([]byte, v.Size())
	if _, err := v.ReadAt(p, 0); err != nil {
		t.Fatalf("read: %v", err)
	}
	return p
}

func wantImage(t testing.TB, got, want []byte, what string) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d (block %d) is %#x, want %#x", what, i, i/BlockSize, got[i], want[i])
		}
	}
}

// foldAll folds every volume until nothing is left to fold.
func foldAll(t testing.TB, s *Store) {
	t.Helper()
	for i := 0; ; i++ {
		s.mu.Lock()
		var vols []*Volume
		for _, v := range s.mu.volumes {
			vols = append(vols, v)
		}
		s.mu.Unlock()
		any := false
		for _, v := range vols {
			did, err := s.foldOnce(v)
			if err != nil {
				t.Fatalf("fold: %v", err)
			}
			any = any || did
		}
		if !any {
			return
		}
		if i > 10000 {
			t.Fatal("folding does not end")
		}
	}
}

// problems runs a check that reads all data and returns what it found.
func problems(t testing.TB, s *Store) []Problem {
	t.Helper()
	var out []Problem
	err := s.Check(context.Background(), CheckOptions{ReadData: true}, func(p Problem) { out = append(out, p) })
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	return out
}

func wantClean(t testing.TB, s *Store) {
	t.Helper()
	for _, p := range problems(t, s) {
		t.Errorf("check: %v", p)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// filesBelow lists the paths of the files in a directory of the store whose names end
// so.
func filesBelow(t testing.TB, fsys vfs.FS, dir, suffix string) []string {
	t.Helper()
	var out []string
	full := path.Join(testDir, dir)
	for _, name := range must(fsys.ReadDir(full))(t) {
		if strings.HasSuffix(name, suffix) {
			out = append(out, path.Join(full, name))
		}
	}
	return out
}

// segmentsOf lists the journal segments whose header names the volume, in log order.
func segmentsOf(t testing.TB, fsys vfs.FS, id string) []string {
	t.Helper()
	type found struct {
		name string
		h    journal.Header
	}
	var out []found
	for _, name := range filesBelow(t, fsys, dirJournal, ".seg") {
		page := must(vfs.ReadFile(fsys, name))(t)[:4096]
		if h, err := journal.DecodeHeader(page); err == nil && h.Owner == rawID(id) {
			out = append(out, found{name, h})
		}
	}
	slices.SortFunc(out, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.h.Epoch, b.h.Epoch), cmp.Compare(a.h.Log, b.h.Log), cmp.Compare(a.h.Number, b.h.Number))
	})
	var names []string
	for _, f := range out {
		names = append(names, f.name)
	}
	return names
}
