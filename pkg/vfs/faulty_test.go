package vfs_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
)

var errTest = errors.New("error of the test")

func TestFaulty(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) { return vfs.NewFaulty(vfs.NewMem()), "/" })
}

// everyOp does each kind of operation once, in the order of the kinds but for close.
func everyOp(fsys vfs.FS) []error {
	var errs []error
	add := func(_ any, err error) { errs = append(errs, err) }
	f, err := fsys.Open("/a")
	add(nil, err)
	add(fsys.Create("/b"))
	add(fsys.OpenReadOnly("/a"))
	add(nil, fsys.Rename("/a", "/c"))
	add(nil, fsys.Rename("/c", "/a"))
	add(nil, fsys.MkdirAll("/d"))
	add(fsys.ReadDir("/"))
	add(fsys.Stat("/a"))
	add(nil, fsys.SyncDir("/"))
	l, err := fsys.Lock("/lock")
	add(nil, err)
	add(fsys.Space("/"))
	if f != nil {
		add(f.ReadAt(make([]byte, 1), 2))
		add(f.WriteAt([]byte("x"), 3))
		add(f.WriteVec([][]byte{[]byte("x"), []byte("yz")}, 4))
		add(nil, f.Sync())
		add(nil, f.Datasync())
		add(nil, f.Truncate(10))
		add(nil, f.Allocate(5, 6))
		add(f.Size())
		add(nil, f.Close())
	}
	if l != nil {
		add(nil, l.Close())
	}
	add(nil, fsys.Remove("/a"))
	return errs
}

func TestFaultyTellsOps(t *testing.T) {
	m := vfs.NewMem()
	create(t, m, "/a", "abc")
	f := vfs.NewFaulty(m)
	var got []string
	f.SetHook(func(op vfs.Op) error {
		got = append(got, strings.TrimSpace(fmt.Sprintln(op.Index, op.Kind, op.Name+op.To, op.Off, op.Len)))
		return nil
	})
	for _, err := range everyOp(f) {
		must(t, err)
	}
	want := []string{
		"0 open /a 0 0", "1 create /b 0 0", "2 open /a 0 0", "3 rename /a/c 0 0",
		"4 rename /c/a 0 0", "5 mkdir /d 0 0", "6 readdir / 0 0", "7 stat /a 0 0",
		"8 syncdir / 0 0", "9 lock /lock 0 0", "10 space / 0 0", "11 read /a 2 1",
		"12 write /a 3 1", "13 write /a 4 3", "14 sync /a 0 0", "15 datasync /a 0 0",
		"16 truncate /a 10 0", "17 allocate /a 5 6", "18 stat /a 0 0", "19 close /a 0 0",
		"20 close /lock 0 0", "21 remove /a 0 0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("operations are\n%q\nwant\n%q", got, want)
	}
	if f.Count() != int64(len(want)) {
		t.Errorf("Count is %d", f.Count())
	}
}

// TestFaultyFailsEachOp fails one operation after the other: it fails with the error,
// does nothing, and the others are as they were.
func TestFaultyFailsEachOp(t *testing.T) {
	for n := range int64(22) {
		m := vfs.NewMem()
		create(t, m, "/a", "abc")
		f := vfs.NewFaulty(m)
		f.FailNth(n, errTest, false)
		failed := 0
		for _, err := range everyOp(f) {
			if errors.Is(err, errTest) {
				failed++
			}
		}
		if failed != 1 {
			t.Errorf("n=%d: %d operations failed", n, failed)
		}
	}
}

func TestFaultyFailsBefore(t *testing.T) {
	m := vfs.NewMem()
	create(t, m, "/a", "abc")
	f := vfs.NewFaulty(m)
	file, err := f.Open("/a")
	must(t, err)
	lock, err := f.Lock("/lock")
	must(t, err)
	before, ops := m.Digest(), m.Ops()
	f.FailNth(0, errTest, true)
	for _, err := range append(everyOp(f), file.Sync(), file.Truncate(0), file.Allocate(0, 9)) {
		wantErr(t, "operation", err, errTest)
	}
	if n, err := file.WriteAt([]byte("x"), 0); n != 0 || !errors.Is(err, errTest) {
		t.Errorf("WriteAt: %d, %v", n, err)
	}
	if m.Digest() != before || m.Ops() != ops {
		t.Error("a failed operation did something")
	}
	wantErr(t, "Close", lock.Close(), errTest)
	_, err = m.Lock("/lock") // closed in any case
	must(t, err)
	f.SetHook(nil)
	wantErr(t, "Close", file.Close(), nil)
}

func TestFaultyFailNthCountsFromNow(t *testing.T) {
	f := vfs.NewFaulty(vfs.NewMem())
	must(t, f.MkdirAll("/d"))
	f.FailNth(1, errTest, false)
	must(t, f.MkdirAll("/d"))
	wantErr(t, "second", f.MkdirAll("/d"), errTest)
	must(t, f.MkdirAll("/d"))
}

func TestFaultyShortWrite(t *testing.T) {
	m := vfs.NewMem()
	f := vfs.NewFaulty(m)
	file := create(t, f, "/a", "......")
	short := vfs.ShortWrite{N: 3, Err: vfs.ErrNoSpace}
	f.FailNth(0, short, true)
	n, err := file.WriteVec([][]byte{[]byte("ab"), []byte("cd"), []byte("ef")}, 0)
	wantErr(t, "WriteVec", err, vfs.ErrNoSpace)
	if n != 3 {
		t.Errorf("%d bytes written", n)
	}
	want(t, m, "/a", "abc...")
	n, err = file.WriteAt([]byte("x"), 5) // no more than there is
	wantErr(t, "WriteAt", err, vfs.ErrNoSpace)
	if n != 1 {
		t.Errorf("%d bytes written", n)
	}
	if err := file.Sync(); err != vfs.ErrNoSpace {
		t.Errorf("Sync: %v", err)
	}
	if !errors.Is(fmt.Errorf("wrapped: %w", short), vfs.ErrNoSpace) {
		t.Error("ShortWrite hides its error")
	}
}

