package rig

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// image does the first n operations to zeros.
func image(size int64, ops []Op) []byte {
	b := make([]byte, size)
	for _, op := range ops {
		op.Fill(b[op.Off():][:op.Len()])
	}
	return b
}

func TestLedgerJudges(t *testing.T) {
	const size, count, acked = 64 << 10, 200, 190
	r := rand.New(rand.NewPCG(1, 2))
	l := NewLedger(size, 3)
	var ops []Op
	for range count {
		op, n := l.Issue(r)
		ops = append(ops, op)
		if n == acked {
			l.Ack(n)
		}
	}
	span, err := l.Span(l.Bounds())
	if err != nil {
		t.Fatal(err)
	}
	for n := acked - 20; n <= count; n++ {
		b := image(size, ops[:n])
		_, err := span.Prefix(bytes.NewReader(b), 0, false)
		if want := bytes.Equal(b, image(size, ops[:acked])) || n >= acked; (err == nil) != want {
			t.Errorf("with %d operations of %d to %d: %v", n, acked, count, err)
		}
	}
	whole := image(size, ops)
	for _, at := range []int{0, 511, 512, size - 1} {
		whole[at] ^= 1
		if _, err := span.Prefix(bytes.NewReader(whole), 0, true); err == nil {
			t.Errorf("a flipped bit at %d was not noticed", at)
		}
		if _, err := span.Loose(bytes.NewReader(whole), 0); err == nil {
			t.Errorf("loosely: a flipped bit at %d was not noticed", at)
		}
		whole[at] ^= 1
	}
	f, err := span.Prefix(bytes.NewReader(whole), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	l.Settle(f)
	if span, err = l.Span(l.Bounds()); err != nil {
		t.Fatal(err)
	}
	if _, err := span.Prefix(bytes.NewReader(whole), 0, false); err != nil {
		t.Errorf("after settling: %v", err)
	}
}

// TestLedgerTearsAtBlocks: of an operation in flight each block is old or new.
func TestLedgerTearsAtBlocks(t *testing.T) {
	s := &Span{base: make([]content, 64), tail: []Op{{First: 4, Count: 20, Sample: 7}}}
	for i := range s.base {
		s.base[i] = contentOf(5, i)
	}
	old := make([]byte, 64*Sector)
	for i, c := range s.base {
		c.fill(old[i*Sector:])
	}
	after := bytes.Clone(old)
	op := s.tail[0]
	op.Fill(after[op.Off():][:op.Len()])
	torn := bytes.Clone(old)
	copy(torn[8*Sector:16*Sector], after[8*Sector:])
	mixed := bytes.Clone(old)
	copy(mixed[8*Sector:12*Sector], after[8*Sector:])
	for _, c := range []struct {
		name  string
		image []byte
		torn  bool
		want  bool
	}{
		{"old", old, false, true}, {"new", after, false, true},
		{"a block of it", torn, true, true}, {"a block of it, not allowed", torn, false, false},
		{"half a block", mixed, true, false},
	} {
		if _, err := s.Prefix(bytes.NewReader(c.image), 0, c.torn); (err == nil) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := s.Loose(bytes.NewReader(mixed), 0); err != nil {
		t.Errorf("half a block, loosely: %v", err)
	}
}
