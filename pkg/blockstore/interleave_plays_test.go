package blockstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// interleaveOptions keep nothing in memory that a pause could not come before, and seal a
// chunk file as soon as it has a chunk of four blocks.
func interleaveOptions() Options {
	o := smallOptions()
	o.JournalBytes, o.SegmentBytes, o.FoldBytes, o.UnsyncedBytes = 1<<20, 64<<10, 1<<20, 1<<20
	o.ChunkFileBytes, o.CatalogBytes, o.ReserveBytes = 16<<10, 64<<10, 64<<10
	o.CacheBytes, o.NodeCache, o.ListCache, o.Workers = 1, 1, 16, 1
	return o
}

// sampled is noise whose fingerprint is one of those that a store keeps in memory for all
// chunks: who writes it again finds the chunk, whether a map names it or not.
func sampled(seed uint64) []byte {
	for ; ; seed += 1 << 32 {
		p := noise(seed, BlockSize)
		if fp := dedup.FingerprintOf(p); binary.LittleEndian.Uint64(fp[:8])&31 == 0 {
			return p
		}
	}
}

// Blocks of the volume "old": four of X, all of them written over, and four of Y, of which
// the last is still there. Who writes X or Y again finds garbage.
var (
	blocksX = [][]byte{sampled(10), noise(11, BlockSize), noise(12, BlockSize), noise(13, BlockSize)}
	blocksY = [][]byte{sampled(20), noise(21, BlockSize), noise(22, BlockSize), noise(23, BlockSize)}
)

// keptImage is what "old" had before.
func keptImage() blocks {
	image := make(blocks)
	for i := range int64(4) {
		image[i], image[4+i] = blocksX[i], blocksY[i]
	}
	return image
}

// oldImage is what "old" has in the end.
func oldImage() blocks {
	image := blocks{7: blocksY[3]}
	for i := range int64(7) {
		image[i] = noise(30+uint64(i), BlockSize)
	}
	return image
}

// garbageDisk has a store that was stopped cleanly, with the volume "old" and others of one
// block each, all folded. With kept, a snapshot has "old" as it was with X and Y.
func garbageDisk(kept bool, others ...string) func(t testing.TB) *vfs.Mem {
	return func(t testing.TB) *vfs.Mem {
		mem := vfs.NewMem()
		s := openStore(t, mem, interleaveOptions())
		v := newVolume(t, s, "old", MinVolumeSize)
		write := func(image ...[]byte) func(off int64) {
			return func(off int64) {
				writeAt(t, v, []byte(strings.Join(texts(image), "")), off*BlockSize)
				foldAll(t, s)
			}
		}
		write(blocksX...)(0)
		write(blocksY...)(4)
		if kept {
			must(s.CreateSnapshot(context.Background(), v.ID(), "kept", nil))(t)
		}
		image := oldImage()
		write(image[0], image[1], image[2], image[3])(0)
		write(image[4], image[5], image[6])(4)
		ok(t, v.Close())
		for i, name := range others {
			v := newVolume(t, s, name, MinVolumeSize)
			writeAt(t, v, ownBlock(i), 9*BlockSize)
			foldAll(t, s)
			ok(t, v.Close())
		}
		ok(t, s.Close())
		return mem
	}
}

func texts(parts [][]byte) (out []string) {
	for _, p := range parts {
		out = append(out, string(p))
	}
	return out
}

// ownBlock is the block that only volume number i of the others has.
func ownBlock(i int) []byte { return noise(100+uint64(i), BlockSize) }

// open opens the store of the play; the image of "old" is known.
func (st *stage) open() {
	var err error
	st.s, err = Open(st.fs, testDir, interleaveOptions())
	st.ok(err, "start")
	st.images["old"] = oldImage()
}

// known is the ID of a volume of the play.
func (st *stage) known(name string) string {
	info, err := st.s.Volume(name)
	st.ok(err, "volume "+name)
	return info.ID
}

// write writes runs of blocks to a volume, each as a record of its own, and closes it, so
// that a fold has to read them from the journal.
func (st *stage) write(name string, runs map[int64][][]byte) {
	v, err := st.s.OpenVolume(context.Background(), st.known(name))
	st.ok(err, "open "+name)
	image := maps.Clone(st.images[name])
	for block := range MinVolumeSize / BlockSize {
		run := runs[int64(block)]
		if run == nil {
			continue
		}
		_, err := v.WriteAt([]byte(strings.Join(texts(run), "")), int64(block)*BlockSize)
		st.ok(err, "write")
		for i, p := range run {
			image[int64(block+i)] = p
		}
	}
	st.images[name] = image
	st.ok(v.Close(), "close "+name)
}

