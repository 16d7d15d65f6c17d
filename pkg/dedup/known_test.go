package dedup

import (
	"bytes"
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
)

// checked opens a store and verifies one of its files, so that what is bad in it is known.
func checked(t *testing.T, fsys vfs.FS, epoch uint32, name string) *Store {
	t.Helper()
	s := open(t, fsys, epoch, noCache)
	if err := s.VerifyFile(path.Base(name), true, func(Problem) {}); err != nil {
		t.Fatal(err)
	}
	return s
}

// What a check has found to have another content is not read any more, though its
// checksum is good, and a read of many slots ends before it.
func TestKnownWrongContentIsNotRead(t *testing.T) {
	mem, name, at, chunks := sealedStore(t, 1, 24)
	swapGroups(mem, name, chunks[0]) // slots 0 to 15
	s := checked(t, mem, 2, name)
	p := make([]byte, 24*BlockSize)
	for i := range at {
		err := s.ReadSlots(at[i].Chunk, uint16(i), 1, p[:BlockSize])
		damage, ok := errors.AsType[*DamageError](err)
		if wrong := i < 16; wrong != (ok && !damage.Unread) || !wrong && err != nil {
			t.Errorf("slot %d: %v", i, err)
		}
	}
	// Another copy has what is bad in this one: the good ones of both are read in turn.
	put(t, s, seq(0, 12)...) // a partial copy of 12 slots, which heals them
	check(t, s, at[:12], seq(0, 12)...)
	if err := s.ReadSlots(at[0].Chunk, 0, 24, p); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read of all: %v", err)
	}
	put(t, s, seq(12, 16)...)
	if err := s.ReadSlots(at[0].Chunk, 0, 24, p); err != nil {
		t.Fatal(err)
	}
	for i := range at {
		if string(p[i*BlockSize:][:BlockSize]) != string(block(i)) {
			t.Errorf("slot %d has another content", i)
		}
	}
}

// What the disk answered an error for once is read again, believed by its fingerprint, and
// good from then on. Where no fingerprint is known it is not believed.
func TestKnownBadIsProved(t *testing.T) {
	s := open(t, vfs.NewMem(), 1, noCache)
	at := put(t, s, seq(0, 16)...)
	c := s.index[at[3].Chunk].copies[0]
	s.markBad(&badPart{copy: c, lo: 3, hi: 5, reason: "test", unread: true})
	check(t, s, at[3:4], 3)
	if d := s.Damaged(); len(d) != 1 || d[0].Slot != at[4] || c.good(4) {
		t.Errorf("damaged: %v", d)
	}
	s.lists.drop(c.chunk.num)
	c.listBad = true
	if _, err := s.ReadNode(at[4]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read of what nothing proves: %v", err)
	}
	check(t, s, at[5:], seq(5, 16)...)
}

// A read that failed in several copies may succeed another time if one of them was not read.
func TestUnreadInOneCopy(t *testing.T) {
	for _, rottenLast := range []bool{false, true} {
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		s := open(t, fsys, 1, noCache)
		at := put(t, s, seq(0, 16)...)
		c := s.index[at[0].Chunk].copies[0]
		if err := s.SealOpen(); err != nil {
			t.Fatal(err)
		}
		s.markBad(&badPart{copy: c, lo: 0, hi: 16, reason: "test"})
		put(t, s, seq(0, 16)...) // the second copy
		copies := s.index[at[0].Chunk].copies
		if len(copies) != 2 {
			t.Fatal(len(copies), "copies")
		}
		spoiled, unread := copies[1], copies[0]
		if !rottenLast {
			spoiled, unread = unread, spoiled
		}
		spoiled.bad, unread.bad = nil, nil
		off := int64(spoiled.off) + headSize + int64(spoiled.front) + int64(spoiled.list)
		mem.Corrupt(path.Join(testDir, spoiled.file.blob.Name()), off, func(b []byte) { b[77] ^= 1 })
		number := strings.TrimSuffix(unread.file.num.openName(), ".open")
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpRead && strings.HasPrefix(path.Base(op.Name), number) && op.Off > int64(unread.off)+headSize {
				return errBroken
			}
			return nil
		})
		_, err := s.ReadNode(at[0])
		if damage, ok := errors.AsType[*DamageError](err); !ok || !damage.Unread {
			t.Errorf("rotten last %v: %v", rottenLast, err)
		}
	}
}

