package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// maskBlocks are the blocks of a volume that the model of sector masks plays with.
const maskBlocks = 24

// maskBlock is a block as it must read.
type maskBlock struct {
	data [BlockSize]byte
	lost [sectorsPerBlock]bool
	// whole: it is a reference to content that was written as it is, so that content heals
	// it. Else it was merged with sectors that are lost, and only writing it does.
	whole bool
}

type maskImage [maskBlocks]maskBlock

// maskWorld is a store whose blocks are damaged and written over in part, and its model.
type maskWorld struct {
	t      *testing.T
	rng    *rand.Rand
	fsys   *vfs.Mem
	s      *Store
	open   []*Volume
	images []*maskImage // of the volumes, then of the snapshots
	snaps  []string
	fresh  uint64
	lostAt map[string]bool // contents that are damaged on disk
}

func maskOptions() Options {
	o := sickOptions()
	o.Workers = 1
	return o
}

func (w *maskWorld) content() (p [BlockSize]byte) {
	w.fresh++
	copy(p[:], noise(1e6+w.fresh, BlockSize))
	return p
}

// write writes some sectors of a block, the whole of it if all.
func (w *maskWorld) write(v int, b int, all bool) {
	m, p := &w.images[v][b], w.content()
	from, to := 0, sectorsPerBlock
	if !all {
		from = w.rng.IntN(sectorsPerBlock)
		to = from + 1 + w.rng.IntN(sectorsPerBlock-from)
	}
	off := int64(b)*BlockSize + int64(from)*sectorBytes
	if w.rng.IntN(6) == 0 {
		clear(p[:])
		ok(w.t, w.open[v].Discard(off, int64(to-from)*sectorBytes))
	} else {
		writeAt(w.t, w.open[v], p[from*sectorBytes:to*sectorBytes], off)
	}
	copy(m.data[from*sectorBytes:to*sectorBytes], p[from*sectorBytes:to*sectorBytes])
	clear(m.lost[from:to])
	m.whole = m.lost == [sectorsPerBlock]bool{}
}

// writeAgain writes the content of a lost block somewhere, as a whole: it heals whatever
// refers to that content.
func (w *maskWorld) writeAgain() {
	for _, im := range w.images {
		for b := range im {
			if m := &im[b]; m.whole && m.lost[0] {
				w.heal(m.data)
				return
			}
		}
	}
}

func (w *maskWorld) heal(data [BlockSize]byte) {
	v, to := w.rng.IntN(len(w.open)), w.rng.IntN(maskBlocks)
	writeAt(w.t, w.open[v], data[:], int64(to)*BlockSize)
	w.images[v][to] = maskBlock{data: data, whole: true}
	foldAll(w.t, w.s)
	for _, im := range w.images {
		for b := range im {
			if m := &im[b]; m.whole && m.data == data {
				m.lost = [sectorsPerBlock]bool{}
			}
		}
	}
	delete(w.lostAt, string(data[:]))
}

// damage flips a bit in the stored group of a folded block that is whole. Which others
// share the group is not known: those that cannot be read then are lost.
func (w *maskWorld) damage() {
	foldAll(w.t, w.s)
	v, b := w.rng.IntN(len(w.open)), w.rng.IntN(maskBlocks)
	m := &w.images[v][b]
	if !m.whole || m.lost[0] || m.data == [BlockSize]byte{} || w.lostAt[string(m.data[:])] {
		return
	}
	if !w.flipIn(m.data[:]) {
		return
	}
	w.lostAt[string(m.data[:])] = true
	w.each(func(im *maskImage, b int, read func(p []byte, off int64) error) {
		m := &im[b]
		p := make([]byte, sectorBytes)
		for i := range m.lost {
			if !m.lost[i] && read(p, int64(b)*BlockSize+int64(i)*sectorBytes) != nil {
				m.lost[i] = true
			}
		}
	})
	if !m.lost[0] {
		w.t.Fatal("the damage is not noticed")
	}
}

// flipIn flips a bit of a content wherever it is stored as it is, and tells whether it is.
func (w *maskWorld) flipIn(content []byte) (found bool) {
	for _, suffix := range []string{".chunks", ".open"} {
		for _, name := range filesBelow(w.t, w.fsys, dirChunks, suffix) {
			data := must(vfs.ReadFile(w.fsys, name))(w.t)
			for at := 0; ; at++ {
				i := bytes.Index(data[at:], content)
				if i < 0 {
					break
				}
				at += i
				found = true
				flip(w.fsys, name, int64(at)+77)
			}
		}
	}
	return found
}

