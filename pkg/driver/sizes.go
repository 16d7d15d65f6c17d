package driver

import (
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// defaultVolumeSize is what a request without a size gets.
const defaultVolumeSize = 1 << 30

// sizeRange is a capacity range, parsed: bytes; 0 is "not given".
type sizeRange struct{ required, limit int64 }

// parseRange is ErrInvalid for a range that says nothing, ErrRange for one that no
// volume fits.
func parseRange(r *csi.CapacityRange) (sizeRange, error) {
	s := sizeRange{r.GetRequiredBytes(), r.GetLimitBytes()}
	switch {
	case r != nil && s.required == 0 && s.limit == 0:
		return s, fmt.Errorf("the capacity range is empty: required bytes, a limit or both are wanted: %w", blockstore.ErrInvalid)
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

// grow is the size of a volume of so many bytes after an expansion to the range: it
// may be larger already. ErrRange if the limit cannot be kept.
func (s sizeRange) grow(present int64) (int64, error) {
	size := max(present, roundUp(s.required))
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

// checkHolds refuses a size that the filesystem cannot be made on: ErrRange.
func checkHolds(size int64, fsType string) error {
	if least := minSize(fsType); size < least {
		return fmt.Errorf("%d bytes: %s needs at least %d (%d MiB): %w", size, fsType, least, least>>20, blockstore.ErrRange)
	}
	return nil
}

// minSize is the smallest volume that holds a filesystem; "" is any or none.
func minSize(fsType string) int64 {
	if fsType == "" {
		return blockstore.MinVolumeSize
	}
	return max(blockstore.MinVolumeSize, roundUp(export.MinFilesystemBytes(fsType)))
}
