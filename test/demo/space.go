package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/k8ns/granary/test/rig"
)

// showSpace prints what the images take, beside plain copies of the same files.
func (d *demo) showSpace(ctx context.Context) error {
	stats, err := d.daemon.Stats(ctx)
	if err != nil {
		return err
	}
	if err := d.checkStored(stats.Stored); err != nil {
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

// checkStored compares what the daemon says that it stores with what du says.
func (d *demo) checkStored(said int64) error {
	var du int64
	for _, dir := range []string{"chunks", "catalog"} {
		n, err := rig.Allocated(filepath.Join(d.daemon.DataDir(), dir))
		if err != nil {
			return err
		}
		du += n
	}
	// Files take whole blocks, and the catalog's next log is allocated beforehand.
	if du > said+said/20+(16<<20) {
		return fmt.Errorf("the store says that it takes %d bytes, du says %d", said, du)
	}
	return nil
}

// times prints how often b goes into a.
func times(a, b int64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f x", float64(a)/float64(b))
}
