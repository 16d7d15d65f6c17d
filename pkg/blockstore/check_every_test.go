package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8ns/granary/pkg/vfs"
)

// byteRange is a range of a file whose bytes all hit the same blocks.
type byteRange struct {
	what       string
	file       string
	start, end int64
	bad        map[string][]int64 // blocks that cannot be read with a byte of it wrong, by image
}

// checked is a small store at rest, whose every byte of chunks and journal payloads is to
// be flipped.
type checked struct {
	fsys   *vfs.Mem
	images map[string][]byte // by ID of volume or snapshot
	// journaled is the volume with a journal; its block 60 is in it as a whole.
	journaled string
}

func checkedOptions() Options {
	o := rotOptions()
	o.ChunkFileBytes = 16 << 10
	return o
}

// text is n blocks that differ by seed and compress well.
func text(seed uint64, n int) []byte {
	p := make([]byte, n*BlockSize)
	for i := range n {
		b := p[i*BlockSize:][:BlockSize]
		copy(b, noise(seed*100+uint64(i), 24))
		for j := 24; j < len(b); j++ {
			b[j] = b[j%24] ^ byte(j>>9)
		}
	}
	return p
}

// newChecked makes a volume, a snapshot of it and a clone of that, each with blocks of
// its own, and the clone with a journal that is not folded.
func newChecked(t *testing.T) *checked {
	t.Helper()
	x := &checked{fsys: vfs.NewMem(), images: map[string][]byte{}}
	s := openStore(t, x.fsys, checkedOptions())
	v := newVolume(t, s, "v", MinVolumeSize)
	image := make([]byte, v.Size())
	copy(image, text(1, 12))
	writeAt(t, v, image[:12*BlockSize], 0)
	foldAll(t, s)
	sn := must(s.CreateSnapshot(context.Background(), v.ID(), "sn", nil))(t)
	x.images[sn.ID] = bytes.Clone(image)
	c := attach(t, s, must(s.CreateVolume(VolumeSpec{Name: "c", FromSnapshot: sn.ID}))(t).ID)
	x.images[c.ID()] = bytes.Clone(image)
	x.images[v.ID()] = image
	for i, w := range []*Volume{v, c} {
		p := text(uint64(5+i), 9)
		writeAt(t, w, p, int64(30+3*i)*BlockSize)
		copy(x.images[w.ID()][int64(30+3*i)*BlockSize:], p)
		foldAll(t, s)
	}
	x.journaled = c.ID()
	p := noise(9, BlockSize+sectorBytes)
	writeAt(t, c, p, 60*BlockSize)
	copy(x.images[c.ID()][60*BlockSize:], p)
	ok(t, v.Close())
	ok(t, c.Close())
	ok(t, s.Close())
	return x
}

// ranges lists the parts of all chunks, and the payloads of the journal.
func (x *checked) ranges(t *testing.T) (all []byteRange) {
	t.Helper()
	add := func(what, file string, start, end int64) {
		r := byteRange{what: what, file: file, start: start, end: end}
		fsys := x.fsys.Clone()
		flipAt(fsys, file, (start+end)/2)
		r.bad = x.read(t, fsys)
		all = append(all, r)
	}
	for _, file := range filesBelow(t, x.fsys, dirChunks, ".chunks") {
		data := must(vfs.ReadFile(x.fsys, file))(t)
		for i, c := range chunkSpots(data, file) {
			at := fmt.Sprintf("chunk %d of %s: ", i, path.Base(file))
			add(at+"head", file, c.head, c.front)
			add(at+"front", file, c.front, c.list)
			add(at+"list", file, c.list, c.payload)
			off := c.payload
			for e := c.front; e < c.list; e += 8 {
				n := int64(binary.LittleEndian.Uint32(data[e:]) & 0xffffff)
				add(at+"group", file, off, off+n)
				off += n
			}
			if off != c.end {
				t.Fatalf("%s: groups end at %d, the chunk at %d", file, off, c.end)
			}
		}
	}
	for _, file := range filesBelow(t, x.fsys, dirJournal, ".seg") {
		data := must(vfs.ReadFile(x.fsys, file))(t)
		if i := bytes.Index(data, noise(9, BlockSize)); i >= 0 {
			all = append(all, byteRange{what: "journal", file: file, start: int64(i), end: int64(i) + 2*BlockSize})
		}
	}
	return all
}

