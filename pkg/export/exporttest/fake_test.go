package exporttest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/k8ns/granary/pkg/export"
)

// disk is a small Device in memory.
type disk struct {
	mu    sync.Mutex
	bytes []byte
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.bytes[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.bytes[off:], p), nil
}

func (d *disk) Flush() error { return nil }

func (d *disk) Discard(off, n int64) error { return d.WriteZeroes(off, n) }

func (d *disk) WriteZeroes(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.bytes[off : off+n])
	return nil
}

func (d *disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.bytes))
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLife goes the way of a volume on a node, without privileges.
func TestLife(t *testing.T) {
	h, d, ctx := NewHost(), &disk{bytes: make([]byte, 1<<20)}, t.Context()
	a, err := export.Attach(ctx, h, d, export.Options{Name: "v1"})
	ok(t, err)
	if err := h.Mount(ctx, a.Path(), t.TempDir(), "ext4", nil); err == nil {
		t.Error("mounted without a filesystem")
	}
	if fs, err := h.ProbeFS(ctx, a.Path()); err != nil || fs != "" {
		t.Errorf("probe of an empty device: %q, %v", fs, err)
	}
	if err := h.PrepareCopy(ctx, a.Path(), "btrfs", [16]byte{1}); err == nil {
		t.Error("prepared a copy without a filesystem")
	}
	ok(t, h.Mkfs(ctx, a.Path(), "ext4", nil))
	if fs, err := h.ProbeFS(ctx, a.Path()); err != nil || fs != "ext4" {
		t.Errorf("probe: %q, %v", fs, err)
	}
	ok(t, h.PrepareCopy(ctx, a.Path(), "ext4", [16]byte{1}))
	if want := "PrepareCopy /dev/loop0 ext4 01" + strings.Repeat("00", 15); !slices.Contains(h.Calls(), want) {
		t.Errorf("no %q in %q", want, h.Calls())
	}
	stage, pub := t.TempDir(), t.TempDir()
	ok(t, h.Mount(ctx, a.Path(), stage, "ext4", nil))
	ok(t, h.BindMount(ctx, stage, pub, []string{"ro"}))
	if m, err := export.IsMounted(h, pub); err != nil || m == nil || m.Device != a.Path() || !slices.Contains(m.Options, "ro") {
		t.Errorf("%+v, %v", m, err)
	}
	if err := a.Detach(ctx); !errors.Is(err, export.ErrInUse) {
		t.Errorf("detach while mounted: %v", err)
	}
	d.mu.Lock()
	d.bytes = append(d.bytes, make([]byte, 1<<20)...)
	d.mu.Unlock()
	ok(t, a.Resize(ctx))
	ok(t, h.GrowFS(a.Path(), stage))
	if s, err := h.Statfs(pub); err != nil || s.TotalBytes != 2<<20 {
		t.Errorf("%+v, %v", s, err)
	}
	ok(t, h.WriteAt(a.Path(), bytes.Repeat([]byte{1}, 4096), 1<<20))
	got := make([]byte, 4096)
	ok(t, h.ReadAt(a.Path(), got, 1<<20))
	if got[0] != 1 {
		t.Error("wrong bytes")
	}
	ok(t, h.Unmount(pub))
	ok(t, h.Unmount(stage))
	ok(t, a.Detach(ctx))

	b, err := export.Attach(ctx, h, d, export.Options{Name: "v1"})
	ok(t, err)
	if fs, err := h.Formatted(b.Path()); err != nil || fs != "ext4" {
		t.Errorf("filesystem %q, %v", fs, err)
	}
	node := filepath.Join(t.TempDir(), "node")
	ok(t, os.WriteFile(node, nil, 0o600))
	ok(t, h.BindMount(ctx, b.Path(), node, nil))
	if err := b.Detach(ctx); !errors.Is(err, export.ErrInUse) {
		t.Errorf("detach while published: %v", err)
	}
	ok(t, h.Unmount(node))
	ok(t, b.Detach(ctx))
	if left := h.Attached(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestKillAndClear(t *testing.T) {
	h, d, ctx := NewHost(), &disk{bytes: make([]byte, 1<<20)}, t.Context()
	a, err := export.Attach(ctx, h, d, export.Options{Name: "v1"})
	ok(t, err)
	dir := t.TempDir()
	ok(t, h.Mkfs(ctx, a.Path(), "xfs", nil))
	ok(t, h.Mount(ctx, a.Path(), dir, "xfs", nil))
	ok(t, h.Kill(a.Path()))
	if err := h.ReadAt(a.Path(), make([]byte, 512), 0); err == nil {
		t.Error("read of a dead device succeeded")
	}
	ok(t, export.ClearDead(ctx, h, a.Path(), "v2", []string{dir}))
	if len(h.Attached()) != 1 {
		t.Fatal("cleared under a wrong name")
	}
	ok(t, export.ClearDead(ctx, h, a.Path(), "v1", []string{dir}))
	ok(t, export.ClearDead(ctx, h, a.Path(), "v1", []string{dir}))
	if m, err := export.IsMounted(h, dir); err != nil || m != nil || len(h.Attached()) != 0 {
		t.Errorf("left: %+v, %v, %v", m, err, h.Attached())
	}
	ok(t, a.Detach(ctx))
}

func TestFail(t *testing.T) {
	h, boom := NewHost(), errors.New("boom")
	h.Fail("AttachLoop", boom)
	if _, err := export.Attach(t.Context(), h, &disk{bytes: make([]byte, 1<<20)}, export.Options{Name: "v"}); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	if got := h.Calls(); !slices.Equal(got, []string{"OpenFUSE granary.v", "AttachLoop v"}) {
		t.Errorf("%v", got)
	}
}
