package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

func openScratch(t testing.TB, s *Store, id string) *Scratch {
	t.Helper()
	return must(s.OpenScratch(context.Background(), id))(t)
}

// layered makes a closed volume with data in its map, in two layers of its journal and
// nowhere: one is frozen for a snapshot, and all of it is durable.
func layered(t testing.TB, s *Store, name string, seed uint64) (id string, image []byte) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	v := newVolume(t, s, name, 2<<20)
	image = make([]byte, v.Size())
	some := func() {
		for range 12 {
			off, n := scratchSpan(rng, v.Size())
			if rng.IntN(4) == 0 {
				ok(t, v.Discard(off, n))
				clear(image[off : off+n])
				continue
			}
			p := noise(rng.Uint64(), int(n))
			writeAt(t, v, p, off)
			copy(image[off:], p)
		}
	}
	some()
	foldAll(t, s)
	some()
	must(s.CreateSnapshot(context.Background(), v.ID(), name+"-s", nil))(t)
	some()
	ok(t, v.Close())
	return v.ID(), image
}

// scratchSpan is a range of blocks, of sectors, or of several regions.
func scratchSpan(rng *rand.Rand, size int64) (off, n int64) {
	switch rng.IntN(5) {
	case 0, 1:
		off, n = rng.Int64N(size/BlockSize)*BlockSize, BlockSize*(1+rng.Int64N(8))
	case 2, 3:
		off, n = rng.Int64N(size/sectorBytes)*sectorBytes, sectorBytes*(1+rng.Int64N(20))
	default:
		off, n = rng.Int64N(size/sectorBytes)*sectorBytes, sectorBytes*(1+rng.Int64N(4*scratchRegion/sectorBytes))
	}
	return off, min(n, size-off)
}

// scribble changes or reads one range and compares it with image, which it keeps equal.
func scribble(t testing.TB, rng *rand.Rand, c *Scratch, image []byte) {
	t.Helper()
	off, n := scratchSpan(rng, int64(len(image)))
	switch rng.IntN(8) {
	case 0:
		ok(t, c.Discard(off, n))
		clear(image[off : off+n])
	case 1:
		ok(t, c.WriteZeroes(off, n))
		clear(image[off : off+n])
	case 2, 3, 4:
		p := noise(rng.Uint64(), int(n))
		if got, err := c.WriteAt(p, off); err != nil || got != len(p) {
			t.Fatalf("write %d+%d: %d, %v", off, n, got, err)
		}
		copy(image[off:], p)
		clear(p) // not kept
	default:
		wantScratch(t, c, image, off, n)
	}
}

// wantScratch compares n bytes at off.
func wantScratch(t testing.TB, c *Scratch, image []byte, off, n int64) {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, int(n))
	if _, err := c.ReadAt(got, off); err != nil {
		t.Fatalf("read %d+%d: %v", off, n, err)
	}
	wantImage(t, got, image[off:off+n], fmt.Sprintf("throw-away layer from %d on", off))
}

func wantNoScratchFiles(t testing.TB, fsys vfs.FS) {
	t.Helper()
	if names, err := fsys.ReadDir(path.Join(testDir, dirScratch)); len(names) > 0 || err != nil && !errors.Is(err, vfs.ErrNotExist) {
		t.Fatalf("scratch files: %q, %v", names, err)
	}
}

// The layer reads as what was written to it above the volume, whatever becomes of the
// volume's journal below, and the volume stays as it was.
func TestScratchAgainstModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := openStore(t, vfs.NewMem(), smallOptions())
			id, volume := layered(t, s, "v", seed)
			rng := rand.New(rand.NewPCG(seed, 5))
			c := openScratch(t, s, id)
			image := bytes.Clone(volume)
			for range 150 {
				scribble(t, rng, c, image)
				switch rng.IntN(50) {
				case 0:
					must(s.foldOnce(s.loaded(id)))(t)
				case 1:
					must(s.Collect(context.Background()))(t)
				case 2:
					if size := int64(len(image)); size < 4<<20 {
						must(s.ResizeVolume(id, size+SizeStep))(t)
						image = append(image, make([]byte, SizeStep)...)
						volume = append(volume, make([]byte, SizeStep)...)
					}
				case 3:
					ok(t, c.Flush())
				}
			}
			if c.Size() != int64(len(image)) || c.ID() != id || c.SectorBytes() != 512 {
				t.Errorf("%s has %d bytes in sectors of %d", c.ID(), c.Size(), c.SectorBytes())
			}
			wantScratch(t, c, image, 0, c.Size())
			ok(t, c.Close())
			v := attach(t, s, id)
			wantImage(t, readAll(t, v), volume, "volume afterwards")
			ok(t, v.Close())
			foldAll(t, s)
			wantClean(t, s)
			ok(t, s.Close())
		})
	}
}

