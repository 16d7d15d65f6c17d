package rig

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
)

// Sector is the unit in which a Ledger counts, and block that in which a write is old or
// new but never mixed; bytes.
const (
	Sector = 512
	block  = 4096
)

// content names the 512 bytes of a sector: 0 for zeros, else which sector of which
// sample. The same content may stand in many places.
type content uint64

func contentOf(sample uint64, sector int) content {
	if sample == 0 {
		return 0
	}
	return content(sample<<16 | uint64(sector))
}

// fill writes the content into a sector: what it is in clear, then noise of which the
// second half repeats the first, so that it compresses somewhat.
func (c content) fill(p []byte) {
	if c == 0 {
		clear(p)
		return
	}
	r := rand.NewPCG(uint64(c), 0x6772616e)
	for i := 0; i < Sector/2; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	binary.LittleEndian.PutUint64(p, uint64(c))
	copy(p[Sector/2:], p[:Sector/2])
}

func (c content) String() string {
	if c == 0 {
		return "zeros"
	}
	return fmt.Sprintf("sector %d of sample %d", c&0xffff, c>>16)
}

// Op is one operation on a range: a write of a sample, or of zeros (a hole).
type Op struct {
	First, Count int    // sectors
	Sample       uint64 // 0: zeros, written as a hole
}

// at is what the operation puts into a sector of its range.
func (o Op) at(sector int) content { return contentOf(o.Sample, sector-o.First) }

// Fill writes what the operation writes into p, which is as long as its range.
func (o Op) Fill(p []byte) {
	for i := range o.Count {
		o.at(o.First + i).fill(p[i*Sector:])
	}
}

// Off and Len are the range in bytes.
func (o Op) Off() int64 { return int64(o.First) * Sector }

// Len is the length of the range in bytes.
func (o Op) Len() int64 { return int64(o.Count) * Sector }

// Ledger is what one writer did to a range that nobody else writes to, one operation
// after the other: what was issued, and up to where it was acknowledged. From it follows
// what the range, or a copy of it as of some moment, may hold. Its methods may be called
// concurrently.
type Ledger struct {
	sectors int

	mu struct {
		sync.Mutex
		base    []content // before ops[0]
		first   int       // number of ops[0]
		ops     []Op
		acked   int // operations that must be there
		samples uint64
	}
}

// NewLedger is the ledger of a range that holds zeros. Samples are numbered from the
// tag on, so that those of two ledgers are told apart.
func NewLedger(size int64, tag uint16) *Ledger {
	l := &Ledger{sectors: int(size / Sector)}
	l.mu.base = make([]content, l.sectors)
	l.mu.samples = uint64(tag) << 28
	return l
}

// Size is the length of the range in bytes.
func (l *Ledger) Size() int64 { return int64(l.sectors) * Sector }

// Issue picks the next operation and notes it as issued. Most are writes of whole blocks;
// some begin or end within one, repeat an earlier sample or make a hole. number is what
// Acked wants to hear.
func (l *Ledger) Issue(r *rand.Rand) (op Op, number int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	const perBlock = block / Sector
	op = Op{First: r.IntN(l.sectors/perBlock) * perBlock, Count: perBlock * (1 + r.IntN(4))}
	switch r.IntN(8) {
	case 0:
		op.First += r.IntN(perBlock)
		op.Count = 1 + r.IntN(3*perBlock)
	case 1:
		op.Count = perBlock * (1 + r.IntN(32))
	}
	op.Count = min(op.Count, l.sectors-op.First)
	switch k := r.IntN(10); {
	case k == 0: // a hole
	case k < 3 && len(l.mu.ops) > 0:
		op.Sample = l.mu.ops[r.IntN(len(l.mu.ops))].Sample
	default:
		l.mu.samples++
		op.Sample = l.mu.samples
	}
	l.mu.ops = append(l.mu.ops, op)
	return op, l.mu.first + len(l.mu.ops)
}

// Ack notes that the operations up to number must be there from now on.
func (l *Ledger) Ack(number int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.acked = max(l.mu.acked, number)
}

// Bounds are the numbers of the last operation that must be there and of the last issued.
func (l *Ledger) Bounds() (acked, issued int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.acked, l.mu.first + len(l.mu.ops)
}

// Span is what a range may hold that has all operations up to one number and none behind
// another.
type Span struct {
	base []content // with everything that must be there
	tail []Op      // what may be there
}

// Span makes the span between two numbers, neither before the last Settle.
func (l *Ledger) Span(from, to int) (*Span, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from < l.mu.first || to < from || to > l.mu.first+len(l.mu.ops) {
		return nil, fmt.Errorf("no span from operation %d to %d: known are %d to %d", from, to, l.mu.first, l.mu.first+len(l.mu.ops))
	}
	s := &Span{base: slices.Clone(l.mu.base), tail: slices.Clone(l.mu.ops[from-l.mu.first : to-l.mu.first])}
	for _, op := range l.mu.ops[:from-l.mu.first] {
		s.apply(op)
	}
	return s, nil
}

