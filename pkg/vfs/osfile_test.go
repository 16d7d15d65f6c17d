//go:build linux

package vfs

import (
	"bytes"
	"path/filepath"
	"testing"
)

// TestWriteZeros is Allocate where there is no fallocate: it extends the file and leaves
// what is there alone.
func TestWriteZeros(t *testing.T) {
	f, err := NewOS().Create(filepath.Join(t.TempDir(), "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt([]byte("abcdef"), 0); err != nil {
		t.Fatal(err)
	}
	const end = 3*zeroChunk/2 + 1
	want := append([]byte("abcdef"), make([]byte, end-6)...)
	for _, r := range []struct{ off, n int64 }{{1, 2}, {3, end - 3}, {0, end}} {
		if err := f.(*osFile).writeZeros(r.off, r.n); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, or others than expected", len(got))
	}
}
