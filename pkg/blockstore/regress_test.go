package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// tightOptions make a store of eight small segments that folds nothing by age.
func tightOptions() Options {
	o := smallOptions()
	o.JournalBytes, o.SegmentBytes, o.FoldBytes = 768<<10, 96<<10, 256<<10
	o.ChunkFileBytes, o.ReserveBytes = 128<<10, 64<<10
	o.IdleBytes, o.IdleAfter, o.MaxAge = 1<<20, time.Hour, time.Hour
	return o
}

// fillPool writes block after block until the journal has no room, and returns how many.
func fillPool(t *testing.T, v *Volume, image []byte, from int64) (n int64) {
	t.Helper()
	for off := from; off < v.Size(); off += BlockSize {
		p := noise(uint64(off), BlockSize)
		op, err := v.begin(wal.TypeWrite, off, BlockSize, p)
		if errors.Is(err, errWait) {
			return n
		}
		ok(t, err)
		v.append(op)
		ok(t, v.acknowledge(op))
		copy(image[off:], p)
		n++
	}
	t.Fatal("the journal does not fill")
	return 0
}

// writeBlocks writes n blocks from off on, which must not take for ever.
func writeBlocks(t *testing.T, v *Volume, image []byte, off, n int64, what string) {
	t.Helper()
	p := noise(uint64(off)+77, int(n)*BlockSize)
	failed := make(chan error, 1)
	within(t, 20*time.Second, what, func() {
		for i := range n {
			if _, err := v.WriteAt(p[i*BlockSize:][:BlockSize], off+i*BlockSize); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	})
	if err := <-failed; err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	copy(image[off:], p)
}

// I5: a base that cannot be read for a moment while a part of a block is merged with it
// was marked as lost sectors, and good data was gone.
func TestFoldRetriesUnreadableBase(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := openStore(t, fsys, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	copy(image, noise(1, 4*BlockSize))
	writeAt(t, v, image[:4*BlockSize], 0)
	foldAll(t, s)
	ok(t, v.Close())
	ok(t, s.Close())
	s = openStore(t, fsys, tightOptions()) // nothing of the base is in memory
	v = attach(t, s, v.ID())
	part := noise(2, sectorBytes)
	writeAt(t, v, part, BlockSize+sectorBytes)
	copy(image[BlockSize+sectorBytes:], part)
	ok(t, v.Flush())
	s.blobs.Close() // as when enough other files were read meanwhile
	var refused atomic.Int64
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpOpen && strings.Contains(op.Name, "/chunks/") {
			refused.Add(1)
			return syscall.EMFILE
		}
		return nil
	})
	for range 2 {
		if did, err := s.foldOnce(v); did || !errors.Is(err, syscall.EMFILE) {
			t.Errorf("fold without descriptors: %v, %v", did, err)
		}
	}
	if refused.Load() == 0 {
		t.Fatal("the fold did not read the base")
	}
	fsys.SetHook(nil)
	foldAll(t, s)
	wantImage(t, readAll(t, v), image, "volume")
	ok(t, s.damageStep())
	if n := len(s.scan(keyDamage)); n != 0 {
		t.Errorf("%d damage records without damage", n)
	}
	wantClean(t, s)
	ok(t, v.Close())
	ok(t, s.Close())
}

// I8: a volume that failed closed and was saved by a fold while it was still attached
// could not be attached again before the next start.
func TestFailedVolumeAttachesAgain(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := openStore(t, fsys, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	copy(image, noise(1, 3*BlockSize))
	writeAt(t, v, image[:3*BlockSize], 0)
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/journal/") {
			return syscall.EIO
		}
		return nil
	})
	if err := v.Flush(); !errors.Is(err, ErrFailed) {
		t.Fatalf("flush: %v", err)
	}
	fsys.SetHook(nil)
	foldAll(t, s)
	if _, err := v.WriteAt(noise(2, BlockSize), 0); !errors.Is(err, ErrFailed) {
		t.Errorf("write after the failure, still attached: %v", err)
	}
	if _, err := s.OpenVolume(context.Background(), v.ID()); !errors.Is(err, ErrInUse) {
		t.Errorf("attach while attached: %v", err)
	}
	v.Close() // may say that the volume failed
	v = attach(t, s, v.ID())
	wantImage(t, readAll(t, v), image, "volume attached again")
	writeBlocks(t, v, image, 8*BlockSize, 2, "write after the failure")
	ok(t, v.Flush())
	crashed := crashedClone(t, mem, tightOptions())
	wantImage(t, readAll(t, attach(t, crashed, v.ID())), image, "volume after a power cut")
	ok(t, v.Close())
	ok(t, s.Close())
}

