package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k8ns/granary/pkg/admin"
	"github.com/k8ns/granary/pkg/driver"
)

const (
	defaultDataDir = "/var/lib/granary"
	dataDirEnv     = "GRANARY_DATA_DIR"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

// app is what the subcommands share.
type app struct {
	stdout, stderr io.Writer

	dataDir string // --data-dir
	output  string // --output
	started bool   // the command line was right and a subcommand has begun
}

// exitError is an error with an exit code of its own.
type exitError struct {
	code int
	err  error // nil: everything was said already
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

// usageError is a command line that cannot be right.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// run runs one command line and returns the exit code. Errors are one line on stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if text := oneLine(err); text != "" {
		fmt.Fprintln(stderr, "granary:", text)
	}
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		return exit.code
	case !a.started:
		return exitUsage
	}
	return exitFailed
}

// oneLine joins the lines of an error.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "granary",
		Short:         "Deduplicated, compressed block volumes with snapshots and clones",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          a.group,
		// For shells there are better ways than a command that nobody asked for.
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.AddCommand(
		a.serveCommand(),
		a.volumeCommand(),
		a.snapshotCommand(),
		a.statsCommand(),
		a.collectCommand(),
		a.checkCommand(),
		a.dumpCommand(),
		a.versionCommand(),
	)
	return root
}

// group is the body of a command that only has subcommands.
func (a *app) group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError("unknown command %q: %s --help lists them", args[0], cmd.CommandPath())
	}
	return cmd.Help()
}

// action is the body of a command that does something. From here on an error is no
// longer one of usage.
func (a *app) action(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		if a.output != "" && a.output != "table" && a.output != "json" {
			return usageError("output format %q: allowed are table and json", a.output)
		}
		return f(cmd.Context(), args)
	}
}

// withDataDir gives a command --data-dir.
func (a *app) withDataDir(cmd *cobra.Command) *cobra.Command {
	dir := defaultDataDir
	if env := os.Getenv(dataDirEnv); env != "" {
		dir = env
	}
	cmd.Flags().StringVar(&a.dataDir, "data-dir", dir, "the store's directory (also "+dataDirEnv+")")
	return cmd
}

// withOutput gives a command --output.
func (a *app) withOutput(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&a.output, "output", "o", "table", "output format: table or json")
	return cmd
}

func (a *app) client() *admin.Client { return admin.NewClient(a.dataDir) }

// reference takes what names a volume or snapshot on the command line: a name, an ID,
// or a CSI handle, of which the part that the engine knows counts.
func reference(arg string) string {
	if handle, err := driver.ParseHandle(arg); err == nil {
		return handle.ID
	}
	return arg
}
