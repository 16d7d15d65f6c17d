package blockstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/wal"
)

// recoverVolumes reads the journals of all volumes back.
func (s *Store) recoverVolumes(owned []journal.Recovered, bad []journal.Bad) error {
	byVolume := make(map[string][]journal.Recovered)
	for _, o := range owned {
		id := "v-" + hex.EncodeToString(o.Header.Owner[:])
		byVolume[id] = append(byVolume[id], o)
	}
	cuts, err := pendingCuts(s.cat.View())
	if err != nil {
		return err
	}
	// First, so that no segment of a journal with a gap is taken for a tail and used again.
	lost, err := s.inspect(bad)
	if err != nil {
		return err
	}
	ids := make([]string, 0, len(byVolume))
	for id := range byVolume {
		ids = append(ids, id)
	}
	sort.Strings(ids) // one order for one state
	for _, id := range ids {
		var rec volumeRecord
		if _, err := get(s.cat, keyVolume+id, &rec); errors.Is(err, ErrNotFound) {
			for _, r := range byVolume[id] { // deleted: its journal is nobody's
				r.Segment.Release()
			}
			continue
		} else if err != nil {
			return err
		}
		v := s.newVolume(id, rec)
		err := lost[id]
		if err != nil {
			v.mu.log.Keep(byVolume[id])
		} else {
			err = v.recover(byVolume[id], cuts[id], rec.reach(cuts[id]))
		}
		if err != nil {
			v.lost(err)
		}
		delete(cuts, id)
		delete(lost, id)
		if v.busy() {
			s.mu.volumes[id] = v
		} else {
			v.mu.log.Drop()
		}
	}
	for _, id := range slices.Sorted(maps.Keys(lost)) {
		s.loseJournal(id, lost[id])
		delete(cuts, id)
	}
	for _, id := range slices.Sorted(maps.Keys(cuts)) {
		s.loseJournal(id, fmt.Errorf("%s: the segments (.seg) that hold snapshot cut %s are missing: %w", path.Join(s.dir, dirJournal), cuts[id][0].id, ErrCorrupt))
	}
	return s.missingJournals(byVolume)
}

// inspect looks at segments whose header is bad. If the rest cannot be read either,
// nobody knows whose acknowledged writes it holds, and the store is not served. One that
// shows records which its volume has not folded, and which were durable or whose header the
// disk answered an error for, was damaged: inspect tells why the volume must fail closed,
// and the segment is kept. Any other was torn while it was being reused, and is free.
func (s *Store) inspect(bad []journal.Bad) (map[string]error, error) {
	lost := make(map[string]error)
	for _, b := range bad {
		s.log.Warn("journal segment with a bad header", "err", b.Err)
		if b.Segment == nil {
			continue
		}
		if b.Cut != nil {
			if err := s.inspectCut(b, lost); err != nil {
				return nil, err
			}
			continue
		}
		traces, err := journal.Inspect(b.Segment)
		if err != nil {
			return nil, fmt.Errorf("%w; it may hold acknowledged writes of any volume: mend the disk, or move the file away to do without them: %w", b.Err, err)
		}
		needed := false
		for _, t := range traces {
			id := "v-" + hex.EncodeToString(t.Owner[:])
			var rec volumeRecord
			if _, err := get(s.cat, keyVolume+id, &rec); errors.Is(err, ErrNotFound) {
				continue
			} else if err != nil {
				return nil, err
			}
			if seq, ok := t.Lost(rec.Position.Seq, b.Unread); ok {
				needed = true
				lost[id] = fmt.Errorf("%w: %w, and it holds record %d", ErrCorrupt, b.Err, seq)
			}
		}
		if needed {
			s.pool.Pin(b.Segment)
		} else {
			b.Segment.Release()
		}
	}
	return lost, nil
}

// inspectCut is inspect for a segment that has lost its end: its volume fails closed,
// unless its log is over.
func (s *Store) inspectCut(b journal.Bad, lost map[string]error) error {
	id := "v-" + hex.EncodeToString(b.Cut.Owner[:])
	var rec volumeRecord
	_, err := get(s.cat, keyVolume+id, &rec)
	over := errors.Is(err, ErrNotFound)
	if err != nil && !over {
		return err
	}
	p := rec.Position
	if over || b.Cut.Epoch < p.Epoch || b.Cut.Epoch == p.Epoch && b.Cut.Log < p.Log {
		b.Segment.Release()
		return nil
	}
	lost[id] = b.Err
	s.pool.Pin(b.Segment)
	return nil
}

// loseJournal makes a volume fail closed whose journal has lost what was durable.
func (s *Store) loseJournal(id string, err error) {
	v := s.mu.volumes[id]
	if v == nil {
		var rec volumeRecord
		if _, err := get(s.cat, keyVolume+id, &rec); err != nil {
			s.log.Error("volume without a record", "volume_id", id, "err", err)
			return
		}
		v = s.newVolume(id, rec)
		s.mu.volumes[id] = v
	}
	v.lost(err)
}

// lost makes the volume fail closed for good: what its journal held cannot be read back.
// Only frozen layers are whole: they end at cuts, and are folded for these. Called while
// the store opens.
func (v *Volume) lost(err error) {
	v.store.log.Error("journal cannot be read back", "volume_id", v.id, "err", err)
	v.mu.failed, v.mu.unfoldable = err, true
	last := len(v.mu.layers) - 1
	v.store.reserve.pay(v.mu.layers[last].debt)
	v.mu.layers[last] = layerFrom(v.mu.pos)
	if last > 0 {
		v.mu.layers[last] = layerFrom(v.mu.layers[last-1].end())
	}
	v.mu.log.Pin()
}

