package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// Flags that cannot be are said before anything is opened.
func TestServeFlags(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel() // flags that are taken end at once
	for _, tt := range []struct {
		env  string
		args []string
		want string
	}{
		{"", []string{"--endpoint", "/run/csi.sock"}, "full path"},
		{"", []string{"--endpoint", "tcp://127.0.0.1:1"}, "unix:///"},
		{"unix://relative.sock", nil, "relative.sock"},
		{"", []string{"--max-volumes", "0"}, "at least 1"},
		{"", []string{"--full-timeout", "0"}, "--full-timeout 0s: give a time above 0"},
		{"", []string{"--full-timeout", "-5s"}, "--full-timeout -5s: give a time above 0"},
		{"", []string{"--full-timeout", "soon"}, "full-timeout"},
		{"", []string{"--http-endpoint", ":1"}, "--endpoint too"},
		{"", []string{"--registration-dir", "/r"}, "--endpoint too"},
		{"unix:///run/csi.sock", []string{"--kubelet-endpoint", "/k"}, "--registration-dir too"},
		{"", []string{"--node-id", "a b"}, "node ID"},
	} {
		t.Setenv(endpointEnv, tt.env)
		var stderr bytes.Buffer
		args := append([]string{"serve", "--data-dir", t.TempDir()}, tt.args...)
		if code := run(ended, args, &stderr, &stderr); code != exitUsage || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%q %q: exit %d, %s; want %d and %q", tt.env, tt.args, code, stderr.String(), exitUsage, tt.want)
		}
	}
}

func TestVolumesFor(t *testing.T) {
	for files, want := range map[uint64]int{0: 1, 256: 1, 1024: 85, 20000: mostVolumes, 1 << 62: mostVolumes} {
		if got := volumesFor(files); got != want {
			t.Errorf("%d files: %d volumes, want %d", files, got, want)
		}
	}
}
