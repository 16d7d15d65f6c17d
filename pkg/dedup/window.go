package dedup

import (
	"errors"
	"io"
)

// windowBytes is how much of a file a window keeps.
const windowBytes = 256 << 10

// window reads a file more or less forward and keeps the piece that it read last. So a
// search that looks at the same bytes again and again, because somebody wrote there what
// looks like thousands of chunks, reads each from the disk about once. It is for one
// goroutine.
type window struct {
	r    io.ReaderAt
	size int64  // of the file
	all  []byte // what buf is a part of
	buf  []byte // the file's bytes from at on
	at   int64
}

func newWindow(r io.ReaderAt, size int64) *window {
	return &window{r: r, size: size, all: make([]byte, min(windowBytes, max(0, size)))}
}

// from is the file from off on, as much as the window has but at least n bytes, if n is
// not more than windowBytes and the file goes on that far. What it returns is valid until
// the next call. An error is of reading those n bytes.
func (w *window) from(off int64, n int) ([]byte, error) {
	if off >= w.at && off+int64(n) <= w.at+int64(len(w.buf)) {
		return w.buf[off-w.at:], nil
	}
	got, err := w.r.ReadAt(w.all[:max(0, min(int64(len(w.all)), w.size-off))], off)
	if got < n && err != nil && !errors.Is(err, io.EOF) { // perhaps for what nobody asked for
		got, err = w.r.ReadAt(w.all[:min(n, len(w.all))], off)
	}
	w.at, w.buf = off, w.all[:got]
	if got >= n || errors.Is(err, io.EOF) {
		err = nil
	}
	return w.buf, err
}

// ReadAt implements io.ReaderAt. Long reads go past the window.
func (w *window) ReadAt(p []byte, off int64) (int, error) {
	if len(p) > windowBytes/4 {
		return w.r.ReadAt(p, off)
	}
	b, err := w.from(off, len(p))
	n := copy(p, b)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