// I9: a bad page in the journal of one volume stopped its folds, and with the pool full
// every other writer. It costs what was in it, which reads as an error (I5).
func TestBadJournalPageStopsNobody(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, tightOptions())
	sick, well := newVolume(t, s, "sick", 4<<20), newVolume(t, s, "well", 4<<20)
	image, wellImage := make([]byte, sick.Size()), make([]byte, well.Size())
	writeAt(t, sick, noise(1, BlockSize), 0)                       // page 2 of the segment
	writeAt(t, sick, noise(2, sectorBytes), BlockSize+sectorBytes) // page 4
	ok(t, sick.Flush())
	seg := segmentsOf(t, fsys, sick.ID())[0]
	flip(fsys, seg, 2*wal.PageSize+100)
	flip(fsys, seg, 4*wal.PageSize+100)
	if fillPool(t, sick, image, 2*BlockSize) < 20 {
		t.Fatal("the pool was not empty")
	}
	stop := runStore(t, s)
	writeBlocks(t, well, wellImage, 0, 200, "writes of another volume")
	writeBlocks(t, sick, image, 2<<20, 20, "writes of the volume with the bad page")
	stop()
	foldAll(t, s)
	wantImage(t, readAll(t, well), wellImage, "other volume")
	p := make([]byte, sectorBytes)
	for i := range int64(2 * sectorsPerBlock) {
		_, err := sick.ReadAt(p, i*sectorBytes)
		lost := i < sectorsPerBlock || i == sectorsPerBlock+1
		if re := new(ReadError); lost && (!errors.As(err, &re) || !errors.Is(err, ErrCorrupt)) {
			t.Errorf("sector %d was lost and reads with %v", i, err)
		} else if !lost && (err != nil || !bytes.Equal(p, image[:sectorBytes])) {
			t.Errorf("sector %d was not lost: %v", i, err)
		}
	}
	rest := make([]byte, len(image)-2*BlockSize)
	must(sick.ReadAt(rest, 2*BlockSize))(t)
	wantImage(t, rest, image[2*BlockSize:], "rest of the volume")
	if len(problems(t, s)) == 0 {
		t.Error("check does not find what is lost")
	}
	writeBlocks(t, sick, image, 0, 2, "overwriting what was lost")
	foldAll(t, s)
	wantImage(t, readAll(t, sick), image, "volume written anew")
	wantClean(t, s)
	ok(t, s.Close())
}

// I9: when the disk had room for the reserve but not for the segment, the store did not
// take itself for full, and nobody woke the writer when space returned.
func TestSegmentOnFullDiskIsTriedAgain(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	fsys.SetCapacity(used(t, fsys) + s.reserve.fileBytes + 40<<10)
	stop := runStore(t, s)
	p := noise(1, BlockSize)
	ended := make(chan error, 1)
	go func() {
		_, err := v.WriteAt(p, 0)
		ended <- err
	}()
	waitFor(t, 10*time.Second, "the store is full", s.isFull)
	select {
	case err := <-ended:
		t.Fatalf("write on a full disk: %v", err)
	default:
	}
	fsys.SetCapacity(1 << 40)
	within(t, 20*time.Second, "the writer goes on", func() {
		if err := <-ended; err != nil {
			t.Errorf("write: %v", err)
		}
	})
	copy(image, p)
	waitFor(t, 20*time.Second, "the store is not full any more", func() bool { return !s.isFull() })
	wantImage(t, readAll(t, v), image, "volume")
	stop()
	ok(t, s.Close())
}