// removeDeleted drops the records of deleted volumes that owe nothing any more: a crash
// can leave one between the fold of its last cut and the next commit.
func (s *Store) removeDeleted() error {
	for _, e := range scanFor(s.cat.View(), keyVolume, `"deleted":true`) {
		var rec volumeRecord
		if err := decode(e, &rec); err != nil {
			return err
		}
		if v := s.mu.volumes[strings.TrimPrefix(e.Key, keyVolume)]; v != nil {
			s.letGo(v)
			continue
		}
		if !rec.Deleted {
			continue
		}
		if _, err := s.commit(del(e.Key, e.Revision)); err != nil {
			return err
		}
	}
	return nil
}

// scanFor lists the records below a prefix whose JSON contains text, for a start to decode
// only these: the census has decoded all of them.
func scanFor(view catalog.View, prefix, text string) []catalog.Entry {
	return slices.DeleteFunc(view.Scan(prefix, "", 0), func(e catalog.Entry) bool { return !bytes.Contains(e.Value, []byte(text)) })
}

type pendingCut struct {
	id  string
	seq uint64
}

// pendingCuts lists the cuts without a root by volume, in journal order.
func pendingCuts(view catalog.View) (map[string][]pendingCut, error) {
	out := make(map[string][]pendingCut)
	for _, e := range scanFor(view, keyCut, `"pending":true`) {
		var c cutRecord
		if err := decode(e, &c); err != nil {
			return nil, err
		}
		if c.Pending {
			out[c.Volume] = append(out[c.Volume], pendingCut{strings.TrimPrefix(e.Key, keyCut), c.Position.Seq})
		}
	}
	for _, cs := range out {
		sort.Slice(cs, func(i, j int) bool { return cs[i].seq < cs[j].seq })
	}
	return out, nil
}

// recover reads the volume's journal back, which must reach sequence reach, and freezes
// layers where cuts wait for their root. Called before anybody else knows the volume.
func (v *Volume) recover(segments []journal.Recovered, cuts []pendingCut, reach uint64) error {
	from := v.mu.pos.Seq
	if len(cuts) > 0 && cuts[0].seq <= from {
		return fmt.Errorf("snapshot cut %s stands at sequence %d without a root, but the volume is folded up to %d: %w", cuts[0].id, cuts[0].seq, from, ErrCorrupt)
	}
	freeze := func(seq uint64) {
		for len(cuts) > 0 && cuts[0].seq <= seq {
			active := v.mu.layers[len(v.mu.layers)-1]
			active.cuts = append(active.cuts, cuts[0].id)
			cuts = cuts[1:]
			if len(cuts) == 0 || cuts[0].seq > active.last {
				v.freeze()
			}
		}
	}
	end, err := v.mu.log.Recover(segments, v.mu.pos.Epoch, v.mu.pos.Log, from, reach, func(e journal.Entry) error {
		if len(cuts) > 0 && cuts[0].seq < e.Record.Seq {
			freeze(e.Record.Seq - 1)
		}
		return v.replay(e)
	})
	if freeze(end.Last); err != nil {
		return err
	}
	v.mu.next = end.Last + 1
	// What was read back was in the files' page cache at least; whether it is durable
	// nobody knows, so the next sync covers it again.
	v.mu.appended, v.mu.dataSeq, v.mu.found = end.Last, end.Last, end.Last
	v.mu.synced, v.mu.marked = min(max(end.Synced, from), end.Last), min(max(end.Synced, from), end.Last)
	return nil
}

// replay puts one journal record into the active layer.
func (v *Volume) replay(e journal.Entry) error {
	rec := e.Record
	off, n := int64(rec.Offset), int64(rec.Length)
	var src *payload
	switch rec.Type {
	case wal.TypeMark, wal.TypeHole:
	case wal.TypeWrite:
		src = &payload{start: off, n: n, seg: e.Segment, off: e.Payload, crcs: e.CRCs}
	default:
		return fmt.Errorf("%s: a record of type %v in a journal: %w", e.Segment.Name(), rec.Type, ErrCorrupt)
	}
	if rec.Type != wal.TypeMark && (off < 0 || n <= 0 || off%sectorBytes != 0 || n%sectorBytes != 0 || off > v.Size() || n > v.Size()-off) {
		return fmt.Errorf("%s: record %d covers %d bytes at %d of a volume of %d: %w", e.Segment.Name(), rec.Seq, n, off, v.Size(), ErrCorrupt)
	}
	active := v.mu.layers[len(v.mu.layers)-1]
	active.last, active.epoch, active.log = rec.Seq, rec.Epoch, rec.Log
	active.bytes += rec.Size()
	if rec.Type == wal.TypeMark {
		return nil
	}
	debt := foldDebt(rec.Type, off, n)
	active.debt += debt
	v.store.reserve.debt.Add(debt) // covered once all journals are read
	v.mu.oldest, v.mu.written = v.store.o.Now(), v.store.o.Now()
	active.put(off/sectorBytes, (off+n)/sectorBytes, src)
	return nil
}
