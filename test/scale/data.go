package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
)

const blockSize = blockstore.BlockSize

// running is a store with its background work.
type running struct {
	*blockstore.Store
	stop func() error
}

func open(dir string, o blockstore.Options) (*running, error) {
	s, err := blockstore.Open(vfs.NewOS(), dir, o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	return &running{s, func() error { cancel(); <-ended; return s.Close() }}, nil
}

// newVolume makes and opens a volume.
func (r *running) newVolume(name string, size int64) (*blockstore.Volume, error) {
	info, err := r.CreateVolume(blockstore.VolumeSpec{Name: name, SizeBytes: size})
	if err != nil {
		return nil, err
	}
	return r.OpenVolume(context.Background(), info.ID)
}

// image waits until all that was written is folded, and keeps it as a snapshot.
func (r *running) image(v *blockstore.Volume, name string) (string, error) {
	ctx := context.Background()
	info, err := r.CreateSnapshot(ctx, v.ID(), name, nil)
	if err == nil {
		_, err = r.WaitSnapshot(ctx, info.ID)
	}
	return info.ID, err
}

// noise fills p with what nothing else has and what does not compress.
func noise(rng *rand.ChaCha8, p []byte) { rng.Read(p) }

// marking has one volume of many small extents and 10,000 snapshots of it, all of
// different images, and marks with 100 of them and with all.
func marking(dir string) (figures []figure, err error) {
	r, err := open(dir, blockstore.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	const size, step = 16 << 30, 64 << 10 // an extent of its own every 64 KiB
	v, err := r.newVolume("v", size)
	if err != nil {
		return nil, err
	}
	rng := rand.NewChaCha8([32]byte{1})
	block := make([]byte, blockSize)
	for off := int64(0); off < size; off += step {
		noise(rng, block[:64])
		if _, err := v.WriteAt(block, off); err != nil {
			return nil, err
		}
	}
	grow := func(from, to int) (blockstore.CollectResult, time.Duration, error) {
		for i := from; i < to; i++ {
			noise(rng, block[:64])
			if _, err := v.WriteAt(block, int64(i)*(size/10000)/blockSize*blockSize); err != nil {
				return blockstore.CollectResult{}, 0, err
			}
			if _, err := r.image(v, fmt.Sprint("s", i)); err != nil {
				return blockstore.CollectResult{}, 0, err
			}
		}
		began := time.Now()
		res, err := r.Collect(context.Background())
		return res, time.Since(began), err
	}
	few, _, err := grow(0, 100)
	if err != nil {
		return nil, err
	}
	many, took, err := grow(100, snapshots/10)
	if err != nil {
		return nil, err
	}
	return []figure{
		{What: "map nodes marked, volume with 100 snapshots", Value: float64(few.Nodes), Unit: "nodes"},
		{What: "map nodes marked, the same with 10,000 snapshots", Value: float64(many.Nodes), Unit: "nodes"},
		{What: "of those, for each further snapshot", Value: float64(many.Nodes-few.Nodes) / float64(snapshots/10-100), Unit: "nodes", Limit: 4},
		{What: "marking with 10,000 snapshots, the whole collection", Value: float64(many.Nodes) / took.Seconds() / 1000, Unit: "thousand nodes/s", Limit: 5, Least: true},
	}, nil
}

// rewriting makes the same garbage in a small store and in one four times as large.
func rewriting(dir string) ([]figure, error) {
	const garbage = 256 << 20
	var perGiB [2]float64
	for i, live := range []int64{256 << 20, 1 << 30} {
		took, err := rewrite(fmt.Sprintf("%s-%d", dir, i), live, garbage)
		if err != nil {
			return nil, err
		}
		perGiB[i] = took.Seconds() * (1 << 30) / garbage
	}
	return []figure{
		{What: "collecting a GiB of garbage beside 256 MiB of live data", Value: perGiB[0], Unit: "s"},
		{What: "collecting a GiB of garbage beside 1 GiB of live data", Value: perGiB[1], Unit: "s"},
		{What: "the second by the first", Value: perGiB[1] / perGiB[0], Unit: "times", Limit: 2},
	}, nil
}

// rewrite collects the garbage of a volume of which every second MiB was discarded,
// beside another one that stays.
func rewrite(dir string, live, garbage int64) (took time.Duration, err error) {
	r, err := open(dir, blockstore.Options{GarbageBytes: 1 << 50})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.stop(), os.RemoveAll(dir)) }()
	rng := rand.NewChaCha8([32]byte{2})
	piece := make([]byte, 1<<20)
	fill := func(name string, size int64) (*blockstore.Volume, error) {
		v, err := r.newVolume(name, size)
		for off := int64(0); off < size && err == nil; off += int64(len(piece)) {
			noise(rng, piece)
			_, err = v.WriteAt(piece, off)
		}
		if err != nil {
			return nil, err
		}
		id, err := r.image(v, name)
		if err == nil {
			err = r.DeleteSnapshot(id)
		}
		return v, err
	}
	if _, err := fill("live", live); err != nil {
		return 0, err
	}
	v, err := fill("garbage", 2*garbage)
	if err != nil {
		return 0, err
	}
	for off := int64(0); off < 2*garbage; off += 2 * int64(len(piece)) {
		if err := v.Discard(off, int64(len(piece))); err != nil {
			return 0, err
		}
	}
	if _, err := r.image(v, "discarded"); err != nil {
		return 0, err
	}
	began := time.Now()
	res, err := r.Collect(context.Background())
	took = time.Since(began)
	if err == nil && res.FreedBytes < garbage*9/10 {
		err = fmt.Errorf("freed %d of %d bytes of garbage", res.FreedBytes, garbage)
	}
	return took, err
}

