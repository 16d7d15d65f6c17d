package blockstore

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// Options that no store can have are refused before anything is made.
func TestOptions_Refused(t *testing.T) {
	const negative = "a limit is negative"
	for _, c := range []struct {
		text string
		set  func(*Options)
	}{
		{"segment of 12288 bytes", func(o *Options) { o.SegmentBytes = 3 * wal.PageSize }},
		{"segment of 16385 bytes", func(o *Options) { o.SegmentBytes = 4*wal.PageSize + 1 }},
		{"segment of -16384 bytes", func(o *Options) { o.SegmentBytes = -4 * wal.PageSize }},
		{"journal of 16384 bytes is smaller than a segment of 20480", func(o *Options) {
			o.JournalBytes, o.SegmentBytes = 4*wal.PageSize, 5*wal.PageSize
		}},
		{negative, func(o *Options) { o.CacheBytes = -1 }},
		{negative, func(o *Options) { o.ReserveBytes = -1 }},
		{negative, func(o *Options) { o.FoldBytes = -1 }},
		{negative, func(o *Options) { o.Workers = -1 }},
		{negative, func(o *Options) { o.FullTimeout = -1 }},
	} {
		o := smallOptions()
		c.set(&o)
		mem := vfs.NewMem()
		if _, err := Open(mem, testDir, o); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v, want ErrInvalid with %q", err, c.text)
		}
		if _, err := mem.Stat(testDir); err == nil {
			t.Errorf("%s: a directory was made", c.text)
		}
	}
	o := smallOptions()
	o.SegmentBytes, o.JournalBytes = 4*wal.PageSize, 4*wal.PageSize
	ok(t, openStore(t, vfs.NewMem(), o).Close())
}

// wantRefused calls do, which must end with an error that says what is wrong, and change
// nothing in the catalog.
func wantRefused(t *testing.T, s *Store, what string, want error, text string, do func() error) {
	t.Helper()
	before := s.cat.Durable()
	if err := do(); !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %v with %q", what, err, want, text)
	}
	if after := s.cat.Durable(); after != before {
		t.Errorf("%s: commit %d became %d", what, before, after)
	}
}

// What is no ID does not become a key, and a state only goes forward (I11).
func TestArguments_Refused(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, vfs.NewMem(), smallOptions())
	id := must(s.CreateVolume(VolumeSpec{Name: "v", SizeBytes: 1 << 20}))(t).ID
	snap := must(s.CreateSnapshot(ctx, id, "s", nil))(t).ID
	for _, wrong := range []string{"", "v", id + "/", strings.ToUpper(id), snap} {
		for what, do := range map[string]func() error{
			"resize":    func() error { _, err := s.ResizeVolume(wrong, 2<<20); return err },
			"set state": func() error { return s.SetVolumeState(wrong, StateUsed, "") },
			"snapshot":  func() error { _, err := s.CreateSnapshot(ctx, wrong, "t", nil); return err },
			"clone":     func() error { _, err := s.CreateVolume(VolumeSpec{Name: "c", FromVolume: wrong + "x"}); return err },
			"delete":    func() error { return s.DeleteVolume(wrong) },
			"open":      func() error { _, err := s.OpenVolume(ctx, wrong); return err },
		} {
			wantRefused(t, s, what+" "+wrong, ErrInvalid, "is not an ID of the form v- and 32", do)
		}
	}
	for _, wrong := range []string{"", "s", id} {
		wantRefused(t, s, "delete snapshot "+wrong, ErrInvalid, "is not an ID of the form s- and 32", func() error { return s.DeleteSnapshot(wrong) })
	}
	ok(t, s.SetVolumeState(id, StateFormatting, "ext4"))
	wantRefused(t, s, "back to empty", ErrInvalid, "is formatting and cannot become empty", func() error { return s.SetVolumeState(id, StateEmpty, "") })
	ok(t, s.SetVolumeState(id, StateUsed, ""))
	for _, state := range []VolumeState{StateEmpty, StateFormatting} {
		wantRefused(t, s, "back", ErrInvalid, "is used and cannot become "+string(state), func() error { return s.SetVolumeState(id, state, "xfs") })
	}
	if info := must(s.Volume(id))(t); info.State != StateUsed || info.FSType != "ext4" {
		t.Errorf("the volume is %s with %q", info.State, info.FSType)
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// A deleted volume whose journal owes a snapshot its data is not there for anybody, though
// its record is; the snapshot gets its data.
func TestDeletedVolumeIsGone(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, vfs.NewMem(), smallOptions())
	source, snap, image := unfolded(t, s, "v")
	ok(t, s.DeleteVolume(source.ID))
	if got := keys(s, keyVolume); len(got) != 1 {
		t.Fatalf("records %v: the journal owes a cut", got)
	}
	for what, do := range map[string]func() error{
		"look at":      func() error { _, err := s.Volume(source.ID); return err },
		"look by name": func() error { _, err := s.Volume("v"); return err },
		"delete":       func() error { return s.DeleteVolume(source.ID) },
		"resize":       func() error { _, err := s.ResizeVolume(source.ID, 2<<20); return err },
		"set state":    func() error { return s.SetVolumeState(source.ID, StateUsed, "") },
		"set on full":  func() error { _, err := s.SetOnFull(source.ID, OnFullError); return err },
		"open":         func() error { _, err := s.OpenVolume(ctx, source.ID); return err },
		"snapshot":     func() error { _, err := s.CreateSnapshot(ctx, source.ID, "t", nil); return err },
		"clone":        func() error { _, err := s.CreateVolume(VolumeSpec{Name: "c", FromVolume: source.ID}); return err },
	} {
		wantRefused(t, s, what, ErrNotFound, "", do)
	}
	if got := s.Volumes(); len(got) > 0 {
		t.Errorf("volumes %v", got)
	}
	again := must(s.CreateVolume(VolumeSpec{Name: "v", SizeBytes: 1 << 20}))(t)
	foldAll(t, s)
	if info := must(s.Snapshot(snap.ID))(t); !info.Ready {
		t.Errorf("%+v, want it to be ready", info)
	}
	wantSnapshot(t, s, snap.ID, image)
	if got := s.Volumes(); len(got) != 1 || got[0].ID != again.ID {
		t.Errorf("volumes %v", got)
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// Of two deletions of a volume at the same time one is refused.
func TestDeleteVolumeTwiceAtOnce(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	source, _, _ := unfolded(t, s, "v")
	second := errors.New("not called")
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && strings.Contains(op.Name, "/"+dirCatalog+"/") {
			second = s.DeleteVolume(source.ID)
		}
		return nil
	})
	ok(t, s.DeleteVolume(source.ID))
	fsys.SetHook(nil)
	if !errors.Is(second, ErrBusy) || !strings.Contains(second.Error(), source.ID) {
		t.Errorf("the second deletion: %v, want ErrBusy", second)
	}
	if err := s.DeleteVolume(source.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("a third, later: %v, want ErrNotFound", err)
	}
	foldAll(t, s)
	wantClean(t, s)
	ok(t, s.Close())
}
