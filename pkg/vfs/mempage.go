package vfs

import "bytes"

// Units of Mem, in bytes.
const (
	sectorSize  = 512  // what a crash keeps or loses as a whole
	pageSize    = 4096 // what space is accounted in
	pageSectors = pageSize / sectorSize
	allSectors  = 1<<pageSectors - 1
)

// block is the content of a page. Blocks are shared between versions and clones; only
// one that its page owns may be written to.
type block [pageSize]byte

// zeroBlock is the content of every page of zeros. It is never written to.
var zeroBlock = new(block)

// page is a page of a file in all its versions; a nil block is a hole. The masks have a
// bit for each sector. It is guarded by Mem.mu.
type page struct {
	cur *block // what reads see
	dur *block // what is on the disk
	mid *block // what sectors of hasMid had before their latest write

	dirty  uint8 // written since they were last synced
	failed uint8 // of these, in a sync that failed: later syncs pass them over
	hasMid uint8 // of the dirty ones, written more than once

	ownCur, ownMid bool // the block may be written to
	list           pageList
}

// pageList is the list of a content that counts for a page; one of the other list may
// name it too, to no effect.
type pageList uint8

const (
	settled pageList = iota // as on the disk, in no list
	changed                 // in content.queue
	spaced                  // in content.space
)

// own makes cur a block that may be written to.
func (p *page) own() {
	if p.ownCur {
		return
	}
	b := new(block)
	if p.cur != nil {
		*b = *p.cur
	}
	p.cur, p.ownCur = b, true
}

// share takes the right to write to the blocks away.
func (p *page) share() { p.ownCur, p.ownMid = false, false }

// write stores data at in, an offset in the page.
func (p *page) write(in int, data []byte) {
	mask := sectorMask(in, in+len(data))
	if again := p.dirty & mask; again == allSectors {
		p.mid, p.ownMid, p.ownCur, p.hasMid = p.cur, p.ownCur, false, allSectors
	} else if again != 0 {
		p.saveMid(again)
	}
	p.dirty |= mask
	// The cache works in pages: a write has all of this one written back anew.
	p.failed = 0
	p.store(in, data)
}

func (p *page) store(in int, data []byte) {
	whole := len(data) == pageSize
	blank := whole || p.cur == nil || p.cur == zeroBlock
	if blank && bytes.Equal(data, zeroBlock[:len(data)]) {
		p.cur, p.ownCur = zeroBlock, false
		return
	}
	if whole && !p.ownCur {
		p.cur, p.ownCur = new(block), true
	}
	p.own()
	copy(p.cur[in:], data)
}

// saveMid keeps the current content of the sectors in mask as their middle version.
func (p *page) saveMid(mask uint8) {
	if !p.ownMid {
		b := new(block)
		if p.hasMid != 0 {
			*b = *p.mid
		}
		p.mid, p.ownMid = b, true
	}
	copySectors(p.mid, p.cur, mask)
	p.hasMid |= mask
}

// cut zeroes the page from byte n on; 0 makes it a hole. What was to be synced there
// is forgotten: what a crash makes of these bytes hangs on the size of the file.
func (p *page) cut(n int) {
	if n == 0 {
		*p = page{dur: p.dur, list: p.list}
		return
	}
	if p.cur != nil && p.cur != zeroBlock {
		p.own()
		clear(p.cur[n:])
	}
	beyond := ^sectorMask(0, n)
	p.dirty &^= beyond
	p.failed &^= beyond
	p.hasMid &^= beyond
	if p.hasMid == 0 {
		p.mid, p.ownMid = nil, false
		return
	}
	b := *p.mid
	clear(b[n:])
	p.mid, p.ownMid = &b, true
}

// settle makes b both current and durable.
func (p *page) settle(b *block) { *p = page{cur: b, dur: b} }

// commitPart makes the dirty sectors durable that did not fail; base is what the disk
// has of the others.
func (p *page) commitPart(base *block) {
	b := new(block)
	if base != nil {
		*b = *base
	}
	copySectors(b, p.cur, p.dirty&^p.failed)
	p.dur = b
	p.dirty = p.failed
	p.hasMid &= p.failed
}

// commitHead is commitPart for a page that the end of the file cuts at n, where the disk
// keeps what it has behind that.
func (p *page) commitHead(base *block, n int) {
	old := p.dur
	p.commitPart(base)
	copy(p.dur[n:], old[n:])
}

// survive returns what a crash leaves of the page; base is what the disk has, keep
// decides for each unit.
func (p *page) survive(base *block, keep func() bool) *block {
	var b *block
	take := func(from *block, sector int) {
		if b == nil {
			b = new(block)
			if base != nil {
				*b = *base
			}
		}
		copySectors(b, from, 1<<sector)
	}
	for s := range pageSectors {
		switch bit := uint8(1) << s; {
		case p.dirty&bit == 0:
		case keep():
			take(p.cur, s)
		case p.hasMid&bit != 0 && keep():
			take(p.mid, s)
		}
	}
	switch {
	case b != nil:
		return b
	case base == nil && p.cur != nil && keep():
		return zeroBlock // the space survived, what was written there did not
	}
	return base
}

// sectorMask has the sectors that the bytes from..to-1 touch.
func sectorMask(from, to int) uint8 {
	if from >= to {
		return 0
	}
	first, last := from/sectorSize, (to-1)/sectorSize
	return uint8(allSectors>>(pageSectors-1-last)) &^ (1<<first - 1)
}

func copySectors(dst, src *block, mask uint8) {
	for s := range pageSectors {
		if mask&(1<<s) != 0 {
			copy(dst[s*sectorSize:(s+1)*sectorSize], src[s*sectorSize:])
		}
	}
}

// cutBlock returns b with zeros from byte n on; b itself stays as it is.
func cutBlock(b *block, n int64) *block {
	switch {
	case b == nil || n <= 0:
		return nil
	case n >= pageSize || b == zeroBlock:
		return b
	}
	c := *b
	clear(c[n:])
	return &c
}
