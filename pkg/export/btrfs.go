package export

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where the first superblock of a btrfs is and what of it is needed here, in bytes. It
// is the only one that kernel and tools look at unless they are told to repair; the
// kernel brings the others along with its first commit.
const (
	btrfsSuperOffset    = 64 << 10
	btrfsSuperBytes     = 4096
	btrfsMagic          = "_BHRfS_M"
	btrfsFSIDAt         = 0x20 // 16 bytes; what the checksum covers begins here
	btrfsFlagsAt        = 0x38
	btrfsMagicAt        = 0x40
	btrfsNumDevicesAt   = 0x88
	btrfsIncompatAt     = 0xbc
	btrfsCsumTypeAt     = 0xc4
	btrfsMetadataUUIDAt = 0x23b // 16 bytes

	btrfsHasMetadataUUID = 1 << 10 // in the incompat flags; kernel 5.0
	btrfsIsSeed          = 1 << 32 // in the flags, as the next two
	btrfsChangingFSID    = 1 << 35
	btrfsChangingFSIDV2  = 1 << 36
)

// PrepareCopy of a btrfs replaces its filesystem ID in the superblock, in one write of
// 4 KiB: the blocks of its trees keep the old one, which is from then on named there as
// the metadata UUID. A copy that was not unmounted stays as whole as it was: neither
// generation nor log tree change, and the next mount replays the log.
//
// btrfstune -M ends with the same superblock, but it loses the log tree (its commits
// raise the generation that the log has to match, fsynced data with it), is in between
// in a state that no kernel mounts, and opens every block device of the host to see
// that the ID is new: one of them that does not answer would hold it up for ever.
func (h *localHost) PrepareCopy(ctx context.Context, device, fsType string, uuid [16]byte) error {
	switch {
	case fsType == "ext4" || fsType == "xfs":
		return nil
	case fsType != "btrfs":
		return fmt.Errorf("prepare copy: filesystem type %q: %w", fsType, ErrInvalid)
	case uuid == [16]byte{}:
		return fmt.Errorf("prepare copy on %s: the UUID is all zeros: %w", device, ErrInvalid)
	}
	err := Within(ctx, func() error {
		return apart(func() error {
			d, err := h.openExclusive(ctx, device)
			if err != nil {
				return err
			}
			defer d.close()
			return setBtrfsFSID(d, uuid)
		})
	})
	if err != nil {
		return fmt.Errorf("prepare copy on %s: %w", device, err)
	}
	return nil
}

// openExclusive opens a device for reading and writing that nobody has mounted. A mount
// that has just ended may hold it for a moment yet.
func (h *localHost) openExclusive(ctx context.Context, device string) (*rawDevice, error) {
	deadline := time.Now().Add(loopSettle)
	for {
		d, err := openRaw(device, unix.O_RDWR|unix.O_EXCL|unix.O_NONBLOCK)
		if !errors.Is(err, unix.EBUSY) {
			return d, err
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return nil, h.inUseBy(device)
		}
		time.Sleep(loopPoll)
	}
}

// inUseBy names the mounts and the processes that have the device.
func (h *localHost) inUseBy(device string) error {
	by, err := mountedAt(h, device, Backing{})
	if err != nil {
		return err
	}
	return inUse(device, append(by, openers(device)...))
}

// setBtrfsFSID makes uuid the filesystem ID, if it is not yet.
func setBtrfsFSID(d *rawDevice, uuid [16]byte) error {
	sb, err := d.read(btrfsSuperOffset, btrfsSuperBytes)
	if err != nil {
		return err
	}
	if err := checkBtrfsSuper(sb); err != nil {
		return err
	}
	if [16]byte(sb[btrfsFSIDAt:]) == uuid {
		return d.flush() // the write before may not be durable yet
	}
	if err := putBtrfsFSID(sb, uuid); err != nil {
		return err
	}
	return d.write(sb, btrfsSuperOffset)
}

