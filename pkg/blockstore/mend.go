package blockstore

import (
	"errors"
	"strings"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
)

// mend puts a finding of the catalog right: a record that follows from others.
type mend struct {
	key    string // of the record that it changes
	detail string // what was found
	// op makes the change, given the catalog of the moment; nil if there is none to make.
	op func(view catalog.View) (*catalog.Op, error)
}

// nameOwner is the ID of the record that a name is reserved for and that has it; "" if
// there is none, and the error if that is because the reservation cannot be read.
func nameOwner(view catalog.View, nameKey string) (id string, err error) {
	var n nameRecord
	if _, err := get(view, nameKey, &n); err != nil {
		return "", err
	}
	if name, ok := strings.CutPrefix(nameKey, keyVolumeName); ok {
		var rec volumeRecord
		_, err := get(view, keyVolume+n.ID, &rec)
		return ownerOf(n.ID, err, rec.Name == name && !rec.Deleted), nil
	}
	var rec snapshotRecord
	_, err = get(view, keySnapshot+n.ID, &rec)
	return ownerOf(n.ID, err, rec.Name == strings.TrimPrefix(nameKey, keySnapshotName)), nil
}

// ownerOf is id if its record has the name; one that cannot be read may have it.
func ownerOf(id string, err error, has bool) string {
	if errors.Is(err, ErrNotFound) || err == nil && !has {
		return ""
	}
	return id
}

// remove deletes a record.
func remove(key string) *mend {
	return &mend{key: key, op: func(view catalog.View) (*catalog.Op, error) {
		e, ok := view.Get(key)
		if !ok {
			return nil, nil
		}
		op := del(key, e.Revision)
		return &op, nil
	}}
}

// removeName deletes the reservation of a name that nobody has.
func removeName(key string) *mend {
	m := remove(key)
	del := m.op
	m.op = func(view catalog.View) (*catalog.Op, error) {
		if owner, _ := nameOwner(view, key); owner != "" {
			return nil, nil // it got its owner back
		}
		return del(view)
	}
	return m
}

// reserveName reserves a name for the record that has it, unless another got it.
func reserveName(key, id string) *mend {
	return &mend{key: key, op: func(view catalog.View) (*catalog.Op, error) {
		if owner, _ := nameOwner(view, key); owner != "" {
			return nil, nil
		}
		e, _ := view.Get(key) // revision 0 if there is none
		op := put(key, nameRecord{ID: id}, e.Revision)
		return &op, nil
	}}
}

// recount sets how many records name a cut.
func recount(key string, names int) *mend {
	return changeCut(key, func(cut *cutRecord) { cut.Names = names })
}

// setMapped sets how many blocks are mapped below a root.
func setMapped(key string, root dedup.Slot, blocks int64) *mend {
	if strings.HasPrefix(key, keyCut) {
		return changeCut(key, func(cut *cutRecord) { cut.Mapped = blocks })
	}
	return &mend{key: key, op: func(view catalog.View) (*catalog.Op, error) {
		var rec volumeRecord
		e, err := get(view, key, &rec)
		if err != nil || rec.Root.slot() != root {
			return nil, err
		}
		rec.Mapped = blocks
		op := put(key, rec, e.Revision)
		return &op, nil
	}}
}

func changeCut(key string, change func(*cutRecord)) *mend {
	return &mend{key: key, op: func(view catalog.View) (*catalog.Op, error) {
		var cut cutRecord
		e, err := get(view, key, &cut)
		if err != nil {
			return nil, ignoreNotFound(err)
		}
		change(&cut)
		op := put(key, cut, e.Revision)
		return &op, nil
	}}
}

// apply commits mends, as many at once as do not touch the same record, and returns those
// that had something to change.
func (s *Store) apply(mends []mend) (did []mend, err error) {
	for len(mends) > 0 {
		n := 0
		var batch []mend
		_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
			var ops []catalog.Op
			batch = nil
			touched := make(map[string]bool)
			for n = 0; n < min(len(mends), damageBatch) && !touched[mends[n].key]; n++ {
				touched[mends[n].key] = true
				op, err := mends[n].op(view)
				if err != nil {
					return nil, err
				}
				if op != nil {
					ops = append(ops, *op)
					batch = append(batch, mends[n])
				}
			}
			return ops, nil
		})
		if err != nil {
			return did, err
		}
		did = append(did, batch...)
		mends = mends[n:]
	}
	return did, nil
}
