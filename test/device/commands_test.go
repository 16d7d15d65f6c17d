package device

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// contextForSample is the context of the one sample that all tests share.
func contextForSample() context.Context { return context.Background() }

// fails runs a granary command that must fail, in one line that contains all of the
// given words, and with an exit code of its own making.
func (e *env) fails(args []string, words ...string) {
	e.Helper()
	_, err := e.daemon.Do(e.ctx, args...)
	var failed *rig.CommandError
	if !errors.As(err, &failed) {
		e.Errorf("granary %s: %v, want a failure", strings.Join(args, " "), err)
		return
	}
	if failed.Code < 1 || failed.Code > 2 {
		e.Errorf("granary %s: exit code %d", strings.Join(args, " "), failed.Code)
	}
	said := strings.ToLower(failed.Stderr)
	for _, w := range words {
		if !strings.Contains(said, strings.ToLower(w)) {
			e.Errorf("granary %s: the error does not say %q: %s", strings.Join(args, " "), w, failed.Stderr)
		}
	}
	if strings.Contains(said, "goroutine ") || said == "" || strings.Count(said, "\n") > 2 {
		e.Errorf("granary %s: not one clear line: %q", strings.Join(args, " "), failed.Stderr)
	}
}

// TestRefusals gives wrong arguments and asks for what must not be done.
func TestRefusals(t *testing.T) {
	e := newEnv(t, time.Minute)
	e.create("vol", "8MiB")
	e.snapshot("vol", "snap")
	device := e.attach("vol")

	e.fails([]string{"volume", "rm", "vol"}, "attached")
	e.fails([]string{"volume", "create", "vol", "--size", "9MiB"}, "exists")
	e.fails([]string{"volume", "create", "big", "--size", "65TiB"}, "64")
	e.fails([]string{"volume", "create", "neg", "--size", "-1"}, "size")
	e.fails([]string{"volume", "create", "odd", "--size", "8 apples"}, "size")
	e.fails([]string{"volume", "create", "none"}, "size")
	e.fails([]string{"volume", "create", "a/b", "--size", "1MiB"}, "name")
	e.fails([]string{"volume", "create", "", "--size", "1MiB"}, "name")
	e.fails([]string{"volume", "create", "sector", "--size", "1MiB", "--block-size", "1024"}, "sector")
	e.fails([]string{"volume", "create", "two", "--size", "8MiB", "--from-snapshot", "snap", "--from-volume", "vol"})
	e.fails([]string{"volume", "create", "less", "--size", "1MiB", "--from-snapshot", "snap"})
	e.fails([]string{"volume", "create", "copy", "--from-snapshot", "nowhere"}, "not found")
	e.fails([]string{"volume", "resize", "vol", "--size", "4MiB"}, "8")
	e.fails([]string{"volume", "attach", "nowhere"}, "not found")
	e.fails([]string{"volume", "show", "nowhere"}, "not found")
	e.fails([]string{"volume", "rm", "nowhere"}, "not found")
	e.fails([]string{"snapshot", "rm", "nowhere"}, "not found")
	e.fails([]string{"snapshot", "create", "nowhere", "x"}, "not found")
	e.fails([]string{"snapshot", "create", "vol", "snap"}, "exists")
	e.fails([]string{"stats", "--no-such-flag"}, "no-such-flag")

	// A device that somebody has open is not taken away.
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	e.fails([]string{"volume", "detach", "vol"}, "use")
	f.Close()
	if again := e.attach("vol"); again != device {
		t.Errorf("attached a second time: %s, was %s", again, device)
	}
	e.detach("vol")
	e.do("volume", "rm", "vol")
	e.do("snapshot", "rm", "snap")
}

// TestOneDaemon starts a second daemon on a store in use, which must refuse.
func TestOneDaemon(t *testing.T) {
	e := newEnv(t, time.Minute)
	other := e.dir + "/other.sock"
	_, err := rig.Run(e.ctx, 20*time.Second, plainBinary, "serve", "--endpoint", "unix://"+other, "--data-dir", e.daemon.DataDir())
	var failed *rig.CommandError
	if !errors.As(err, &failed) || !strings.Contains(failed.Stderr, "lock") {
		t.Errorf("a second daemon on one store: %v, want a refusal that speaks of the lock", err)
	}
	if _, err := rig.Run(e.ctx, 0, plainBinary, "dump", "/dev/null"); !errors.As(err, &failed) {
		t.Errorf("dump of an empty file: %v, want a failure", err)
	}
}

// TestNoDaemon runs commands on a store that no daemon serves.
func TestNoDaemon(t *testing.T) {
	e := newEnv(t, time.Minute)
	e.create("vol", "8MiB")
	e.stop()
	e.fails([]string{"volume", "ls"}, "daemon")
	e.do("check", "--read-data") // works on a stopped store
	e.serve()
	e.do("check", "--read-data") // and through a running daemon
	if out := e.do("volume", "ls"); !strings.Contains(out, "vol") {
		t.Errorf("volume ls does not list the volume:\n%s", out)
	}
	for _, format := range [][]string{nil, {"-o", "json"}} {
		e.do(append([]string{"stats"}, format...)...)
		e.do(append([]string{"snapshot", "ls"}, format...)...)
		e.do(append([]string{"volume", "show", "vol"}, format...)...)
	}
	e.do("volume", "rm", "vol")
}
