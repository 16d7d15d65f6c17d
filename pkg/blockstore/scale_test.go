package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

func scaleOptions() Options {
	o := smallOptions()
	o.JournalBytes, o.SegmentBytes, o.FoldBytes = 32<<20, 1<<20, 8<<20
	o.ChunkFileBytes, o.CacheBytes, o.NodeCache, o.ListCache = 4<<20, 32<<20, 4096, 256
	return o
}

// scaleImage is the volume after write n: write i (from 1 on) goes to block 37*i.
func scaleBlock(i int) int64 { return int64(37*i) % (MinVolumeSize / BlockSize) }

func scaleContent(i int) []byte {
	return append(noise(uint64(i), 64), make([]byte, BlockSize-64)...)
}

func scaleImage(n int) []byte {
	image := make([]byte, MinVolumeSize)
	for i := max(1, n-MinVolumeSize/BlockSize+1); i <= n; i++ {
		copy(image[scaleBlock(i)*BlockSize:], scaleContent(i))
	}
	return image
}

// TestManySnapshots: thousands of snapshots of one volume cost what one costs, and go in
// any order with their clones.
func TestManySnapshots(t *testing.T) {
	snapshots, clones := 10000, 2000
	if testing.Short() || raceEnabled {
		snapshots, clones = 1000, 200
	}
	ctx := context.Background()
	fsys := vfs.NewMem()
	s := openStore(t, fsys, scaleOptions())
	v := newVolume(t, s, "v", MinVolumeSize)
	rng := rand.New(rand.NewPCG(1, 1))
	type named struct {
		id    string
		write int
		clone bool
	}
	var all []named
	var first, last time.Duration
	tenth := snapshots / 10
	for i := 1; i <= snapshots; i++ {
		writeAt(t, v, scaleContent(i), scaleBlock(i)*BlockSize)
		began := time.Now()
		sn := must(s.CreateSnapshot(ctx, v.ID(), fmt.Sprint("s", i), nil))(t)
		took := time.Since(began)
		if i <= tenth {
			first += took
		} else if i > snapshots-tenth {
			last += took
		}
		all = append(all, named{sn.ID, i, false})
		if i%4 == 0 {
			foldAll(t, s)
		}
	}
	foldAll(t, s)
	first, last = first/time.Duration(tenth), last/time.Duration(tenth)
	t.Logf("%d snapshots: %v each at the start, %v at the end", snapshots, first, last)
	if last > 20*first+time.Millisecond {
		t.Errorf("a snapshot takes %v at the end, %v at the start", last, first)
	}
	for i := range clones {
		sn := all[rng.IntN(snapshots)]
		began := time.Now()
		c := must(s.CreateVolume(VolumeSpec{Name: fmt.Sprint("c", i), FromSnapshot: sn.id}))(t)
		if i < clones/10 {
			first += time.Since(began)
		}
		all = append(all, named{c.ID, sn.write, true})
	}
	verify := func(n named) {
		id := n.id
		if !n.clone {
			id = must(s.CreateVolume(VolumeSpec{Name: "look", FromSnapshot: n.id}))(t).ID
		}
		o := attach(t, s, id)
		wantImage(t, readAll(t, o), scaleImage(n.write), fmt.Sprintf("image after write %d", n.write))
		ok(t, o.Close())
		if !n.clone {
			ok(t, s.DeleteVolume(id))
		}
	}
	if st := s.Stats(false); st.Snapshots != snapshots || st.Volumes != clones+1 {
		t.Errorf("stats say %d snapshots and %d volumes", st.Snapshots, st.Volumes)
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	began := time.Now()
	for n := len(all); len(all) > n/20; {
		x := all[0]
		all = all[1:]
		if rng.IntN(200) == 0 {
			verify(x)
		}
		if x.clone {
			ok(t, s.DeleteVolume(x.id))
		} else {
			ok(t, s.DeleteSnapshot(x.id))
		}
		switch len(all) {
		case n / 2:
			ok(t, s.Close())
			reopen := time.Now()
			s = openStore(t, fsys, scaleOptions())
			t.Logf("reopening with %d images took %v", len(all), time.Since(reopen))
			v = attach(t, s, v.ID())
			wantClean(t, s)
		case n / 3, n / 10:
			collect := time.Now()
			res := must(s.Collect(ctx))(t)
			t.Logf("collecting with %d images took %v, freed %d of %d", len(all), time.Since(collect), res.FreedBytes, res.GarbageBytes)
		}
	}
	t.Logf("deleting took %v", time.Since(began))
	must(s.Collect(ctx))(t)
	for _, x := range all[:min(len(all), 40)] {
		verify(x)
	}
	for _, x := range all {
		if x.clone {
			ok(t, s.DeleteVolume(x.id))
		} else {
			ok(t, s.DeleteSnapshot(x.id))
		}
	}
	wantImage(t, readAll(t, v), scaleImage(snapshots), "volume")
	ok(t, v.Close())
	foldAll(t, s)
	ok(t, s.DeleteVolume(v.ID()))
	must(s.Collect(ctx))(t)
	wantClean(t, s)
	if st := s.Stats(false); st.Unique != 0 || st.ChunkFiles != 0 || st.Snapshots != 0 || st.Volumes != 0 {
		t.Errorf("an empty store has %+v", st)
	}
	for _, prefix := range []string{keyVolume, keySnapshot, keyCut, keyVolumeName, keySnapshotName} {
		if left := s.scan(prefix); len(left) > 0 {
			t.Errorf("%d records are left below %s", len(left), prefix)
		}
	}
	ok(t, s.Close())
}

// TestLargestVolume writes at both ends of 64 TiB and discards everything between.
func TestLargestVolume(t *testing.T) {
	fsys := vfs.NewMem()
	o := scaleOptions()
	s := openStore(t, fsys, o)
	v := newVolume(t, s, "v", MaxVolumeSize)
	const piece = 64 << 10
	spots := []int64{0, 1 << 30, 1<<40 + 512, 32<<40 - piece/2, 63 << 40, MaxVolumeSize - piece}
	check := func(v *Volume, holes bool, when string) {
		t.Helper()
		p := make([]byte, piece)
		for i, off := range spots {
			want := noise(uint64(i)+1, piece)
			if holes && i > 0 && i < len(spots)-1 {
				clear(want)
			}
			must(v.ReadAt(p, off))(t)
			wantImage(t, p, want, fmt.Sprintf("%s, at %d", when, off))
		}
		for _, off := range []int64{piece, 5 << 40, MaxVolumeSize - 2*piece} {
			must(v.ReadAt(p, off))(t)
			if strings.Trim(string(p), "\x00") != "" {
				t.Fatalf("%s: hole at %d is none", when, off)
			}
		}
	}
	for i, off := range spots {
		writeAt(t, v, noise(uint64(i)+1, piece), off)
	}
	check(v, false, "before the fold")
	foldAll(t, s)
	check(v, false, "after the fold")
	sn := must(s.CreateSnapshot(context.Background(), v.ID(), "s", nil))(t)
	began := time.Now()
	ok(t, v.Discard(piece, MaxVolumeSize-2*piece))
	check(v, true, "discarded")
	foldAll(t, s)
	check(v, true, "discarded and folded")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("discarding 64 TiB took %v", took)
	}
	if info := must(s.Volume(v.ID()))(t); info.MappedBytes != 2*piece {
		t.Errorf("%d bytes are mapped, want %d", info.MappedBytes, 2*piece)
	}
	big := make([]byte, 16<<20)
	must(v.ReadAt(big, 40<<40))(t)
	ok(t, v.Discard(0, MaxVolumeSize))
	foldAll(t, s)
	var rec volumeRecord
	must(get(s.cat, keyVolume+v.ID(), &rec))(t)
	if rec.Root != nil || rec.Mapped != 0 {
		t.Errorf("a volume of holes has root %v and %d blocks", rec.Root, rec.Mapped)
	}
	if n, err := v.ReadAt(make([]byte, 512), MaxVolumeSize); !errors.Is(err, ErrRange) {
		t.Errorf("read behind the end: %d, %v", n, err)
	}
	ok(t, v.Close())
	ok(t, s.Close())
	s = openStore(t, fsys, o)
	c := must(s.CreateVolume(VolumeSpec{Name: "c", FromSnapshot: sn.ID}))(t)
	check(attach(t, s, c.ID), false, "clone")
	must(s.Collect(context.Background()))(t)
	check(s.loaded(c.ID), false, "clone after collection")
	wantClean(t, s)
	ok(t, s.Close())
}

