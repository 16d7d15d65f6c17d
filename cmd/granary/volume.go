package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k8ns/granary/pkg/admin"
	"github.com/k8ns/granary/pkg/blockstore"
)

func (a *app) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Make, list, attach, grow and remove volumes",
		Args:  cobra.ArbitraryArgs,
		RunE:  a.group,
	}
	cmd.AddCommand(
		a.volumeCreateCommand(),
		a.volumeListCommand(),
		a.volumeShowCommand(),
		a.volumeAttachCommand(),
		a.volumeDetachCommand(),
		a.volumeResizeCommand(),
		a.volumeSetCommand(),
		a.volumeRemoveCommand(),
	)
	return cmd
}

func (a *app) volumeCreateCommand() *cobra.Command {
	var size sizeFlag
	var req admin.CreateVolume
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a volume: empty, or from a snapshot or another volume",
		Example: `  granary volume create data --size 8GiB
  granary volume create copy --from-snapshot before-upgrade`,
		Args: cobra.ExactArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			req.Name, req.SizeBytes = args[0], int64(size)
			if req.SizeBytes == 0 && req.FromSnapshot == "" && req.FromVolume == "" {
				return usageError("--size is needed, unless the volume has a source")
			}
			req.FromSnapshot, req.FromVolume = reference(req.FromSnapshot), reference(req.FromVolume)
			info, err := a.client().CreateVolume(ctx, req)
			if err != nil {
				return err
			}
			return a.printVolumes(info, info)
		}),
	}
	flags := cmd.Flags()
	flags.Var(&size, "size", "size: "+sizeForms+"; with a source its size is the default and the least")
	flags.StringVar(&req.FromSnapshot, "from-snapshot", "", "start as a copy of this snapshot (name or ID)")
	flags.StringVar(&req.FromVolume, "from-volume", "", "start as a copy of this volume as it is now (name or ID)")
	flags.StringVar(&req.Compression, "compression", "", "zstd, s2 or none (default zstd, or the source's)")
	flags.StringVar(&req.OnFull, "on-full", "", "on a full disk: wait or error (default wait, or the source's)")
	flags.IntVar(&req.SectorBytes, "block-size", 0, "logical sector in bytes, 512 or 4096 (default 512, or the source's)")
	cmd.MarkFlagsMutuallyExclusive("from-snapshot", "from-volume")
	return a.withDataDir(a.withOutput(cmd))
}

func (a *app) volumeListCommand() *cobra.Command {
	var page admin.Page
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the volumes",
		Args:    cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, _ []string) error {
			infos, err := a.client().Volumes(ctx, page)
			if err != nil {
				return err
			}
			return a.printVolumes(infos, infos...)
		}),
	}
	pageFlags(cmd, &page, "volume")
	return a.withDataDir(a.withOutput(cmd))
}

// pageFlags lets a list be shown in parts.
func pageFlags(cmd *cobra.Command, page *admin.Page, what string) {
	cmd.Flags().IntVar(&page.Limit, "limit", 0, "show at most so many, in the order of IDs; 0: all, by name")
	cmd.Flags().StringVar(&page.After, "after", "", "show only what comes after this "+what+" ID")
}

// printVolumes prints v as JSON or the volumes as a table.
func (a *app) printVolumes(v any, infos ...blockstore.VolumeInfo) error {
	return a.print(v, func(t *table) {
		t.row("NAME", "ID", "SIZE", "DATA", "STATE", "DEVICE", "CREATED")
		for _, v := range infos {
			state := string(v.State)
			if v.FSType != "" {
				state += " (" + v.FSType + ")"
			}
			if v.WaitingSince != nil {
				state = "WAITING for space since " + formatTime(*v.WaitingSince)
			}
			if v.Failed != "" {
				state = "FAILED"
			}
			t.row(v.Name, v.ID, formatSize(v.SizeBytes), formatSize(v.MappedBytes), state,
				deviceOf(v), formatTime(v.Created))
		}
	})
}

func (a *app) volumeShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show VOLUME",
		Short: "Describe a volume, by name or ID",
		Args:  cobra.ExactArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			v, err := a.client().Volume(ctx, reference(args[0]))
			if err != nil {
				return err
			}
			return a.print(v, func(t *table) { describeVolume(t, v) })
		}),
	}
	return a.withDataDir(a.withOutput(cmd))
}

