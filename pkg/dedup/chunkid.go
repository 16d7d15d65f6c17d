package dedup

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"github.com/zeebo/blake3"
)

// A chunk's ID is the root of a hash tree over the fingerprints of its slots, split
// as in RFC 6962: n leaves at the largest power of two smaller than n. A copy that
// lost slots carries the hash of each largest subtree that is wholly absent, and so
// still proves its ID.

// errProof means that a list has not the hashes that its absent slots need.
var errProof = errors.New("fingerprint list has the wrong number of hashes")

// innerHash is the hash of a tree node over its two children.
func innerHash(l, r Fingerprint) Fingerprint {
	var b [41]byte
	b[0] = 1
	copy(b[1:], l[:])
	copy(b[21:], r[:])
	sum := blake3.Sum256(b[:])
	return Fingerprint(sum[:20])
}

// rootID is the ID of a chunk of n slots with this top of its tree.
func rootID(kind Kind, n int, top Fingerprint) ChunkID {
	var b [24]byte
	b[0], b[1] = 2, byte(kind)
	binary.LittleEndian.PutUint16(b[2:], uint16(n))
	copy(b[4:], top[:])
	sum := blake3.Sum256(b[:])
	return ChunkID(sum[:20])
}

// splitAt is the largest power of two smaller than n (n > 1).
func splitAt(n int) int { return 1 << (bits.Len(uint(n-1)) - 1) }

// tree is a chunk's fingerprints as one copy has them.
type tree struct {
	kind   Kind
	n      int           // slots, 1 to MaxSlots
	have   bitmap        // slots present
	fps    []Fingerprint // by slot, n of them; undefined where absent
	absent []Fingerprint // largest absent subtrees, in slot order
}

// top is the hash of leaves [lo, lo+n). It takes absent subtrees from the front of
// *absent and sets *short if there are too few.
func (t *tree) top(lo, n int, absent *[]Fingerprint, short *bool) Fingerprint {
	if !t.have.any(lo, lo+n) {
		if len(*absent) == 0 {
			*short = true
			return Fingerprint{}
		}
		h := (*absent)[0]
		*absent = (*absent)[1:]
		return h
	}
	if n == 1 {
		return t.fps[lo]
	}
	k := splitAt(n)
	l := t.top(lo, k, absent, short)
	return innerHash(l, t.top(lo+k, n-k, absent, short))
}

// id computes the chunk ID; errProof if absent has not exactly the hashes it needs.
func (t *tree) id() (ChunkID, error) {
	absent, short := t.absent, false
	top := t.top(0, t.n, &absent, &short)
	if short || len(absent) > 0 {
		return ChunkID{}, errProof
	}
	return rootID(t.kind, t.n, top), nil
}

// reduce is the tree of a copy that keeps only the slots in keep, which must be
// present in t.
func (t *tree) reduce(keep *bitmap) (*tree, error) {
	r := &tree{kind: t.kind, n: t.n, have: *keep, fps: t.fps}
	absent, short := t.absent, false
	t.walkAbsent(0, t.n, keep, &absent, &short, &r.absent)
	if short || len(absent) > 0 {
		return nil, errProof
	}
	return r, nil
}

// walkAbsent appends to out the hashes of the largest subtrees of [lo, lo+n) that are
// absent from keep.
func (t *tree) walkAbsent(lo, n int, keep *bitmap, absent *[]Fingerprint, short *bool, out *[]Fingerprint) {
	if !keep.any(lo, lo+n) {
		*out = append(*out, t.top(lo, n, absent, short))
		return
	}
	if n == 1 {
		return
	}
	k := splitAt(n)
	t.walkAbsent(lo, k, keep, absent, short, out)
	t.walkAbsent(lo+k, n-k, keep, absent, short, out)
}
