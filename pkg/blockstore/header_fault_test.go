package blockstore

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// A header whose estimate nobody can have made is refused by a start, under a good
// checksum too, and is left as it is.
func TestStart_RefusesEstimate(t *testing.T) {
	for _, at := range []int{40, 48} { // pending, held
		mem := vfs.NewMem()
		ok(t, openStore(t, mem, smallOptions()).Close())
		name := path.Join(testDir, headerName)
		rewriteFile(mem, name, func(p []byte) []byte {
			p[at+7] |= 0x80
			wal.SealPage(p)
			return p
		})
		before := string(must(vfs.ReadFile(mem, name))(t))
		if _, err := Open(mem, testDir, smallOptions()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), name+": an estimate of 2^63") {
			t.Errorf("the number at %d: %v, want ErrCorrupt", at, err)
		}
		if string(must(vfs.ReadFile(mem, name))(t)) != before {
			t.Errorf("the number at %d: the header was changed", at)
		}
		rewriteFile(mem, name, func(p []byte) []byte {
			p[at+7] &^= 0x80
			wal.SealPage(p)
			return p
		})
		s := openStore(t, mem, smallOptions())
		wantClean(t, s)
		ok(t, s.Close())
	}
}
