package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/k8ns/granary/pkg/admin"
	"github.com/k8ns/granary/pkg/blockstore"
)

func (a *app) statsCommand() *cobra.Command {
	var perVolume bool
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show what the store holds and what that takes",
		Long: `Show what the store holds and what that takes, in all and per volume.

  logical    data in volumes, and in snapshots whose image no volume has; holes do
             not count, copies do
  unique     different 4 KiB blocks of it
  stored     bytes on the disk for that: chunk files and catalog
  reduction  logical / stored
  garbage    the part of stored that nobody needs any more, as of the last marking

Journal segments and the reserve are set aside beforehand and not part of stored.`,
		Args: cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, _ []string) error {
			stats, err := a.client().Stats(ctx, perVolume)
			if err != nil {
				return err
			}
			return a.print(stats, func(t *table) { printStats(t, stats) })
		}),
	}
	cmd.Flags().BoolVar(&perVolume, "volumes", true, "list the volumes too")
	return a.withDataDir(a.withOutput(cmd))
}

func printStats(t *table, s admin.Stats) {
	t.row("Logical", formatSize(s.Logical), fmt.Sprintf("%s in volumes: %d; snapshots: %d", formatSize(s.LogicalVolumes), s.Volumes, s.Snapshots))
	t.row("Unique", formatSize(s.Unique), percent(s.Unique, s.Logical)+" of logical")
	t.row("Stored", formatSize(s.Stored), fmt.Sprintf("%d chunks in %d files", s.Chunks, s.ChunkFiles))
	t.row("Reduction", formatReduction(s.Reduction), "logical / stored")
	t.row("Garbage", formatSize(s.Garbage), percent(s.Garbage, s.Stored)+" of stored; granary collect returns it")
	t.row("Journal", formatSize(s.JournalUsed), "not folded yet, in "+formatSize(s.JournalAllocated)+" of segments")
	t.row("Reserve", formatSize(s.Reserve), "set aside for a full disk")
	t.row("Cache", formatSize(s.CacheBytes), fmt.Sprintf("of %s; %s hits", formatSize(s.CacheLimit), percent(s.CacheHits, s.CacheHits+s.CacheMisses)))
	free := formatSize(s.DiskFree)
	if s.DiskUnknown {
		free = "unknown"
	}
	t.row("Disk free", free, diskNote(s.Stats))
	if s.Damaged > 0 {
		t.row("DAMAGED", strconv.Itoa(s.Damaged), "blocks; granary check names them")
	}
	for _, warning := range s.Warnings {
		t.row("WARNING", warning)
	}
	if len(s.PerVolume) == 0 {
		return
	}
	// A blank line ends the columns above and begins new ones.
	t.row()
	t.row("VOLUME", "SIZE", "LOGICAL", "JOURNAL", "COMPRESSION", "DEVICE", "")
	var total blockstore.VolumeInfo
	for _, v := range s.PerVolume {
		t.row(v.Name, formatSize(v.SizeBytes), formatSize(v.MappedBytes), formatSize(v.JournalBytes),
			v.Compression, deviceOf(v), cmp.Or(v.Failed, waitingNote(v)))
		total.SizeBytes += v.SizeBytes
		total.MappedBytes += v.MappedBytes
		total.JournalBytes += v.JournalBytes
	}
	t.row("in all", formatSize(total.SizeBytes), formatSize(total.MappedBytes), formatSize(total.JournalBytes), "", "", "")
}

func diskNote(s blockstore.Stats) string {
	if s.Full {
		return fmt.Sprintf("FULL: %d volumes wait for space; delete volumes or snapshots, or grow the disk", s.Waiting)
	}
	return s.DiskError
}

func formatReduction(r float64) string {
	if r == 0 {
		return "-"
	}
	return strconv.FormatFloat(r, 'f', 2, 64)
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "0 %"
	}
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 1, 64) + " %"
}
