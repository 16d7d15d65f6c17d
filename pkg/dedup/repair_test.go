package dedup

import (
	"bytes"
	"errors"
	"path"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
	"github.com/k8ns/granary/pkg/wal"
)

// madeChunk is a chunk as it is in a file, and what it holds.
type madeChunk struct {
	b      []byte
	head   chunkHead
	have   bitmap
	tree   *tree // of all slots
	blocks [][]byte
}

// makeChunk encodes n blocks, of which a copy keeps those that keep tells.
func makeChunk(t *testing.T, s *Store, n int, keep func(int) bool) madeChunk {
	t.Helper()
	m := madeChunk{tree: &tree{kind: KindData, n: n, have: fullBitmap(n), fps: make([]Fingerprint, n)}}
	for i := range n {
		b := block(i)
		if i%3 == 0 {
			b = noise(i)
		}
		m.blocks = append(m.blocks, b)
		m.tree.fps[i] = FingerprintOf(b)
		if keep(i) {
			m.have.set(i)
		}
	}
	id, err := m.tree.id()
	if err != nil {
		t.Fatal(err)
	}
	m.head.id = id
	e := m.encode(t, s, m.have)
	m.head, m.b = e.front.head, bytes.Clone(e.meta)
	for _, d := range e.data {
		m.b = append(m.b, d...)
	}
	return m
}

