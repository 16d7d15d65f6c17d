package blockstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

// Small folds that are due together share chunks, each is committed by itself, and a
// volume that was deleted meanwhile does not keep the others from it.
func TestSmallFoldsShareChunks(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, smallOptions())
	var vols []*Volume
	for i := range 10 {
		v := newVolume(t, s, fmt.Sprint("v", i), 1<<20)
		writeAt(t, v, noise(uint64(i), BlockSize), int64(i)*BlockSize)
		vols = append(vols, v)
	}
	ok(t, vols[3].Close())
	ok(t, s.DeleteVolume(vols[3].id))
	if did, err := s.foldTogether(vols); !did || err != nil {
		t.Fatal(did, err)
	}
	if st := s.chunks.Stats(); st.Chunks != 2 {
		t.Errorf("%d chunks for the blocks and maps of nine volumes, want 2", st.Chunks)
	}
	for i, v := range vols {
		if i == 3 {
			continue
		}
		want := make([]byte, 1<<20)
		copy(want[i*BlockSize:], noise(uint64(i), BlockSize))
		wantImage(t, readAll(t, v), want, v.id)
		if v.mu.layers[0].data || v.mu.root.IsZero() {
			t.Errorf("volume %d is not folded", i)
		}
		ok(t, v.Close())
	}
	wantClean(t, s)
	ok(t, s.Close())
	s = openStore(t, fsys, smallOptions())
	wantClean(t, s)
	ok(t, s.Close())
}

// The scheduler takes small folds that are due together, and leaves out large ones,
// other compressions, and volumes whose last fold failed.
func TestClaimFoldPicksSmallOnesTogether(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	small := func(name, compression string) *Volume {
		info := must(s.CreateVolume(VolumeSpec{Name: name, SizeBytes: 4 << 20, Compression: compression}))(t)
		v := attach(t, s, info.ID)
		writeAt(t, v, noise(1, BlockSize), 0)
		return v
	}
	a, b := small("a", ""), small("b", "")
	raw, failed, large := small("raw", "none"), small("failed", ""), small("large", "")
	writeAt(t, large, noise(2, 2<<20), 0)
	failed.mu.retry = time.Unix(1, 0)
	later := time.Now().Add(time.Hour)
	sets := make(map[*Volume]int)
	for n := 1; ; n++ {
		vols, _ := s.claimFold(later)
		if len(vols) == 0 {
			break
		}
		for _, v := range vols {
			sets[v] = n
		}
	}
	if len(sets) != 5 || sets[a] != sets[b] {
		t.Errorf("claims %v: a and b not together", sets)
	}
	for _, v := range []*Volume{raw, failed, large} {
		for o, n := range sets {
			if o != v && n == sets[v] {
				t.Errorf("volume %s is folded together with another", v.id)
			}
		}
	}
}
