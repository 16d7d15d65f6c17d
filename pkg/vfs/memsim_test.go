package vfs_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// model is what may become of one file, kept as plainly as can be: all that each sector
// and the size were since they were synced.
type model struct {
	cur      []byte
	versions map[int]map[string]bool // by sector; zeros are always possible if not here
	sizes    map[int]bool
}

func newModel(data []byte) *model {
	m := &model{cur: data, versions: map[int]map[string]bool{}, sizes: map[int]bool{}}
	m.note()
	return m
}

func (m *model) sector(data []byte, i int) string {
	s := make([]byte, 512)
	if i*512 < len(data) {
		copy(s, data[i*512:])
	}
	return string(s)
}

// note adds the current content to the possible outcomes.
func (m *model) note() {
	m.sizes[len(m.cur)] = true
	for i := range simSectors {
		if m.versions[i] == nil {
			m.versions[i] = map[string]bool{}
		}
		m.versions[i][m.sector(m.cur, i)] = true
	}
}

// mixTail adds what the last sector is if its content is durable, but not that the file
// ends there.
func (m *model) mixTail() {
	i, n := len(m.cur)/512, len(m.cur)%512
	head := m.sector(m.cur, i)[:n]
	for _, v := range slices.Collect(maps.Keys(m.versions[i])) {
		m.versions[i][head+v[n:]] = true
	}
}

// check tells whether a crash may have left data.
func (m *model) check(data []byte) error {
	if !m.sizes[len(data)] {
		return fmt.Errorf("size %d", len(data))
	}
	for i := range (len(data) + 511) / 512 {
		s := m.sector(data, i)
		ok := false
		for v := range m.versions[i] {
			// The size may cut a sector, or a truncation that survived did.
			n := len(v)
			for n > 0 && v[:n] != s[:n] {
				n--
			}
			ok = ok || len(bytes.Trim([]byte(s[n:]), "\x00")) == 0
		}
		if !ok {
			return fmt.Errorf("sector %d has %x...", i, s[:8])
		}
	}
	return nil
}

const simSectors = 40

// TestCrashSim does random things to a file and compares what is read, and what crashes
// leave, with the model.
func TestCrashSim(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 0))
		if err := crashSim(rng); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func crashSim(rng *rand.Rand) error {
	m := vfs.NewMem()
	f, err := m.Create("/a")
	if err != nil {
		return err
	}
	if err := m.SyncDir("/"); err != nil {
		return err
	}
	mod := newModel(nil)
	for range 60 {
		if err := simStep(rng, m, f, &mod); err != nil {
			return err
		}
		got, err := vfs.ReadFile(m, "/a")
		if err != nil {
			return err
		}
		if !bytes.Equal(got, mod.cur) {
			return fmt.Errorf("read something else")
		}
		if f, err = simCrash(rng, m, f, &mod); err != nil {
			return err
		}
	}
	return nil
}

// simStep does one random thing.
func simStep(rng *rand.Rand, m *vfs.Mem, f vfs.File, mod **model) error {
	resize := func(n int) {
		grown := make([]byte, n)
		copy(grown, (*mod).cur)
		(*mod).cur = grown
	}
	off, n := rng.IntN(simSectors*256), 1+rng.IntN(simSectors*256)
	if rng.IntN(2) == 0 {
		off, n = off&^4095, 4096
	}
	switch rng.IntN(8) {
	case 0:
		*mod = newModel((*mod).cur)
		return f.Sync()
	case 1:
		// A shrinking may be lost still, and the bytes with it, so forget nothing
		// unless the size grew over all it was.
		largest := true
		for size := range (*mod).sizes {
			largest = largest && size <= len((*mod).cur)
		}
		if largest {
			*mod = newModel((*mod).cur)
		} else {
			(*mod).mixTail()
		}
		return f.Datasync()
	case 2:
		resize(off)
		(*mod).note()
		return f.Truncate(int64(off))
	case 3:
		resize(max(len((*mod).cur), off+n))
		(*mod).note()
		return f.Allocate(int64(off), int64(n))
	}
	p := bytes.Repeat([]byte{byte(rng.IntN(4))}, n)
	for _, end := range []int{n / 2, n} { // each buffer makes a version of its own
		if end > 0 {
			resize(max(len((*mod).cur), off+end))
			copy((*mod).cur[off:], p[:end])
			(*mod).note()
		}
	}
	_, err := f.WriteVec([][]byte{p[:n/2], p[n/2:]}, int64(off))
	return err
}

// simCrash crashes clones, and now and then the file system itself.
func simCrash(rng *rand.Rand, m *vfs.Mem, f vfs.File, mod **model) (vfs.File, error) {
	c := m.Clone()
	if rng.IntN(10) == 0 {
		c = m
	}
	keep := []float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)]
	all := c.Clone().Digest()
	c.Crash(rng, keep)
	got, err := vfs.ReadFile(c, "/a")
	if err != nil {
		return nil, err
	}
	if err := (*mod).check(got); err != nil {
		return nil, fmt.Errorf("after a crash: %w", err)
	}
	if keep == 1 && c.Digest() != all {
		return nil, fmt.Errorf("keep 1 lost something")
	}
	after := c.Digest()
	c.Crash(nil, 0)
	if c.Digest() != after {
		return nil, fmt.Errorf("a second crash lost something")
	}
	if err := checkUsed(c, got); err != nil {
		return nil, err
	}
	if c != m {
		return f, nil
	}
	*mod = newModel(got)
	return m.Open("/a")
}

// checkUsed compares the accounts of space with each other.
func checkUsed(m *vfs.Mem, data []byte) error {
	info, err := m.Stat("/a")
	if err != nil {
		return err
	}
	space, err := m.Space("/")
	if err != nil {
		return err
	}
	if space.Total-space.Free != info.Used {
		return fmt.Errorf("%d bytes used by all, %d by the file", space.Total-space.Free, info.Used)
	}
	var least int64
	for page := range (len(data) + 4095) / 4096 {
		part := data[page*4096 : min(len(data), page*4096+4096)]
		if len(bytes.Trim(part, "\x00")) > 0 {
			least += 4096
		}
	}
	if info.Used < least || info.Used > (int64(len(data))+4095)&^4095 {
		return fmt.Errorf("%d bytes used, at least %d expected for %d", info.Used, least, len(data))
	}
	return nil
}

// TestCrashIsDeterministic does the same twice.
func TestCrashIsDeterministic(t *testing.T) {
	run := func() [32]byte {
		rng := rand.New(rand.NewPCG(7, 7))
		m := vfs.NewMem()
		for i := range 30 {
			f := create(t, m, fmt.Sprintf("/%d", i), "")
			write(t, f, int64(rng.IntN(1<<20)), fill("abcdefghijklmnop"))
			must(t, f.Truncate(1<<19))
			must(t, f.Allocate(0, 1<<18))
		}
		f := durable(t, m, "/big", strings.Repeat("x", 1<<20))
		must(t, f.Truncate(0))
		write(t, f, 0, strings.Repeat("y", 1<<20))
		m.Crash(rng, 0.5)
		return m.Digest()
	}
	first := run()
	for range 10 {
		if run() != first {
			t.Fatal("two runs differ")
		}
	}
}
