package blockmap

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
)

func mustEncode(t testing.TB, n *Node, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	page, err := EncodeNode(n)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func leafPage(t testing.TB, extents ...Extent) []byte {
	t.Helper()
	n, err := NewLeaf(extents)
	return mustEncode(t, n, err)
}

func innerPage(t testing.TB, level int, children ...Child) []byte {
	t.Helper()
	n, err := NewInner(level, children)
	return mustEncode(t, n, err)
}

// chunkA and chunkB are chunk IDs that are easy to see in bytes.
var (
	chunkA = dedup.ChunkID(bytes.Repeat([]byte{0xaa}, 20))
	chunkB = dedup.ChunkID(bytes.Repeat([]byte{0xbb}, 20))
)

// TestNodeBytes holds the format: byte by byte as FORMAT.md has it.
func TestNodeBytes(t *testing.T) {
	leaf := leafPage(t,
		Extent{First: 300, Count: 2, Chunk: chunkB, Slot: 1022},
		Extent{First: 302, Count: 1, Chunk: chunkA, Slot: 5, Damaged: 0x81},
		Extent{First: 310, Count: 100, Chunk: chunkB})
	want := "GN\x01\x00" + "\x03\x00" + "\x02\x00" + "\x49\x00" + strings.Repeat("\x00", 6) +
		strings.Repeat("\xbb", 20) + strings.Repeat("\xaa", 20) +
		"\xac\x02\x04\x01\xfe\x07" + "\x00\x03\x02\x05\x81" + "\x07\xc8\x01\x01\x00"
	want = want[:8] + string([]byte{byte(len(want)), 0}) + want[10:]
	if got := string(leaf[:len(want)]); got != want || !bytes.Equal(leaf[len(want):], zeros[len(want):]) {
		t.Errorf("leaf is\n%x, want\n%x", got, want)
	}

	inner := innerPage(t, 2,
		Child{First: 0, Node: dedup.Slot{Slot: 7}},
		Child{First: 128, Node: dedup.Slot{Chunk: chunkA, Slot: 200}})
	want = "GN\x01\x02" + "\x02\x00" + "\x01\x00" + "\x2c\x00" + strings.Repeat("\x00", 6) +
		strings.Repeat("\xaa", 20) + "\x00\x00\x07" + "\x80\x01\x01\xc8\x01"
	if got := string(inner[:len(want)]); got != want {
		t.Errorf("inner node is\n%x, want\n%x", got, want)
	}

	var dump strings.Builder
	for _, p := range [][]byte{leaf, inner} {
		if err := DumpNode(&dump, p); err != nil {
			t.Fatal(err)
		}
	}
	wantDump := "map node: level 0, 3 entries, 2 chunk IDs, 72 bytes used\n" +
		"  300+2: " + chunkB.String() + "/1022\n" +
		"  302+1: " + chunkA.String() + "/5, damaged sectors 10000001\n" +
		"  310+100: " + chunkB.String() + "/0\n" +
		"map node: level 2, 2 entries, 1 chunk IDs, 44 bytes used\n" +
		"  from 0: node self/7\n" +
		"  from 128: node " + chunkA.String() + "/200\n"
	if dump.String() != wantDump {
		t.Errorf("dump is\n%s, want\n%s", dump.String(), wantDump)
	}
}

// TestDecodeRefuses damages pages in every way that the format names.
func TestDecodeRefuses(t *testing.T) {
	leaf := func() []byte { return leafPage(t, Extent{First: 10, Count: 20, Chunk: chunkA, Slot: 3}) }
	inner := func() []byte { return innerPage(t, 1, Child{Node: dedup.Slot{Chunk: chunkA, Slot: 9}}) }
	const at = headSize + 20 // first byte of the entries
	set := func(page []byte, at int, b ...byte) []byte { copy(page[at:], b); return page }
	tests := []struct {
		name string
		page []byte
		want error
	}{
		{"short", leaf()[:4095], dedup.ErrCorrupt},
		{"long", append(leaf(), 0), dedup.ErrCorrupt},
		{"none", nil, dedup.ErrCorrupt},
		{"zeros", make([]byte, 4096), dedup.ErrFormat},
		{"magic", set(leaf(), 1, 'O'), dedup.ErrFormat},
		{"version", set(leaf(), 2, 2), dedup.ErrVersion},
		{"level", set(leaf(), 3, MaxLevels), dedup.ErrCorrupt},
		{"reserved", set(leaf(), 12, 1), dedup.ErrCorrupt},
		{"padding", set(leaf(), 4095, 1), dedup.ErrCorrupt},
		{"used too much", set(leaf(), 8, 0xff, 0xff), dedup.ErrCorrupt},
		{"used one more", set(leaf(), 8, at+5), dedup.ErrCorrupt},
		{"used one less", set(leaf(), 8, at+3), dedup.ErrCorrupt},
		{"more entries", set(leaf(), 4, 0xff, 0xff), dedup.ErrCorrupt},
		{"fewer entries", set(leaf(), 4, 0), dedup.ErrCorrupt},
		{"no child", set(make([]byte, 4096), 0, 'G', 'N', 1, 1, 0, 0, 0, 0, 16), dedup.ErrCorrupt},
		{"more chunk IDs", set(leaf(), 6, 0xff, 0xff), dedup.ErrCorrupt},
		{"zero chunk ID", set(leaf(), headSize, make([]byte, 20)...), dedup.ErrCorrupt},
		{"unknown chunk", set(leaf(), at+2, 2), dedup.ErrCorrupt},
		{"own chunk in a leaf", set(leaf(), at+2, 0), dedup.ErrCorrupt},
		{"chunk ID not used", set(inner(), at+1, 0), dedup.ErrCorrupt},
		{"no blocks", set(leaf(), at+1, 0), dedup.ErrCorrupt},
		{"damaged run", set(leaf(), at+1, 41), dedup.ErrCorrupt},
		{"damaged without mask", set(leaf(), at+1, 3), dedup.ErrCorrupt},
		{"slot", set(leafPage(t, Extent{Count: 1, Chunk: chunkA, Slot: 1023}), at+3, 0x80, 0x08), dedup.ErrCorrupt},
		{"slot far behind", set(leafPage(t, Extent{Count: 1, Chunk: chunkA, Slot: 1023}), at+3, 0xd0, 0x0f), dedup.ErrCorrupt},
		{"slot of a child", set(innerPage(t, 1, Child{Node: dedup.Slot{Chunk: chunkA, Slot: 1023}}), at+2, 0x80, 0x08), dedup.ErrCorrupt},
		{"over the chunk", set(leafPage(t, Extent{Count: 1, Chunk: chunkA, Slot: 1023}), at+1, 4), dedup.ErrCorrupt},
		{"long varint", set(leafPage(t, Extent{First: 128, Count: 1, Chunk: chunkA}), at, 0x80, 0x00), dedup.ErrCorrupt},
		{"endless varint", set(leaf(), at, 0xff, 0xff, 0xff, 0xff), dedup.ErrCorrupt},
		{"same block twice", set(innerPage(t, 1, Child{}, Child{First: 1}), headSize+3, 0), dedup.ErrCorrupt},
		{"order of chunk IDs", set(leafPage(t, Extent{Count: 1, Chunk: chunkA}, Extent{First: 1, Count: 1, Chunk: chunkB}),
			headSize+40+2, 2), dedup.ErrCorrupt},
		{"chunk behind the last", set(leafPage(t, Extent{Count: 1, Chunk: chunkA}, Extent{First: 1, Count: 1, Chunk: chunkA}),
			at+4+2, 2), dedup.ErrCorrupt},
		{"block number", set(set(leafPage(t, Extent{First: endOfSpace - 1, Count: 1, Chunk: chunkA}), at, 0xff), at+10, 2),
			dedup.ErrCorrupt},
	}
	for _, tt := range tests {
		if _, err := DecodeNode(tt.page); !errors.Is(err, tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
		if err := DumpNode(&bytes.Buffer{}, tt.page); !errors.Is(err, tt.want) {
			t.Errorf("dump, %s: error %v, want %v", tt.name, err, tt.want)
		}
	}
	for _, good := range [][]byte{leaf(), inner(), leafPage(t)} {
		if _, err := DecodeNode(good); err != nil {
			t.Error(err)
		}
	}
}

func TestNewNodeRefuses(t *testing.T) {
	for _, e := range []Extent{
		{First: 1, Count: 1},
		{First: 1, Chunk: chunkA},
		{Count: 2, Chunk: chunkA, Slot: 1023},
		{Count: 2, Chunk: chunkA, Damaged: 1},
		{First: endOfSpace, Count: 1, Chunk: chunkA},
	} {
		if _, err := NewLeaf([]Extent{e}); err == nil {
			t.Errorf("leaf with %+v", e)
		}
	}
	for level, children := range map[int][]Child{0: {{}}, 16: {{}}, 1: nil} {
		if _, err := NewInner(level, children); err == nil {
			t.Errorf("inner node of level %d with %d children", level, len(children))
		}
	}
	var many []Extent
	for i := range uint64(300) {
		many = append(many, Extent{First: 2 * i, Count: 1, Chunk: id(i)})
	}
	for _, extents := range [][]Extent{
		many, // too big
		{{First: 2, Count: 1, Chunk: chunkA}, {First: 1, Count: 1, Chunk: chunkA}},
		{{First: 1, Count: 2, Chunk: chunkA}, {First: 2, Count: 1, Chunk: chunkA}},
	} {
		n, err := NewLeaf(extents)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := EncodeNode(n); err == nil {
			t.Errorf("encoded a leaf of %d extents", len(extents))
		}
	}
}

// TestNodeRoundTrip encodes random nodes; the size known before is the size used.
func TestNodeRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		level := r.IntN(3)
		b := newBuilder()
		b.reset(level)
		var at uint64
		for range 1 + r.IntN(150) {
			at += 1 + r.Uint64N(1<<r.IntN(40))
			chunk := id(r.Uint64N(1 + r.Uint64N(100)))
			if level == 0 {
				e := Extent{First: at, Count: 1 + r.Uint64N(500), Chunk: chunk, Slot: uint16(r.IntN(500))}
				if r.IntN(5) == 0 {
					e.Count, e.Damaged = 1, uint8(1+r.IntN(255))
				}
				b.addExtent(e)
				at = e.End()
				continue
			}
			if r.IntN(3) == 0 {
				chunk = dedup.ChunkID{}
			}
			b.addChild(Child{First: at, Node: dedup.Slot{Chunk: chunk, Slot: uint16(r.IntN(1024))}})
		}
		page := mustEncode(t, b.node, nil)
		n, err := DecodeNode(page)
		if err != nil {
			t.Fatal(err)
		}
		again := mustEncode(t, n, nil)
		if !bytes.Equal(page, again) {
			t.Fatal("a node changes when it is decoded and encoded")
		}
		if used := int(page[8]) | int(page[9])<<8; used != b.node.size() {
			t.Fatalf("%d bytes used, %d computed", used, b.node.size())
		}
	}
}

