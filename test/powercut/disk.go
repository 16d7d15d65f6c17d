package main

import (
	"fmt"
	"sync"
)

// diskBytes is the size of the disk below the store: mkfs.xfs wants 300 MiB.
const diskBytes = 320 << 20

// disk is a disk in memory with a layer on top that can be thrown away: the layer takes
// what a file system and the store write while one point is examined. It is an
// export.Device.
type disk struct {
	base []byte // written by settle alone, between two points

	mu    sync.RWMutex
	layer map[int64][]byte // pages by number
}

const page = 4096

func newDisk() *disk { return &disk{base: make([]byte, diskBytes), layer: map[int64][]byte{}} }

// settle writes an entry for good.
func (d *disk) settle(e entry) {
	if e.data == nil {
		clear(d.base[e.off:][:e.n])
		return
	}
	copy(d.base[e.off:], e.data)
}

// put writes an entry, or the part of it from one offset in it to another, to the layer.
func (d *disk) put(e entry, from, to int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.data == nil {
		d.change(to-from, e.off+from, func(p []byte, _ int64) { clear(p) })
		return
	}
	d.change(to-from, e.off+from, func(p []byte, at int64) { copy(p, e.data[from+at:]) })
}

// forget drops the layer.
func (d *disk) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.layer)
}

// change calls fn for the part of each page that a range covers, with its place in the
// range. Called with mu held.
func (d *disk) change(n, off int64, fn func(p []byte, at int64)) {
	for at := int64(0); at < n; {
		number, in := (off+at)/page, (off+at)%page
		take := min(page-in, n-at)
		p := d.layer[number]
		if p == nil {
			p = make([]byte, page)
			copy(p, d.base[number*page:])
			d.layer[number] = p
		}
		fn(p[in:in+take], at)
		at += take
	}
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > diskBytes {
		return 0, fmt.Errorf("read of %d bytes at %d of a disk of %d", len(p), off, int64(diskBytes))
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for at := 0; at < len(p); {
		number, in := (off+int64(at))/page, (off+int64(at))%page
		from := d.layer[number]
		if from == nil {
			from = d.base[number*page:][:page]
		}
		at += copy(p[at:], from[in:])
	}
	return len(p), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.change(int64(len(p)), off, func(to []byte, at int64) { copy(to, p[at:]) })
	return len(p), nil
}

func (d *disk) Discard(off, n int64) error { return d.WriteZeroes(off, n) }

func (d *disk) WriteZeroes(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.change(n, off, func(p []byte, _ int64) { clear(p) })
	return nil
}

func (d *disk) Flush() error { return nil }

func (d *disk) Size() int64 { return diskBytes }
