package blockstore

import (
	"errors"
	"fmt"
	"strings"

	"github.com/k8ns/granary/pkg/catalog"
)

// wholeCatalog looks at one view of a catalog: every name leads to its record and back,
// and every cut is there for exactly those that name it.
func wholeCatalog(view catalog.View) error {
	names := make(map[string]int) // by cut
	for _, e := range view.Scan(keySnapshot, "", 0) {
		var rec snapshotRecord
		if err := decode(e, &rec); err != nil {
			return err
		}
		names[rec.Cut]++
		if err := leadsTo(view, keySnapshotName+rec.Name, keySnapshot, e.Key); err != nil {
			return err
		}
	}
	for _, e := range view.Scan(keyVolume, "", 0) {
		var rec volumeRecord
		if err := decode(e, &rec); err != nil {
			return err
		}
		if rec.Cut != "" {
			names[rec.Cut]++
		}
		if rec.Deleted {
			continue
		}
		if err := leadsTo(view, keyVolumeName+rec.Name, keyVolume, e.Key); err != nil {
			return err
		}
	}
	for _, e := range view.Scan(keyCut, "", 0) {
		var cut cutRecord
		if err := decode(e, &cut); err != nil {
			return err
		}
		id := strings.TrimPrefix(e.Key, keyCut)
		if cut.Names != names[id] {
			return fmt.Errorf("cut %s has %d names, and %d name it", id, cut.Names, names[id])
		}
		delete(names, id)
	}
	for cut, n := range names {
		return fmt.Errorf("%d name cut %s, which is not there", n, cut)
	}
	return nil
}

// leadsTo wants a name's record to be that of the record with the key.
func leadsTo(view catalog.View, name, kind, key string) error {
	var rec nameRecord
	if _, err := get(view, name, &rec); err != nil {
		return err
	}
	if kind+rec.ID != key {
		return fmt.Errorf("%s has the name of %s", key, rec.ID)
	}
	return nil
}

// listsAnswer looks every volume and snapshot up that is listed: it is as it was listed,
// or gone by then.
func (s *Store) listsAnswer() error {
	for _, info := range s.Volumes() {
		now, err := s.Volume(info.ID)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil || now.Name != info.Name || now.Source != info.Source {
			return fmt.Errorf("volume %s is listed as %q of %q, and is %q of %q: %w", info.ID, info.Name, info.Source, now.Name, now.Source, err)
		}
	}
	for _, info := range s.Snapshots("") {
		now, err := s.Snapshot(info.ID)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil || now.Name != info.Name || info.Ready && !now.Ready {
			return fmt.Errorf("snapshot %s is listed as %q, and is %q: %w", info.ID, info.Name, now.Name, err)
		}
	}
	return nil
}

// views looks at the catalog and the lists while clones and deletes run.
func (l *load) views() {
	for !l.stopped() {
		if err := errors.Join(wholeCatalog(l.s.cat.View()), l.s.listsAnswer()); err != nil {
			l.fail("view: %v", err)
			return
		}
	}
}
