package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/test/rig"
)

// point is a place in the log at which power fails.
type point struct {
	entries int  // so many were issued
	lossy   bool // of those since the last flush only some are kept, and one may be torn
}

func (p point) String() string {
	if p.lossy {
		return fmt.Sprintf("entry %d with losses", p.entries)
	}
	return fmt.Sprintf("entry %d", p.entries)
}

// points picks n points behind the beginning: every flush first, as far as that goes, the
// rest at random places, two of three of them with losses.
func (rec *recording) points(n int, r *rand.Rand) []point {
	var flushes, all []point
	for i := rec.begin; i < len(rec.entries); i++ {
		if rec.entries[i].flush() {
			flushes = append(flushes, point{entries: i + 1})
		}
	}
	r.Shuffle(len(flushes), func(i, j int) { flushes[i], flushes[j] = flushes[j], flushes[i] })
	all = flushes[:min(len(flushes), (n+1)/2)]
	for len(all) < n {
		all = append(all, point{rec.begin + r.IntN(len(rec.entries)-rec.begin+1), r.IntN(3) > 0})
	}
	slices.SortStableFunc(all, func(a, b point) int { return a.entries - b.entries })
	return all
}

// replayer brings a disk to one point after the other.
type replayer struct {
	rec     *recording
	disk    *disk
	settled int // entries that are on the disk for good
	rand    *rand.Rand
}

// replay makes the disk what it may be after power failed at a point.
func (rp *replayer) replay(p point) {
	rp.disk.forget()
	safe := rp.settled
	for i := rp.settled; i < p.entries; i++ {
		if rp.rec.entries[i].flush() {
			safe = i + 1
		}
	}
	for ; rp.settled < safe; rp.settled++ {
		rp.disk.settle(rp.rec.entries[rp.settled])
	}
	keep := rp.rand.IntN(101) // percent
	for _, e := range rp.rec.entries[safe:p.entries] {
		switch {
		case !p.lossy || e.stays() || rp.rand.IntN(100) < keep:
			rp.disk.put(e, 0, e.n)
		case rp.rand.IntN(4) == 0: // torn between two sectors
			from := rp.rand.Int64N(e.n/logSector+1) * logSector
			rp.disk.put(e, from, from+rp.rand.Int64N((e.n-from)/logSector+1)*logSector)
		}
	}
}

// examine mounts the disk as it is now, opens the store and looks whether everything is
// there that must be at this point.
func (rec *recording) examine(ctx context.Context, d *disk, p point, dir string, c *rig.Cleanup) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	a, err := export.Attach(ctx, export.NewHost(), d, export.Options{Name: "granary-powercut-" + filepath.Base(dir)})
	if err != nil {
		return err
	}
	forget := c.Add("detach "+a.Path(), a.Abort)
	defer func() {
		if detached := a.Detach(context.WithoutCancel(ctx)); detached != nil {
			err = errors.Join(err, detached)
			return // the cleanup tries again
		}
		forget()
	}()
	mnt := filepath.Join(dir, "point")
	if err := rig.Mount(ctx, c, rec.fsType, a.Path(), mnt); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount(context.WithoutCancel(ctx), mnt)) }()
	s, stop, err := openStore(filepath.Join(mnt, "store"))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	err = rec.judge(ctx, s, p)
	return errors.Join(err, stop())
}

func (rec *recording) judge(ctx context.Context, s *blockstore.Store, p point) error {
	var errs []error
	for i, w := range rec.load.writers {
		if err := rec.judgeVolume(ctx, s, p, i); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", w.name, err))
		}
	}
	for _, im := range rec.load.mu.images {
		if err := judgeImage(ctx, s, p, im); err != nil {
			errs = append(errs, fmt.Errorf("%s (acknowledged at %d, deleted after %d): %w", im.name, im.from, im.to, err))
		}
	}
	err := s.Check(ctx, blockstore.CheckOptions{ReadData: true}, func(found blockstore.Problem) {
		errs = append(errs, fmt.Errorf("check: %v", found))
	})
	return errors.Join(append(errs, err)...)
}

// bounds are the operations of a writer that must be there at a point, and those that may;
// made tells whether the volume must.
func (rec *recording) bounds(p point, i int) (made bool, acked, issued int) {
	_, issued = rec.load.writers[i].ledger.Bounds()
	for _, m := range rec.load.mu.marks {
		if m.entries <= p.entries {
			made = made || m.made[i]
			acked = max(acked, m.acked[i])
		} else {
			issued = min(issued, m.issued[i])
		}
	}
	return made, acked, issued
}

func (rec *recording) judgeVolume(ctx context.Context, s *blockstore.Store, p point, i int) error {
	w := rec.load.writers[i]
	made, acked, issued := rec.bounds(p, i)
	info, err := s.Volume(w.name)
	if errors.Is(err, blockstore.ErrNotFound) && !made {
		return nil
	}
	if err != nil {
		return err
	}
	span, err := w.ledger.Span(acked, issued)
	if err != nil {
		return err
	}
	v, err := s.OpenVolume(ctx, info.ID)
	if err != nil {
		return err
	}
	if _, err = span.Prefix(v, 0, false); err != nil {
		err = fmt.Errorf("operations %d to %d: %w", acked, issued, err)
	}
	return errors.Join(err, goesOn(v), v.Close())
}

// goesOn tries that a volume can be written to and read.
func goesOn(v *blockstore.Volume) error {
	p, got := make([]byte, blockstore.BlockSize), make([]byte, blockstore.BlockSize)
	rig.Op{Count: len(p) / rig.Sector, Sample: 1}.Fill(p)
	if _, err := v.WriteAt(p, 0); err != nil {
		return err
	}
	if err := v.Flush(); err != nil {
		return err
	}
	if _, err := v.ReadAt(got, 0); err != nil {
		return err
	}
	if !slices.Equal(p, got) {
		return errors.New("a write after the cut reads back otherwise")
	}
	return nil
}

// judgeImage reads a snapshot, by way of a clone, or a clone. What is there must be exact
// even if it need not be there.
func judgeImage(ctx context.Context, s *blockstore.Store, p point, im *image) error {
	id, err := findImage(s, im)
	if errors.Is(err, blockstore.ErrNotFound) && (p.entries < im.from || im.to >= 0 && p.entries >= im.to) {
		return nil
	}
	if err != nil {
		return err
	}
	if im.isSnapshot {
		info, err := s.CreateVolume(blockstore.VolumeSpec{Name: "read-" + im.name, FromSnapshot: id})
		if err != nil {
			return err
		}
		id = info.ID
	}
	v, err := s.OpenVolume(ctx, id)
	if err != nil {
		return err
	}
	_, err = im.span.Prefix(v, 0, false)
	return errors.Join(err, v.Close())
}

func findImage(s *blockstore.Store, im *image) (string, error) {
	if im.isSnapshot {
		info, err := s.Snapshot(im.name)
		return info.ID, err
	}
	info, err := s.Volume(im.name)
	return info.ID, err
}
