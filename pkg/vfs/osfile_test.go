//go:build linux

package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
		if err := f.(*osFile).orWriteZeros(unix.EOPNOTSUPP, r.off, r.n); err != nil {
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

// A file that cannot be written fails where its zeros are written, too.
func TestWriteZerosFails(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a")
	if err := WriteFileAtomic(NewOS(), name, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	f, err := NewOS().OpenReadOnly(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.(*osFile).orWriteZeros(unix.EOPNOTSUPP, 0, 4096); !errors.Is(err, unix.EBADF) {
		t.Errorf("read-only: %v", err)
	}
	if err := f.(*osFile).orWriteZeros(unix.ENOSPC, 0, 4096); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("another error is not passed on: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"zeros": f.(*osFile).writeZeros(0, 4096), "sync": f.Datasync(), "allocate": f.Allocate(0, 1),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s of a closed file: %v", what, err)
		}
	}
}

// TestWriteAll: writes that are taken in parts are gone on with, and one that fails says
// how much was taken.
func TestWriteAll(t *testing.T) {
	bufs := [][]byte{[]byte("ab"), {}, []byte("cde"), []byte("f")}
	for limit := 1; limit <= 6; limit++ {
		var got []byte
		n, err := writeAll(bufs, func(rest [][]byte, done int) (int, error) {
			if done != len(got) {
				t.Fatalf("told %d of %d", done, len(got))
			}
			all := slices.Concat(rest...)
			took := min(limit, len(all))
			got = append(got, all[:took]...)
			return took, nil
		})
		if n != 6 || err != nil || string(got) != "abcdef" {
			t.Errorf("at most %d: %d, %v, %q", limit, n, err, got)
		}
	}
	n, err := writeAll(bufs, func(_ [][]byte, done int) (int, error) {
		if done >= 4 {
			return 0, unix.EIO
		}
		return 2, nil
	})
	if n != 4 || !errors.Is(err, unix.EIO) {
		t.Errorf("%d, %v", n, err)
	}
}

// A directory whose parent cannot be made is not made, and the error names the one that
// failed.
func TestMkdirAllFails(t *testing.T) {
	err := NewOS().MkdirAll("/proc/granary-test/a")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/proc/granary-test:") {
		t.Error(err)
	}
}
