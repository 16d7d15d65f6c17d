package dedup

import (
	"bytes"
	"errors"
	"path"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// A fingerprint is found only where all of it is, and in a slot that is there: half of it,
// by which lists and hooks are looked up, may be another block's.
func TestFingerprintIsComparedWhole(t *testing.T) {
	l := &fpList{num: 7, fps: make([]Fingerprint, 3)}
	for i := range l.fps {
		l.fps[i] = FingerprintOf(block(i))
	}
	l.have.set(0)
	l.have.set(1)
	cache := newListCache(4)
	cache.add(l, true)
	for i, there := range []bool{true, true, false} {
		like := l.fps[i]
		like[len(like)-1] ^= 1
		for _, c := range []struct {
			fp   Fingerprint
			want bool
		}{{l.fps[i], there}, {like, false}} {
			_, found := l.find(&c.fp)
			_, _, known := cache.lookup(&c.fp)
			if at := l.at(i, &c.fp); at != c.want || found != c.want || known != c.want {
				t.Errorf("slot %d, %x: at %v, found %v, looked up %v; want %v", i, c.fp, at, found, known, c.want)
			}
		}
	}
}

// listedStore is a store of 3 chunks of 8 slots that differ in nothing but their contents,
// started anew once hurt has changed the bytes of its file; at are the copies' places.
func listedStore(t *testing.T, hurt func(b []byte, copies []*chunkCopy)) (s *Store, at []Slot) {
	t.Helper()
	mem := vfs.NewMem()
	s = open(t, mem, 1, func(o *Options) { o.FileBytes = 1 << 20 })
	var copies []*chunkCopy
	for i := range 3 {
		w := s.NewWriter(CodecRaw, 3)
		for n := range 8 {
			if _, err := w.Block(block(8*i+n), Slot{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Flush(), w.Sync()); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, s.index[w.ids[0]].copies[0])
		for n := range 8 {
			at = append(at, Slot{w.ids[0], uint16(n)})
		}
		w.Close()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mem.Corrupt(path.Join(testDir, s.Files()[0].Name), 0, func(b []byte) { hurt(b, copies) })
	return open(t, mem, 2), at
}

// again writes a block with a hint and returns its address.
func again(t *testing.T, s *Store, n int, prev Slot) Slot {
	t.Helper()
	w := s.NewWriter(CodecRaw, 3)
	defer w.Close()
	ref, err := w.Block(block(n), prev)
	if err := errors.Join(err, w.Flush(), w.Sync()); err != nil {
		t.Fatal(err)
	}
	return w.Slot(ref)
}

// A list of fingerprints is believed for its checksum, or because the chunk's ID follows
// from it. One that is neither, or that is another chunk's, would have blocks taken for
// others (I5).
func TestListIsNotBelieved(t *testing.T) {
	list := func(b []byte, c *chunkCopy) []byte { return b[c.off+headSize+c.front:][:c.list] }
	for what, hurt := range map[string]func(b []byte, copies []*chunkCopy){
		"a fingerprint is another's": func(b []byte, copies []*chunkCopy) {
			l, fp := list(b, copies[0]), FingerprintOf(block(100))
			copy(l[2*len(fp):], fp[:])
		},
		"another chunk's list, with its head": func(b []byte, copies []*chunkCopy) {
			from := b[copies[1].off:][:headSize+copies[1].front+copies[1].list]
			copy(b[copies[0].off:], bytes.Clone(from))
		},
	} {
		s, at := listedStore(t, hurt)
		for _, n := range []int{100, 10} {
			check(t, s, []Slot{again(t, s, n, at[2])}, n)
		}
		check(t, s, at[8:], seq(8, 24)...)
		if !s.listBad(s.index[at[0].Chunk].copies[0]) {
			t.Errorf("%s: the list is not known to be bad", what)
		}
	}
}

// A list proves itself where the chunk's head cannot be read: its blocks are not stored
// again in vain, and damage is told with its fingerprints, so that it heals.
func TestListWithoutItsHead(t *testing.T) {
	s, at := listedStore(t, func(b []byte, copies []*chunkCopy) { b[copies[0].off+5] ^= 1 })
	if l, err := s.loadList(s.index[at[0].Chunk]); err != nil || l.fps[3] != FingerprintOf(block(3)) {
		t.Fatalf("the list: %v", err)
	}
	if _, err := s.ReadNode(at[3]); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a chunk without its head: %v", err)
	}
	put(t, s, seq(0, 8)...)
	check(t, s, at, seq(0, 24)...)
	if d := s.Damaged(); len(d) > 0 {
		t.Errorf("not healed: %v", d)
	}
}

// What heals is kept until a chunk file has it, whatever becomes of the caller's buffer.
func TestHealingKeepsItsBlocks(t *testing.T) {
	_, _, s, at := rotten(t, 16)
	w := s.NewWriter(CodecZstd, 3)
	defer w.Close()
	buf, ns := make([]byte, BlockSize), []int{9, 3, 5} // in another order: another chunk
	for _, n := range ns {
		copy(buf, block(n))
		if _, err := w.Block(buf, Slot{}); err != nil {
			t.Fatal(err)
		}
	}
	clear(buf)
	if err := errors.Join(w.Flush(), w.Sync()); err != nil {
		t.Fatal(err)
	}
	check(t, s, []Slot{at[9], at[3], at[5]}, ns...)
}

// A copy that heals and turns bad before it is durable has healed nothing.
func TestHealingTurnsBad(t *testing.T) {
	_, _, s, at := rotten(t, 16)
	w := s.NewWriter(CodecZstd, 3)
	defer w.Close()
	for i := range 16 {
		if _, err := w.Block(block(i), Slot{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	c := s.index[at[0].Chunk].copies[0]
	s.markBad(&badPart{copy: c, lo: 3, hi: 4, reason: "test"})
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Healed()); n != 15 {
		t.Errorf("%d slots healed, want all but one", n)
	}
	if d := s.Damaged(); len(d) != 1 || d[0].Slot != at[3] {
		t.Errorf("damaged: %v", d)
	}
}

// Damage is told once nothing holds the slot any more, and not while another copy does.
func TestDamageOfOneCopy(t *testing.T) {
	var told []Damage
	_, _, s, at := rotten(t, 16)
	put(t, s, seq(0, 16)...) // heals
	s.o.OnDamage = func(d Damage) { told = append(told, d) }
	ch := s.index[at[0].Chunk]
	old := ch.copies[len(ch.copies)-1]
	s.mu.Lock()
	old.bad = nil // as after a start without a record
	s.mu.Unlock()
	s.markBad(&badPart{copy: old, lo: 3, hi: 4, reason: "test"})
	if len(told) > 0 || len(s.damage) > 0 {
		t.Errorf("told %v of a slot that another copy holds", told)
	}
	s.markBad(&badPart{copy: ch.copies[0], lo: 3, hi: 4, reason: "test"})
	if len(told) != 1 || told[0].Slot != at[3] {
		t.Errorf("told %v", told)
	}
}

// Damage of a chunk that is nowhere any more heals by nothing, and is in nobody's way.
func TestDamageOfAChunkThatIsGone(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	s.LoadDamage([]Damage{{Slot: Slot{Chunk: ChunkID{7}, Slot: 3}, Fingerprint: FingerprintOf(block(3)), File: "gone"}})
	check(t, s, put(t, s, 3), 3)
	if d := s.Damaged(); len(d) != 1 {
		t.Errorf("damaged: %v", d)
	}
}

// What a disk answered an error for, and can read again, is whole: a check finds that out.
func TestCheckTakesDamageBack(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := open(t, fsys, 1, noCache)
	at := put(t, s, seq(0, 16)...)
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead {
			return syscall.EIO
		}
		return nil
	})
	if _, err := s.ReadNode(at[3]); err == nil {
		t.Fatal("read")
	}
	fsys.SetHook(nil)
	if s.DamagedCount() == 0 {
		t.Fatal("no damage")
	}
	verify(t, s)
	if len(s.damage) > 0 {
		t.Errorf("still damage: %v", s.damage)
	}
	if again := put(t, s, 3); again[0] != at[3] {
		t.Errorf("the block is stored again, at %s", again[0])
	}
}