// encode makes a copy of the chunk that has the slots in have.
func (m *madeChunk) encode(t *testing.T, s *Store, have bitmap) *encodedChunk {
	t.Helper()
	part, err := m.tree.reduce(&have)
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.encodeMixed(m.head.id, part, 3, CodecZstd, nil, func(i int) []byte { return m.blocks[i] })
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func nothingKnown(ChunkID) *tree { return nil }

// Any one byte of a chunk may be wrong: what it is not of is saved, and nothing is saved
// that is not right.
func TestSalvageAfterAnyByte(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	for _, c := range []struct {
		what string
		keep func(int) bool
	}{
		{"whole", func(int) bool { return true }},
		{"partial", func(i int) bool { return i < 11 || i > 17 && i != 25 }},
	} {
		m := makeChunk(t, s, 30, c.keep)
		list := headSize + int64(m.head.front)
		payload := list + int64(m.head.list)
		hashes := payload - int64(m.head.list) + 20*int64(m.head.present) // of absent subtrees
		for at := int64(0); at < int64(len(m.b)); at++ {
			if at > payload && at%29 != 0 {
				continue
			}
			b := bytes.Clone(m.b)
			b[at] ^= 1 << (at % 8)
			cand := candidate{head: m.head, have: &m.have, listed: true}
			if _, err := parseChunkHead(b); err != nil {
				cand.head.frontCRC, cand.head.listCRC, cand.headBad = 0, 0, true
			}
			v, err := s.salvage(bytes.NewReader(b), int64(len(b)), cand, nothingKnown)
			if err != nil {
				t.Fatal(err)
			}
			if at >= hashes && at < payload { // that proves nothing; but from elsewhere the ID is proved
				if v.tree != nil || v.raw == nil {
					t.Fatalf("%s: byte %d: a list without its hashes: %+v", c.what, at, v.tree)
				}
				v, _ = s.salvage(bytes.NewReader(b), int64(len(b)), cand, func(ChunkID) *tree { return m.tree })
			}
			if v.tree == nil || v.tree.prove(m.head.id) != nil || v.tree.have != m.have {
				t.Fatalf("%s: byte %d: nothing is proved", c.what, at)
			}
			lost := v.tree.have.minus(&v.good)
			if n := lost.count(); at < payload && n > 0 || n > 8 || v.clean() {
				t.Fatalf("%s: byte %d: %d slots lost, clean %v", c.what, at, n, v.clean())
			}
			for i, got := range v.blocks {
				if got != nil && !bytes.Equal(got, m.blocks[i]) {
					t.Fatalf("%s: byte %d: slot %d has other bytes", c.what, at, i)
				}
			}
		}
	}
}

// A front of which several entries are wrong still shows the groups before and behind.
func TestSalvageFromBothEnds(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	m := makeChunk(t, s, 64, func(int) bool { return true })
	clear(m.b[headSize+2*groupEntry : headSize+5*groupEntry]) // groups 2 to 4 of 8
	v, err := s.salvage(bytes.NewReader(m.b), int64(len(m.b)), candidate{head: m.head}, nothingKnown)
	if err != nil || v.tree == nil {
		t.Fatal(err)
	}
	if v.good.countRange(0, 16) != 16 || v.good.countRange(16, 40) != 0 || v.good.countRange(40, 64) != 24 {
		t.Errorf("good are %b", v.good[0])
	}
	// What is cut off is lost, and no more.
	m = makeChunk(t, s, 64, func(int) bool { return true })
	half := int64(len(m.b)) - int64(m.head.payload)/2
	v, err = s.salvage(bytes.NewReader(m.b[:half]), half, candidate{head: m.head}, nothingKnown)
	if err != nil || v.tree == nil || v.good.count() < 24 || v.good.count() > 40 {
		t.Errorf("half of a chunk: %v, %d slots", err, v.good.count())
	}
}

// spoiledFile stores blocks, stops, lets spoil change the one chunk file, and opens again
// after all has been verified.
func spoiledFile(t *testing.T, spoil func(c *chunkCopy, data []byte) []byte, ns ...int) (*vfs.Mem, *Store, []Slot, string) {
	t.Helper()
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	at := put(t, s, ns...)
	c := s.index[at[0].Chunk].copies[0]
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name := s.Files()[0].Name
	data, err := vfs.ReadFile(mem, path.Join(testDir, name))
	if err != nil {
		t.Fatal(err)
	}
	data = spoil(c, data)
	f, err := mem.Open(path.Join(testDir, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s = open(t, mem, 2, func(o *Options) { o.Repair = true })
	if err := s.VerifyFile(name, true, func(Problem) {}); err != nil {
		t.Fatal(err)
	}
	return mem, s, at, name
}

// rebuildFile rebuilds a file, which must be worth it, and takes it away.
func rebuildFile(t *testing.T, s *Store, name string, needed func(Slot) bool) *Rebuilt {
	t.Helper()
	r, err := s.Rebuild(name, needed)
	if err != nil || r == nil {
		t.Fatalf("rebuild: %v, %v", r, err)
	}
	if moved, err := r.Retire("/store/quarantine"); err != nil || moved != name {
		t.Fatalf("retire: %q, %v", moved, err)
	}
	invariants(t, s)
	return r
}

// A chunk that nothing proves, but that can be read, is carried into the new file as it
// is: what could be read before can be read after.
func TestRebuildCarriesWhatItCannotProve(t *testing.T) {
	_, s, at, name := spoiledFile(t, func(c *chunkCopy, data []byte) []byte {
		list := int64(c.off) + headSize + int64(c.front)
		data[list] ^= 1                 // the fingerprint of slot 0
		data[list+int64(c.list)+3] ^= 1 // and its group
		data[len(data)-90] ^= 1         // and the trailer
		return data
	}, seq(0, 24)...)
	r := rebuildFile(t, s, name, nil)
	if r.New == "" || len(r.Lost) > 0 {
		t.Errorf("%+v", r)
	}
	check(t, s, at[8:], seq(8, 24)...)
	if _, err := s.ReadNode(at[0]); err == nil {
		t.Error("the damaged group reads")
	}
}

// A file with nothing wrong is left alone, and so is one of which a slot is bad and that
// keeps the fingerprint by which it heals.
func TestRebuildLeavesASoundFile(t *testing.T) {
	for _, bad := range []bool{false, true} {
		mem, s, _, name := spoiledFile(t, func(c *chunkCopy, data []byte) []byte {
			if bad {
				data[int64(c.off)+headSize+int64(c.front)+int64(c.list)+3] ^= 1
			}
			return data
		}, seq(0, 24)...)
		before := mem.Digest()
		if better, err := s.Repairable(name); better || err != nil {
			t.Errorf("bad slots %v: %v, %v", bad, better, err)
		}
		if r, err := s.Rebuild(name, nil); r != nil || err != nil || mem.Digest() != before {
			t.Errorf("bad slots %v: %+v, %v", bad, r, err)
		}
	}
}

// putCopy writes the slots of a chunk that keep tells into a sealed file of their own and
// returns it and where their copy is.
func (m *madeChunk) putCopy(t *testing.T, s *Store, keep bitmap) (*file, *chunkCopy) {
	t.Helper()
	f, err := s.createPrivate()
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.appendTo(f, m.encode(t, s, keep), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.sealPrivate(f); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publish(f)
	return f, c
}

// A copy of which the list is damaged, the front perhaps as well, is proved by the list of
// another file, and by that which lists most: what only the damaged one still holds is
// saved, and no more than that.
func TestRebuildProvesByAnotherFile(t *testing.T) {
	for _, front := range []bool{false, true} {
		mem := vfs.NewMem()
		s := open(t, mem, 1)
		m := makeChunk(t, s, 24, func(int) bool { return true })
		var few bitmap
		few.set(0)
		m.putCopy(t, s, few)
		spoiled, c := m.putCopy(t, s, fullBitmap(24))
		other, oc := m.putCopy(t, s, fullBitmap(24))
		m.putCopy(t, s, few) // in whatever order they are looked at
		list := int64(c.off) + headSize + int64(c.front)
		payload := list + int64(c.list)
		mem.Corrupt(path.Join(testDir, spoiled.blob.Name()), 0, func(b []byte) {
			b[list] ^= 1 // the fingerprint of slot 0
			b[payload+3] ^= 1
			if front {
				b[int64(c.off)+headSize] ^= 1 // the first group's entry
			}
		})
		end := int64(oc.off) + headSize + int64(oc.front) + int64(oc.list) + int64(oc.payload)
		mem.Corrupt(path.Join(testDir, other.blob.Name()), end-3, func(b []byte) { b[0] ^= 1 }) // the last group
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, mem, 2, func(o *Options) { o.Repair = true })
		for _, f := range s.Files() {
			if err := s.VerifyFile(f.Name, true, func(Problem) {}); err != nil {
				t.Fatal(err)
			}
		}
		r := rebuildFile(t, s, spoiled.blob.Name(), nil)
		if r.Slots != 8 || len(r.Lost) > 0 {
			t.Errorf("front %v: %+v", front, r)
		}
		for i := range 24 {
			if b, err := s.ReadNode(Slot{m.head.id, uint16(i)}); err != nil || !bytes.Equal(b, m.blocks[i]) {
				t.Errorf("front %v: slot %d: %v", front, i, err)
			}
		}
	}
}

// What a search finds may be made by a guest: its commit number is not believed, and what
// nobody needs of it is not saved.
func TestRebuildDoesNotBelieveWhatItSearches(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	forged := makeChunk(t, s, 1, func(int) bool { return true })
	forged.head.commit = 1 << 60
	meta := append(forged.head.appendTo(nil), forged.b[headSize:len(forged.b)-BlockSize]...)
	guest := noise(3)
	copy(guest[BlockSize-len(meta):], meta) // its payload is the next block
	w := s.NewWriter(CodecRaw, 3)
	var last Ref
	for _, b := range [][]byte{noise(1), guest, forged.blocks[0], noise(4)} {
		var err error
		if last, err = w.Block(b, Slot{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(), w.Sync()); err != nil {
		t.Fatal(err)
	}
	c := s.index[w.Slot(last).Chunk].copies[0]
	w.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name := s.Files()[0].Name
	mem.Corrupt(path.Join(testDir, name), 0, func(b []byte) {
		b[len(b)-90] ^= 1 // no footer, and no head: a search goes through the payload
		b[c.off+10] ^= 1
	})
	for _, needed := range []bool{false, true} {
		s = open(t, mem.Clone(), 2, func(o *Options) { o.Repair = true })
		r, err := s.Rebuild(name, func(Slot) bool { return needed })
		if err != nil || r == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		if (r.New != "") != needed || s.MaxCommit() >= 1<<60 {
			t.Errorf("needed %v: saved %+v, highest commit number %d", needed, r, s.MaxCommit())
		}
	}
}

// The copies that a rebuilding makes can be scanned: a footer that rots later costs
// nothing more.
func TestRebuiltFileIsRebuilt(t *testing.T) {
	mem, s, at, name := spoiledFile(t, func(c *chunkCopy, data []byte) []byte {
		data[int64(c.off)+headSize+int64(c.front)+int64(c.list)+3] ^= 1
		data[len(data)-90] ^= 1
		return data
	}, seq(0, 24)...)
	r := rebuildFile(t, s, name, nil)
	if len(r.Lost) != 8 || r.Lost[0].Fingerprint != FingerprintOf(block(0)) || r.Lost[0].File != r.New || r.Slots != 16 {
		t.Fatalf("%+v", r)
	}
	for _, n := range seq(0, 8) {
		if _, err := s.ReadNode(at[n]); err == nil || !strings.Contains(err.Error(), lostReason) {
			t.Fatalf("slot %d: %v", n, err)
		}
	}
	mem.Corrupt(path.Join(testDir, r.New), 0, func(b []byte) { b[len(b)-90] ^= 1 })
	s = open(t, mem, 3, func(o *Options) { o.Repair = true })
	again := rebuildFile(t, s, r.New, nil)
	if len(again.Lost) != 8 || again.Slots != 16 {
		t.Fatalf("%+v", again)
	}
	check(t, s, at[8:], seq(8, 24)...)
	// Written again the lost slots heal, and then the file has nothing to be repaired but
	// what another holds.
	s.LoadDamage(again.Lost)
	put(t, s, seq(0, 8)...)
	check(t, s, at, seq(0, 24)...)
	if s.DamagedCount() > 0 {
		t.Errorf("damaged: %v", s.Damaged())
	}
	if err := s.SealOpen(); err != nil {
		t.Fatal(err)
	}
	if st := open(t, mem.Clone(), 4).Stats(); st.Damaged > 0 {
		t.Errorf("after a start %d slots count as damaged", st.Damaged)
	}
	if last := rebuildFile(t, s, again.New, nil); len(last.Lost) != 0 || last.Slots != 16 {
		t.Errorf("%+v", last)
	}
	check(t, s, at, seq(0, 24)...)
}

// One byte is less than any codec makes of blocks, so no group with content has it.
func TestLostGroupsAreLikeNoOther(t *testing.T) {
	cs := newCodecs(1)
	defer cs.close()
	zeros := make([]byte, BlockSize<<maxShift)
	for _, codec := range []Codec{CodecZstd, CodecS2} {
		for n := BlockSize; n <= len(zeros); n += BlockSize {
			if g := cs.compress(codec, zeros[:n], make([]byte, 0, n)); len(g.data) <= lostGroup {
				t.Errorf("%d zeros are %d bytes of %s", n, len(g.data), codec)
			}
		}
	}
	have := fullBitmap(20)
	for _, g := range lostGroups(20, &have, 3) {
		if g.crc == wal.PageCRC(g.data) || cs.decompress(g.codec, make([]byte, 8*BlockSize), g.data) == nil {
			t.Error("a lost group can be read")
		}
	}
}

// A death behind a rebuilding, before anybody recorded what is lost: the next one tells it
// with the fingerprints, by which it heals.
func TestRebuildAgainAfterADeath(t *testing.T) {
	mem, s, at, name := spoiledFile(t, func(c *chunkCopy, data []byte) []byte {
		data[int64(c.off)+headSize+int64(c.front)+int64(c.list)+3] ^= 1
		data[len(data)-90] ^= 1
		return data
	}, seq(0, 24)...)
	first, err := s.Rebuild(name, nil)
	if err != nil || len(first.Lost) != 8 {
		t.Fatalf("%+v, %v", first, err)
	}
	s = open(t, mem, 3, func(o *Options) { o.Repair = true })
	if err := s.VerifyFile(name, true, func(Problem) {}); err != nil {
		t.Fatal(err)
	}
	again := rebuildFile(t, s, name, nil)
	if again.New != "" || len(again.Lost) != 8 {
		t.Fatalf("%+v", again)
	}
	for i, d := range again.Lost {
		if d.Fingerprint != FingerprintOf(block(i)) || d.File != first.New {
			t.Errorf("slot %d: %+v", i, d)
		}
	}
	s = open(t, mem, 4)
	s.LoadDamage(again.Lost)
	put(t, s, seq(0, 8)...)
	check(t, s, at, seq(0, 24)...)
}

// The same when the new file has rotted since: what of it the old one still holds is
// written once more, and what is lost is still told to be where its fingerprints are.
func TestRebuildAgainAfterMoreDamage(t *testing.T) {
	mem, s, at, name := spoiledFile(t, func(c *chunkCopy, data []byte) []byte {
		data[int64(c.off)+headSize+int64(c.front)+int64(c.list)+3] ^= 1
		data[len(data)-90] ^= 1
		return data
	}, seq(0, 24)...)
	first, err := s.Rebuild(name, nil)
	if err != nil || len(first.Lost) != 8 {
		t.Fatalf("%+v, %v", first, err)
	}
	var kept *chunkCopy
	for _, c := range s.index[at[0].Chunk].copies {
		if c.file.blob.Name() == first.New && !c.allLost() {
			kept = c
		}
	}
	mem.Corrupt(path.Join(testDir, first.New), int64(kept.off)+headSize+int64(kept.front)+int64(kept.list)+3, func(b []byte) { b[0] ^= 1 })
	s = open(t, mem, 3, func(o *Options) { o.Repair = true })
	for _, file := range []string{name, first.New} {
		if err := s.VerifyFile(file, true, func(Problem) {}); err != nil {
			t.Fatal(err)
		}
	}
	again := rebuildFile(t, s, name, nil)
	if again.New == "" || again.Slots != 8 || len(again.Lost) != 8 {
		t.Fatalf("%+v", again)
	}
	for i, d := range again.Lost {
		if d.Fingerprint != FingerprintOf(block(i)) || d.File != first.New {
			t.Errorf("slot %d: %+v", i, d)
		}
	}
	check(t, s, at[8:], seq(8, 24)...)
}

// longStat tells that files are longer than they are.
type longStat struct{ vfs.FS }

func (l longStat) Stat(name string) (vfs.Info, error) {
	st, err := l.FS.Stat(name)
	if !st.IsDir {
		st.Size += 300
	}
	return st, err
}

// A file that ends before its size is short, which is a fault of it like others; what is
// there is saved.
func TestRebuildShortFile(t *testing.T) {
	mem, s, at, name := spoiledFile(t, func(c *chunkCopy, data []byte) []byte { return data }, seq(0, 24)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, longStat{mem}, 3, func(o *Options) { o.Repair = true })
	if better, err := s.Repairable(name); err != nil || !better {
		t.Fatalf("%v, %v", better, err)
	}
	r := rebuildFile(t, s, name, nil)
	if r.Slots != 24 || len(r.Lost) > 0 || !strings.Contains(strings.Join(r.Reasons, ", "), "shorter") {
		t.Errorf("%+v", r)
	}
	check(t, s, at, seq(0, 24)...)
	// Cut in its last chunk, with a footer that was read before.
	for _, cut := range []int64{200, 2000} {
		mem, s, _, name := spoiledFile(t, func(c *chunkCopy, data []byte) []byte { return data }, seq(0, 24)...)
		ff, _, err := s.findFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.readFooter(ff); err != nil {
			t.Fatal(err)
		}
		f, err := mem.Open(path.Join(testDir, name))
		if err != nil {
			t.Fatal(err)
		}
		c := ff.chunks[len(ff.chunks)-1]
		if err := f.Truncate(int64(c.off) + c.head.size() - cut); err != nil {
			t.Fatal(err)
		}
		f.Close()
		for _, footer := range []bool{true, false} {
			cands, err := s.candidates(ff, footer)
			if err != nil || len(cands) != len(ff.chunks) {
				t.Fatalf("%d candidates, %v", len(cands), err)
			}
			v, err := s.salvage(ff.blob, ff.Size, cands[len(cands)-1], nothingKnown)
			if err != nil || v.tree == nil || v.clean() {
				t.Errorf("cut by %d: %+v, %v", cut, v, err)
			}
		}
	}
}

// A check asks for every damaged file whether a repair would better it, in a daemon that
// goes on: no descriptor is left that keeps the disk space of a file removed later.
func TestRepairableLeavesNothingOpen(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	put(t, s, seq(0, 24)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name := s.Files()[0].Name
	mem.Corrupt(path.Join(testDir, name), 0, func(b []byte) { b[len(b)-90] ^= 1 })
	data, err := vfs.ReadFile(mem, path.Join(testDir, name))
	if err != nil {
		t.Fatal(err)
	}
	twin := "000000ff" + name[8:] // not in the index: it is another store's
	copy(data, (&fileHeader{store: [16]byte{9}, num: FileNum{255, 1}}).encode())
	if err := vfs.WriteFileAtomic(mem, path.Join(testDir, twin), data); err != nil {
		t.Fatal(err)
	}
	faulty := vfs.NewFaulty(mem)
	var descriptors vfstest.Descriptors
	faulty.SetHook(func(op vfs.Op) error {
		descriptors.See(op)
		return nil
	})
	s = open(t, faulty, 2)
	s.dir.Close()
	for _, name := range []string{name, twin} {
		before := descriptors.Open()
		for range 2 {
			if better, err := s.Repairable(name); err != nil || !better {
				t.Errorf("%s: %v, %v", name, better, err)
			}
		}
		s.dropAll(t)
		if now := descriptors.Open(); now != before {
			t.Errorf("%s: %d files are open, %d were", name, now, before)
		}
	}
}

// A file that may be another store's, because its header could not be read at the start,
// does not stand for the same slots of one that is rebuilt: it may go, too.
func TestRebuildTrustsNoUnknownFile(t *testing.T) {
	mem, s, at, name := spoiledFile(t, func(_ *chunkCopy, data []byte) []byte {
		data[len(data)-1] ^= 1 // in the trailer
		return data
	}, seq(0, 24)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := vfs.ReadFile(mem, path.Join(testDir, name))
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	copy(data, (&fileHeader{store: [16]byte{9}, num: FileNum{255, 1}}).encode())
	twin := "000000ff" + name[8:]
	if err := vfs.WriteFileAtomic(mem, path.Join(testDir, twin), data); err != nil {
		t.Fatal(err)
	}
	faulty := vfs.NewFaulty(mem)
	var failed atomic.Bool // a start reads several files at a time
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && strings.HasSuffix(op.Name, twin) && !failed.Swap(true) {
			return syscall.EIO
		}
		return nil
	})
	s = open(t, faulty, 3, func(o *Options) { o.Repair = true })
	if !failed.Load() {
		t.Fatal("nobody has read the header")
	}
	for _, file := range []string{name, twin} {
		if err := s.VerifyFile(file, true, func(Problem) {}); err != nil {
			t.Fatal(err)
		}
	}
	rebuildFile(t, s, name, nil)
	rebuildFile(t, s, twin, nil)
	check(t, s, at, seq(0, 24)...)
}

// dropAll takes every file out of the index and removes it.
func (s *Store) dropAll(t *testing.T) {
	t.Helper()
	for _, f := range s.files {
		if err := s.forget(f); err != nil {
			t.Error(err)
		}
	}
}
