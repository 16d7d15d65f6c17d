package vfstest

import (
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

func testRemove(t *testing.T, e env) {
	wantErr(t, "Remove of nothing", e.Remove(e.in("a")), vfs.ErrNotExist)
	must(t, e.create(t, "a", "abc").Close())
	must(t, e.Remove(e.in("a")))
	_, err := e.Stat(e.in("a"))
	wantErr(t, "Stat", err, vfs.ErrNotExist)
	must(t, e.MkdirAll(e.in("d/sub")))
	wantSomeErr(t, "Remove of a full directory", e.Remove(e.in("d")))
	must(t, e.Remove(e.in("d/sub")))
	must(t, e.Remove(e.in("d")))
	e.wantNames(t, e.dir)
}

func testRemoveOpen(t *testing.T, e env) {
	f := e.create(t, "a", "old")
	must(t, e.Remove(e.in("a")))
	e.create(t, "a", "new")
	wantRead(t, f, 0, []byte("old"))
	_, err := f.WriteAt([]byte("O"), 0)
	must(t, err)
	must(t, f.Sync())
	wantRead(t, f, 0, []byte("Old"))
	_, err = f.WriteAt([]byte("far"), 1<<20)
	must(t, err)
	size, err := f.Size()
	must(t, err)
	equal(t, "Size", size, 1<<20+3)
	wantRead(t, f, 1<<20-3, []byte("\x00\x00\x00far"))
	e.wantFile(t, "a", "new")
}

func testRename(t *testing.T, e env) {
	wantErr(t, "Rename of nothing", e.Rename(e.in("a"), e.in("b")), vfs.ErrNotExist)
	f := e.create(t, "a", "A")
	must(t, e.Rename(e.in("a"), e.in("b")))
	e.wantNames(t, e.dir, "b")
	e.wantFile(t, "b", "A")
	must(t, e.Rename(e.in("b"), e.in("b")))
	e.wantFile(t, "b", "A")

	g := e.create(t, "c", "C")
	must(t, e.Rename(e.in("c"), e.in("b"))) // replaces
	e.wantNames(t, e.dir, "b")
	e.wantFile(t, "b", "C")
	wantRead(t, f, 0, []byte("A")) // still open
	wantRead(t, g, 0, []byte("C"))

	must(t, e.MkdirAll(e.in("d")))
	wantErr(t, "Rename to no directory", e.Rename(e.in("b"), e.in("none/b")), vfs.ErrNotExist)
	wantErr(t, "Rename over a directory", e.Rename(e.in("b"), e.in("d")), vfs.ErrExist)
	must(t, e.Rename(e.in("b"), e.in("d/b")))
	e.wantNames(t, e.dir, "d")
	e.wantFile(t, "d/b", "C")
}

func testRenameDir(t *testing.T, e env) {
	must(t, e.MkdirAll(e.in("d/sub")))
	e.create(t, "d/sub/f", "F")
	e.create(t, "file", "")
	must(t, e.Rename(e.in("d"), e.in("e")))
	e.wantFile(t, "e/sub/f", "F")
	e.wantNames(t, e.dir, "e", "file")
	wantSomeErr(t, "Rename of a directory over a file", e.Rename(e.in("e"), e.in("file")))
	wantSomeErr(t, "Rename into itself", e.Rename(e.in("e"), e.in("e/sub/e")))
}

func testMkdirAll(t *testing.T, e env) {
	must(t, e.MkdirAll(e.dir))
	must(t, e.MkdirAll(e.in("a/b/c")))
	must(t, e.MkdirAll(e.in("a/b/c/")))
	must(t, e.MkdirAll(e.in("a/b")))
	e.wantNames(t, e.in("a/b"), "c")
	e.create(t, "a/f", "")
	wantSomeErr(t, "MkdirAll of a file", e.MkdirAll(e.in("a/f")))
	wantSomeErr(t, "MkdirAll below a file", e.MkdirAll(e.in("a/f/x")))
}

func testReadDir(t *testing.T, e env) {
	e.wantNames(t, e.dir)
	for _, name := range []string{"b", "a", "c10", "c9"} {
		e.create(t, name, "")
	}
	must(t, e.MkdirAll(e.in("aa")))
	e.wantNames(t, e.dir, "a", "aa", "b", "c10", "c9")
	_, err := e.ReadDir(e.in("none"))
	wantErr(t, "ReadDir of nothing", err, vfs.ErrNotExist)
	_, err = e.ReadDir(e.in("a"))
	wantSomeErr(t, "ReadDir of a file", err)
}

func testStat(t *testing.T, e env) {
	_, err := e.Stat(e.in("a"))
	wantErr(t, "Stat of nothing", err, vfs.ErrNotExist)
	f := e.create(t, "a", string(make([]byte, 5000)))
	must(t, f.Sync())
	info, err := e.Stat(e.in("a"))
	must(t, err)
	equal(t, "IsDir", info.IsDir, false)
	equal(t, "Size", info.Size, 5000)
	if info.Used < 5000 {
		t.Errorf("Used is %d with 5000 zeros written", info.Used)
	}
	info, err = e.Stat(e.dir)
	must(t, err)
	equal(t, "IsDir", info.IsDir, true)
}

// testNotDir uses a file as if it were a directory.
func testNotDir(t *testing.T, e env) {
	e.create(t, "f", "")
	_, err := e.Create(e.in("f/x"))
	wantSomeErr(t, "Create", err)
	_, err = e.Open(e.in("f/x"))
	wantSomeErr(t, "Open", err)
	_, err = e.Stat(e.in("f/x"))
	wantSomeErr(t, "Stat", err)
	wantSomeErr(t, "Remove", e.Remove(e.in("f/x")))
	wantSomeErr(t, "Rename", e.Rename(e.in("f"), e.in("f/x")))
	wantSomeErr(t, "SyncDir", e.SyncDir(e.in("f")))
}

func testSyncDir(t *testing.T, e env) {
	e.create(t, "a", "abc")
	must(t, e.SyncDir(e.dir))
	e.wantFile(t, "a", "abc")
	wantErr(t, "SyncDir of nothing", e.SyncDir(e.in("none")), vfs.ErrNotExist)
}

func testLock(t *testing.T, e env) {
	_, err := e.Lock(e.in("none/lock"))
	wantErr(t, "Lock without directory", err, vfs.ErrNotExist)
	l, err := e.Lock(e.in("lock"))
	must(t, err)
	_, err = e.Lock(e.in("lock"))
	wantErr(t, "second Lock", err, vfs.ErrLocked)
	other, err := e.Lock(e.in("other"))
	must(t, err)
	must(t, other.Close())
	must(t, l.Close())
	l, err = e.Lock(e.in("lock"))
	must(t, err)
	must(t, l.Close())
	wantSomeErr(t, "second Close", l.Close())
	e.wantNames(t, e.dir, "lock", "other")
}

func testSpace(t *testing.T, e env) {
	s, err := e.Space(e.dir)
	must(t, err)
	if s.Total <= 0 || s.Free < 0 || s.Free > s.Total {
		t.Errorf("strange space: %+v", s)
	}
	_, err = e.Space(e.in("none"))
	wantErr(t, "Space of nothing", err, vfs.ErrNotExist)
}

func testWriteFileAtomic(t *testing.T, e env) {
	must(t, vfs.WriteFileAtomic(e, e.in("a"), []byte("one")))
	e.wantFile(t, "a", "one")
	e.create(t, "a.tmp", "left behind by a crash, and longer")
	must(t, vfs.WriteFileAtomic(e, e.in("a"), []byte("two")))
	e.wantFile(t, "a", "two")
	must(t, vfs.WriteFileAtomic(e, e.in("a"), nil))
	e.wantFile(t, "a", "")
	e.wantNames(t, e.dir, "a")
	_, err := vfs.ReadFile(e, e.in("none"))
	wantErr(t, "ReadFile of nothing", err, vfs.ErrNotExist)
}