// Where actors pause.

func in(dir string, op vfs.Op) bool { return strings.HasPrefix(op.Name, testDir+"/"+dir+"/") }

// atSecondRun pauses a fold once, when it has looked for the first run of blocks.
func atSecondRun(op vfs.Op) bool { return atJournal(op) && op.Off >= 4*BlockSize }

// atReads pauses a fold between any two blocks that it looks for, and between having read
// a list of fingerprints and taking a slot from it.
func atReads(op vfs.Op) bool {
	return op.Kind == vfs.OpRead && (in(dirJournal, op) || in(dirChunks, op))
}

// atJournal pauses a fold between runs of blocks alone.
func atJournal(op vfs.Op) bool { return op.Kind == vfs.OpRead && in(dirJournal, op) }

// beforeSync pauses a fold also when all is appended and nothing durable: only one fold of
// a play can, for the others would wait for its file.
func beforeSync(op vfs.Op) bool {
	return atReads(op) || op.Kind == vfs.OpDatasync && in(dirChunks, op)
}

// afterMark pauses a snapshot or clone between its mark and its record.
func afterMark(op vfs.Op) bool { return op.Kind == vfs.OpDatasync && in(dirJournal, op) }

// Actors.

// folds folds a volume once.
func (st *stage) folds(name string, pauses func(vfs.Op) bool) {
	id := st.known(name)
	st.add("fold of "+name, pauses, func(*actor) error {
		v := st.s.loaded(id)
		if v == nil { // deleted, and owes nothing
			return nil
		}
		_, err := st.s.foldOnce(v)
		return err
	})
}

// How a collection goes.
const (
	byItself = 1 << iota // does not seal the open chunk file, which waits for a sync
	atOnce               // sweeps all its files in one turn
)

// collects runs a collection, with a pause wherever it could make a difference: the map
// nodes that a marking reads never change, so one marking is one turn.
func (st *stage) collects(how int) {
	st.add("collection", nil, func(a *actor) error {
		if how&byItself == 0 {
			if err := st.s.sealOpen(); err != nil {
				return err
			}
			st.pause()
		}
		c, err := st.s.newCollection(manualMinLive)
		if err != nil {
			return err
		}
		st.pause()
		for more := true; more; {
			before := c.phase
			if more, a.waits, err = st.s.collectStep(c); err != nil {
				c.abort()
				return err
			}
			marking := before == phaseMark && c.phase == phaseMark
			sweeping := before == phaseSweep && how&atOnce != 0
			if more && !marking && !sweeping {
				st.pause()
			}
		}
		return nil
	})
}

// calls does API calls one behind the other, with a pause after each.
func (st *stage) calls(name string, pauses func(vfs.Op) bool, calls ...func() error) {
	st.add(name, pauses, func(*actor) error {
		for i, call := range calls {
			if i > 0 {
				st.pause()
			}
			if err := call(); err != nil {
				return fmt.Errorf("call %d: %w", i, err)
			}
		}
		return nil
	})
}

// takes is a snapshot of a volume as it is.
func (st *stage) takes(volume, name string) func() error {
	return func() error {
		_, err := st.s.CreateSnapshot(context.Background(), st.known(volume), name, nil)
		st.images[name] = st.images[volume]
		return err
	}
}

// restores makes a volume of a snapshot.
func (st *stage) restores(snapshot, name string) func() error {
	return func() error {
		info, err := st.s.Snapshot(snapshot)
		if err == nil {
			_, err = st.s.CreateVolume(VolumeSpec{Name: name, FromSnapshot: info.ID})
		}
		st.images[name] = st.images[snapshot]
		return err
	}
}

// clones makes a volume of a volume.
func (st *stage) clones(volume, name string) func() error {
	return func() error {
		_, err := st.s.CreateVolume(VolumeSpec{Name: name, FromVolume: st.known(volume)})
		st.images[name] = st.images[volume]
		return err
	}
}

// deletes deletes a volume.
func (st *stage) deletes(name string) func() error {
	return func() error {
		delete(st.images, name)
		return st.s.DeleteVolume(st.known(name))
	}
}

// forgets deletes a snapshot.
func (st *stage) forgets(name string) func() error {
	return func() error {
		info, err := st.s.Snapshot(name)
		if err != nil {
			return err
		}
		delete(st.images, name)
		return st.s.DeleteSnapshot(info.ID)
	}
}

