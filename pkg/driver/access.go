package driver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// access is a volume capability, parsed.
type access struct {
	mode     csi.VolumeCapability_AccessMode_Mode
	block    bool     // a raw block device, not a filesystem
	fsType   string   // "" leaves the choice to the volume
	flags    []string // mount options
	readOnly bool     // the access mode allows no writing
}

// offeredModes are the access modes that a volume on one node can have, and whether
// they allow no writing. A volume is on one node, so the one that names many nodes is
// about many readers on it, and offered for copies only: of anything else there would
// be nothing to read.
var offeredModes = map[csi.VolumeCapability_AccessMode_Mode]struct{ readOnly, many bool }{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        {},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: {},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  {many: true},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   {readOnly: true},
	csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:    {readOnly: true, many: true},
}

// many tells whether a volume may be published at several targets so.
func (a access) many() bool { return offeredModes[a.mode].many }

// copiesOnly tells whether only a copy of a snapshot or volume can be used so.
func (a access) copiesOnly() bool {
	return a.mode == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
}

// String is the canonical text of a capability: equal texts, equal capabilities.
func (a access) String() string {
	if a.block {
		return a.mode.String() + " block"
	}
	return strings.TrimSpace(strings.Join(append([]string{a.mode.String(), "mount", a.fsType}, a.flags...), " "))
}

// parseAccess refuses what is missing or not offered: ErrInvalid.
func parseAccess(c *csi.VolumeCapability) (access, error) {
	if c == nil {
		return access{}, fmt.Errorf("the volume capability is missing: %w", blockstore.ErrInvalid)
	}
	a := access{mode: c.GetAccessMode().GetMode()}
	if a.mode == csi.VolumeCapability_AccessMode_UNKNOWN {
		return a, fmt.Errorf("the access mode is missing: allowed are %s: %w", modeNames(), blockstore.ErrInvalid)
	}
	offered, ok := offeredModes[a.mode]
	if !ok {
		return a, fmt.Errorf("access mode %s: a volume is on one node: allowed are %s: %w: %w", a.mode, modeNames(), errMode, blockstore.ErrInvalid)
	}
	a.readOnly = offered.readOnly
	switch {
	case c.GetBlock() != nil:
		a.block = true
		return a, nil
	case c.GetMount() != nil:
		return a, a.parseMount(c.GetMount())
	}
	return a, fmt.Errorf("the access type is missing: mount or block: %w", blockstore.ErrInvalid)
}

func (a *access) parseMount(m *csi.VolumeCapability_MountVolume) error {
	a.fsType, a.flags = m.GetFsType(), m.GetMountFlags()
	if a.fsType != "" {
		if err := checkFSType(a.fsType); err != nil {
			return err
		}
	}
	if m.GetVolumeMountGroup() != "" {
		return fmt.Errorf("a volume mount group is not offered: %w", blockstore.ErrInvalid)
	}
	return a.checkFlags()
}

// checkFlags refuses mount options that endanger the machine or the data. Without a
// filesystem type those of any will do: the one that decides comes with the stage.
func (a access) checkFlags() error {
	n := 0
	for _, f := range a.flags {
		n += len(f)
	}
	if n > maxMap {
		return fmt.Errorf("mount flags of %d bytes: CSI allows %d: %w", n, maxMap, blockstore.ErrInvalid)
	}
	types := []string{a.fsType}
	if a.fsType == "" {
		types = fsTypes
	}
	var err error
	for _, t := range types {
		if err = export.CheckMountFlags(t, a.flags); err == nil {
			return nil
		}
	}
	return err
}

func modeNames() string {
	var names []string
	for m := range offeredModes {
		names = append(names, m.String())
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// suits refuses a capability that a volume cannot have: ErrInvalid. source is the ID
// of what the volume is a copy of, "" for none.
func (a access) suits(source string) error {
	if a.copiesOnly() && source == "" {
		return fmt.Errorf("access mode %s: only for volumes made from a snapshot or another volume: %w: %w", a.mode, errMode, blockstore.ErrInvalid)
	}
	return nil
}

// parseAccesses wants at least one, all of them offered for a volume with that source.
func parseAccesses(cs []*csi.VolumeCapability, source string) ([]access, error) {
	if len(cs) == 0 {
		return nil, fmt.Errorf("the volume capabilities are missing: %w", blockstore.ErrInvalid)
	}
	var all []access
	for _, c := range cs {
		a, err := parseAccess(c)
		if err == nil {
			err = a.suits(source)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}
