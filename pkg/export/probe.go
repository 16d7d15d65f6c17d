package export

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// probeBytes is how much of a device ProbeFS reads. Every signature it knows is in
// there, and so is what a filesystem must have whole to be mounted.
const probeBytes = maxRequest

// ProbeFS reads past the page cache: what is on the device counts, and a page that
// somebody read before the volume's blocks went bad would hide that.
func (h *localHost) ProbeFS(ctx context.Context, device string) (string, error) {
	found := make(chan string, 1)
	err := Within(ctx, func() error {
		fsType, err := apartValue(func() (string, error) { return probeFS(device) })
		found <- fsType
		return err
	})
	if err != nil {
		return "", fmt.Errorf("probe %s: %w", device, err)
	}
	return <-found, nil
}

func probeFS(device string) (string, error) {
	d, err := openRaw(device, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return "", err
	}
	defer d.close()
	size, err := d.f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	head, err := d.read(0, int(min(size, probeBytes)))
	if err != nil {
		return "", err
	}
	return fsTypeOf(head), nil
}

// signature is what marks a filesystem, or another use of a device.
type signature struct {
	fsType string
	off    int
	magic  string
}

// signatures are in the order in which they count: mkfs.ext4 and mkfs.xfs leave the
// superblock of an older btrfs where it is, mkfs.btrfs clears theirs.
var signatures = []signature{
	{"xfs", 0, "XFSB"},
	{"ext4", 1024 + 0x38, "\x53\xef"}, // ext2 and ext3 too: the ext4 driver mounts them
	{"btrfs", 64<<10 + 0x40, "_BHRfS_M"},
	{"crypto_LUKS", 0, "LUKS\xba\xbe"},
	{"LVM2_member", 512, "LABELONE"},
	{"swap", 4096 - 10, "SWAPSPACE2"},
	{"iso9660", 32768 + 1, "CD001"},
	{"squashfs", 0, "hsqs"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"vfat", 0x36, "FAT1"}, // FAT12, FAT16
	{"vfat", 0x52, "FAT32   "},
	{"gpt", 512, "EFI PART"},
}

// fsTypeOf tells what the first bytes of a device are of; "" if nothing known.
func fsTypeOf(head []byte) string {
	for _, s := range signatures {
		if end := s.off + len(s.magic); end <= len(head) && string(head[s.off:end]) == s.magic {
			return s.fsType
		}
	}
	return ""
}

// rawDevice is a block device opened past the page cache. It is for one goroutine.
type rawDevice struct {
	f   *os.File
	buf *buffer // page-aligned, as direct I/O needs it
}

func openRaw(device string, flags int) (*rawDevice, error) {
	f, err := openCloexec(device, flags|unix.O_DIRECT)
	if err != nil {
		return nil, err
	}
	buf, err := mapBuffer()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &rawDevice{f: f, buf: buf}, nil
}

func (d *rawDevice) close() {
	d.f.Close()
	_ = unix.Munmap(d.buf.raw) // cannot fail on a whole mapping
}

// read returns n bytes at off, all or an error; they are valid until the next call. n is
// at most maxRequest; n and off are multiples of the sector size.
func (d *rawDevice) read(off int64, n int) ([]byte, error) {
	p := d.buf.data(n)
	if _, err := io.ReadFull(io.NewSectionReader(d.f, off, int64(n)), p); err != nil {
		return nil, fmt.Errorf("read of %d bytes at %d: %w", n, off, err)
	}
	return p, nil
}

// write stores what the last read returned at off, durably.
func (d *rawDevice) write(p []byte, off int64) error {
	if _, err := d.f.WriteAt(p, off); err != nil {
		return fmt.Errorf("write of %d bytes at %d: %w", len(p), off, err)
	}
	return d.flush()
}

func (d *rawDevice) flush() error {
	if err := d.f.Sync(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}
