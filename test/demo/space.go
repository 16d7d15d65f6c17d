package main

import (
	"context"
	"fmt"

	"github.com/k8ns/granary/test/rig"
)

// showSpace prints what the images take, beside plain copies of the same files.
func (d *demo) showSpace(ctx context.Context) error {
	stats, err := d.daemon.Stats(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"image", "size", "in use", "as plain files"}, {}}
	var plainSum int64
	for _, v := range d.volumes() {
		plain, err := rig.Allocated(v.target)
		if err != nil {
			return err
		}
		var info rig.Volume
		if err := d.daemon.JSON(ctx, &info, "volume", "show", v.id); err != nil {
			return err
		}
		plainSum += plain
		rows = append(rows, []string{v.name, size(info.Size), size(info.Logical), size(plain)})
		if v == d.restored {
			// The snapshot is the same image: a backup by copying would hold it once more.
			plainSum += plain
			rows = append(rows, []string{"the snapshot", size(v.size), "as restored", size(plain)})
		}
	}
	rows = append(rows, []string{},
		[]string{"logical", "", size(stats.Logical), size(plainSum)},
		[]string{"stored: chunk files and catalog", "", size(stats.Stored), size(stats.Stored)},
		[]string{"reduction", "", times(stats.Logical, stats.Stored), times(plainSum, stats.Stored)},
	)
	d.out.title("Space")
	d.out.table(rows)
	d.out.text("  besides, allocated once for all volumes: journal %s, reserve %s", size(stats.JournalAllocated), size(stats.Reserve))
	return nil
}

// times prints how often b goes into a.
func times(a, b int64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f x", float64(a)/float64(b))
}