// I9: volumes with nothing but a synced mark in their segment kept it for MaxAge, though
// writers waited for the pool.
func TestMarksGiveSegmentsBack(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, vfs.NewMem(), tightOptions())
	for i := range 8 {
		v := newVolume(t, s, fmt.Sprint("marked", i), 1<<20)
		writeAt(t, v, noise(uint64(i), BlockSize), 0)
		ok(t, v.Flush())
		must(s.CreateSnapshot(ctx, v.ID(), fmt.Sprint("s", i), nil))(t)
		v.markStep()
		if did := must(s.foldOnce(v))(t); !did {
			t.Fatal("nothing to fold")
		}
	}
	if st := s.pool.Stats(); st.InUse != 8 || s.pool.Room() {
		t.Fatalf("the marks do not hold the pool: %+v", st)
	}
	w := newVolume(t, s, "w", 1<<20)
	image := make([]byte, w.Size())
	stop := runStore(t, s)
	writeBlocks(t, w, image, 0, 30, "write beside volumes with marks")
	wantImage(t, readAll(t, w), image, "volume")
	stop()
	wantClean(t, s)
	ok(t, s.Close())
}

// I9: a segment that was being made for a writer while its volume was closed was put
// into a journal that nobody had any more, and missed in the pool until the next start.
func TestCloseWhileSegmentIsMade(t *testing.T) {
	for _, remove := range []bool{false, true} {
		t.Run(fmt.Sprint("delete=", remove), func(t *testing.T) {
			fsys := vfs.NewFaulty(vfs.NewMem())
			s := openStore(t, fsys, tightOptions())
			v := newVolume(t, s, "v", 1<<20)
			entered, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			fsys.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpCreate && strings.Contains(op.Name, "/journal/") {
					once.Do(func() {
						close(entered)
						<-goOn
					})
				}
				return nil
			})
			ended := make(chan error, 1)
			go func() {
				_, err := v.WriteAt(noise(1, BlockSize), 0)
				ended <- err
			}()
			within(t, 10*time.Second, "a segment is made", func() { <-entered })
			within(t, 10*time.Second, "close", func() { ok(t, v.Close()) })
			if remove {
				ok(t, s.DeleteVolume(v.ID()))
			}
			close(goOn)
			within(t, 10*time.Second, "the writer ends", func() {
				if err := <-ended; !errors.Is(err, ErrClosed) && !(remove && errors.Is(err, ErrNotFound)) {
					t.Errorf("write after Close: %v", err)
				}
			})
			if st := s.pool.Stats(); st.InUse != 0 {
				t.Errorf("segment is leaked: %+v", st)
			}
			if !remove {
				v = attach(t, s, v.ID())
				image := make([]byte, v.Size())
				wantImage(t, readAll(t, v), image, "volume attached again")
				writeBlocks(t, v, image, 0, 2, "write after attaching again")
				foldAll(t, s)
				wantImage(t, readAll(t, v), image, "volume attached again and written")
			}
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// I9: a volume whose journal cannot be read back kept its segments in the pool's budget,
// so that no other volume could write; and kept them after its deletion.
func TestCorruptJournalDoesNotPinPool(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, tightOptions())
	sick, well := newVolume(t, s, "sick", 4<<20), newVolume(t, s, "well", 4<<20)
	wellImage := make([]byte, well.Size())
	image := make([]byte, sick.Size())
	writeBlocks(t, sick, image, 0, 30, "write")
	ok(t, sick.Flush())
	fillPool(t, sick, image, 30*BlockSize)
	segs := segmentsOf(t, fsys, sick.ID())
	if len(segs) < 8 {
		t.Fatalf("%d segments hold the pool", len(segs))
	}
	s.abandon()
	fsys.Kill()
	flip(fsys, segs[1], 4*wal.PageSize+100) // later records prove that it was durable
	s = openStore(t, fsys, tightOptions())
	if _, err := s.OpenVolume(context.Background(), sick.ID()); !errors.Is(err, ErrFailed) || !errors.Is(err, ErrCorrupt) {
		t.Fatalf("attach with a corrupt journal: %v", err)
	}
	well = attach(t, s, well.ID())
	writeBlocks(t, well, wellImage, 0, 40, "writes beside a corrupt journal")
	if got := segmentsOf(t, fsys, sick.ID()); len(got) != len(segs) {
		t.Errorf("%d of %d segments of the corrupt journal are kept", len(got), len(segs))
	}
	before := s.pool.Stats()
	ok(t, s.DeleteVolume(sick.ID()))
	after := s.pool.Stats()
	if after.InUse != before.InUse-len(segs) || after.Free != before.Free+len(segs) {
		t.Errorf("deletion of a volume of %d segments: %+v before, %+v after", len(segs), before, after)
	}
	foldAll(t, s)
	for range 3 { // the budget is the same as ever
		n := fillPool(t, well, wellImage, 1<<20)
		if n < 60 {
			t.Errorf("after the deletion %d blocks fill the pool", n)
		}
		if st := s.pool.Stats(); st.Bytes != after.Bytes {
			t.Errorf("the pool has grown beyond its budget: %+v, %+v before", st, after)
		}
		foldAll(t, s)
	}
	wantImage(t, readAll(t, well), wellImage, "other volume")
	ok(t, well.Close())
	ok(t, s.Close())
	s = openStore(t, fsys, tightOptions())
	wantImage(t, readAll(t, attach(t, s, well.ID())), wellImage, "other volume after reopening")
	wantClean(t, s)
	ok(t, s.Close())
}

// A volume that passed IdleBytes after its first write was folded after MaxAge, not
// IdleAfter after its last write: the worker slept. The journal stays small (I9).
func TestIdleVolumeIsFolded(t *testing.T) {
	o := tightOptions()
	o.FoldBytes, o.IdleBytes, o.IdleAfter = 700<<10, 64<<10, 100*time.Millisecond
	s := openStore(t, vfs.NewMem(), o)
	stop := runStore(t, s)
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 1, "first write")
	folded := func() bool {
		v.mu.RLock()
		defer v.mu.RUnlock()
		return v.mu.pos.Seq > 0
	}
	time.Sleep(300 * time.Millisecond) // the workers go to sleep until MaxAge
	if folded() {
		t.Error("folded below IdleBytes")
	}
	writeBlocks(t, v, image, 4*BlockSize, 40, "writes past IdleBytes")
	waitFor(t, 20*time.Second, "idle fold", folded)
	wantImage(t, readAll(t, v), image, "volume")
	stop()
	ok(t, s.Close())
}

