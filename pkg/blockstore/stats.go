package blockstore

import (
	"github.com/k8ns/granary/pkg/dedup"
)

// Stats describes the store; perVolume lists every volume too.
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
	if space, err := s.fsys.Space(s.dir); err == nil {
		st.DiskFree = space.Free
	}
	images := make(map[dedup.Slot]bool)
	vols := s.Volumes()
	for _, v := range vols {
		st.LogicalVolumes += v.MappedBytes
		st.JournalUsed += v.JournalBytes
		if v.WaitingSince != nil {
			st.Waiting++
		}
	}
	st.Volumes = len(vols)
	st.Logical = st.LogicalVolumes
	if perVolume {
		st.PerVolume = vols
	}
	view := s.cat.View()
	for _, e := range view.Scan(keyVolume, "", 0) {
		var rec volumeRecord
		if decode(e, &rec) == nil && !rec.Deleted {
			images[rec.Root.slot()] = true
		}
	}
	for _, e := range view.Scan(keySnapshot, "", 0) {
		st.Snapshots++
		var snap snapshotRecord
		var cut cutRecord
		if decode(e, &snap) != nil {
			continue
		}
		if _, err := get(view, keyCut+snap.Cut, &cut); err != nil || images[cut.Root.slot()] {
			continue
		}
		images[cut.Root.slot()] = true
		st.Logical += cut.Mapped * BlockSize
	}
	if st.Stored > 0 {
		st.Reduction = float64(st.Logical) / float64(st.Stored)
	}
	return st
}
