// Command granary is the whole of Granary in one binary: the CSI driver with its
// storage engine (granary serve), and the commands that talk to it. main.go picks the
// subcommand; each has a file of its own.
//
// Exit codes: 0 done, 1 the operation failed (or check found problems, or some remain
// after check --repair), 2 it was asked for wrongly (for check also: it could not run).
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
