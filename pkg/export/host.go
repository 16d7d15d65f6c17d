package export

import (
	"context"
	"os"
	"strings"
	"time"
)

// Host is the few things that need privilege. NewHost does them in this process; a
// separate privileged process can do them behind the same interface later, and
// exporttest has a fake. All methods may be called concurrently for different devices
// and targets; calls for one device or target are the caller's to serialise.
type Host interface {
	Devices
	Filesystems
}

// Devices makes block devices out of FUSE connections. A device is a path as
// /dev/loop3.
type Devices interface {
	// OpenFUSE makes a FUSE connection with a mount that is in no namespace. It does
	// not wait for the server.
	OpenFUSE(o FUSEMount) (FUSEConn, error)
	// RequestTimeout is after what time the kernel aborts a connection that is made now
	// and does not answer a request; 0: never.
	RequestTimeout() (time.Duration, error)
	// AttachLoop puts a loop device in direct-I/O mode on the file. The file's
	// server must be running. The device stays open in the host until DetachLoop.
	AttachLoop(file *os.File, o LoopOptions) (Loop, error)
	// GrowLoop makes the device as large as its file is now.
	GrowLoop(device string) error
	// DetachLoop takes the device off its file and returns when it is really gone.
	// If others have it open it changes nothing and returns ErrInUse, with their
	// names as far as they can be seen; with lazy it then marks the device to go
	// with its last opener and returns nil. ErrNotAttached if there is none.
	DetachLoop(ctx context.Context, device string, lazy bool) error
	// LoopBacking tells what is behind a loop device, also when its server is dead;
	// ErrNotAttached if nothing is.
	LoopBacking(device string) (Backing, error)
	// DeviceSize is the size of a block device in bytes, as the kernel has it.
	DeviceSize(device string) (int64, error)
	// FlushDevice writes back the page cache of a block device and flushes it.
	FlushDevice(device string) error
}

// Filesystems makes, checks, mounts and grows filesystems.
type Filesystems interface {
	// Mkfs makes a filesystem, over whatever is there: whether to format is the
	// caller's decision alone (invariant I11). fsType is ext4, xfs or btrfs, options
	// are added to the command line. A killed or failed mkfs leaves a device that
	// must be formatted again.
	Mkfs(ctx context.Context, device, fsType string, options []string) error
	// Fsck repairs what can be repaired without asking (ext4) before a mount; the
	// other types do that when they are mounted.
	Fsck(ctx context.Context, device, fsType string) error
	// ProbeFS tells what is on a device: ext4 (also for ext2 and ext3), xfs, btrfs,
	// another name as blkid has it, or "" for nothing known. It reads the first MiB (a
	// smaller device whole) and any byte of it that cannot be read is an error. It is
	// for a clear message before a mount, never for deciding to format (invariant I11).
	// Reading that takes longer than ctx goes on behind the error.
	ProbeFS(ctx context.Context, device string) (fsType string, err error)
	// PrepareCopy makes the filesystem on a device that is a copy of another device
	// mountable beside its source, before its first mount. A btrfs gets uuid, which no
	// other filesystem may have, as its filesystem ID; ext4 needs nothing, and xfs the
	// mount flag nouuid. It may be cut off anywhere and repeated; with that uuid already
	// there it changes nothing. ErrInUse if the device is mounted; ErrInvalid, before
	// anything is changed, if the btrfs is of a kind that cannot be prepared. Work that
	// takes longer than ctx goes on behind the error and keeps the device in use.
	PrepareCopy(ctx context.Context, device, fsType string, uuid [16]byte) error
	// Mount mounts source on the directory target; flags as in mount -o. It does
	// not look whether something is mounted there. A mount that has begun is not
	// given up when ctx ends.
	Mount(ctx context.Context, source, target, fsType string, flags []string) error
	// BindMount mounts source, a directory or a device node, on target, which
	// exists and is of the same kind; flags as in mount -o ("ro").
	BindMount(ctx context.Context, source, target string, flags []string) error
	// Unmount unmounts the topmost mount at target; nil if there is none.
	Unmount(target string) error
	// ForceUnmount unmounts target even if it is busy or its device is dead: users
	// of the filesystem keep it until they close their files. nil if nothing is
	// mounted.
	ForceUnmount(target string) error
	// Mounts lists the mounts in this process's namespace, oldest first.
	Mounts() ([]Mount, error)
	// GrowUnmounted makes the filesystem on a device as large as the device, if its type
	// can grow without being mounted (ext4; others do nothing). ctx ends it.
	GrowUnmounted(ctx context.Context, device, fsType string) error
	// GrowFS makes the mounted filesystem as large as its device. nil if it is.
	GrowFS(device, mountPoint string) error
	// SyncFS writes back the filesystem that path is on.
	SyncFS(path string) error
	// Statfs tells the space of the filesystem at path.
	Statfs(path string) (FSStats, error)
}

