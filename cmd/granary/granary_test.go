package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/admin"
	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/attach/attachtest"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/driver"
	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/socket"
)

// cli runs command lines against a daemon over an engine in memory.
type cli struct {
	t      *testing.T
	dir    string
	engine *attachtest.Engine
	host   *attachtest.Host
}

// tempDir is a directory whose path is short enough for a socket.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "granary")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newCLI(t *testing.T) *cli {
	t.Helper()
	leaktest.Check(t)
	trace := new(attachtest.Trace)
	c := &cli{t: t, dir: tempDir(t), engine: attachtest.NewEngine(trace), host: attachtest.NewHost(trace)}
	t.Cleanup(c.host.End)
	server := admin.NewServer(c.engine, attach.New(c.engine, c.host, c.host.Options()), slog.New(slog.DiscardHandler))
	ln, err := socket.Listen(admin.SocketPath(c.dir))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close(context.Background()) })
	t.Setenv(dataDirEnv, c.dir)
	return c
}

// run returns what a command line printed.
func (c *cli) run(line string) (code int, stdout, stderr string) {
	c.t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), strings.Fields(line), &out, &errs)
	return code, out.String(), errs.String()
}

// ok wants success and returns stdout.
func (c *cli) ok(line string) string {
	c.t.Helper()
	code, out, errs := c.run(line)
	if code != 0 || errs != "" {
		c.t.Fatalf("granary %s: exit %d, %s", line, code, errs)
	}
	return out
}

// fails wants an exit code and one line on stderr with all the parts.
func (c *cli) fails(code int, line string, parts ...string) {
	c.t.Helper()
	got, out, errs := c.run(line)
	if got != code || out != "" || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "granary: ") {
		c.t.Errorf("granary %s: exit %d (want %d)\nstdout: %s\nstderr: %s", line, got, code, out, errs)
	}
	for _, part := range parts {
		if !strings.Contains(errs, part) {
			c.t.Errorf("granary %s: %q does not say %q", line, errs, part)
		}
	}
}

// id returns the id in a JSON object.
func (c *cli) id(out string) string {
	c.t.Helper()
	var v struct{ ID string }
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.ID == "" {
		c.t.Fatalf("no id in %s: %v", out, err)
	}
	return v.ID
}

func TestVolumeCommands(t *testing.T) {
	c := newCLI(t)
	id := c.id(c.ok("volume create data --size 8GiB --compression s2 --block-size 4096 -o json"))
	handle := driver.Handle{Store: attachtest.StoreID[:16], ID: id, Node: "n"}.String()
	if device := c.ok("volume attach data"); device != "/dev/loop0\n" {
		t.Errorf("attach printed %q", device)
	}
	if device := c.ok("volume attach " + handle); device != "/dev/loop0\n" {
		t.Errorf("attach by handle printed %q", device)
	}
	c.fails(1, "volume rm "+handle, id, "/dev/loop0", "detach it first")
	for _, want := range []string{"data", id, "8 GiB", "used", "/dev/loop0"} {
		if out := c.ok("volume ls"); !strings.Contains(out, want) {
			t.Errorf("ls does not show %q:\n%s", want, out)
		}
	}
	for _, want := range []string{id, "8 GiB (8589934592 bytes)", "/dev/loop0", "s2", "4096 bytes"} {
		if out := c.ok("volume show " + id); !strings.Contains(out, want) {
			t.Errorf("show does not show %q:\n%s", want, out)
		}
	}
	if out := c.ok("volume resize data --size 9Gi -o json"); !strings.Contains(out, fmt.Sprint(int64(9)<<30)) {
		t.Errorf("resize printed %s", out)
	}
	c.fails(1, "volume resize data --size 1Gi", "out of range")
	c.id(c.ok("volume create copy --from-volume data -o json"))
	if out := c.ok("volume detach data") + c.ok("volume detach data") + c.ok("volume rm data copy"); out != "" {
		t.Errorf("detach and rm printed %q", out)
	}
	if out := c.ok("volume ls -o json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("an empty list is %q", out)
	}
	c.fails(1, "volume rm data other", "data", "other", "not found")
}

func TestSnapshotCommands(t *testing.T) {
	c := newCLI(t)
	c.ok("volume create data --size 1GiB")
	id := c.id(c.ok("snapshot create data before --wait -o json"))
	c.id(c.ok("snapshot show before -o json"))
	c.ok("snapshot create data after")
	for _, line := range []string{"snapshot ls", "snapshot ls data", "snapshot show " + id} {
		if out := c.ok(line); !strings.Contains(out, id) || !strings.Contains(out, "yes") {
			t.Errorf("%s:\n%s", line, out)
		}
	}
	var list []blockstore.SnapshotInfo
	if err := json.Unmarshal([]byte(c.ok("snapshot ls data -o json")), &list); err != nil || len(list) != 2 {
		t.Errorf("list %+v, %v", list, err)
	}
	c.id(c.ok("volume create restored --from-snapshot before --size 2GiB -o json"))
	c.fails(1, "snapshot create data before", "exists")
	c.fails(1, "snapshot create nothing x", "not found")
	c.ok("snapshot rm before after")
	if out := c.ok("snapshot ls -o json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("left: %s", out)
	}
}

