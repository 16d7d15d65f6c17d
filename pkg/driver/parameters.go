package driver

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
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
)

const allowedParameters = paramFSType + " (ext4, xfs, btrfs), " + paramCompression + " (zstd, s2, none), " +
	paramBlockSize + " (512, 4096), " + paramOnFull + " (wait, error)"

// Labels of a volume that the provisioner gives: the claim that it was made for, and the
// PersistentVolume that it is to be.
const (
	LabelClaim            = "csi.storage.k8s.io/pvc/name"
	LabelClaimNamespace   = "csi.storage.k8s.io/pvc/namespace"
	LabelPersistentVolume = "csi.storage.k8s.io/pv/name"
)

// sidecarKey matches the keys that Kubernetes' sidecars add or use: names of the
// objects behind a call, as csi.storage.k8s.io/pvc/name, and of secrets. They are kept
// as labels. Anything else with their prefix is somebody's slip of the pen.
var sidecarKey = regexp.MustCompile(`^csi\.storage\.k8s\.io/(?:` +
	`[a-z]+/[a-z]+|` +
	`(?:provisioner|controller-publish|controller-expand|controller-modify|node-stage|node-publish|node-expand|` +
	`snapshotter|snapshotter-list|group-snapshotter|group-snapshotter-get)-secret-(?:name|namespace))$`)

// volumeParameters are a class's parameters, parsed. Zero fields were not given.
type volumeParameters struct {
	fsType      string
	compression string
	sectorBytes int
	onFull      string
	labels      map[string]string
}

// maxMap is the longest map that CSI allows, and the longest list of mount flags, in
// bytes of all keys and values.
const maxMap = 4 << 10

func checkMap(params map[string]string) error {
	n := 0
	for key, value := range params {
		n += len(key) + len(value)
	}
	if n > maxMap {
		return fmt.Errorf("parameters of %d bytes: CSI allows %d: %w", n, maxMap, blockstore.ErrInvalid)
	}
	return nil
}

func parseVolumeParameters(params map[string]string) (volumeParameters, error) {
	p := volumeParameters{labels: make(map[string]string)}
	if err := checkMap(params); err != nil {
		return p, err
	}
	for _, key := range slices.Sorted(maps.Keys(params)) { // of two mistakes it is always the same that is told
		var err error
		value := params[key]
		switch {
		case key == paramFSType:
			p.fsType = value
			err = checkFSType(value)
		case key == paramCompression:
			p.compression = value
			err = oneOf(value, "zstd", "s2", "none")
		case key == paramBlockSize:
			p.sectorBytes, _ = strconv.Atoi(value)
			err = oneOf(value, "512", "4096")
		case key == paramOnFull:
			p.onFull = value
			err = oneOf(value, blockstore.OnFullWait, blockstore.OnFullError)
		case sidecarKey.MatchString(key):
			p.labels[key] = value
		default:
			err = fmt.Errorf("not known; allowed are %s: %w", allowedParameters, blockstore.ErrInvalid)
		}
		if err != nil {
			return p, fmt.Errorf("parameter %q: %w", key, err)
		}
	}
	return p, nil
}

// parseSnapshotParameters takes the parameters of a snapshot class: there are none but
// those of the sidecars, which become labels.
func parseSnapshotParameters(params map[string]string) (labels map[string]string, err error) {
	if err := checkMap(params); err != nil {
		return nil, err
	}
	labels = make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(params)) {
		if !sidecarKey.MatchString(key) {
			return nil, fmt.Errorf("parameter %q: not known; a snapshot class has no parameters: %w", key, blockstore.ErrInvalid)
		}
		labels[key] = params[key]
	}
	return labels, nil
}

func oneOf(value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%q; allowed is %s: %w", value, strings.Join(allowed, ", "), blockstore.ErrInvalid)
}

const defaultFSType = "ext4"

// fsTypes are the filesystems that a volume can have.
var fsTypes = []string{"ext4", "xfs", "btrfs"}

func checkFSType(fsType string) error {
	if err := oneOf(fsType, fsTypes...); err != nil {
		return fmt.Errorf("filesystem type: %w", err)
	}
	return nil
}

// oneFSType is the filesystem type that a request is about: the class's and those of
// all its capabilities must be the same. "" if nobody names one.
func oneFSType(class string, accesses []access) (string, error) {
	fsType := class
	for _, a := range accesses {
		switch {
		case a.fsType == "" || a.fsType == fsType:
		case fsType == "":
			fsType = a.fsType
		default:
			return "", fmt.Errorf("filesystem types %s and %s in one request: %w", fsType, a.fsType, blockstore.ErrInvalid)
		}
	}
	return fsType, nil
}
