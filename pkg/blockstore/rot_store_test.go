package blockstore

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// rotStore is a small store that has one of everything, at rest, and what it must show.
type rotStore struct {
	fsys    *vfs.Mem
	images  map[string]*rotImage // by ID of volume or snapshot
	listing string
	older   []map[string][]byte // its files at earlier moments, by path

	knownProblems []string          // what check finds before anything rots
	read          map[string][]bool // bytes by file that are read to judge it; see watch
}

// rotImage is what a volume or snapshot may read as.
type rotImage struct {
	states [][]byte       // in the order of its writes
	least  int            // the first of states that may be shown
	broken []int64        // blocks that read as errors before anything else is broken
	blocks [][]rotVersion // what states have in each block; see index
}

// rotVersion is a content of a block, and bit i for each state i that has it.
type rotVersion struct {
	content []byte
	states  uint64
}

// index lists what each block may hold, so that a case compares each block about once.
func (im *rotImage) index() {
	im.blocks = make([][]rotVersion, len(im.states[0])/BlockSize)
	for b := range im.blocks {
	states:
		for i, state := range im.states {
			content := state[b*BlockSize:][:BlockSize]
			for k := range im.blocks[b] {
				if bytes.Equal(im.blocks[b][k].content, content) {
					im.blocks[b][k].states |= 1 << i
					continue states
				}
			}
			im.blocks[b] = append(im.blocks[b], rotVersion{content, 1 << i})
		}
	}
}

// shown is the last state that an image is, but for its bad blocks; -1 if it is none.
func (im *rotImage) shown(image []byte, bad []int64) int {
	states := uint64(1)<<len(im.states) - 1
	for b, versions := range im.blocks {
		if slices.Contains(bad, int64(b)) {
			continue
		}
		has := uint64(0)
		for _, v := range versions {
			if bytes.Equal(v.content, image[b*BlockSize:][:BlockSize]) {
				has = v.states
			}
		}
		states &= has
	}
	return bits.Len64(states) - 1
}

// Blocks that are written of a volume: one group that compresses, and one that does not with
// a block further behind. The rest of its MiB are holes. Few, so that all bytes of the store
// can be flipped in half an hour; rotHurt is stored as it is.
const (
	rotText  = 8
	rotNoise = 3
	rotHurt  = rotText + 1
)

func rotOptions() Options {
	o := smallOptions()
	o.SegmentBytes, o.JournalBytes, o.FoldBytes = 5*BlockSize, 1<<20, 1<<20
	o.ChunkFileBytes, o.CatalogBytes, o.ReserveBytes = 16<<10, 64<<10, 16<<10
	o.CacheBytes, o.NodeCache, o.ListCache, o.Workers = 1, 1, 1, 1
	return o
}

// newRotStore makes the store and stops it, cleanly or by a kill. Of its volumes, a is
// folded and has a damaged block; b is a clone of a's snapshot, written to since, with a
// journal that is not folded; c has a pending cut. After a kill b has written more than
// its journal's marks cover. Earlier moments are the end of an earlier process, one before
// a fold, one between two that share a chunk file, and one in the middle of b's last segment.
func newRotStore(t *testing.T, clean bool) *rotStore {
	t.Helper()
	x := &rotStore{fsys: vfs.NewMem(), images: map[string]*rotImage{}}
	s := openStore(t, x.fsys, rotOptions())
	a := x.volume(t, s, "a", 1)
	foldAll(t, s)
	x.snapshot(t, s, a.ID(), "of-a")
	b := x.clone(t, s, "b", "of-a")
	ok(t, a.Close())
	ok(t, b.Close())
	ok(t, s.Close())
	x.remember(t)

	s = openStore(t, x.fsys, rotOptions())
	a, b = attach(t, s, a.ID()), attach(t, s, b.ID())
	hurt(t, s, x.fsys, a, rotHurt)
	x.images[a.ID()].broken = readDamaged(t, a, x.images[a.ID()].last(), "a")
	for _, im := range x.images { // everything has a's blocks so far
		im.broken = x.images[a.ID()].broken
	}
	ok(t, s.damageStep())
	c := x.volume(t, s, "c", 2)
	ok(t, c.Flush())
	x.remember(t)
	foldAll(t, s)
	x.remember(t)
	x.write(t, a, 30, 9, 1)
	x.images[a.ID()].least++
	foldAll(t, s) // into the chunk file that is open already
	x.write(t, c, 40, 3, 1)
	x.snapshot(t, s, c.ID(), "of-c") // its cut is pending
	x.write(t, c, 44, 4, 1)
	x.write(t, b, 48, 5, 1)
	for _, v := range []*Volume{b, c} {
		ok(t, v.Flush())
		v.markStep()
		x.images[v.ID()].least = len(x.images[v.ID()].states) - 1
	}
	x.remember(t)
	x.write(t, b, 52, 8, 1)
	ok(t, b.Flush())
	ok(t, s.noteStep()) // as it is done a second later
	x.images[b.ID()].least++
	if clean {
		x.write(t, b, 60, 6, 1) // acknowledged; the stop makes it durable
		x.images[b.ID()].least++
		x.listing = rotListing(s)
		ok(t, s.Close())
		return x
	}
	x.write(t, b, 60, 6, 1)
	x.write(t, b, 62, 7, 1)
	x.listing = rotListing(s)
	s.abandon()
	x.fsys.Kill()
	return x
}

