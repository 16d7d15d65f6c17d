package export

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
)

// pipe is a server on a packet socket; the test plays the kernel.
type pipe struct {
	t      *testing.T
	kernel int
	unique uint64
}

func serve(t *testing.T, dev Device, o FUSEOptions) (*pipe, *FUSE) {
	t.Helper()
	leaktest.Check(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	ok(t, err)
	conn := os.NewFile(uintptr(fds[0]), "fuse")
	o.Name = "disk"
	o.Buffers, err = NewBuffers(2 << 20)
	ok(t, err)
	f, err := NewFUSE(conn, dev, o)
	ok(t, err)
	done := make(chan error, 1)
	go func() { done <- f.Serve() }()
	t.Cleanup(func() {
		unix.Close(fds[1])
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		conn.Close()
		if n := o.Buffers.Taken(); n != 0 {
			t.Errorf("%d buffers still taken", n)
		}
		o.Buffers.Close()
	})
	return &pipe{t: t, kernel: fds[1]}, f
}

// call sends a request and returns the errno and body of the reply.
func (p *pipe) call(op opcode, node uint64, body []byte) (unix.Errno, []byte) {
	p.t.Helper()
	p.unique += 2
	msg := make([]byte, inHeaderLen)
	order.PutUint32(msg[0:], uint32(inHeaderLen+len(body)))
	order.PutUint32(msg[4:], uint32(op))
	order.PutUint64(msg[8:], p.unique)
	order.PutUint64(msg[16:], node)
	_, err := unix.Write(p.kernel, append(msg, body...))
	ok(p.t, err)
	out := make([]byte, 128<<10)
	n, err := unix.Read(p.kernel, out)
	ok(p.t, err)
	if got := order.Uint64(out[8:]); got != p.unique || int(order.Uint32(out[0:])) != n {
		p.t.Fatalf("reply to %d of %d bytes, not to %d of %d", got, order.Uint32(out[0:]), p.unique, n)
	}
	return unix.Errno(-int32(order.Uint32(out[4:]))), out[outHeaderLen:n]
}

func words(vs ...any) []byte {
	var b bytes.Buffer
	for _, v := range vs {
		_ = binary.Write(&b, order, v) // to memory, of fixed-size values
	}
	return b.Bytes()
}

func ioBody(off uint64, size uint32, data ...byte) []byte {
	return append(words(uint64(0), off, size, uint32(0), uint64(0), uint64(0)), data...)
}

func falloc(off, n uint64, mode uint32) []byte { return words(uint64(0), off, n, mode, uint32(0)) }

func TestInit(t *testing.T) {
	p, f := serve(t, newMem(1<<20), FUSEOptions{})
	in := words(uint32(7), uint32(45), uint32(1<<17), ^uint32(0), ^uint32(0), [11]uint32{})
	errno, out := p.call(opInit, 0, in)
	if errno != 0 || len(out) != initOutLen {
		t.Fatalf("%v, %d bytes", errno, len(out))
	}
	if flags := uint64(order.Uint32(out[12:])) | uint64(order.Uint32(out[32:]))<<32; flags != capsWanted {
		t.Errorf("flags %x", flags)
	}
	if order.Uint32(out[20:]) != maxRequest || order.Uint16(out[16:]) != 256 || order.Uint16(out[18:]) != 192 {
		t.Errorf("%v", out)
	}
	s, have := f.Session()
	if !have || !s.CanResend() || s.Minor != protoMinor {
		t.Errorf("session %+v", s)
	}
	if errno, _ := p.call(opInit, 0, in); errno != unix.EPROTO {
		t.Errorf("second INIT: %v", errno)
	}
}

func TestOldKernelInit(t *testing.T) {
	p, f := serve(t, newMem(1<<20), FUSEOptions{})
	errno, _ := p.call(opInit, 0, words(uint32(7), uint32(31), uint32(1<<17), uint32(capAsyncDIO|capMaxPages)))
	if s, _ := f.Session(); errno != 0 || s.CanResend() || s.Minor != 31 || s.Flags != capAsyncDIO|capMaxPages {
		t.Errorf("%v, %+v", errno, s)
	}
}

// TestAnswers: every request has the answer it must have, and bad ones do no harm.
func TestAnswers(t *testing.T) {
	const size = 1 << 20
	dev := newMem(size)
	p, _ := serve(t, dev, FUSEOptions{})
	data := bytes.Repeat([]byte{7}, 512)
	setattr := func(valid uint32, size uint64) []byte {
		return words(valid, uint32(0), uint64(0), size, [8]uint64{})
	}
	for i, c := range []struct {
		op   opcode
		node uint64
		body []byte
		want unix.Errno
		len  int
	}{
		{opLookup, 1, []byte("disk\x00"), 0, entryOutLen},
		{opLookup, 1, []byte("dis\x00"), unix.ENOENT, 0},
		{opLookup, 2, []byte("disk\x00"), unix.ENOENT, 0},
		{opLookup, 1, nil, unix.ENOENT, 0},
		{opGetattr, 1, make([]byte, 16), 0, attrOutLen},
		{opGetattr, 2, make([]byte, 16), 0, attrOutLen},
		{opGetattr, 3, make([]byte, 16), unix.ENOENT, 0},
		{opSetattr, 2, setattr(setattrSize, size), 0, attrOutLen},
		{opSetattr, 2, setattr(setattrSize, size+512), unix.EINVAL, 0},
		{opSetattr, 2, setattr(setattrSize, size-512), unix.EINVAL, 0},
		{opSetattr, 2, setattr(setattrMode, 0), unix.EPERM, 0},
		{opSetattr, 2, nil, unix.EINVAL, 0},
		{opOpen, 2, make([]byte, 8), 0, openOutLen},
		{opOpen, 1, make([]byte, 8), unix.EACCES, 0},
		{opOpendir, 1, make([]byte, 8), 0, openOutLen},
		{opReaddir, 1, make([]byte, 40), 0, 0},
		{opStatfs, 1, nil, 0, statfsOutLen},
		{opAccess, 2, make([]byte, 8), 0, 0},
		{opFlush, 2, make([]byte, 24), 0, 0},
		{opRelease, 2, make([]byte, 24), 0, 0},
		{opFsync, 2, make([]byte, 16), 0, 0},
		{opRead, 2, ioBody(0, 4096), 0, 4096},
		{opRead, 2, ioBody(size-512, 4096), 0, 512},
		{opRead, 2, ioBody(size, 4096), 0, 0},
		{opRead, 2, ioBody(1, 512), unix.EINVAL, 0},
		{opRead, 2, ioBody(1<<63, 512), unix.EINVAL, 0},
		{opRead, 2, ioBody(0, 2<<20), unix.EINVAL, 0},
		{opRead, 1, ioBody(0, 512), unix.EINVAL, 0},
		{opRead, 2, nil, unix.EINVAL, 0},
		{opWrite, 2, ioBody(512, 512, data...), 0, 8},
		{opWrite, 2, ioBody(512, 1024, data...), unix.EINVAL, 0},
		{opWrite, 2, ioBody(size, 512, data...), unix.EFBIG, 0},
		{opWrite, 2, ioBody(1<<63-512, 512, data...), unix.EFBIG, 0},
		{opWrite, 2, ioBody(512, 0), unix.EINVAL, 0},
		{opFallocate, 2, falloc(0, 512, 0), 0, 0},
		{opFallocate, 2, falloc(0, 512, fallocKeepSize), 0, 0},
		{opFallocate, 2, falloc(0, 512, fallocPunchHole|fallocKeepSize), 0, 0},
		{opFallocate, 2, falloc(0, 1536, fallocZeroRange), 0, 0},
		{opFallocate, 2, falloc(0, 1536, 0x40), unix.EINVAL, 0},
		{opFallocate, 2, falloc(1, 512, fallocZeroRange), unix.EINVAL, 0},
		{opFallocate, 2, falloc(size, 512, fallocZeroRange), unix.EFBIG, 0},
		{opFallocate, 2, falloc(1<<62, 1<<62, fallocZeroRange), unix.EFBIG, 0},
		{opFallocate, 2, nil, unix.EINVAL, 0},
		{39, 2, make([]byte, 32), unix.ENOSYS, 0}, // IOCTL
		{22, 2, make([]byte, 8), unix.ENOSYS, 0},  // GETXATTR
		{9999, 2, make([]byte, 100), unix.ENOSYS, 0},
	} {
		errno, out := p.call(c.op, c.node, c.body)
		if errno != c.want || len(out) != c.len {
			t.Errorf("%d: opcode %d: %v, %d bytes; want %v, %d", i, c.op, errno, len(out), c.want, c.len)
		}
	}
	if got := make([]byte, 512); true {
		_, err := dev.ReadAt(got, 512)
		ok(t, err)
		if !bytes.Equal(got, make([]byte, 512)) {
			t.Error("zeroing did not reach the device")
		}
	}
}

func TestReadOnlyAnswers(t *testing.T) {
	p, _ := serve(t, newMem(1<<20), FUSEOptions{ReadOnly: true})
	if errno, _ := p.call(opWrite, 2, ioBody(0, 512, make([]byte, 512)...)); errno != unix.EROFS {
		t.Errorf("write: %v", errno)
	}
	if errno, _ := p.call(opFallocate, 2, falloc(0, 512, fallocPunchHole)); errno != unix.EROFS {
		t.Errorf("discard: %v", errno)
	}
	if errno, _ := p.call(opFsync, 2, make([]byte, 16)); errno != 0 {
		t.Errorf("flush: %v", errno)
	}
}

// TestReaders: the readers grow with the requests that wait and shrink afterwards, and
// there is always one left.
func TestReaders(t *testing.T) {
	dev := newMem(1 << 20)
	release, waiting := make(chan struct{}), make(chan struct{})
	dev.onWrite = func(int64, int) error {
		waiting <- struct{}{}
		<-release
		return nil
	}
	p, f := serve(t, dev, FUSEOptions{})
	const stuck = 40
	for i := range stuck {
		body := ioBody(uint64(i)*512, 512, make([]byte, 512)...)
		msg := words(uint32(inHeaderLen+len(body)), uint32(opWrite), uint64(1000+i), uint64(2), [2]uint64{})
		_, err := unix.Write(p.kernel, append(msg, body...))
		ok(t, err)
		<-waiting
		if errno, out := p.call(opRead, 2, ioBody(0, 4096)); errno != 0 || len(out) != 4096 {
			t.Fatalf("read beside %d stuck writes: %v", i+1, errno)
		}
	}
	if n := f.readers.Load(); n < stuck+1 || n > stuck+3 {
		t.Errorf("%d readers", n)
	}
	close(release)
	for range stuck {
		_, err := unix.Read(p.kernel, make([]byte, 64))
		ok(t, err)
	}
	waitFor(t, func() bool { return f.readers.Load() <= 2 && f.readers.Load() > 0 })
	if errno, _ := p.call(opFsync, 2, make([]byte, 16)); errno != 0 {
		t.Errorf("flush: %v", errno)
	}
}

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want unix.Errno
	}{
		{nil, 0}, {vfs.ErrNoSpace, unix.ENOSPC}, {errors.Join(io.EOF, vfs.ErrNoSpace), unix.ENOSPC},
		{io.EOF, unix.EIO}, {unix.ENOSYS, unix.EIO}, {unix.EOPNOTSUPP, unix.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

// toldDevice answers what the test tells it to.
type toldDevice struct {
	*memDevice
	n     int // of bytes less than wanted
	err   error
	calls []string
}

func (d *toldDevice) told(call string) error {
	d.calls = append(d.calls, call)
	return d.err
}

func (d *toldDevice) ReadAt(p []byte, _ int64) (int, error)  { return len(p) - d.n, d.told("read") }
func (d *toldDevice) WriteAt(p []byte, _ int64) (int, error) { return len(p) - d.n, d.told("write") }
func (d *toldDevice) Flush() error                           { return d.told("flush") }
func (d *toldDevice) Discard(_, _ int64) error               { return d.told("discard") }
func (d *toldDevice) WriteZeroes(_, _ int64) error           { return d.told("zeroes") }

// Nothing is answered that the device did not say: each request reaches it once, its
// errors reach the kernel, and a part of what was asked for is an error.
func TestAnswersAreTheDevices(t *testing.T) {
	data := make([]byte, 1024)
	for _, c := range []struct {
		call string
		op   opcode
		body []byte
	}{
		{"read", opRead, ioBody(0, 1024)}, {"write", opWrite, ioBody(0, 1024, data...)}, {"flush", opFsync, make([]byte, 16)},
		{"discard", opFallocate, falloc(0, 1024, fallocPunchHole|fallocKeepSize)}, {"zeroes", opFallocate, falloc(0, 1024, fallocZeroRange)},
	} {
		for _, answer := range []struct {
			n    int
			err  error
			want unix.Errno
		}{{0, nil, 0}, {0, errors.New("broken"), unix.EIO}, {512, nil, unix.EIO}} {
			if answer.n > 0 && c.call != "read" && c.call != "write" {
				continue
			}
			dev := &toldDevice{memDevice: newMem(1 << 20), n: answer.n, err: answer.err}
			p, _ := serve(t, dev, FUSEOptions{})
			if errno, _ := p.call(c.op, nodeDisk, c.body); errno != answer.want {
				t.Errorf("%s, %d bytes less, %v: %v, want %v", c.call, answer.n, answer.err, errno, answer.want)
			}
			if !slices.Equal(dev.calls, []string{c.call}) {
				t.Errorf("%s: the device was asked for %v", c.call, dev.calls)
			}
		}
	}
}
