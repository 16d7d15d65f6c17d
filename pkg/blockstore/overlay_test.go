package blockstore

import (
	"math/rand/v2"
	"testing"
)

// The interval map equals an array of sectors, whatever is put and cleared.
func TestLayerAgainstArray(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		const n = 200
		type cell struct {
			known bool
			src   *payload
		}
		var want [n]cell
		var l layer
		for range 60 {
			start := rng.Int64N(n)
			end := start + 1 + rng.Int64N(n-start)
			switch rng.IntN(3) {
			case 0:
				l.clear(start, end)
				for i := start; i < end; i++ {
					want[i] = cell{}
				}
			default:
				src := &payload{}
				if rng.IntN(3) == 0 {
					src = nil
				}
				l.put(start, end, src)
				for i := start; i < end; i++ {
					want[i] = cell{true, src}
				}
			}
			from := rng.Int64N(n)
			to := from + 1 + rng.Int64N(n-from)
			var got [n]cell
			last := from
			l.each(from, to, func(s, e int64, src *payload) bool {
				if s < last || e <= s || e > to {
					t.Fatalf("seed %d: interval [%d, %d) in a walk of [%d, %d) after %d", seed, s, e, from, to, last)
				}
				last = e
				for i := s; i < e; i++ {
					got[i] = cell{true, src}
				}
				return true
			})
			for i := from; i < to; i++ {
				if got[i] != want[i] {
					t.Fatalf("seed %d: sector %d is %v, want %v", seed, i, got[i], want[i])
				}
			}
		}
	}
}

// Newer layers hide older ones, sector by sector, and holes hide data.
func TestOverlayPieces(t *testing.T) {
	a, b := &payload{}, &payload{}
	older, newer := &layer{}, &layer{}
	older.put(0, 20, a)
	newer.put(5, 8, b)
	newer.put(8, 10, nil)
	got := overlayPieces([]*layer{older, newer}, 2, 25)
	want := []piece{{2, 5, a}, {5, 8, b}, {8, 10, nil}, {10, 20, a}}
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("piece %d is %v, want %v", i, got[i], want[i])
		}
	}
}
