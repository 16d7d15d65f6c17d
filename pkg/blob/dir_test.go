package blob

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
)

func newDir(t *testing.T, fsys vfs.FS) *Dir {
	t.Helper()
	leaktest.Check(t)
	d, err := NewDir(fsys, "/a/chunks", 2)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func create(t *testing.T, d *Dir, name, content string) *File {
	t.Helper()
	f, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Writer().WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Writer().Datasync(); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSealIsDurable(t *testing.T) {
	mem := vfs.NewMem()
	d := newDir(t, mem)
	f := create(t, d, "x.open", "hello")
	if err := f.Seal("x.chunks"); err != nil {
		t.Fatal(err)
	}
	if f.Name() != "x.chunks" || f.Writer() != nil || !errors.Is(f.Seal("y"), ErrSealed) {
		t.Error("still open for writing")
	}
	mem.Crash(nil, 0)
	l, err := newDir(t, mem).List()
	if err != nil || len(l) != 1 || l[0] != (Info{"x.chunks", 5}) {
		t.Fatal(l, err)
	}
}

// A removed file can be read to the end by who holds it, and by nobody else.
func TestRemoveInUse(t *testing.T) {
	d := newDir(t, vfs.NewMem())
	f := create(t, d, "x.open", "hello")
	f.Finish()
	release, err := f.Hold()
	if err != nil {
		t.Fatal(err)
	}
	h := f.mu.h
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := h.ReadAt(b, 0); err != nil || string(b) != "hello" {
		t.Fatal(string(b), err)
	}
	release()
	if _, err := f.ReadAt(b, 0); !errors.Is(err, vfs.ErrNotExist) {
		t.Fatal(err)
	}
	if f.mu.h != nil {
		t.Error("descriptor was left open")
	}
}

// No more idle descriptors are kept than the limit, whatever the readers do.
func TestDescriptors(t *testing.T) {
	d := newDir(t, vfs.NewMem())
	var files []*File
	for i := range 20 {
		f := create(t, d, fmt.Sprint(i), "hello")
		f.Finish()
		files = append(files, f)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			b := make([]byte, 5)
			for i := range 500 {
				f := files[(i*7+g*3)%len(files)]
				if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, vfs.ErrNotExist) || err == nil && string(b) != "hello" {
					t.Error(string(b), err)
				}
				if i == 400 && g == 0 {
					files[5].Remove()
				}
				if i == 450 && g == 1 {
					d.Close()
				}
			}
		})
	}
	wg.Wait()
	open := 0
	for _, f := range files {
		if f.mu.h != nil {
			open++
		}
	}
	if open > 2 {
		t.Errorf("%d descriptors open", open)
	}
}

// openFiles counts the descriptors that a file system has handed out and not got back.
func openFiles(fsys *vfs.Faulty) (open func() int) {
	var descriptors vfstest.Descriptors
	fsys.SetHook(func(op vfs.Op) error {
		descriptors.See(op)
		return nil
	})
	return descriptors.Open
}

// What is not needed any more has no descriptor, and a removed file is gone, for those
// too who find a descriptor of it open.
func TestNothingStaysOpen(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	d := newDir(t, fsys)
	open := openFiles(fsys)
	want := func(what string, n int) {
		t.Helper()
		if open() != n {
			t.Errorf("%s: %d files are open, want %d", what, open(), n)
		}
	}
	read := func(f *File) error { _, err := f.ReadAt(make([]byte, 5), 0); return err }
	var files []*File
	for i := range 4 {
		files = append(files, create(t, d, fmt.Sprint(i), "hello"))
	}
	want("written", 4)
	files[0].Finish()
	files[0].Finish()
	files[1].Finish()
	files[2].Finish()
	want("at most two idle, and one written", 3)
	if err := files[3].DropCache(); err != nil {
		t.Error(err)
	}
	want("a file that is written stays open", 3)
	release, err := files[2].Hold()
	if err != nil {
		t.Fatal(err)
	}
	if err := files[2].Remove(); err != nil {
		t.Fatal(err)
	}
	if err := read(files[2]); !errors.Is(err, vfs.ErrNotExist) {
		t.Errorf("a removed file was read by who came later: %v", err)
	}
	want("removed while it is held", 3)
	release()
	want("removed and let go of", 2)
	if err := files[1].Remove(); err != nil {
		t.Fatal(err)
	}
	want("removed while idle", 1)
	if err := files[3].Remove(); err != nil {
		t.Fatal(err)
	}
	want("removed while written", 0)
	if err := read(files[0]); err != nil {
		t.Error(err)
	}
	want("read again", 1)
	files[0].Close()
	want("closed by itself", 0)
	if err := read(files[0]); err != nil {
		t.Error(err)
	}
	want("read once more", 1)
	release, err = files[0].Hold()
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	files[0].Close()
	if err := read(files[0]); err != nil {
		t.Error(err)
	}
	want("closed while it is held", 1)
	release()
	d.Close()
	want("closed", 0)
	if l, err := d.List(); err != nil || len(l) != 1 || l[0].Name != "0" {
		t.Errorf("files in the directory: %v, %v", l, err)
	}
}