// smallFolds makes 100,000 folds of 4 blocks and 3 nodes each, as a fold of its own
// every time, and weighs the index that a start makes of them.
func smallFolds(dir string) ([]figure, error) {
	const folds = 100_000
	s, err := openChunks(dir)
	if err != nil {
		return nil, err
	}
	block := make([]byte, blockSize)
	for i := range folds {
		w := s.NewWriter(dedup.CodecZstd, 3)
		for j := range 4 {
			binary.LittleEndian.PutUint64(block, uint64(i*4+j)+1)
			if _, err := w.Block(block, dedup.Slot{}); err != nil {
				return nil, err
			}
		}
		if err := w.Flush(); err != nil {
			return nil, err
		}
		for range 3 {
			if _, _, err := w.AddNode(block); err != nil {
				return nil, err
			}
		}
		if err := w.FinishNodes(); err != nil { // no Sync: the disk is not what is measured
			return nil, err
		}
		w.Close()
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	before := heap()
	began := time.Now()
	if s, err = openChunks(dir); err != nil {
		return nil, err
	}
	took := time.Since(began)
	after := heap()
	st := s.Stats()
	if err := s.Close(); err != nil {
		return nil, err
	}
	if st.Chunks != 2*folds {
		return nil, fmt.Errorf("%d chunks instead of %d", st.Chunks, 2*folds)
	}
	each := float64(after-before-uint64(st.HookBytes)) / float64(st.Chunks)
	return []figure{
		{What: "chunk files after 100,000 small folds", Value: float64(st.Files), Unit: "files"},
		{What: "index after 100,000 small folds (200,000 chunks)", Value: float64(after-before) / (1 << 20), Unit: "MiB", Limit: 80},
		{What: "of that, for each chunk", Value: each, Unit: "bytes", Limit: 350},
		{What: "reading that index at a start", Value: took.Seconds(), Unit: "s", Limit: 10},
	}, nil
}

func openChunks(dir string) (*dedup.Store, error) {
	fsys := vfs.NewOS()
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, err
	}
	d, err := blob.NewDir(fsys, dir, 64)
	if err != nil {
		return nil, err
	}
	return dedup.Open(d, dedup.Options{Epoch: uint32(time.Now().Unix()), CacheBytes: 1 << 20})
}

// heap is what is in use, garbage taken away.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

const journalBytes = 1 << 30

func journalOptions() blockstore.Options {
	return blockstore.Options{JournalBytes: 3 << 30, FoldBytes: 2 << 30}
}

// fillJournal writes 1 GiB that nobody folds and leaves as a killed process does.
func fillJournal(dir string) ([]figure, error) {
	s, err := blockstore.Open(vfs.NewOS(), dir, journalOptions())
	if err != nil {
		return nil, err
	}
	r := &running{Store: s}
	rng := rand.NewChaCha8([32]byte{3})
	// Half in one volume in large pieces, half over eight in pieces of 4 KiB.
	if err := fill(r, rng, "large", journalBytes/2, 256<<10); err != nil {
		return nil, err
	}
	for i := range 8 {
		if err := fill(r, rng, fmt.Sprint("small", i), journalBytes/16, blockSize); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// fill writes records of a size in a random order until so much journal is used, and
// flushes.
func fill(r *running, rng *rand.ChaCha8, name string, journal int64, size int) error {
	v, err := r.newVolume(name, 1<<30)
	if err != nil {
		return err
	}
	order := rand.New(rng).Perm(1 << 30 / size)
	p := make([]byte, size)
	for i := 0; int64(i)*int64(size+blockSize) < journal; i++ { // a record has a header page
		noise(rng, p[:64])
		if _, err := v.WriteAt(p, int64(order[i])*int64(size)); err != nil {
			return err
		}
	}
	return v.Flush()
}

func replay(dir string) ([]figure, error) {
	began := time.Now()
	s, err := blockstore.Open(vfs.NewOS(), dir, journalOptions())
	took := time.Since(began)
	if err != nil {
		return nil, err
	}
	peak, err := peakMemory()
	used := s.Stats(false).JournalUsed
	if err := errors.Join(err, s.Close()); err != nil {
		return nil, err
	}
	if used < journalBytes*9/10 {
		return nil, fmt.Errorf("the journal holds %d bytes instead of %d", used, journalBytes)
	}
	return []figure{
		{What: "start after a kill with 1 GiB of journal", Value: took.Seconds(), Unit: "s", Limit: 5},
		{What: "memory of that start (peak RSS)", Value: peak / (1 << 20), Unit: "MiB", Limit: 512},
	}, nil
}
