package export

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mkfsTimeout = 5 * time.Minute
	fsckTimeout = 30 * time.Minute
	// resizeInodeReach is how many times its first size an ext4 may have at most before
	// its resize inode, which mkfs makes for 1,024 times, stands in resize2fs's way
	// ("Illegal doubly indirect block") and the filesystem is left to be repaired by hand.
	resizeInodeReach = 512
	keepOutput       = 2048 // bytes of a program's output that go into its error
)

var le = binary.LittleEndian // of numbers in filesystems

// Mkfs formats. The device is thin, so discarding before formatting is left out, and
// inode tables are zeroed by the kernel after the mount, which costs no space here.
func (h *localHost) Mkfs(ctx context.Context, device, fsType string, options []string) error {
	var args []string
	switch fsType {
	case "ext4":
		args = []string{"-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard,lazy_itable_init=1"}
	case "xfs":
		args = []string{"-q", "-f", "-K"}
		sector, err := apartValue(func() (int, error) { return sectorBytes(device) })
		if err != nil {
			return err
		}
		if sector == 4096 {
			args = append(args, "-s", "size=4096")
		}
	case "btrfs":
		// Metadata twice: the second copy is the same bytes, so it is stored once
		// and protects nothing here, and metadata writes double. But one copy
		// (-m single) starts with 8 MiB for metadata: of 2 GiB it could fill 1.6
		// before ENOSPC, and after deleting showed none free. Mixed block groups
		// would suit small volumes, but volumes grow and would keep them.
		// Sectors of 4096 bytes on every machine: others may have larger pages.
		args = []string{"-q", "-f", "-K", "-m", "dup", "-d", "single", "-s", "4096"}
	default:
		return fmt.Errorf("filesystem type %q: %w", fsType, ErrInvalid)
	}
	args = append(append(args, options...), device)
	_, err := runOn(ctx, device, mkfsTimeout, "mkfs."+fsType, args...)
	return err
}

func sectorBytes(device string) (int, error) {
	f, err := openCloexec(device, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := unix.IoctlGetUint32(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return 0, fmt.Errorf("sector size of %s: %w", device, err)
	}
	return int(n), nil
}

// MinFilesystemBytes is the size in bytes of the smallest device on which Mkfs of the type
// works without further options, with sectors of 512 and of 4096 bytes; 0 for a type that
// Mkfs does not know. ext4 could be smaller, but volumes are whole MiB; below 8 MiB it has
// no journal.
func MinFilesystemBytes(fsType string) int64 {
	switch fsType {
	case "ext4":
		return 1 << 20
	case "xfs":
		return 300 << 20
	case "btrfs":
		return 109 << 20
	}
	return 0
}

// Fsck runs e2fsck -p, which replays the journal and repairs what is safe; its exit
// codes 0 and 1 are success.
func (h *localHost) Fsck(ctx context.Context, device, fsType string) error {
	switch fsType {
	case "ext4":
	case "xfs", "btrfs":
		return nil
	default:
		return fmt.Errorf("filesystem type %q: %w", fsType, ErrInvalid)
	}
	code, err := runOn(ctx, device, fsckTimeout, "e2fsck", "-p", device)
	if code == 1 {
		return nil
	}
	return err
}

// GrowUnmounted grows ext4 before it is mounted: growing it later needs
// CAP_SYS_RESOURCE, which containers often lack.
func (h *localHost) GrowUnmounted(ctx context.Context, device, fsType string) error {
	if fsType != "ext4" {
		return nil
	}
	size, err := h.DeviceSize(device)
	if err != nil {
		return err
	}
	var have, block int64
	err = apart(func() error {
		var err error
		have, block, err = ext4Size(device)
		return err
	})
	if err != nil || have+block > size {
		return err
	}
	if code, err := runOn(ctx, device, fsckTimeout, "e2fsck", "-f", "-p", device); err != nil && code != 1 {
		return err
	}
	if size/have >= resizeInodeReach {
		if err := dropResizeInode(ctx, device); err != nil {
			return err
		}
	}
	_, err = runOn(ctx, device, fsckTimeout, "resize2fs", device)
	return err
}

// dropResizeInode takes the resize inode out of an ext4 that has just been found whole:
// without it resize2fs moves what is in the way. What e2fsck then mends is the inode that
// tune2fs leaves behind, about which it would ask.
func dropResizeInode(ctx context.Context, device string) error {
	if _, err := runOn(ctx, device, fsckTimeout, "tune2fs", "-O", "^resize_inode", device); err != nil {
		return err
	}
	if code, err := runOn(ctx, device, fsckTimeout, "e2fsck", "-f", "-y", device); err != nil && code != 1 {
		return err
	}
	return nil
}

// ext4Size reads size and block size of an ext4 filesystem from its superblock, in
// bytes.
func ext4Size(device string) (size, block int64, err error) {
	f, err := openCloexec(device, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	sb := make([]byte, 4096)
	if _, err := f.ReadAt(sb, 0); err != nil {
		return 0, 0, fmt.Errorf("read the superblock: %w", err)
	}
	sb = sb[1024:]
	if magic := le.Uint16(sb[0x38:]); magic != 0xef53 {
		return 0, 0, fmt.Errorf("%s holds no ext4 filesystem (magic %#x)", device, magic)
	}
	shift := le.Uint32(sb[0x18:])
	if shift > 6 {
		return 0, 0, fmt.Errorf("%s: ext4 block size 2^%d KiB", device, shift)
	}
	block = 1024 << shift
	blocks := int64(le.Uint32(sb[0x4:]))
	if le.Uint32(sb[0x60:])&0x80 != 0 { // 64bit
		blocks |= int64(le.Uint32(sb[0x150:])) << 32
	}
	return blocks * block, block, nil
}

// runOn is runProgram for one that works on a device. Such programs open the device by
// its path, some late and some again and again, and one that outlives us (we may be
// killed) would find another volume there if the number were used again meanwhile. So
// it inherits an open descriptor: the dead device keeps its number until the program
// has ended.
func runOn(ctx context.Context, device string, limit time.Duration, name string, args ...string) (int, error) {
	f, err := openCloexec(device, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return -1, err
	}
	return runProgram(ctx, []*os.File{f}, limit, name, args...)
}

// runProgram runs a program to its end and returns its exit code, -1 if it has none.
// It inherits the files, which are closed here as soon as it has them: this process is
// not to be the last that has a device of its own (keeper.go). The error has the end of
// its output.
func runProgram(ctx context.Context, files []*os.File, limit time.Duration, name string, args ...string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out tail
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.ExtraFiles = files
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Start()
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		return 0, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	code := -1
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	return code, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
}

// tail keeps the last bytes written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p[max(0, len(p)-keepOutput):]...)
	*t = (*t)[max(0, len(*t)-keepOutput):]
	return len(p), nil
}
