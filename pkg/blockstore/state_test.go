package blockstore

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// A copy has its source's state: also one that mkfs has not ended for can be formatted.
func TestCopyHasItsSourcesState(t *testing.T) { // I11
	ctx := context.Background()
	for _, state := range []VolumeState{StateEmpty, StateFormatting, StateUsed} {
		for _, folded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s folded=%v", state, folded), func(t *testing.T) {
				s := openStore(t, vfs.NewMem(), smallOptions())
				v := newVolume(t, s, "v", 1<<20)
				fsType := ""
				if state != StateEmpty {
					fsType = "ext4"
					ok(t, s.SetVolumeState(v.ID(), state, fsType))
					writeAt(t, v, noise(1, BlockSize), 0)
				}
				want := readAll(t, v)
				if folded {
					foldAll(t, s)
				}
				sn := must(s.CreateSnapshot(ctx, v.ID(), "sn", nil))(t)
				clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromVolume: v.ID()}))(t)
				if state != StateUsed { // what comes later does not matter
					ok(t, s.SetVolumeState(v.ID(), StateUsed, "xfs"))
				}
				writeAt(t, v, noise(2, BlockSize), 0)
				restored := must(s.CreateVolume(VolumeSpec{Name: "restored", FromSnapshot: sn.ID}))(t)
				foldAll(t, s)
				again := must(s.CreateVolume(VolumeSpec{Name: "again", FromVolume: clone.ID}))(t)
				for _, c := range []VolumeInfo{clone, restored, again} {
					if c.State != state || c.FSType != fsType {
						t.Errorf("%s is %s %q, want %s %q", c.Name, c.State, c.FSType, state, fsType)
					}
					cv := attach(t, s, c.ID)
					wantImage(t, readAll(t, cv), want, c.Name)
					ok(t, cv.Close())
				}
				ok(t, v.Close())
				wantClean(t, s)
				ok(t, s.Close())
			})
		}
	}
}

// When the source's state moves on while it is copied, the copy has the image of the state
// that it says: never half a filesystem that counts as used.
func TestStateMovesWhileCopied(t *testing.T) { // I11
	for _, how := range []string{"clone", "snapshot"} {
		t.Run(how, func(t *testing.T) {
			fsys := vfs.NewFaulty(vfs.NewMem())
			s := openStore(t, fsys, smallOptions())
			v := newVolume(t, s, "v", 1<<20)
			ok(t, s.SetVolumeState(v.ID(), StateFormatting, "ext4"))
			image := make([]byte, v.Size())
			copy(image, noise(1, 2*BlockSize))
			writeAt(t, v, image[:BlockSize], 0)
			var once sync.Once
			fsys.SetHook(func(op vfs.Op) error { // the mark is made, the commit is not
				if op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/journal/") {
					once.Do(func() {
						_, err1 := v.WriteAt(image[BlockSize:2*BlockSize], BlockSize)
						if err := s.SetVolumeState(v.ID(), StateUsed, ""); err1 != nil || err != nil {
							t.Errorf("mkfs ends: %v, %v", err1, err)
						}
					})
				}
				return nil
			})
			spec := VolumeSpec{Name: "copy", FromVolume: v.ID()}
			if how == "snapshot" {
				spec.FromSnapshot = must(s.CreateSnapshot(context.Background(), v.ID(), "sn", nil))(t).ID
				spec.FromVolume = ""
			}
			c := must(s.CreateVolume(spec))(t)
			fsys.SetHook(nil)
			foldAll(t, s)
			cv := attach(t, s, c.ID)
			if got := readAll(t, cv); c.State != StateUsed || !bytes.Equal(got, image) {
				t.Errorf("copy is %s, with the whole filesystem: %v", c.State, bytes.Equal(got, image))
			}
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}