// A layer changes no byte of any file that has a name, and takes no journal segment.
func TestScratchLeavesFilesAlone(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, smallOptions())
	id, volume := layered(t, s, "v", 1)
	pool, commit := s.pool.Stats(), s.cat.Durable()
	ok(t, openScratch(t, s, id).Close()) // makes the directory
	before := fsys.Digest()
	rng := rand.New(rand.NewPCG(1, 1))
	image := bytes.Clone(volume)
	c := openScratch(t, s, id)
	for range 200 {
		scribble(t, rng, c, image)
	}
	ok(t, c.Flush())
	s.loaded(id).markStep() // there is nothing to mark
	if fsys.Digest() != before {
		t.Error("files differ while the layer is in use")
	}
	ok(t, c.Close())
	if fsys.Digest() != before {
		t.Error("files differ after Close")
	}
	if got := s.pool.Stats(); got != pool || s.cat.Durable() != commit {
		t.Errorf("journal pool %+v, commit %d; before %+v, %d", got, s.cat.Durable(), pool, commit)
	}
	c = openScratch(t, s, id)
	wantScratch(t, c, volume, 0, c.Size()) // the next layer begins anew
	ok(t, s.Close())
}

// I1, I4: after the death of the process or of the power the volume is as it was before
// the layer, and no file of it is left.
func TestScratchCrash(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 9))
		fsys := vfs.NewMem()
		s := openStore(t, fsys, smallOptions())
		id, volume := layered(t, s, "v", seed)
		image := bytes.Clone(volume)
		c := openScratch(t, s, id)
		for range 40 {
			scribble(t, rng, c, image)
		}
		s.abandon()
		if seed%3 == 0 {
			fsys.Kill()
		} else {
			fsys.Crash(rng, rng.Float64())
		}
		if err := c.Discard(0, BlockSize); err != nil { // in memory: the dead may do that
			t.Fatal(err)
		}
		s = openStore(t, fsys, smallOptions())
		wantNoScratchFiles(t, fsys)
		wantClean(t, s)
		v := attach(t, s, id)
		wantImage(t, readAll(t, v), volume, fmt.Sprintf("seed %d: volume after a crash", seed))
		ok(t, s.Close())
	}
}

// A power loss that brings a file's name back leaves nothing behind the next start.
func TestScratchLeftover(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, smallOptions())
	id, _ := layered(t, s, "v", 1)
	ok(t, openScratch(t, s, id).Close())
	ok(t, s.Close())
	name := path.Join(testDir, dirScratch, "00000001-00000001")
	f := must(fsys.Create(name))(t)
	must(f.WriteAt(noise(1, 1<<20), 0))(t)
	ok(t, errors.Join(f.Sync(), f.Close(), fsys.SyncDir(path.Dir(name))))
	before := used(t, fsys)
	s = openStore(t, fsys, smallOptions())
	wantNoScratchFiles(t, fsys)
	if freed := before - used(t, fsys); freed < 1<<20 {
		t.Errorf("%d bytes were freed", freed)
	}
	ok(t, s.Close())
}

// Whatever fails while a layer is opened, the volume is not open then.
func TestScratchOpenFails(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	id, _ := layered(t, s, "v", 1)
	for n := int64(0); ; n++ {
		fsys.FailNth(n, syscall.EIO, false)
		c, err := s.OpenScratch(context.Background(), id)
		fsys.SetHook(nil)
		if err == nil {
			if n < 3 {
				t.Errorf("opened after %d operations", n)
			}
			ok(t, c.Close())
			break
		}
		if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), id) {
			t.Errorf("operation %d fails: %v", n, err)
		}
		if info := must(s.Volume(id))(t); info.Open {
			t.Errorf("operation %d fails: volume is open", n)
		}
	}
	ok(t, s.Close())
	s = openStore(t, fsys, smallOptions())
	wantNoScratchFiles(t, fsys) // one could not be removed
	ok(t, s.Close())
}

