package export

import (
	"fmt"
	"testing"
)

// TestMinFilesystemBytes: at the minimum a filesystem can be made and mounted; below it,
// mkfs of those types that have one of their own refuses.
func TestMinFilesystemBytes(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		for _, sector := range []int{512, 4096} {
			t.Run(fmt.Sprint(fsType, sector), func(t *testing.T) { testMinFilesystemBytes(t, fsType, sector) })
		}
	}
	if n := MinFilesystemBytes("ntfs"); n != 0 {
		t.Errorf("unknown type: %d bytes", n)
	}
}

func testMinFilesystemBytes(t *testing.T, fsType string, sector int) {
	needFilesystem(t, fsType)
	size, ctx := MinFilesystemBytes(fsType), t.Context()
	if size%(1<<20) != 0 {
		t.Errorf("%d bytes are not whole MiB", size)
	}
	a, h := attach(t, newMem(size), Options{SectorBytes: sector})
	ok(t, h.Mkfs(ctx, a.Path(), fsType, nil))
	dir := t.TempDir()
	t.Cleanup(func() { _ = h.ForceUnmount(dir) })
	ok(t, h.Mount(ctx, a.Path(), dir, fsType, nil))
	st, err := h.Statfs(dir)
	ok(t, err)
	t.Logf("%s: %d KiB of %d available", fsType, st.AvailableBytes>>10, size>>10)
	if st.AvailableBytes < size/8 {
		t.Errorf("only %d bytes available", st.AvailableBytes)
	}
	ok(t, h.Unmount(dir))
	ok(t, a.Detach(ctx))
	if fsType == "ext4" {
		return // its minimum is that of volumes
	}
	a, h = attach(t, newMem(size-1<<20), Options{SectorBytes: sector})
	if err := h.Mkfs(ctx, a.Path(), fsType, nil); err == nil {
		t.Errorf("mkfs on %d bytes worked", size-1<<20)
	}
}
