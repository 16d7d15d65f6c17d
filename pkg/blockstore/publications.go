package blockstore

import (
	"fmt"
	"strings"

	"github.com/k8ns/granary/pkg/catalog"
)

// PutPublication records what a CO was told about a volume, in place of what it was told
// before; durable on return. A zero Created is now. ErrNotFound if there is no such volume,
// or it was deleted: that is decided in the commit itself, so a record never outlives its
// volume, whatever is deleted at the same time.
func (s *Store) PutPublication(volumeID string, p Publication) error {
	if err := checkID('v', volumeID); err != nil {
		return err
	}
	if p.Created.IsZero() {
		p.Created = s.o.Now().UTC()
	}
	_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
		var rec volumeRecord
		if _, err := get(view, keyVolume+volumeID, &rec); err != nil {
			return nil, err
		}
		if rec.Deleted {
			return nil, fmt.Errorf("volume %s: %w", volumeID, ErrNotFound)
		}
		return []catalog.Op{put(keyPublish+volumeID, p, catalog.ExpectAny)}, nil
	})
	if err != nil {
		return fmt.Errorf("record a publication: %w", err)
	}
	return nil
}

// RemovePublication forgets what a CO was told about a volume, durably; nil if there is
// nothing to forget, or no such volume.
func (s *Store) RemovePublication(volumeID string) error {
	_, err := s.update(func(view catalog.View) ([]catalog.Op, error) {
		if _, ok := view.Get(keyPublish + volumeID); !ok {
			return nil, nil
		}
		return []catalog.Op{del(keyPublish+volumeID, catalog.ExpectAny)}, nil
	})
	if err != nil {
		return fmt.Errorf("remove a publication: %w", err)
	}
	return nil
}

// Publications returns every publication by volume ID. It looks at no volume.
func (s *Store) Publications() map[string]Publication { return s.publications(s.cat.View()) }

func (s *Store) publications(view catalog.View) map[string]Publication {
	out := make(map[string]Publication)
	for e := range view.All(keyPublish) {
		if p, ok := s.publication(e); ok {
			out[strings.TrimPrefix(e.Key, keyPublish)] = p
		}
	}
	return out
}

// publication reads a record; one that cannot be read is logged, and counts as none.
func (s *Store) publication(e catalog.Entry) (p Publication, ok bool) {
	if err := decode(e, &p); err != nil {
		s.log.Error("unreadable record", "err", err)
		return p, false
	}
	return p, true
}
