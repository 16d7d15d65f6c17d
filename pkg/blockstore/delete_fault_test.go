package blockstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

// unfolded makes a volume with one block that is not folded, closed, and a snapshot of it
// that waits for its fold. Its image is returned too.
func unfolded(t *testing.T, s *Store, name string) (VolumeInfo, SnapshotInfo, []byte) {
	t.Helper()
	v := newVolume(t, s, name, 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 1, "write")
	snap := must(s.CreateSnapshot(context.Background(), v.ID(), "snapshot of "+name, nil))(t)
	ok(t, v.Close())
	return must(s.Volume(v.ID()))(t), snap, image
}

// keys lists the records below a prefix.
func keys(s *Store, prefix string) (out []string) {
	for _, e := range s.scan(prefix) {
		out = append(out, e.Key)
	}
	return out
}

// Who waits for what is deleted meanwhile is told so at once. It was told with the next
// fold of anything, which may never come.
func TestDeletionEndsWaiting(t *testing.T) {
	o := smallOptions()
	o.MaxLayers = 1
	for _, c := range []struct {
		name   string
		wait   func(ctx context.Context, s *Store, source, clone VolumeInfo, snap SnapshotInfo) error
		remove func(s *Store, source, clone VolumeInfo, snap SnapshotInfo) error
	}{
		{"a clone to be opened", func(ctx context.Context, s *Store, _, clone VolumeInfo, _ SnapshotInfo) error {
			_, err := s.OpenVolume(ctx, clone.ID)
			return err
		}, func(s *Store, _, clone VolumeInfo, _ SnapshotInfo) error { return s.DeleteVolume(clone.ID) }},
		{"a clone to be snapshotted", func(ctx context.Context, s *Store, _, clone VolumeInfo, _ SnapshotInfo) error {
			_, err := s.CreateSnapshot(ctx, clone.ID, "another", nil)
			return err
		}, func(s *Store, _, clone VolumeInfo, _ SnapshotInfo) error { return s.DeleteVolume(clone.ID) }},
		{"a snapshot to be ready", func(ctx context.Context, s *Store, _, _ VolumeInfo, snap SnapshotInfo) error {
			_, err := s.WaitSnapshot(ctx, snap.ID)
			return err
		}, func(s *Store, _, _ VolumeInfo, snap SnapshotInfo) error { return s.DeleteSnapshot(snap.ID) }},
		{"a volume with too many snapshots", func(ctx context.Context, s *Store, source, _ VolumeInfo, _ SnapshotInfo) error {
			_, err := s.CreateSnapshot(ctx, source.ID, "another", nil)
			return err
		}, func(s *Store, source, _ VolumeInfo, _ SnapshotInfo) error { return s.DeleteVolume(source.ID) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, vfs.NewMem(), o)
			source, snap, image := unfolded(t, s, "v")
			clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: snap.ID}))(t)
			v := attach(t, s, source.ID)
			writeBlocks(t, v, make([]byte, v.Size()), 0, 1, "write behind the snapshot")
			ok(t, v.Close())
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := c.wait(canceled(), s, source, clone, snap); !errors.Is(err, context.Canceled) {
				t.Fatalf("%v: nothing has to be waited for", err)
			}
			ended := make(chan error, 1)
			go func() { ended <- c.wait(ctx, s, source, clone, snap) }()
			select {
			case err := <-ended:
				t.Fatalf("ended without waiting: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			ok(t, c.remove(s, source, clone, snap))
			if err := <-ended; !errors.Is(err, ErrNotFound) {
				t.Errorf("%v, want ErrNotFound", err)
			}
			foldAll(t, s)
			if info, err := s.Volume(clone.ID); err == nil { // what was not deleted is whole
				wantImage(t, readAll(t, attach(t, s, info.ID)), image, "clone")
			}
			if got := keys(s, keySnapshotName); len(got) > 1 || len(got) == 1 && got[0] != keySnapshotName+snap.Name {
				t.Errorf("snapshots %v", got)
			}
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// canceled is a context that has ended.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
