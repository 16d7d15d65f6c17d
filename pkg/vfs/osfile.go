//go:build linux

package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// maxIOV is the kernel's limit of buffers in one pwritev.
	maxIOV = 1024
	// zeroChunk is how many zeros Allocate writes at a time where the file system
	// has no fallocate, in bytes.
	zeroChunk = 1 << 20
)

// osFile is an open file of the operating system.
type osFile struct {
	f *os.File // fixed; os.File guards against a close in the middle of a call
}

// openOS opens name; package os adds O_CLOEXEC.
func openOS(name string, flag int) (*osFile, error) {
	f, err := os.OpenFile(name, flag, fileMode)
	if err != nil {
		return nil, mapErr(err)
	}
	return &osFile{f}, nil
}

// control calls fn with the descriptor, which stays open meanwhile, until it is not
// interrupted any more.
func (f *osFile) control(op string, fn func(fd int) error) error {
	var callErr error
	conn, err := f.f.SyscallConn()
	if err == nil && conn.Control(func(fd uintptr) {
		callErr = fn(int(fd))
		for errors.Is(callErr, unix.EINTR) {
			callErr = fn(int(fd))
		}
	}) != nil {
		err = fs.ErrClosed // there is no other reason, and package os does not name it here
	}
	if err == nil {
		err = callErr
	}
	if err != nil {
		return mapErr(&fs.PathError{Op: op, Path: f.f.Name(), Err: err})
	}
	return nil
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.f.WriteAt(p, off)
	return n, mapErr(err)
}

// WriteVec is pwritev, repeated while the kernel takes less than it was given.
func (f *osFile) WriteVec(bufs [][]byte, off int64) (int, error) {
	return writeAll(bufs, func(rest [][]byte, done int) (n int, err error) {
		err = f.control("pwritev", func(fd int) (err error) {
			n, err = unix.Pwritev(fd, rest, off+int64(done))
			return err
		})
		if err == nil && n <= 0 {
			err = &fs.PathError{Op: "pwritev", Path: f.f.Name(), Err: io.ErrShortWrite}
		}
		return n, err
	})
}

// writeAll hands bufs to write until all is taken or it fails, at most maxIOV at a time
// and empty ones never. write is told how many bytes were taken before.
func writeAll(bufs [][]byte, write func(rest [][]byte, done int) (int, error)) (int, error) {
	rest := make([][]byte, 0, len(bufs))
	for _, b := range bufs {
		if len(b) > 0 {
			rest = append(rest, b)
		}
	}
	done := 0
	for len(rest) > 0 {
		n, err := write(rest[:min(len(rest), maxIOV)], done)
		if err != nil {
			return done, err
		}
		done += n
		rest = advance(rest, n)
	}
	return done, nil
}

// advance drops the first n bytes of bufs, in place; the bytes are not touched.
func advance(bufs [][]byte, n int) [][]byte {
	for n > 0 {
		if n < len(bufs[0]) {
			bufs[0] = bufs[0][n:]
			return bufs
		}
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	return bufs
}

func (f *osFile) Sync() error { return mapErr(f.f.Sync()) }

func (f *osFile) Datasync() error { return f.control("fdatasync", unix.Fdatasync) }

// DropCache relies on the kernel counting the pages of a failed write-back as clean.
func (f *osFile) DropCache() error {
	return f.control("fadvise", func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
}

func (f *osFile) Truncate(size int64) error { return mapErr(f.f.Truncate(size)) }

func (f *osFile) Allocate(off, n int64) error {
	err := f.control("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
	return f.orWriteZeros(err, off, n)
}

// orWriteZeros goes on from what fallocate answered.
func (f *osFile) orWriteZeros(err error, off, n int64) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return f.writeZeros(off, n)
	}
	return err
}

// writeZeros is Allocate where the file system has no fallocate: only the part behind
// the end of the file gets space, since zeros over the rest could race with a write.
func (f *osFile) writeZeros(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	end := off + n
	zeros := make([]byte, min(zeroChunk, max(0, end-size)))
	for pos := max(off, size); pos < end; {
		wrote, err := f.WriteAt(zeros[:min(int64(len(zeros)), end-pos)], pos)
		if err != nil {
			return err
		}
		pos += int64(wrote)
	}
	return nil
}

func (f *osFile) Size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f *osFile) Name() string { return f.f.Name() }

func (f *osFile) Close() error { return mapErr(f.f.Close()) }