// each calls fn with every block of every image.
func (w *maskWorld) each(fn func(im *maskImage, b int, read func(p []byte, off int64) error)) {
	for i, im := range w.images {
		read := func(p []byte, off int64) error {
			if i < len(w.open) {
				_, err := w.open[i].ReadAt(p, off)
				return err
			}
			return w.s.ReadSnapshot(w.snaps[i-len(w.open)], p, off)
		}
		for b := range im {
			fn(im, b, read)
		}
	}
}

// compare reads every sector: those that the model has read so, the others are errors.
func (w *maskWorld) compare(when string) {
	p := make([]byte, BlockSize)
	w.each(func(im *maskImage, b int, read func(p []byte, off int64) error) {
		m := &im[b]
		if m.lost == [sectorsPerBlock]bool{} {
			if err := read(p, int64(b)*BlockSize); err != nil || !bytes.Equal(p, m.data[:]) {
				w.t.Fatalf("%s: block %d: %v, or other bytes", when, b, err)
			}
			return
		}
		for i := range sectorsPerBlock {
			sector, want := p[:sectorBytes], m.data[i*sectorBytes:][:sectorBytes]
			err := read(sector, int64(b)*BlockSize+int64(i)*sectorBytes)
			switch {
			case m.lost[i] && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrMissing):
				w.t.Fatalf("%s: sector %d of block %d is lost, but reads (%v)", when, i, b, err)
			case !m.lost[i] && (err != nil || !bytes.Equal(sector, want)):
				w.t.Fatalf("%s: sector %d of block %d: %v, or other bytes", when, i, b, err)
			}
		}
	})
}

// copyOf makes a snapshot of a volume, or a clone.
func (w *maskWorld) copyOf(v int, name string) {
	im := *w.images[v]
	if w.rng.IntN(2) == 0 {
		sn := must(w.s.CreateSnapshot(context.Background(), w.open[v].ID(), name, nil))(w.t)
		foldAll(w.t, w.s)
		w.snaps, w.images = append(w.snaps, sn.ID), append(w.images, &im)
		return
	}
	foldAll(w.t, w.s)
	c := must(w.s.CreateVolume(VolumeSpec{Name: name, FromVolume: w.open[v].ID()}))(w.t)
	w.open = append(w.open, attach(w.t, w.s, c.ID))
	w.images = append(w.images[:len(w.open)-1], append([]*maskImage{&im}, w.images[len(w.open)-1:]...)...)
}

func (w *maskWorld) reopen() {
	var ids []string
	for _, v := range w.open {
		ids = append(ids, v.ID())
		ok(w.t, v.Close())
	}
	ok(w.t, w.s.Close())
	w.s = openStore(w.t, w.fsys, maskOptions())
	for i, id := range ids {
		w.open[i] = attach(w.t, w.s, id)
	}
}

// TestSectorMasks writes parts of blocks onto damaged ones, again and again, over folds,
// snapshots, clones, collections and starts: what was written reads back, the rest is an
// error, no fold is stopped, and the same content written again heals.
func TestSectorMasks(t *testing.T) {
	seeds := uint64(20)
	if raceEnabled {
		seeds = 4
	}
	healed, masked := 0, 0
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := &maskWorld{t: t, rng: rand.New(rand.NewPCG(seed, 14)), fsys: vfs.NewMem(), lostAt: map[string]bool{}}
			w.s = openStore(t, w.fsys, maskOptions())
			w.open, w.images = []*Volume{newVolume(t, w.s, "v", MinVolumeSize)}, []*maskImage{new(maskImage)}
			for b := range maskBlocks {
				w.write(0, b, true)
			}
			for step := range 60 {
				v, b := w.rng.IntN(len(w.open)), w.rng.IntN(maskBlocks)
				switch n := w.rng.IntN(20); {
				case n < 9:
					w.write(v, b, n == 0)
				case n < 12:
					foldAll(t, w.s)
				case n < 14:
					w.damage()
				case n < 15 && len(w.images) < 5:
					w.copyOf(v, fmt.Sprint("copy", step))
				case n < 17:
					before := len(w.lostAt)
					w.writeAgain()
					healed += before - len(w.lostAt)
				case n < 18:
					must(w.s.Collect(context.Background()))(t)
				case n < 19:
					w.reopen()
				}
				w.compare(fmt.Sprintf("step %d", step))
			}
			w.each(func(im *maskImage, b int, _ func([]byte, int64) error) {
				if m := &im[b]; !m.whole {
					masked++
				}
			})
			for _, v := range w.open {
				ok(t, v.Close())
			}
			ok(t, w.s.Close())
		})
	}
	if healed == 0 || masked == 0 {
		t.Errorf("%d contents healed, %d blocks lost in part", healed, masked)
	}
	t.Logf("%d contents healed, %d blocks lost in part", healed, masked)
}
