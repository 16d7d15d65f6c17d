package blockstore

import (
	"github.com/k8ns/granary/pkg/catalog"
)

// PutAttachment records host state of an open volume durably, so that a start after a
// death can clear it.
func (s *Store) PutAttachment(a Attachment) error {
	if err := checkID('v', a.Volume); err != nil {
		return err
	}
	_, err := s.commit(put(keyAttach+a.Volume, a, catalog.ExpectAny))
	return err
}

// RemoveAttachment forgets it; no error if there is none.
func (s *Store) RemoveAttachment(volumeID string) error {
	if _, ok := s.cat.Get(keyAttach + volumeID); !ok {
		return nil
	}
	_, err := s.commit(del(keyAttach+volumeID, catalog.ExpectAny))
	return err
}

// Attachment is what is recorded of one volume; false if there is nothing that can be read.
func (s *Store) Attachment(volumeID string) (Attachment, bool) {
	var a Attachment
	_, err := get(s.cat, keyAttach+volumeID, &a)
	return a, err == nil
}

// Attachments lists what is recorded, by volume ID.
func (s *Store) Attachments() []Attachment {
	var out []Attachment
	for _, e := range s.scan(keyAttach) {
		var a Attachment
		if err := decode(e, &a); err != nil {
			s.log.Error("unreadable record", "err", err)
			continue
		}
		out = append(out, a)
	}
	return out
}
