package driver

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// stage is one NodeStageVolume under the volume's lock.
//
// For a filesystem it follows the protocol that keeps mkfs from running over data
// (I11); each state is durable before the next step begins:
//
//	empty ------> attach -> SetState(formatting) -> mkfs -> flush the device
//	formatting -> (a crash came between) the same again
//	              SetState(used) -> mount
//	used -------> attach -> look what is there -> fsck -> mount -> grow
//
// Only the catalog's state decides. What blkid thinks of the device does not: it also
// says "nothing there" when reads fail. Raw volumes are used from before their device
// appears, and copies of used volumes from when they are made.
//
// A stage that must not write gives the filesystem a layer to write on that is thrown
// away: mounted read-only it still replays its log.
type stage struct {
	d        *Driver
	volume   *attach.Locked
	info     blockstore.VolumeInfo
	access   access
	readOnly bool
	target   string
}

// run stages the volume. After an error it is as before the call: a CO that gives up
// may never unstage, and a volume that stays attached could not be deleted.
func (s *stage) run(ctx context.Context) error {
	run := s.mount
	if s.access.block {
		run = s.block
	}
	err := run(ctx)
	if err == nil || len(s.volume.Uses()) > 0 {
		return err
	}
	return errors.Join(err, s.volume.Detach(context.WithoutCancel(ctx)))
}

// block stages a raw volume: there is nothing to mount, but it is on record.
func (s *stage) block(ctx context.Context) error {
	use := blockstore.Use{Path: s.target, Purpose: stagePurpose(s.access, "", s.readOnly)}
	done, err := s.done(use)
	if done || err != nil {
		return err
	}
	if err := s.compatible(use); err != nil {
		return err
	}
	if s.readOnly {
		_, err = s.volume.Attach(ctx, attach.ReadOnly)
	} else {
		_, err = s.volume.AttachRaw(ctx)
	}
	if err != nil {
		return err
	}
	return s.volume.AddUse(use)
}

// mount stages a volume with a filesystem.
func (s *stage) mount(ctx context.Context) error {
	fsType, err := s.fsType()
	if err != nil {
		return err
	}
	use := blockstore.Use{Path: s.target, Purpose: stagePurpose(s.access, fsType, s.readOnly)}
	done, err := s.done(use)
	if done || err != nil {
		return err
	}
	if err := s.check(fsType, use); err != nil {
		return err
	}
	if err := makeTarget(use.Path, false); err != nil {
		return err
	}
	device, err := s.attach(ctx)
	if err != nil {
		return err
	}
	// From here on a caller that gives up must not kill mkfs or fsck halfway, only to
	// have the next call begin anew: they have time limits of their own. Repeated calls
	// are ABORTED meanwhile.
	ctx = context.WithoutCancel(ctx)
	if s.info.State == blockstore.StateUsed {
		err = s.prepare(ctx, device, fsType)
	} else {
		err = s.format(ctx, device, fsType)
	}
	if err != nil {
		return err
	}
	flags := mountFlags(fsType, s.access.flags, s.readOnly)
	if err := s.mountAt(ctx, device, use, fsType, flags); err != nil {
		return err
	}
	if slices.Contains(flags, "ro") || s.info.State != blockstore.StateUsed {
		return nil
	}
	// A copy may be larger than its source, and a volume may have grown while it
	// was not attached.
	if err := s.d.host.GrowFS(device, s.target); err != nil {
		return errors.Join(err, s.d.unmount(ctx, s.volume, s.target))
	}
	return nil
}

// mountAt mounts a device, on record before it is mounted.
func (s *stage) mountAt(ctx context.Context, device string, use blockstore.Use, fsType string, flags []string) error {
	if err := s.volume.AddUse(use); err != nil {
		return err
	}
	if err := s.d.host.Mount(ctx, device, use.Path, fsType, flags); err != nil {
		return errors.Join(err, s.volume.RemoveUse(use.Path))
	}
	return nil
}

// fsType decides between what is asked for and what is there.
func (s *stage) fsType() (string, error) {
	asked, there := s.access.fsType, s.info.FSType
	if s.info.State != blockstore.StateUsed {
		there = "" // what mkfs was to make, perhaps
	}
	switch {
	case asked != "" && there != "" && asked != there:
		return "", fmt.Errorf("volume %s has an %s filesystem, the request wants %s: %w", s.info.ID, there, asked, errState)
	case there != "":
		return there, nil
	case asked != "":
		return asked, nil
	case s.info.Labels[paramFSType] != "":
		return s.info.Labels[paramFSType], nil
	}
	return defaultFSType, nil
}

