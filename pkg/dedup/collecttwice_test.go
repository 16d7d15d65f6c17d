package dedup

import (
	"path"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// twice is a store with a chunk in two files, a and b: a has another one, too, most of
// which is garbage.
type twice struct {
	*testing.T
	mem  *vfs.Mem
	s    *Store
	at   []Slot // of blocks 0 to 19, in both files, and of 5 more, in a
	a, b *chunkCopy
}

// newTwice makes the store; file b is sealed, and its content synced, unless open.
func newTwice(t *testing.T, openB bool) *twice {
	t.Helper()
	x := &twice{T: t, mem: vfs.NewMem()}
	x.s = open(t, x.mem, 1, noCache, func(o *Options) { o.FileBytes = 1 << 20 })
	x.at = put(t, x.s, seq(0, 20)...)
	x.at = append(x.at, put(t, x.s, seq(20, 40)...)[:5]...)
	x.s.SealOpen()
	c := x.s.Plan(LiveSet{}, x.s.Horizon(), PlanOptions{})
	c.Condemn()
	if openB {
		w := x.s.NewWriter(CodecZstd, 3)
		for n := range 20 {
			if _, err := w.Block(block(n), Slot{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		w.Close()
	} else {
		put(t, x.s, seq(0, 20)...)
		x.s.SealOpen()
	}
	c.Abort()
	copies := x.s.index[x.at[0].Chunk].copies
	if len(copies) != 2 || copies[0].file == copies[1].file {
		t.Fatalf("%d copies", len(copies))
	}
	x.a, x.b = copies[0], copies[1]
	if len(x.a.file.copies) != 2 {
		x.a, x.b = x.b, x.a
	}
	return x
}

// plan begins a collection of file a.
func (x *twice) plan() *Collection {
	x.Helper()
	c := x.s.Plan(liveOf(x.at), x.s.Horizon(), PlanOptions{MinLive: 0.8})
	if len(c.files) != 1 || c.files[0] != x.a.file {
		x.Fatalf("%d files are collected", len(c.files))
	}
	c.Condemn()
	c.Recheck(liveOf(x.at))
	return c
}

// spoil damages block 0 in file b, which nobody knows yet.
func (x *twice) spoil() {
	x.mem.Corrupt(path.Join(testDir, x.b.file.blob.Name()), payloadOf(x.b)+3, func(p []byte) { p[0] ^= 1 })
}

// end runs the collection to its end: nothing live may be lost.
func (x *twice) end(c *Collection) {
	x.Helper()
	sweep(x, c)
	check(x, x.s, x.at, seq(0, 25)...)
	invariants(x, x.s)
}

// What another file holds is not copied, and the old file goes.
func TestCollectLeavesWhatAnotherFileHolds(t *testing.T) {
	x := newTwice(t, false)
	c := x.plan()
	x.end(c)
	if copies := x.s.index[x.at[0].Chunk].copies; len(copies) != 1 || copies[0].file != x.b.file {
		t.Errorf("%d copies are left", len(copies))
	}
	if c.Freed() <= 0 {
		t.Error("nothing was freed")
	}
}

// The other copy is read before this one is given up for it.
func TestCollectReadsTheOtherCopy(t *testing.T) {
	x := newTwice(t, false)
	c := x.plan()
	x.spoil()
	x.end(c)
}

// The other copy turns out to be damaged after it was read: this one stays.
func TestCollectKeepsWhatTheOtherCopyLost(t *testing.T) {
	x := newTwice(t, false)
	c := x.plan()
	if more, err := c.Step(); !more || err != nil {
		t.Fatal(more, err)
	}
	x.spoil()
	if err := x.s.VerifyFile(x.b.file.blob.Name(), true, func(Problem) {}); err != nil || x.b.good(0) {
		t.Fatalf("the damage was not found: %v", err)
	}
	x.end(c)
}

// A copy that a power loss can still take stands for none that is durable.
func TestCollectTrustsNoOpenFile(t *testing.T) {
	x := newTwice(t, true)
	x.end(x.plan())
	if err := x.mem.SyncDir(testDir); err != nil { // a removal counts
		t.Fatal(err)
	}
	x.mem.Crash(nil, 0)
	x.s = open(t, x.mem, 2)
	check(t, x.s, x.at, seq(0, 25)...)
}

// A chunk that is written again while its only copy is condemned is appended anew, and is
// there when the collection has dropped that copy.
func TestCondemnedChunkIsAppendedAnew(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	at := put(t, s, seq(0, 20)...)
	s.SealOpen()
	c := s.Plan(LiveSet{}, s.Horizon(), PlanOptions{})
	c.Condemn()
	c.Recheck(LiveSet{})
	again := put(t, s, seq(0, 20)...)
	if again[0] != at[0] {
		t.Fatalf("another chunk: %s, was %s", again[0], at[0])
	}
	sweep(t, c)
	check(t, s, again, seq(0, 20)...)
	invariants(t, s)
}