// One at a time has a volume open, in whatever way.
func TestScratchIsExclusive(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, vfs.NewMem(), smallOptions())
	id, _ := layered(t, s, "v", 1)
	wantErr := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	c := openScratch(t, s, id)
	if info := must(s.Volume(id))(t); !info.Open {
		t.Error("volume is not open")
	}
	_, err := s.OpenVolume(ctx, id)
	wantErr("OpenVolume beside a layer", err, ErrInUse)
	_, err = s.OpenScratch(ctx, id)
	wantErr("second layer", err, ErrInUse)
	wantErr("delete", s.DeleteVolume(id), ErrInUse)
	foldAll(t, s)
	wantErr("delete of a folded volume", s.DeleteVolume(id), ErrInUse)
	ok(t, c.Close())
	wantErr("second Close", c.Close(), ErrClosed)
	if info := must(s.Volume(id))(t); info.Open {
		t.Error("volume is still open")
	}
	if s.loaded(id) != nil {
		t.Error("volume stays in memory")
	}
	p := make([]byte, BlockSize)
	_, err = c.ReadAt(p, 0)
	wantErr("read after Close", err, ErrClosed)
	_, err = c.WriteAt(p, 0)
	wantErr("write after Close", err, ErrClosed)
	wantErr("discard after Close", c.Discard(0, BlockSize), ErrClosed)
	wantErr("flush after Close", c.Flush(), ErrClosed)

	v := attach(t, s, id)
	_, err = s.OpenScratch(ctx, id)
	wantErr("layer above an open volume", err, ErrInUse)
	ok(t, v.Close())
	c = openScratch(t, s, id)
	_, err = c.WriteAt(p[:100], 0)
	wantErr("write of 100 bytes", err, ErrInvalid)
	_, err = c.ReadAt(p, c.Size())
	wantErr("read behind the end", err, ErrRange)
	wantErr("discard behind the end", c.Discard(c.Size()-512, 1024), ErrRange)
	ok(t, c.Close())
	ok(t, s.DeleteVolume(id))
	_, err = s.OpenScratch(ctx, id)
	wantErr("layer above nothing", err, ErrNotFound)
	_, err = s.OpenScratch(ctx, "v-1")
	wantErr("layer above no ID", err, ErrInvalid)

	id, _ = layered(t, s, "w", 1)
	c = openScratch(t, s, id)
	ok(t, s.Close())
	wantErr("write after the store's Close", second(c.WriteAt(p, 0)), ErrClosed)
	_, err = s.OpenScratch(ctx, id)
	wantErr("layer of a closed store", err, ErrClosed)
}

// A volume that failed closed has lost writes, or may have: nobody may mount it.
func TestScratchOfAFailedVolume(t *testing.T) { // I8
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := openStore(t, fsys, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	id := v.ID()
	image := noise(1, 3*BlockSize)
	writeAt(t, v, image, 0)
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync && strings.Contains(op.Name, "/journal/") {
			return syscall.EIO
		}
		return nil
	})
	if err := v.Close(); !errors.Is(err, ErrFailed) {
		t.Fatalf("close: %v", err)
	}
	fsys.SetHook(nil)
	if _, err := s.OpenScratch(context.Background(), id); !errors.Is(err, ErrFailed) {
		t.Errorf("layer above a failed volume: %v", err)
	}
	foldAll(t, s) // saves what was acknowledged
	c := openScratch(t, s, id)
	wantScratch(t, c, image, 0, int64(len(image)))
	ok(t, c.Close())

	v = attach(t, s, id)
	for i := range 20 {
		writeAt(t, v, noise(uint64(i), BlockSize), int64(i)*BlockSize)
		ok(t, v.Flush())
	}
	s.abandon()
	mem.Kill()
	flip(mem, segmentsOf(t, mem, id)[0], 4*wal.PageSize+100) // later records prove that it was durable
	s = openStore(t, fsys, tightOptions())
	if _, err := s.OpenScratch(context.Background(), id); !errors.Is(err, ErrFailed) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("layer above a corrupt journal: %v", err)
	}
	ok(t, s.Close())
}

