package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) collectCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "collect",
		Short: "Return the space of overwritten, discarded and deleted data now",
		Long: `Return the space of overwritten, discarded and deleted data now. The daemon also does
that by itself when there is enough of it.`,
		Args: cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, _ []string) error {
			result, err := a.client().Collect(ctx, wait)
			if err != nil {
				return err
			}
			return a.print(result, func(t *table) {
				if result.Started {
					t.row("started; the log tells what it frees")
					return
				}
				t.row(fmt.Sprintf("freed %s; %s of what was stored had been garbage",
					formatSize(result.FreedBytes), formatSize(result.GarbageBytes)))
			})
		}),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is done and say what it freed")
	return a.withDataDir(a.withOutput(cmd))
}