func describeVolume(t *table, v blockstore.VolumeInfo) {
	t.field("Name", v.Name)
	t.field("ID", v.ID)
	t.field("Size", fmt.Sprintf("%s (%d bytes)", formatSize(v.SizeBytes), v.SizeBytes))
	t.field("Data", formatSize(v.MappedBytes)+" as of the last fold")
	t.field("Journal", formatSize(v.JournalBytes)+" not folded yet")
	t.field("Device", deviceOf(v))
	t.field("State", string(v.State))
	t.field("Filesystem", v.FSType)
	t.field("Sector", fmt.Sprintf("%d bytes", v.SectorBytes))
	t.field("Compression", v.Compression)
	t.field("On a full disk", v.OnFull)
	t.field("WAITING", waitingNote(v))
	t.field("Made from", v.Source)
	t.field("Created", formatTime(v.Created))
	t.field("Labels", formatLabels(v.Labels))
	t.field("FAILED", v.Failed)
}

// deviceOf is where a volume is attached.
func deviceOf(v blockstore.VolumeInfo) string {
	if !v.Open || v.Device == "" {
		return "-"
	}
	return v.Device
}

func (a *app) volumeAttachCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "attach VOLUME",
		Short: "Make a volume into a block device and print its name",
		Long: `Make a volume into a block device and print its name, as /dev/loop3.
A volume that is attached already stays where it is. From then on it counts as used:
staging it over CSI will mount what is there and never format it.`,
		Args: cobra.ExactArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			attached, err := a.client().Attach(ctx, reference(args[0]))
			if err != nil {
				return err
			}
			for _, warning := range attached.Warnings {
				fmt.Fprintln(a.stderr, "granary: warning:", warning)
			}
			_, err = fmt.Fprintln(a.stdout, attached.Device)
			return err
		}),
	}
	return a.withDataDir(cmd)
}

func (a *app) volumeDetachCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "detach VOLUME",
		Short: "Take a volume's block device away",
		Args:  cobra.ExactArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			return a.client().Detach(ctx, reference(args[0]))
		}),
	}
	return a.withDataDir(cmd)
}

func (a *app) volumeResizeCommand() *cobra.Command {
	var size sizeFlag
	cmd := &cobra.Command{
		Use:   "resize VOLUME --size SIZE",
		Short: "Grow a volume and its block device",
		Long: `Grow a volume and its block device, attached or not. The filesystem on it is not
touched: grow it with resize2fs or xfs_growfs, or through CSI.`,
		Args: cobra.ExactArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			if size == 0 {
				return usageError("--size is needed: %s", sizeForms)
			}
			info, err := a.client().ResizeVolume(ctx, reference(args[0]), int64(size))
			if err != nil {
				return err
			}
			return a.printVolumes(info, info)
		}),
	}
	cmd.Flags().Var(&size, "size", "new size: "+sizeForms)
	return a.withDataDir(a.withOutput(cmd))
}

func (a *app) volumeSetCommand() *cobra.Command {
	var onFull string
	cmd := &cobra.Command{
		Use:   "set VOLUME --on-full wait|error",
		Short: "Say what a volume's writes do on a full disk",
		Long: `Say what a volume's writes do on a full disk, attached or not. wait: they wait
until there is space. error: they get ENOSPC after the time of serve's --full-timeout,
those that wait already at once. A filesystem may turn read-only by that, and keeps
what it has synced.`,
		Args: cobra.ExactArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			if onFull == "" {
				return usageError("--on-full is needed: wait or error")
			}
			info, err := a.client().SetVolume(ctx, admin.SetVolume{Ref: reference(args[0]), OnFull: onFull})
			if err != nil {
				return err
			}
			return a.print(info, func(t *table) { describeVolume(t, info) })
		}),
	}
	cmd.Flags().StringVar(&onFull, "on-full", "", "wait or error")
	return a.withDataDir(a.withOutput(cmd))
}

// waitingNote tells of a volume whose writes wait for space, and what helps; "" if none do.
func waitingNote(v blockstore.VolumeInfo) string {
	if v.WaitingSince == nil {
		return ""
	}
	return "waiting for space since " + formatTime(*v.WaitingSince) +
		": delete volumes or snapshots, grow the disk, or granary volume set " + v.Name + " --on-full error"
}

func (a *app) volumeRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm VOLUME...",
		Aliases: []string{"remove"},
		Short:   "Remove volumes that are not attached; their snapshots and clones stay",
		Args:    cobra.MinimumNArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			return each(args, func(arg string) error { return a.client().DeleteVolume(ctx, reference(arg)) })
		}),
	}
	return a.withDataDir(cmd)
}

// each calls f for every argument, also after one failed; without a daemon it stops.
func each(args []string, f func(arg string) error) error {
	var failed []error
	for _, arg := range args {
		err := f(arg)
		if errors.Is(err, admin.ErrNoDaemon) {
			return err
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// formatLabels writes labels in a fixed order.
func formatLabels(labels map[string]string) string {
	var parts []string
	for _, key := range sortedKeys(labels) {
		parts = append(parts, key+"="+labels[key])
	}
	return strings.Join(parts, ", ")
}
