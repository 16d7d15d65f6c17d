package blockstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
)

// wantPublication compares what the three ways to ask say; nil: there is none.
func wantPublication(t testing.TB, s *Store, id string, want *Publication) {
	t.Helper()
	got := map[string]*Publication{"Volume": must(s.Volume(id))(t).Publication}
	for _, info := range s.Volumes() {
		if info.ID == id {
			got["Volumes"] = info.Publication
		}
	}
	if p, ok := s.Publications()[id]; ok {
		got["Publications"] = &p
	}
	for _, how := range []string{"Volume", "Volumes", "Publications"} {
		g := got[how]
		if (g == nil) != (want == nil) || g != nil && *g != *want {
			t.Errorf("%s: %+v, want %+v", how, g, want)
		}
	}
}

// A publication is durable on return, replaced and removed as told.
func TestPublicationIsDurable(t *testing.T) {
	fsys := vfs.NewMem()
	o := smallOptions()
	now := time.Unix(1e9, 0)
	o.Now = func() time.Time { return now }
	s := openStore(t, fsys, o)
	crash := func() {
		s.abandon()
		fsys.Crash(nil, 0)
		s = openStore(t, fsys, o)
		wantClean(t, s)
	}
	id := must(s.CreateVolume(VolumeSpec{Name: "v", SizeBytes: 1}))(t).ID
	other := must(s.CreateVolume(VolumeSpec{Name: "w", SizeBytes: 1}))(t).ID
	wantPublication(t, s, id, nil)
	ok(t, s.RemovePublication(id))
	ok(t, s.PutPublication(id, Publication{Node: "n1", ReadOnly: true, Capability: "mount/ext4"}))
	crash()
	p := Publication{Node: "n1", ReadOnly: true, Capability: "mount/ext4", Created: now.UTC()}
	wantPublication(t, s, id, &p)
	wantPublication(t, s, other, nil)
	now = now.Add(time.Hour)
	p.Released = true
	ok(t, s.PutPublication(id, p)) // keeps its time
	crash()
	wantPublication(t, s, id, &p)
	ok(t, s.RemovePublication(id))
	crash()
	wantPublication(t, s, id, nil)
	ok(t, s.PutPublication(id, Publication{Node: "n2"}))
	wantPublication(t, s, id, &Publication{Node: "n2", Created: now.UTC()})
	ok(t, s.Close())
}

// What is deleted has no publication, also while its record waits for a cut, and gets none.
func TestPublicationGoesWithItsVolume(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	put := func(id string) error { return s.PutPublication(id, Publication{Node: "n"}) }
	plain := must(s.CreateVolume(VolumeSpec{Name: "plain", SizeBytes: 1}))(t).ID
	owing, _ := layered(t, s, "owing", 1) // its snapshot is not folded yet
	for _, id := range []string{plain, owing} {
		ok(t, put(id))
		ok(t, s.DeleteVolume(id))
		if len(s.Publications()) > 0 {
			t.Errorf("publication of a deleted volume: %+v", s.Publications())
		}
		if err := put(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("publication of a deleted volume: %v", err)
		}
		ok(t, s.RemovePublication(id))
	}
	if _, there := s.cat.Get(keyVolume + owing); !there {
		t.Error("the record of the volume that owes a cut is gone: nothing was tested")
	}
	wantClean(t, s)
	foldAll(t, s)
	if err := put("v-1"); !errors.Is(err, ErrInvalid) {
		t.Errorf("publication of no ID: %v", err)
	}
	if err := put(s.newID('v')); !errors.Is(err, ErrNotFound) {
		t.Errorf("publication of nothing: %v", err)
	}
	wantClean(t, s)
	ok(t, s.Close())
	if err := put(plain); !errors.Is(err, ErrClosed) {
		t.Errorf("publication in a closed store: %v", err)
	}
}

// Publishing races with deletion: no record outlives its volume.
func TestPublicationBesideDelete(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	var wg sync.WaitGroup
	for i := range 40 {
		id := must(s.CreateVolume(VolumeSpec{Name: fmt.Sprint("v", i), SizeBytes: 1}))(t).ID
		wg.Go(func() {
			for {
				if err := s.PutPublication(id, Publication{Node: "n"}); errors.Is(err, ErrNotFound) {
					return
				} else if err != nil {
					t.Errorf("put: %v", err)
					return
				}
				s.Volumes()
			}
		})
		wg.Go(func() {
			if err := s.DeleteVolume(id); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
	wg.Wait()
	if len(s.Publications()) > 0 {
		t.Errorf("left: %+v", s.Publications())
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// The check reports a publication of no volume, of a deleted one, and one that it cannot
// read.
func TestCheckReportsPublications(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	owing, _ := layered(t, s, "owing", 1)
	well := must(s.CreateVolume(VolumeSpec{Name: "well", SizeBytes: 1}))(t).ID
	ok(t, s.PutPublication(well, Publication{Node: "n"}))
	ok(t, s.DeleteVolume(owing))
	wantClean(t, s)
	none := s.newID('v')
	must(s.commit(put(keyPublish+none, Publication{}, catalog.ExpectAny), put(keyPublish+owing, Publication{}, catalog.ExpectAny),
		catalog.Op{Key: keyPublish + well, Value: []byte(`{"unknown":1}`), Expect: catalog.ExpectAny}))(t)
	var found []string
	ok(t, s.Check(context.Background(), CheckOptions{}, func(p Problem) { found = append(found, p.String()) }))
	all := strings.Join(found, "\n")
	for _, want := range []string{none + ": is of no volume", owing + ": is of a deleted volume", well + ": catalog record"} {
		if !strings.Contains(all, want) {
			t.Errorf("check does not say %q:\n%s", want, all)
		}
	}
	if len(found) != 3 {
		t.Errorf("check says:\n%s", all)
	}
	wantPublication(t, s, well, nil)
	ok(t, s.Close())
}
