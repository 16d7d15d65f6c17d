package vfs

import "slices"

const leafPages = 32

// leaf is a run of pages of a file.
type leaf [leafPages]page

// content is what a file holds, in memory and on the disk. Bytes beyond the size are
// zeros. It is guarded by Mem.mu.
//
// A shrinking of the file is not a write of sectors. Together with all later changes of
// the size it is one unit, which a crash keeps or loses: as long as it is not durable,
// minSize is below durSize, and the disk still has the bytes from minSize to durSize.
type content struct {
	leaves map[int64]*leaf // by page number / leafPages; nil while empty
	queue  []int64         // numbers of pages that may differ from the disk, in no order
	space  []int64         // the same, but all they have is space that is not durable
	pages  int64           // pages that are allocated (cur is not a hole)

	size    int64 // bytes
	durSize int64 // size on the disk
	minSize int64 // least size since durSize was on the disk, at most durSize
	midSize int64 // size before the latest growth; -1 if that is no unit of its own
}

func newContent() content { return content{midSize: -1} }

// page returns page number i, or nil if nothing was ever there.
func (c *content) page(i int64) *page {
	if l := c.leaves[i/leafPages]; l != nil {
		return &l[i%leafPages]
	}
	return nil
}

// makePage returns page number i, noted as changed.
func (c *content) makePage(i int64) *page {
	l := c.leaves[i/leafPages]
	if l == nil {
		if c.leaves == nil {
			c.leaves = make(map[int64]*leaf)
		}
		l = new(leaf)
		c.leaves[i/leafPages] = l
	}
	p := &l[i%leafPages]
	c.enqueue(i, p)
	return p
}

func (c *content) enqueue(i int64, p *page) {
	if p.list != changed {
		p.list = changed
		c.queue = append(c.queue, i)
	}
}

