package main

import (
	"context"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = ""

// versionInfo describes this binary.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
}

func readVersion() versionInfo {
	info := versionInfo{Version: version}
	if build, ok := debug.ReadBuildInfo(); ok {
		info.Go = build.GoVersion
		if info.Version == "" {
			info.Version = build.Main.Version
		}
		for _, s := range build.Settings {
			if s.Key == "vcs.revision" {
				info.Revision = s.Value
			}
		}
	}
	if info.Version == "" || info.Version == "(devel)" {
		info.Version = "devel"
	}
	return info
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  cobra.NoArgs,
		RunE: a.action(func(context.Context, []string) error {
			info := readVersion()
			return a.print(info, func(t *table) { t.row("granary", info.Version, info.Revision, info.Go) })
		}),
	}
	return a.withOutput(cmd)
}
