package export

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"
	utilexec "k8s.io/utils/exec"
)

func (h *localHost) Mount(ctx context.Context, source, target, fsType string, flags []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var forgotten error // only of interest if the mount fails
	if fsType == "btrfs" {
		forgotten = forgetBtrfs(source)
	}
	if err := h.mount(ctx, source, target, fsType, flags); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, errors.Join(err, forgotten))
	}
	return nil
}

// mountTimeout bounds what a log replay may take.
const mountTimeout = 30 * time.Minute

// mount leaves what is not the filesystem of a device to the library. A device is
// mounted by a program that holds it open, for runOn's reasons.
func (h *localHost) mount(ctx context.Context, source, target, fsType string, flags []string) error {
	if fsType == "" || !filepath.IsAbs(source) {
		return h.mounter().Mount(source, target, fsType, flags)
	}
	args := []string{"-t", fsType}
	if len(flags) > 0 {
		args = append(args, "-o", strings.Join(flags, ","))
	}
	_, err := runOn(context.WithoutCancel(ctx), source, mountTimeout, "mount", append(args, source, target)...)
	return err
}

// BindMount makes the mount before it is seen anywhere: one that is to be read-only is so
// from the first moment, and nothing is there if that fails.
func (h *localHost) BindMount(ctx context.Context, source, target string, flags []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := apart(func() error { return bindMount(source, target, slices.Contains(flags, "ro")) })
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.12: first writable, then read-only
		err = h.mounter().Mount(source, target, "", append([]string{"bind"}, flags...))
	}
	if err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	return nil
}

func bindMount(source, target string, readOnly bool) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(fd)
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return os.NewSyscallError("mount_setattr", err)
		}
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// Unmount is the system call itself: its errno says what is wrong, and none of the
// filesystem types here needs a helper program.
func (h *localHost) Unmount(target string) error {
	return alone(func() error { return unmount(target, 0) })
}

func (h *localHost) ForceUnmount(target string) error {
	return alone(func() error { return unmount(target, unix.MNT_FORCE|unix.MNT_DETACH) })
}

func unmount(target string, flags int) error {
	for {
		err := unix.Unmount(target, flags|unix.UMOUNT_NOFOLLOW)
		switch err {
		case nil, unix.EINVAL, unix.ENOENT: // EINVAL: not a mount point
			return nil
		case unix.EINTR:
			continue
		case unix.EBUSY:
			return fmt.Errorf("unmount %s: %w: %w", target, ErrInUse, err)
		}
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
}

func (h *localHost) Mounts() ([]Mount, error) {
	lines, err := mountutils.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	out := make([]Mount, len(lines))
	for i, l := range lines {
		out[i] = Mount{
			Device:  unescapeMount(l.Source),
			Target:  unescapeMount(l.MountPoint),
			FSType:  l.FsType,
			Root:    unescapeMount(l.Root),
			Options: l.MountOptions,
			Major:   uint32(l.Major),
			Minor:   uint32(l.Minor),
		}
	}
	return out, nil
}

// unescapeMount undoes the \040 of the kernel's mount tables.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// IsMounted returns the topmost mount at target, nil if there is none.
func IsMounted(h Filesystems, target string) (*Mount, error) {
	mounts, err := h.Mounts()
	if err != nil {
		return nil, err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].Target == target {
			return &mounts[i], nil
		}
	}
	return nil, nil
}

func (h *localHost) GrowFS(device, mountPoint string) error {
	r := mountutils.NewResizeFs(utilexec.New())
	need, err := r.NeedResize(device, mountPoint)
	if err != nil || !need {
		return err
	}
	grown, err := r.Resize(device, mountPoint)
	if err == nil && !grown {
		err = errors.New("no filesystem recognised")
	}
	if err != nil {
		return fmt.Errorf("grow %s at %s: %w", device, mountPoint, err)
	}
	return nil
}

func (h *localHost) SyncFS(path string) error {
	return alone(func() error {
		f, err := openCloexec(path, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return fmt.Errorf("sync the filesystem on %s: %w", path, err)
		}
		return nil
	})
}

func (h *localHost) Statfs(path string) (FSStats, error) {
	return aloneValue(func() (FSStats, error) { return statfs(path) })
}

func statfs(path string) (FSStats, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return FSStats{}, &os.PathError{Op: "statfs", Path: path, Err: err}
		}
		unit := int64(st.Frsize)
		return FSStats{
			TotalBytes:     int64(st.Blocks) * unit,
			FreeBytes:      int64(st.Bfree) * unit,
			AvailableBytes: int64(st.Bavail) * unit,
			TotalInodes:    int64(st.Files),
			FreeInodes:     int64(st.Ffree),
		}, nil
	}
}
