package export

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	deathEnv    = "GRANARY_EXPORT_TEST_DEATH"     // what the child is killed in
	deathDirEnv = "GRANARY_EXPORT_TEST_DEATH_DIR" // where it may mount
)

// deaths are calls of the host that wait for an answer of this process.
var deaths = map[string]func(s *stuck, h Host, a *Attached, dir string) error{
	"configure": nil, // hangs in Attach
	"open":      nil,
	"flush": func(s *stuck, h Host, a *Attached, _ string) error {
		s.arm("flush")
		return h.FlushDevice(a.Path())
	},
	"probe": func(s *stuck, h Host, a *Attached, _ string) error {
		s.arm("read")
		_, err := h.ProbeFS(context.Background(), a.Path())
		return err
	},
	"prepare": func(s *stuck, h Host, a *Attached, _ string) error {
		s.arm("read")
		return h.PrepareCopy(context.Background(), a.Path(), "btrfs", [16]byte{1})
	},
	"size of ext4": func(s *stuck, h Host, a *Attached, _ string) error {
		s.arm("read")
		return h.GrowUnmounted(context.Background(), a.Path(), "ext4")
	},
	"detach": func(s *stuck, h Host, a *Attached, _ string) error {
		s.arm("flush")
		return a.Detach(context.Background())
	},
	// Not in a call, but with a device that the death would have to write back.
	"dirty raw device": func(s *stuck, h Host, a *Attached, _ string) error {
		f, err := os.OpenFile(a.Path(), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
		s.arm("write")
		if err := f.Close(); err != nil {
			return err
		}
		return s.hang("write")
	},
	"grow": func(s *stuck, h Host, a *Attached, _ string) error {
		s.memDevice.grow(128 << 20)
		s.arm("size")
		return a.Resize(context.Background())
	},
	"unmount": func(s *stuck, h Host, a *Attached, dir string) error {
		if err := mountDirty(h, a, dir); err != nil {
			return err
		}
		s.arm("write")
		return h.Unmount(dir)
	},
	"sync": func(s *stuck, h Host, a *Attached, dir string) error {
		if err := mountDirty(h, a, dir); err != nil {
			return err
		}
		s.arm("write")
		return h.SyncFS(dir)
	},
}

func mountDirty(h Host, a *Attached, dir string) error {
	ctx := context.Background()
	if err := h.Mkfs(ctx, a.Path(), "ext4", nil); err != nil {
		return err
	}
	if err := h.Mount(ctx, a.Path(), dir, "ext4", nil); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o600)
}

// stuck is a Device whose armed method says so and never answers.
type stuck struct {
	*memDevice
	armed atomic.Value // string
}

func newStuck() *stuck {
	s := &stuck{memDevice: newMem(64 << 20)}
	s.onRead = func(int64, int) error { return s.hang("read") }
	s.onWrite = func(int64, int) error { return s.hang("write") }
	s.onFlush = func() error { return s.hang("flush") }
	return s
}

func (s *stuck) arm(method string) { s.armed.Store(method) }

func (s *stuck) hang(method string) error {
	if s.armed.Load() == method {
		fmt.Println("hangs")
		select {}
	}
	return nil
}

// Size is asked by every request about the file's attributes.
func (s *stuck) Size() int64 {
	_ = s.hang("size")
	return s.memDevice.Size()
}

// deadly tells the parent about every FUSE connection, by its number.
type deadly struct {
	Host
	s *stuck
}

func (d deadly) OpenFUSE(o FUSEMount) (FUSEConn, error) {
	c, err := d.Host.OpenFUSE(o)
	if err == nil {
		fmt.Println("connection", c.(*fuseConn).number)
	}
	if os.Getenv(deathEnv) == "open" {
		d.s.arm("size")
	}
	return c, err
}

func (d deadly) AttachLoop(file *os.File, o LoopOptions) (Loop, error) {
	if os.Getenv(deathEnv) == "configure" {
		d.s.arm("flush")
	}
	return d.Host.AttachLoop(file, o)
}

// die attaches a device and hangs in what the parent wants.
func die() int {
	s := newStuck()
	h := deadly{NewHost(), s}
	a, err := Attach(context.Background(), h, s, Options{Name: os.Getenv(childEnv)})
	if err == nil {
		fmt.Println("device", a.Path())
		err = deaths[os.Getenv(deathEnv)](s, h, a, os.Getenv(deathDirEnv))
	}
	fmt.Println("error: did not hang:", err)
	return 1
}

// A process that is killed while it waits for its own device ends all the same, and so
// does what it holds up in the kernel.
func TestDeathInACallOfItsOwn(t *testing.T) {
	needKernel(t)
	needPrograms(t, "mkfs.ext4")
	for what := range deaths {
		t.Run(strings.ReplaceAll(what, " ", "-"), func(t *testing.T) { testDeath(t, what) })
	}
}

func testDeath(t *testing.T, what string) {
	h, name, dir := NewHost(), testName(t), t.TempDir()
	t.Cleanup(func() { _ = h.ForceUnmount(dir) })
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+name, deathEnv+"="+what, deathDirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	device, connection := "", 0
	for lines := bufio.NewScanner(out); ; {
		if !lines.Scan() || strings.HasPrefix(lines.Text(), "error") {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("the child says %q", lines.Text())
		}
		word, rest, _ := strings.Cut(lines.Text(), " ")
		if word == "hangs" {
			break
		}
		switch word {
		case "device":
			device = rest
		case "connection":
			connection, err = strconv.Atoi(rest)
			ok(t, err)
		}
	}
	time.Sleep(20 * time.Millisecond) // until the caller waits for the answer
	ok(t, cmd.Process.Kill())
	ended := make(chan error, 1)
	go func() {
		_, _ = io.Copy(io.Discard, out)
		ended <- cmd.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Errorf("killed 10 s ago and still there")
		ok(t, (&fuseConn{number: uint32(connection)}).Abort())
		<-ended
	}
	// The machine's loop devices can be used, and what is left can be cleared.
	ok(t, h.ForceUnmount(dir))
	if device == "" { // killed before it was told
		device = attachedAs(t, h, name)
	}
	if device != "" {
		ok(t, ClearDead(t.Context(), h, device, name, nil))
	}
	a, err := Attach(t.Context(), h, newMem(1<<20), Options{Name: name + "-next"})
	ok(t, err)
	ok(t, a.Detach(t.Context()))
	waitFor(t, func() bool { return device == "" || !stillThere(h, device, name) })
}

// attachedAs is the loop device of that name; "" if there is none.
func attachedAs(t *testing.T, h Host, name string) string {
	t.Helper()
	loops, err := filepath.Glob("/sys/block/loop*")
	ok(t, err)
	for _, l := range loops {
		if device := "/dev/" + filepath.Base(l); stillThere(h, device, name) {
			return device
		}
	}
	return ""
}

func stillThere(h Host, device, name string) bool {
	b, err := h.LoopBacking(device)
	return err == nil && b.Is(name)
}
