package main

import (
	"bufio"
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/vfs"
)

func (a *app) dumpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "dump FILE",
		Short: "Print a file of the store for a person",
		Long: `Print a file of the store for a person: a journal segment, a catalog log, a chunk file
with its map nodes, or the store header. Needs no daemon and changes nothing.`,
		Args: cobra.ExactArgs(1),
		RunE: a.action(func(_ context.Context, args []string) error {
			out := bufio.NewWriter(a.stdout)
			err := blockstore.DumpFile(out, vfs.NewOS(), args[0])
			return errors.Join(err, out.Flush())
		}),
	}
}
