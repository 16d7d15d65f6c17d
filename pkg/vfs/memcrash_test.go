package vfs_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// outcomes crashes clones of m many times and returns what look saw, each once, sorted.
func outcomes(m *vfs.Mem, look func(m *vfs.Mem) string) []string {
	seen := map[string]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		c := m.Clone()
		c.Crash(rng, 0.5)
		seen[look(c)] = true
	}
	var all []string
	for s := range seen {
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

// wantOutcomes checks that crashes lead to just these outcomes, and keep 0 and 1 to the
// first and the last of them.
func wantOutcomes(t *testing.T, m *vfs.Mem, look func(m *vfs.Mem) string, want ...string) {
	t.Helper()
	none, all := m.Clone(), m.Clone()
	none.Crash(nil, 0)
	all.Crash(nil, 1)
	if got := look(none); got != want[0] {
		t.Errorf("keep 0: %s, want %s", got, want[0])
	}
	if got := look(all); got != want[len(want)-1] {
		t.Errorf("keep 1: %s, want %s", got, want[len(want)-1])
	}
	want = slices.Clone(want)
	slices.Sort(want)
	if got := outcomes(m, look); !slices.Equal(got, slices.Compact(want)) {
		t.Errorf("outcomes are\n%q\nwant\n%q", got, want)
	}
}

// sectors describes a file by the first byte of each sector, with 0 for zeros.
func sectors(t *testing.T, names ...string) func(m *vfs.Mem) string {
	return func(m *vfs.Mem) string {
		var out []string
		for _, name := range names {
			data := content(t, m, name)
			if data == "none" {
				out = append(out, name+":none")
				continue
			}
			s := ""
			for i := 0; i < len(data); i += 512 {
				s += strings.ReplaceAll(data[i:i+1], "\x00", "0")
			}
			out = append(out, name+":"+s)
		}
		return strings.Join(out, " ")
	}
}

func fill(chars string) string {
	s := ""
	for _, c := range chars {
		s += strings.Repeat(string(c), 512)
	}
	return strings.ReplaceAll(s, "0", "\x00")
}

func TestCrashSectorsAreIndependent(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", fill("aaa"))
	write(t, f, 0, fill("bbb"))
	wantOutcomes(t, m, sectors(t, "/a"),
		"/a:aaa", "/a:aab", "/a:aba", "/a:abb", "/a:baa", "/a:bab", "/a:bba", "/a:bbb")
	must(t, f.Datasync())
	wantOutcomes(t, m, sectors(t, "/a"), "/a:bbb")
}

func TestCrashKeepsVersionsOfASector(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", fill("a"))
	write(t, f, 0, fill("b"))
	write(t, f, 0, fill("c"))
	wantOutcomes(t, m, sectors(t, "/a"), "/a:a", "/a:b", "/a:c")
	// Whole pages take another way.
	f = durable(t, m, "/b", fill("aaaaaaaa"))
	write(t, f, 0, fill("bbbbbbbb"))
	write(t, f, 0, fill("cccccccc"))
	wantOutcomes(t, m, func(m *vfs.Mem) string { return content(t, m, "/b")[:1] }, "a", "b", "c")
	c := m.Clone()
	write(t, f, 0, fill("dddddddd"))
	wantOutcomes(t, c, func(m *vfs.Mem) string { return content(t, m, "/b")[:1] }, "a", "b", "c")
}

func TestCrashTearsAWriteAtSectors(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", strings.Repeat("a", 1024))
	write(t, f, 500, strings.Repeat("b", 24)) // 12 bytes in each
	wantOutcomes(t, m, func(m *vfs.Mem) string { return content(t, m, "/a")[499:525] },
		"a"+strings.Repeat("a", 24)+"a",
		"a"+strings.Repeat("a", 12)+strings.Repeat("b", 12)+"a",
		"a"+strings.Repeat("b", 12)+strings.Repeat("a", 12)+"a",
		"a"+strings.Repeat("b", 24)+"a")
}

func TestCrashSizeAndContentAreIndependent(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", fill("a"))
	write(t, f, 512, fill("b"))
	wantOutcomes(t, m, sectors(t, "/a"), "/a:a", "/a:a0", "/a:ab")
	write(t, f, 1024, fill("c")) // now there is a size in between
	wantOutcomes(t, m, sectors(t, "/a"),
		"/a:a", "/a:a0", "/a:ab", "/a:a00", "/a:ab0", "/a:a0c", "/a:abc")
	must(t, f.Datasync()) // the size is needed to read the content
	wantOutcomes(t, m, sectors(t, "/a"), "/a:abc")
}

func TestCrashTruncate(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", fill("abc"))
	must(t, f.Truncate(512))
	wantOutcomes(t, m, sectors(t, "/a"), "/a:abc", "/a:a")
	must(t, f.Datasync()) // nobody needs the size to read
	wantOutcomes(t, m, sectors(t, "/a"), "/a:abc", "/a:a")
	write(t, f, 512, fill("x"))
	wantOutcomes(t, m, sectors(t, "/a"), "/a:abc", "/a:a0", "/a:axc", "/a:a", "/a:ax")
	must(t, f.Datasync())
	wantOutcomes(t, m, sectors(t, "/a"), "/a:axc", "/a:ax")
	must(t, f.Sync())
	wantOutcomes(t, m, sectors(t, "/a"), "/a:ax")
}

func TestCrashTruncateAndGrow(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", fill("ab"))
	must(t, f.Truncate(256))
	must(t, f.Truncate(1024))
	look := func(m *vfs.Mem) string {
		s := content(t, m, "/a")
		return fmt.Sprintf("%d %d %d", len(s), strings.Count(s, "a"), strings.Count(s, "b"))
	}
	// All of it is lost, the growing is, or nothing.
	wantOutcomes(t, m, look, "1024 512 512", "256 256 0", "1024 256 0")
	must(t, f.Datasync())
	wantOutcomes(t, m, look, "1024 256 0")
}

func TestCrashTruncateOfUnsynced(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", fill("ab"))
	write(t, f, 0, fill("xy"))
	must(t, f.Truncate(512))
	wantOutcomes(t, m, sectors(t, "/a"), "/a:ab", "/a:xb", "/a:a", "/a:x")

	f = durable(t, m, "/b", "")
	write(t, f, 0, fill("x"))
	write(t, f, 0, fill("y"))
	must(t, f.Truncate(100))
	must(t, f.Truncate(512))
	look := func(m *vfs.Mem) string {
		s := content(t, m, "/b")
		return fmt.Sprintf("%d %d %d", len(s), strings.Count(s, "x"), strings.Count(s, "y"))
	}
	wantOutcomes(t, m, look, "0 0 0", "100 0 0", "100 100 0", "100 0 100",
		"512 0 0", "512 100 0", "512 0 100")
}

func TestCrashAllocate(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", "")
	must(t, f.Allocate(0, 8192))
	look := func(m *vfs.Mem) string {
		info, err := m.Stat("/a")
		must(t, err)
		return fmt.Sprintf("%d %d", info.Size, info.Used)
	}
	wantOutcomes(t, m, look, "0 0", "8192 0", "8192 4096", "8192 8192")
	must(t, f.Datasync())
	wantOutcomes(t, m, look, "8192 0", "8192 4096", "8192 8192")
	write(t, f, 0, "x")
	must(t, f.Datasync())
	wantOutcomes(t, m, look, "8192 4096", "8192 8192")
	must(t, f.Sync())
	wantOutcomes(t, m, look, "8192 8192")
}

func TestCrashNamesAreIndependent(t *testing.T) {
	m := vfs.NewMem()
	durable(t, m, "/old", "o")
	for _, name := range []string{"/a", "/b"} {
		must(t, create(t, m, name, name[1:]).Sync()) // a synced file has no durable name
	}
	must(t, m.Remove("/old"))
	wantOutcomes(t, m, sectors(t, "/a", "/b", "/old"),
		"/a:none /b:none /old:o", "/a:a /b:none /old:o", "/a:none /b:b /old:o",
		"/a:a /b:b /old:o", "/a:none /b:none /old:none", "/a:a /b:none /old:none",
		"/a:none /b:b /old:none", "/a:a /b:b /old:none")
	must(t, m.SyncDir("/"))
	wantOutcomes(t, m, sectors(t, "/a", "/b", "/old"), "/a:a /b:b /old:none")
}

func TestCrashDurableNameWithoutContent(t *testing.T) {
	m := vfs.NewMem()
	create(t, m, "/a", fill("ab"))
	must(t, m.SyncDir("/"))
	wantOutcomes(t, m, sectors(t, "/a"), "/a:", "/a:00", "/a:a0", "/a:0b", "/a:ab")
}

func TestCrashRenameIsAtomic(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.MkdirAll("/d"))
	durable(t, m, "/a", "a")
	durable(t, m, "/b", "b")
	must(t, m.Rename("/a", "/b"))
	look := sectors(t, "/a", "/b", "/d/c")
	wantOutcomes(t, m, look, "/a:a /b:b /d/c:none", "/a:none /b:a /d/c:none")
	must(t, m.Rename("/b", "/d/c"))
	wantOutcomes(t, m, look,
		"/a:a /b:b /d/c:none", "/a:none /b:a /d/c:none", "/a:none /b:none /d/c:a")
	for _, dir := range []string{"/", "/d"} { // either is enough, and takes the first along
		c := m.Clone()
		must(t, c.SyncDir(dir))
		wantOutcomes(t, c, look, "/a:none /b:none /d/c:a")
	}
}

