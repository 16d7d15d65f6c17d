// Command torture kills the granary daemon with SIGKILL under verified load, again and
// again, and looks from outside whether anything is lost. Three volumes are written to: a
// raw one, an ext4 and an xfs. At a random moment, with folds, snapshots, clones and
// collections under way, or during the start itself, the daemon dies and its devices with
// it. Then it is started again and everything judged: on the raw volume every write that
// was answered is there and a block is old or new; in the file systems every synced
// append, overwrite and rename; snapshots are exact; e2fsck and xfs_repair find nothing;
// so does granary check. The last line has rounds, kills, losses and seed.
//
// With -lose a command runs between death and start that makes the file system below the
// store lose what was not synced, as LazyFS does; then what was flushed must be there.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/k8ns/granary/test/rig"
)

type options struct {
	granary string
	rounds  int
	seed    uint64
	store   string
	lose    string
}

func main() {
	var o options
	flag.StringVar(&o.granary, "granary", "bin/granary", "the granary binary")
	flag.IntVar(&o.rounds, "rounds", 200, "rounds; one kill each at least")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()%1e9), "seed of what is done; the timing is the machine's")
	flag.StringVar(&o.store, "store", "", "an empty directory for the store, on the file system to test (default: on the disk of /var/tmp)")
	flag.StringVar(&o.lose, "lose", "", "shell command that loses what was not synced below the store; it ends when that is done")
	flag.Parse()
	if err := rig.Ready(); err != nil {
		fmt.Fprintf(os.Stderr, "torture: this makes block devices, but here is %v\n", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	begun := time.Now()
	t := newTorture(o)
	err := t.run(ctx)
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	t.over.Store(true)
	losses := 0
	if err != nil {
		losses = 1
		fmt.Fprintf(os.Stderr, "torture: round %d: %v\n", t.count.rounds+1, err)
		if t.daemon != nil {
			fmt.Fprintf(os.Stderr, "the daemon's last lines:\n%s\n", t.daemon.LogTail(20))
		}
	}
	if cleanErr := t.cleanup.Run(); cleanErr != nil {
		fmt.Fprintln(os.Stderr, "torture: clean-up:", cleanErr)
	}
	fmt.Printf("torture: %d rounds, %d kills (%d during a start), %d snapshots taken and %d compared, %d losses, %.0f s, seed %d\n",
		t.count.rounds, t.count.kills, t.count.startKills, t.count.snapshots, t.count.compared, losses, time.Since(begun).Seconds(), o.seed)
	if err != nil {
		os.Exit(1)
	}
}
