package dedup

import (
	"path"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// A check believes no checksum alone: content must have its fingerprints, and a file the
// hash that its trailer states, even where everything around them agrees.
func TestVerifyBelievesNoChecksum(t *testing.T) {
	for _, c := range []struct {
		text  string
		spoil func(mem *vfs.Mem, name string, chunk footerChunk)
	}{
		{"content has another fingerprint", swapGroups},
		{", the trailer says ", func(mem *vfs.Mem, name string, _ footerChunk) {
			setTrailer(mem, name, func(_ []byte, tr *trailer) { tr.hash[5] ^= 1 })
		}},
	} {
		mem, name, _, chunks := sealedStore(t, 1, 24)
		c.spoil(mem, name, chunks[0])
		s := open(t, mem, 2)
		var told []string
		if err := s.VerifyFile(path.Base(name), true, func(p Problem) { told = append(told, p.Text) }); err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(told, "; "); !strings.Contains(text, c.text) {
			t.Errorf("want %q: %q", c.text, text)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// swapGroups exchanges a chunk's first two groups, their lengths and checksums with them.
func swapGroups(mem *vfs.Mem, name string, chunk footerChunk) {
	mem.Corrupt(name, int64(chunk.off), func(b []byte) {
		head, err := parseChunkHead(b)
		if err != nil {
			panic(err)
		}
		entries := b[headSize : headSize+head.front]
		f, err := parseFront(head, entries)
		if err != nil || len(f.groups) < 3 {
			panic(err)
		}
		swap := func(p []byte, n int) { copy(p, append(append([]byte{}, p[n:]...), p[:n]...)) }
		swap(entries[:2*groupEntry], groupEntry)
		payload := b[f.payloadAt():]
		swap(payload[:f.groups[2].off], int(f.groups[0].size))
		le.PutUint32(b[64:], wal.PageCRC(entries))
		le.PutUint32(b[76:], wal.PageCRC(b[:76]))
	})
}
