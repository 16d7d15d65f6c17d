package blockstore

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
)

// simUntouched is what a buffer holds before a read: what is not asked for must stay, and
// what is must not.
var simUntouched = bytes.Repeat([]byte{0xee}, 64<<10)

// readRun reads n bytes at off, whole blocks, into got, whose blocks are good until the
// same place is read again.
func (w *simWorld) readRun(got map[int]*simBlock, off, n int64, read func(p []byte, off int64) error) error {
	p := w.buf[off : off+n]
	for at := 0; at < len(p); at += len(simUntouched) {
		copy(p[at:], simUntouched)
	}
	if err := read(p, off); err != nil {
		return err
	}
	for at := int64(0); at < n; at += BlockSize {
		b := (*simBlock)(p[at : at+BlockSize])
		if *b == simZeros {
			b = nil
		}
		got[int((off+at)/BlockSize)] = b
	}
	return nil
}

func (w *simWorld) readHot(got map[int]*simBlock, size int64, read func(p []byte, off int64) error) error {
	for _, r := range hot(size) {
		if err := w.readRun(got, r[0]*BlockSize, (r[1]-r[0])*BlockSize, read); err != nil {
			return err
		}
	}
	return nil
}

// readVolume reads the hot blocks of a volume, or all, whether it is attached or not.
func (w *simWorld) readVolume(id string, size int64, whole bool) (map[int]*simBlock, error) {
	if ok, err := w.resolve(id); !ok {
		return nil, errors.Join(err, errors.New("its cut gets no root"))
	}
	v := w.s.loaded(id)
	if v == nil {
		var err error
		if v, err = w.s.OpenVolume(context.Background(), id); err != nil {
			return nil, err
		}
		defer v.Close()
	}
	if v.Size() != size {
		w.fail("volume %s has %d bytes, want %d", id, v.Size(), size)
	}
	read := func(p []byte, off int64) error { _, err := v.ReadAt(p, off); return err }
	got := make(map[int]*simBlock)
	if whole {
		return got, w.readRun(got, 0, size, read)
	}
	return got, w.readHot(got, size, read)
}

// same compares blocks that were read with the model.
func (w *simWorld) same(got map[int]*simBlock, want simImage, what string) {
	for i, b := range got {
		if b.same(want[i]) {
			continue
		}
		var g, m simBlock
		if b != nil {
			g = *b
		}
		if want[i] != nil {
			m = *want[i]
		}
		for j := range g {
			if g[j] != m[j] {
				w.fail("%s: block %d differs at byte %d: %#x, want %#x", what, i, j, g[j], m[j])
			}
		}
	}
}

func (w *simWorld) checkStore() {
	var found []Problem
	o := CheckOptions{ReadData: w.rng.IntN(6) == 0}
	err := w.s.Check(context.Background(), o, func(p Problem) {
		if w.unsealed && strings.Contains(p.String(), "for want of space") {
			return // it stays open until there is space: told, and harmless
		}
		if w.planned && strings.Contains(p.String(), errInjected.Error()) {
			return // the disk answered errors for it, and now it reads again
		}
		if w.disk.stubborn && strings.Contains(p.String(), "blocks are mapped, but") {
			return // a fold could neither read what it replaced nor count again (folder.mapped)
		}
		found = append(found, p)
	})
	w.ok(err, "check")
	if len(found) > 0 {
		w.fail("check finds %d problems, the first: %v", len(found), found[0])
	}
}

// compareAll compares every volume and snapshot with the model.
func (w *simWorld) compareAll() error {
	w.ok(w.finishWrites(), "finish writes")
	w.checkStore()
	whole := w.rng.IntN(4) == 0
	for _, m := range slices.Clone(w.vols) {
		got, err := w.readVolume(m.id, m.hist.base.size(), whole)
		w.ok(err, "read volume %s", m.id)
		w.same(got, m.hist.now, "volume "+m.id)
	}
	for _, sn := range w.snaps {
		w.compareSnapshot(sn, whole)
	}
	return nil
}

func (w *simWorld) compareSnapshot(sn *simSnapshot, whole bool) {
	var rec snapshotRecord
	_, err := get(w.s.cat, keySnapshot+sn.id, &rec)
	w.ok(err, "record of snapshot %s", sn.id)
	ready, err := w.resolveCut(rec.Cut)
	w.ok(err, "snapshot %s", sn.id)
	if !ready {
		w.fail("snapshot %s gets no root", sn.id)
	}
	var cut cutRecord
	_, err = get(w.s.cat, keyCut+rec.Cut, &cut)
	w.ok(err, "cut of snapshot %s", sn.id)
	if rec.Size != sn.image.size() {
		w.fail("snapshot %s has %d bytes, want %d", sn.id, rec.Size, sn.image.size())
	}
	got := make(map[int]*simBlock)
	read := func(p []byte, off int64) error { return w.s.readImage(p, off, cut.Root.slot()) }
	if whole {
		err = w.readRun(got, 0, rec.Size, read)
	} else {
		err = w.readHot(got, rec.Size, read)
	}
	w.ok(err, "read snapshot %s", sn.id)
	w.same(got, sn.image, "snapshot "+sn.id)
}
