package blob

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
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

// Every way to the directory that fails says which file it was about.
func TestFaultsAreTold(t *testing.T) {
	broken := errors.New("broken")
	fsys := vfs.NewFaulty(vfs.NewMem())
	d := newDir(t, fsys)
	create(t, d, "x.open", "hello").Finish()
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
			return nil
		})
		if err := c.do(); !errors.Is(err, broken) || err.Error() != c.text {
			t.Errorf("%v fails: %v, want %q", c.kind, err, c.text)
		}
		fsys.SetHook(nil)
		if l, err := d.List(); err != nil || len(l) != 1 {
			t.Errorf("after a failed %v: %v, %v", c.kind, l, err)
		}
	}
}
