package dedup

import (
	"path"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// A footer of which a byte has changed is not believed: it says which chunks are where,
// and nothing else in the file contradicts a hook that is another's. The chunks are
// scanned instead.
func TestEveryByteOfAFooter(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	at := put(t, s, seq(0, 300)...) // some of them hooks
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f := s.Files()[0]
	name := path.Join(testDir, f.Name)
	b, err := vfs.ReadFile(mem, name)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := parseTrailer(b[len(b)-trailerSize:])
	if err != nil || tr.hooks == 0 {
		t.Fatalf("%+v, %v", tr, err)
	}
	for off := f.Size - trailerSize - int64(tr.footer); off < f.Size; off++ {
		bad := mem.Clone()
		bad.Corrupt(name, off, func(b []byte) { b[0] ^= 0x11 })
		s := open(t, bad, 2, func(o *Options) { o.ReadOnly = true })
		if len(s.Problems()) == 0 {
			t.Errorf("byte %d of %d changed: the footer is believed", off, f.Size)
		}
		check(t, s, at, seq(0, 300)...)
		if t.Failed() {
			return
		}
	}
}
