package export

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// spareReaders are for what is beside the asynchronous reads and writes: one flush and one
// hole (the kernel locks the file over those), and other processes that have the file.
const spareReaders = 32

// FUSEOptions are the choices of NewFUSE. Name is needed.
type FUSEOptions struct {
	Name          string // name of the file
	ReadOnly      bool
	Readers       int      // goroutines that stay to read requests after a burst; default 2
	MaxBackground int      // asynchronous reads and writes under way, at most 32768; default 256, as a request of the loop device may become two
	Buffers       *Buffers // needed; one is taken per reader
	Logger        *slog.Logger
}

func (o FUSEOptions) withDefaults() FUSEOptions {
	if o.Readers == 0 {
		o.Readers = 2
	}
	if o.MaxBackground == 0 {
		o.MaxBackground = 256
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o FUSEOptions) validate() error {
	if o.Name == "" || o.Buffers == nil || o.Readers < 1 || o.MaxBackground < 1 || o.MaxBackground > 1<<15 {
		return fmt.Errorf("FUSE options: %w", ErrInvalid)
	}
	return nil
}

// Session is what the kernel and the server have agreed on.
type Session struct {
	Minor         uint32 // protocol 7.Minor
	Flags         uint64 // capabilities in force
	MaxReadahead  uint32 // bytes
	MaxWrite      uint32 // bytes
	MaxPages      uint32
	MaxBackground int
}

// CanResend tells whether a successor can take the connection over after a crash.
func (s Session) CanResend() bool { return s.Flags&capHasResend != 0 }

// FUSE serves one connection with one file, whose content is a Device.
type FUSE struct {
	// Fixed after construction.
	conn *os.File
	fd   int
	dev  Device
	o    FUSEOptions

	running sync.WaitGroup // readers
	readers atomic.Int64   // as many
	idle    atomic.Int64   // of them, those that read or answer what never waits
	session atomic.Pointer[Session]

	mu struct {
		sync.Mutex
		err error // of readers that have ended
	}
	errorLog struct {
		last       atomic.Int64 // unix seconds of the last line
		suppressed atomic.Int64 // errors since then without a line
	}
}

// NewFUSE makes a server for the connection conn, a blocking descriptor of /dev/fuse
// (or, in tests, a packet socket with a peer that speaks the kernel's side). It does
// not take over conn.
func NewFUSE(conn *os.File, dev Device, o FUSEOptions) (*FUSE, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &FUSE{conn: conn, fd: int(conn.Fd()), dev: dev, o: o}, nil
}

// Session tells what was negotiated; false before the kernel's first request.
func (f *FUSE) Session() (Session, bool) {
	if s := f.session.Load(); s != nil {
		return *s, true
	}
	return Session{}, false
}

// Serve answers requests until the connection ends, which is no error, and all answers
// are given. Call it once.
func (f *FUSE) Serve() error {
	if err := f.addReader(); err != nil { // it adds others by need
		return err
	}
	f.running.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.err
}

// addReader starts a reader. A reader handles what it reads itself, which saves the way
// to another goroutine and half of the time of a small request; before one that may
// wait it makes sure that somebody else reads (see enter).
func (f *FUSE) addReader() error {
	buf, err := f.o.Buffers.get()
	if err != nil {
		return err
	}
	f.idle.Add(1)
	f.readers.Add(1)
	f.running.Go(func() {
		err := f.readRequests(buf)
		f.readers.Add(-1)
		f.o.Buffers.put(buf)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.mu.err = errors.Join(f.mu.err, err)
	})
	return nil
}

// enter is called before a request that may wait: if nobody else reads, somebody must.
func (f *FUSE) enter() {
	if f.idle.Add(-1) > 0 || f.readers.Load() >= int64(f.o.MaxBackground)+spareReaders {
		return
	}
	if err := f.addReader(); err != nil { // the next one to finish reads on
		f.o.Logger.Warn("no memory for a request buffer", "file", f.o.Name, "err", err)
	}
}

// leave is called after it. It tells whether there are readers enough without the caller,
// which then must end: it is no longer counted as one.
func (f *FUSE) leave() bool {
	for {
		n := f.idle.Load()
		if n >= int64(f.o.Readers) {
			return true
		}
		if f.idle.CompareAndSwap(n, n+1) {
			return false
		}
	}
}

// readRequests is one reader. Its read blocks in the kernel and returns with ENODEV
// when the connection is gone.
func (f *FUSE) readRequests(buf *buffer) error {
	for {
		msg := buf.head(writeHeadLen)
		n, err := unix.Read(f.fd, msg)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
			continue
		case err == unix.ENOENT: // the request was taken back while it was read
			continue
		case err == unix.ENODEV, err == unix.ECONNABORTED, err == nil && n == 0:
			f.idle.Add(-1)
			return nil
		case err != nil:
			f.idle.Add(-1)
			return fmt.Errorf("read FUSE request: %w", err)
		}
		h, err := parseHeader(msg[:n])
		if err != nil {
			f.idle.Add(-1)
			return err
		}
		if !h.mayWait() {
			f.answer(h, msg[inHeaderLen:n])
			continue
		}
		f.enter()
		f.handle(h, buf, msg[inHeaderLen:n])
		if f.leave() {
			return nil
		}
	}
}

// mayWait tells whether the request goes to the device.
func (h inHeader) mayWait() bool {
	switch h.op {
	case opRead, opWrite, opFsync, opFallocate:
		return true
	}
	return false
}

