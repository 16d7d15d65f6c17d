package device

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/test/rig"
)

// spot is a byte of a chunk file that is damaged, and mended by doing it again.
type spot struct {
	file string
	off  int64
}

func (s spot) flip() error {
	f, err := os.OpenFile(s.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, s.off); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b, s.off)
	return err
}

func (g *guarded) flip(spots []spot) {
	g.Helper()
	for _, s := range spots {
		if err := s.flip(); err != nil {
			g.Fatal(err)
		}
	}
}

// find lists where the blocks that are not zeros are in the chunk files of a store
// without compression.
func (g *guarded) find(content []byte) []spot {
	g.Helper()
	files, err := filepath.Glob(filepath.Join(g.daemon.DataDir(), "chunks", "*.chunks"))
	if err != nil {
		g.Fatal(err)
	}
	var found []spot
	for _, file := range files {
		stored, err := os.ReadFile(file)
		if err != nil {
			g.Fatal(err)
		}
		for at := 0; at < len(content); at += imageBlock {
			block := content[at:][:imageBlock]
			if bytes.Equal(block, make([]byte, imageBlock)) {
				continue
			}
			if off := bytes.Index(stored, block); off >= 0 {
				found = append(found, spot{file, int64(off)})
			}
		}
	}
	return found
}

// TestUnreadableFirstMegabyte stages a volume whose first blocks are damaged in the
// store. An unreadable device is no empty one, whatever blkid says: the stage fails and
// nothing is formatted; with the damage mended all is there.
func TestUnreadableFirstMegabyte(t *testing.T) { // I5, I11
	eachKind(t, func(g *guarded, kind string) {
		v := g.claim("sick", kind, nil, "compression=none")
		content := noise(2 << 20)
		g.wantFormatted(v, content)
		g.unstage(v)
		head := g.head(g.attach(v.name))[:1<<20]
		g.detach(v.name)
		g.waitFolded()
		g.stop()
		damage := g.find(head)
		if len(damage) == 0 {
			t.Fatal("none of the first blocks is in a chunk file")
		}
		g.flip(damage)
		g.serve()
		for range 2 {
			err := g.tryStage(g.ctx, v)
			g.wantCode(err, codes.Internal, "cannot be read", "neither mounted nor formatted")
			g.wantState(v, "used", false)
		}
		g.wantCalls(1)
		g.blkidSeesNothing(v)
		g.stop()
		g.flip(damage)
		g.serve()
		g.wantKept(v, content)
		g.unstage(v)
		g.wantCalls(1)
		g.forgetDamage()
	})
}

// forgetDamage checks the store while the daemon runs: what was recorded as damaged and
// reads whole again is no damage any more. The check after the test finds nothing.
func (g *guarded) forgetDamage() {
	g.Helper()
	if out, err := g.daemon.Do(g.ctx, "check", "--read-data"); err != nil {
		g.Errorf("check once the disk reads again: %v\n%s", err, out)
	}
}

// blkidSeesNothing shows why blkid is not asked: of a device that cannot be read it says
// with the exit code for it that nothing is there.
func (g *guarded) blkidSeesNothing(v claim) {
	g.Helper()
	if _, err := exec.LookPath("blkid"); err != nil {
		g.Log("no blkid here")
		return
	}
	device := g.attach(v.name)
	defer g.detach(v.name)
	out, err := rig.Run(g.ctx, 0, "blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device)
	var failed *rig.CommandError
	if !errors.As(err, &failed) || failed.Code != 2 || out != "" {
		g.Errorf("blkid on an unreadable device: %q, %v; want exit code 2, as for an empty one", out, err)
	}
}