// TestFaultySyncLosesData: after a failed sync the data is still read, but a later sync
// does not make it durable (I8).
func TestFaultySyncLosesData(t *testing.T) {
	for name, sync := range map[string]func(vfs.File) error{
		"Sync":     vfs.File.Sync,
		"Datasync": vfs.File.Datasync,
	} {
		t.Run(name, func(t *testing.T) {
			m := vfs.NewMem()
			must(t, durable(t, m, "/a", fill("aaaaaaaaa")).Close())
			f := vfs.NewFaulty(vfs.NewFaulty(m))
			file, err := f.Open("/a")
			must(t, err)
			write(t, file, 512, fill("b"))
			write(t, file, 8*512, fill("bb"))
			f.FailNth(0, errTest, false)
			wantErr(t, "sync", sync(file), errTest)
			want(t, m, "/a", fill("abaaaaaabb"))
			must(t, sync(file)) // lies
			want(t, m, "/a", fill("abaaaaaabb"))
			lied := m.Clone()
			lied.Crash(nil, 0)
			want(t, lied, "/a", fill("aaaaaaaaa0"))

			// Of the pages that failed, one is written to again, and is saved by that.
			write(t, file, 0, fill("c"))
			must(t, sync(file))
			wantOutcomes(t, m, sectors(t, "/a"),
				"/a:cbaaaaaaa0", "/a:cbaaaaaaab", "/a:cbaaaaaab0", "/a:cbaaaaaabb")
		})
	}
}

// TestWriteFileAtomicTrace: each of these calls is needed, in this order.
func TestWriteFileAtomicTrace(t *testing.T) {
	f := vfs.NewFaulty(vfs.NewMem())
	var got []string
	f.SetHook(func(op vfs.Op) error {
		got = append(got, strings.TrimSpace(op.Kind.String()+" "+op.Name+" "+op.To))
		return nil
	})
	must(t, f.MkdirAll("/d"))
	for range 2 {
		got = nil
		must(t, vfs.WriteFileAtomic(f, "/d/a", []byte("data")))
		want := []string{
			"create /d/a.tmp", "write /d/a.tmp", "sync /d/a.tmp", "close /d/a.tmp",
			"rename /d/a.tmp /d/a", "syncdir /d",
		}
		if !slices.Equal(got, want) {
			t.Errorf("trace is %q, want %q", got, want)
		}
	}
}

// TestWriteFileAtomicFails fails each operation, once or from there on, and crashes:
// the file is old or new, and new if there was no error.
func TestWriteFileAtomicFails(t *testing.T) {
	for n := range int64(10) {
		for _, persistent := range []bool{false, true} {
			for keep := range 2 {
				m := vfs.NewMem()
				must(t, vfs.WriteFileAtomic(m, "/a", []byte("old")))
				f := vfs.NewFaulty(m)
				f.FailNth(n, vfs.ErrNoSpace, persistent)
				err := vfs.WriteFileAtomic(f, "/a", []byte("new"))
				if err != nil {
					wantErr(t, "WriteFileAtomic", err, vfs.ErrNoSpace)
				}
				if failed := f.Count() > n; failed != (err != nil) {
					t.Errorf("n=%d: error is %v", n, err)
				}
				m.Crash(nil, float64(keep))
				if got := content(t, m, "/a"); got != "new" && (err == nil || got != "old") {
					t.Errorf("n=%d: %q after %v", n, got, err)
				}
				must(t, vfs.WriteFileAtomic(m, "/a", []byte("newer")))
				want(t, m, "/a", "newer")
			}
		}
	}
}

// TestWriteFileAtomicFullDisk: what could not be written takes no space.
func TestWriteFileAtomicFullDisk(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(3 * 4096)
	must(t, vfs.WriteFileAtomic(m, "/a", []byte("old")))
	err := vfs.WriteFileAtomic(m, "/a", make([]byte, 5*4096))
	wantErr(t, "WriteFileAtomic", err, vfs.ErrNoSpace)
	wantFree(t, m, 2)
	want(t, m, "/a", "old")
}

func TestReadFileError(t *testing.T) {
	m := vfs.NewMem()
	create(t, m, "/a", "abc")
	f := vfs.NewFaulty(m)
	for n := range int64(4) {
		f.FailNth(n, io.ErrUnexpectedEOF, false)
		_, err := vfs.ReadFile(f, "/a")
		wantErr(t, "ReadFile", err, io.ErrUnexpectedEOF)
	}
}

// What an earlier crash has left in the way and cannot be taken away is told.
func TestWriteFileAtomicOverLeftover(t *testing.T) {
	mem := vfs.NewMem()
	f := vfs.NewFaulty(mem)
	must(t, mem.MkdirAll("/d"))
	left, err := mem.Create("/d/a.tmp")
	must(t, err)
	must(t, left.Close())
	f.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRemove {
			return errTest
		}
		return nil
	})
	if err := vfs.WriteFileAtomic(f, "/d/a", nil); !errors.Is(err, errTest) || !strings.HasPrefix(err.Error(), "write /d/a: ") {
		t.Error(err)
	}
	f.SetHook(nil)
	must(t, vfs.WriteFileAtomic(f, "/d/a", nil))
}