// I5: damage of more slots than one commit holds was never recorded.
func TestMuchDamageIsRecorded(t *testing.T) {
	const n = 20000
	fsys := vfs.NewMem()
	s := openStore(t, fsys, tightOptions())
	for i := range n {
		var d dedup.Damage
		d.Slot.Chunk[0], d.Slot.Chunk[1] = byte(i/dedup.MaxSlots), 1
		d.Slot.Slot = uint16(i % dedup.MaxSlots)
		d.Fingerprint[3] = 1
		d.File, d.Reason = fmt.Sprintf("%0100d.chunks", i), "checksum of the group"
		s.onDamage(d)
	}
	ok(t, s.damageStep())
	if got := len(s.scan(keyDamage)); got != n {
		t.Errorf("%d of %d damaged slots are recorded", got, n)
	}
	crashed := crashedClone(t, fsys, tightOptions())
	if got := len(crashed.scan(keyDamage)); got != n {
		t.Errorf("%d of %d damaged slots are recorded after a power cut", got, n)
	}
	ok(t, s.Close())
}

// I9: on a disk full to its last page the open chunk file could not be sealed, and no
// collection, by hand or by itself, could free anything.
func TestCollectOnDiskFullToTheLastPage(t *testing.T) {
	for _, auto := range []bool{false, true} {
		t.Run(fmt.Sprint("auto=", auto), func(t *testing.T) {
			fsys := vfs.NewFaulty(vfs.NewMem())
			s := openStore(t, fsys, tightOptions())
			keep := newVolume(t, s, "keep", 1<<20)
			image := make([]byte, keep.Size())
			v := newVolume(t, s, "v", 1<<20)
			all := make([]byte, v.Size())
			for i := range int64(5) { // garbage with something live between
				writeBlocks(t, keep, image, i*BlockSize, 1, "write")
				writeBlocks(t, v, all, i*20*BlockSize+256<<10, 20, "write")
				foldAll(t, s)
			}
			ok(t, v.Close())
			ok(t, s.DeleteVolume(v.ID()))
			stored := s.chunks.Stats().Stored
			if stored < 400<<10 {
				t.Fatalf("%d bytes are stored", stored)
			}
			if len(filesBelow(t, fsys, dirChunks, ".open")) == 0 {
				t.Fatal("no chunk file is open")
			}
			var freed atomic.Bool
			fsys.SetHook(func(op vfs.Op) error { // no page is left until a reserve file goes
				switch {
				case op.Kind == vfs.OpRemove && strings.Contains(op.Name, "/reserve/"):
					freed.Store(true)
				case op.Kind == vfs.OpWrite && strings.Contains(op.Name, "/chunks/") && !freed.Load():
					return vfs.ErrNoSpace
				}
				return nil
			})
			stop := func() {}
			if auto {
				s.setFull(true, ErrNoSpace)
				stop = runStore(t, s)
			} else {
				res := must(s.Collect(context.Background()))(t)
				if res.FreedBytes < stored/2 {
					t.Errorf("collection freed %d of %d bytes", res.FreedBytes, stored)
				}
				stop = runStore(t, s)
			}
			waitFor(t, 20*time.Second, "collection frees the deleted volume", func() bool {
				return s.chunks.Stats().Stored < stored/2
			})
			waitFor(t, 20*time.Second, "the store is not full any more", func() bool { return !s.isFull() })
			waitFor(t, 20*time.Second, "reserve is whole", func() bool {
				return s.reserve.bytes() >= int64(s.reserve.base)*s.reserve.fileBytes
			})
			stop()
			if !freed.Load() {
				t.Error("nothing of the reserve was needed")
			}
			wantImage(t, readAll(t, keep), image, "volume")
			wantClean(t, s)
			ok(t, keep.Close())
			ok(t, s.Close())
		})
	}
}