// rotListing is what a listing must show, whatever cannot be read.
func rotListing(s *Store) string {
	var b strings.Builder
	for _, v := range s.Volumes() {
		fmt.Fprintln(&b, v.ID, v.Name, v.SizeBytes, v.Created, v.State)
	}
	for _, sn := range s.Snapshots("") {
		fmt.Fprintln(&b, sn.ID, sn.Name, sn.SizeBytes, sn.Created, sn.VolumeID)
	}
	return b.String()
}

func (im *rotImage) last() []byte { return im.states[len(im.states)-1] }

func (x *rotStore) volume(t *testing.T, s *Store, name string, seed uint64) *Volume {
	v := newVolume(t, s, name, MinVolumeSize)
	x.images[v.ID()] = &rotImage{states: [][]byte{make([]byte, v.Size())}}
	x.put(t, v, 0, text(seed, rotText))
	x.write(t, v, rotText, seed, rotNoise)
	x.write(t, v, 200, seed+1000, 1)
	x.images[v.ID()].least = 3
	return v
}

// write writes blocks of noise and notes the state.
func (x *rotStore) write(t *testing.T, v *Volume, block int64, seed uint64, blocks int) {
	t.Helper()
	x.put(t, v, block, noise(seed, blocks*BlockSize))
}

// put writes blocks and notes the state.
func (x *rotStore) put(t *testing.T, v *Volume, block int64, p []byte) {
	t.Helper()
	im := x.images[v.ID()]
	writeAt(t, v, p, block*BlockSize)
	state := bytes.Clone(im.last())
	copy(state[block*BlockSize:], p)
	im.states = append(im.states, state)
}

func (x *rotStore) snapshot(t *testing.T, s *Store, volume, name string) {
	t.Helper()
	sn := must(s.CreateSnapshot(context.Background(), volume, name, nil))(t)
	x.images[sn.ID] = &rotImage{states: [][]byte{x.images[volume].last()}, broken: x.images[volume].broken}
}

func (x *rotStore) clone(t *testing.T, s *Store, name, snapshot string) *Volume {
	t.Helper()
	sn := must(s.Snapshot(snapshot))(t)
	info := must(s.CreateVolume(VolumeSpec{Name: name, FromSnapshot: sn.ID}))(t)
	x.images[info.ID] = &rotImage{states: [][]byte{x.images[sn.ID].last()}}
	return attach(t, s, info.ID)
}

// remember keeps the store's files as they are.
func (x *rotStore) remember(t *testing.T) {
	t.Helper()
	x.older = append(x.older, x.files(t))
}

// files are the store's files by path, without what holds nothing.
func (x *rotStore) files(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{testDir + "/" + headerName: must(vfs.ReadFile(x.fsys, testDir+"/"+headerName))(t)}
	for _, dir := range []string{dirCatalog, dirJournal, dirChunks} {
		for _, name := range filesBelow(t, x.fsys, dir, "") {
			out[name] = must(vfs.ReadFile(x.fsys, name))(t)
		}
	}
	return out
}
