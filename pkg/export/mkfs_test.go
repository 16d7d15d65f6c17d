package export

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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

// Whatever works on a device holds it open from its first moment to its last, so that a
// program that outlives the daemon never meets another device under that name (I11).
func TestProgramsHoldTheirDevice(t *testing.T) {
	dir := t.TempDir()
	device := filepath.Join(dir, "device")
	ok(t, os.WriteFile(device, make([]byte, 4096), 0o600))
	script := "#!/bin/sh\nls -l /proc/$$/fd\nexit 8\n" // what is said comes with the error
	for _, name := range []string{"mkfs.ext4", "mkfs.btrfs", "e2fsck", "mount"} {
		ok(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700))
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	h := NewHost()
	for what, err := range map[string]error{
		"mkfs.ext4":  h.Mkfs(t.Context(), device, "ext4", nil),
		"mkfs.btrfs": h.Mkfs(t.Context(), device, "btrfs", nil),
		"e2fsck":     h.Fsck(t.Context(), device, "ext4"),
		"mount":      h.Mount(t.Context(), device, dir, "ext4", nil),
	} {
		if err == nil || !strings.Contains(err.Error(), "-> "+device) {
			t.Errorf("%s does not have the device open: %v", what, err)
		}
	}
}

// A volume may become very much larger than it was when its filesystem was made.
func TestGrowExt4VeryMuch(t *testing.T) {
	needKernel(t)
	needPrograms(t, "mkfs.ext4", "tune2fs", "resize2fs")
	h := NewHost()
	for _, from := range []int64{1 << 20, 64 << 20} {
		dev := newMem(from)
		a, err := Attach(t.Context(), h, dev, Options{Name: testName(t)})
		ok(t, err)
		ok(t, h.Mkfs(t.Context(), a.Path(), "ext4", nil))
		for _, size := range []int64{10 << 30, 200 << 30} {
			dev.grow(size)
			ok(t, a.Resize(t.Context()))
			for range 2 { // there is nothing to do the second time
				ok(t, h.GrowUnmounted(t.Context(), a.Path(), "ext4"))
			}
			ok(t, h.Fsck(t.Context(), a.Path(), "ext4"))
			if have, _, err := ext4Size(a.Path()); err != nil || have != size {
				t.Errorf("from %d to %d: the filesystem has %d bytes, %v", from, size, have, err)
			}
		}
		if _, err := runProgram(t.Context(), nil, time.Minute, "e2fsck", "-fn", a.Path()); err != nil {
			t.Error(err)
		}
		ok(t, a.Detach(t.Context()))
	}
}