// reads reads a snapshot's image, with pauses between finding out where it is and reading
// it there.
func (st *stage) reads(snapshot string) {
	st.add("read of "+snapshot, atReads, func(*actor) error {
		view := st.s.cat.View()
		info, err := st.s.Snapshot(snapshot)
		if err != nil {
			return err
		}
		var rec snapshotRecord
		if _, err = get(view, keySnapshot+info.ID, &rec); err != nil {
			return err
		}
		var cut cutRecord
		if _, err = get(view, keyCut+rec.Cut, &cut); err != nil {
			return err
		}
		want := st.images[snapshot]
		for _, block := range []int64{1, 7} {
			got := make([]byte, BlockSize)
			if err := st.s.readImage(got, block*BlockSize, cut.Root.slot()); err != nil {
				return err
			}
			if string(got) != string(want[block]) {
				return fmt.Errorf("block %d differs", block)
			}
		}
		return nil
	})
}

// plays are what TestEveryInterleaving goes through.
func plays() []*play {
	return []*play{
		foldPlay("one fold", byItself, beforeSync, "a"),
		foldPlay("one fold and a collection that seals", 0, atReads, "a"),
		foldPlay("two folds", byItself|atOnce, atJournal, "a", "b"),
		foldPlay("three folds", byItself|atOnce, atSecondRun, "a", "b", "c"),
		snapshotPlay(),
		clonePlay(),
		deletePlay(),
		readPlay(),
	}
}

// foldPlay has folds that find garbage which the collection is about to drop, and what the
// folds before them have appended.
func foldPlay(name string, how int, pauses func(vfs.Op) bool, volumes ...string) *play {
	return &play{
		name: name,
		disk: garbageDisk(false, volumes...),
		begin: func(st *stage) {
			st.open()
			for i, name := range volumes {
				st.images[name] = blocks{9: ownBlock(i)}
				runs := map[int64][][]byte{0: blocksX[:2], 3: blocksY[:2]}
				if i > 0 || len(volumes) == 1 {
					runs[6] = [][]byte{noise(50, BlockSize)} // new, the same for all
				}
				st.write(name, runs)
			}
			for _, name := range volumes {
				st.folds(name, pauses)
			}
			st.collects(how)
		},
		expect: (*stage).settle,
	}
}

// copyPlay copies a volume that is being folded onto garbage, and lets the copy be all that
// names what the volume had.
func copyPlay(name string, calls func(st *stage) []func() error) *play {
	return &play{
		name: name,
		disk: garbageDisk(false, "a"),
		begin: func(st *stage) {
			st.open()
			st.images["a"] = blocks{9: ownBlock(0)}
			st.write("a", map[int64][][]byte{0: blocksX[:2], 3: blocksY[:2]})
			st.folds("a", atSecondRun)
			st.calls(name, afterMark, calls(st)...)
			st.collects(byItself | atOnce)
		},
		expect: (*stage).settle,
	}
}

// snapshotPlay takes a snapshot, makes a clone of it and deletes the snapshot, so that only
// the clone names the cut.
func snapshotPlay() *play {
	return copyPlay("snapshot", func(st *stage) []func() error {
		return []func() error{st.takes("a", "s"), st.restores("s", "c"), st.forgets("s")}
	})
}

// clonePlay clones a volume and deletes it: its journal still owes the clone its root.
func clonePlay() *play {
	return copyPlay("clone and delete", func(st *stage) []func() error {
		return []func() error{st.clones("a", "c"), st.deletes("a")}
	})
}

// deletePlay deletes the last snapshot that names X and Y while a fold finds them, and
// makes a clone of it first.
func deletePlay() *play {
	return &play{
		name: "delete",
		disk: garbageDisk(true, "a", "b"),
		begin: func(st *stage) {
			st.open()
			st.images["kept"] = keptImage()
			st.images["a"], st.images["b"] = blocks{9: ownBlock(0)}, blocks{9: ownBlock(1)}
			st.write("a", map[int64][][]byte{0: blocksX[:2], 3: blocksY[:2]})
			st.folds("a", atSecondRun)
			st.calls("deletes", nil, st.forgets("kept"), st.deletes("b"))
			st.calls("old", nil, st.clones("old", "c"), st.deletes("old"))
			st.collects(byItself | atOnce)
		},
		expect: (*stage).settle,
	}
}

// readPlay reads what a collection moves to another file, while a clone comes and goes.
func readPlay() *play {
	return &play{
		name: "read",
		disk: garbageDisk(true, "a"),
		begin: func(st *stage) {
			st.open()
			st.images["kept"] = keptImage()
			st.images["a"] = blocks{9: ownBlock(0)}
			st.reads("kept")
			st.calls("deletes", nil, st.deletes("old"))
			st.collects(byItself)
		},
		expect: (*stage).settle,
	}
}
