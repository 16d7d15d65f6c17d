package blockstore

// Stats describes the store; perVolume lists every volume too. Without it, it takes time
// for the volumes that are open or have a journal, whatever else there is.
func (s *Store) Stats(perVolume bool) Stats {
	chunks := s.chunks.Stats()
	cat := s.cat.Stats()
	pool := s.pool.Stats()
	st := Stats{
		Unique: chunks.Slots * BlockSize, Stored: chunks.Stored + cat.LogUsed,
		JournalAllocated: pool.Bytes, Reserve: s.reserve.bytes() + cat.DiskBytes - cat.LogUsed,
		CacheBytes: chunks.CacheBytes, CacheLimit: s.o.CacheBytes,
		CacheHits: chunks.CacheHits, CacheMisses: chunks.CacheMisses,
		Damaged: chunks.Damaged, ChunkFiles: chunks.Files, Chunks: chunks.Chunks,
		Full: s.isFull(),
	}
	_, st.Garbage = s.coll.known()
	space, err := s.fsys.Space(s.dir)
	st.DiskFree, st.DiskUnknown = space.Free, space.Total == 0
	if err != nil {
		st.DiskFree, st.DiskUnknown, st.DiskError = 0, true, err.Error()
	}
	figures := s.census.figures()
	st.Volumes, st.Snapshots = figures.volumes, figures.snapshots
	st.LogicalVolumes = figures.logicalVolumes
	st.Logical = figures.logicalVolumes + figures.logicalSnaps
	st.JournalUsed = s.journalUsed()
	st.Waiting = s.waiting()
	if perVolume {
		st.PerVolume = s.Volumes()
	}
	if st.Stored > 0 {
		st.Reduction = float64(st.Logical) / float64(st.Stored)
	}
	return st
}

// journalUsed is how many bytes of journal are not folded.
func (s *Store) journalUsed() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.mu.volumes {
		v.mu.RLock()
		n += v.unfolded()
		v.mu.RUnlock()
	}
	return n
}
