package blockstore

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
)

// An attachment is of a volume, and what becomes of a volume on a full disk is one of two:
// anything else is refused, and nothing is recorded.
func TestSettings_Refused(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	id := must(s.CreateVolume(VolumeSpec{Name: "v", SizeBytes: 1 << 20}))(t).ID
	other := s.newID('v')
	set := func(id, onFull string) func() error {
		return func() error { _, err := s.SetOnFull(id, onFull); return err }
	}
	before := s.cat.Durable()
	for _, c := range []struct {
		what string
		do   func() error
		want error
		text string
	}{
		{"attachment of no ID", func() error { return s.PutAttachment(Attachment{Volume: "v"}) }, ErrInvalid, `"v" is not an ID of the form v-`},
		{"attachment of a snapshot", func() error { return s.PutAttachment(Attachment{Volume: s.newID('s')}) }, ErrInvalid, "is not an ID of the form v-"},
		{"on full of no ID", set("v", OnFullWait), ErrInvalid, `"v" is not an ID of the form v-`},
		{"on full of no kind", set(id, "stop"), ErrInvalid, `onFull "stop": wait and error are allowed`},
		{"on full of no volume", set(other, OnFullError), ErrNotFound, other},
	} {
		if err := c.do(); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %v with %q", c.what, err, c.want, c.text)
		}
	}
	if after := s.cat.Durable(); after != before || len(s.Attachments()) > 0 {
		t.Errorf("commit %d became %d; attachments %v", before, after, s.Attachments())
	}
	if info := must(s.Volume(id))(t); info.OnFull != OnFullWait {
		t.Errorf("on full it is %q", info.OnFull)
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// A volume ends while it is being opened with a throw-away layer: the caller is told what
// became of it, and neither file nor memory is left behind.
func TestScratchOfWhatEndsMeanwhile(t *testing.T) {
	for _, c := range []struct {
		what string
		owes bool // a snapshot waits for its journal, so the record outlives the volume
		end  func(s *Store, id string) error
		want error
	}{
		{"deleted", false, (*Store).DeleteVolume, ErrNotFound},
		{"deleted, and its journal is needed", true, (*Store).DeleteVolume, ErrNotFound},
		{"opened by another", false, func(s *Store, id string) error { _, err := s.OpenVolume(context.Background(), id); return err }, ErrInUse},
		{"store closed", false, func(s *Store, _ string) error { return s.Close() }, ErrClosed},
	} {
		t.Run(c.what, func(t *testing.T) {
			mem := vfs.NewMem()
			fsys := vfs.NewFaulty(mem)
			s := openStore(t, fsys, smallOptions())
			v := newVolume(t, s, "v", 1<<20)
			image := make([]byte, v.Size())
			writeBlocks(t, v, image, 0, 4, "write")
			var snap SnapshotInfo
			if c.owes {
				snap = must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
			}
			ok(t, v.Close())
			if !c.owes {
				foldAll(t, s)
			}
			ended := errors.New("not called")
			fsys.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpCreate && strings.Contains(op.Name, "/"+dirScratch+"/") {
					ended = c.end(s, v.ID())
				}
				return nil
			})
			_, err := s.OpenScratch(context.Background(), v.ID())
			fsys.SetHook(nil)
			ok(t, ended)
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			wantNoScratchFiles(t, mem)
			switch c.want {
			case ErrClosed:
				s = openStore(t, mem, smallOptions())
				fallthrough
			case ErrInUse:
				if o := s.loaded(v.ID()); o != nil {
					ok(t, o.Close())
				}
				o := attach(t, s, v.ID())
				wantImage(t, readAll(t, o), image, "volume")
				ok(t, o.Close())
			default:
				foldAll(t, s)
				if _, found := s.cat.Get(keyVolume + v.ID()); found || s.loaded(v.ID()) != nil {
					t.Error("something is left of the volume")
				}
				if c.owes {
					wantSnapshot(t, s, snap.ID, image)
				}
			}
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// A clone whose source is not folded waits no longer than its caller, and one whose cut
// is gone or unreadable is never taken for an empty volume.
func TestCloneWithoutItsCut(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 4, "write")
	snap := must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
	clone := must(s.CreateVolume(VolumeSpec{Name: "c", FromSnapshot: snap.ID}))(t)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.OpenVolume(ended, "c"); !errors.Is(err, ErrInvalid) {
		t.Errorf("opened by its name: %v", err)
	}
	if _, err := s.OpenVolume(ended, clone.ID); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), clone.ID+" waits for its source") {
		t.Errorf("a clone that waits: %v", err)
	}
	foldAll(t, s)
	var rec volumeRecord
	must(get(s.cat, keyVolume+clone.ID, &rec))(t)
	key := keyCut + rec.Cut
	cut, _ := s.cat.Get(key)
	for what, take := range map[string]func() (mend func()){
		"gone": func() func() {
			must(s.commit(del(key, cut.Revision)))(t)
			return func() { must(s.cat.Commit(catalog.Op{Key: key, Value: cut.Value}))(t) }
		},
		"unreadable": func() func() { return spoil(t, s, key) },
	} {
		mend := take()
		before := s.cat.Durable()
		_, err := s.OpenVolume(context.Background(), clone.ID)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), clone.ID) || !strings.Contains(err.Error(), rec.Cut) {
			t.Errorf("a clone whose cut is %s: %v", what, err)
		}
		if s.cat.Durable() != before || s.loaded(clone.ID) != nil {
			t.Errorf("a clone whose cut is %s was changed, or is in memory", what)
		}
		mend()
		cut, _ = s.cat.Get(key)
	}
	c := attach(t, s, clone.ID)
	wantImage(t, readAll(t, c), image, "clone")
	ok(t, c.Close())
	ok(t, v.Close())
	wantClean(t, s)
	ok(t, s.Close())
}

// The root that a volume waits for is lost with the journal that it would come from, or
// there already; who asks is told which.
func TestCutLost(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeBlocks(t, v, make([]byte, v.Size()), 0, 4, "write")
	snap := must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
	clone := must(s.CreateVolume(VolumeSpec{Name: "c", FromSnapshot: snap.ID}))(t)
	ok(t, v.Close())
	var rec volumeRecord
	must(get(s.cat, keyVolume+clone.ID, &rec))(t)
	ok(t, s.cutLost(rec.Cut)) // it waits
	ok(t, s.cutLost(s.newID('c')))
	s.mu.Lock()
	delete(s.mu.volumes, v.ID()) // as if the journal had never been
	s.mu.Unlock()
	if err := s.rootLost(clone.ID); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "the journal of volume "+v.ID()) || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("%v, want ErrCorrupt", err)
	}
	s.mu.Lock()
	s.mu.volumes[v.ID()] = v
	s.mu.Unlock()
	foldAll(t, s)
	ok(t, s.cutLost(rec.Cut))
	ok(t, s.rootLost(v.ID()))
	wantClean(t, s)
	ok(t, s.Close())
}