// I5, I8: one journal segment whose header cannot be read kept the whole store from
// opening, or what had been flushed into it was thrown away. Its first record says whose it
// is; only one of which nothing can be read keeps the store closed.
func TestUnreadableSegmentHeader(t *testing.T) {
	for _, c := range []struct {
		name    string
		whole   bool // not only the header is unreadable
		durable bool // the segment holds flushed records that are not folded
		silent  bool // and no mark says that they were
	}{{name: "not needed"}, {name: "not needed, all of it", whole: true},
		{name: "needed", durable: true}, {name: "needed, no mark", durable: true, silent: true}, {name: "needed, all of it", whole: true, durable: true}} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			fsys := vfs.NewFaulty(mem)
			s := openStore(t, fsys, tightOptions())
			v, other := newVolume(t, s, "v", 1<<20), newVolume(t, s, "other", 1<<20)
			image, otherImage := make([]byte, v.Size()), make([]byte, other.Size())
			writeBlocks(t, v, image, 0, 3, "write")
			writeBlocks(t, other, otherImage, 0, 3, "write")
			ok(t, other.Flush())
			ok(t, v.Flush())
			if !c.silent {
				v.markStep()
			}
			seg := segmentsOf(t, mem, v.ID())[0]
			if c.durable {
				s.abandon()
				mem.Kill()
			} else {
				ok(t, v.Close())
				ok(t, other.Close())
				foldAll(t, s)
				ok(t, s.Close())
			}
			fsys.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpRead && op.Name == seg && (op.Off == 0 || c.whole) {
					return syscall.EIO
				}
				return nil
			})
			if c.whole { // nobody knows whose writes it holds
				if s, err := Open(fsys, testDir, tightOptions()); err == nil || !strings.Contains(err.Error(), seg) {
					t.Errorf("open: %v", err)
					s.Close()
				}
				fsys.SetHook(nil)
			}
			s = openStore(t, fsys, tightOptions())
			other = attach(t, s, other.ID())
			wantImage(t, readAll(t, other), otherImage, "other volume")
			writeBlocks(t, other, otherImage, 8*BlockSize, 40, "write beside an unreadable segment")
			v2, err := s.OpenVolume(context.Background(), v.ID())
			ok(t, err) // its first record says whose it is
			wantImage(t, readAll(t, v2), image, "volume")
			writeBlocks(t, v2, image, 8*BlockSize, 3, "write")
			ok(t, v2.Close())
			ok(t, other.Close())
			foldAll(t, s)
			ok(t, s.Close())
			fsys.SetHook(nil) // the disk reads again: nothing was thrown away
			s = openStore(t, fsys, tightOptions())
			v2 = attach(t, s, v.ID())
			wantImage(t, readAll(t, v2), image, "volume once the disk reads again")
			other = attach(t, s, other.ID())
			wantImage(t, readAll(t, other), otherImage, "other volume once the disk reads again")
			ok(t, v2.Close())
			ok(t, other.Close())
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// A clone or snapshot of a volume whose journal cannot be read back waited for its root
// for ever, and with it whoever held a lock meanwhile.
func TestLostCutIsSaid(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, tightOptions())
	ctx := context.Background()
	sick := newVolume(t, s, "sick", 4<<20)
	image := make([]byte, sick.Size())
	writeBlocks(t, sick, image, 0, 30, "write")
	snap := must(s.CreateSnapshot(ctx, sick.ID(), "snap", nil))(t)
	clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromSnapshot: snap.ID}))(t)
	writeBlocks(t, sick, image, 40*BlockSize, 30, "write")
	ok(t, sick.Flush())
	fillPool(t, sick, image, 80*BlockSize)
	segs := segmentsOf(t, fsys, sick.ID())
	s.abandon()
	fsys.Kill()
	flip(fsys, segs[1], 4*wal.PageSize+100)
	s = openStore(t, fsys, tightOptions())
	for range 2 {
		if _, err := s.OpenVolume(ctx, clone.ID); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), sick.ID()) {
			t.Errorf("open: %v; want ErrFailed that names %s", err, sick.ID())
		}
		if _, err := s.WaitSnapshot(ctx, snap.ID); !errors.Is(err, ErrFailed) {
			t.Errorf("wait: %v", err)
		}
	}
	ok(t, s.DeleteVolume(sick.ID()))
	if _, err := s.OpenVolume(ctx, clone.ID); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open after the source is deleted: %v", err)
	}
	ok(t, s.DeleteVolume(clone.ID))
	ok(t, s.DeleteSnapshot(snap.ID))
	s.abandon()
}