// A record of damage names one file. What others hold of the slot is verified by the next
// start, so that nothing is deduplicated against what is bad there too.
func TestDamageOfTwoCopiesOutlivesAStart(t *testing.T) {
	for _, good := range []bool{false, true} {
		mem, _, s, at := rotten(t, 16)
		put(t, s, seq(0, 16)...) // heals
		copies := s.index[at[0].Chunk].copies
		first, second := copies[1], copies[0]
		if !good {
			off := int64(second.off) + headSize + int64(second.front) + int64(second.list)
			mem.Corrupt(path.Join(testDir, second.file.blob.Name()), off, func(b []byte) { b[77] ^= 1 })
		}
		record := Damage{Slot: at[3], Fingerprint: FingerprintOf(block(3)), File: first.file.blob.Name(), Reason: "test"}
		name := second.file.num
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, mem, 3)
		if i := slices.IndexFunc(s.index[at[3].Chunk].copies, func(c *chunkCopy) bool { return c.file.num == name }); i < 0 {
			t.Fatal("the second copy is gone")
		}
		s.LoadDamage([]Damage{record})
		if s.Settled(at[3]) != good || (len(s.damagedLike(record.Fingerprint)) == 0) != good {
			t.Errorf("good %v: settled %v, damaged %v", good, s.Settled(at[3]), s.Damaged())
		}
		check(t, s, put(t, s, seq(0, 16)...), seq(0, 16)...)
		check(t, s, at, seq(0, 16)...)
	}
}

// Damage is settled when what healed it is durable, not before.
func TestSettledIsDurable(t *testing.T) {
	_, _, s, at := rotten(t, 16)
	w := s.NewWriter(CodecZstd, 3)
	defer w.Close()
	if _, err := w.Block(block(3), Slot{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	check(t, s, at[3:4], 3)
	if s.Settled(at[3]) {
		t.Error("settled before it is durable")
	}
	if err := w.Sync(); err != nil || !s.Settled(at[3]) || s.Settled(at[4]) {
		t.Error("not settled when it is durable, or another", err)
	}
	if s.Settled(Slot{ChunkID{9}, 1}) != true {
		t.Error("a slot of which nothing is known")
	}
}

// Damage of what was collected is forgotten once a power cut cannot bring it back.
func TestForgetLostSyncs(t *testing.T) {
	_, faulty, s, at := rotten(t, 16)
	put(t, s, seq(100, 116)...)
	if err := s.SealOpen(); err != nil {
		t.Fatal(err)
	}
	n := len(s.Damaged())
	live := LiveSet{}
	c := s.Plan(live, s.Horizon(), PlanOptions{})
	c.Condemn()
	c.Recheck(live)
	for more := true; more; {
		var err error
		if more, err = c.Step(); err != nil {
			t.Fatal(err)
		}
	}
	if s.index[at[0].Chunk] != nil || n == 0 {
		t.Fatal("nothing was collected")
	}
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpSyncDir {
			return errBroken
		}
		return nil
	})
	if err := s.ForgetLost(); !errors.Is(err, errBroken) || len(s.Damaged()) != n {
		t.Errorf("%v; %d slots are damaged, want %d", err, len(s.Damaged()), n)
	}
	faulty.SetHook(nil)
	if err := s.ForgetLost(); err != nil || len(s.Damaged()) != 0 {
		t.Errorf("%v; %d slots are damaged", err, len(s.Damaged()))
	}
}

