package blockstore

import (
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/catalog"
)

// VolumePage describes the volumes whose IDs come after one ("" for the first), in the
// order of IDs; at most limit of them if limit is above 0. It takes time for what it
// returns, not for what there is.
func (s *Store) VolumePage(after string, limit int) []VolumeInfo {
	view := s.cat.View()
	return page(limit, func(n int) (out []VolumeInfo, more bool) {
		entries := view.Scan(keyVolume, startAfter(keyVolume, after), n)
		for _, e := range entries {
			after = strings.TrimPrefix(e.Key, keyVolume)
			if info, ok := s.listed(view, after, e); ok {
				out = append(out, info)
			}
		}
		return out, n > 0 && len(entries) == n
	})
}

// listed describes a volume of a list; false if it is deleted or cannot be read.
func (s *Store) listed(view catalog.View, id string, e catalog.Entry) (VolumeInfo, bool) {
	var rec volumeRecord
	if err := decode(e, &rec); err != nil {
		s.log.Error("unreadable record", "err", err)
		return VolumeInfo{}, false
	}
	if rec.Deleted {
		return VolumeInfo{}, false
	}
	info := s.describe(id, rec)
	if e, ok := view.Get(keyPublish + id); ok {
		if p, ok := s.publication(e); ok {
			info.Publication = &p
		}
	}
	return info, true
}

// SnapshotPage describes the snapshots of a volume, or all for "", whose IDs come after
// one ("" for the first), in the order of IDs; at most limit of them if limit is above
// 0. It takes time for what it returns, not for what there is.
func (s *Store) SnapshotPage(volumeID, after string, limit int) []SnapshotInfo {
	if volumeID != "" {
		return page(limit, func(n int) ([]SnapshotInfo, bool) {
			ids := s.census.snapshotsOf(volumeID, after, n)
			view := s.cat.View() // behind the census: what that has forgotten may be gone
			out := make([]SnapshotInfo, 0, len(ids))
			for _, id := range ids {
				after = id
				if e, ok := view.Get(keySnapshot + id); ok {
					out = s.appendSnapshot(out, view, e)
				}
			}
			return out, n > 0 && len(ids) == n
		})
	}
	view := s.cat.View()
	return page(limit, func(n int) ([]SnapshotInfo, bool) {
		entries := view.Scan(keySnapshot, startAfter(keySnapshot, after), n)
		out := make([]SnapshotInfo, 0, len(entries))
		for _, e := range entries {
			after = strings.TrimPrefix(e.Key, keySnapshot)
			out = s.appendSnapshot(out, view, e)
		}
		return out, n > 0 && len(entries) == n
	})
}

// appendSnapshot describes a snapshot of a list, unless it cannot be read.
func (s *Store) appendSnapshot(out []SnapshotInfo, view catalog.View, e catalog.Entry) []SnapshotInfo {
	var rec snapshotRecord
	if err := decode(e, &rec); err != nil {
		s.log.Error("unreadable record", "err", err)
		return out
	}
	return append(out, describeSnapshot(view, strings.TrimPrefix(e.Key, keySnapshot), rec))
}

// startAfter is the key that a scan goes on behind; "" for its begin.
func startAfter(prefix, id string) string {
	if id == "" {
		return ""
	}
	return prefix + id
}

// page asks next for what is missing until limit is reached or there is no more.
func page[T any](limit int, next func(n int) (some []T, more bool)) []T {
	var out []T
	for {
		n := 0
		if limit > 0 {
			n = limit - len(out)
		}
		some, more := next(n)
		out = append(out, some...)
		if !more || len(out) == limit {
			return out
		}
	}
}

// Volumes describes all volumes, by name.
func (s *Store) Volumes() []VolumeInfo {
	out := s.VolumePage("", 0)
	slices.SortFunc(out, func(a, b VolumeInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Snapshots describes the snapshots of a volume, or all for "", by name.
func (s *Store) Snapshots(volumeID string) []SnapshotInfo {
	out := s.SnapshotPage(volumeID, "", 0)
	slices.SortFunc(out, func(a, b SnapshotInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}
