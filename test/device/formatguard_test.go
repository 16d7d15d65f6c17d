package device

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// The tests of this file are about I11: mkfs never runs over data. They stage volumes
// over the CSI socket of a daemon whose mkfs they can stop, and that they kill.

// kinds are the filesystems that a volume can have.
var kinds = []string{"ext4", "xfs", "btrfs"}

// eachKind runs a test with every filesystem.
func eachKind(t *testing.T, test func(g *guarded, kind string)) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { test(newGuarded(t), kind) })
	}
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	e := prepareEnv(t, raceBinary, 2*time.Minute, "--journal-size", "128MiB", "--reserve-size", "16MiB")
	g := &guarded{e, filepath.Join(e.dir, "mkfs")}
	bin := filepath.Join(g.dir, "bin")
	if err := os.MkdirAll(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		if _, err := exec.LookPath("mkfs." + kind); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(self, filepath.Join(bin, "mkfs."+kind)); err != nil {
			t.Fatal(err)
		}
	}
	e.daemon.Env = []string{standInEnv + "=" + g.dir, "PATH=" + bin + ":" + os.Getenv("PATH")}
	e.cleanup.Add("let a stand-in for mkfs go", func() error { return replaceFile(g.dir, goFile, "") })
	g.plan(undisturbed)
	e.serve()
	return g
}

// wantState wants that the catalog has a volume in this state, and whether it is attached.
func (g *guarded) wantState(v claim, state string, attached bool) {
	g.Helper()
	is := g.show(v.name)
	if is.State != state || (is.Device != "") != attached {
		g.Fatalf("%s is %s, device %q; want it %s, attached %t", v.name, is.State, is.Device, state, attached)
	}
}

// wantFormatted stages a volume, which must format it, and puts a file there.
func (g *guarded) wantFormatted(v claim, content []byte) {
	g.Helper()
	before := g.calls()
	dir := g.stage(v)
	g.wantCalls(before + 1)
	g.wantState(v, "used", true)
	entries, err := os.ReadDir(dir)
	if err != nil {
		g.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() != "lost+found" {
			g.Errorf("the new filesystem of %s has %s", v.name, entry.Name())
		}
	}
	g.put(dir, "file", content)
}

// wantKept stages a volume, which must not format it, and finds the file there.
func (g *guarded) wantKept(v claim, content []byte) {
	g.Helper()
	before := g.calls()
	dir := g.stage(v)
	g.wantCalls(before)
	g.wantState(v, "used", true)
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, content) {
		g.Errorf("%s: %d bytes of the file, %v; want the %d written", v.name, len(got), err, len(content))
	}
}

// wantSound looks at a volume that is not staged with its filesystem's checker.
func (g *guarded) wantSound(v claim) {
	g.Helper()
	g.fsck(v.kind, g.attach(v.name))
	g.detach(v.name)
}

// headBytes is how much of a device is compared: mkfs of any kind writes there.
const headBytes = 4 << 20

// head reads the first bytes of a device, past the page cache.
func (g *guarded) head(device string) []byte {
	g.Helper()
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		g.Fatal(err)
	}
	defer f.Close()
	p := aligned(headBytes)
	if _, err := io.ReadFull(f, p); err != nil {
		g.Fatal(err)
	}
	return p
}

func (g *guarded) sum(device string) [sha256.Size]byte {
	g.Helper()
	return sha256.Sum256(g.head(device))
}

// write writes to a device, durably.
func (g *guarded) write(device string, content []byte, off int64) {
	g.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		g.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(content, off); err != nil {
		g.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		g.Fatal(err)
	}
}

// TestCrashInMkfs kills the daemon before mkfs writes anything, when it has written
// half, and when it has ended before the daemon knows. Each time the next stage formats
// anew, and nothing does so again. The mkfs that is left behind, and goes on only later,
// changes nothing: neither that volume nor one that has come to a device since.
func TestCrashInMkfs(t *testing.T) { // I11
	eachKind(t, func(g *guarded, kind string) {
		g.create("bystander", "320MiB")
		device := g.attach("bystander")
		g.write(device, noise(headBytes), 0)
		bystander := g.sum(device)
		g.detach("bystander")
		for _, at := range []moment{beforeMkfs, halfMkfs, afterMkfs} {
			v := g.claim(string(at), kind, nil)
			g.plan(at)
			stage := g.stageLater(g.ctx, v)
			orphan := g.reached(stage)
			g.wantState(v, "formatting", true)
			if blank := bytes.Equal(g.head(orphan.device), make([]byte, headBytes)); blank != (at == beforeMkfs) {
				g.Fatalf("%s: device is blank: %t", at, blank)
			}
			g.kill()
			g.wantCode(g.answer(stage), codes.Unavailable)
			g.serve()
			g.wantState(v, "formatting", false)

			if device = g.attach("bystander"); device == orphan.device && orphan.alive() {
				g.Errorf("%s: another volume is on %s, which a mkfs (process %d) is still to format", at, device, orphan.pid)
			}
			g.plan(undisturbed)
			content := noise(100_000)
			g.wantFormatted(v, content)
			g.goOn()
			g.waitGone(orphan)
			if g.sum(device) != bystander {
				g.Fatalf("%s: the mkfs that was left behind wrote over another volume", at)
			}
			g.detach("bystander")
			g.unstage(v)
			g.wantKept(v, content)
			g.unstage(v)
			g.wantSound(v)
		}
	})
}