// FUSEMount says how to make a FUSE connection.
type FUSEMount struct {
	Name     string // name of the one file in it
	ReadOnly bool   // the file is opened for reading only
}

// FUSEConn is one FUSE connection with the mount that belongs to it.
type FUSEConn interface {
	// Dev is the descriptor that the server reads requests from. Close closes it.
	Dev() *os.File
	// OpenDisk opens the file; it waits for the server. After it the connection
	// lives as long as the file is open here or in a loop device. Call it once; the
	// caller closes the file.
	OpenDisk() (*os.File, error)
	// Truncate tells the kernel the file's new size in bytes; the server decides.
	Truncate(file *os.File, size int64) error
	// Abort ends the connection at once: requests under way fail with an error and
	// the server ends. The device on top is dead afterwards. May be repeated.
	Abort() error
	// Close gives up the descriptors. The server must have ended.
	Close() error
}

// LoopOptions says how a loop device looks.
type LoopOptions struct {
	SectorBytes int    // logical block size, 512 or 4096
	ReadOnly    bool   // writes fail
	Name        string // kept in the device's name field, its first 63 bytes
}

// Loop is an attached loop device.
type Loop struct {
	Path   string // /dev/loopN
	Number int    // N
}

// Backing is what is behind a loop device.
type Backing struct {
	File     string // path of the file as the kernel prints it
	Name     string // name field; empty if the kernel did not tell (dead server)
	Device   uint64 // device number of the file's filesystem; 0 if not told
	Inode    uint64 // inode number of the file; 0 if not told
	Major    uint32 // device number of the loop device itself
	Minor    uint32
	ReadOnly bool
}

// Is tells whether the loop device was attached by this package under that name.
func (b Backing) Is(name string) bool {
	return b.File == "/"+fileName(name) && (b.Name == "" || b.Name == loopName(name))
}

// Mount is one line of the mount table.
type Mount struct {
	Device  string   // source, as /dev/loop3
	Target  string   // mount point
	FSType  string   // ext4, xfs, ...; of a bind mount the one of its source
	Root    string   // what of the filesystem is mounted, / for all
	Options []string // per-mount options, as ro
	Major   uint32   // device number of the filesystem
	Minor   uint32
}

// IsFilesystemOf tells whether the mount is of the filesystem on a device.
func (m Mount) IsFilesystemOf(device string) bool {
	return m.Device == device && !m.IsNodeOf(device)
}

// IsNodeOf tells whether the mount is a bind mount of a device's node: a file of that
// name in the filesystem that is mounted on /dev, or below /dev in another.
func (m Mount) IsNodeOf(device string) bool {
	if m.FSType == "devtmpfs" || m.FSType == "tmpfs" {
		return "/dev"+m.Root == device
	}
	return m.Device != device && strings.HasSuffix(m.Root, device)
}

// FSStats is the space of a filesystem.
type FSStats struct {
	TotalBytes, FreeBytes, AvailableBytes int64
	TotalInodes, FreeInodes               int64
}

// fileName is the name of the file in the FUSE mount of the volume name. The kernel
// shows it as the loop device's backing file, which can be read without asking the
// server, so that a dead device can still be recognised.
func fileName(name string) string { return "granary." + name }

// loopName is what fits into the name field of a loop device.
func loopName(name string) string { return name[:min(len(name), 63)] }
