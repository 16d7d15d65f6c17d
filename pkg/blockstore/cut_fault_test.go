package blockstore

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
)

// recoveredVolume is a store on a file system that can fail, with two volumes whose first
// block was read back from the journal: the next cut of one has to sync it.
func recoveredVolume(t *testing.T) (fsys *vfs.Faulty, s *Store, ids [2]string, image []byte) {
	t.Helper()
	mem := vfs.NewMem()
	s = openStore(t, mem, smallOptions())
	for i, name := range []string{"v", "w"} {
		v := newVolume(t, s, name, 1<<20)
		image = make([]byte, v.Size())
		writeBlocks(t, v, image, 0, 1, "write")
		ids[i] = v.ID()
	}
	s.abandon()
	mem.Kill()
	fsys = vfs.NewFaulty(mem)
	return fsys, openStore(t, fsys, smallOptions()), ids, image
}

// onceAtSync calls do within the first sync of a journal segment.
func onceAtSync(fsys *vfs.Faulty, do func()) {
	did := false
	fsys.SetHook(func(op vfs.Op) error {
		if !did && op.Kind == vfs.OpDatasync && strings.HasSuffix(op.Name, ".seg") {
			did = true
			do()
		}
		return nil
	})
}

// A volume that is deleted while a cut of it is made gets none; nothing of either is left.
func TestVolumeDeletedWhileCut(t *testing.T) {
	for how, cut := range map[string]func(s *Store, id string) error{
		"snapshot": func(s *Store, id string) error {
			_, err := s.CreateSnapshot(context.Background(), id, "new", nil)
			return err
		},
		"clone": func(s *Store, id string) error {
			_, err := s.CreateVolume(VolumeSpec{Name: "new", FromVolume: id})
			return err
		},
	} {
		t.Run(how, func(t *testing.T) {
			fsys, s, ids, image := recoveredVolume(t)
			onceAtSync(fsys, func() { ok(t, s.DeleteVolume(ids[0])) })
			for _, what := range []string{"while", "after"} {
				if err := cut(s, ids[0]); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), ids[0]) {
					t.Errorf("%s of a volume %s it is deleted: %v, want ErrNotFound", how, what, err)
				}
			}
			if got := append(keys(s, keyCut), keys(s, keySnapshot)...); len(got) > 0 {
				t.Errorf("there is %v", got)
			}
			foldAll(t, s)
			if got := keys(s, keyVolume); !slices.Equal(got, []string{keyVolume + ids[1]}) {
				t.Errorf("volumes %v, want the other one alone", got)
			}
			must(s.CreateVolume(VolumeSpec{Name: "v", SizeBytes: 1 << 20}))(t)
			wantImage(t, readAll(t, attach(t, s, ids[1])), image, "other volume")
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// Of two snapshots with one name, made at the same time, there is one; the volume of the
// other can be snapshotted as before.
func TestSnapshotNameTakenMeanwhile(t *testing.T) {
	fsys, s, ids, image := recoveredVolume(t)
	ctx := context.Background()
	var first SnapshotInfo
	onceAtSync(fsys, func() { first = must(s.CreateSnapshot(ctx, ids[1], "name", nil))(t) })
	if _, err := s.CreateSnapshot(ctx, ids[0], "name", nil); !errors.Is(err, ErrExists) || first.ID == "" {
		t.Errorf("%v, want ErrExists", err)
	}
	if got := keys(s, keyCut); len(got) != 1 {
		t.Errorf("cuts %v, want that of the first", got)
	}
	second := must(s.CreateSnapshot(ctx, ids[0], "another name", nil))(t)
	foldAll(t, s)
	for _, snap := range []SnapshotInfo{first, second} {
		if info := must(s.Snapshot(snap.Name))(t); info.ID != snap.ID || !info.Ready {
			t.Errorf("%+v, want %s to be ready", info, snap.ID)
		}
		wantSnapshot(t, s, snap.ID, image)
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// A cut whose volume is gone when it would be committed is none.
func TestCutOfAVolumeThatIsGone(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	info := must(s.CreateVolume(VolumeSpec{Name: "v", SizeBytes: 1 << 20}))(t)
	ok(t, s.DeleteVolume(info.ID))
	err := s.commitCut(info.ID, s.newID('c'), info.State, position{}, func(catalog.View, cutPoint) ([]catalog.Op, error) {
		t.Error("a cut is made")
		return nil, nil
	})
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	wantClean(t, s)
	ok(t, s.Close())
}