// TestSmallestVolume covers every sector of 1 MiB with writes and discards of all sizes.
func TestSmallestVolume(t *testing.T) {
	s := openStore(t, vfs.NewMem(), scaleOptions())
	v := newVolume(t, s, "v", 1)
	if v.Size() != MinVolumeSize {
		t.Fatalf("size %d", v.Size())
	}
	rng := rand.New(rand.NewPCG(3, 3))
	want := make([]byte, v.Size())
	for i := range 400 {
		n := sectorBytes * (1 + rng.Int64N(40))
		off := min(rng.Int64N(v.Size()/sectorBytes)*sectorBytes, v.Size()-n)
		if rng.IntN(3) == 0 {
			ok(t, v.Discard(off, n))
			clear(want[off : off+n])
		} else {
			p := noise(uint64(i), int(n))
			writeAt(t, v, p, off)
			copy(want[off:], p)
		}
		if i%50 == 0 {
			foldAll(t, s)
		}
	}
	wantImage(t, readAll(t, v), want, "volume")
	foldAll(t, s)
	wantImage(t, readAll(t, v), want, "folded volume")
	mapped := int64(0)
	for off := 0; off < len(want); off += BlockSize {
		if !isZero(want[off : off+BlockSize]) {
			mapped += BlockSize
		}
	}
	if info := must(s.Volume("v"))(t); info.MappedBytes != mapped {
		t.Errorf("%d bytes are mapped, want %d", info.MappedBytes, mapped)
	}
	ok(t, s.Close())
}

