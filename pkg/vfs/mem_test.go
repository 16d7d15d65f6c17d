package vfs_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
)

func TestMem(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) {
		m := vfs.NewMem()
		must(t, m.MkdirAll("/dir"))
		return m, "/dir"
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error is %v, want %v", what, err, want)
	}
}

// create makes a file with data, nothing of it synced.
func create(t *testing.T, fsys vfs.FS, name, data string) vfs.File {
	t.Helper()
	f, err := fsys.Create(name)
	must(t, err)
	write(t, f, 0, data)
	return f
}

// durable makes a file with data, all of it synced.
func durable(t *testing.T, fsys vfs.FS, name, data string) vfs.File {
	t.Helper()
	f := create(t, fsys, name, data)
	must(t, f.Sync())
	must(t, fsys.SyncDir("/"))
	return f
}

func write(t *testing.T, f vfs.File, off int64, data string) {
	t.Helper()
	_, err := f.WriteAt([]byte(data), off)
	must(t, err)
}

// content returns what a file holds; "none" if it is not there.
func content(t *testing.T, fsys vfs.FS, name string) string {
	t.Helper()
	data, err := vfs.ReadFile(fsys, name)
	if errors.Is(err, vfs.ErrNotExist) {
		return "none"
	}
	must(t, err)
	return string(data)
}

func want(t *testing.T, fsys vfs.FS, name, want string) {
	t.Helper()
	if got := content(t, fsys, name); got != want {
		t.Fatalf("%s has %.80q (%d bytes), want %.80q (%d bytes)", name, got, len(got), want, len(want))
	}
}

func free(t *testing.T, fsys vfs.FS) int64 {
	t.Helper()
	s, err := fsys.Space("/")
	must(t, err)
	return s.Free
}

func wantFree(t *testing.T, fsys vfs.FS, pages int64) {
	t.Helper()
	if got := free(t, fsys); got != pages*4096 {
		t.Fatalf("free space is %d bytes, want %d pages", got, pages)
	}
}

func TestMemCapacityOfWrites(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(4*4096 + 100) // the last 100 bytes are of no use
	wantFree(t, m, 4)
	f := create(t, m, "/a", strings.Repeat("x", 4097))
	wantFree(t, m, 2)
	write(t, f, 4097, strings.Repeat("x", 4095)) // pages that are there
	wantFree(t, m, 2)

	n, err := f.WriteAt(bytes.Repeat([]byte("y"), 4*4096), 4096+1000)
	wantErr(t, "WriteAt", err, vfs.ErrNoSpace)
	if n != 3*4096-1000 {
		t.Errorf("%d bytes written", n)
	}
	size, _ := f.Size()
	if size != 4*4096 {
		t.Errorf("size is %d", size)
	}
	wantFree(t, m, 0)
	write(t, f, 0, strings.Repeat("z", 4*4096)) // overwriting needs no space
	n, err = f.WriteVec([][]byte{[]byte("12"), []byte("34")}, 4*4096-3)
	wantErr(t, "WriteVec", err, vfs.ErrNoSpace)
	if n != 3 {
		t.Errorf("%d bytes written", n)
	}
	n, err = f.WriteAt([]byte("x"), 1<<30)
	wantErr(t, "WriteAt", err, vfs.ErrNoSpace)
	if size, _ := f.Size(); n != 0 || size != 4*4096 {
		t.Errorf("%d bytes written, size is %d", n, size)
	}
}

func TestMemCapacityGivenBack(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(4 * 4096)
	f := create(t, m, "/a", strings.Repeat("x", 4*4096))
	must(t, f.Truncate(4097))
	wantFree(t, m, 2)
	must(t, m.Remove("/a"))
	wantFree(t, m, 2) // still open
	write(t, f, 8192, "x")
	wantFree(t, m, 1)
	must(t, f.Close())
	wantFree(t, m, 4)

	must(t, create(t, m, "/b", "b").Close())
	must(t, create(t, m, "/c", "c").Close())
	wantFree(t, m, 2)
	must(t, m.Rename("/b", "/c"))
	wantFree(t, m, 3)

	f = create(t, m, "/d", strings.Repeat("\x00", 3*4096)) // zeros take space too
	wantFree(t, m, 0)
	must(t, m.Remove("/d"))
	m.Kill() // closes it
	wantFree(t, m, 3)
	wantErr(t, "Close", f.Close(), vfs.ErrDead)
	wantFree(t, m, 3)
}

