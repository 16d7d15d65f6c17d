package dedup

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

// splitTop computes a tree's top the plain way, from all leaves.
func splitTop(fps []Fingerprint) Fingerprint {
	if len(fps) == 1 {
		return fps[0]
	}
	k := 1
	for k*2 < len(fps) {
		k *= 2
	}
	return innerHash(splitTop(fps[:k]), splitTop(fps[k:]))
}

func fingerprints(n int) []Fingerprint {
	fps := make([]Fingerprint, n)
	for i := range fps {
		fps[i] = FingerprintOf([]byte{byte(i), byte(i >> 8)})
	}
	return fps
}

// Every pattern of absent slots of chunks of up to 11 slots proves the ID, also when
// slots are lost in two steps; random ones of larger chunks too.
func TestChunkIDProof(t *testing.T) {
	try := func(n int, keep, keep2 bitmap) {
		t.Helper()
		full := &tree{kind: KindData, n: n, have: fullBitmap(n), fps: fingerprints(n)}
		want := rootID(KindData, n, splitTop(full.fps))
		if id, err := full.id(); err != nil || id != want {
			t.Fatalf("n=%d: %v %v, want %v", n, id, err, want)
		}
		for _, k := range []bitmap{keep, keep2} {
			part, err := full.reduce(&k)
			if err != nil {
				t.Fatal(err)
			}
			if id, err := part.id(); err != nil || id != want {
				t.Fatalf("n=%d keep=%v: %v %v", n, k, id, err)
			}
			if len(part.absent) > 0 {
				part.absent[0][3] ^= 1
				if id, _ := part.id(); id == want {
					t.Fatal("a wrong hash proves the ID")
				}
				part.absent[0][3] ^= 1
				short := *part
				short.absent = part.absent[1:]
				if _, err := short.id(); err == nil {
					t.Fatal("a missing hash is not noticed")
				}
			}
			full = part
		}
	}
	for n := 1; n <= 11; n++ {
		for m := uint64(1); m < 1<<n; m++ {
			sub := m & (m*0x9e37 | 1<<3)
			if sub == 0 {
				sub = m & -m
			}
			try(n, bitmap{m}, bitmap{sub})
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		n := 1 + rng.IntN(MaxSlots)
		var a, b bitmap
		for i := range n {
			if rng.IntN(4) > 0 {
				a.set(i)
				if rng.IntN(9) == 0 {
					b.set(i)
				}
			}
		}
		i := rng.IntN(n)
		a.set(i)
		b.set(i)
		try(n, a, b)
	}
}

// The bytes of a chunk, a header, a footer and a trailer do not change.
func TestGolden(t *testing.T) {
	cs := newCodecs(1)
	defer cs.close()
	zeros := make([]byte, 2*BlockSize)
	zeros[0] = 1
	full := &tree{kind: KindData, n: 3, have: fullBitmap(3), fps: fingerprints(3)}
	id, _ := full.id()
	keep := bitmap{0b101}
	part, err := full.reduce(&keep)
	if err != nil {
		t.Fatal(err)
	}
	g := cs.compress(CodecS2, zeros, nil)
	e, err := encodeChunk(id, part, 3, []storedGroup{g}, 7)
	if err != nil {
		t.Fatal(err)
	}
	h := fileHeader{store: testStore, num: FileNum{1, 2}, commit: 7}
	footer := encodeFooter([]footerChunk{{head: e.front.head, off: 64, have: &keep}}, []hook{{32, 0, 2}})
	tr := trailer{chunks: 1, hooks: 1, footer: uint32(len(footer)), footerCRC: 9, hash: [32]byte{8}, commit: 7}
	for name, pair := range map[string][2]string{
		"chunk":   {hex.EncodeToString(e.meta), goldenChunk},
		"header":  {hex.EncodeToString(h.encode()), goldenHeader},
		"footer":  {hex.EncodeToString(footer), goldenFooter},
		"trailer": {hex.EncodeToString(tr.encode()), goldenTrailer},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is\n%s, want\n%s", name, pair[0], pair[1])
		}
	}
	// And back.
	head, err := parseChunkHead(e.meta)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parseFront(head, e.meta[headSize:headSize+head.front])
	if err != nil {
		t.Fatal(err)
	}
	back, err := proveList(f, e.meta[headSize+head.front:])
	if err != nil || back.have != keep || back.fps[2] != full.fps[2] {
		t.Fatalf("%v %v", back, err)
	}
	if h2, err := parseFileHeader(h.encode()); err != nil || h2 != h {
		t.Fatalf("%v %v", h2, err)
	}
	if t2, err := parseTrailer(tr.encode()); err != nil || t2 != tr {
		t.Fatalf("%v %v", t2, err)
	}
	chunks, hooks, err := parseFooter(footer, 1, 1, 1<<20)
	if err != nil || *chunks[0].have != keep || hooks[0] != (hook{32, 0, 2}) {
		t.Fatalf("%v %v %v", chunks, hooks, err)
	}
}

