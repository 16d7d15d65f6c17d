package dedup

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

func TestRoundTrip(t *testing.T) {
	for _, codec := range []Codec{CodecRaw, CodecZstd, CodecS2} {
		for _, shift := range []int{1, 3, 5} {
			t.Run(fmt.Sprint(codec, shift), func(t *testing.T) {
				mem := vfs.NewMem()
				s := open(t, mem, 1, func(o *Options) { o.Commit = func() uint64 { return 42 } })
				w := s.NewWriter(codec, shift)
				n := 1500
				if testing.Short() {
					n = 400
				}
				refs := make([]Ref, n)
				for i := range refs {
					var err error
					b := block(i)
					if i%3 == 0 {
						b = noise(i)
					}
					if refs[i], err = w.Block(b, Slot{}); err != nil {
						t.Fatal(err)
					}
				}
				if err := errors.Join(w.Flush(), w.Sync()); err != nil {
					t.Fatal(err)
				}
				w.Close()
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, mem, 2)
				if got := s.MaxCommit(); got != 42 {
					t.Errorf("highest commit %d", got)
				}
				if p := s.Problems(); len(p) > 0 {
					t.Errorf("problems %v", p)
				}
				rng := rand.New(rand.NewPCG(1, 2))
				for range 300 {
					lo := rng.IntN(n)
					first := w.Slot(refs[lo])
					k := 1
					for lo+k < n && k < rng.IntN(200) && w.Slot(refs[lo+k]).Chunk == first.Chunk {
						k++
					}
					dst := make([]byte, k*BlockSize)
					if err := s.ReadSlots(first.Chunk, first.Slot, k, dst); err != nil {
						t.Fatal(err)
					}
					for i := range k {
						want := block(lo + i)
						if (lo+i)%3 == 0 {
							want = noise(lo + i)
						}
						if !bytes.Equal(dst[i*BlockSize:(i+1)*BlockSize], want) {
							t.Fatalf("block %d", lo+i)
						}
					}
				}
				verify(t, s)
				invariants(t, s)
				for _, f := range s.Files() {
					if err := Dump(&bytes.Buffer{}, mem, path.Join(testDir, f.Name), nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// The files of a fold do not depend on how its workers are scheduled.
func TestDeterministic(t *testing.T) {
	names := ""
	for workers := range 5 {
		s := open(t, vfs.NewMem(), 1, func(o *Options) { o.Workers = workers + 1 })
		put(t, s, seq(0, 2000)...)
		s.Close()
		if got := fileNames(s); names == "" {
			names = got
		} else if got != names {
			t.Fatalf("%s\n%s", names, got)
		}
	}
}

func TestDedup(t *testing.T) {
	stored := func(s *Store) int64 { return s.Stats().Blocks - s.Stats().Hits }
	for name, second := range map[string][]int{
		"identical":   seq(0, 1000),
		"shifted":     seq(300, 1000),
		"interleaved": func() (out []int) { return append(out, interleave(seq(0, 500), seq(500, 1000))...) }(),
		"reversed":    func() []int { r := seq(0, 1000); slices.Reverse(r); return r }(),
	} {
		t.Run(name, func(t *testing.T) {
			mem := vfs.NewMem()
			s := open(t, mem, 1)
			at := put(t, s, append(seq(0, 1000), seq(0, 100)...)...)
			if got := stored(s); got != 1000 {
				t.Errorf("first fold stored %d blocks", got)
			}
			check(t, s, at, append(seq(0, 1000), seq(0, 100)...)...)
			again := put(t, s, second...)
			check(t, s, again, second...)
			if got := stored(s); got != 1000 {
				t.Errorf("known lists: %d blocks stored", got)
			}
			s.Close()
			s = open(t, mem, 2) // hooks only
			again = put(t, s, second...)
			check(t, s, again, second...)
			if got := stored(s); got > 100 {
				t.Errorf("hooks: %d blocks stored again", got)
			}
			s.Close()
			s = open(t, mem, 3) // predecessor and hints
			w := s.NewWriter(CodecS2, 3)
			defer w.Close()
			for i, n := range second {
				prev, hints := at[n], []ChunkID(nil)
				if i%2 == 0 {
					prev, hints = Slot{}, []ChunkID{{}, at[n].Chunk}
				}
				r, err := w.Block(block(n), prev, hints...)
				if err != nil || w.Slot(r).IsZero() {
					t.Fatalf("block %d: %v, not found", n, err)
				}
			}
			if got := stored(s); got != 0 {
				t.Errorf("hints: %d blocks stored again", got)
			}
		})
	}
}

func interleave(a, b []int) []int {
	var out []int
	for i := range a {
		out = append(out, a[i], b[i])
	}
	return out
}

// A chunk that exists whole is not appended again; one with a bad slot is.
func TestSameChunk(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	nodes := func() ChunkID {
		w := s.NewWriter(CodecZstd, 3)
		defer w.Close()
		for i := range 20 {
			if n, slot, err := w.AddNode(block(i)); n != 0 || slot != uint16(i) || err != nil {
				t.Fatal(n, slot, err)
			}
		}
		if err := errors.Join(w.FinishNodes(), w.Sync()); err != nil {
			t.Fatal(err)
		}
		return w.ChunkID(0)
	}
	id := nodes()
	if nodes() != id || s.Stats().Copies != 1 {
		t.Errorf("%d copies", s.Stats().Copies)
	}
	s.markBad(&badPart{copy: s.index[id].copies[0], lo: 3, hi: 4, reason: "test"})
	if nodes() != id || s.Stats().Copies != 3 { // a healing partial copy, and the whole
		t.Errorf("%d copies", s.Stats().Copies)
	}
	if len(s.Damaged()) != 0 {
		t.Error(s.Damaged())
	}
	// Data blocks never refer to nodes.
	at := put(t, s, 3)
	if at[0].Chunk == id {
		t.Error("a block refers to a node")
	}
}

// I2: what Sync promised is there after a crash, whatever part of the rest survived.
func TestCrash(t *testing.T) {
	for _, keep := range []float64{0, 0.5, 1} {
		for seed := range uint64(12) {
			rng := rand.New(rand.NewPCG(seed, 5))
			mem := vfs.NewMem()
			var at []Slot
			n := 0
			for epoch := uint32(1); epoch < 6; epoch++ {
				s := open(t, mem, epoch, func(o *Options) { o.Commit = func() uint64 { return uint64(epoch) } })
				check(t, s, at, seq(0, n)...)
				verify(t, s)
				invariants(t, s)
				for _, f := range s.Files() {
					if !f.Sealed {
						t.Errorf("%s is not sealed", f.Name)
					}
				}
				for range rng.IntN(4) {
					k := 1 + rng.IntN(80)
					at = append(at, put(t, s, seq(n, n+k)...)...)
					n += k
				}
				w := s.NewWriter(CodecZstd, 3) // this one never syncs
				for i := range rng.IntN(100) {
					w.Block(block(100000+int(epoch)*1000+i), Slot{})
				}
				if rng.IntN(2) == 0 {
					w.Flush()
				}
				w.Close()
				mem.Crash(rng, keep)
			}
		}
	}
}

// A file torn in its middle is cut there, sealed, and its number not used again.
func TestTornFile(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	at := put(t, s, seq(0, 5)...)
	put(t, s, seq(10, 15)...)
	name := path.Join(testDir, s.Files()[0].Name)
	mem.Kill()
	mem.Corrupt(name, int64(s.index[put2(s, 10)].copies[0].off)+200, func(b []byte) { clear(b) })
	s = open(t, mem, 2)
	check(t, s, at, seq(0, 5)...)
	if st := s.Stats(); st.Chunks != 1 || len(s.Problems()) != 0 {
		t.Errorf("%+v %v", st, s.Problems())
	}
	verify(t, s)
	put(t, s, 99)
	if f := s.Files(); len(f) != 2 || !f[0].Sealed || f[1].Name != (FileNum{2, 1}).openName() {
		t.Error(fileNames(s))
	}
}

// A file that a start could not seal on a full disk is told of until there is space, and
// is not appended to meanwhile.
func TestSealLeft(t *testing.T) {
	mem := vfs.NewMem()
	large := func(o *Options) { o.FileBytes = 1 << 20 }
	s := open(t, mem, 1, large)
	var at []Slot
	for _, n := range seq(0, 100) { // as many chunks: their footer wants more than a page
		at = append(at, put(t, s, n)...)
	}
	mem.Kill()
	space, err := mem.Space(testDir)
	if err != nil {
		t.Fatal(err)
	}
	mem.SetCapacity(space.Total - space.Free)
	s = open(t, mem, 2, large)
	name := FileNum{1, 1}.openName()
	if got := s.Problems(); len(got) != 1 || got[0] != unsealedProblem(FileNum{1, 1}) || s.Files()[0].Sealed {
		t.Fatalf("on a full disk: %v, %v; want %s unsealed and told", got, fileNames(s), name)
	}
	if err := s.SealLeft(); !errors.Is(err, ErrNoSpace) || len(s.Problems()) != 1 {
		t.Errorf("still full: %v, %v", err, s.Problems())
	}
	mem.SetCapacity(1 << 30)
	at = append(at, put(t, s, seq(100, 102)...)...)
	for range 2 {
		if err := s.SealLeft(); err != nil {
			t.Fatal(err)
		}
	}
	files := s.Files()
	if len(files) != 2 || !files[0].Sealed || files[1].Sealed || len(s.Problems()) != 0 {
		t.Errorf("with space: %v, %v; want the old one sealed and the new one open", fileNames(s), s.Problems())
	}
	check(t, s, at, seq(0, 102)...)
	put(t, s, seq(200, 202)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, mem, 3)
	check(t, s, at, seq(0, 102)...)
	verify(t, s)
}

// put2 finds the chunk that holds a block.
func put2(s *Store, n int) ChunkID {
	fp := FingerprintOf(block(n))
	for id, ch := range s.index {
		if l := s.lists.get(ch.num); l != nil {
			if _, ok := l.find(&fp); ok {
				return id
			}
		}
	}
	return ChunkID{}
}

// I5: with any byte of a chunk file changed, reads return the right bytes or an error.
func TestEveryByte(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	w := s.NewWriter(CodecZstd, 1)
	var refs []Ref
	for i := range 5 {
		b := make([]byte, BlockSize) // small when compressed
		b[0] = byte(i + 1)
		r, _ := w.Block(b, Slot{})
		refs = append(refs, r)
	}
	if err := errors.Join(w.Flush(), w.Sync()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	openName := path.Join(testDir, s.Files()[0].Name)
	unsealed := mem.Clone()
	s.Close()
	sealedName := path.Join(testDir, s.Files()[0].Name)
	for fsys, name := range map[*vfs.Mem]string{mem: sealedName, unsealed: openName} {
		st, _ := fsys.Stat(name)
		step := int64(1)
		if testing.Short() {
			step = 7
		}
		for off := int64(0); off < st.Size; off += step {
			fsys2 := fsys.Clone()
			fsys2.Corrupt(name, off, func(b []byte) { b[0] ^= 0x41 })
			s := open(t, fsys2, 2, noCache)
			lost := 0
			for i, r := range refs {
				b, err := s.ReadNode(w.Slot(r))
				switch {
				case err == nil && (b[0] != byte(i+1) || !bytes.Equal(b[1:], make([]byte, BlockSize-1))):
					t.Fatalf("%s: byte %d changed: wrong bytes", name, off)
				case err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrMissing):
					t.Fatalf("%s: byte %d changed: %v", name, off, err)
				case err != nil:
					lost++
				}
			}
			bad := 0
			for _, f := range s.Files() {
				s.VerifyFile(f.Name, true, func(Problem) { bad++ })
			}
			if name == sealedName && bad+len(s.Problems()) == 0 {
				t.Fatalf("byte %d changed: verify finds nothing", off)
			}
			// What cannot be read is not a dedup target.
			w2 := s.NewWriter(CodecZstd, 1)
			for i := range refs {
				b := make([]byte, BlockSize)
				b[0] = byte(i + 1)
				r, err := w2.Block(b, w.Slot(refs[i]))
				if err == nil {
					err = errors.Join(w2.Flush(), w2.Sync())
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.ReadNode(w2.Slot(r)); err != nil {
					t.Fatalf("%s: byte %d: written again, %v", name, off, err)
				}
			}
			w2.Close()
		}
	}
}

// Writing the content of a damaged slot again heals every reference to it.
func TestHealing(t *testing.T) {
	mem := vfs.NewMem()
	var reported []Damage
	s := open(t, mem, 1)
	at := put(t, s, seq(0, 40)...)
	s.Close()
	name := path.Join(testDir, s.Files()[0].Name)
	c := s.index[at[0].Chunk].copies[0]
	f, _ := s.front(c)
	off := int64(c.off) + f.payloadAt() + int64(f.groups[1].off)
	mem.Corrupt(name, off+5, func(b []byte) { b[0] ^= 1 })

	s = open(t, mem, 2, func(o *Options) { o.OnDamage = func(d Damage) { reported = append(reported, d) } })
	_, err := s.ReadNode(at[10])
	var de *DamageError
	if !errors.As(err, &de) || !errors.Is(err, ErrCorrupt) || de.Slot != at[10] || de.Offset != off || path.Join(testDir, de.File) != name {
		t.Fatal(err)
	}
	if len(reported) != 8 || reported[2].Slot != at[10] || reported[2].Fingerprint != FingerprintOf(block(10)) {
		t.Fatal(reported)
	}
	if _, err := s.ReadNode(at[10]); !errors.Is(err, ErrCorrupt) || len(reported) != 8 {
		t.Fatal(err, len(reported))
	}
	check(t, s, at[16:], seq(16, 40)...)

	mem.Kill()
	s = open(t, mem, 3) // a start knows it from the records
	s.LoadDamage(reported)
	if len(s.Damaged()) != 8 {
		t.Fatal(s.Damaged())
	}
	w := s.NewWriter(CodecZstd, 3)
	for i := range 12 {
		if _, err := w.Block(block(i), at[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(), w.Sync()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if h := w.Healed(); len(h) != 4 || h[2] != at[10] {
		t.Fatal(h)
	}
	check(t, s, at[:12], seq(0, 12)...)
	if len(s.Damaged()) != 4 {
		t.Fatal(s.Damaged())
	}
	mem.Crash(nil, 0)
	s = open(t, mem, 4)
	s.LoadDamage(reported)
	check(t, s, at[:12], seq(0, 12)...)
	if len(s.Damaged()) != 4 {
		t.Fatal(s.Damaged())
	}
	put(t, s, seq(12, 16)...)
	check(t, s, at, seq(0, 40)...)
	verifyOnly(t, s, "checksum of the group", "content hash")
	// Collection drops the bad copy of what is good elsewhere.
	s.SealOpen()
	live := liveOf(at)
	col := s.Plan(live, s.Horizon(), PlanOptions{MinLive: 1})
	runCollection(t, col, live)
	verify(t, s)
	check(t, s, at, seq(0, 40)...)
}

// verifyOnly checks every file and fails on problems that are not among the expected.
func verifyOnly(t *testing.T, s *Store, want ...string) {
	t.Helper()
	for _, f := range s.Files() {
		s.VerifyFile(f.Name, true, func(p Problem) {
			if !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(p.Text, w) }) {
				t.Errorf("verify: %s", p)
			}
		})
	}
}

// I8: after a failed fdatasync the file is given up, and a new session succeeds.
func TestSyncFailure(t *testing.T) {
	for _, keep := range []float64{0, 1} {
		mem := vfs.NewMem()
		faulty := vfs.NewFaulty(mem)
		s := open(t, faulty, 1)
		at := put(t, s, seq(0, 10)...)
		other := s.NewWriter(CodecZstd, 3) // refers to unsynced chunks of another session
		w := s.NewWriter(CodecZstd, 3)
		for i := 10; i < 20; i++ {
			w.Block(block(i), Slot{})
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		for i := 10; i < 20; i++ {
			other.Block(block(i), Slot{})
		}
		failed := false
		faulty.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpDatasync && !failed {
				failed = true
				return errors.New("input/output error")
			}
			return nil
		})
		if err := w.Sync(); err == nil {
			t.Fatal("no error")
		}
		if err := errors.Join(other.Flush(), other.Sync()); err == nil {
			t.Fatal("the other session does not notice")
		}
		w.Close()
		other.Close()
		invariants(t, s)
		at = append(at, put(t, s, seq(10, 20)...)...)
		check(t, s, at, seq(0, 20)...)
		if n := len(s.Files()); n != 2 {
			t.Error(fileNames(s))
		}
		mem.Crash(nil, keep)
		s = open(t, mem, 2)
		check(t, s, at, seq(0, 20)...)
		verify(t, s)
	}
}

// Every operation fails once, and from some point on for ever: what was acknowledged
// before and after is there.
func TestFaults(t *testing.T) {
	step := int64(1)
	if testing.Short() {
		step = 5
	}
	for _, persistent := range []bool{false, true} {
		for n := int64(0); ; n += step {
			mem := vfs.NewMem()
			faulty := vfs.NewFaulty(mem)
			s := open(t, faulty, 1)
			at := put(t, s, seq(0, 30)...)
			from := faulty.Count()
			faulty.FailNth(n, errors.New("input/output error"), persistent)
			good := map[int]Slot{}
			for i := 30; i < 300; i += 45 {
				if got, err := tryPut(s, seq(i, i+45)...); err == nil {
					for k := range got {
						good[i+k] = got[k]
					}
				}
			}
			s.SealOpen()
			done := faulty.Count()-from <= n
			faulty.SetHook(nil)
			invariants(t, s)
			mem.Crash(rand.New(rand.NewPCG(uint64(n), 1)), 0.5)
			s = open(t, mem, 2)
			check(t, s, at, seq(0, 30)...)
			for i, slot := range good {
				check(t, s, []Slot{slot}, i)
			}
			verify(t, s)
			if done {
				if len(good) != 270 {
					t.Fatal(len(good))
				}
				break
			}
		}
	}
}

func TestNoSpace(t *testing.T) {
	mem := vfs.NewMem()
	asked := 0
	more := false
	s := open(t, mem, 1, func(o *Options) {
		o.NoSpace = func() bool {
			asked++
			if more {
				mem.SetCapacity(64 << 20)
			}
			return more
		}
	})
	at := put(t, s, seq(0, 30)...)
	sp, _ := mem.Space(testDir)
	mem.SetCapacity(sp.Total - sp.Free + 20<<10)
	if _, err := tryPut(s, seq(100, 130)...); !errors.Is(err, ErrNoSpace) || asked == 0 {
		t.Fatal(err, asked)
	}
	invariants(t, s)
	check(t, s, at, seq(0, 30)...)
	more = true
	at = append(at, put(t, s, seq(100, 130)...)...)
	check(t, s, at, append(seq(0, 30), seq(100, 130)...)...)
	mem.Crash(nil, 0)
	s = open(t, mem, 2)
	check(t, s, at, append(seq(0, 30), seq(100, 130)...)...)
	verify(t, s)
}

// A missing footer, or one that is damaged, costs a scan.
func TestBadFooter(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	at := put(t, s, seq(0, 100)...)
	s.Close()
	for _, f := range s.Files() {
		mem.Corrupt(path.Join(testDir, f.Name), f.Size-100, func(b []byte) { b[0] ^= 1; b[20] ^= 1 })
	}
	for _, ro := range []bool{true, false} {
		s = open(t, mem, 2, func(o *Options) { o.ReadOnly = ro })
		check(t, s, at, seq(0, 100)...)
		if len(s.Problems()) != len(s.Files()) {
			t.Error(s.Problems())
		}
	}
}

// ReadOnly changes nothing.
func TestReadOnly(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	at := put(t, s, seq(0, 50)...)
	mem.Kill()
	before := mem.Digest()
	s = open(t, mem, 2, func(o *Options) { o.ReadOnly = true })
	check(t, s, at, seq(0, 50)...)
	verify(t, s)
	if _, err := tryPut(s, 99); err == nil {
		t.Error("a read-only store takes blocks")
	}
	s.Close()
	if mem.Digest() != before {
		t.Error("the directory changed")
	}
}

func TestMissing(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	at := put(t, s, 1)
	for _, slot := range []Slot{{Chunk: ChunkID{1}}, {Chunk: at[0].Chunk, Slot: 1}} {
		if _, err := s.ReadNode(slot); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), slot.String()) {
			t.Error(err)
		}
		if _, err := s.Fingerprint(slot); !errors.Is(err, ErrMissing) {
			t.Error(err)
		}
	}
	if fp, err := s.Fingerprint(at[0]); err != nil || fp != FingerprintOf(block(1)) {
		t.Error(fp, err)
	}
}

func TestHookTable(t *testing.T) {
	var h hookTable
	rng := rand.New(rand.NewPCG(3, 3))
	want := map[uint64]uint32{}
	for i := range uint32(20000) {
		p := rng.Uint64() &^ hookMask
		want[p] = i
		h.put(p, i, func(uint32) bool { return true })
	}
	for p, v := range want {
		if got, ok := h.get(p); !ok || got != v {
			t.Fatal(p, got, ok)
		}
	}
	if _, ok := h.get(1 << 20); ok {
		t.Error("found what is not there")
	}
	if per := h.bytes() / int64(h.n); per >= 30 {
		t.Errorf("%d bytes a hook", per)
	}
}

// A full table keeps one fingerprint in 64, then fewer, and stays within its budget.
func TestHookTableThins(t *testing.T) {
	h := hookTable{budget: 100 << 10}
	rng := rand.New(rand.NewPCG(4, 4))
	var put []uint64
	for i := range uint32(40000) {
		p := rng.Uint64() &^ hookMask
		put = append(put, p)
		h.put(p, i, func(uint32) bool { return true })
		if h.bytes() > h.budget {
			t.Fatalf("%d bytes after %d hooks", h.bytes(), i)
		}
	}
	if h.thin&(hookMask+1) == 0 {
		t.Fatal("never thinned out")
	}
	for i, p := range put {
		if got, ok := h.get(p); ok != (p&h.thin == 0) || ok && got != uint32(i) {
			t.Fatal(p, got, ok)
		}
	}
}
