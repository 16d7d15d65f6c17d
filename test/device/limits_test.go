package device

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/test/rig"
)

// TestLargestVolume formats 64 TiB and keeps a few files there.
func TestLargestVolume(t *testing.T) {
	eachFS(t, func(t *testing.T, kind string) {
		e := newFastEnv(t, 3*time.Minute)
		e.create("huge", "64TiB")
		device := e.attach("huge")
		if got, err := rig.DeviceSize(device); err != nil || got != 64<<40 {
			t.Fatalf("%s has %d bytes, want 64 TiB (%v)", device, got, err)
		}
		var options []string
		if kind == "ext4" {
			options = []string{"noinit_itable"} // else the kernel zeroes 256 GiB of inodes
		}
		e.mkfs(kind, device)
		dir := e.mount(kind, device, "huge", options...)
		want := map[string][]byte{"a": noise(1 << 20), "b": noise(5000), "c": nil}
		for name, content := range want {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		e.unmount(dir)
		e.detach("huge")
		e.stop()
		e.serve()
		device = e.attach("huge")
		dir = e.mount(kind, device, "huge", options...)
		for name, content := range want {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s differs (%v)", name, err)
			}
		}
		e.unmount(dir)
		e.detach("huge")
		if s := e.waitFolded(); s.Stored > 256<<20 {
			t.Errorf("an empty file system of 64 TiB takes %d bytes", s.Stored)
		}
	})
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// TestSmallestVolume fills 1 MiB to its last byte, and not beyond.
func TestSmallestVolume(t *testing.T) {
	e := newEnv(t, time.Minute)
	if v := e.create("small", "1"); v.Size != 1<<20 {
		t.Fatalf("asked for 1 byte, got %d, want 1 MiB", v.Size)
	}
	device := e.attach("small")
	content := noise(1 << 20)
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, 1<<20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write behind the end: %v, want ENOSPC", err)
	}
	f.Close()
	e.detach("small")
	e.waitFolded()
	e.wantDevice("small", content)
}

// wantDevice attaches a volume, compares all of it and detaches it.
func (e *env) wantDevice(volume string, want []byte) {
	e.Helper()
	device := e.attach(volume)
	got, err := os.ReadFile(device)
	if err != nil || !bytes.Equal(got, want) {
		e.Errorf("%s: %d bytes differ from the %d written (%v)", volume, len(got), len(want), err)
	}
	e.detach(volume)
}

// TestTermWhileAttached ends the daemon in order while volumes are attached: it must
// say which, exit with 0, and lose nothing.
func TestTermWhileAttached(t *testing.T) {
	e := newEnv(t, time.Minute)
	content := map[string][]byte{"first-volume": noise(4 << 20), "second-volume": noise(4 << 20)}
	var ids []string
	for name, b := range content {
		ids = append(ids, e.create(name, "4MiB").ID)
		f, err := os.OpenFile(e.attach(name), os.O_WRONLY|unix.O_SYNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	before, err := os.ReadFile(e.daemon.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	e.stop()
	log, err := os.ReadFile(e.daemon.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if !strings.Contains(string(log[len(before):]), id) {
			t.Errorf("the daemon did not say that %s was attached:\n%s", id, log[len(before):])
		}
	}
	e.serve()
	for name, b := range content {
		e.wantDevice(name, b)
	}
}

// TestDiscardOfSectors discards and zeroes single sectors in the middle of a block:
// exactly they read as zeros, also after the fold.
func TestDiscardOfSectors(t *testing.T) {
	e := newEnv(t, time.Minute)
	e.create("holes", "4MiB")
	device := e.attach("holes")
	content := noise(4 << 20)
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	for i, r := range []struct{ off, n int64 }{{512, 512}, {4096 + 3584, 512}, {3*4096 + 512, 4096}, {1<<20 - 512, 1 << 20}, {4<<20 - 512, 512}} {
		request := uintptr(unix.BLKDISCARD)
		if i%2 == 1 {
			request = unix.BLKZEROOUT
		}
		if err := blockIoctl(f, request, r.off, r.n); err != nil {
			t.Fatalf("%d bytes at %d: %v", r.n, r.off, err)
		}
		clear(content[r.off : r.off+r.n])
	}
	f.Close()
	e.wantDevice("holes", content) // from the journal or from chunks
	e.waitFolded()
	e.wantDevice("holes", content) // from chunks
}

// TestSnapshotsInARow takes many snapshots faster than they are folded, most of them
// with no write in between. Each must become ready and hold what was there, also when
// its volume is deleted before.
func TestSnapshotsInARow(t *testing.T) {
	e := newEnv(t, time.Minute)
	e.create("source", "16MiB")
	device := e.attach("source")
	var contents [][]byte
	for round := range 3 {
		content := noise(16 << 20)
		contents = append(contents, content)
		f, err := os.OpenFile(device, os.O_WRONLY|unix.O_SYNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		f.Close()
		for i := range 30 {
			e.snapshot("source", fmt.Sprintf("snap-%d-%d", round, i))
		}
	}
	e.detach("source")
	e.do("volume", "rm", "source")
	for wait := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var all []rig.Snapshot
		e.json(&all, "snapshot", "ls")
		if len(all) != 90 {
			t.Fatalf("%d snapshots, want 90", len(all))
		}
		pending := slices.DeleteFunc(all, func(s rig.Snapshot) bool { return s.Ready })
		if len(pending) == 0 {
			break
		}
		if time.Now().After(wait) {
			t.Fatalf("%d snapshots are not ready after half a minute, the first is %s", len(pending), pending[0].Name)
		}
	}
	for round, content := range contents {
		for _, i := range []int{0, 29} {
			name := fmt.Sprintf("clone-%d-%d", round, i)
			e.create(name, "", "--from-snapshot", fmt.Sprintf("snap-%d-%d", round, i))
			e.wantDevice(name, content)
		}
	}
}