// FuzzDecodeNode decodes anything: what is accepted encodes to the same bytes, and trees
// of it do no harm.
func FuzzDecodeNode(f *testing.F) {
	f.Add(leafPage(f)[:16])
	f.Add(leafPage(f, Extent{First: 300, Count: 2, Chunk: chunkB, Slot: 1022},
		Extent{First: 302, Count: 1, Chunk: chunkA, Slot: 5, Damaged: 0x81})[:100])
	f.Add(innerPage(f, 2, Child{Node: dedup.Slot{Slot: 7}},
		Child{First: 128, Node: dedup.Slot{Chunk: chunkA, Slot: 200}})[:100])
	f.Fuzz(func(t *testing.T, head []byte) {
		page := make([]byte, dedup.BlockSize)
		copy(page, head)
		n, err := DecodeNode(page)
		if err != nil {
			if !errors.Is(err, dedup.ErrCorrupt) && !errors.Is(err, dedup.ErrFormat) && !errors.Is(err, dedup.ErrVersion) {
				t.Fatalf("error without a kind: %v", err)
			}
			return
		}
		again, err := EncodeNode(n)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(page, again) {
			t.Fatalf("accepted %x, which encodes to %x", page[:n.size()], again[:n.size()])
		}
		tree := New(onePage(page), 0)
		root := dedup.Slot{Chunk: chunkA}
		_ = tree.Lookup(root, 0, 1<<20, func(Extent) error { return nil })
		sink := &memSink{store: newMemStore(), per: 3}
		if _, err := tree.Update(root, []Extent{{First: 5, Count: 7}, {First: 100, Count: 1, Chunk: chunkB}}, sink); err != nil {
			t.Fatal(err)
		}
	})
}

// onePage is a NodeSource whose every node is the same page.
type onePage []byte

func (p onePage) ReadNode(dedup.Slot) ([]byte, error) { return p, nil }