func TestCrashRenameOfUnsyncedName(t *testing.T) {
	m := vfs.NewMem()
	must(t, create(t, m, "/a.tmp", "x").Sync())
	must(t, m.Rename("/a.tmp", "/a"))
	wantOutcomes(t, m, sectors(t, "/a.tmp", "/a"),
		"/a.tmp:none /a:none", "/a.tmp:x /a:none", "/a.tmp:none /a:x")
}

func TestCrashNameUsedAgain(t *testing.T) {
	m := vfs.NewMem()
	durable(t, m, "/a", "1")
	must(t, m.Remove("/a"))
	must(t, create(t, m, "/a", "2").Sync())
	wantOutcomes(t, m, sectors(t, "/a"), "/a:1", "/a:none", "/a:2")
}

func TestCrashSyncDirIsForOneDirectory(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.MkdirAll("/d/e")) // durable at once
	must(t, create(t, m, "/a", "a").Sync())
	must(t, create(t, m, "/d/a", "a").Sync())
	must(t, create(t, m, "/d/e/a", "a").Sync())
	must(t, m.SyncDir("/d"))
	wantOutcomes(t, m, sectors(t, "/a", "/d/a", "/d/e/a"),
		"/a:none /d/a:a /d/e/a:none", "/a:a /d/a:a /d/e/a:none",
		"/a:none /d/a:a /d/e/a:a", "/a:a /d/a:a /d/e/a:a")
}

