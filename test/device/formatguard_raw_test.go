package device

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
)

// content is what somebody leaves on a raw device.
type content struct {
	what string
	says string // in the refusal to mount it; empty: it is mounted
	put  func(g *guarded, device string)
}

// file is what a filesystem made by hand has in it.
const fileContent = "made by hand"

// filesystemBy makes a filesystem with a file on a device, outside of the daemon.
func filesystemBy(kind string) func(g *guarded, device string) {
	return func(g *guarded, device string) {
		g.mkfs(kind, device)
		dir := g.mount(kind, device, filepath.Base(device))
		g.put(dir, "file", []byte(fileContent))
		g.unmount(dir)
	}
}

// contents are what may be on a device that is to be staged with a filesystem.
func contents(kind string) []content {
	other := map[string]string{"ext4": "xfs", "xfs": "btrfs", "btrfs": "ext4"}[kind]
	return []content{
		{"nothing", "no filesystem", func(*guarded, string) {}},
		{"few-bytes", "no filesystem", func(g *guarded, device string) { g.write(device, []byte("some bytes"), 1<<20) }},
		{"swap", "holds swap", func(g *guarded, device string) { g.run("mkswap", device) }},
		{"other", "holds " + other, filesystemBy(other)},
		{"same", "", filesystemBy(kind)},
	}
}

// TestRawThenMounted gives volumes out as raw devices, by the command and over CSI, and
// stages them with a filesystem afterwards. What is there is mounted if it is what is
// asked for, else it is named; nothing is formatted, and no byte changes.
func TestRawThenMounted(t *testing.T) { // I11
	g := newGuarded(t)
	for i, kind := range kinds {
		for j, c := range contents(kind) {
			v := g.rawClaim(kind + "-" + c.what)
			byCommand := (i+j)%2 == 0
			before := g.useRaw(v, byCommand, c.put)
			v.kind = kind
			g.wantState(v, "used", false)
			if c.says == "" {
				g.wantKept(v, []byte(fileContent))
				g.unstage(v)
				continue
			}
			for range 2 { // the first refusal must leave nothing that leads the second astray
				g.wantCode(g.tryStage(g.ctx, v), codes.FailedPrecondition, c.says)
				g.wantState(v, "used", false)
			}
			if after := g.sum(g.attach(v.name)); after != before {
				t.Errorf("%s: the refused stage changed the device", v.name)
			}
			g.detach(v.name)
		}
	}
	g.wantCalls(0)
}

// rawClaim makes a volume that any of the filesystems fits on.
func (g *guarded) rawClaim(name string) claim {
	g.Helper()
	return g.claim(name, "raw", nil)
}

// useRaw gives a volume out as a raw device, lets put write to it, and takes it back. It
// returns the sum of the device's first bytes.
func (g *guarded) useRaw(v claim, byCommand bool, put func(*guarded, string)) [32]byte {
	g.Helper()
	device := ""
	if byCommand {
		device = g.attach(v.name)
	} else {
		device = g.stage(v)
	}
	put(g, device)
	sum := g.sum(device)
	if byCommand {
		g.detach(v.name)
	} else {
		g.unstage(v)
		if err := os.RemoveAll(g.staging(v)); err != nil {
			g.Fatal(err)
		}
	}
	return sum
}