// Snapshots and clones that are taken meanwhile see the volume and never the layer (I4).
func TestScratchAndSnapshots(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, vfs.NewMem(), smallOptions())
	stop := runStore(t, s)
	id, volume := layered(t, s, "v", 1)
	c := openScratch(t, s, id)
	image := bytes.Clone(volume)
	rng := rand.New(rand.NewPCG(1, 1))
	var copies []string
	for i := range 4 {
		for range 20 {
			scribble(t, rng, c, image)
		}
		sn := must(s.CreateSnapshot(ctx, id, fmt.Sprint("s", i), nil))(t)
		for _, spec := range []VolumeSpec{{FromSnapshot: sn.ID}, {FromVolume: id}} {
			spec.Name = fmt.Sprint("c", len(copies))
			copies = append(copies, must(s.CreateVolume(spec))(t).ID)
		}
		must(s.WaitSnapshot(ctx, sn.ID))(t)
	}
	wantScratch(t, c, image, 0, c.Size())
	for _, id := range copies {
		v := attach(t, s, id)
		wantImage(t, readAll(t, v), volume, "copy")
		ok(t, v.Close())
	}
	// A clone that waits for its cut can be opened so, and has its source's image.
	v := attach(t, s, copies[0])
	writeAt(t, v, noise(3, BlockSize), 0)
	clone := must(s.CreateVolume(VolumeSpec{Name: "late", FromVolume: v.ID()}))(t)
	d := openScratch(t, s, clone.ID)
	wantScratch(t, d, append(noise(3, BlockSize), volume[BlockSize:]...), 0, d.Size())
	ok(t, errors.Join(c.Close(), d.Close(), v.Close()))
	stop()
	wantClean(t, s)
	ok(t, s.Close())
}

// A full disk fails a write and nothing else: what was written before reads back, and
// Close returns the space.
func TestScratchOnAFullDisk(t *testing.T) { // I9
	fsys := vfs.NewMem()
	s := openStore(t, fsys, smallOptions())
	id, volume := layered(t, s, "v", 1)
	before := used(t, fsys)
	c := openScratch(t, s, id)
	image := bytes.Clone(volume)
	rng := rand.New(rand.NewPCG(1, 1))
	fsys.SetCapacity(before + 300<<10)
	full := 0
	for range 300 {
		off, n := scratchSpan(rng, c.Size())
		p := noise(rng.Uint64(), int(n))
		got, err := c.WriteAt(p, off)
		copy(image[off:], p[:got])
		if err != nil {
			full++
			if !errors.Is(err, ErrNoSpace) || got%sectorBytes != 0 {
				t.Fatalf("write on a full disk: %d, %v", got, err)
			}
		} else if got != len(p) {
			t.Fatalf("%d of %d bytes without an error", got, len(p))
		}
		if rng.IntN(4) == 0 {
			ok(t, c.Discard(off, n)) // needs no space
			clear(image[off : off+n])
		}
		wantScratch(t, c, image, 0, c.Size())
	}
	if full == 0 || !s.Stats(false).Full {
		t.Errorf("%d writes failed, full is %v", full, s.Stats(false).Full)
	}
	ok(t, c.Close())
	if after := used(t, fsys); after != before {
		t.Errorf("%d bytes are used after Close, %d before", after, before)
	}
	wantScratch(t, openScratch(t, s, id), volume, 0, int64(len(volume)))
	ok(t, s.Close())
}

// A write that fails half-way leaves old sectors, new ones, and errors; nothing else (I5).
func TestScratchTornWrite(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	s := openStore(t, fsys, smallOptions())
	id, _ := layered(t, s, "v", 1)
	c := openScratch(t, s, id)
	old, fresh := noise(1, BlockSize), noise(2, BlockSize)
	for cut := 0; cut <= BlockSize; cut += 100 {
		must(c.WriteAt(old, 0))(t)
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpWrite {
				return vfs.ShortWrite{N: cut, Err: syscall.EIO}
			}
			return nil
		})
		n, err := c.WriteAt(fresh, 0)
		fsys.SetHook(nil)
		if n != cut/sectorBytes*sectorBytes || !errors.Is(err, syscall.EIO) {
			t.Fatalf("write cut at %d: %d, %v", cut, n, err)
		}
		for off := 0; off < BlockSize; off += sectorBytes {
			p := make([]byte, sectorBytes)
			want := fresh[off : off+sectorBytes]
			if off >= n {
				want = old[off : off+sectorBytes]
			}
			_, err := c.ReadAt(p, int64(off))
			torn := off < cut && off+sectorBytes > cut
			if re, isRead := errors.AsType[*ReadError](err); torn != (isRead && errors.Is(err, ErrCorrupt) && re.Offset == int64(off)) {
				t.Fatalf("write cut at %d, read at %d: %v", cut, off, err)
			}
			if !torn && !bytes.Equal(p, want) {
				t.Fatalf("write cut at %d: wrong bytes at %d", cut, off)
			}
		}
	}
	ok(t, s.Close())
}

