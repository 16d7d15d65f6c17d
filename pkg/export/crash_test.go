package export

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const childEnv = "GRANARY_EXPORT_TEST_CHILD" // the name to attach under

// child attaches a device in memory, formats it if told to, prints its path and serves
// until it is killed.
func child() int {
	dev := newMem(64 << 20)
	a, err := Attach(context.Background(), NewHost(), dev, Options{Name: os.Getenv(childEnv)})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println(a.Path())
	time.Sleep(time.Minute)
	return 1
}

// startChild runs this binary as a server and returns its device.
func startChild(t *testing.T, name string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be dead
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	ok(t, err)
	device := strings.TrimSpace(line)
	if !strings.HasPrefix(device, "/dev/loop") {
		t.Fatalf("child: %s", device)
	}
	return cmd, device
}

func TestClearDead(t *testing.T) {
	needKernel(t)
	needPrograms(t, "mkfs.ext4")
	for _, mode := range []string{"plain", "mounted", "busy"} {
		t.Run(mode, func(t *testing.T) { testClearDead(t, mode) })
	}
}

func testClearDead(t *testing.T, mode string) {
	h, name := NewHost(), testName(t)
	cmd, device := startChild(t, name)
	var mounts []string
	var open *os.File
	if mode != "plain" {
		ok(t, h.Mkfs(t.Context(), device, "ext4", nil))
		dir, bind := t.TempDir(), t.TempDir()
		ok(t, h.Mount(t.Context(), device, dir, "ext4", nil))
		t.Cleanup(func() { _ = h.ForceUnmount(dir) })
		ok(t, h.BindMount(t.Context(), dir, bind, []string{"ro"}))
		t.Cleanup(func() { _ = h.ForceUnmount(bind) })
		ok(t, os.WriteFile(dir+"/a", make([]byte, 1<<20), 0o600))
		mounts = []string{dir, bind}
		if mode == "busy" {
			var err error
			open, err = os.Create(dir + "/open")
			ok(t, err)
			_, err = open.Write([]byte("dirty"))
			ok(t, err)
		}
	}
	ok(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed

	b, err := h.LoopBacking(device)
	ok(t, err)
	if !b.Is(name) || b.Is(name+"x") {
		t.Fatalf("dead device not recognised: %+v", b)
	}
	if f, err := openCloexec(device, os.O_RDONLY); err != nil {
		t.Fatal(err)
	} else {
		if _, err := f.ReadAt(make([]byte, 4096), 32<<20); err == nil {
			t.Error("read of a dead device succeeded")
		}
		f.Close()
	}

	// Another name, another target: nothing is touched.
	ok(t, ClearDead(t.Context(), h, device, name+"-other", mounts))
	if _, err := h.LoopBacking(device); err != nil {
		t.Fatalf("cleared under a wrong name: %v", err)
	}
	foreign := t.TempDir()
	ok(t, h.Mount(t.Context(), "tmpfs", foreign, "tmpfs", []string{"size=64k"}))
	defer h.ForceUnmount(foreign)

	for range 2 { // idempotent
		ok(t, ClearDead(t.Context(), h, device, name, append(mounts, foreign)))
	}
	for _, m := range mounts {
		if at, err := IsMounted(h, m); err != nil || at != nil {
			t.Errorf("still mounted: %+v, %v", at, err)
		}
	}
	if at, err := IsMounted(h, foreign); err != nil || at == nil {
		t.Errorf("foreign mount is gone: %v", err)
	}
	if open != nil {
		if _, err := h.LoopBacking(device); err != nil {
			t.Logf("device went before its last user: %v", err)
		}
		open.Close() // may fail: the data is lost
	}
	waitFor(t, func() bool {
		b, err := h.LoopBacking(device)
		return err != nil || !b.Is(name)
	})

	a, err := Attach(t.Context(), h, newMem(1<<20), Options{Name: name})
	ok(t, err)
	ok(t, a.Detach(t.Context()))
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for range 500 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("not within 5 s")
}

// The node of a device that is gone, or has become another's, does not stay where it was
// bound.
func TestClearDeadNode(t *testing.T) {
	needKernel(t)
	h, name := NewHost(), testName(t)
	cmd, device := startChild(t, name)
	target := filepath.Join(t.TempDir(), "target")
	ok(t, os.WriteFile(target, nil, 0o600))
	ok(t, h.BindMount(t.Context(), device, target, nil))
	t.Cleanup(func() { _ = h.ForceUnmount(target) })
	ok(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	ok(t, h.DetachLoop(t.Context(), device, true))
	ok(t, ClearDead(t.Context(), h, device, name, []string{target}))
	if m, err := IsMounted(h, target); err != nil || m != nil {
		t.Errorf("still mounted: %+v, %v", m, err)
	}
}