// checkBtrfsSuper tells why a superblock is not one whose filesystem ID can be replaced.
func checkBtrfsSuper(sb []byte) error {
	if magic := sb[btrfsMagicAt:][:len(btrfsMagic)]; string(magic) != btrfsMagic {
		return fmt.Errorf("no btrfs filesystem (magic %q)", magic)
	}
	sum, err := btrfsChecksum(sb)
	if err != nil {
		return err
	}
	flags, devices := le.Uint64(sb[btrfsFlagsAt:]), le.Uint64(sb[btrfsNumDevicesAt:])
	switch {
	case !bytes.Equal(sb[:len(sum)], sum):
		return fmt.Errorf("btrfs superblock is damaged: checksum %x, computed %x", sb[:len(sum)], sum)
	case flags&(btrfsChangingFSID|btrfsChangingFSIDV2) != 0:
		return fmt.Errorf("btrfs with an unfinished change of its UUID (flags %#x): finish it with btrfstune on the source and copy again: %w", flags, ErrInvalid)
	case flags&btrfsIsSeed != 0:
		return fmt.Errorf("btrfs is a seed device, whose UUID cannot change: clear that with btrfstune -S 0 on the source and copy again: %w", ErrInvalid)
	case devices != 1:
		return fmt.Errorf("btrfs spans %d devices, a copy can be mounted of 1: %w", devices, ErrInvalid)
	}
	return nil
}

// putBtrfsFSID makes uuid the filesystem ID in a superblock.
func putBtrfsFSID(sb []byte, uuid [16]byte) error {
	incompat := le.Uint64(sb[btrfsIncompatAt:])
	if incompat&btrfsHasMetadataUUID == 0 { // else it is a copy of a copy
		copy(sb[btrfsMetadataUUIDAt:][:16], sb[btrfsFSIDAt:])
	}
	incompat |= btrfsHasMetadataUUID
	if [16]byte(sb[btrfsMetadataUUIDAt:]) == uuid { // back to what the trees have
		clear(sb[btrfsMetadataUUIDAt:][:16])
		incompat &^= btrfsHasMetadataUUID
	}
	copy(sb[btrfsFSIDAt:], uuid[:])
	le.PutUint64(sb[btrfsIncompatAt:], incompat)
	sum, err := btrfsChecksum(sb)
	copy(sb, sum)
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// btrfsChecksum computes the checksum of a superblock, of the kind that it says.
func btrfsChecksum(sb []byte) ([]byte, error) {
	switch kind := le.Uint16(sb[btrfsCsumTypeAt:]); kind {
	case 0:
		return le.AppendUint32(nil, crc32.Checksum(sb[btrfsFSIDAt:], castagnoli)), nil
	case 2:
		sum := sha256.Sum256(sb[btrfsFSIDAt:])
		return sum[:], nil
	default: // 1 is xxhash, 3 blake2b
		return nil, fmt.Errorf("btrfs with checksums of type %d: only of filesystems with crc32c (0) and sha256 (2) can a copy get a UUID of its own: %w", kind, ErrInvalid)
	}
}

const btrfsForgetDev = 0x50009405 // _IOW(0x94, 5, struct btrfs_ioctl_vol_args)

// forgetBtrfs makes the kernel forget what it has once seen on a device that is not
// mounted. Its memory goes by device number and outlives the device: with something
// left there (of a filesystem of several devices, say, and before Linux 6.7 of any),
// mounting what the number has now can fail with EEXIST.
func forgetBtrfs(device string) error {
	ctl, err := openCloexec("/dev/btrfs-control", unix.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // btrfs is not loaded: nothing to forget
	}
	if err != nil {
		return err
	}
	defer ctl.Close()
	var args struct {
		_    int64
		name [4088]byte
	}
	copy(args.name[:len(args.name)-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, ctl.Fd(), btrfsForgetDev, uintptr(unsafe.Pointer(&args)))
	if errno != 0 && errno != unix.EBUSY && errno != unix.ENOENT { // mounted; not known
		return fmt.Errorf("forget btrfs on %s: %w", device, errno)
	}
	return nil
}