// A disk that loses a page of the file is found out (I5).
func TestScratchDamage(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	id, volume := layered(t, s, "v", 1)
	c := openScratch(t, s, id)
	image := bytes.Clone(volume)
	copy(image[scratchRegion:], noise(1, 2*scratchRegion))
	must(c.WriteAt(image[scratchRegion:3*scratchRegion], scratchRegion))(t)
	must(c.file.WriteAt(make([]byte, 4096), scratchRegion+8192))(t)
	_, err := c.ReadAt(make([]byte, len(image)), 0)
	var re *ReadError
	if !errors.As(err, &re) || re.Volume != id || re.Offset != 2*scratchRegion+8192 || !errors.Is(err, ErrCorrupt) {
		t.Errorf("read of a lost page: %v", err)
	}
	wantScratch(t, c, image, 0, 2*scratchRegion+8192)
	wantScratch(t, c, image, 2*scratchRegion+12288, c.Size()-2*scratchRegion-12288)
	ok(t, s.Close())
}

// Many use a layer at once, beside folds, collections, snapshots and growth, until it is
// closed below them.
func TestScratchConcurrent(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, vfs.NewMem(), smallOptions())
	stop := runStore(t, s)
	id, volume := layered(t, s, "v", 1)
	c := openScratch(t, s, id)
	const users = 4
	part := c.Size() / users
	image := bytes.Clone(volume)
	var wg sync.WaitGroup
	for u := range int64(users) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(u), 1))
			mine := image[u*part : (u+1)*part]
			for range 150 {
				off, n := scratchSpan(rng, part)
				switch rng.IntN(4) {
				case 0:
					if err := c.Discard(u*part+off, n); err != nil {
						t.Errorf("discard: %v", err)
					}
					clear(mine[off : off+n])
				case 1:
					p := noise(rng.Uint64(), int(n))
					if _, err := c.WriteAt(p, u*part+off); err != nil {
						t.Errorf("write: %v", err)
					}
					copy(mine[off:], p)
				default:
					p := make([]byte, n)
					if _, err := c.ReadAt(p, u*part+off); err != nil || !bytes.Equal(p, mine[off:off+n]) {
						t.Errorf("read %d+%d: wrong, or %v", u*part+off, n, err)
					}
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 5 {
			_, err1 := s.CreateSnapshot(ctx, id, fmt.Sprint("s", i), nil)
			_, err2 := s.ResizeVolume(id, int64(3+i)<<20)
			_, err3 := s.Collect(ctx)
			if err := errors.Join(err1, err2, err3); err != nil {
				t.Errorf("beside the layer: %v", err)
			}
		}
	})
	wg.Wait()
	wantScratch(t, c, image, 0, int64(len(image)))
	for range users {
		wg.Go(func() {
			p := make([]byte, 3*BlockSize)
			for {
				_, err := c.WriteAt(p, 0)
				_, err2 := c.ReadAt(p, 0)
				if err == nil && err2 == nil {
					continue
				}
				if err != nil && !errors.Is(err, ErrClosed) || err2 != nil && !errors.Is(err2, ErrClosed) {
					t.Errorf("after Close: %v, %v", err, err2)
				}
				return
			}
		})
	}
	ok(t, c.Close())
	wg.Wait()
	v := attach(t, s, id)
	wantImage(t, readAll(t, v)[:len(volume)], volume, "volume afterwards")
	ok(t, v.Close())
	stop()
	wantClean(t, s)
	ok(t, s.Close())
}