func TestMemCapacityOfAllocate(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(4 * 4096)
	f := create(t, m, "/a", "x")
	must(t, f.Allocate(100, 2*4096))
	wantFree(t, m, 1)
	wantErr(t, "Allocate", f.Allocate(0, 5*4096), vfs.ErrNoSpace)
	wantFree(t, m, 1)
	must(t, f.Allocate(0, 4*4096))
	wantFree(t, m, 0)
	must(t, f.Allocate(0, 4*4096))
	write(t, f, 0, strings.Repeat("x", 4*4096))
	m.SetCapacity(0)
	write(t, f, 1<<20, "x")
	m.SetCapacity(1)
	wantFree(t, m, 0)
	_, err := f.WriteAt([]byte("x"), 1<<21)
	wantErr(t, "WriteAt", err, vfs.ErrNoSpace)
}

func TestMemClone(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(100 * 4096)
	f := durable(t, m, "/a", strings.Repeat("a", 600))
	write(t, f, 0, "b")
	must(t, m.Rename("/a", "/b"))
	gone := create(t, m, "/gone", "x")
	must(t, m.Remove("/gone"))
	c := m.Clone()
	if m.Digest() != c.Digest() {
		t.Error("the clone differs")
	}
	wantFree(t, m, 98)
	wantFree(t, c, 99)
	write(t, f, 0, "c")
	write(t, gone, 0, "y")
	want(t, c, "/b", "b"+strings.Repeat("a", 599))
	g, err := c.Open("/b")
	must(t, err)
	write(t, g, 1, "d")
	want(t, m, "/b", "c"+strings.Repeat("a", 599))

	// What was at stake is so in the clone, on its own.
	d := c.Clone()
	c.Crash(nil, 0)
	want(t, c, "/a", strings.Repeat("a", 600))
	want(t, c, "/b", "none")
	d.Crash(nil, 1)
	want(t, d, "/a", "none")
	want(t, d, "/b", "bd"+strings.Repeat("a", 598))
	want(t, m, "/b", "c"+strings.Repeat("a", 599))
	must(t, f.Close())
}

func TestMemCorrupt(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", strings.Repeat("a", 5000))
	write(t, f, 0, "b") // sector 0 is not synced
	must(t, f.Truncate(1<<20))
	must(t, f.Sync())
	write(t, f, 0, "c")
	write(t, f, 0, "d")
	m.Corrupt("/a", 1, func(p []byte) {
		p[0], p[4098], p[100000] = 'X', 'Y', 'Z'
	})
	for keep, first := range []string{"b", "d"} {
		c := m.Clone()
		c.Crash(nil, float64(keep))
		got := content(t, c, "/a")
		if got[:3] != first+"Xa" || got[4098:4101] != "aYa" || got[100000:100003] != "\x00Z\x00" {
			t.Errorf("keep %d: %q %q %q", keep, got[:3], got[4098:4101], got[100000:100003])
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic without a file")
		}
	}()
	m.Corrupt("/none", 0, func([]byte) {})
}

func TestMemOpsAndDigest(t *testing.T) {
	m := vfs.NewMem()
	digests := map[[32]byte]bool{m.Digest(): true}
	step := func(ops int64, fn func()) {
		t.Helper()
		before := m.Ops()
		fn()
		if got := m.Ops() - before; got != ops {
			t.Errorf("%d operations, want %d", got, ops)
		}
		if digests[m.Digest()] {
			t.Error("the digest did not change")
		}
		digests[m.Digest()] = true
	}
	var f vfs.File
	step(2, func() { f = create(t, m, "/a", "abc") })
	step(1, func() { must(t, m.Rename("/a", "/b")) })
	step(2, func() { write(t, f, 0, "x"); must(t, f.Sync()) })
	step(1, func() { must(t, f.Truncate(10)) })
	step(1, func() { must(t, m.MkdirAll("/d")) })
}

// BenchmarkMem is what a simulation does all the time: small appends, syncs, clones.
func BenchmarkMem(b *testing.B) {
	p := make([]byte, 700)
	for i := range p {
		p[i] = byte(i)
	}
	for b.Loop() {
		m := vfs.NewMem()
		f, err := m.Create("/a")
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Allocate(0, 1<<20); err != nil {
			b.Fatal(err)
		}
		for i := range int64(100) {
			if _, err := f.WriteAt(p, i*700); err != nil {
				b.Fatal(err)
			}
			if err := f.Datasync(); err != nil {
				b.Fatal(err)
			}
		}
		m.Clone().Crash(nil, 0)
	}
}

// TestMemConcurrent is for the race detector: clones share blocks with what goes on.
func TestMemConcurrent(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", strings.Repeat("a", 3*4096))
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 200 {
			p := bytes.Repeat([]byte{byte('a' + i%26)}, 5000)
			if _, err := f.WriteAt(p, int64(i)); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		wg.Go(func() {
			for range 50 {
				c := m.Clone()
				g, err := c.Open("/a")
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := g.WriteAt([]byte("xyz"), 100); err != nil {
					t.Error(err)
				}
				c.Crash(nil, 0)
				c.Digest()
			}
		})
	}
	wg.Wait()
}
