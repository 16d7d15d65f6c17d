package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/admin"
)

// What waits for disk space is told by every command that shows the volume, and detaching
// it says what to do.
func TestWaitingVolumeIsShown(t *testing.T) {
	c := newCLI(t)
	c.ok("volume create data --size 1GiB")
	c.ok("volume attach data")
	since := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	info, err := c.engine.Volume("data")
	if err != nil {
		t.Fatal(err)
	}
	c.engine.SetWaiting(info.ID, &since)
	for line, want := range map[string]string{
		"volume ls":                "WAITING for space since " + formatTime(since),
		"volume list":              "WAITING for space since " + formatTime(since),
		"volume show data":         "granary volume set data --on-full error",
		"volume show data -o json": `"waitingSince": "2026-11-26T12:00:00Z"`,
		"volume ls -o json":        `"waitingSince": "2026-11-26T12:00:00Z"`,
		"stats":                    "waiting for space since " + formatTime(since),
	} {
		if out := c.ok(line); !strings.Contains(out, want) {
			t.Errorf("granary %s does not show %q:\n%s", line, want, out)
		}
	}
	c.fails(1, "volume detach data", "2026-11-26T12:00:00Z", "delete volumes or snapshots", "granary volume set "+info.ID+" --on-full error")
	c.engine.SetWaiting(info.ID, nil)
	c.ok("volume detach data")
}

// A setting of the machine by which the kernel would end a waiting volume is told by who
// attaches one, and by stats from then on.
func TestDangerousSettingIsShown(t *testing.T) {
	c := newCLI(t)
	c.ok("volume create data --size 1GiB")
	c.host.SetRequestTimeout(time.Minute)
	const want = "fs.fuse.default_request_timeout"
	code, out, errs := c.run("volume attach data")
	if code != 0 || !strings.HasPrefix(out, "/dev/loop") || strings.Count(out, "\n") != 1 || !strings.Contains(errs, want) {
		t.Errorf("attach: exit %d, %q, stderr %q", code, out, errs)
	}
	if out := c.ok("stats"); !strings.Contains(out, "WARNING") || !strings.Contains(out, want) {
		t.Errorf("stats:\n%s", out)
	}
	var stats admin.Stats
	if err := json.Unmarshal([]byte(c.ok("stats -o json")), &stats); err != nil || len(stats.Warnings) != 1 || stats.Volumes != 1 {
		t.Errorf("stats: %+v, %v", stats, err)
	}
}