// handle answers a request that may wait, in the buffer it came in.
func (f *FUSE) handle(h inHeader, buf *buffer, body []byte) {
	switch h.op {
	case opRead:
		f.read(h, buf, body)
	case opWrite:
		f.write(h, buf, body)
	case opFsync:
		f.reply(h, f.errno("flush", 0, 0, f.dev.Flush()))
	case opFallocate:
		f.reply(h, f.fallocate(h, body))
	}
}

// checkIO refuses what a block device would not send.
func checkIO(h inHeader, in ioIn, ok bool) unix.Errno {
	if !ok || h.node != nodeDisk || in.size > maxRequest || in.off < 0 || in.off%512 != 0 || in.size%512 != 0 {
		return unix.EINVAL
	}
	return 0
}

// write stores the data that came with the request; it begins at a page boundary.
func (f *FUSE) write(h inHeader, buf *buffer, body []byte) {
	in, ok := parseIO(body)
	size := int(in.size)
	errno := checkIO(h, in, ok)
	switch {
	case errno != 0:
	case size == 0 || len(body) != bodyLen+size:
		errno = unix.EINVAL
	case f.o.ReadOnly:
		errno = unix.EROFS
	case in.off > f.dev.Size()-int64(size):
		errno = unix.EFBIG
	}
	if errno != 0 {
		f.reply(h, errno)
		return
	}
	n, err := f.dev.WriteAt(buf.data(size), in.off)
	if err == nil && n != size {
		err = io.ErrShortWrite
	}
	if err != nil {
		f.reply(h, f.errno("write", in.off, int64(size), err))
		return
	}
	var out [outHeaderLen + 8]byte
	order.PutUint32(out[outHeaderLen:], in.size)
	f.send(h, out[:])
}

// read answers with the bytes up to the end of the device, in the place of the request:
// header and data are one piece of memory.
func (f *FUSE) read(h inHeader, buf *buffer, body []byte) {
	in, ok := parseIO(body)
	if errno := checkIO(h, in, ok); errno != 0 {
		f.reply(h, errno)
		return
	}
	n := int(max(min(int64(in.size), f.dev.Size()-in.off), 0))
	if n == 0 {
		f.reply(h, 0)
		return
	}
	got, err := f.dev.ReadAt(buf.data(n), in.off)
	if got == n && err == io.EOF { // allowed at the very end by io.ReaderAt
		err = nil
	}
	if err == nil && got != n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		f.reply(h, f.errno("read", in.off, int64(n), err))
		return
	}
	f.send(h, buf.head(outHeaderLen)[:outHeaderLen+n])
}

// fallocate makes holes. It has no answer ENOSYS: the kernel would not ask again.
func (f *FUSE) fallocate(h inHeader, body []byte) unix.Errno {
	in, ok := parseFallocate(body)
	size := f.dev.Size()
	switch {
	case !ok || h.node != nodeDisk || in.off < 0 || in.length <= 0 || in.off%512 != 0 || in.length%512 != 0:
		return unix.EINVAL
	case f.o.ReadOnly:
		return unix.EROFS
	case in.off > size-in.length:
		return unix.EFBIG
	}
	switch in.mode &^ fallocKeepSize {
	case fallocPunchHole:
		return f.holeErrno("discard", in.off, in.length, f.dev.Discard(in.off, in.length))
	case fallocZeroRange:
		return f.holeErrno("write zeroes", in.off, in.length, f.dev.WriteZeroes(in.off, in.length))
	case 0: // space is given out when it is written
		return 0
	}
	return unix.EINVAL
}

// holeErrno is errno for a hole. One that a full disk has no room for is EOPNOTSUPP: the loop
// device then makes no more holes until it is attached anew, and the kernel writes zeros
// instead, which can wait beside reads. (A hole that waits, or an EIO, would stop a filesystem.)
func (f *FUSE) holeErrno(op string, off, n int64, err error) unix.Errno {
	errno := f.errno(op, off, n, err)
	if errno == unix.ENOSPC {
		return unix.EOPNOTSUPP
	}
	return errno
}

// errno turns an error of the device into the kernel's, and reports it: the process
// that sees the errno has no other way to learn the cause. At most one line per second.
func (f *FUSE) errno(op string, off, n int64, err error) unix.Errno {
	if err == nil {
		return 0
	}
	now, last := time.Now().Unix(), f.errorLog.last.Load()
	if now != last && f.errorLog.last.CompareAndSwap(last, now) {
		f.o.Logger.Error("block device request failed", "file", f.o.Name, "op", op, "offset", off,
			"length", n, "suppressed", f.errorLog.suppressed.Swap(0), "err", err)
	} else {
		f.errorLog.suppressed.Add(1)
	}
	return errnoOf(err)
}

// reply sends an answer without a body.
func (f *FUSE) reply(h inHeader, errno unix.Errno) {
	var out [outHeaderLen]byte
	f.sendError(h, out[:], errno)
}

// send completes the header at the start of out and sends it all.
func (f *FUSE) send(h inHeader, out []byte) { f.sendError(h, out, 0) }

func (f *FUSE) sendError(h inHeader, out []byte, errno unix.Errno) {
	putOutHeader(out, len(out), int32(errno), h.unique)
	for {
		_, err := unix.Write(f.fd, out)
		switch err {
		case unix.EINTR, unix.EAGAIN:
			continue
		case nil, unix.ENOENT, unix.ENODEV, unix.EPIPE, unix.ECONNRESET:
			return // sent, or nobody waits any more
		}
		f.o.Logger.Error("FUSE reply refused", "file", f.o.Name, "opcode", uint32(h.op), "err", err)
		return
	}
}
