package blockstore

// abandon stops using a store as a dying process does: nothing is synced or sealed.
func (s *Store) abandon() {
	if s.pool != nil {
		s.pool.Close()
	}
}
