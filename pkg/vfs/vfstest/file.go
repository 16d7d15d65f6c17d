package vfstest

import (
	"bytes"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

func testCreateAndOpen(t *testing.T, e env) {
	_, err := e.Open(e.in("a"))
	wantErr(t, "Open before Create", err, vfs.ErrNotExist)
	_, err = e.OpenReadOnly(e.in("a"))
	wantErr(t, "OpenReadOnly before Create", err, vfs.ErrNotExist)
	_, err = e.Create(e.in("none/a"))
	wantErr(t, "Create without directory", err, vfs.ErrNotExist)

	f := e.create(t, "a", "abc")
	equal(t, "Name", f.Name(), e.in("a"))
	_, err = e.Create(e.in("a"))
	wantErr(t, "second Create", err, vfs.ErrExist)
	if !strings.Contains(err.Error(), e.in("a")) {
		t.Errorf("error %q lacks the path", err)
	}
	_, err = e.Open(e.dir)
	wantSomeErr(t, "Open of a directory", err)
	_, err = e.OpenReadOnly(e.dir)
	wantSomeErr(t, "OpenReadOnly of a directory", err)

	g, err := e.Open(e.in("a"))
	must(t, err)
	_, err = g.WriteAt([]byte("X"), 1)
	must(t, err)
	wantRead(t, f, 0, []byte("aXc")) // one file, two handles
	must(t, g.Close())
	wantRead(t, f, 0, []byte("aXc"))
}

func testReadAt(t *testing.T, e env) {
	f := e.create(t, "a", "abcdef")
	tests := []struct {
		off  int64
		len  int
		want string
		err  error
	}{
		{0, 6, "abcdef", nil},
		{2, 3, "cde", nil},
		{4, 4, "ef", io.EOF},
		{6, 1, "", io.EOF},
		{100, 1, "", io.EOF},
		{0, 0, "", nil},
	}
	for _, tt := range tests {
		p := make([]byte, tt.len)
		n, err := f.ReadAt(p, tt.off)
		equal(t, "error", err, tt.err)
		equal(t, "bytes", string(p[:n]), tt.want)
	}
	_, err := f.ReadAt(make([]byte, 1), -1)
	wantSomeErr(t, "ReadAt -1", err)
}

func testWriteAt(t *testing.T, e env) {
	f := e.create(t, "a", "")
	e.wantSize(t, f, 0)
	// Writes across all kinds of boundaries against a plain slice.
	var want []byte
	for i, at := range []struct{ off, n int }{
		{0, 10}, {5, 600}, {510, 4}, {4090, 12}, {8192, 4096}, {4096, 4096}, {1, 20000},
		{12288, 1}, {140000, 9000}, {131072, 4096},
	} {
		p := bytes.Repeat([]byte{byte(i + 1)}, at.n)
		n, err := f.WriteAt(p, int64(at.off))
		must(t, err)
		equal(t, "bytes written", n, len(p))
		if end := at.off + at.n; end > len(want) {
			want = append(want, make([]byte, end-len(want))...)
		}
		copy(want[at.off:], p)
		e.wantSize(t, f, int64(len(want)))
		wantRead(t, f, 0, want)
	}
	must(t, f.Sync())
	must(t, f.Datasync())
	wantRead(t, f, 0, want)
	_, err := f.WriteAt(nil, 1<<20)
	must(t, err)
	e.wantSize(t, f, int64(len(want)))
	_, err = f.WriteAt([]byte("x"), -1)
	wantSomeErr(t, "WriteAt -1", err)
}

func testWriteVec(t *testing.T, e env) {
	f := e.create(t, "a", "....")
	n, err := f.WriteVec([][]byte{[]byte("ab"), nil, []byte("c"), {}}, 2)
	must(t, err)
	equal(t, "bytes written", n, 3)
	wantRead(t, f, 0, []byte("..abc"))
	n, err = f.WriteVec(nil, 100)
	must(t, err)
	equal(t, "bytes written", n, 0)
	e.wantSize(t, f, 5)

	// More buffers than one pwritev takes.
	var bufs [][]byte
	var want []byte
	for i := range 2500 {
		b := bytes.Repeat([]byte{byte(i)}, i%7)
		bufs, want = append(bufs, b), append(want, b...)
	}
	bufs[0] = []byte("start")
	first := bufs[0]
	want = append([]byte("start"), want...)
	n, err = f.WriteVec(bufs, 10)
	must(t, err)
	equal(t, "bytes written", n, len(want))
	wantRead(t, f, 10, want)
	if len(bufs) != 2500 || &bufs[0][0] != &first[0] || len(bufs[6]) != 6 {
		t.Error("WriteVec changed its argument")
	}
}

func testSparse(t *testing.T, e env) {
	f := e.create(t, "a", "")
	const off = 1 << 40
	_, err := f.WriteAt([]byte("end"), off)
	must(t, err)
	e.wantSize(t, f, off+3)
	wantRead(t, f, off/2, make([]byte, 10000))
	wantRead(t, f, off-5, []byte("\x00\x00\x00\x00\x00end"))
	info, err := e.Stat(e.in("a"))
	must(t, err)
	if info.Used > 1<<20 {
		t.Errorf("a hole of 1 TiB takes %d bytes", info.Used)
	}
}

func testTruncate(t *testing.T, e env) {
	f := e.create(t, "a", strings.Repeat("x", 10000))
	must(t, f.Truncate(4100))
	e.wantSize(t, f, 4100)
	must(t, f.Truncate(9000))
	e.wantSize(t, f, 9000)
	want := make([]byte, 9000)
	copy(want, strings.Repeat("x", 4100))
	wantRead(t, f, 0, want)

	must(t, f.Truncate(3))
	_, err := f.WriteAt([]byte("y"), 5)
	must(t, err)
	wantRead(t, f, 0, []byte("xxx\x00\x00y"))
	must(t, f.Truncate(0))
	e.wantSize(t, f, 0)
	must(t, f.Sync())
	info, err := e.Stat(e.in("a"))
	must(t, err)
	if info.Used >= 10000 {
		t.Errorf("an empty file takes %d bytes", info.Used)
	}
	wantSomeErr(t, "Truncate -1", f.Truncate(-1))
}

func testAllocate(t *testing.T, e env) {
	f := e.create(t, "a", "abc")
	must(t, f.Allocate(0, 100000))
	e.wantSize(t, f, 100000)
	want := make([]byte, 100000)
	copy(want, "abc")
	wantRead(t, f, 0, want)
	info, err := e.Stat(e.in("a"))
	must(t, err)
	if info.Used < 100000 {
		t.Errorf("Used is %d after Allocate of 100000", info.Used)
	}
	must(t, f.Allocate(0, 10)) // less than there is: nothing happens
	e.wantSize(t, f, 100000)
	must(t, f.Allocate(200000, 5000))
	e.wantSize(t, f, 205000)
	wantRead(t, f, 100000, make([]byte, 105000))
	wantRead(t, f, 0, want)
	wantSomeErr(t, "Allocate of nothing", f.Allocate(0, 0))
	wantSomeErr(t, "Allocate -1", f.Allocate(-1, 10))
}

func testReadOnly(t *testing.T, e env) {
	e.create(t, "a", "abc")
	f, err := e.OpenReadOnly(e.in("a"))
	must(t, err)
	defer func() { must(t, f.Close()) }()
	wantRead(t, f, 0, []byte("abc"))
	_, err = f.WriteAt([]byte("x"), 0)
	wantSomeErr(t, "WriteAt", err)
	_, err = f.WriteVec([][]byte{[]byte("x")}, 0)
	wantSomeErr(t, "WriteVec", err)
	wantSomeErr(t, "Truncate", f.Truncate(1))
	wantSomeErr(t, "Allocate", f.Allocate(0, 10))
	e.wantFile(t, "a", "abc")
}

func testClosed(t *testing.T, e env) {
	f := e.create(t, "a", "abc")
	must(t, f.Close())
	p := make([]byte, 1)
	_, err := f.ReadAt(p, 0)
	wantErr(t, "ReadAt", err, fs.ErrClosed)
	_, err = f.WriteAt(p, 0)
	wantErr(t, "WriteAt", err, fs.ErrClosed)
	_, err = f.WriteVec([][]byte{p}, 0)
	wantSomeErr(t, "WriteVec", err)
	wantErr(t, "Sync", f.Sync(), fs.ErrClosed)
	wantSomeErr(t, "Datasync", f.Datasync())
	wantErr(t, "Truncate", f.Truncate(0), fs.ErrClosed)
	wantSomeErr(t, "Allocate", f.Allocate(0, 1))
	_, err = f.Size()
	wantSomeErr(t, "Size", err)
	wantErr(t, "Close", f.Close(), fs.ErrClosed)
	e.wantFile(t, "a", "abc")
}

func testConcurrent(t *testing.T, e env) {
	f := e.create(t, "a", strings.Repeat("\x00", 8*5000))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(i + 1)}, 5000)
			for range 20 {
				if _, err := f.WriteAt(p, int64(i)*5000); err != nil {
					t.Error(err)
				}
				got := make([]byte, 5000)
				if _, err := f.ReadAt(got, int64(i)*5000); err != nil || !bytes.Equal(got, p) {
					t.Errorf("writer %d reads something else: %v", i, err)
				}
				if err := f.Datasync(); err != nil {
					t.Error(err)
				}
				if _, err := e.Stat(e.in("a")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
