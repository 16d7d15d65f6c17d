// Package vfstest has the tests that every implementation of vfs.FS must pass. It
// knows nothing of how they are implemented, and nothing of crashes.
package vfstest

import (
	"bytes"
	"errors"
	"io"
	"path"
	"slices"
	"testing"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
)

// Run tests the FS that newFS returns, a new one for each test, in the directory dir,
// which must be empty and on a disk with a few MiB of space.
func Run(t *testing.T, newFS func(t *testing.T) (fsys vfs.FS, dir string)) {
	t.Helper()
	tests := []struct {
		name string
		test func(t *testing.T, e env)
	}{
		{"CreateAndOpen", testCreateAndOpen},
		{"ReadAt", testReadAt},
		{"WriteAt", testWriteAt},
		{"WriteVec", testWriteVec},
		{"Sparse", testSparse},
		{"Truncate", testTruncate},
		{"Allocate", testAllocate},
		{"ReadOnly", testReadOnly},
		{"Closed", testClosed},
		{"Remove", testRemove},
		{"RemoveOpen", testRemoveOpen},
		{"Rename", testRename},
		{"RenameDir", testRenameDir},
		{"MkdirAll", testMkdirAll},
		{"ReadDir", testReadDir},
		{"Stat", testStat},
		{"NotDir", testNotDir},
		{"SyncDir", testSyncDir},
		{"Lock", testLock},
		{"Space", testSpace},
		{"WriteFileAtomic", testWriteFileAtomic},
		{"Concurrent", testConcurrent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leaktest.Check(t)
			fsys, dir := newFS(t)
			tt.test(t, env{FS: fsys, dir: dir})
		})
	}
}

// env is the FS under test. Its helpers end the test if they fail.
type env struct {
	vfs.FS
	dir string
}

// in returns the path of a name.
func (e env) in(name string) string { return path.Join(e.dir, name) }

// create makes a file that the end of the test closes.
func (e env) create(t *testing.T, name string, data string) vfs.File {
	t.Helper()
	f, err := e.Create(e.in(name))
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	n, err := f.WriteAt([]byte(data), 0)
	must(t, err)
	equal(t, "bytes written", n, len(data))
	return f
}

// wantFile checks the content of a file.
func (e env) wantFile(t *testing.T, name, want string) {
	t.Helper()
	got, err := vfs.ReadFile(e, e.in(name))
	must(t, err)
	if string(got) != want {
		t.Fatalf("%s has %q, want %q", name, abbreviate(got), abbreviate([]byte(want)))
	}
}

func (e env) wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	got, err := e.ReadDir(dir)
	must(t, err)
	if !slices.Equal(got, want) {
		t.Fatalf("%s has %q, want %q", dir, got, want)
	}
}

func abbreviate(b []byte) []byte { return b[:min(len(b), 80)] }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error is %v, want %v", what, err, want)
	}
}

func wantSomeErr(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: no error", what)
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// wantSize checks both ways to ask for a size.
func (e env) wantSize(t *testing.T, f vfs.File, want int64) {
	t.Helper()
	size, err := f.Size()
	must(t, err)
	equal(t, "Size", size, want)
	info, err := e.Stat(f.Name())
	must(t, err)
	equal(t, "Stat.Size", info.Size, want)
}

// wantRead checks the n bytes at off.
func wantRead(t *testing.T, f vfs.File, off int64, want []byte) {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, len(want))
	n, err := f.ReadAt(got, off)
	if err != nil && !(n == len(want) && errors.Is(err, io.EOF)) {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("at %d: got %q, want %q", off, abbreviate(got), abbreviate(want))
	}
}