func (s *Span) apply(op Op) {
	for i := op.First; i < op.First+op.Count; i++ {
		s.base[i] = op.at(i)
	}
}

// Settle makes what was found in the range the beginning of the ledger: everything else
// that was issued is known to be lost.
func (l *Ledger) Settle(f *Found) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.first += len(l.mu.ops)
	l.mu.acked, l.mu.ops, l.mu.base = l.mu.first, nil, slices.Clone(f.sectors)
}

// Found is what a range was found to hold.
type Found struct{ sectors []content }

// Prefix judges the range at off of r: it must hold what must be there and, of what may,
// the operations up to some one. Of the one behind it blocks may be there too when torn
// is true, each whole.
func (s *Span) Prefix(r io.ReaderAt, off int64, torn bool) (*Found, error) {
	image, touched, err := s.read(r, off)
	if err != nil {
		return nil, err
	}
	now := &Span{base: slices.Clone(s.base)}
	f := &Found{sectors: slices.Clone(s.base)}
	var last error
	for k := 0; k <= len(s.tail); k++ {
		if last = now.matches(f, image, touched, s.tail[k:min(len(s.tail), k+1)], torn); last == nil {
			return f, nil
		}
		if k < len(s.tail) {
			now.apply(s.tail[k])
		}
	}
	return nil, fmt.Errorf("no prefix of %d operations is there: with all of them, %w", len(s.tail), last)
}

// Loose judges the range at off of r for a writer whose writes have no order before a
// sync: each sector holds what must be there or what may.
func (s *Span) Loose(r io.ReaderAt, off int64) (*Found, error) {
	image, touched, err := s.read(r, off)
	if err != nil {
		return nil, err
	}
	f := &Found{sectors: slices.Clone(s.base)}
	for _, i := range touched {
		got := image[i*Sector:][:Sector]
		if is(got, s.base[i]) {
			continue
		}
		at := slices.IndexFunc(s.tail, func(op Op) bool {
			return i >= op.First && i < op.First+op.Count && is(got, op.at(i))
		})
		if at < 0 {
			return nil, fmt.Errorf("sector %d is neither %v nor one of %d later: %.32x", i, s.base[i], len(s.tail), got)
		}
		f.sectors[i] = s.tail[at].at(i)
	}
	return f, nil
}

// read reads the range, compares the sectors that no operation of the tail touches, and
// lists the others.
func (s *Span) read(r io.ReaderAt, off int64) (image []byte, touched []int, err error) {
	image = make([]byte, len(s.base)*Sector)
	if n, err := r.ReadAt(image, off); n < len(image) {
		return nil, nil, fmt.Errorf("read of %d bytes at %d gave %d: %w", len(image), off, n, err)
	}
	may := make([]bool, len(s.base))
	for _, op := range s.tail {
		for i := op.First; i < op.First+op.Count; i++ {
			may[i] = true
		}
	}
	for i, m := range may {
		switch {
		case m:
			touched = append(touched, i)
		case !is(image[i*Sector:][:Sector], s.base[i]):
			return nil, nil, differs(i, image, s.base[i])
		}
	}
	return image, touched, nil
}

// matches tells whether the touched sectors are as they are now, or, in whole blocks, as
// the next operation leaves them. It notes which.
func (s *Span) matches(f *Found, image []byte, touched []int, next []Op, torn bool) error {
	const perBlock = block / Sector
	inBlock, isNew := -1, false // the choice made for the current block
	for _, i := range touched {
		got, old := image[i*Sector:][:Sector], s.base[i]
		want := old
		if torn && len(next) == 1 && i >= next[0].First && i < next[0].First+next[0].Count {
			fresh := next[0].at(i)
			if i/perBlock != inBlock && fresh != old {
				inBlock, isNew = i/perBlock, is(got, fresh)
			}
			if isNew && i/perBlock == inBlock {
				want = fresh
			}
		}
		if !is(got, want) {
			return differs(i, image, want)
		}
		f.sectors[i] = want
	}
	return nil
}

func differs(i int, image []byte, want content) error {
	got := image[i*Sector:][:Sector]
	looks := content(binary.LittleEndian.Uint64(got))
	if !is(got, looks) {
		return fmt.Errorf("sector %d is %.32x, want %v", i, got, want)
	}
	return fmt.Errorf("sector %d is %v, want %v", i, looks, want)
}

// is tells whether a sector holds a content.
func is(got []byte, c content) bool {
	if c == 0 {
		return len(bytes.Trim(got, "\x00")) == 0
	}
	if binary.LittleEndian.Uint64(got) != uint64(c) {
		return false
	}
	var want [Sector]byte
	c.fill(want[:])
	return bytes.Equal(got, want[:])
}
