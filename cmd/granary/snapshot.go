package main

import (
	"context"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/k8ns/granary/pkg/admin"
	"github.com/k8ns/granary/pkg/blockstore"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Take, list and remove snapshots",
		Args:  cobra.ArbitraryArgs,
		RunE:  a.group,
	}
	cmd.AddCommand(
		a.snapshotCreateCommand(),
		a.snapshotListCommand(),
		a.snapshotShowCommand(),
		a.snapshotRemoveCommand(),
	)
	return cmd
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	var req admin.CreateSnapshot
	cmd := &cobra.Command{
		Use:   "create VOLUME NAME",
		Short: "Take a snapshot of a volume, also while it is written to",
		Long: `Take a snapshot of a volume, also while it is written to. It is exact and durable
when the command returns; with --wait the command returns when it is also ready, that
is, folded into the store.`,
		Args: cobra.ExactArgs(2),
		RunE: a.action(func(ctx context.Context, args []string) error {
			req.Volume, req.Name = reference(args[0]), args[1]
			info, err := a.client().CreateSnapshot(ctx, req, nil)
			if err != nil {
				return err
			}
			return a.printSnapshots(info, info)
		}),
	}
	cmd.Flags().BoolVar(&req.Wait, "wait", false, "wait until the snapshot is ready")
	return a.withDataDir(a.withOutput(cmd))
}

func (a *app) snapshotListCommand() *cobra.Command {
	var volume string
	var page admin.Page
	cmd := &cobra.Command{
		Use:     "ls [VOLUME]",
		Aliases: []string{"list"},
		Short:   "List the snapshots, of one volume or of all",
		Args:    cobra.MaximumNArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			if len(args) > 0 {
				volume = reference(args[0])
			}
			infos, err := a.client().Snapshots(ctx, volume, page)
			if err != nil {
				return err
			}
			return a.printSnapshots(infos, infos...)
		}),
	}
	pageFlags(cmd, &page, "snapshot")
	return a.withDataDir(a.withOutput(cmd))
}

// printSnapshots prints v as JSON or the snapshots as a table.
func (a *app) printSnapshots(v any, infos ...blockstore.SnapshotInfo) error {
	return a.print(v, func(t *table) {
		t.row("NAME", "ID", "VOLUME", "SIZE", "DATA", "READY", "CREATED")
		for _, s := range infos {
			t.row(s.Name, s.ID, s.VolumeName, formatSize(s.SizeBytes), dataOf(s), yesNo(s.Ready), formatTime(s.Created))
		}
	})
}

func (a *app) snapshotShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show SNAPSHOT",
		Short: "Describe a snapshot, by name or ID",
		Args:  cobra.ExactArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			s, err := a.client().Snapshot(ctx, reference(args[0]))
			if err != nil {
				return err
			}
			return a.print(s, func(t *table) {
				t.field("Name", s.Name)
				t.field("ID", s.ID)
				t.field("Volume", s.VolumeName+" ("+s.VolumeID+")")
				t.field("Size", formatSize(s.SizeBytes))
				t.field("Data", dataOf(s))
				t.field("Ready", yesNo(s.Ready))
				t.field("Created", formatTime(s.Created))
				t.field("Labels", formatLabels(s.Labels))
			})
		}),
	}
	return a.withDataDir(a.withOutput(cmd))
}

func (a *app) snapshotRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm SNAPSHOT...",
		Aliases: []string{"remove"},
		Short:   "Remove snapshots; volumes made from them stay",
		Args:    cobra.MinimumNArgs(1),
		RunE: a.action(func(ctx context.Context, args []string) error {
			return each(args, func(arg string) error { return a.client().DeleteSnapshot(ctx, reference(arg)) })
		}),
	}
	return a.withDataDir(cmd)
}

// dataOf is not known before the snapshot is folded.
func dataOf(s blockstore.SnapshotInfo) string {
	if !s.Ready {
		return "-"
	}
	return formatSize(s.MappedBytes)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
