package blockstore

import (
	"errors"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// wordless is a file system that answers statfs with zeros.
type wordless struct{ vfs.FS }

func (wordless) Space(string) (vfs.Space, error) { return vfs.Space{}, nil }

// Free space that the disk does not tell is unknown, not 0.
func TestStatsOfADiskThatDoesNotTell(t *testing.T) {
	broken := vfs.NewFaulty(vfs.NewMem())
	for _, tt := range []struct {
		what    string
		fsys    vfs.FS
		unknown bool
		err     string
	}{
		{"tells", vfs.NewMem(), false, ""},
		{"zeros", wordless{vfs.NewMem()}, true, ""},
		{"fails", broken, true, "disk on fire"},
	} {
		s := openStore(t, tt.fsys, smallOptions())
		broken.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpSpace {
				return errors.New("disk on fire")
			}
			return nil
		})
		st := s.Stats(false)
		if st.DiskUnknown != tt.unknown || (st.DiskFree > 0) == tt.unknown || !strings.Contains(st.DiskError, tt.err) || (st.DiskError == "") != (tt.err == "") {
			t.Errorf("%s: %d bytes free, unknown: %v, error: %q", tt.what, st.DiskFree, st.DiskUnknown, st.DiskError)
		}
		broken.SetHook(nil)
	}
}
