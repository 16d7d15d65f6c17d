package dedup

// Has tells whether slots [first, first+n) of a chunk are all in some chunk file, good
// or bad. It reads no disk.
func (s *Store) Has(id ChunkID, first uint16, n int) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ch := s.index[id]
	if ch == nil || int(first)+n > int(ch.slots) {
		return false
	}
	for slot := int(first); slot < int(first)+n; slot++ {
		found := false
		for _, c := range ch.copies {
			if c.have == nil || c.has(slot) {
				found = true
				break
			}
		}
		if !found {
			return false
		}
		if ch.copies[0].have == nil {
			return true // one whole copy has them all
		}
	}
	return true
}
