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
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that everything the catalog names is there and whole",
		Long: `Check that everything the catalog names is there and whole: through the daemon if one
runs on the directory, otherwise by itself, changing nothing.

Every problem is a line on stdout. Exit code 0: none found; 1: problems were found;
2: the check could not be made.`,
		Args: cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, _ []string) error {
			if err := a.check(ctx, req); err != nil {
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
	return a.withDataDir(a.withOutput(cmd))
}

// check checks the store through its daemon, or the stopped store, and prints what it
// finds.
func (a *app) check(ctx context.Context, req admin.Check) error {
	bar := newProgressBar(a.stderr)
	defer bar.clear()
	problems := 0
	report := func(p blockstore.Problem) {
		problems++
		bar.clear()
		a.printProblem(p)
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
		fmt.Fprintf(a.stderr, "granary: %d problems found\n", problems)
		return &exitError{code: exitFailed}
	}
	if a.output != "json" {
		fmt.Fprintln(a.stdout, "no problems found")
	}
	return nil
}

func (a *app) checkStopped(ctx context.Context, req admin.Check, progress func(done, total int64), report func(blockstore.Problem)) error {
	// A directory that does not exist is a mistyped one, not a store without faults.
	if _, err := os.Stat(a.dataDir); err != nil {
		return fmt.Errorf("no store: %w", err)
	}
	o := blockstore.CheckOptions{ReadData: req.ReadData, Progress: progress}
	err := blockstore.CheckStopped(ctx, vfs.NewOS(), a.dataDir, o, report)
	if errors.Is(err, blockstore.ErrLocked) {
		return fmt.Errorf("a daemon holds %s but does not answer on its socket: %w", a.dataDir, err)
	}
	return err
}

// printProblem prints one problem on a line, for a person or as JSON.
func (a *app) printProblem(p blockstore.Problem) {
	if a.output != "json" {
		fmt.Fprintln(a.stdout, p)
		return
	}
	if raw, err := json.Marshal(p); err == nil {
		fmt.Fprintf(a.stdout, "%s\n", raw)
	}
}
