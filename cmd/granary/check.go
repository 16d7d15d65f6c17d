package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/k8ns/granary/pkg/admin"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/vfs"
)

func (a *app) checkCommand() *cobra.Command {
	var req admin.Check
	var repair bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that everything the catalog names is there and whole",
		Long: `Check that everything the catalog names is there and whole: through the daemon if one
runs on the directory, otherwise by itself, changing nothing.

Every problem is a line on stdout. Exit code 0: none found; 1: problems were found;
2: the check could not be made.

With --repair, of a stopped store: read all data, put right what can be proved, and check
again. Damaged chunk files are written anew with all that still has its fingerprint, and
kept in quarantine/ below the data directory; what follows from other records is made anew;
journals are never touched. Everything put right is a line on stdout, then every problem
that remains. Exit code 0: nothing was wrong, or nothing remains; 1: something remains;
2: it could not be done, and nothing is lost by that.`,
		Args: cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, _ []string) error {
			do := func() error { return a.check(ctx, req) }
			if repair {
				do = func() error { return a.repair(ctx) }
			}
			if err := do(); err != nil {
				var exit *exitError
				if errors.As(err, &exit) {
					return err
				}
				return &exitError{exitUsage, err}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&req.ReadData, "read-data", false, "also read every block and check it against its fingerprint")
	cmd.Flags().BoolVar(&repair, "repair", false, "put right what can be (reads all data; the daemon must be stopped)")
	return a.withDataDir(a.withOutput(cmd))
}

// check checks the store through its daemon, or the stopped store, and prints what it
// finds.
func (a *app) check(ctx context.Context, req admin.Check) error {
	bar := newProgressBar(a.stderr)
	defer bar.clear()
	problems, repairable := 0, 0
	report := func(p blockstore.Problem) {
		problems++
		if p.Repairable {
			repairable++
		}
		bar.clear()
		a.printLine(p)
	}
	_, err := a.client().Check(ctx, req, bar.update, report)
	if errors.Is(err, admin.ErrNoDaemon) {
		err = a.checkStopped(ctx, req, bar.update, report)
	}
	bar.clear()
	if err != nil {
		return err
	}
	if problems > 0 {
		fmt.Fprintf(a.stderr, "granary: %d problems found%s\n", problems, repairHint(repairable))
		return &exitError{code: exitFailed}
	}
	if a.output != "json" {
		fmt.Fprintln(a.stdout, "no problems found")
	}
	return nil
}

// repairHint tells what a repair would make of problems.
func repairHint(repairable int) string {
	if repairable == 0 {
		return ""
	}
	return fmt.Sprintf("; with the daemon stopped, granary check --repair would rebuild %d of these", repairable)
}

// repair repairs the stopped store and prints what it did and what remains.
func (a *app) repair(ctx context.Context) error {
	if err := a.wantDirectory(); err != nil {
		return err
	}
	bar := newProgressBar(a.stderr)
	defer bar.clear()
	result, err := blockstore.Repair(ctx, vfs.NewOS(), a.dataDir, blockstore.RepairOptions{
		Progress: bar.update,
		Mended:   func(m blockstore.Mend) { bar.clear(); a.printLine(m) },
		Remains:  func(p blockstore.Problem) { bar.clear(); a.printLine(p) },
	})
	bar.clear()
	if errors.Is(err, blockstore.ErrLocked) {
		return fmt.Errorf("a daemon has %s open: only a stopped store can be repaired: %w", a.dataDir, err)
	}
	if err != nil {
		return err
	}
	if result.Remains > 0 {
		fmt.Fprintf(a.stderr, "granary: %d problems found, %d things repaired, %d problems remain\n", result.Found, result.Mended, result.Remains)
		return &exitError{code: exitFailed}
	}
	if a.output != "json" && result.Found == 0 {
		fmt.Fprintln(a.stdout, "no problems found")
	} else if a.output != "json" {
		fmt.Fprintf(a.stdout, "%d problems found, %d things repaired, none remains\n", result.Found, result.Mended)
	}
	return nil
}

// wantDirectory refuses a directory that does not exist: it is a mistyped one, not a
// store without faults.
func (a *app) wantDirectory() error {
	if _, err := os.Stat(a.dataDir); err != nil {
		return fmt.Errorf("no store: %w", err)
	}
	return nil
}

func (a *app) checkStopped(ctx context.Context, req admin.Check, progress func(done, total int64), report func(blockstore.Problem)) error {
	if err := a.wantDirectory(); err != nil {
		return err
	}
	o := blockstore.CheckOptions{ReadData: req.ReadData, Progress: progress}
	err := blockstore.CheckStopped(ctx, vfs.NewOS(), a.dataDir, o, report)
	if errors.Is(err, blockstore.ErrLocked) {
		return fmt.Errorf("a daemon holds %s but does not answer on its socket: %w", a.dataDir, err)
	}
	return err
}

// printLine prints a problem, or what was repaired, on a line, for a person or as JSON.
func (a *app) printLine(v any) {
	if a.output != "json" {
		fmt.Fprintln(a.stdout, v)
		return
	}
	if raw, err := json.Marshal(v); err == nil {
		fmt.Fprintf(a.stdout, "%s\n", raw)
	}
}
