// Command demo runs Granary's main job on real data and checks the result: volumes
// made, staged and published over the CSI socket, a snapshot under running writers,
// the daemon killed, restore, clone and growth, and at the end what it all takes on
// disk beside plain files. It exits with 1 if any comparison fails, and takes away
// whatever it made, also when it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/k8ns/granary/test/rig"
)

func main() {
	bin := flag.String("granary", "bin/granary", "the granary binary")
	sample := flag.Int64("sample", 400, "MiB of real data in each of the two volumes")
	flag.Parse()
	if err := rig.Ready(); err != nil {
		fmt.Fprintf(os.Stderr, "demo: this makes block devices and mounts them, but here is %v\n", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx, *bin, *sample<<20))
}

// run plays the whole story and cleans up behind it; the result is the exit code.
func run(ctx context.Context, bin string, sampleBytes int64) int {
	start := time.Now()
	d := &demo{out: newReport(os.Stdout), bin: bin, sampleBytes: sampleBytes}
	err := d.play(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		err = errors.New("interrupted")
		d.out.problem(err, "")
	case err != nil && d.daemon != nil:
		d.out.problem(err, d.daemon.LogTail(12))
	case err != nil:
		d.out.problem(err, "")
	}
	// From here on a signal must not keep us from taking everything away.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	if cleanErr := d.cleanup.Run(); cleanErr != nil {
		d.out.problem(fmt.Errorf("clean-up: %w", cleanErr), "")
		err = cleanErr
	}
	if err != nil {
		return 1
	}
	d.out.end(d.compared, time.Since(start))
	return 0
}