func TestStatsAndCollectCommands(t *testing.T) {
	c := newCLI(t)
	c.ok("volume create data --size 1GiB")
	out := c.ok("stats")
	for _, want := range []string{"Logical", "Unique", "Stored", "Reduction", "10.00", "Journal", "Cache", "Garbage", "Reserve", "data", "in all"} {
		if !strings.Contains(out, want) {
			t.Errorf("stats does not show %q:\n%s", want, out)
		}
	}
	var stats blockstore.Stats
	if err := json.Unmarshal([]byte(c.ok("stats -o json")), &stats); err != nil || stats.Reduction != 10 || len(stats.PerVolume) != 1 {
		t.Errorf("stats %+v, %v", stats, err)
	}
	if out := c.ok("collect --wait"); !strings.Contains(out, "3 MiB") {
		t.Errorf("collect: %s", out)
	}
	if out := c.ok("collect"); !strings.Contains(out, "started") {
		t.Errorf("collect: %s", out)
	}
}

func TestCheckThroughTheDaemon(t *testing.T) {
	c := newCLI(t)
	if out := c.ok("check --read-data"); out != "no problems found\n" {
		t.Errorf("check: %q", out)
	}
	c.engine.SetProblems(blockstore.Problem{Kind: "data", Volume: "v-1", File: "f", Offset: 4096, Detail: "bad"})
	code, out, errs := c.run("check")
	if code != 1 || strings.Count(out, "\n") != 1 || !strings.Contains(out, "v-1") || !strings.Contains(errs, "1 problems") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
	var p blockstore.Problem
	if _, out, _ := c.run("check -o json"); json.Unmarshal([]byte(out), &p) != nil || p.File != "f" {
		t.Errorf("JSON: %s", out)
	}
	c.engine.Fail("Check", errors.New("cannot"))
	c.fails(2, "check", "cannot")
}

func TestUsageErrors(t *testing.T) {
	c := newCLI(t)
	for line, parts := range map[string][]string{
		"nonsense":                                          {"nonsense"},
		"volume nonsense":                                   {"nonsense"},
		"volume create":                                     {"arg"},
		"volume create a b --size 1GiB":                     {"arg"},
		"volume create a":                                   {"--size"},
		"volume create a --size 1X":                         {"1X", "8GiB", "10G"},
		"volume create a --nonsense":                        {"nonsense"},
		"volume create a --size 1Gi -o yaml":                {"yaml", "table and json"},
		"volume create a --from-volume b --from-snapshot c": {"from-snapshot"},
		"volume resize a":                                   {"--size"},
		"volume rm":                                         {"arg"},
		"snapshot create a":                                 {"arg"},
		"serve --endpoint tcp://127.0.0.1:1":                {"unix:///"},
		"serve --endpoint unix://relative":                  {"unix:///"},
		"serve --endpoint unix:///x --node-id a/b":          {"node ID"},
		"serve --endpoint unix:///x --log-level x":          {"log-level"},
	} {
		c.fails(2, line, parts...)
	}
	if out := c.ok("volume"); !strings.Contains(out, "create") {
		t.Errorf("help of volume:\n%s", out)
	}
}

func TestWithoutADaemon(t *testing.T) {
	c := &cli{t: t, dir: tempDir(t)}
	for _, line := range []string{
		"volume ls", "volume create a --size 1GiB", "volume attach a", "volume rm a b", "snapshot ls", "snapshot rm a b", "stats", "collect",
	} {
		c.fails(1, line+" --data-dir "+c.dir, "no daemon is running on "+c.dir+": start it with granary serve --data-dir "+c.dir)
	}
	c.fails(2, "check --data-dir "+c.dir+"/nothing", "no store")
	c.fails(1, "dump "+c.dir+"/nothing")
	var v versionInfo
	if err := json.Unmarshal([]byte(c.ok("version -o json")), &v); err != nil || v.Version == "" || v.Go == "" {
		t.Errorf("version %+v, %v", v, err)
	}
}

func TestProgressBarIsForTerminals(t *testing.T) {
	var out bytes.Buffer
	bar := newProgressBar(&out)
	bar.update(1, 2)
	bar.clear()
	if out.Len() > 0 {
		t.Errorf("wrote %q", out.String())
	}
	bar = &progressBar{w: &out}
	bar.update(1<<20, 4<<20)
	if got := out.String(); !strings.Contains(got, "[##########....") || !strings.Contains(got, "25%  1 MiB of 4 MiB") {
		t.Errorf("wrote %q", got)
	}
	bar.update(9, 0)
	bar.clear()
}
