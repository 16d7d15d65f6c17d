package export

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

const btrfsLogRootAt = 0x60

// super reads the superblock of a btrfs as the device has it.
func (d *memDevice) super(t testing.TB) []byte {
	t.Helper()
	sb := make([]byte, btrfsSuperBytes)
	_, err := d.ReadAt(sb, btrfsSuperOffset)
	ok(t, err)
	return sb
}

// edit changes the superblock of a btrfs behind the kernel's back.
func (d *memDevice) edit(t testing.TB, change func(sb []byte)) {
	t.Helper()
	sb := d.super(t)
	change(sb)
	_, err := d.WriteAt(sb, btrfsSuperOffset)
	ok(t, err)
}

func signSuper(sb []byte) {
	if sum, err := btrfsChecksum(sb); err == nil {
		copy(sb, sum)
	}
}

// uuidString is how /sys/fs/btrfs names a filesystem.
func uuidString(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func writeSynced(t testing.TB, path, content string) {
	t.Helper()
	f, err := os.Create(path)
	ok(t, err)
	defer f.Close()
	_, err = f.WriteString(content)
	ok(t, err)
	ok(t, f.Sync())
}

// copyCase is a filesystem whose copies are mounted beside their source.
type copyCase struct {
	fsType string
	mkfs   []string
	flags  []string // for a copy
	check  []string
}

// mounted is a volume with its filesystem mounted.
type mounted struct {
	dev *memDevice
	a   *Attached
	h   Host
	dir string
}

func (c copyCase) mount(t *testing.T, dev *memDevice, name string, flags []string, prepare func(h Host, device string)) mounted {
	t.Helper()
	a, h := attach(t, dev, Options{Name: testName(t) + name})
	prepare(h, a.Path())
	m := mounted{dev, a, h, t.TempDir()}
	t.Cleanup(func() { _ = h.ForceUnmount(m.dir) })
	ok(t, h.Mount(t.Context(), a.Path(), m.dir, c.fsType, flags))
	return m
}

// TestCopies mounts copies of a mounted filesystem beside it, with what was fsynced but
// not yet committed when they were taken, and a copy of such a copy, larger.
func TestCopies(t *testing.T) {
	for _, c := range []copyCase{
		{"ext4", nil, nil, []string{"e2fsck", "-fn"}},
		{"xfs", nil, []string{"nouuid"}, []string{"xfs_repair", "-n"}},
		{"btrfs", nil, nil, []string{"btrfs", "check"}},
		{"btrfs", []string{"--csum", "sha256"}, nil, []string{"btrfs", "check"}},
	} {
		t.Run(strings.Join(append([]string{c.fsType}, c.mkfs...), "_"), func(t *testing.T) {
			needFilesystem(t, c.fsType, c.check[0])
			c.run(t)
		})
	}
}

func (c copyCase) run(t *testing.T) {
	ctx := t.Context()
	source := c.mount(t, newMem(320<<20), "-0", nil, func(h Host, device string) {
		ok(t, h.Mkfs(ctx, device, c.fsType, c.mkfs))
	})
	ok(t, os.WriteFile(filepath.Join(source.dir, "committed"), bytes.Repeat([]byte("x"), 1<<20), 0o600))
	run(t, "sync", "-f", source.dir)
	all := []mounted{source}
	var want []string
	for i, size := range []int64{320 << 20, 320 << 20, 640 << 20} {
		last := all[len(all)-1]
		want = append(want, fmt.Sprint("fsynced", i))
		writeSynced(t, filepath.Join(last.dir, want[i]), want[i])
		all = append(all, c.copyOf(t, last.dev, size, byte(i+1)))
		c.wantFiles(t, all[i+1], want)
	}
	for _, m := range all { // they go on side by side
		writeSynced(t, filepath.Join(m.dir, "own"), m.a.Path())
	}
	for _, m := range slices.Backward(all) {
		got, err := os.ReadFile(filepath.Join(m.dir, "own"))
		if err != nil || string(got) != m.a.Path() {
			t.Errorf("%s has the file of %q, %v", m.a.Path(), got, err)
		}
		ok(t, m.h.Unmount(m.dir))
		run(t, c.check[0], append(c.check[1:], m.a.Path())...)
		ok(t, m.h.Mount(ctx, m.a.Path(), m.dir, c.fsType, c.flags))
		ok(t, m.h.Unmount(m.dir))
		ok(t, m.a.Detach(ctx)) // at once
	}
}

// copyOf attaches, prepares, mounts and grows a copy of dev as it is now.
func (c copyCase) copyOf(t *testing.T, dev *memDevice, size int64, id byte) mounted {
	t.Helper()
	dev = dev.copy()
	dev.grow(size)
	if c.fsType == "btrfs" && le.Uint64(dev.super(t)[btrfsLogRootAt:]) == 0 {
		t.Error("the copy has no log to replay: nothing is tested")
	}
	uuid := [16]byte{0xaa, byte(os.Getpid() >> 8), byte(os.Getpid()), 15: id}
	m := c.mount(t, dev, fmt.Sprint("-", id), c.flags, func(h Host, device string) {
		for range 2 {
			ok(t, h.PrepareCopy(t.Context(), device, c.fsType, uuid))
		}
		ok(t, h.Fsck(t.Context(), device, c.fsType))
		ok(t, h.GrowUnmounted(t.Context(), device, c.fsType))
	})
	if c.fsType == "btrfs" {
		if _, err := os.Stat("/sys/fs/btrfs/" + uuidString(uuid)); err != nil {
			t.Errorf("the kernel does not have it under its UUID: %v", err)
		}
	}
	if c.fsType != "ext4" { // that has grown already
		ok(t, m.h.GrowFS(m.a.Path(), m.dir))
	}
	if st, err := m.h.Statfs(m.dir); err != nil || st.TotalBytes < size*7/10 {
		t.Errorf("%d bytes of %d, %v", st.TotalBytes, size, err)
	}
	return m
}

func (c copyCase) wantFiles(t *testing.T, m mounted, names []string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(m.dir, "committed"))
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte("x"), 1<<20)) {
		t.Errorf("committed file: %d bytes, %v", len(got), err)
	}
	for _, name := range names {
		if got, err := os.ReadFile(filepath.Join(m.dir, name)); err != nil || string(got) != name {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// dirtyBtrfs returns a btrfs that was copied while it was mounted, with a file that is
// only in its log tree.
func dirtyBtrfs(t *testing.T) *memDevice {
	t.Helper()
	needFilesystem(t, "btrfs")
	c := copyCase{fsType: "btrfs"}
	m := c.mount(t, newMem(MinFilesystemBytes("btrfs")), "-source", nil, func(h Host, device string) {
		ok(t, h.Mkfs(t.Context(), device, "btrfs", nil))
	})
	writeSynced(t, filepath.Join(m.dir, "fsynced"), "fsynced")
	dev := m.dev.copy()
	ok(t, m.h.Unmount(m.dir))
	ok(t, m.a.Detach(t.Context()))
	return dev
}

// TestPrepareCopyCutOff fails each thing that PrepareCopy asks of the device: the copy
// is as before or prepared, never between, and the next call finishes.
func TestPrepareCopyCutOff(t *testing.T) {
	image := dirtyBtrfs(t)
	uuid := [16]byte{0xbb, byte(os.Getpid() >> 8), byte(os.Getpid()), 15: 1}
	for _, fail := range []string{"read", "write", "flush", "nothing"} {
		t.Run(fail, func(t *testing.T) {
			dev := image.copy()
			var failing, mounting atomic.Value
			failing.Store("nothing")
			wrote := make(chan string, 64)
			hook := func(op string) error {
				if failing.Load() == op {
					return errors.New("power failure")
				}
				return nil
			}
			dev.onRead = func(int64, int) error { return hook("read") }
			dev.onWrite = func(off int64, n int) error {
				if mounting.Load() == nil {
					wrote <- fmt.Sprintf("%d+%d", off, n)
				}
				return hook("write")
			}
			dev.onFlush = func() error { return hook("flush") }
			a, h := attach(t, dev, Options{})
			failing.Store(fail)
			err := h.PrepareCopy(t.Context(), a.Path(), "btrfs", uuid)
			if wantErr := fail != "nothing"; (err != nil) != wantErr {
				t.Errorf("%s fails: %v", fail, err)
			}
			failing.Store("nothing")
			ok(t, checkBtrfsSuper(dev.super(t)))
			before := dev.flushes()
			ok(t, h.PrepareCopy(t.Context(), a.Path(), "btrfs", uuid))
			if dev.flushes() == before {
				t.Error("done without a flush")
			}
			if got := [16]byte(dev.super(t)[btrfsFSIDAt:]); got != uuid {
				t.Errorf("filesystem ID %x", got)
			}
			mounting.Store(true)
			close(wrote)
			for w := range wrote {
				if w != "65536+4096" {
					t.Errorf("wrote %s", w)
				}
			}
			dir := t.TempDir()
			t.Cleanup(func() { _ = h.ForceUnmount(dir) })
			ok(t, h.Mount(t.Context(), a.Path(), dir, "btrfs", nil))
			if got, err := os.ReadFile(filepath.Join(dir, "fsynced")); err != nil || string(got) != "fsynced" {
				t.Errorf("fsynced file: %q, %v", got, err)
			}
			ok(t, h.Unmount(dir))
		})
	}
}

// TestPrepareCopyBack gives a copy the ID that its source had: then nothing differs.
func TestPrepareCopyBack(t *testing.T) {
	sb := make([]byte, btrfsSuperBytes)
	copy(sb[btrfsMagicAt:], btrfsMagic)
	first := [16]byte{1, 2, 3}
	copy(sb[btrfsFSIDAt:], first[:])
	le.PutUint64(sb[btrfsNumDevicesAt:], 1)
	signSuper(sb)
	before := slices.Clone(sb)
	for _, u := range [][16]byte{{9}, {8}} {
		ok(t, putBtrfsFSID(sb, u))
		ok(t, checkBtrfsSuper(sb))
		if [16]byte(sb[btrfsFSIDAt:]) != u || [16]byte(sb[btrfsMetadataUUIDAt:]) != first || le.Uint64(sb[btrfsIncompatAt:]) != btrfsHasMetadataUUID {
			t.Errorf("copy %x: ID %x, trees %x", u, sb[btrfsFSIDAt:][:16], sb[btrfsMetadataUUIDAt:][:16])
		}
	}
	ok(t, putBtrfsFSID(sb, first))
	if !bytes.Equal(sb, before) {
		t.Error("superblock differs")
	}
}

func TestPrepareCopyRefused(t *testing.T) {
	image := dirtyBtrfs(t)
	uuid := [16]byte{0xcc, 15: 1}
	flag := func(bit uint64) func(sb []byte) {
		return func(sb []byte) {
			le.PutUint64(sb[btrfsFlagsAt:], le.Uint64(sb[btrfsFlagsAt:])|bit)
			signSuper(sb)
		}
	}
	for _, c := range []struct {
		name, want string
		change     func(sb []byte)
		invalid    bool
	}{
		{"none", "no btrfs", func(sb []byte) { clear(sb) }, false},
		{"damaged", "checksum", func(sb []byte) { sb[0x200]++ }, false},
		{"changing", "unfinished", flag(btrfsChangingFSID), true},
		{"changing2", "unfinished", flag(btrfsChangingFSIDV2), true},
		{"seed", "seed", flag(btrfsIsSeed), true},
		{"devices", "2 devices", func(sb []byte) { sb[btrfsNumDevicesAt] = 2; signSuper(sb) }, true},
		{"xxhash", "type 1", func(sb []byte) { sb[btrfsCsumTypeAt] = 1 }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := image.copy()
			dev.edit(t, c.change)
			before := dev.super(t)
			a, h := attach(t, dev, Options{})
			err := h.PrepareCopy(t.Context(), a.Path(), "btrfs", uuid)
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrInvalid) != c.invalid {
				t.Errorf("%v", err)
			}
			if !bytes.Equal(before, dev.super(t)) {
				t.Error("superblock changed")
			}
		})
	}
}