// A fold that cannot read a map node for a moment goes on beside it, and yet knows how
// many blocks are mapped then.
func TestMappedBesideUnreadNode(t *testing.T) {
	unread := 0
	for fails := 1; fails < 8; fails++ { // with eight it cannot be read for the count either
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		s := openStore(t, fsys, tightOptions())
		id := newVolume(t, s, "v", 1<<20).ID()
		v := s.loaded(id)
		writeAt(t, v, noise(1, 20*BlockSize), 0)
		ok(t, v.Close())
		foldAll(t, s)
		ok(t, s.Close())
		s = openStore(t, fsys, tightOptions())
		v = attach(t, s, id)
		writeAt(t, v, noise(2, 4*BlockSize), 18*BlockSize) // two blocks more
		left := fails
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpRead && strings.Contains(op.Name, dirChunks) && left > 0 {
				left--
				return syscall.EIO
			}
			return nil
		})
		if _, err := s.foldOnce(v); err != nil {
			t.Fatalf("%d failed reads: %v", fails, err)
		}
		fsys.SetHook(nil)
		unread += fails - left
		ok(t, s.damageStep())
		var rec volumeRecord
		must(get(s.cat, keyVolume+id, &rec))(t)
		if rec.Mapped != 22 {
			t.Errorf("%d failed reads: %d blocks are mapped, want 22", fails, rec.Mapped)
		}
		ok(t, v.Close())
		ok(t, s.Close())
	}
	if unread < 7 {
		t.Errorf("only %d reads failed", unread)
	}
}

