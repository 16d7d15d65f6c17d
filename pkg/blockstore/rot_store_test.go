package blockstore

import (
	"bytes"
	"context"
	"fmt"
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

	knownProblems []string // what check finds before anything rots
}

// rotImage is what a volume or snapshot may read as.
type rotImage struct {
	states [][]byte // in the order of its writes
	least  int      // the first of states that may be shown
	broken []int64  // blocks that read as errors before anything else is broken
}

// rotVolumeBlocks are written of a volume; the rest of its MiB are holes.
const rotVolumeBlocks = 20

func rotOptions() Options {
	o := smallOptions()
	o.SegmentBytes, o.JournalBytes, o.FoldBytes = 10*BlockSize, 1<<20, 1<<20
	o.ChunkFileBytes, o.CatalogBytes, o.ReserveBytes = 48<<10, 64<<10, 16<<10
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
	hurt(t, s, x.fsys, a, 7)
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
	x.write(t, c, 40, 3, 2)
	x.snapshot(t, s, c.ID(), "of-c") // its cut is pending
	x.write(t, c, 44, 4, 2)
	x.write(t, b, 48, 5, 2)
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
	x.write(t, v, 0, seed, rotVolumeBlocks)
	x.write(t, v, 200, seed+1000, 1)
	x.images[v.ID()].least = 2
	return v
}

// write writes blocks of noise and notes the state.
func (x *rotStore) write(t *testing.T, v *Volume, block int64, seed uint64, blocks int) {
	t.Helper()
	im, p := x.images[v.ID()], noise(seed, blocks*BlockSize)
	copy(p[BlockSize/2:BlockSize], bytes.Repeat([]byte("rot "), BlockSize)) // something to compress
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