// TestCrashBeforeFirstFold kills the daemon when all that there is of a filesystem is in
// the journal: the volume's root says that it is empty. It must not be formatted, neither
// with files nor as new as it can be.
func TestCrashBeforeFirstFold(t *testing.T) { // I1, I11
	eachKind(t, func(g *guarded, kind string) {
		content := noise(8 << 20)
		brief, busy := g.claim("brief", kind, nil), g.claim("busy", kind, nil)
		g.stage(brief)
		g.wantCalls(1)
		g.wantFormatted(busy, content)
		for _, v := range []claim{brief, busy} {
			if is := g.show(v.name); is.Journal == 0 || is.Logical > 0 {
				g.Fatalf("%s: %d bytes in the journal, %d folded; want all of it in the journal", v.name, is.Journal, is.Logical)
			}
		}
		g.kill()
		g.serve()
		g.wantKept(busy, content) // at once: a start begins to fold
		g.put(g.stage(brief), "file", content)
		g.wantCalls(2)
		for _, v := range []claim{brief, busy} {
			g.unstage(v)
			g.wantKept(v, content)
			g.unstage(v)
			g.wantSound(v)
		}
	})
}

// TestConcurrentStage calls for a volume while it is being formatted, and gives up on a
// call then: mkfs goes on to its end, which is what the call finds that is repeated.
func TestConcurrentStage(t *testing.T) { // I11
	eachKind(t, func(g *guarded, kind string) {
		v := g.claim("slow", kind, nil)
		g.plan(beforeMkfs)
		ctx, giveUp := context.WithCancel(g.ctx)
		defer giveUp()
		stage := g.stageLater(ctx, v)
		mkfs := g.reached(stage)
		g.wantCode(g.tryStage(g.ctx, v), codes.Aborted)
		g.wantCode(g.tryDelete(v), codes.Aborted)
		giveUp()
		g.wantCode(g.answer(stage), codes.Canceled)
		g.wantCode(g.tryStage(g.ctx, v), codes.Aborted)
		g.wantState(v, "formatting", true)
		if !mkfs.alive() {
			g.Error("mkfs has ended with the call")
		}
		g.goOn()
		g.stageOnceFree(v)
		g.wantCalls(1)
		g.wantState(v, "used", true)
		content := noise(10_000)
		g.put(g.staging(v), "file", content)
		g.unstage(v)
		g.wantKept(v, content)
		g.unstage(v)
	})
}

// stageOnceFree stages a volume as soon as no other call works on it.
func (g *guarded) stageOnceFree(v claim) {
	g.Helper()
	for g.ctx.Err() == nil {
		err := g.tryStage(g.ctx, v)
		if err == nil {
			return
		}
		g.wantCode(err, codes.Aborted)
		time.Sleep(20 * time.Millisecond)
	}
	g.Fatal(g.ctx.Err())
}

// TestFailedMkfs lets mkfs fail: the caller hears what it said, and nothing is in the
// way of another attempt or of a deletion.
func TestFailedMkfs(t *testing.T) { // I11
	g := newGuarded(t)
	for _, kind := range kinds {
		v, other := g.claim(kind, kind, nil), g.claim(kind+"-other", kind, nil)
		g.plan(failingMkfs)
		g.wantCode(g.tryStage(g.ctx, v), codes.Internal, "mkfs."+kind, standInSays)
		g.wantState(v, "formatting", false)
		g.wantCode(g.tryStage(g.ctx, other), codes.Internal, standInSays)
		if err := g.tryDelete(other); err != nil {
			t.Errorf("delete a volume that could not be formatted: %v", err)
		}
		g.plan(undisturbed)
		content := noise(10_000)
		g.wantFormatted(v, content)
		g.unstage(v)
		g.wantKept(v, content)
		g.unstage(v)
	}
}
