package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WorkDir makes a directory on a real disk for one run, removed by the cleanup. It
// asks for free bytes there; $GRANARY_WORKDIR chooses another place than /var/tmp.
func WorkDir(pattern string, free int64, c *Cleanup) (string, error) {
	base := os.Getenv("GRANARY_WORKDIR")
	if base == "" {
		base = "/var/tmp"
	}
	var st unix.Statfs_t
	if err := unix.Statfs(base, &st); err != nil {
		return "", fmt.Errorf("%s: %w", base, err)
	}
	if have := int64(st.Bavail) * st.Bsize; have < free {
		return "", fmt.Errorf("%s has %d MiB free and this needs %d (GRANARY_WORKDIR names another directory)", base, have>>20, free>>20)
	}
	dir, err := os.MkdirTemp(base, pattern)
	if err != nil {
		return "", err
	}
	c.Add("remove "+dir, func() error {
		// Never walk into a file system that could not be unmounted.
		if m, err := MountsBelow(dir); err != nil || len(m) > 0 {
			return fmt.Errorf("left in place, still mounted: %v (%w)", m, errors.Join(err, unix.EBUSY))
		}
		return os.RemoveAll(dir)
	})
	return dir, nil
}

// Ready tells what this process lacks to make devices and mount them, or nil.
func Ready() error {
	switch {
	case os.Geteuid() != 0:
		return errors.New("not root")
	case !exists("/dev/fuse"):
		return errors.New("no /dev/fuse")
	case !exists("/dev/loop-control"):
		return errors.New("no /dev/loop-control")
	}
	return nil
}

// GrowsExt4 tells whether this process may grow a mounted ext4: the kernel wants
// CAP_SYS_RESOURCE for that, which some containers withhold from root.
func GrowsExt4() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// Mount mounts a device on dir, which it makes. The cleanup unmounts it.
func Mount(ctx context.Context, c *Cleanup, fsType, device, dir string, options ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	args := []string{"-t", fsType}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	if _, err := Run(ctx, 0, "mount", append(args, device, dir)...); err != nil {
		return err
	}
	NoteMount(c, dir)
	return nil
}

// NoteMount notes for the cleanup that dir may be mounted, by whomever.
func NoteMount(c *Cleanup, dir string) {
	c.Add("unmount "+dir, func() error { return unmountAll(dir) })
}

// Unmount unmounts dir.
func Unmount(ctx context.Context, dir string) error {
	_, err := Run(ctx, 0, "umount", dir)
	return err
}

// unmountAll takes away everything that is mounted on dir, with force if need be.
func unmountAll(dir string) error {
	for range 8 { // mounts may be stacked
		mounted, err := Mounted(dir)
		if err != nil || !mounted {
			return err
		}
		ctx := context.Background()
		if _, err := Run(ctx, 30*time.Second, "umount", dir); err != nil {
			if _, err := Run(ctx, 30*time.Second, "umount", "-l", dir); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%s: still mounted", dir)
}

// Mounted tells whether something is mounted on dir.
func Mounted(dir string) (bool, error) {
	m, err := mounts()
	if err != nil {
		return false, err
	}
	for _, e := range m {
		if e.dir == dir {
			return true, nil
		}
	}
	return false, nil
}

// MountSource is the device that is mounted on dir.
func MountSource(dir string) (string, error) {
	m, err := mounts()
	if err != nil {
		return "", err
	}
	for i := len(m) - 1; i >= 0; i-- {
		if m[i].dir == dir {
			return m[i].source, nil
		}
	}
	return "", fmt.Errorf("nothing is mounted on %s", dir)
}

type mount struct{ dir, source string }

// mounts lists what is mounted, in the order of mounting.
func mounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mount
	for s := bufio.NewScanner(f); s.Scan(); {
		// id parent major:minor root dir options [tags] - type source options
		before, after, ok := strings.Cut(s.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if ok && len(left) >= 5 && len(right) >= 2 {
			all = append(all, mount{unescape(left[4]), unescape(right[1])})
		}
	}
	return all, nil
}

// unescape undoes the kernel's \ooo for blanks and the like.
func unescape(s string) string {
	for i := 0; i+3 < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
			s = s[:i] + string(rune(n)) + s[i+4:]
		}
	}
	return s
}

// MountsBelow lists what is mounted on dir or below it.
func MountsBelow(dir string) ([]string, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var below []string
	for _, m := range all {
		if m.dir == dir || strings.HasPrefix(m.dir, dir+"/") {
			below = append(below, m.dir)
		}
	}
	return below, nil
}

// loop tells one use of a loop device from the next: its number is used again.
type loop struct {
	device uint64 // of the file system behind it
	inode  uint64
}

func loopUse(device string) (loop, error) {
	f, err := os.Open(device)
	if err != nil {
		return loop{}, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return loop{}, err
	}
	return loop{info.Device, info.Inode}, nil
}

// NoteLoop notes a loop device for the cleanup, which detaches it if it then still
// serves the same file.
func NoteLoop(c *Cleanup, device string) error {
	noted, err := loopUse(device)
	if err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	c.Add("detach "+device, func() error {
		if now, err := loopUse(device); err != nil || now != noted {
			return nil // gone, as it should be, or somebody else's by now
		}
		_, err := Run(context.Background(), 30*time.Second, "losetup", "-d", device)
		return err
	})
	return nil
}

// BackingFile is the path of the file behind the loop device with a device number; ""
// if that is no loop device, or has none. It asks nobody but the kernel.
func BackingFile(number uint64) (string, error) {
	name := fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", unix.Major(number), unix.Minor(number))
	path, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	return strings.TrimSuffix(string(path), "\n"), err
}

// LoopsOn lists the loop devices whose file's path matches, by device and file.
func LoopsOn(match func(file string) bool) (map[string]string, error) {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	found := make(map[string]string)
	for _, name := range names {
		path, err := os.ReadFile(name)
		if file := strings.TrimSuffix(string(path), "\n"); err == nil && match(file) {
			found["/dev/"+strings.Split(name, "/")[3]] = file
		}
	}
	return found, nil
}

// LoopFile makes a loop device on an ordinary file, with direct I/O when the file's
// disk can do that.
func LoopFile(ctx context.Context, c *Cleanup, file string) (string, error) {
	device, err := Run(ctx, 0, "losetup", "--find", "--show", "--direct-io=on", file)
	if err != nil {
		return "", err
	}
	return device, NoteLoop(c, device)
}

// DropCaches makes the kernel forget what it holds of clean files, so that the next
// read comes from the device.
func DropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// DeviceSize is the size of a block device in bytes.
func DeviceSize(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}

// Allocated is the disk space of everything below dir, in bytes, as du counts it.
func Allocated(dir string) (int64, error) {
	var sum int64
	seen := map[[2]uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if st.Nlink > 1 && !e.IsDir() && seen[id] {
			return nil
		}
		seen[id] = true
		sum += st.Blocks * 512
		return nil
	})
	return sum, err
}
