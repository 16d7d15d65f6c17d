//go:build linux

package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
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
		for _, errno := range []error{unix.EOPNOTSUPP, unix.ENOSYS} {
			if err := f.(*osFile).orWriteZeros(errno, r.off, r.n); err != nil {
				t.Fatal(err)
			}
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

// MkdirAll syncs the parent of each directory that it made, or that somebody else made at
// the same time, before it makes the next, and nothing else.
func TestMkdirAllSyncsParents(t *testing.T) {
	root := t.TempDir()
	a, b := root+"/a", root+"/a/b"
	var calls []string
	raced := b
	mkdir := func(dir string) error {
		calls = append(calls, "mkdir "+dir)
		err := os.Mkdir(dir, dirMode)
		if err == nil && dir == raced {
			err = fs.ErrExist
		}
		return err
	}
	syncDir := func(dir string) error {
		calls = append(calls, "sync "+dir)
		return nil
	}
	for range 2 { // the second time all is there
		if err := mkdirAll(b, mkdir, syncDir); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"mkdir " + a, "sync " + root, "mkdir " + b, "sync " + a}; !slices.Equal(calls, want) {
		t.Errorf("%q, want %q", calls, want)
	}
	if err := mkdirAll(root+"/c", mkdir, func(string) error { return unix.EIO }); !errors.Is(err, unix.EIO) {
		t.Errorf("a name that may not be durable: %v", err)
	}
}

// The kernel is really asked: these are files for which it refuses.
func TestCallsReachTheKernel(t *testing.T) {
	if err := NewOS().SyncDir("/proc"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("sync of a directory that has no sync: %v", err)
	}
	f, err := NewOS().Open("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for what, err := range map[string]error{"sync": f.Sync(), "datasync": f.Datasync()} {
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s of a file that has none: %v", what, err)
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, fileMode); err != nil {
		t.Fatal(err)
	}
	f, err = NewOS().Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for what, err := range map[string]error{"drop cache": f.DropCache(), "allocate": f.Allocate(0, 1)} {
		if !errors.Is(err, unix.ESPIPE) {
			t.Errorf("%s of a pipe: %v", what, err)
		}
	}
}

// readFile is a File of which only a part can be read, or with an error.
type readFile struct {
	File
	have int
	err  error
}

func (f readFile) Size() (int64, error)                  { return 10, nil }
func (f readFile) ReadAt(p []byte, _ int64) (int, error) { return min(f.have, len(p)), f.err }
func (f readFile) Name() string                          { return "a" }

// A file that ends before its size, or that cannot be read, is not taken for whole.
func TestReadAllIsWhole(t *testing.T) {
	for _, c := range []struct {
		have int
		err  error
		ok   bool
	}{
		{10, nil, true}, {10, io.EOF, true}, {9, io.EOF, false}, {10, unix.EIO, false}, {0, unix.EIO, false},
	} {
		if _, err := readAll(readFile{have: c.have, err: c.err}); (err == nil) != c.ok || !c.ok && !errors.Is(err, c.err) {
			t.Errorf("%d bytes of 10 and %v: %v", c.have, c.err, err)
		}
	}
}

// Every errno for a full disk is ErrNoSpace.
func TestNoSpaceErrnos(t *testing.T) {
	for _, errno := range []error{unix.ENOSPC, unix.EDQUOT} {
		if err := mapErr(&fs.PathError{Err: errno}); !errors.Is(err, ErrNoSpace) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
	if err := mapErr(unix.EIO); errors.Is(err, ErrNoSpace) || !errors.Is(err, unix.EIO) {
		t.Errorf("EIO becomes %v", err)
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