func TestCodecs(t *testing.T) {
	cs := newCodecs(2)
	defer cs.close()
	for _, codec := range []Codec{CodecRaw, CodecZstd, CodecS2} {
		for k := 1; k <= 1<<maxShift; k++ {
			for _, make1 := range []func(int) []byte{block, noise} {
				var src []byte
				for i := range k {
					src = append(src, make1(i)...)
				}
				g := cs.compress(codec, src, make([]byte, 0, 100))
				if len(g.data) > len(src) || (g.codec == CodecRaw) != (len(g.data) == len(src)) {
					t.Fatalf("%v: %d bytes stored as %v in %d", codec, len(src), g.codec, len(g.data))
				}
				dst := make([]byte, len(src))
				if err := cs.decompress(g.codec, dst, g.data); err != nil || !bytes.Equal(dst, src) {
					t.Fatalf("%v: %v", codec, err)
				}
				if err := cs.decompress(g.codec, make([]byte, len(src)+BlockSize), g.data); err == nil {
					t.Fatal("a group that is too short is taken")
				}
				if err := cs.decompress(g.codec, make([]byte, len(src)-1), g.data); err == nil {
					t.Fatal("a group that is too long is taken")
				}
			}
		}
	}
}

func TestNames(t *testing.T) {
	n := FileNum{0x12, 0xabcdef01}
	for _, name := range []string{n.openName(), n.sealedName([32]byte{1, 2})} {
		m, _, ok := parseName(name)
		if !ok || m != n {
			t.Errorf("%s: %v %v", name, m, ok)
		}
	}
	for _, name := range []string{"", ".open", "x.chunks", "00000012-ABCDEF01.open", n.openName() + "x", n.openName() + ".tmp", "00000012-abcdef01-.chunks"} {
		if _, _, ok := parseName(name); ok {
			t.Errorf("%q is taken", name)
		}
	}
}

const (
	goldenChunk = "4743484b0100010325cd3209f92f742fe012184c85d9f7c2854ac9d403000200090000003c0000000b000000000000000700" +
		"000000000000000000000000000019d9a39d8988b47a0000000014b54917050b000002e490c1ed1ad48f49627079d806b802" +
		"c74f40c39d55fe1d78cd60d75282bae1f9754e8cbc7590d8b3ed2f4c93687376c930d7020a32f04c396fc2e5eab49cd09a"
	goldenHeader = "4752434601000000000000000000000001020300000000000000000000000000010000000200000007000000000000000000" +
		"00000000000000000000b87863bf"
	goldenFooter = "25cd3209f92f742fe012184c85d9f7c2854ac9d440000000090000003c0000000b0000000300020001030000000000000000" +
		"000005200000000000000000000200"
	goldenTrailer = "4752465401000000010000000100000041000000090000000000000000000000080000000000000000000000000000000000" +
		"0000000000000000000000000000070000000000000000000000000000000000000000000000000000004ba8c424"
)
