package blockstore

import (
	"flag"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8ns/granary/pkg/vfs"
)

var (
	rotAll   = flag.Bool("rot.all", false, "TestRot: every byte of every file with three masks and every length, instead of a sample")
	rotParts = flag.Int("rot.parts", 1, "TestRot: does one in so many cases")
	rotPart  = flag.Int("rot.part", 0, "TestRot: which of the parts, from 0 on")
)

// rotTry is one thing done to a store's files.
type rotTry struct {
	class string // row of the table
	what  string
	do    func(fsys *vfs.Mem)
	// unread: it changes no byte that the judge ever reads, so that all goes as if nothing
	// were done. One in rotUnreadStep of these is judged all the same.
	unread bool
}

const rotUnreadStep = 50

// rotTable counts fates by class.
type rotTable struct {
	mu   sync.Mutex
	rows map[string]*[rotFates]int
	bad  int
}

func (c *rotTable) add(class string, fate rotFate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rows[class] == nil {
		c.rows[class] = new([rotFates]int)
	}
	c.rows[class][fate]++
}

func (c *rotTable) cases() (n int) {
	for _, fates := range c.rows {
		for _, f := range fates {
			n += f
		}
	}
	return n
}

func (c *rotTable) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-34s", "")
	for _, n := range rotFateNames {
		fmt.Fprintf(&b, "%21s", n)
	}
	for _, class := range sortedKeys(c.rows) {
		fmt.Fprintf(&b, "\n%-34s", class)
		for _, n := range c.rows[class] {
			fmt.Fprintf(&b, "%21d", n)
		}
	}
	return b.String()
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// Whatever rots in a store's files, nobody is given a wrong byte, and what is lost is told.
func TestRot(t *testing.T) {
	for _, stop := range []struct {
		name  string
		clean bool
	}{{"clean stop", true}, {"kill", false}} {
		t.Run(stop.name, func(t *testing.T) {
			x := newRotStore(t, stop.clean)
			for _, part := range []struct {
				name  string
				tries func(*testing.T, func(rotTry) bool) bool
			}{{"flips", x.flips}, {"lengths", x.lengths}, {"zeros", x.zeros}, {"moves", x.moves}} {
				t.Run(part.name, func(t *testing.T) {
					x.rot(t, func(yield func(rotTry) bool) { part.tries(t, yield) })
				})
			}
		})
	}
}

// rot does every try to a copy of the store and judges it.
func (x *rotStore) rot(t *testing.T, tries func(func(rotTry) bool)) {
	t.Helper()
	for _, im := range x.images {
		im.index()
	}
	x.knownProblems = nil
	if told, err := x.checkStopped(x.fsys.Clone()); err != nil {
		t.Fatal(err)
	} else {
		for _, p := range told {
			x.knownProblems = append(x.knownProblems, p.String())
		}
	}
	x.watch(t)
	table := &rotTable{rows: map[string]*[rotFates]int{}}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	n, began := 0, time.Now()
	for try := range tries {
		if table.full() {
			break
		}
		if n++; n%*rotParts != *rotPart || raceEnabled && n%16 != 0 { // the rest runs without the race detector
			continue
		}
		if try.unread && n / *rotParts % rotUnreadStep != 0 {
			table.add(try.class, rotUnread)
			continue
		}
		g.Go(func() error {
			fsys := x.fsys.Clone()
			try.do(fsys)
			fate, err := x.judge(fsys)
			if err != nil {
				table.violation(t, try, err)
				return nil
			}
			table.add(try.class, fate)
			return nil
		})
	}
	_ = g.Wait()
	t.Logf("%d cases in %v%s", table.cases(), time.Since(began).Round(time.Second), table)
}

// watch judges the store as it is, and notes which bytes of its files are read for that.
func (x *rotStore) watch(t *testing.T) {
	t.Helper()
	x.read = make(map[string][]bool)
	for name, data := range x.files(t) {
		x.read[name] = make([]bool, len(data))
	}
	for range 3 { // IDs of clones are random, and with them what is written; what is read is not
		fsys := vfs.NewFaulty(x.fsys.Clone())
		var mu sync.Mutex
		was := make(map[string]string) // names before they were changed
		fsys.SetHook(func(op vfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			name := op.Name
			if old, ok := was[name]; ok {
				name = old
			}
			switch read := x.read[name]; op.Kind {
			case vfs.OpRename:
				was[op.To] = name
			case vfs.OpRead:
				for i := min(op.Off, int64(len(read))); i < min(op.Off+op.Len, int64(len(read))); i++ {
					read[i] = true
				}
			}
			return nil
		})
		if fate, err := x.judge(fsys); err != nil || fate != rotHarmless {
			t.Fatalf("before anything is done: %v, %v", rotFateNames[fate], err)
		}
	}
}

// violations are printed up to this many.
const rotMaxViolations = 25

func (c *rotTable) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bad >= rotMaxViolations
}

func (c *rotTable) violation(t *testing.T, try rotTry, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bad++
	t.Errorf("%s: %s: %v", try.class, try.what, err)
}

// rotKind is the kind of file that a path is.
func rotKind(name string) string {
	switch dir := path.Base(path.Dir(name)); {
	case path.Base(name) == headerName:
		return "store header"
	case dir == dirCatalog && strings.HasSuffix(name, ".log"):
		return "catalog log"
	case dir == dirCatalog:
		return "catalog spare"
	case dir == dirJournal:
		return "journal segment"
	case strings.HasSuffix(name, ".open"):
		return "open chunk file"
	}
	return "chunk file"
}

