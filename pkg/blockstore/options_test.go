package blockstore

import (
	"errors"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// A size of chunk files is refused before anything is made, and whatever is taken works.
func TestChunkFileSizes(t *testing.T) {
	for bytes, want := range map[int64]error{
		16<<10 - 1: ErrInvalid, 16 << 10: nil, dedup.MaxFileBytes: nil, dedup.MaxFileBytes + 1: ErrInvalid, 1 << 30: ErrInvalid,
	} {
		o := smallOptions()
		o.ChunkFileBytes = bytes
		fsys := vfs.NewMem()
		s, err := Open(fsys, testDir, o)
		if !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", bytes, err, want)
		}
		if err == nil {
			ok(t, s.Close())
		} else if _, err := fsys.Stat(testDir); err == nil {
			t.Errorf("%d bytes: refused, and a directory was made", bytes)
		}
	}
}