// A collection drops no copy for the sake of another whose content is wrong, whatever its
// checksums say.
func TestCollectionBelievesNoChecksum(t *testing.T) {
	mem, name, at, chunks := sealedStore(t, 1, 24)
	swapGroups(mem, name, chunks[0])
	s := checked(t, mem, 2, name)
	put(t, s, seq(0, 16)...) // heals
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, mem, 3, noCache) // nothing is known of the first copy
	live := LiveSet{}
	live.AddRange(at[0].Chunk, 0, 24)
	for range 2 {
		c := s.Plan(live, s.Horizon(), PlanOptions{MinLive: 0.99, MergeSmall: true})
		c.Condemn()
		c.Recheck(live)
		for more := true; more; {
			var err error
			if more, err = c.Step(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check(t, s, at, seq(0, 24)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A file that Open could read in part only is taken in whole once it can be read, and what
// was known to be bad in it is not believed for that.
func TestRereadKnowsDamage(t *testing.T) {
	mem, name, at, chunks := sealedStore(t, 3, 24)
	swapGroups(mem, name, chunks[1])
	fsys := vfs.NewFaulty(mem)
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Off+op.Len > int64(chunks[1].off) { // the second chunk and all behind it
			return errBroken
		}
		return nil
	})
	s := open(t, fsys, 2, noCache)
	if s.Reread() != 1 || s.index[at[0].Chunk] == nil || s.index[at[24].Chunk] != nil {
		t.Fatal("what was read of the file", s.Silent())
	}
	check(t, s, at[:24], seq(0, 24)...)
	s.LoadDamage([]Damage{{Slot: at[27], File: path.Base(name), Fingerprint: FingerprintOf(block(27)), Reason: "test"}})
	fsys.SetHook(nil)
	if s.Reread() != 0 || len(s.Problems()) > 0 {
		t.Fatal(s.Silent(), s.Problems())
	}
	invariants(t, s)
	check(t, s, at[:24], seq(0, 24)...)
	check(t, s, at[40:], seq(40, 72)...)
	if _, err := s.ReadNode(at[27]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read of a slot that is known to be bad: %v", err)
	}
	put(t, s, 27)
	check(t, s, at[27:28], 27)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Cutting an open file of the past may need space too: what is kept for that is used.
func TestCutOnAFullDisk(t *testing.T) {
	for _, kept := range []bool{true, false} {
		mem := vfs.NewMem()
		s := open(t, mem, 1)
		at := put(t, s, seq(0, 16)...)
		s.dir.Close()
		mem.Kill()
		fsys := vfs.NewFaulty(mem)
		full := true
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpTruncate && full {
				return vfs.ErrNoSpace
			}
			return nil
		})
		dir, err := blob.NewDir(fsys, testDir, 8)
		if err != nil {
			t.Fatal(err)
		}
		s, err = Open(dir, Options{Store: testStore, Epoch: 2, NoSpace: func() bool { full = !kept; return kept }})
		if kept != (err == nil) || !kept && !errors.Is(err, vfs.ErrNoSpace) {
			t.Fatalf("something kept %v: %v", kept, err)
		}
		if kept {
			check(t, s, at, seq(0, 16)...)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		dir.Close()
	}
}

// Wrong content that another copy has healed is not read when that copy is not there or has
// gone bad, though a start knows nothing of it any more.
func TestHealedWrongContentIsNotRead(t *testing.T) {
	for _, how := range []string{"unread", "rotten"} {
		mem, name, at, chunks := sealedStore(t, 1, 24)
		swapGroups(mem, name, chunks[0])
		s := checked(t, mem, 2, name)
		put(t, s, seq(0, 16)...) // heals
		if !s.Settled(at[0]) {
			t.Fatal("record stays")
		}
		healer := s.index[at[0].Chunk].copies[0]
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		healedIn := healer.file.blob.Name()
		fsys := vfs.NewFaulty(mem)
		if how == "unread" {
			fsys.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpRead && path.Base(op.Name) == healedIn {
					return errBroken
				}
				return nil
			})
		} else {
			off := int64(healer.off) + headSize + int64(healer.front) + int64(healer.list)
			mem.Corrupt(path.Join(testDir, healedIn), off, func(b []byte) { b[77] ^= 1 })
		}
		s = open(t, fsys, 3, noCache)
		s.LoadDamage(nil) // no record any more
		b, err := s.ReadNode(at[0])
		if err == nil && !bytes.Equal(b, block(0)) {
			t.Errorf("%s: wrong content is read that another copy had healed", how)
		}
	}
}

// A copy that cannot be proved is none that another may be dropped for.
func TestCheckGroupFails(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(s *Store, mem *vfs.Mem, fsys *vfs.Faulty, c *chunkCopy)
		want  error
	}{
		"its head is not read": {func(s *Store, _ *vfs.Mem, fsys *vfs.Faulty, c *chunkCopy) {
			s.fronts.Remove(c.key)
			fsys.SetHook(func(vfs.Op) error { return errBroken })
		}, nil},
		"no list is read": {func(s *Store, _ *vfs.Mem, _ *vfs.Faulty, c *chunkCopy) {
			for _, c := range c.chunk.copies {
				c.listBad = true
			}
			s.lists.drop(c.chunk.num)
		}, ErrMissing},
		"only a list of a part is read": {func(s *Store, _ *vfs.Mem, _ *vfs.Faulty, c *chunkCopy) {
			c.listBad = true
			s.lists.drop(c.chunk.num)
		}, ErrCorrupt},
		"it is not read": {func(_ *Store, _ *vfs.Mem, fsys *vfs.Faulty, _ *chunkCopy) {
			fsys.SetHook(func(vfs.Op) error { return errBroken })
		}, nil},
		"its checksum is wrong": {func(_ *Store, mem *vfs.Mem, _ *vfs.Faulty, c *chunkCopy) {
			off := int64(c.off) + headSize + int64(c.front) + int64(c.list)
			mem.Corrupt(path.Join(testDir, c.file.blob.Name()), off, func(b []byte) { b[77] ^= 1 })
		}, nil},
	} {
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		s := open(t, fsys, 1, noCache)
		at := put(t, s, seq(0, 16)...)
		full := s.index[at[0].Chunk].copies[0]
		s.markBad(&badPart{copy: full, lo: 3, hi: 4, reason: "test"})
		put(t, s, 3) // a partial copy
		if err := s.checkGroup(full, 0); err != nil || len(full.chunk.copies) != 2 {
			t.Fatalf("%s: %v before", what, err)
		}
		c.spoil(s, mem, fsys, full)
		err := s.checkGroup(full, 0)
		_, bad := errors.AsType[*badPart](err)
		if err == nil || c.want == nil && !bad || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
		if full.good(0) != (c.want != nil) {
			t.Errorf("%s: slot 0 is good %v", what, full.good(0))
		}
	}
}
