package dedup

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
	"github.com/k8ns/granary/pkg/wal"
)

const quarantine = "/store/quarantine"

// brokenBase is a stopped store with a file in each state that a repair tells apart.
type brokenBase struct {
	mem      *vfs.Mem
	at       []Slot
	readable map[int]bool // blocks that read before a repair or are saved by one
}

// sealedFile puts blocks into a file of their own, a chunk for each part, and returns its
// name and copies.
func (b *brokenBase) sealedFile(t *testing.T, epoch uint32, parts ...[]int) (string, []*chunkCopy) {
	t.Helper()
	s := open(t, b.mem, epoch, func(o *Options) { o.FileBytes = 1 << 20 })
	var copies []*chunkCopy
	for _, part := range parts {
		at := put(t, s, part...)
		b.at = append(b.at, at...)
		copies = append(copies, s.index[at[0].Chunk].copies[0])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path.Join(testDir, copies[0].file.blob.Name()), copies
}

// payloadOf is the offset of a copy's payload in its file.
func payloadOf(c *chunkCopy) int64 { return int64(c.off) + headSize + int64(c.front) + int64(c.list) }

func newBrokenBase(t *testing.T) *brokenBase {
	t.Helper()
	b := &brokenBase{mem: vfs.NewMem(), readable: make(map[int]bool)}
	// No footer; a group of the first chunk is lost; nothing proves the second.
	name, copies := b.sealedFile(t, 1, seq(0, 24), seq(24, 48))
	b.mem.Corrupt(name, 0, func(file []byte) {
		file[len(file)-90] ^= 1
		file[payloadOf(copies[0])+3] ^= 1
		list := int64(copies[1].off) + headSize + int64(copies[1].front)
		file[list] ^= 1
		file[payloadOf(copies[1])+3] ^= 1
	})
	// A head is bad, which its footer knows.
	name, copies = b.sealedFile(t, 2, seq(48, 72))
	b.mem.Corrupt(name, int64(copies[0].off), func(file []byte) { file[30] ^= 1 })
	// Nothing is wrong.
	b.sealedFile(t, 3, seq(72, 96))
	// Another store's, and of later versions: these are not touched.
	name, _ = b.sealedFile(t, 4, seq(200, 204))
	b.mem.Corrupt(name, 0, func(file []byte) {
		file[16] ^= 1
		le.PutUint32(file[60:], wal.PageCRC(file[:60]))
	})
	name, _ = b.sealedFile(t, 5, seq(204, 208))
	b.mem.Corrupt(name, 0, func(file []byte) { file[4]++ })
	name, _ = b.sealedFile(t, 6, seq(208, 212))
	b.mem.Corrupt(name, 0, func(file []byte) {
		tr := file[len(file)-trailerSize:]
		tr[4]++
		le.PutUint32(tr[92:], wal.PageCRC(tr[:92]))
	})
	b.at = b.at[:96]
	// An open file, of whose last chunk a group is bad.
	s := open(t, b.mem, 7, func(o *Options) { o.FileBytes = 1 << 20 })
	b.at = append(b.at, put(t, s, seq(96, 120)...)...)
	b.at = append(b.at, put(t, s, seq(120, 144)...)...)
	c := s.index[b.at[120].Chunk].copies[0]
	b.mem.Kill()
	b.mem.Corrupt(path.Join(testDir, c.file.blob.Name()), payloadOf(c)+3, func(file []byte) { file[0] ^= 1 })
	for i := range b.at {
		b.readable[i] = i >= 8 && (i < 24 || i >= 32) && (i < 120 || i >= 128)
	}
	return b
}

// open opens the store for a repair and verifies its files.
func (b *brokenBase) open(t *testing.T, fsys vfs.FS, epoch uint32) *Store {
	t.Helper()
	s, err := Open(blob.ExistingDir(fsys, testDir, 2), Options{
		Store: testStore, Epoch: epoch, FileBytes: 1 << 20, CacheBytes: -1, ListCache: 1, Workers: 1, Repair: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.Files() {
		if err := s.VerifyFile(f.Name, true, func(Problem) {}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// repairable is Repairable for a repair that may need every slot.
func repairable(s *Store, name string) (bool, error) {
	return s.Repairable(name)
}

// repair rebuilds and retires every file that is worth it, and stops at the first error.
// before is called ahead of each Rebuild, and failed with its error.
func (b *brokenBase) repair(s *Store, before func(), failed func(name string, err error)) error {
	suspects, err := s.Suspects()
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, name := range suspects {
		names[name] = true
	}
	for _, f := range s.Files() {
		names[f.Name] = true
	}
	for _, name := range sortedKeys(names) {
		worth, err := repairable(s, name)
		if err != nil {
			return err
		}
		before()
		r, err := s.Rebuild(name, nil)
		if err != nil {
			failed(name, err)
			return err
		}
		if r == nil || !worth {
			continue
		}
		if _, err := r.Retire(quarantine); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	for i := range out {
		for k := i; k > 0 && out[k] < out[k-1]; k-- {
			out[k], out[k-1] = out[k-1], out[k]
		}
	}
	return out
}

// reads tells of every block whether it reads; other bytes fail the test.
func (b *brokenBase) reads(t *testing.T, s *Store) string {
	t.Helper()
	var out []byte
	group := make([]byte, 8*BlockSize)
	for i := 0; i < len(b.at); i += 8 {
		err := s.ReadSlots(b.at[i].Chunk, b.at[i].Slot, 8, group)
		switch {
		case err == nil:
			out = append(out, "++++++++"...)
		case errors.Is(err, ErrCorrupt), errors.Is(err, ErrMissing): // all of a group is lost here, or nothing
			out = append(out, "--------"...)
		default:
			t.Fatalf("block %d: %v", i, err)
		}
		for k := 0; k < 8 && err == nil; k++ {
			if !bytes.Equal(group[k*BlockSize:][:BlockSize], block(i+k)) {
				t.Fatalf("block %d has other bytes", i+k)
			}
		}
	}
	return string(out)
}

// saved wants every block that can be saved.
func (b *brokenBase) saved(t *testing.T, what string, s *Store) {
	t.Helper()
	got := b.reads(t, s)
	for i := range b.at {
		if (got[i] == '+') != b.readable[i] {
			t.Fatalf("%s: block %d reads: %v; all: %s", what, i, got[i] == '+', got)
		}
	}
}

// A repair meets an error at each of its file operations, once and from there on. A
// Rebuild that fails leaves all as it was; no file is lost, whatever fails; and the next
// repair, after a power cut, saves all that can be saved.
func TestRebuildFailsAtEveryOperation(t *testing.T) {
	b := newBrokenBase(t)
	for _, c := range []struct {
		fault      error
		persistent bool
		step       int64
	}{
		{syscall.EIO, false, 1}, {syscall.EIO, true, 4}, {ErrNoSpace, false, 3}, {ErrNoSpace, true, 7}, {vfs.ErrNotExist, false, 4},
	} {
		for n := int64(0); b.fail(t, n, c.fault, c.persistent); n += c.step {
			continue
		}
	}
}

// fail repairs with an error at the n-th file operation; false if there are not so many.
func (b *brokenBase) fail(t *testing.T, n int64, fault error, persistent bool) bool {
	t.Helper()
	what := fmt.Sprintf("file operation %d, %v, persistent %v", n, fault, persistent)
	mem := b.mem.Clone()
	counter := vfs.NewFaulty(mem) // below, so that it sees what is really opened and closed
	var descriptors vfstest.Descriptors
	counter.SetHook(func(op vfs.Op) error {
		descriptors.See(op)
		return nil
	})
	faulty := vfs.NewFaulty(counter)
	s := b.open(t, faulty, 8)
	first := b.reads(t, s)
	from := faulty.Count()
	faulty.FailNth(n, fmt.Errorf("injected: %w", fault), persistent)
	var files, now string
	err := b.repair(s, func() { files = fileNames(s) }, func(name string, err error) {
		if now = fileNames(s); now != files {
			t.Errorf("%s: rebuilding %s failed, and the files are\n%s, were\n%s", what, name, now, files)
		}
		if !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), testDir) {
			t.Errorf("%s: the error does not say where: %v", what, err)
		}
	})
	met := faulty.Count()-from > n
	if err != nil && (!met || !errors.Is(err, fault)) {
		t.Errorf("%s: %v", what, err)
	}
	faulty.SetHook(nil)
	invariants(t, s)
	got := b.reads(t, s)
	if err == nil && !met {
		b.saved(t, what, s)
	}
	for i := range b.at {
		if first[i] == '+' && got[i] != '+' {
			t.Fatalf("%s: block %d does not read any more", what, i)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("%s: close: %v", what, err)
	}
	if left := descriptors.Open(); left != 0 {
		t.Errorf("%s: %d descriptors are left open", what, left)
	}
	mem.Crash(rand.New(rand.NewPCG(uint64(n), 5)), 1)
	s = b.open(t, mem, 9)
	if err := b.repair(s, func() {}, func(string, error) {}); err != nil {
		t.Fatalf("%s: the repair after it: %v", what, err)
	}
	b.saved(t, what+": the repair after it", s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return met && !t.Failed()
}

// A chunk found by a search, of which a part is wrong though its head is good, does not
// hide the next one; of it all is saved that can be.
func TestRebuildSearchesBehindABadChunk(t *testing.T) {
	for what, c := range map[string]struct {
		at   func(footerChunk) int64 // the byte that is wrong
		lost int                     // blocks of the chunk
	}{
		"front": {func(c footerChunk) int64 { return int64(c.off) + headSize + 3 }, 0},
		"list":  {func(c footerChunk) int64 { return int64(c.off) + headSize + int64(c.head.front) + 3 }, 0},
		"group": {func(c footerChunk) int64 { return int64(c.off) + headSize + int64(c.head.front) + int64(c.head.list) }, 8},
	} {
		mem, name, at, chunks := sealedStore(t, 3, 24)
		mem.Corrupt(name, 0, func(b []byte) {
			b[len(b)-90] ^= 1            // no footer
			b[int64(chunks[0].off)] ^= 1 // the head from which the scan would go on
			b[c.at(chunks[1])] ^= 1
		})
		s := open(t, mem, 2, func(o *Options) { o.Repair = true })
		r := rebuildFile(t, s, path.Base(name), nil)
		if len(r.Lost) != c.lost || r.Slots != 48-c.lost {
			t.Errorf("%s: %d slots saved, lost %v", what, r.Slots, r.Lost)
		}
		check(t, s, at[24+c.lost:], seq(24+c.lost, 72)...)
		if s = open(t, mem, 3); len(s.Problems()) > 0 {
			t.Errorf("%s: %v", what, s.Problems())
		}
		check(t, s, at[24+c.lost:], seq(24+c.lost, 72)...)
	}
}

// A file in which the disk does not let a search go on, or that shows another trailer the
// second time it is read, is not rebuilt: nobody knows what is there. One that is gone is
// said to be.
func TestRebuildLeavesAFileAlone(t *testing.T) {
	mem, name, at, chunks := sealedStore(t, 3, 24)
	mem.Corrupt(name, 0, func(b []byte) { b[len(b)-90] ^= 1; b[chunks[1].off] ^= 1 })
	faulty := vfs.NewFaulty(mem)
	s := open(t, faulty, 2, func(o *Options) { o.Repair = true })
	before := mem.Digest()
	failReads(faulty, name, int64(chunks[1].off)+500, int64(chunks[1].off)+501)
	if r, err := s.Rebuild(path.Base(name), nil); r != nil || err != nil || mem.Digest() != before {
		t.Errorf("a search that cannot go on: %+v, %v", r, err)
	}
	faulty.SetHook(nil)
	check(t, s, append(at[:24:24], at[48:]...), append(seq(0, 24), seq(48, 72)...)...)

	mem, name, at, _ = sealedStore(t, 3, 24)
	faulty = vfs.NewFaulty(mem)
	s = open(t, faulty, 2, func(o *Options) { o.Repair = true })
	st, err := mem.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	flip := func() { mem.Corrupt(name, st.Size-5, func(b []byte) { b[0] ^= 1 }) }
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Name == name && op.Off == st.Size-trailerSize {
			faulty.SetHook(nil)
			flip()
		}
		return nil
	})
	r, err := s.Rebuild(path.Base(name), nil)
	wantError(t, "a trailer that changes", err, ErrCorrupt, path.Base(name)+": damaged: checksum of the trailer")
	flip()
	if now, err := mem.Stat(name); r != nil || err != nil || now.Size != st.Size || len(s.Files()) != 1 {
		t.Errorf("%+v, %d files, %v", r, len(s.Files()), err)
	}
	check(t, s, at, seq(0, 72)...)

	if err := mem.Remove(name); err != nil {
		t.Fatal(err)
	}
	_, err = s.Rebuild(path.Base(name), nil)
	wantError(t, "a file that is gone", err, vfs.ErrNotExist, "chunk file "+path.Base(name))
	if r, err := s.Rebuild("something", nil); r != nil || err != nil {
		t.Errorf("what is no chunk file: %+v, %v", r, err)
	}
}

// What could not be read back, or would prove nothing, is not written into a rebuilt file:
// its copies need a list with all its hashes, and groups that there are.
func TestRebuildWritesNothingWrong(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(v *salvaged)
		kind  error
	}{
		"a hash is missing":         {func(v *salvaged) { v.tree.absent = nil }, errProof},
		"groups that there are not": {func(v *salvaged) { v.head.shift = maxShift + 1 }, ErrCorrupt},
	} {
		for _, lost := range []bool{false, true} {
			mem := vfs.NewMem()
			s := open(t, mem, 1, func(o *Options) { o.Repair = true })
			m := makeChunk(t, s, 24, func(i int) bool { return i < 16 })
			v, err := s.salvage(bytes.NewReader(m.b), int64(len(m.b)), candidate{head: m.head}, nothingKnown)
			if err != nil || v.tree == nil || !v.clean() {
				t.Fatalf("%+v, %v", v, err)
			}
			c.spoil(v)
			r := &rebuild{s: s, ff: &foundFile{num: FileNum{1, 1}}, needed: func(Slot) bool { return true }, out: &Rebuilt{s: s}}
			if lost {
				err = r.markLost(v, decision{lost: bitmap{0xff}})
			} else {
				err = r.copy(v)
			}
			wantError(t, fmt.Sprintf("%s, lost %v", what, lost), err, c.kind, "")
			names, err := mem.ReadDir(testDir)
			if err != nil || len(names) != 0 || r.new != nil || len(r.out.Lost) != 0 || r.out.Slots != 0 {
				t.Errorf("%s, lost %v: files %v, %+v", what, lost, names, r.out)
			}
			invariants(t, s)
		}
	}
}
