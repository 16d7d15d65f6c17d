package export

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const maxRequest = 1 << 20 // largest read or write, bytes

var pageSize = unix.Getpagesize()

// buffer holds one request of any size. Its data begins at a page boundary; the page
// before it has the headers, which end exactly there, so that a message is one piece of
// memory.
type buffer struct {
	raw []byte // mapped: one page for headers, then maxRequest bytes
}

// data is the n bytes after the headers.
func (b *buffer) data(n int) []byte { return b.raw[pageSize : pageSize+n] }

// head is the last n bytes of the headers and everything after them.
func (b *buffer) head(n int) []byte { return b.raw[pageSize-n:] }

// Buffers is a pool of request buffers outside the Go heap, 1 MiB each, that devices
// share. It keeps a fixed number of them; when all are taken, further ones are mapped
// and unmapped one by one, so that requests that wait for long (a full disk) do not hold
// up others. What can be taken is bounded by the sum of MaxBackground (and a few) over
// the devices. Safe for concurrent use.
type Buffers struct {
	keep int // fixed

	mu struct {
		sync.Mutex
		free   []*buffer // the last one was used last
		taken  int
		closed bool
	}
}

// NewBuffers makes a pool that keeps about keepBytes, at least two buffers. They are
// mapped at once; the kernel gives memory as they are first used. A device without load
// has two taken, under load one more for each request under way.
func NewBuffers(keepBytes int64) (*Buffers, error) {
	b := &Buffers{keep: int(max(keepBytes/maxRequest, 2))}
	for range b.keep {
		buf, err := mapBuffer()
		if err != nil {
			b.Close()
			return nil, err
		}
		b.mu.free = append(b.mu.free, buf)
	}
	return b, nil
}

func mapBuffer() (*buffer, error) {
	raw, err := unix.Mmap(-1, 0, pageSize+maxRequest, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map a request buffer: %w", err)
	}
	return &buffer{raw: raw}, nil
}

// get takes a buffer.
func (b *Buffers) get() (*buffer, error) {
	b.mu.Lock()
	if last := len(b.mu.free) - 1; last >= 0 {
		buf := b.mu.free[last]
		b.mu.free = b.mu.free[:last]
		b.mu.taken++
		b.mu.Unlock()
		return buf, nil
	}
	b.mu.Unlock()
	buf, err := mapBuffer()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.taken++
	return buf, nil
}

// put gives a buffer back.
func (b *Buffers) put(buf *buffer) {
	b.mu.Lock()
	b.mu.taken--
	if !b.mu.closed && len(b.mu.free) < b.keep {
		b.mu.free = append(b.mu.free, buf)
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	_ = unix.Munmap(buf.raw) // cannot fail on a whole mapping
}

// Taken is the number of buffers in use.
func (b *Buffers) Taken() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.taken
}

// Close unmaps what is free; what is taken goes when it is given back.
func (b *Buffers) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.closed = true
	for _, buf := range b.mu.free {
		_ = unix.Munmap(buf.raw)
	}
	b.mu.free = nil
}