// read fills p from off; the range must lie within the size.
func (c *content) read(p []byte, off int64) {
	for len(p) > 0 {
		in := int(off % pageSize)
		n := min(pageSize-in, len(p))
		if pg := c.page(off / pageSize); pg != nil && pg.cur != nil {
			copy(p[:n], pg.cur[in:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// write stores p at off, taking at most room new pages, and returns the bytes stored.
func (c *content) write(p []byte, off, room int64) int {
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		in := int(pos % pageSize)
		n := min(pageSize-in, len(p)-done)
		pg := c.page(pos / pageSize)
		if pg == nil || pg.cur == nil {
			if room == 0 {
				break
			}
			room--
			c.pages++
		}
		if pg == nil || pg.list != changed {
			pg = c.makePage(pos / pageSize)
		}
		pg.write(in, p[done:done+n])
		done += n
	}
	if done > 0 {
		c.setSize(max(c.size, off+int64(done)))
	}
	return done
}

// allocate gives pages to the holes in off..off+n-1 unless that takes more than room
// pages.
func (c *content) allocate(off, n, room int64) bool {
	first, last := off/pageSize, (off+n-1)/pageSize
	need := last - first + 1
	if need > room {
		for i := first; i <= last; i++ {
			if pg := c.page(i); pg != nil && pg.cur != nil {
				need--
			}
		}
		if need > room {
			return false
		}
	}
	for i := first; i <= last; i++ {
		if pg := c.page(i); pg == nil || pg.cur == nil {
			c.makePage(i).cur = zeroBlock
			c.pages++
		}
	}
	c.setSize(max(c.size, off+n))
	return true
}

// truncate makes the size n bytes.
func (c *content) truncate(n int64) {
	if n < c.size {
		for k, l := range c.leaves {
			if (k+1)*leafPages*pageSize > n {
				c.cutLeaf(k, l, n)
			}
		}
	}
	c.setSize(n)
}

// cutLeaf zeroes what leaf number k has beyond n bytes from the start of the file.
func (c *content) cutLeaf(k int64, l *leaf, n int64) {
	for j := range l {
		i, pg := k*leafPages+int64(j), &l[j]
		if in := n - i*pageSize; in < pageSize && pg.cur != nil {
			if in <= 0 {
				c.pages--
			}
			c.enqueue(i, pg)
			pg.cut(int(max(in, 0)))
		}
	}
}

func (c *content) setSize(n int64) {
	switch {
	case n < c.size:
		c.minSize = min(c.minSize, n)
		c.midSize = -1
	case n > c.size && (c.size != c.durSize || c.minSize < c.durSize):
		c.midSize = c.size
	}
	c.size = n
}

// sync makes the content durable, full with all there is to it; otherwise not what no
// reader needs: space without content and a shrinking.
func (c *content) sync(full bool) {
	shrinks := c.size < c.durSize && !full
	if full {
		c.queueSpace()
	}
	queue := c.queue
	c.queue = c.queue[:0]
	for _, i := range queue {
		pg := c.page(i)
		switch start := i * pageSize; {
		case shrinks && start >= c.size:
		case shrinks && start+pageSize > c.size && pg.dur != nil:
			pg.commitHead(cutBlock(pg.dur, c.minSize-start), int(c.size-start))
		case !full && pg.dirty == 0 && pg.dur == nil && pg.cur != nil:
			pg.list = spaced
			c.space = append(c.space, i)
			continue
		case pg.failed != 0:
			pg.commitPart(cutBlock(pg.dur, c.minSize-start))
		default:
			pg.settle(pg.cur)
			continue
		}
		c.queue = append(c.queue, i)
	}
	if !shrinks {
		c.durSize = c.size
	}
	c.minSize, c.midSize = c.size, -1
}

// queueSpace moves the pages of c.space to the queue.
func (c *content) queueSpace() {
	for _, i := range c.space {
		if pg := c.page(i); pg.list == spaced {
			c.enqueue(i, pg)
		}
	}
	c.space = nil
}

// failSync marks what is dirty as lost to later syncs.
func (c *content) failSync() {
	for _, i := range c.queue {
		pg := c.page(i)
		pg.failed = pg.dirty
	}
}

// dropFailed makes what a failed sync did not write read as it is on the disk.
func (c *content) dropFailed() {
	for _, i := range c.queue {
		pg := c.page(i)
		for s := range pageSectors {
			if pg.failed&(1<<s) == 0 {
				continue
			}
			old := zeroBlock
			if pg.dur != nil {
				old = pg.dur
			}
			pg.store(s*sectorSize, old[s*sectorSize:(s+1)*sectorSize])
		}
		pg.dirty &^= pg.failed
		pg.hasMid &^= pg.failed
		pg.failed = 0
	}
}

// crash leaves what survives, which is durable then; keep decides for each unit.
func (c *content) crash(keep func() bool) {
	c.queueSpace()
	slices.Sort(c.queue) // keep is asked in an order that does not hang on maps
	size, cut := c.durSize, c.durSize
	if c.size != c.durSize || c.minSize < c.durSize {
		switch {
		case keep():
			size, cut = c.size, c.minSize
		case c.midSize >= 0 && keep():
			size, cut = c.midSize, c.minSize
		}
	}
	for _, i := range c.queue {
		pg, start := c.page(i), i*pageSize
		if pg.cur != nil {
			c.pages--
		}
		b := pg.survive(cutBlock(pg.dur, cut-start), keep)
		b = cutBlock(b, size-start)
		if b != nil {
			c.pages++
		}
		pg.settle(b)
	}
	c.queue = nil
	c.size, c.durSize, c.minSize, c.midSize = size, size, size, -1
}

// clone returns a copy that shares the blocks.
func (c *content) clone() content {
	d := *c
	d.queue, d.space = slices.Clone(c.queue), slices.Clone(c.space)
	if c.leaves != nil {
		d.leaves = make(map[int64]*leaf, len(c.leaves))
	}
	for k, l := range c.leaves {
		for j := range l {
			l[j].share()
		}
		copied := *l
		d.leaves[k] = &copied
	}
	return d
}
