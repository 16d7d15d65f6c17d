// Command powercut cuts the power below a store, at the level of the disk. It runs a
// verified load on a store on ext4 and on xfs, on a disk whose writes and flushes QEMU's
// blklogwrites logs, then replays the log to every flush and to random points between,
// also with a random part of the writes since the last flush lost or torn, as a disk
// with a volatile cache loses them. At each point it mounts the file system, opens the
// store and looks: every flushed write is there, a volume is a prefix of its writes,
// snapshots and clones are exact, the check finds nothing, and the volume can be written
// to. The last line has points, losses and seed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// pointsPerRecording are taken from one recording at most.
const pointsPerRecording = 125

// entriesFor is how many entries of the log a recording for n points has.
func entriesFor(n int) int { return 400 + 16*n }

func main() {
	points := flag.Int("points", 1000, "points to cut at")
	parallel := flag.Int("parallel", 4, "recordings at a time: most of the time is waiting")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()%1e9), "seed of load and points; the timing is the machine's")
	flag.Parse()
	if err := rig.Ready(); err != nil {
		fmt.Fprintf(os.Stderr, "powercut: this makes block devices, but here is %v\n", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &run{seed: *seed, begun: time.Now(), flavours: map[string]int{}}
	err := r.all(ctx, *points, *parallel)
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	if err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
	}
	fmt.Printf("powercut: %d points (%d at flushes, %d between, %d with losses), %d losses, %.0f s, seed %d\n",
		r.done, r.flavours["flush"], r.flavours["between"], r.flavours["lossy"], r.losses, time.Since(r.begun).Seconds(), *seed)
	if err != nil || r.losses > 0 || r.done < *points {
		os.Exit(1)
	}
}

// run counts.
type run struct {
	seed  uint64
	begun time.Time

	mu       sync.Mutex // guards what is below
	done     int
	losses   int
	flavours map[string]int
}

// all takes recordings, on ext4 and xfs in turn, that have so many points together.
func (r *run) all(ctx context.Context, points, parallel int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	per := min(pointsPerRecording, (points+1)/2) // both file systems at least once
	slots := make(chan struct{}, parallel)
	var running sync.WaitGroup
	for i := 0; i*per < points; i++ {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			fsType := []string{"ext4", "xfs"}[i%2]
			if err := r.recording(ctx, fsType, r.seed+uint64(i), min(per, points-i*per)); err != nil {
				cancel(fmt.Errorf("recording %d (%s): %w", i, fsType, err))
			}
		})
	}
	running.Wait()
	return context.Cause(ctx)
}

// recording records once and examines n points of it.
func (r *run) recording(ctx context.Context, fsType string, seed uint64, n int) (err error) {
	var c rig.Cleanup
	defer func() { err = errors.Join(err, c.Run()) }()
	dir, err := rig.WorkDir("granary-powercut-", 2<<30, &c)
	if err != nil {
		return err
	}
	begun := time.Now()
	rec, err := record(ctx, dir, fsType, seed, entriesFor(n), &c)
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, "writes.log")); err != nil {
		return err
	}
	marks := rec.load.mu.marks
	last := marks[len(marks)-1]
	fmt.Printf("%s: %d log entries in %.0f s, %d flushes acknowledged, %d + %d writes, %d images\n", fsType, len(rec.entries)-rec.begin,
		time.Since(begun).Seconds(), len(marks), last.issued[0], last.issued[1], len(rec.load.mu.images))
	choice := rand.New(rand.NewPCG(seed, 99))
	replay := &replayer{rec: rec, disk: newDisk(), rand: choice}
	for _, p := range rec.points(n, choice) {
		if err := ctx.Err(); err != nil {
			return err
		}
		replay.replay(p)
		err := rec.examine(ctx, replay.disk, p, dir, &c)
		if errors.Is(err, context.Canceled) || err != nil && errors.Is(err, context.Cause(ctx)) {
			return err // another recording has ended the run: this point was not judged
		}
		if err != nil {
			r.count("lost")
			fmt.Printf("LOSS on %s at %v, seed %d:\n  %s\n", fsType, p, seed, strings.ReplaceAll(err.Error(), "\n", "\n  "))
		}
		r.count(rec.flavour(p))
	}
	return nil
}

func (r *run) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if what == "lost" {
		r.losses++
		return
	}
	r.done++
	r.flavours[what]++
	if r.done%50 == 0 {
		fmt.Printf("%d points, %d losses, %.0f s\n", r.done, r.losses, time.Since(r.begun).Seconds())
	}
}

// flavour is what kind of point it is, for the last line.
func (rec *recording) flavour(p point) string {
	switch {
	case p.lossy:
		return "lossy"
	case p.entries > 0 && rec.entries[p.entries-1].flush():
		return "flush"
	}
	return "between"
}
