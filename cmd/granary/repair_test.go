package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/vfs"
)

// newStoreDir makes a stopped store with a volume and returns its directory, the volume's
// ID and the path of its chunk file.
func newStoreDir(t *testing.T) (dir, id, chunks string) {
	t.Helper()
	dir = filepath.Join(tempDir(t), "store")
	s, err := blockstore.Open(vfs.NewOS(), dir, smallStore())
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.CreateVolume(blockstore.VolumeSpec{Name: "data", SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.OpenVolume(t.Context(), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 16<<12) // that no codec shrinks
	rand.NewChaCha8([32]byte{1}).Read(data)
	if _, err := v.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	sn, err := s.CreateSnapshot(t.Context(), info.ID, "sn", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, s, sn.ID)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "chunks", "*.chunks"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	return dir, info.ID, files[0]
}

func smallStore() blockstore.Options {
	return blockstore.Options{JournalBytes: 1 << 20, SegmentBytes: 256 << 10, CatalogBytes: 64 << 10, ReserveBytes: 256 << 10}
}

// waitReady folds until a snapshot has its root.
func waitReady(t *testing.T, s *blockstore.Store, id string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	if _, err := s.WaitSnapshot(ctx, id); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
}

// spoil inverts bytes of a file.
func spoil(t *testing.T, name string, off int64, n int) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if off < 0 {
		off += int64(len(data))
	}
	for i := range n {
		data[off+int64(i)] ^= 0xff
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A damaged trailer costs nothing: check tells what a repair would do, the repair does it
// and keeps the damaged file, and afterwards there is nothing to be told.
func TestCheckRepair(t *testing.T) {
	dir, _, file := newStoreDir(t)
	c := &cli{t: t, dir: dir}
	if out := c.ok("check --repair --data-dir " + dir); out != "no problems found\n" {
		t.Errorf("nothing to repair: %q", out)
	}
	spoil(t, file, -90, 1)
	code, out, errs := c.run("check --data-dir " + dir)
	if code != 1 || !strings.Contains(out, filepath.Base(file)) || !strings.Contains(errs, "granary check --repair would rebuild 2 of these") {
		t.Errorf("check: exit %d\n%s\n%s", code, out, errs)
	}
	out = c.ok("check --repair --data-dir " + dir)
	for _, part := range []string{"repaired: chunk-file: " + file, "quarantine/" + filepath.Base(file), "none remains"} {
		if !strings.Contains(out, part) {
			t.Errorf("repair does not say %q:\n%s", part, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "quarantine", filepath.Base(file))); err != nil {
		t.Error(err)
	}
	if out := c.ok("check --read-data --data-dir " + dir); out != "no problems found\n" {
		t.Errorf("afterwards: %q", out)
	}
}

// What is lost remains: exit code 1, and each image is named.
func TestCheckRepairTellsWhatRemains(t *testing.T) {
	dir, id, file := newStoreDir(t)
	c := &cli{t: t, dir: dir}
	spoil(t, file, 20<<10, 8) // in a block
	spoil(t, file, -90, 1)
	code, out, errs := c.run("check --repair -o json --data-dir " + dir)
	if code != 1 || !strings.Contains(errs, "remain") {
		t.Fatalf("exit %d\n%s\n%s", code, out, errs)
	}
	var mended, named int
	for line := range strings.Lines(out) {
		var v struct{ Repaired, Moved, Kind, Volume, SnapshotName string }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if v.Repaired != "" && v.Moved != "" {
			mended++
		}
		if v.Kind == "data" && (v.Volume == id || v.SnapshotName == "sn") {
			named++
		}
	}
	if mended != 1 || named < 2 {
		t.Errorf("%d repaired, %d named:\n%s", mended, named, out)
	}
}

// A repair that cannot be made is exit code 2.
func TestCheckRepairRefuses(t *testing.T) {
	dir, _, _ := newStoreDir(t)
	c := &cli{t: t, dir: dir}
	s, err := blockstore.Open(vfs.NewOS(), dir, smallStore())
	if err != nil {
		t.Fatal(err)
	}
	c.fails(2, "check --repair --data-dir "+dir, "a daemon has "+dir+" open", "only a stopped store")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.fails(2, "check --repair --data-dir "+dir+"/nothing", "no store")
}
