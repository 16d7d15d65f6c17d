package device

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// The granary binaries under test, built once: the plain one runs all commands, and
// the daemons of tests whose point is data or volume; the other one has the race
// detector, if that can be had, and runs the daemons of all other tests.
var plainBinary, raceBinary string

// notReady says why the tests cannot run here, or is nil.
var notReady error

func TestMain(m *testing.M) {
	if dir := os.Getenv(standInEnv); dir != "" {
		os.Exit(standIn(dir))
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if notReady = rig.Ready(); notReady != nil {
		return m.Run()
	}
	if given := os.Getenv("GRANARY_DEVICE_BINARY"); given != "" {
		plainBinary, raceBinary = given, given
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "granary-device-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build builds the binaries under test.
func build(dir string) error {
	plainBinary = filepath.Join(dir, "granary")
	raceBinary = plainBinary
	if err := goBuild(plainBinary); err != nil {
		return err
	}
	if _, err := exec.LookPath("gcc"); err != nil || os.Getenv("GRANARY_DEVICE_RACE") == "0" {
		return nil
	}
	raceBinary = filepath.Join(dir, "granary-race")
	return goBuild(raceBinary, "-race")
}

func goBuild(to string, more ...string) error {
	args := append([]string{"build", "-tags", "grpcnotrace", "-buildvcs=false", "-o", to}, more...)
	cmd := exec.Command("go", append(args, "github.com/k8ns/granary/cmd/granary")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}

// env is one test's daemon and all that the test made with it. Its methods end the
// test when they fail.
type env struct {
	*testing.T
	ctx     context.Context
	cleanup *rig.Cleanup
	daemon  *rig.Daemon
	dir     string
	mounted []string
}

// newEnv starts a daemon for a test that must be over after the limit. It has the race
// detector.
func newEnv(t *testing.T, limit time.Duration, serveArgs ...string) *env {
	t.Helper()
	return newEnvWith(t, raceBinary, limit, serveArgs...)
}

// newFastEnv is newEnv without the race detector.
func newFastEnv(t *testing.T, limit time.Duration, serveArgs ...string) *env {
	t.Helper()
	return newEnvWith(t, plainBinary, limit, serveArgs...)
}

func newEnvWith(t *testing.T, binary string, limit time.Duration, serveArgs ...string) *env {
	t.Helper()
	e := prepareEnv(t, binary, limit, serveArgs...)
	e.serve()
	return e
}

// prepareEnv is newEnvWith up to the daemon's start.
func prepareEnv(t *testing.T, binary string, limit time.Duration, serveArgs ...string) *env {
	t.Helper()
	if notReady != nil {
		if os.Getenv("GRANARY_DEVICE_TESTS") == "require" {
			t.Fatalf("cannot test devices: %v", notReady)
		}
		t.Skipf("cannot test devices: %v", notReady)
	}
	e := &env{T: t, cleanup: &rig.Cleanup{}}
	t.Cleanup(func() {
		if err := e.cleanup.Run(); err != nil {
			t.Errorf("clean-up: %v", err)
		}
	})
	var err error
	if e.dir, err = rig.WorkDir("granary-device-", 3<<30, e.cleanup); err != nil {
		t.Fatal(err)
	}
	e.daemon = rig.NewDaemon(binary, e.dir, e.cleanup, serveArgs...)
	e.daemon.CLI = plainBinary
	e.ctx = e.daemon.Limit(t, limit)
	t.Cleanup(e.examine)
	return e
}

// examine looks at what the test left: the store must be in order.
func (e *env) examine() {
	if log, err := os.ReadFile(e.daemon.LogFile()); err == nil {
		for _, bad := range []string{"WARNING: DATA RACE", "panic:", "fatal error:"} {
			if i := strings.Index(string(log), bad); i >= 0 {
				e.Errorf("the daemon's log:\n%.6000s", log[i:])
			}
		}
	}
	if e.Failed() {
		e.Logf("the daemon's last lines:\n%s", e.daemon.LogTail(25))
		return
	}
	e.unmountAll()
	if e.daemon.Running() {
		e.stop()
	}
	if out, err := e.daemon.Do(e.ctx, "check", "--read-data"); err != nil {
		e.Errorf("check after the test: %v\n%s", err, out)
	}
}

func (e *env) serve() {
	e.Helper()
	if err := e.daemon.Start(e.ctx); err != nil {
		e.Fatal(err)
	}
}

func (e *env) stop() {
	e.Helper()
	if err := e.daemon.Stop(60 * time.Second); err != nil {
		e.Fatal(err)
	}
}

func (e *env) kill() {
	e.Helper()
	if err := e.daemon.Kill(); err != nil {
		e.Fatal(err)
	}
}

// do runs a granary command that must succeed.
func (e *env) do(args ...string) string {
	e.Helper()
	out, err := e.daemon.Do(e.ctx, args...)
	if err != nil {
		e.Fatal(err)
	}
	return out
}

// json runs a granary command that must succeed and decodes its output.
func (e *env) json(v any, args ...string) {
	e.Helper()
	if err := e.daemon.JSON(e.ctx, v, args...); err != nil {
		e.Fatal(err)
	}
}

// run runs another program that must succeed.
func (e *env) run(name string, args ...string) string {
	e.Helper()
	out, err := rig.Run(e.ctx, 0, name, args...)
	if err != nil {
		e.Fatal(err)
	}
	return out
}

func (e *env) create(name, size string, more ...string) rig.Volume {
	e.Helper()
	args := []string{"volume", "create", name}
	if size != "" {
		args = append(args, "--size", size)
	}
	var v rig.Volume
	e.json(&v, append(args, more...)...)
	if v.ID == "" {
		e.Fatalf("volume create %s: no id in the output", name)
	}
	return v
}

func (e *env) show(name string) rig.Volume {
	e.Helper()
	var v rig.Volume
	e.json(&v, "volume", "show", name)
	return v
}

// attach attaches a volume and returns its device.
func (e *env) attach(name string) string {
	e.Helper()
	device := e.do("volume", "attach", name)
	if !strings.HasPrefix(device, "/dev/loop") {
		e.Fatalf("volume attach %s: printed %q, want a loop device", name, device)
	}
	if err := rig.NoteLoop(e.cleanup, device); err != nil {
		e.Fatal(err)
	}
	return device
}

func (e *env) detach(name string) {
	e.Helper()
	e.do("volume", "detach", name)
}

func (e *env) snapshot(volume, name string, more ...string) rig.Snapshot {
	e.Helper()
	var s rig.Snapshot
	e.json(&s, append([]string{"snapshot", "create", volume, name}, more...)...)
	if s.ID == "" {
		e.Fatalf("snapshot create %s %s: no id in the output", volume, name)
	}
	return s
}

// waitFolded waits until the journals are empty: nobody may write meanwhile.
func (e *env) waitFolded() rig.Stats {
	e.Helper()
	s, err := e.daemon.WaitFolded(e.ctx, 0, 60*time.Second)
	if err != nil {
		e.Fatal(err)
	}
	return s
}

// mkfs makes a file system of a kind ("ext4", "xfs" or "btrfs") on a device.
func (e *env) mkfs(kind, device string, more ...string) {
	e.Helper()
	args := []string{"-q"}
	switch kind {
	case "ext4":
		args = append(args, "-F", "-b", "4096", "-E", "lazy_itable_init=1,lazy_journal_init=1")
	case "xfs", "btrfs":
		args = append(args, "-f")
	}
	e.run("mkfs."+kind, append(append(args, more...), device)...)
}

// mount mounts a device below the test's directory and returns where. A clone has
// its origin's UUID, which xfs refuses to mount beside it unless told otherwise.
func (e *env) mount(kind, device, name string, options ...string) string {
	e.Helper()
	dir := filepath.Join(e.dir, "mnt-"+name)
	if kind == "xfs" {
		options = append(options, "nouuid")
	}
	if err := rig.Mount(e.ctx, e.cleanup, kind, device, dir, options...); err != nil {
		e.Fatal(err)
	}
	e.mounted = append(e.mounted, dir)
	return dir
}

func (e *env) unmount(dir string) {
	e.Helper()
	if err := rig.Unmount(e.ctx, dir); err != nil {
		e.Fatal(err)
	}
}

// unmountAll unmounts what the test has mounted, also on devices that died.
func (e *env) unmountAll() {
	e.Helper()
	for _, dir := range e.mounted {
		if m, err := rig.Mounted(dir); err != nil {
			e.Fatal(err)
		} else if m {
			e.unmount(dir)
		}
	}
	e.mounted = nil
}

// fsck lets the file system's own checker read an unmounted device. It must find
// nothing to do and change nothing.
func (e *env) fsck(kind, device string) {
	e.Helper()
	switch kind {
	case "ext4":
		e.run("e2fsck", "-fn", device)
	case "xfs":
		e.run("xfs_repair", "-n", device)
	case "btrfs":
		e.run("btrfs", "check", "--readonly", device)
	}
}

// eachFS runs a test on every file system that we stand for.
func eachFS(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}
