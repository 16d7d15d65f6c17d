package dedup

import (
	"encoding/binary"
	"math/bits"

	"github.com/zeebo/blake3"
)

// FingerprintOf hashes a block.
func FingerprintOf(block []byte) Fingerprint {
	sum := blake3.Sum256(block)
	return Fingerprint(sum[:20])
}

// prefix is the first 8 bytes, which hooks and lists are looked up by.
func (f *Fingerprint) prefix() uint64 { return binary.LittleEndian.Uint64(f[:8]) }

// hookMask picks the sampled fingerprints: one in 32.
const hookMask = 1<<5 - 1

// isHook tells whether a fingerprint with this prefix is kept in memory.
func isHook(prefix uint64) bool { return prefix&hookMask == 0 }

// bitmap is a set of slots of a chunk: bit i of word i/64 is slot i.
type bitmap [MaxSlots / 64]uint64

func (b *bitmap) has(i int) bool { return b[i>>6]>>(i&63)&1 != 0 }
func (b *bitmap) set(i int)      { b[i>>6] |= 1 << (i & 63) }

// next is the first of the slots [i, end) in the set, or end.
func (b *bitmap) next(i, end int) int {
	for i < end && !b.has(i) {
		i++
	}
	return i
}

// count is how many slots are in the set.
func (b *bitmap) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// countRange is how many slots of lo <= i < hi are in the set.
func (b *bitmap) countRange(lo, hi int) int {
	n := 0
	for i := lo; i < hi; {
		w := b[i>>6] >> (i & 63)
		step := 64 - i&63
		if step > hi-i {
			step = hi - i
			w &= 1<<step - 1
		}
		n += bits.OnesCount64(w)
		i += step
	}
	return n
}

// any tells whether a slot of lo <= i < hi is in the set.
func (b *bitmap) any(lo, hi int) bool { return b.countRange(lo, hi) > 0 }

// fullBitmap is the set of the first n slots.
func fullBitmap(n int) (b bitmap) {
	for i := range b {
		switch left := n - i*64; {
		case left >= 64:
			b[i] = ^uint64(0)
		case left > 0:
			b[i] = 1<<left - 1
		}
	}
	return b
}

// and is the set of slots in both.
func (b *bitmap) and(o *bitmap) (r bitmap) {
	for i := range b {
		r[i] = b[i] & o[i]
	}
	return r
}

// minus is the set of slots in b and not in o.
func (b *bitmap) minus(o *bitmap) (r bitmap) {
	for i := range b {
		r[i] = b[i] &^ o[i]
	}
	return r
}

// or is the set of slots in one or both.
func (b *bitmap) or(o *bitmap) (r bitmap) {
	for i := range b {
		r[i] = b[i] | o[i]
	}
	return r
}

// appendBytes writes the first n slots as ceil(n/8) bytes.
func (b *bitmap) appendBytes(dst []byte, n int) []byte {
	for i := range (n + 7) / 8 {
		dst = append(dst, byte(b[i/8]>>(i%8*8)))
	}
	return dst
}

// parseBitmap reads what appendBytes wrote; false if a bit behind the n-th is set.
func parseBitmap(src []byte, n int) (b bitmap, ok bool) {
	for i, c := range src {
		b[i/8] |= uint64(c) << (i % 8 * 8)
	}
	all := fullBitmap(n)
	return b, b.minus(&all) == bitmap{}
}
