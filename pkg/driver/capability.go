package driver

import (
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/blockstore"
)

// access is a volume capability, parsed.
type access struct {
	block    bool     // a raw block device, not a filesystem
	fsType   string   // "" leaves the choice to the volume
	flags    []string // mount options
	readOnly bool     // the access mode allows no writing
}

// parseCapability refuses what is missing or not offered: ErrInvalid.
func parseCapability(c *csi.VolumeCapability) (access, error) {
	if c == nil {
		return access{}, fmt.Errorf("the volume capability is missing: %w", blockstore.ErrInvalid)
	}
	var a access
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		a.readOnly = true
	default:
		return a, fmt.Errorf("access mode %s: a volume is on one node: SINGLE_NODE_WRITER and SINGLE_NODE_READER_ONLY are offered: %w", mode, blockstore.ErrInvalid)
	}
	switch {
	case c.GetBlock() != nil:
		a.block = true
		if a.readOnly {
			return a, errReadOnlyBlock
		}
	case c.GetMount() != nil:
		m := c.GetMount()
		a.fsType, a.flags = m.GetFsType(), m.GetMountFlags()
		if a.fsType != "" {
			if err := checkFSType(a.fsType); err != nil {
				return a, err
			}
		}
		if m.GetVolumeMountGroup() != "" {
			return a, fmt.Errorf("a volume mount group is not offered: %w", blockstore.ErrInvalid)
		}
	default:
		return a, fmt.Errorf("the access type is missing: mount or block: %w", blockstore.ErrInvalid)
	}
	return a, nil
}

// errReadOnlyBlock: a read-only bind mount of a device node would not keep anybody
// from writing, so nothing claims that it does.
var errReadOnlyBlock = fmt.Errorf("read-only raw block volumes are not offered: %w", blockstore.ErrInvalid)

// parseCapabilities wants at least one, all of them offered.
func parseCapabilities(cs []*csi.VolumeCapability) error {
	if len(cs) == 0 {
		return fmt.Errorf("the volume capabilities are missing: %w", blockstore.ErrInvalid)
	}
	for _, c := range cs {
		if _, err := parseCapability(c); err != nil {
			return err
		}
	}
	return nil
}

// sizeRange is a capacity range, parsed: bytes; 0 is "not given".
type sizeRange struct{ required, limit int64 }

func parseRange(r *csi.CapacityRange) (sizeRange, error) {
	s := sizeRange{r.GetRequiredBytes(), r.GetLimitBytes()}
	switch {
	case s.required < 0 || s.limit < 0:
		return s, fmt.Errorf("a negative size: %w", blockstore.ErrInvalid)
	case s.limit > 0 && s.limit < s.required:
		return s, fmt.Errorf("the limit of %d bytes is below the %d required: %w", s.limit, s.required, blockstore.ErrInvalid)
	case s.required > blockstore.MaxVolumeSize:
		return s, fmt.Errorf("%d bytes: a volume has at most %d: %w", s.required, int64(blockstore.MaxVolumeSize), blockstore.ErrRange)
	}
	return s, nil
}

// pick chooses the size of a new volume: the required bytes rounded up to 1 MiB. If
// nothing is required it is preferred, or less if the limit says so. ErrRange if the
// limit cannot be kept.
func (s sizeRange) pick(preferred int64) (int64, error) {
	size := s.required
	if size == 0 {
		size = preferred
		if s.limit > 0 && size > s.limit {
			size = s.limit / blockstore.SizeStep * blockstore.SizeStep
		}
	}
	size = max(roundUp(size), blockstore.MinVolumeSize)
	return size, s.fits(size)
}

// fits tells whether a volume of this size is in the range.
func (s sizeRange) fits(size int64) error {
	switch {
	case size < s.required:
		return fmt.Errorf("%d bytes are less than the %d required: %w", size, s.required, blockstore.ErrRange)
	case s.limit > 0 && size > s.limit:
		return fmt.Errorf("%d bytes are more than the limit of %d (sizes are multiples of %d): %w", size, s.limit, blockstore.SizeStep, blockstore.ErrRange)
	}
	return nil
}

// roundUp rounds up to a size that a volume can have.
func roundUp(n int64) int64 {
	return (n + blockstore.SizeStep - 1) / blockstore.SizeStep * blockstore.SizeStep
}