func TestPrepareCopyArguments(t *testing.T) {
	needFilesystem(t, "btrfs")
	c := copyCase{fsType: "btrfs"}
	m := c.mount(t, newMem(MinFilesystemBytes("btrfs")), "", nil, func(h Host, device string) {
		ok(t, h.Mkfs(t.Context(), device, "btrfs", nil))
	})
	prepare := func(fsType string, uuid [16]byte) error {
		return m.h.PrepareCopy(t.Context(), m.a.Path(), fsType, uuid)
	}
	if err := prepare("btrfs", [16]byte{1}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), m.dir) {
		t.Errorf("mounted: %v", err)
	}
	if err := prepare("btrfs", [16]byte{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no UUID: %v", err)
	}
	if err := prepare("vfat", [16]byte{1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("unknown type: %v", err)
	}
	ok(t, prepare("ext4", [16]byte{1}))
	ok(t, prepare("xfs", [16]byte{}))
	ok(t, m.h.Unmount(m.dir))
}

// TestStaleBtrfs: the kernel remembers, by device number, a filesystem of two devices
// that it was shown once. The next volume under that number mounts all the same, also
// one with the filesystem ID of another that is mounted.
func TestStaleBtrfs(t *testing.T) {
	needFilesystem(t, "btrfs", "btrfs")
	if _, err := os.Stat("/sys/fs/btrfs/features/temp_fsid"); err != nil {
		t.Skip("needs a kernel with temp_fsid (6.7) to mount the same filesystem ID twice")
	}
	c, size := copyCase{fsType: "btrfs"}, MinFilesystemBytes("btrfs")
	source := c.mount(t, newMem(size), "-source", nil, func(h Host, device string) {
		ok(t, h.Mkfs(t.Context(), device, "btrfs", nil))
	})
	image := source.dev.copy()
	for try := range 50 {
		stale := showBtrfsPair(t, size, try)
		a, h := attach(t, image.copy(), Options{Name: fmt.Sprint(testName(t), "-copy", try)})
		if !slices.Contains(stale, a.Path()) {
			ok(t, a.Detach(t.Context())) // others took the numbers
			continue
		}
		dir := t.TempDir()
		t.Cleanup(func() { _ = h.ForceUnmount(dir) })
		ok(t, h.Mount(t.Context(), a.Path(), dir, "btrfs", nil))
		ok(t, h.Unmount(dir))
		ok(t, source.h.Unmount(source.dir))
		return
	}
	t.Fatal("no loop device got the number of the one before in 50 tries")
}

// showBtrfsPair makes a btrfs over two devices, shows it to the kernel, detaches both
// and returns their paths.
func showBtrfsPair(t *testing.T, size int64, try int) []string {
	t.Helper()
	var pair []*Attached
	var paths []string
	for i := range 2 {
		a, _ := attach(t, newMem(size), Options{Name: fmt.Sprintf("%s-%d-%d", testName(t), try, i)})
		pair, paths = append(pair, a), append(paths, a.Path())
	}
	run(t, "mkfs.btrfs", append([]string{"-q", "-f", "-K", "-d", "single", "-m", "single"}, paths...)...)
	run(t, "btrfs", append([]string{"device", "scan"}, paths...)...)
	for _, a := range slices.Backward(pair) {
		ok(t, a.Detach(t.Context()))
	}
	return paths
}

// TestBtrfsDetach: what the kernel has of a btrfs that was just unmounted holds up no
// detach.
func TestBtrfsDetach(t *testing.T) {
	needFilesystem(t, "btrfs")
	dev, ctx := newMem(MinFilesystemBytes("btrfs")), t.Context()
	for i := range 20 {
		a, h := attach(t, dev, Options{Name: fmt.Sprint(testName(t), i)})
		if i == 0 {
			ok(t, h.Mkfs(ctx, a.Path(), "btrfs", nil))
		}
		dir := t.TempDir()
		t.Cleanup(func() { _ = h.ForceUnmount(dir) })
		ok(t, h.Mount(ctx, a.Path(), dir, "btrfs", []string{"discard=async"}))
		ok(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 4<<20), 0o600))
		ok(t, os.Remove(filepath.Join(dir, "file")))
		ok(t, h.Unmount(dir))
		d, err := openRaw(a.Path(), unix.O_RDWR|unix.O_EXCL)
		if err != nil {
			t.Errorf("just unmounted: %v", err)
		} else {
			d.close()
		}
		ok(t, a.Detach(ctx))
	}
}
