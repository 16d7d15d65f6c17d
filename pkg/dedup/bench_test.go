package dedup

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
)

// benchStore is a store in a directory on the disk.
func benchStore(b *testing.B, cache int64) *Store {
	b.Helper()
	dir, err := blob.NewDir(vfs.NewOS(), filepath.Join(b.TempDir(), "chunks"), 0)
	if err != nil {
		b.Fatal(err)
	}
	s, err := Open(dir, Options{Store: testStore, Epoch: 1, CacheBytes: cache})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func fold(b *testing.B, s *Store, codec Codec, blocks [][]byte, salt byte, prev []Slot) []Slot {
	w := s.NewWriter(codec, 3)
	defer w.Close()
	refs := make([]Ref, len(blocks))
	for i, p := range blocks {
		p[8] = salt
		var at Slot
		if prev != nil {
			at = prev[i]
		}
		var err error
		if refs[i], err = w.Block(p, at); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(), w.Sync()); err != nil {
		b.Fatal(err)
	}
	out := make([]Slot, len(refs))
	for i, r := range refs {
		out[i] = w.Slot(r)
	}
	return out
}

const benchBlocks = 8192 // 32 MiB

func benchData() [][]byte {
	out := make([][]byte, benchBlocks)
	for i := range out {
		out[i] = block(i)
	}
	return out
}

func BenchmarkFold(b *testing.B) {
	data := benchData()
	for _, codec := range []Codec{CodecZstd, CodecS2, CodecRaw} {
		b.Run("new/"+codec.String(), func(b *testing.B) {
			s := benchStore(b, 0)
			b.SetBytes(benchBlocks * BlockSize)
			salt := byte(1)
			for b.Loop() {
				salt++ // 255 rounds of new data
				fold(b, s, codec, data, salt, nil)
			}
		})
	}
	b.Run("duplicate", func(b *testing.B) {
		s := benchStore(b, 0)
		fold(b, s, CodecZstd, data, 1, nil)
		b.SetBytes(benchBlocks * BlockSize)
		for b.Loop() {
			fold(b, s, CodecZstd, data, 1, nil)
		}
	})
	b.Run("overwrite", func(b *testing.B) { // new data over old, with predecessors
		s := benchStore(b, 0)
		at := fold(b, s, CodecZstd, data, 1, nil)
		b.SetBytes(benchBlocks * BlockSize)
		salt := byte(1)
		for b.Loop() {
			salt++
			at = fold(b, s, CodecZstd, data, salt, at)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	data := benchData()
	for _, codec := range []Codec{CodecZstd, CodecS2} {
		for name, cache := range map[string]int64{"cold": -1, "hot": 64 << 20} {
			b.Run(codec.String()+"/"+name+"/4k", func(b *testing.B) {
				s := benchStore(b, cache)
				at := fold(b, s, codec, data, 1, nil)
				buf := make([]byte, BlockSize)
				rng := rand.New(rand.NewPCG(1, 1))
				b.SetBytes(BlockSize)
				for b.Loop() {
					a := at[rng.IntN(len(at))]
					if err := s.ReadSlots(a.Chunk, a.Slot, 1, buf); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(codec.String()+"/"+name+"/1m", func(b *testing.B) {
				s := benchStore(b, cache)
				at := fold(b, s, codec, data, 1, nil)
				buf := make([]byte, 256*BlockSize)
				rng := rand.New(rand.NewPCG(1, 1))
				b.SetBytes(int64(len(buf)))
				for b.Loop() {
					a := at[rng.IntN(len(at))/256*256]
					if err := s.ReadSlots(a.Chunk, a.Slot, 256, buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir, err := blob.NewDir(vfs.NewOS(), filepath.Join(b.TempDir(), "chunks"), 0)
	if err != nil {
		b.Fatal(err)
	}
	o := Options{Store: testStore, Epoch: 1}
	s, err := Open(dir, o)
	if err != nil {
		b.Fatal(err)
	}
	data := benchData()
	for salt := range byte(16) {
		fold(b, s, CodecS2, data, salt+1, nil)
	}
	s.Close()
	b.ReportMetric(float64(s.Stats().Files), "files")
	for b.Loop() {
		if s, err = Open(dir, o); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
