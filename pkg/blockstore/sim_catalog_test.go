package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// maybe keeps settle for after the next reopening: what an operation that did not answer
// well has done shows only then.
// By then the world may be a fork of this one: settle must use the one that it is given.
func (w *simWorld) maybe(settle func(w *simWorld)) { w.unsure = append(w.unsure, settle) }

// volume finds a volume by its ID; nil if there is none.
func (w *simWorld) volume(id string) *simVolume {
	for _, m := range w.vols {
		if m.id == id {
			return m
		}
	}
	return nil
}

// refused tells whether an operation was refused for lack of space, which a full disk may.
func (w *simWorld) refused(err error) bool {
	return (w.full || w.s.isFull()) && errors.Is(err, ErrNoSpace) && !isInjected(err)
}

func (w *simWorld) name() string {
	w.names++
	return fmt.Sprintf("n%d", w.names)
}

func (w *simWorld) loadedIDs() []string {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	ids := make([]string, 0, len(w.s.mu.volumes))
	for id := range w.s.mu.volumes {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ids
}

// source prepares a volume for being snapshotted or cloned; false if it cannot be now.
func (w *simWorld) source() (*simVolume, bool, error) {
	if err := w.finishWrites(); err != nil {
		return nil, false, err
	}
	m := w.vols[w.rng.IntN(len(w.vols))]
	if m.failed {
		return nil, false, nil
	}
	if v := w.s.loaded(m.id); v != nil && len(v.mu.layers) >= w.o.MaxLayers {
		if err := w.foldVolume(m.id); err != nil {
			return nil, false, err
		}
	}
	ok, err := w.resolve(m.id)
	return m, ok, err
}

// snapshot takes a snapshot. Its cut makes everything before it durable.
func (w *simWorld) snapshot() error {
	if len(w.vols) == 0 || len(w.snaps) > 8 {
		return nil
	}
	m, ok, err := w.source()
	if !ok {
		return err
	}
	name, img, n := w.name(), m.hist.now.clone(), len(m.hist.writes)
	info, err := w.s.CreateSnapshot(context.Background(), m.id, name, nil)
	if w.refused(err) {
		return nil
	}
	if err != nil {
		w.maybe(func(w *simWorld) {
			var rec nameRecord
			if _, err := get(w.s.cat, keySnapshotName+name, &rec); err == nil {
				w.snaps = append(w.snaps, &simSnapshot{rec.ID, img})
				w.volume(m.id).settle(n)
			}
		})
		return m.note(err)
	}
	w.trace("snapshot %s of %s ready %v", info.ID[:6], m.id[:6], info.Ready)
	w.snaps = append(w.snaps, &simSnapshot{info.ID, img})
	m.settle(n)
	return nil
}

// createVolume makes an empty volume, a clone of a volume or of a snapshot, also a larger
// one.
func (w *simWorld) createVolume() error {
	if len(w.vols) > 6 {
		return nil
	}
	spec := VolumeSpec{Name: w.name()}
	var img simImage
	var from *simVolume
	n := 0
	switch r := w.rng.IntN(3); {
	case r == 0 && len(w.snaps) > 0:
		sn := w.snaps[w.rng.IntN(len(w.snaps))]
		spec.FromSnapshot, img = sn.id, sn.image.clone()
	case r == 1 && len(w.vols) > 0:
		m, ok, err := w.source()
		if !ok {
			return err
		}
		spec.FromVolume, img, from, n = m.id, m.hist.now.clone(), m, len(m.hist.writes)
	default:
		spec.SizeBytes, img = 1, newSimImage(SizeStep)
		spec.Compression = pick(w.rng, "zstd", "s2", "none")
		spec.SectorBytes = pick(w.rng, 512, 4096)
	}
	if w.rng.IntN(4) == 0 && img.size() < 3*SizeStep {
		spec.SizeBytes = img.size() + SizeStep
		img = img.grown(spec.SizeBytes)
	}
	settle := func(w *simWorld, id string) *simVolume {
		m := &simVolume{id: id, hist: newSimHistory(img.clone())}
		w.vols = append(w.vols, m)
		if from != nil {
			w.volume(from.id).settle(n)
		}
		return m
	}
	info, err := w.s.CreateVolume(spec)
	if w.refused(err) {
		return nil
	}
	if err != nil {
		w.maybe(func(w *simWorld) {
			var rec nameRecord
			if _, err := get(w.s.cat, keyVolumeName+spec.Name, &rec); err == nil {
				settle(w, rec.ID)
			}
		})
		if from != nil {
			from.note(err)
		}
		return err
	}
	w.trace("create %s from %q %q", info.ID[:6], spec.FromSnapshot, spec.FromVolume)
	m := settle(w, info.ID)
	if w.rng.IntN(3) == 0 {
		return nil
	}
	if ok, err := w.resolve(m.id); !ok {
		return err
	}
	m.v, err = w.s.OpenVolume(context.Background(), m.id)
	return err
}

// deleteSomething deletes a snapshot, or a volume that is not attached. A full disk is no
// reason to refuse that (I9).
func (w *simWorld) deleteSomething() error {
	if w.rng.IntN(2) == 0 && len(w.snaps) > 0 {
		return w.deleteSnapshot(w.snaps[w.rng.IntN(len(w.snaps))])
	}
	for _, m := range w.vols {
		if m.v == nil {
			return w.deleteVolume(m)
		}
	}
	return nil
}

func (w *simWorld) deleteSnapshot(sn *simSnapshot) error {
	w.trace("delete snapshot %s", sn.id[:6])
	gone := func(w *simWorld) {
		w.snaps = slices.DeleteFunc(w.snaps, func(o *simSnapshot) bool { return o.id == sn.id })
	}
	if err := w.s.DeleteSnapshot(sn.id); err != nil {
		w.maybe(func(w *simWorld) {
			var rec snapshotRecord
			if _, err := get(w.s.cat, keySnapshot+sn.id, &rec); errors.Is(err, ErrNotFound) {
				gone(w)
			}
		})
		return err
	}
	gone(w)
	return nil
}

func (w *simWorld) deleteVolume(m *simVolume) error {
	w.trace("delete volume %s", m.id[:6])
	gone := func(w *simWorld) {
		w.vols = slices.DeleteFunc(w.vols, func(o *simVolume) bool { return o.id == m.id })
	}
	if err := w.s.DeleteVolume(m.id); err != nil {
		w.maybe(func(w *simWorld) {
			var rec volumeRecord
			if _, err := get(w.s.cat, keyVolume+m.id, &rec); errors.Is(err, ErrNotFound) || rec.Deleted {
				gone(w)
			}
		})
		return err
	}
	gone(w)
	return nil
}

func (w *simWorld) resize() error {
	if len(w.vols) == 0 {
		return nil
	}
	m := w.vols[w.rng.IntN(len(w.vols))]
	old := m.hist.base.size()
	if old > 3*SizeStep {
		return nil
	}
	info, err := w.s.ResizeVolume(m.id, old+1)
	if w.refused(err) {
		return nil
	}
	if err != nil {
		w.maybe(func(w *simWorld) {
			var rec volumeRecord
			_, err := get(w.s.cat, keyVolume+m.id, &rec)
			w.ok(err, "record")
			if rec.Size != old && rec.Size != old+SizeStep {
				w.fail("volume %s has %d bytes after a resize from %d that was cut short", m.id, rec.Size, old)
			}
			w.volume(m.id).hist.grow(rec.Size)
		})
		return err
	}
	w.trace("resize %s to %d", m.id[:6], info.SizeBytes)
	m.hist.grow(info.SizeBytes)
	return nil
}