func TestSizesAndErrors(t *testing.T) {
	s := openStore(t, vfs.NewMem(), scaleOptions())
	ctx := context.Background()
	base := must(s.CreateVolume(VolumeSpec{Name: "base", SizeBytes: 3 << 20, SectorBytes: 4096, Compression: "s2"}))(t)
	sn := must(s.CreateSnapshot(ctx, base.ID, "sn", map[string]string{"k": "v"}))(t)
	for i, c := range []struct {
		spec VolumeSpec
		size int64
		err  error
	}{
		{VolumeSpec{}, 0, ErrRange},
		{VolumeSpec{SizeBytes: -1}, 0, ErrRange},
		{VolumeSpec{SizeBytes: 1}, 1 << 20, nil},
		{VolumeSpec{SizeBytes: 1 << 20}, 1 << 20, nil},
		{VolumeSpec{SizeBytes: 1<<20 + 1}, 2 << 20, nil},
		{VolumeSpec{SizeBytes: MaxVolumeSize}, MaxVolumeSize, nil},
		{VolumeSpec{SizeBytes: MaxVolumeSize - 1}, MaxVolumeSize, nil},
		{VolumeSpec{SizeBytes: MaxVolumeSize + 1}, 0, ErrRange},
		{VolumeSpec{SizeBytes: 1<<63 - 1}, 0, ErrRange},
		{VolumeSpec{SizeBytes: 1, SectorBytes: 1024}, 0, ErrInvalid},
		{VolumeSpec{SizeBytes: 1, SectorBytes: 4096}, 1 << 20, nil},
		{VolumeSpec{SizeBytes: 1, Compression: "lzma"}, 0, ErrInvalid},
		{VolumeSpec{SizeBytes: 1, Compression: "none"}, 1 << 20, nil},
		{VolumeSpec{SizeBytes: 1, OnFull: "panic"}, 0, ErrInvalid},
		{VolumeSpec{FromSnapshot: sn.ID}, 3 << 20, nil},
		{VolumeSpec{FromSnapshot: sn.ID, SizeBytes: 2 << 20}, 0, ErrRange},
		{VolumeSpec{FromSnapshot: sn.ID, SizeBytes: 3<<20 + 5}, 4 << 20, nil},
		{VolumeSpec{FromSnapshot: sn.ID, SectorBytes: 512}, 0, ErrInvalid},
		{VolumeSpec{FromSnapshot: sn.ID, FromVolume: base.ID}, 0, ErrInvalid},
		{VolumeSpec{FromVolume: base.ID}, 3 << 20, nil},
		{VolumeSpec{FromVolume: base.ID, SizeBytes: MaxVolumeSize}, MaxVolumeSize, nil},
		{VolumeSpec{FromVolume: base.ID, SizeBytes: 1}, 0, ErrRange},
		{VolumeSpec{FromVolume: "v-" + strings.Repeat("0", 32)}, 0, ErrNotFound},
		{VolumeSpec{FromSnapshot: "s-" + strings.Repeat("0", 32)}, 0, ErrNotFound},
		{VolumeSpec{FromVolume: sn.ID}, 0, ErrInvalid},
		{VolumeSpec{FromSnapshot: "../" + sn.ID}, 0, ErrInvalid},
		{VolumeSpec{Name: "base", SizeBytes: 1}, 0, ErrExists},
		{VolumeSpec{Name: "a/b", SizeBytes: 1}, 0, ErrInvalid},
		{VolumeSpec{Name: strings.Repeat("n", MaxNameBytes+1), SizeBytes: 1}, 0, ErrInvalid},
		{VolumeSpec{Name: strings.Repeat("n", MaxNameBytes), SizeBytes: 1}, 1 << 20, nil},
		{VolumeSpec{Name: base.ID, SizeBytes: 1}, 0, ErrInvalid},
	} {
		if c.spec.Name == "" {
			c.spec.Name = fmt.Sprint("volume", i)
		}
		before := len(s.Volumes())
		info, err := s.CreateVolume(c.spec)
		if !errors.Is(err, c.err) || c.err == nil && err != nil || info.SizeBytes != c.size {
			t.Errorf("%+v: size %d, %v; want %d, %v", c.spec, info.SizeBytes, err, c.size, c.err)
		}
		if made := len(s.Volumes()) - before; (err == nil) != (made == 1) || err != nil && made != 0 {
			t.Errorf("%+v: %d volumes were made", c.spec, made)
		}
		if source := c.spec.FromSnapshot + c.spec.FromVolume; err == nil && source != "" {
			if info.SectorBytes != 4096 || info.Compression != "s2" || info.Source != source {
				t.Errorf("%+v: inherited %+v", c.spec, info)
			}
		}
	}
	if _, err := s.CreateVolume(VolumeSpec{SizeBytes: 1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a volume without a name: %v", err)
	}
	v := newVolume(t, s, "open", 2<<20)
	for _, c := range []struct {
		what string
		got  error
		want error
	}{
		{"shrink", second(s.ResizeVolume(v.ID(), 1<<20)), ErrRange},
		{"grow to what it has", second(s.ResizeVolume(v.ID(), 2<<20)), nil},
		{"grow to nothing", second(s.ResizeVolume(v.ID(), 0)), ErrRange},
		{"grow too far", second(s.ResizeVolume(v.ID(), MaxVolumeSize+1)), ErrRange},
		{"grow", second(s.ResizeVolume(v.ID(), 2<<20+1)), nil},
		{"grow what is not there", second(s.ResizeVolume("v-"+strings.Repeat("0", 32), 1<<20)), ErrNotFound},
		{"second open", second(s.OpenVolume(ctx, v.ID())), ErrInUse},
		{"open what is not there", second(s.OpenVolume(ctx, "v-"+strings.Repeat("0", 32))), ErrNotFound},
		{"delete while open", s.DeleteVolume(v.ID()), ErrInUse},
		{"delete what is not there", s.DeleteVolume("v-" + strings.Repeat("0", 32)), ErrNotFound},
		{"delete a snapshot as a volume", s.DeleteVolume(sn.ID), ErrInvalid},
		{"delete no snapshot", s.DeleteSnapshot("s-" + strings.Repeat("0", 32)), ErrNotFound},
		{"snapshot with a taken name", second(s.CreateSnapshot(ctx, v.ID(), "sn", nil)), ErrExists},
		{"snapshot without a name", second(s.CreateSnapshot(ctx, v.ID(), "", nil)), ErrInvalid},
		{"snapshot of nothing", second(s.CreateSnapshot(ctx, "v-"+strings.Repeat("0", 32), "x", nil)), ErrNotFound},
		{"write at an odd offset", second(v.WriteAt(make([]byte, 512), 100)), ErrInvalid},
		{"write of an odd length", second(v.WriteAt(make([]byte, 100), 0)), ErrInvalid},
		{"write behind the end", second(v.WriteAt(make([]byte, 1024), 3<<20-512)), ErrRange},
		{"write far behind the end", second(v.WriteAt(make([]byte, 512), 1<<62)), ErrRange},
		{"read before the start", second(v.ReadAt(make([]byte, 512), -512)), ErrInvalid},
		{"discard of too much", v.Discard(0, 1<<62), ErrRange},
		{"discard of nothing", v.Discard(512, 0), nil},
		{"write of nothing", second(v.WriteAt(nil, 3<<20)), nil},
		{"write in the new part", second(v.WriteAt(make([]byte, 512), 3<<20-512)), nil},
		{"state back", s.SetVolumeState(base.ID, "new", ""), ErrInvalid},
	} {
		if !errors.Is(c.got, c.want) || c.want == nil && c.got != nil {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	ok(t, v.Close())
	for what, err := range map[string]error{
		"write": second(v.WriteAt(make([]byte, 512), 0)), "flush": v.Flush(), "close": v.Close(), "discard": v.Discard(0, 512),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after close: %v", what, err)
		}
	}
	ok(t, s.Close())
	if _, err := s.CreateVolume(VolumeSpec{Name: "late", SizeBytes: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("create in a closed store: %v", err)
	}
	if _, err := s.OpenVolume(ctx, base.ID); !errors.Is(err, ErrClosed) {
		t.Errorf("open in a closed store: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A clone larger than its source, of a cut that is not folded yet, shows zeros behind
// the source's end, also where the source grows and is written later.
func TestLargerCloneOfPendingCut(t *testing.T) {
	s := openStore(t, vfs.NewMem(), scaleOptions())
	v := newVolume(t, s, "v", 1<<20)
	want := noise(1, 1<<20)
	writeAt(t, v, want, 0)
	c := must(s.CreateVolume(VolumeSpec{Name: "c", FromVolume: v.ID(), SizeBytes: 5 << 20}))(t)
	must(s.ResizeVolume(v.ID(), 5<<20))(t)
	writeAt(t, v, noise(2, 1<<20), 3<<20)
	cc := must(s.CreateVolume(VolumeSpec{Name: "cc", FromVolume: v.ID()}))(t)
	foldAll(t, s)
	cv := attach(t, s, c.ID)
	wantImage(t, readAll(t, cv), append(bytes.Clone(want), make([]byte, 4<<20)...), "larger clone")
	writeAt(t, cv, noise(3, BlockSize), 5<<20-BlockSize)
	foldAll(t, s)
	p := make([]byte, BlockSize)
	must(attach(t, s, cc.ID).ReadAt(p, 3<<20))(t)
	wantImage(t, p, noise(2, 1<<20)[:BlockSize], "clone of the grown source")
	ok(t, v.Close())
	ok(t, s.DeleteVolume(v.ID()))
	must(s.Collect(context.Background()))(t)
	wantClean(t, s)
	ok(t, s.Close())
}
