package dedup

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// A chunk whose list matches its checksum, but lacks hashes that a smaller copy would
// need to prove its ID, is not collected: its file stays as it is, and every slot in it
// is usable again.
func TestCollectLeavesAListWithoutItsHashes(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	m := makeChunk(t, s, 30, func(i int) bool { return i < 20 })
	part, err := m.tree.reduce(&m.have)
	if err != nil {
		t.Fatal(err)
	}
	part.absent = nil
	e, err := s.encodeMixed(m.head.id, part, 3, CodecZstd, nil, func(i int) []byte { return m.blocks[i] })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.append(e); err != nil {
		t.Fatal(err)
	}
	if err := s.SealOpen(); err != nil {
		t.Fatal(err)
	}
	before := fileNames(s)
	live := Slot{m.head.id, 3}
	c := s.Plan(liveOf([]Slot{live}), s.Horizon(), PlanOptions{MinLive: 1})
	if c.Files() != 1 {
		t.Fatalf("%d files picked", c.Files())
	}
	c.Condemn()
	for more := true; more; {
		if more, err = c.Step(); err != nil {
			t.Fatal(err)
		}
	}
	if after := fileNames(s); after != before || c.Freed() != 0 {
		t.Errorf("%s, was %s; %d bytes freed", after, before, c.Freed())
	}
	for i := range 20 {
		if s.index[m.head.id].usable(i) == nil {
			t.Errorf("slot %d is not usable", i)
		}
		if b, err := s.ReadNode(Slot{m.head.id, uint16(i)}); err != nil || string(b) != string(m.blocks[i]) {
			t.Errorf("slot %d: %v", i, err)
		}
	}
	invariants(t, s)
}

// A full disk stops the second file of a collection, and what was written of it cannot be
// cut off: the copies of the first are given up as well, unsynced and unnamed, and both
// files stay. The next collection does it all.
func TestCollectionFileIsGivenUp(t *testing.T) {
	mem := vfs.NewMem()
	faulty := vfs.NewFaulty(mem)
	s := open(t, faulty, 1)
	var at, live []Slot
	var ns, liveNs []int
	for i := range 2 {
		part := seq(30*i, 30*i+30)
		put := put(t, s, part...)
		if err := s.SealOpen(); err != nil {
			t.Fatal(err)
		}
		at, ns = append(at, put...), append(ns, part...)
		live, liveNs = append(live, put[:10]...), append(liveNs, part[:10]...)
	}
	before := fileNames(s)
	collect := func() (*Collection, error) {
		c := s.Plan(liveOf(live), s.Horizon(), PlanOptions{MinLive: 1})
		if c.Files() != 2 {
			t.Fatalf("%d files of two are picked", c.Files())
		}
		c.Condemn()
		c.Recheck(liveOf(live))
		for {
			if more, err := c.Step(); err != nil || !more {
				return c, err
			}
		}
	}
	out, writes := "", 0
	faulty.SetHook(func(op vfs.Op) error {
		switch {
		case op.Kind == vfs.OpCreate:
			out = op.Name
		case op.Name != out:
		case op.Kind == vfs.OpWrite:
			if writes++; writes == 3 { // header, the first file's chunk, this
				return vfs.ShortWrite{N: 1000, Err: vfs.ErrNoSpace}
			}
		case op.Kind == vfs.OpTruncate && op.Off > fileHeaderSize:
			return errBroken
		case op.Kind == vfs.OpSync || op.Kind == vfs.OpDatasync || op.Kind == vfs.OpRename:
			t.Errorf("%v of a file that was given up", op.Kind)
		}
		return nil
	})
	c, err := collect()
	if !errors.Is(err, errAbandoned) || !strings.Contains(err.Error(), "collect ") {
		t.Errorf("%v after %d writes", err, writes)
	}
	if more, err := c.Step(); more || err != nil || c.Freed() != 0 {
		t.Errorf("the collection goes on: %v, %v, %d bytes freed", more, err, c.Freed())
	}
	if after := fileNames(s); after != before {
		t.Errorf("%s, was %s", after, before)
	}
	if _, err := mem.Stat(out); !errors.Is(err, vfs.ErrNotExist) {
		t.Errorf("%s: %v", path.Base(out), err)
	}
	for _, a := range at {
		if s.index[a.Chunk].usable(int(a.Slot)) == nil {
			t.Errorf("slot %s is not usable", a)
		}
	}
	check(t, s, at, ns...)
	verify(t, s)
	invariants(t, s)
	afterDeath(t, mem, at, ns...)
	faulty.SetHook(nil)
	if c, err := collect(); err != nil || c.Freed() <= 0 {
		t.Errorf("the next collection: %v, %d bytes freed", err, c.Freed())
	}
	check(t, s, live, liveNs...)
	verify(t, s)
	invariants(t, s)
	afterDeath(t, mem, live, liveNs...)
}