// done tells whether an earlier call has done everything. ErrExists if something else
// is at the path.
func (s *stage) done(use blockstore.Use) (bool, error) {
	m, err := s.d.topmost(s.target)
	if err != nil {
		return false, err
	}
	device, attached := s.volume.Device()
	if m != nil && (!attached || !m.IsFilesystemOf(device)) {
		return false, fmt.Errorf("on %s something else is mounted (%s): %w", s.target, m.Device, blockstore.ErrExists)
	}
	have := useAt(s.volume.Uses(), s.target)
	switch {
	case have == nil && m != nil:
		return false, fmt.Errorf("volume %s is mounted on %s, but not by a stage: %w", s.info.ID, s.target, blockstore.ErrExists)
	case have == nil:
		return false, nil
	case have.Purpose != use.Purpose:
		return false, fmt.Errorf("volume %s is at %s already by %q, this call is %q: %w", s.info.ID, s.target, have.Purpose, use.Purpose, blockstore.ErrExists)
	}
	return m != nil || s.access.block, nil
}

// check refuses what cannot work, before anything is touched.
func (s *stage) check(fsType string, use blockstore.Use) error {
	if err := export.CheckMountFlags(fsType, s.access.flags); err != nil {
		return err
	}
	if err := s.compatible(use); err != nil {
		return err
	}
	if s.info.State == blockstore.StateUsed {
		return nil
	}
	if s.readOnly {
		return fmt.Errorf("volume %s holds nothing yet: stage it for writing first: %w", s.info.ID, errState)
	}
	return checkHolds(s.info.SizeBytes, fsType)
}

// compatible refuses a second stage, at another path, that is not like the first.
func (s *stage) compatible(use blockstore.Use) error {
	for _, other := range usesOf(s.volume.Uses(), stagedAs) {
		if other.Path != use.Path && other.Purpose != use.Purpose {
			return fmt.Errorf("volume %s is staged at %s by %q, this call is %q: %w", s.info.ID, other.Path, other.Purpose, use.Purpose, errState)
		}
	}
	return nil
}

// attach makes the volume a block device.
func (s *stage) attach(ctx context.Context) (device string, err error) {
	if s.readOnly {
		return s.volume.Attach(ctx, attach.Scratch)
	}
	return s.volume.Attach(ctx, attach.ReadWrite)
}

// format makes the filesystem of a volume that never held anything.
func (s *stage) format(ctx context.Context, device, fsType string) error {
	if err := s.volume.SetState(blockstore.StateFormatting, fsType); err != nil {
		return err
	}
	if err := s.d.host.Mkfs(ctx, device, fsType, nil); err != nil {
		return err
	}
	if err := s.d.host.FlushDevice(device); err != nil {
		return err
	}
	return s.volume.SetState(blockstore.StateUsed, fsType)
}

// prepare makes a filesystem that is there ready to be mounted. Nothing is written
// unless the one that is expected is seen.
func (s *stage) prepare(ctx context.Context, device, fsType string) error {
	mounts, err := s.d.mountsOf(device)
	if err != nil {
		return err
	}
	if len(mounts) > 0 { // somewhere else: not to be repaired under its feet
		return nil
	}
	there, err := s.d.host.ProbeFS(ctx, device)
	switch {
	case err != nil:
		return fmt.Errorf("volume %s: what is on it cannot be read, so it is neither mounted nor formatted: %w", s.info.ID, err)
	case there == "":
		return fmt.Errorf("volume %s was in use, as a raw block device perhaps, and no filesystem is on it; it is never formatted now: %w", s.info.ID, errState)
	case there != fsType:
		return fmt.Errorf("volume %s holds %s, the request wants %s: %w", s.info.ID, there, fsType, errState)
	}
	if err := s.d.host.Fsck(ctx, device, fsType); err != nil {
		return err
	}
	if s.info.Source != "" {
		if err := s.d.host.PrepareCopy(ctx, device, fsType, rawID(s.info.ID)); err != nil {
			return err
		}
	}
	return s.d.host.GrowUnmounted(ctx, device, fsType)
}

// rawID is the 16 random bytes of an engine's ID, which make a UUID of its own for a
// copied filesystem.
func rawID(id string) (raw [16]byte) {
	_, _ = hex.Decode(raw[:], []byte(id[2:]))
	return raw
}

// mountFlags adds what a filesystem needs: a copy of an xfs has its source's UUID and
// would not be mounted beside it.
func mountFlags(fsType string, flags []string, readOnly bool) []string {
	var all []string
	if fsType == "xfs" && !slices.Contains(flags, "nouuid") {
		all = append(all, "nouuid")
	}
	if readOnly && !slices.Contains(flags, "ro") {
		all = append(all, "ro")
	}
	return append(all, slices.DeleteFunc(slices.Clone(flags), func(f string) bool { return readOnly && f == "rw" })...)
}
