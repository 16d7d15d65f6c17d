package sanity

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// env is a test's daemon and all that the test made with it. Its methods end the test
// when they fail.
type env struct {
	*testing.T
	ctx     context.Context
	cleanup *rig.Cleanup
	daemon  *rig.Daemon
	dir     string
	client  *client
	made    *inventory
}

// newEnv starts a daemon for a test that must be over after the limit.
func newEnv(t *testing.T, limit time.Duration, serveArgs ...string) *env {
	t.Helper()
	if notReady != nil {
		if os.Getenv("GRANARY_DEVICE_TESTS") == "require" {
			t.Fatalf("cannot test devices: %v", notReady)
		}
		t.Skipf("cannot test devices: %v", notReady)
	}
	e := &env{T: t, cleanup: &rig.Cleanup{}, made: &inventory{}}
	t.Cleanup(func() {
		if err := e.cleanup.Run(); err != nil {
			t.Errorf("clean-up: %v", err)
		}
	})
	var err error
	if e.dir, err = rig.WorkDir("granary-sanity-", 3<<30, e.cleanup); err != nil {
		t.Fatal(err)
	}
	e.cleanup.Add("detach loop devices", func() error { return detachLoops(e.daemon) })
	e.daemon = rig.NewDaemon(granary, e.dir, e.cleanup, serveArgs...)
	e.ctx = e.daemon.Limit(t, limit)
	e.serve()
	return e
}

// sub is the same daemon for a subtest.
func (e *env) sub(t *testing.T) *env {
	s := *e
	s.T = t
	return &s
}

// serve starts the daemon and connects to it.
func (e *env) serve() {
	e.Helper()
	if err := e.daemon.Start(e.ctx); err != nil {
		e.Fatal(err)
	}
	if e.client == nil {
		c, err := dial(e.ctx, e.daemon.Socket())
		if err != nil {
			e.Fatal(err)
		}
		e.client = c
		e.Cleanup(func() { c.Close() })
	}
}

func (e *env) stop() {
	e.Helper()
	if err := e.daemon.Stop(60 * time.Second); err != nil {
		e.Fatal(err)
	}
}

// restartKilled kills the daemon and starts it again.
func (e *env) restartKilled() {
	e.Helper()
	e.kill()
	e.serve()
}

// run runs a program that must succeed.
func (e *env) run(name string, args ...string) string {
	e.Helper()
	out, err := rig.Run(e.ctx, 0, name, args...)
	if err != nil {
		e.Fatal(err)
	}
	return out
}

// must ends the test with an error.
func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// path is a path for a mount below the test's directory, noted for the cleanup. Its
// parents exist, it does not.
func (e *env) path(elements ...string) string {
	e.Helper()
	path := filepath.Join(append([]string{e.dir, "mnt"}, elements...)...)
	e.must(os.MkdirAll(filepath.Dir(path), 0o755))
	rig.NoteMount(e.cleanup, path)
	return path
}
