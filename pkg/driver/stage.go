package driver

import (
	"context"
	"fmt"
	"slices"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// stage is one NodeStageVolume under the volume's lock.
//
// For a filesystem it follows the protocol that keeps mkfs from running over data
// (I11); each state is durable before the next step begins:
//
//	empty ------> SetState(formatting) -> attach -> mkfs -> flush the device
//	formatting -> (a crash came between) the same again
//	              SetState(used) -> mount
//	used -------> attach -> fsck -> mount -> grow
//
// Only the catalog's state decides. What blkid thinks of the device does not: it also
// says "nothing there" when reads fail. Raw volumes are used from before their device
// appears, and copies of volumes and snapshots from when they are made.
type stage struct {
	d      *Driver
	volume *attach.Locked
	info   blockstore.VolumeInfo
	access access
	target string
}

// block stages a raw volume: there is nothing to mount.
func (s *stage) block(ctx context.Context) error {
	device, err := s.volume.AttachRaw(ctx)
	if err != nil {
		return err
	}
	mounts, err := s.d.mountsOf(device)
	if err == nil && len(mounts) > 0 {
		err = fmt.Errorf("volume %s is staged with a filesystem on %s, not as a raw block device: %w", s.info.ID, mounts[0].Target, blockstore.ErrExists)
	}
	return err
}

// mount stages a volume with a filesystem.
func (s *stage) mount(ctx context.Context) error {
	fsType, err := s.fsType()
	if err != nil {
		return err
	}
	done, err := s.mounted(fsType)
	if done || err != nil {
		return err
	}
	// A caller that gives up must not kill mkfs or fsck halfway, only to have the
	// next call begin anew: they have time limits of their own. Repeated calls are
	// ABORTED meanwhile.
	ctx = context.WithoutCancel(ctx)
	var device string
	formatted := s.info.State != blockstore.StateUsed
	if formatted {
		device, err = s.format(ctx, fsType)
	} else {
		device, err = s.attachUsed(ctx, fsType)
	}
	if err != nil {
		return err
	}
	// A copy may be larger than its source, and a volume may have grown while it
	// was not attached.
	grow := !formatted && !slices.Contains(s.access.flags, "ro")
	if grow {
		if err := s.d.host.GrowUnmounted(ctx, device, fsType); err != nil {
			return err
		}
	}
	if err := s.d.mountAt(ctx, s.volume, device, s.target, fsType, mountFlags(fsType, s.access.flags)); err != nil || !grow {
		return err
	}
	return s.d.host.GrowFS(device, s.target)
}

// fsType decides between what is asked for and what is there.
func (s *stage) fsType() (string, error) {
	asked, there := s.access.fsType, s.info.FSType
	switch {
	case asked != "" && there != "" && asked != there:
		return "", fmt.Errorf("volume %s has an %s filesystem, the request wants %s: %w", s.info.ID, there, asked, blockstore.ErrInvalid)
	case there != "":
		return there, nil
	case asked != "":
		return asked, nil
	case s.info.Labels[paramFSType] != "":
		return s.info.Labels[paramFSType], nil
	}
	return defaultFSType, nil
}

// mounted tells whether an earlier call has done everything.
func (s *stage) mounted(fsType string) (bool, error) {
	m, err := s.d.topmost(s.target)
	if err != nil || m == nil {
		return false, err
	}
	device, ok := s.volume.Device()
	switch {
	case !ok || !isFilesystemOf(m, device):
		return false, fmt.Errorf("on %s something else is mounted (%s): %w", s.target, m.Device, blockstore.ErrExists)
	case m.FSType != fsType:
		return false, fmt.Errorf("volume %s is mounted on %s as %s, not %s: %w", s.info.ID, s.target, m.FSType, fsType, blockstore.ErrExists)
	}
	return true, nil
}

// format makes the filesystem of a volume that never held anything.
func (s *stage) format(ctx context.Context, fsType string) (device string, err error) {
	if err := s.volume.SetState(blockstore.StateFormatting, fsType); err != nil {
		return "", err
	}
	if device, err = s.volume.Attach(ctx); err != nil {
		return "", err
	}
	if err := s.d.host.Mkfs(ctx, device, fsType, nil); err != nil {
		return "", err
	}
	if err := s.d.host.FlushDevice(device); err != nil {
		return "", err
	}
	return device, s.volume.SetState(blockstore.StateUsed, fsType)
}

// attachUsed attaches a volume that holds something.
func (s *stage) attachUsed(ctx context.Context, fsType string) (device string, err error) {
	if device, err = s.volume.Attach(ctx); err != nil {
		return "", err
	}
	mounts, err := s.d.mountsOf(device)
	if err != nil {
		return "", err
	}
	if len(mounts) > 0 { // somewhere else: not to be repaired under its feet
		return device, nil
	}
	return device, s.d.host.Fsck(ctx, device, fsType)
}

// mountFlags adds what a filesystem needs: a copy of an xfs has its source's UUID and
// would not be mounted beside it.
func mountFlags(fsType string, flags []string) []string {
	if fsType == "xfs" {
		return append([]string{"nouuid"}, flags...)
	}
	return flags
}