// A file that is read, and not idle, is never closed for another's sake.
func TestHeldFilesStayOpen(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	d := newDir(t, fsys)
	open := openFiles(fsys)
	var files []*File
	for i := range 5 {
		f := create(t, d, fmt.Sprint(i), "hello")
		f.Finish()
		files = append(files, f)
	}
	var releases []func()
	for range 2 {
		for _, f := range files {
			release, err := f.Hold()
			if err != nil {
				t.Fatal(err)
			}
			releases = append(releases, release)
		}
	}
	if open() != 5 {
		t.Errorf("%d of 5 held files are open", open())
	}
	for i, release := range releases {
		release()
		if want := min(5, 2+len(releases)-i-1); open() != want { // those held, and two idle
			t.Errorf("%d files are open after %d of 10 were let go of, want %d", open(), i+1, want)
		}
	}
}

// Every way to the directory that fails says which file it was about.
func TestFaultsAreTold(t *testing.T) {
	broken := errors.New("broken")
	fsys := vfs.NewFaulty(vfs.NewMem())
	d := newDir(t, fsys)
	create(t, d, "x.open", "hello").Finish()
	d.Close()
	var descriptors vfstest.Descriptors
	for _, c := range []struct {
		kind vfs.OpKind
		do   func() error
		text string
	}{
		{vfs.OpReadDir, func() error { _, err := d.List(); return err }, "list /a/chunks: broken"},
		{vfs.OpStat, func() error { _, err := d.List(); return err }, "list /a/chunks: broken"},
		{vfs.OpOpen, func() error { _, err := d.OpenWrite("x.open"); return err }, "open x.open: broken"},
		{vfs.OpCreate, func() error { _, err := d.Create("y.open"); return err }, "create y.open: broken"},
		{vfs.OpSyncDir, func() error { _, err := d.Create("y.open"); return err }, "create y.open: broken"},
	} {
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == c.kind {
				return broken
			}
			descriptors.See(op)
			return nil
		})
		if err := c.do(); !errors.Is(err, broken) || err.Error() != c.text {
			t.Errorf("%v fails: %v, want %q", c.kind, err, c.text)
		}
		if open := descriptors.Open(); open != 0 {
			t.Errorf("%v fails: %d files stay open", c.kind, open)
		}
		fsys.SetHook(nil)
		if l, err := d.List(); err != nil || len(l) != 1 {
			t.Errorf("after a failed %v: %v, %v", c.kind, l, err)
		}
	}
}

// A file that is moved away is durable where it is then, and overwrites nothing.
func TestMoveTo(t *testing.T) {
	mem := vfs.NewMem()
	d := newDir(t, mem)
	for i, want := range []string{"x", "x.1", "x.2"} {
		f := create(t, d, "x", fmt.Sprint("hello", i))
		f.Finish()
		if name, err := f.MoveTo("/a/aside"); err != nil || name != want {
			t.Fatalf("moved to %q, %v; want %q", name, err, want)
		}
		if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, vfs.ErrNotExist) {
			t.Errorf("read where it was: %v", err)
		}
	}
	mem.Crash(nil, 0)
	for i, name := range []string{"x", "x.1", "x.2"} {
		if got, err := vfs.ReadFile(mem, "/a/aside/"+name); err != nil || string(got) != fmt.Sprint("hello", i) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if l, err := newDir(t, mem).List(); err != nil || len(l) != 0 {
		t.Errorf("left: %v, %v", l, err)
	}
}

// A move that fails says which file it was about, and leaves it in one place.
func TestMoveToFails(t *testing.T) {
	broken := errors.New("broken")
	for _, kind := range []vfs.OpKind{vfs.OpMkdir, vfs.OpStat, vfs.OpRename, vfs.OpSyncDir} {
		mem := vfs.NewMem()
		fsys := vfs.NewFaulty(mem)
		d := newDir(t, fsys)
		f := create(t, d, "x", "hello")
		f.Finish()
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == kind {
				return broken
			}
			return nil
		})
		if _, err := f.MoveTo("/a/aside"); !errors.Is(err, broken) || !strings.Contains(err.Error(), "move x") {
			t.Errorf("%v: %v", kind, err)
		}
		_, here := vfs.ReadFile(mem, "/a/chunks/x")
		_, there := vfs.ReadFile(mem, "/a/aside/x")
		if (here == nil) == (there == nil) {
			t.Errorf("%v: here %v, there %v", kind, here, there)
		}
	}
}

// A directory that cannot be made is no Dir, says which it was, and is not there.
func TestNewDirFails(t *testing.T) {
	broken := errors.New("broken")
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	fsys.FailNth(0, broken, false)
	if d, err := NewDir(fsys, "/a/chunks", 2); d != nil || !errors.Is(err, broken) || err.Error() != "make chunk directory /a/chunks: broken" {
		t.Errorf("%v, %v", d, err)
	}
	if _, err := mem.Stat("/a/chunks"); !errors.Is(err, vfs.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
	newDir(t, fsys) // the next attempt makes it, durably
	mem.Crash(nil, 0)
	if st, err := mem.Stat("/a/chunks"); err != nil || !st.IsDir {
		t.Errorf("after a power cut: %+v, %v", st, err)
	}
}
