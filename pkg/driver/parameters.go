package driver

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore"
)

// Parameters of a StorageClass.
const (
	paramFSType      = "csi.storage.k8s.io/fstype"
	paramCompression = "compression"
	paramBlockSize   = "blockSize"
	paramOnFull      = "onFull"
	// sidecarPrefix begins the keys that Kubernetes' sidecars add, as the names of
	// claim and namespace. They are kept as labels.
	sidecarPrefix = "csi.storage.k8s.io/"
)

const allowedParameters = paramFSType + " (ext4, xfs), " + paramCompression + " (zstd, s2, none), " +
	paramBlockSize + " (512, 4096), " + paramOnFull + " (wait)"

// volumeParameters are a class's parameters, parsed. Zero fields were not given.
type volumeParameters struct {
	fsType      string
	compression string
	sectorBytes int
	onFull      string
	labels      map[string]string
}

func parseVolumeParameters(params map[string]string) (volumeParameters, error) {
	p := volumeParameters{labels: make(map[string]string)}
	for key, value := range params {
		var err error
		switch {
		case key == paramFSType:
			p.fsType = value
			p.labels[key] = value
			err = checkFSType(value)
		case key == paramCompression:
			p.compression = value
			err = oneOf(value, "zstd", "s2", "none")
		case key == paramBlockSize:
			p.sectorBytes, _ = strconv.Atoi(value)
			err = oneOf(value, "512", "4096")
		case key == paramOnFull:
			p.onFull = value
			err = oneOf(value, "wait")
		case strings.HasPrefix(key, sidecarPrefix):
			p.labels[key] = value
		default:
			err = fmt.Errorf("not known; allowed are %s: %w", allowedParameters, blockstore.ErrInvalid)
		}
		if err != nil {
			return p, fmt.Errorf("parameter %s: %w", key, err)
		}
	}
	return p, nil
}

// parseSnapshotParameters takes the parameters of a snapshot class: there are none but
// those of the sidecars, which become labels.
func parseSnapshotParameters(params map[string]string) (labels map[string]string, err error) {
	labels = make(map[string]string)
	for key, value := range params {
		if !strings.HasPrefix(key, sidecarPrefix) {
			return nil, fmt.Errorf("parameter %s: %w: not known; a snapshot class has no parameters", key, blockstore.ErrInvalid)
		}
		labels[key] = value
	}
	return labels, nil
}

func oneOf(value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("%q; allowed is %s: %w", value, strings.Join(allowed, ", "), blockstore.ErrInvalid)
}

const defaultFSType = "ext4"

func checkFSType(fsType string) error {
	if err := oneOf(fsType, "ext4", "xfs"); err != nil {
		return fmt.Errorf("filesystem type: %w", err)
	}
	return nil
}