// read reads every image and returns the blocks that cannot be; a wrong byte fails the
// test.
func (x *checked) read(t *testing.T, fsys *vfs.Mem) map[string][]int64 {
	t.Helper()
	s := openStore(t, fsys, checkedOptions())
	defer s.abandon()
	bad := map[string][]int64{}
	for id, image := range x.images {
		open := id
		if id[0] == 's' {
			open = must(s.CreateVolume(VolumeSpec{Name: "of " + id, FromSnapshot: id}))(t).ID
		}
		v := attach(t, s, open)
		if b := readDamaged(t, v, image, id); b != nil {
			bad[id] = b
		}
		ok(t, v.Close())
	}
	return bad
}

// TestCheckFindsEveryByte flips every byte of every chunk and journal payload of a small
// store, one after the other: check --read-data finds each, and names the volumes and
// snapshots that it touches with their ranges, and no others.
func TestCheckFindsEveryByte(t *testing.T) {
	x := newChecked(t)
	ranges := x.ranges(t)
	hit, kinds := 0, map[string]int{}
	for _, r := range ranges {
		kinds[r.what[len(r.what)-4:]]++
		if len(r.bad) > 0 {
			hit++
		}
	}
	if hit < 10 || kinds["head"] < 4 || kinds["roup"] < 6 || kinds["rnal"] < 1 {
		t.Fatalf("the store has not enough: %v, %d with damage", kinds, hit)
	}
	stride := int64(1)
	if raceEnabled { // the rest runs without the race detector
		stride = 37
	}
	began := time.Now()
	var flips atomic.Int64
	var g errgroup.Group
	g.SetLimit(2)
	for n, r := range ranges {
		g.Go(func() error {
			fsys := x.fsys.Clone()
			step := stride
			if r.what == "journal" && !*rotAll {
				step *= 5
			}
			for off := r.start; off < r.end; off += step {
				mask := byte(1) << ((off + int64(n)) % 8)
				turn := func(p []byte) { p[0] ^= mask }
				fsys.Corrupt(r.file, off, turn)
				if err := x.told(fsys, r); err != nil {
					return fmt.Errorf("%s: byte %d ^ %#x: %w", r.what, off-r.start, mask, err)
				}
				fsys.Corrupt(r.file, off, turn)
				flips.Add(1)
			}
			return nil
		})
	}
	ok(t, g.Wait())
	t.Logf("%d bytes of %d ranges in %v", flips.Load(), len(ranges), time.Since(began))
}

// told verifies what check tells when a byte of a range is wrong.
func (x *checked) told(fsys *vfs.Mem, r byteRange) error {
	var found []Problem
	err := CheckStopped(context.Background(), fsys, testDir, CheckOptions{Workers: 1, ReadData: true}, func(p Problem) { found = append(found, p) })
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("check finds nothing")
	}
	if r.what == "journal" { // it was durable at the stop, so the volume fails closed
		for _, p := range found {
			if p.Kind != "journal" || p.VolumeName != "c" {
				return fmt.Errorf("check tells %v", p)
			}
		}
		return nil
	}
	bad := r.bad
	for _, p := range found { // what the journal writes over a lost part of the map reads well
		if p.Kind == "map" && p.Volume == x.journaled && p.Start <= 60*BlockSize && p.Start+p.Length > 60*BlockSize {
			bad = maps.Clone(bad)
			bad[p.Volume] = append(slices.Clone(bad[p.Volume]), 60)
		}
	}
	return imageRanges(bad, found)
}
