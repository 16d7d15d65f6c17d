package blockstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

// Many small volumes and a large one are folded together, into more than one chunk of
// blocks and of nodes, and each operation on the chunk files fails once. No volume has
// gone on then, each reads as before, and the fold is made again.
func TestSharedFoldFailsAtEveryOperation(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	o := smallOptions()
	o.SegmentBytes, o.JournalBytes, o.UnsyncedBytes, o.ChunkFileBytes = 32<<10, 128<<20, 64<<20, 64<<20
	s := openStore(t, fsys, o)
	large := newVolume(t, s, "large", 16<<20)
	image := make([]byte, large.Size())
	copy(image, noise(1, (2*dedup.MaxSlots+5)*BlockSize))
	for off := int64(0); off < (2*dedup.MaxSlots+5)*BlockSize; off += BlockSize {
		writeAt(t, large, image[off:off+BlockSize], off)
	}
	vols := []*Volume{large}
	small := noise(2, BlockSize)
	for i := range dedup.MaxSlots + 1 { // each has a root of its own
		v := newVolume(t, s, fmt.Sprint(i), 1<<20)
		writeAt(t, v, small, 0)
		vols = append(vols, v)
	}
	failures := 0
	for n := 0; ; n++ {
		seen, hit := 0, ""
		fsys.SetHook(func(op vfs.Op) error {
			if !strings.HasPrefix(op.Name, path.Join(testDir, dirChunks)) || op.Kind != vfs.OpCreate && op.Kind != vfs.OpWrite && op.Kind != vfs.OpDatasync && op.Kind != vfs.OpSyncDir {
				return nil
			}
			if seen++; seen-1 == n {
				hit = fmt.Sprintf("%v of %s", op.Kind, op.Name)
				return syscall.EIO
			}
			return nil
		})
		before := s.cat.Durable()
		did, err := s.foldTogether(vols)
		fsys.SetHook(nil)
		if hit == "" {
			ok(t, err)
			break
		}
		failures++
		if did || s.cat.Durable() != before { // a file that an append has lost fails its sync without saying why
			t.Fatalf("%s: did %v, commit %d was %d", hit, did, s.cat.Durable(), before)
		}
		wantImage(t, readAll(t, large), image, hit)
	}
	if failures < 5 {
		t.Errorf("%d folds failed", failures)
	}
	foldAll(t, s)
	wantImage(t, readAll(t, large), image, "large volume")
	got := make([]byte, BlockSize)
	for _, v := range []*Volume{vols[1], vols[len(vols)-1]} {
		must(v.ReadAt(got, 0))(t)
		wantImage(t, got, small, "small volume")
	}
	ok(t, s.Close())
	s = openStore(t, mem, o) // of an abandoned file a check tells until the next start
	wantClean(t, s)
	ok(t, s.Close())
}

// A fold that meets a record which it cannot read, of its volume or of a cut that it owes
// a root, changes nothing; it is made again when the record can be read.
func TestFoldMeetsUnreadableRecord(t *testing.T) {
	for _, prefix := range []string{keyVolume, keyCut} {
		s := openStore(t, vfs.NewMem(), smallOptions())
		v := newVolume(t, s, "v", 1<<20)
		image := make([]byte, v.Size())
		writeBlocks(t, v, image, 0, 4, "write")
		snap := must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
		key := s.scan(prefix)[0].Key
		restore := spoil(t, s, key)
		before := s.cat.Durable()
		if did, err := s.foldOnce(v); did || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v, %v", key, did, err)
		}
		if s.cat.Durable() != before {
			t.Errorf("%s: something was committed", key)
		}
		wantImage(t, readAll(t, v), image, "volume")
		restore()
		foldAll(t, s)
		wantImage(t, readAll(t, v), image, "volume after the fold")
		wantSnapshot(t, s, snap.ID, image)
		ok(t, v.Close())
		wantClean(t, s)
		ok(t, s.Close())
	}
}

// A page of the journal is bad, and while the fold looks which sectors of it are, the disk
// answers an error: the volume fails closed, and no sector is given up for that.
func TestFoldCannotReadABadPage(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := openStore(t, fsys, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	image := make([]byte, v.Size())
	writeBlocks(t, v, image, 0, 3, "write")
	ok(t, v.Flush())
	seg := segmentsOf(t, mem, v.ID())[0]
	mem.Corrupt(seg, 4*BlockSize, func(p []byte) { p[5] ^= 1 }) // the payload of the second record
	reads, bad := 0, false
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpRead || op.Name != seg {
			return nil
		}
		reads++
		if bad = bad || op.Off == 4*BlockSize; bad && reads > 2 {
			return syscall.EIO
		}
		return nil
	})
	if did, err := s.foldOnce(v); did || !errors.Is(err, syscall.EIO) || !bad {
		t.Fatalf("fold: %v, %v; the bad page was read: %v", did, err, bad)
	}
	if _, err := v.WriteAt(noise(1, BlockSize), 0); !errors.Is(err, ErrFailed) {
		t.Errorf("write: %v, want ErrFailed", err)
	}
	if err := v.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("close: %v, want ErrFailed", err)
	}
	fsys.SetHook(nil)
	foldAll(t, s)
	v = attach(t, s, v.ID())
	if lost := readDamaged(t, v, image, "volume"); !slices.Equal(lost, []int64{1}) {
		t.Errorf("blocks %v are lost, want the second alone", lost)
	}
	ok(t, v.Close())
	ok(t, s.Close())
}

// onMessage calls do when something is logged.
type onMessage struct {
	slog.Handler
	text string
	do   func()
}

func (h *onMessage) Enabled(context.Context, slog.Level) bool { return true }

func (h *onMessage) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.text {
		h.do()
	}
	return nil
}

// The base of a block is damaged, and no descriptor is to be had while the fold looks
// which sectors are: it is made again, and gives up those alone that are damaged.
func TestFoldCannotLookAtDamage(t *testing.T) {
	x := newSick(t)
	fsys := vfs.NewFaulty(x.fsys)
	o := sickOptions()
	h := &onMessage{text: "folding over a damaged block", Handler: slog.DiscardHandler, do: func() {}}
	o.Logger = slog.New(h)
	s := openStore(t, fsys, o)
	v := attach(t, s, x.ids["b"])
	image := x.images[v.ID()]
	hurt(t, s, x.fsys, v, 50)
	part := noise(3, sectorBytes)
	writeAt(t, v, part, 50*BlockSize)
	copy(image[50*BlockSize:], part)
	h.do = func() {
		s.blobs.Close() // as when enough other files were read meanwhile
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpOpen && strings.Contains(op.Name, "/"+dirChunks+"/") {
				return syscall.EMFILE
			}
			return nil
		})
	}
	if did, err := s.foldOnce(v); did || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("fold: %v, %v, want EMFILE", did, err)
	}
	h.do = func() {}
	fsys.SetHook(nil)
	foldAll(t, s)
	got := make([]byte, sectorBytes)
	must(v.ReadAt(got, 50*BlockSize))(t)
	wantImage(t, got, part, "the sector that was written")
	lost := readDamaged(t, v, image, "volume")
	if !slices.Contains(lost, 50) || len(lost) > 8 {
		t.Errorf("blocks %v are lost", lost)
	}
	writeAt(t, v, image[48*BlockSize:56*BlockSize], 48*BlockSize)
	foldAll(t, s)
	wantImage(t, readAll(t, v), image, "volume written anew")
	ok(t, v.Close())
	ok(t, s.Close())
}