func TestCrashRemovedDirectory(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.MkdirAll("/d"))
	must(t, create(t, m, "/d/x", "x").Sync())
	must(t, m.SyncDir("/d"))
	must(t, m.Rename("/d/x", "/y"))
	must(t, m.Remove("/d"))
	look := func(m *vfs.Mem) string {
		_, err := m.Stat("/d")
		return fmt.Sprint(sectors(t, "/d/x", "/y")(m), " ", err == nil)
	}
	// The directory is not gone with the file still in it.
	wantOutcomes(t, m, look,
		"/d/x:x /y:none true", "/d/x:none /y:x true", "/d/x:none /y:x false")
	must(t, m.SyncDir("/"))
	wantOutcomes(t, m, look, "/d/x:none /y:x false")
}

func TestCrashRemovedDirectoryIsDurableWithWhatItBuildsOn(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.MkdirAll("/d"))
	must(t, m.MkdirAll("/e"))
	must(t, create(t, m, "/d/x", "x").Sync())
	must(t, m.SyncDir("/d"))
	must(t, m.Rename("/d/x", "/e/x"))
	must(t, m.Remove("/d"))
	must(t, m.SyncDir("/"))
	wantOutcomes(t, m, sectors(t, "/d/x", "/e/x"), "/d/x:none /e/x:x")
}

func TestCrashEndsHandlesAndLocks(t *testing.T) {
	for name, end := range map[string]func(*vfs.Mem){
		"Crash": func(m *vfs.Mem) { m.Crash(nil, 1) },
		"Kill":  func(m *vfs.Mem) { m.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			m := vfs.NewMem()
			f := create(t, m, "/a", "abc")
			l, err := m.Lock("/lock")
			must(t, err)
			end(m)
			p := make([]byte, 1)
			_, read := f.ReadAt(p, 0)
			_, write := f.WriteAt(p, 0)
			_, vec := f.WriteVec([][]byte{p}, 0)
			_, size := f.Size()
			for i, err := range []error{
				read, write, vec, size, f.Sync(), f.Datasync(), f.Truncate(0),
				f.Allocate(0, 1), f.Close(), l.Close(),
			} {
				wantErr(t, fmt.Sprint("call ", i), err, vfs.ErrDead)
			}
			again, err := m.Lock("/lock")
			must(t, err)
			wantErr(t, "Close of the old lock", l.Close(), vfs.ErrDead)
			_, err = m.Lock("/lock")
			wantErr(t, "Lock", err, vfs.ErrLocked) // the old one did not end the new one
			must(t, again.Close())
			want(t, m, "/a", "abc")
		})
	}
}

func TestKillLosesNothingButMakesNothingDurable(t *testing.T) {
	m := vfs.NewMem()
	f := durable(t, m, "/a", "a")
	write(t, f, 0, "b")
	create(t, m, "/c", "c")
	m.Kill()
	want(t, m, "/a", "b")
	want(t, m, "/c", "c")
	m.Crash(nil, 0)
	want(t, m, "/a", "a")
	want(t, m, "/c", "none")
}

func TestCrashMakesTheRestDurable(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(100 * 4096)
	create(t, m, "/a", fill("abc"))
	must(t, m.Rename("/a", "/b"))
	m.Crash(nil, 1)
	wantFree(t, m, 99)
	m.Crash(nil, 0)
	want(t, m, "/b", fill("abc"))
	wantFree(t, m, 99)
	must(t, m.Remove("/b"))
	wantFree(t, m, 100)
	m.Crash(nil, 0)
	wantFree(t, m, 99)
}

// What took the space of a removed file can only have got it once the removal was durable.
func TestCrashFitsTheCapacity(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(2 * 4096)
	must(t, durable(t, m, "/a", fill("abc")).Close())
	must(t, durable(t, m, "/b", fill("def")).Close())
	f := durable(t, m, "/c", "")
	must(t, m.Remove("/a"))

	c := m.Clone()
	c.Crash(nil, 0) // nobody took its space: the removal can still be lost
	want(t, c, "/a", fill("abc"))
	wantFree(t, c, 0)

	write(t, f, 0, fill("ghi"))
	must(t, f.Sync())
	m.Crash(nil, 0)
	want(t, m, "/a", "none")
	want(t, m, "/c", fill("ghi"))
	wantFree(t, m, 0)
}