// A root that cannot be read for a moment is kept below a new one; when that cannot be read
// for a moment either, nothing is lost: the volume, a collection and a check read all of it.
func TestRootUnreadTwice(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 20, "write")
	for i := range int64(3) {
		foldAll(t, s)
		id := v.ID()
		ok(t, v.Close())
		ok(t, s.Close())
		s = openStore(t, fsys, tightOptions()) // nothing is in memory
		v = attach(t, s, id)
		writeBlocks(t, v, image, (30+i)*BlockSize, 1, "write over a root that cannot be read")
		failed := 0
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpRead && strings.Contains(op.Name, "/"+dirChunks+"/") {
				failed++
				return syscall.EIO
			}
			return nil
		})
		for range unreadTries {
			if did, err := s.foldOnce(v); did || !errors.Is(err, ErrCorrupt) {
				t.Fatalf("fold above a root that cannot be read: %v, %v", did, err)
			}
		}
		must(s.foldOnce(v))(t)
		fsys.SetHook(nil)
		if failed == 0 {
			t.Fatal("the root was read")
		}
		wantImage(t, readAll(t, v), image, fmt.Sprintf("volume %d times later", i+1))
	}
	must(s.Collect(context.Background()))(t)
	wantImage(t, readAll(t, v), image, "collected volume")
	for _, p := range problems(t, s) {
		if !strings.Contains(p.Detail, "blocks are mapped") || !p.Repairable { // those were not counted
			t.Errorf("check: %v", p)
		}
	}
	ok(t, v.Close())
	ok(t, s.Close())
}

// lostNode is a source of map nodes, one of which cannot be read any more.
type lostNode struct {
	blockmap.NodeSource
	lost  dedup.Slot
	reads int
}

func (l *lostNode) ReadNode(s dedup.Slot) ([]byte, error) {
	if l.reads++; s == l.lost {
		return nil, syscall.EIO
	}
	return l.NodeSource.ReadNode(s)
}

// A map node that is lost for good made each fold that meets it read the whole map, for a
// count that could not come about.
func TestFoldsBesideALostNode(t *testing.T) {
	s := openStore(t, vfs.NewMem(), scaleOptions())
	v := newVolume(t, s, "v", 64<<20)
	for i := range int64(8000) { // extents of one block, so that there are many nodes
		writeAt(t, v, noise(uint64(i), 512), i*2*BlockSize)
		if i%1000 == 999 {
			foldAll(t, s)
		}
	}
	nodes := &lostNode{NodeSource: s.chunks}
	s.tree = blockmap.New(nodes, 0)
	visit := func(slot dedup.Slot, level int, _ []blockmap.Extent) (bool, error) {
		if level == 0 {
			nodes.lost = slot
		}
		return nodes.reads < 20, nil
	}
	ok(t, s.tree.Walk(v.mu.root, visit, blockmap.WalkOptions{}))
	var first uint64 // block that the lost leaf begins with
	nodes.reads = 0
	ok(t, s.tree.Walk(v.mu.root, func(dedup.Slot, int, []blockmap.Extent) (bool, error) { return true, nil }, blockmap.WalkOptions{
		OnError: func(_ dedup.Slot, from, _ uint64, _ error) error { first = from; return nil },
	}))
	all := nodes.reads
	for i := range int64(5) {
		writeAt(t, v, noise(uint64(i)+9000, BlockSize), (int64(first)+2*i)*BlockSize)
		nodes.reads = 0
		foldAll(t, s)
		var rec volumeRecord
		must(get(s.cat, keyVolume+v.ID(), &rec))(t)
		if nodes.reads >= all || rec.Mapped != 8000 {
			t.Errorf("a fold of one block reads %d of %d nodes, and has %d blocks mapped", nodes.reads, all, rec.Mapped)
		}
	}
	ok(t, s.Close())
}