// offsets are the bytes to flip of a file: all, or every stride-th and the first of
// each field that holds something.
func rotOffsets(data []byte) (offs []int) {
	stride := 499
	for i := range data {
		edge := data[i] != 0 && i%BlockSize < 160 && i%23 == 0
		if *rotAll || i%stride == 0 || edge || len(data)-i <= 96 && i%11 == 0 {
			offs = append(offs, i)
		}
	}
	return offs
}

func (x *rotStore) flips(t *testing.T, yield func(rotTry) bool) bool {
	masks := []byte{0x01, 0x80, 0xff}
	files := x.files(t)
	for _, name := range sortedKeys(files) {
		for n, off := range rotOffsets(files[name]) {
			for k, mask := range masks {
				if !*rotAll && n%3 != k {
					continue
				}
				do := func(fsys *vfs.Mem) { fsys.Corrupt(name, int64(off), func(p []byte) { p[0] ^= mask }) }
				what := fmt.Sprintf("%s at %d ^ %#02x", path.Base(name), off, mask)
				if !yield(rotTry{"flip: " + rotKind(name), what, do, !x.read[name][off]}) {
					return false
				}
			}
		}
	}
	return true
}

func (x *rotStore) lengths(t *testing.T, yield func(rotTry) bool) bool {
	files := x.files(t)
	for _, name := range sortedKeys(files) {
		n := len(files[name])
		step := max(1, n/10)
		if *rotAll {
			step = 1
		}
		var to []int
		for l := 0; l < n; l += step {
			to = append(to, l)
		}
		for _, l := range append(to, n-1, n+1, n+BlockSize) {
			ok := yield(rotTry{class: "length: " + rotKind(name), what: fmt.Sprintf("%s of %d cut to %d", path.Base(name), n, l), do: func(fsys *vfs.Mem) {
				f, err := fsys.Open(name)
				if err != nil {
					panic(err)
				}
				defer f.Close()
				if err := f.Truncate(int64(l)); err != nil {
					panic(err)
				}
			}})
			if !ok {
				return false
			}
		}
	}
	return true
}

func (x *rotStore) zeros(t *testing.T, yield func(rotTry) bool) bool {
	files := x.files(t)
	for _, name := range sortedKeys(files) {
		data, step := files[name], 5*sectorBytes
		if *rotAll {
			step = sectorBytes
		}
		for off := 0; off < len(data); off += step {
			sector := data[off:min(off+sectorBytes, len(data))]
			if !slices.ContainsFunc(sector, func(b byte) bool { return b != 0 }) {
				continue
			}
			ok := yield(rotTry{class: "zeroed sector: " + rotKind(name), what: fmt.Sprintf("%s at %d", path.Base(name), off), do: func(fsys *vfs.Mem) {
				fsys.Corrupt(name, int64(off), func(p []byte) { clear(p[:len(sector)]) })
			}})
			if !ok {
				return false
			}
		}
	}
	return true
}

// moves swaps, removes and duplicates files, and puts back what they were before.
func (x *rotStore) moves(t *testing.T, yield func(rotTry) bool) bool {
	files := x.files(t)
	other := newRotStore(t, true).files(t)
	names := sortedKeys(files)
	for i, a := range names {
		tries := []rotTry{{class: "removed: " + rotKind(a), what: path.Base(a), do: func(fsys *vfs.Mem) {
			if err := fsys.Remove(a); err != nil {
				panic(err)
			}
		}}}
		put := func(class, what, name string, data []byte) {
			tries = append(tries, rotTry{class: class + ": " + rotKind(a), what: what, do: func(fsys *vfs.Mem) { replace(fsys, name, data) }})
		}
		for i, moment := range x.older {
			if old, ok := moment[a]; ok && string(old) != string(files[a]) {
				put("older copy", fmt.Sprint(path.Base(a), " of moment ", i), a, old)
				put("older copy beside", fmt.Sprint(path.Base(a), " of moment ", i), rotTwin(a), old)
			}
		}
		put("duplicated", path.Base(a), rotTwin(a), files[a])
		for _, b := range sortedKeys(other) {
			if rotKind(a) == rotKind(b) {
				put("of another store", path.Base(b)+" as "+path.Base(a), a, other[b])
			}
		}
		for _, b := range names[i+1:] {
			if path.Dir(a) != path.Dir(b) {
				continue
			}
			tries = append(tries, rotTry{class: "swapped: " + rotKind(a), what: path.Base(a) + " and " + path.Base(b), do: func(fsys *vfs.Mem) {
				replace(fsys, a, files[b])
				replace(fsys, b, files[a])
			}})
		}
		for _, try := range tries {
			if !yield(try) {
				return false
			}
		}
	}
	return true
}

// rotTwin is a name that a file of the same kind could have.
func rotTwin(name string) string {
	dir, base := path.Split(name)
	if base[0] == 'f' || base == headerName || base == "spare" {
		return name + ".copy"
	}
	digit := byte('f')
	return dir + string(digit) + base[1:]
}

func replace(fsys *vfs.Mem, name string, data []byte) {
	f, err := fsys.Open(name)
	if err != nil {
		if f, err = fsys.Create(name); err != nil {
			panic(err)
		}
	}
	defer f.Close()
	if err := f.Truncate(0); err != nil {
		panic(err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		panic(err)
	}
}
