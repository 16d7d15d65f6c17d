package exporttest

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/pkg/export"
)

// conn plays the kernel's side of one FUSE connection: a socket on which one request is
// under way at a time.
type conn struct {
	host     *Host
	name     string
	readOnly bool
	server   *os.File // the end the server has

	mu struct {
		sync.Mutex
		kernel *os.File // our end; nil after the end of the connection
		unique uint64
		size   int64 // what the kernel believes
		opened bool
		looped bool // a loop device has the file
	}
}

var order = binary.NativeEndian

const (
	opLookup    = 1
	opSetattr   = 4
	opOpen      = 14
	opRead      = 15
	opWrite     = 16
	opFsync     = 20
	opInit      = 26
	inHeader    = 40
	outHeader   = 16
	longest     = 64 << 10
	setattrSize = 1 << 3
)

func newConn(h *Host, o export.FUSEMount) (*conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	c := &conn{host: h, name: o.Name, readOnly: o.ReadOnly, server: os.NewFile(uintptr(fds[0]), "fuse")}
	c.mu.kernel = os.NewFile(uintptr(fds[1]), "kernel")
	return c, nil
}

// Dev implements export.FUSEConn.
func (c *conn) Dev() *os.File { return c.server }

// request sends one message and returns the body of its reply.
func (c *conn) request(op uint32, node uint64, body []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.kernel == nil {
		return nil, unix.EIO
	}
	c.mu.unique += 2
	msg := make([]byte, inHeader, inHeader+len(body))
	order.PutUint32(msg[0:], uint32(inHeader+len(body)))
	order.PutUint32(msg[4:], op)
	order.PutUint64(msg[8:], c.mu.unique)
	order.PutUint64(msg[16:], node)
	fd := int(c.mu.kernel.Fd())
	if _, err := unix.Write(fd, append(msg, body...)); err != nil {
		return nil, unix.EIO
	}
	reply := make([]byte, outHeader+longest)
	n, err := unix.Read(fd, reply)
	if err != nil || n < outHeader {
		return nil, unix.EIO
	}
	if got := order.Uint64(reply[8:]); got != c.mu.unique {
		return nil, fmt.Errorf("reply to request %d, not %d", got, c.mu.unique)
	}
	if errno := -int32(order.Uint32(reply[4:])); errno != 0 {
		return nil, unix.Errno(errno)
	}
	return reply[outHeader:n], nil
}

// OpenDisk implements export.FUSEConn. The file it returns is good for AttachLoop and
// Truncate of this fake only.
func (c *conn) OpenDisk() (*os.File, error) {
	body := make([]byte, 64)
	order.PutUint32(body[0:], 7)
	order.PutUint32(body[4:], 40)
	order.PutUint32(body[12:], ^uint32(0))
	if _, err := c.request(opInit, 0, body); err != nil {
		return nil, fmt.Errorf("init: %w", err)
	}
	entry, err := c.request(opLookup, 1, append([]byte(c.name), 0))
	if err != nil {
		return nil, fmt.Errorf("lookup %s: %w", c.name, err)
	}
	if _, err := c.request(opOpen, 2, make([]byte, 8)); err != nil {
		return nil, fmt.Errorf("open %s: %w", c.name, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.mu.size = int64(order.Uint64(entry[48:]))
	c.mu.opened = true
	c.mu.Unlock()
	c.host.mu.Lock()
	c.host.mu.files[w] = c
	c.host.mu.Unlock()
	go c.watch(r, w)
	return w, nil
}

// watch waits until the file is closed, as the kernel would notice it.
func (c *conn) watch(r, w *os.File) {
	_, _ = io.Copy(io.Discard, r) // ends when the other end is closed
	r.Close()
	c.host.mu.Lock()
	delete(c.host.mu.files, w)
	c.host.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.opened = false
	c.endIfUnused()
}

// endIfUnused ends the connection when nothing has the file; called with mu held.
func (c *conn) endIfUnused() {
	if !c.mu.opened && !c.mu.looped && c.mu.kernel != nil {
		c.mu.kernel.Close()
		c.mu.kernel = nil
	}
}

func (c *conn) diskSize() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.size
}

func (c *conn) loopOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.looped = true
}

func (c *conn) loopGone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.looped = false
	c.endIfUnused()
}

// Truncate implements export.FUSEConn.
func (c *conn) Truncate(_ *os.File, size int64) error {
	body := make([]byte, 88)
	order.PutUint32(body[0:], setattrSize)
	order.PutUint64(body[16:], uint64(size))
	if _, err := c.request(opSetattr, 2, body); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.size = size
	return nil
}

// Abort implements export.FUSEConn. It does not wait for a request under way. A connection
// that was closed has ended already.
func (c *conn) Abort() error {
	// The server's end is still ours; both ends see the end of the stream.
	err := unix.Shutdown(int(c.server.Fd()), unix.SHUT_RDWR)
	if err == unix.ENOTCONN || err == unix.EBADF {
		return nil
	}
	return err
}

// Close implements export.FUSEConn.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.kernel != nil {
		c.mu.kernel.Close()
		c.mu.kernel = nil
	}
	return c.server.Close()
}

func (c *conn) readAt(p []byte, off int64) error {
	if len(p) > longest {
		return fmt.Errorf("read of %d bytes: %w", len(p), export.ErrInvalid)
	}
	body := make([]byte, 40)
	order.PutUint64(body[8:], uint64(off))
	order.PutUint32(body[16:], uint32(len(p)))
	got, err := c.request(opRead, 2, body)
	if err == nil && copy(p, got) != len(p) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (c *conn) writeAt(p []byte, off int64) error {
	if len(p) > longest {
		return fmt.Errorf("write of %d bytes: %w", len(p), export.ErrInvalid)
	}
	body := make([]byte, 40, 40+len(p))
	order.PutUint64(body[8:], uint64(off))
	order.PutUint32(body[16:], uint32(len(p)))
	_, err := c.request(opWrite, 2, append(body, p...))
	return err
}

func (c *conn) fsync() error {
	_, err := c.request(opFsync, 2, make([]byte, 16))
	return err
}
