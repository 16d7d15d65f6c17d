package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/pkg/vfs"
)

// openDirect opens a block device past the page cache.
func openDirect(t testing.TB, device string) *os.File {
	t.Helper()
	f, err := openCloexec(device, unix.O_RDWR|unix.O_DIRECT)
	ok(t, err)
	return f
}

// aligned returns n bytes at a page boundary, plus shift.
func aligned(n, shift int) []byte {
	p := make([]byte, n+shift+pageSize)
	at := -int(uintptr(unsafe.Pointer(&p[0]))) & (pageSize - 1)
	return p[at+shift : at+shift+n]
}

func rangeIoctl(f *os.File, req uintptr, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

func TestRandomIO(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) { testRandomIO(t, sector) })
	}
}

// testRandomIO compares the device with a model under writes, reads, discards and
// zeroings of random ranges.
func testRandomIO(t *testing.T, sector int) {
	const size = 8 << 20
	dev := newMem(size)
	a, _ := attach(t, dev, Options{SectorBytes: sector})
	if s := a.Session(); s.Flags&capAsyncDIO == 0 || s.MaxPages < 256 {
		t.Errorf("session %+v", s)
	}
	f := openDirect(t, a.Path())
	defer f.Close()
	if got, err := sectorBytes(a.Path()); err != nil || got != sector {
		t.Errorf("sectors of %d bytes, %v", got, err)
	}
	if dio, err := os.ReadFile(sysfsLoop(a.Number(), "loop/dio")); err != nil || strings.TrimSpace(string(dio)) != "1" {
		t.Errorf("direct I/O %q, %v", dio, err)
	}
	seed := rand.Uint64()
	t.Logf("seed=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	model := make([]byte, size)
	for i := range 600 {
		n := sector * (1 + rnd.IntN(32))
		if rnd.IntN(10) == 0 {
			n = sector * (1 + rnd.IntN((3<<20)/sector))
		}
		off := sector * rnd.IntN((size-n)/sector+1)
		p := aligned(n, 512*rnd.IntN(8))
		var err error
		switch rnd.IntN(6) {
		case 0:
			err = rangeIoctl(f, unix.BLKDISCARD, int64(off), int64(n))
			clear(model[off : off+n])
		case 1:
			err = rangeIoctl(f, unix.BLKZEROOUT, int64(off), int64(n))
			clear(model[off : off+n])
		case 2, 3:
			for j := range p {
				p[j] = byte(rnd.Uint32())
			}
			_, err = f.WriteAt(p, int64(off))
			copy(model[off:], p)
		default:
			if _, err = f.ReadAt(p, int64(off)); err == nil && !bytes.Equal(p, model[off:off+n]) {
				t.Fatalf("step %d: wrong bytes at %d+%d", i, off, n)
			}
		}
		if err != nil {
			t.Fatalf("step %d at %d+%d: %v", i, off, n, err)
		}
	}
	got := make([]byte, size)
	_, err := dev.ReadAt(got, 0)
	ok(t, err)
	if !bytes.Equal(got, model) {
		t.Fatal("device differs from the model")
	}
	if dev.holes() == 0 {
		t.Error("no discard or zeroing reached the device")
	}
	before := dev.flushes()
	ok(t, f.Sync())
	if dev.flushes() == before {
		t.Error("fsync of the block device did not flush")
	}
}

// TestVectors reads and writes through vectors of 512-byte pieces, which the kernel
// cuts in its own way.
func TestVectors(t *testing.T) {
	a, _ := attach(t, newMem(16<<20), Options{})
	f := openDirect(t, a.Path())
	defer f.Close()
	var out, in [][]byte
	for i := range 1000 {
		p := aligned(512*(1+i%3), 512*(i%8))
		for j := range p {
			p[j] = byte(i + j*7)
		}
		out = append(out, p)
		in = append(in, aligned(len(p), 512*((i+3)%8)))
	}
	n, err := unix.Pwritev(int(f.Fd()), out, 512)
	ok(t, err)
	m, err := unix.Preadv(int(f.Fd()), in, 512)
	ok(t, err)
	if n != m || !bytes.Equal(bytes.Join(in, nil), bytes.Join(out, nil)) {
		t.Fatalf("wrote %d, read %d, different", n, m)
	}
}

func TestSizes(t *testing.T) {
	for _, size := range []int64{1 << 20, 64 << 40} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			a, h := attach(t, newMem(size), Options{})
			got, err := h.DeviceSize(a.Path())
			ok(t, err)
			if got != size {
				t.Fatalf("%d bytes", got)
			}
			f := openDirect(t, a.Path())
			defer f.Close()
			p, q := aligned(4096, 0), aligned(4096, 0)
			for i := range p {
				p[i] = byte(i * 3)
			}
			for _, off := range []int64{0, size / 2, size - 4096} {
				_, err := f.WriteAt(p, off)
				ok(t, err)
				_, err = f.ReadAt(q, off)
				ok(t, err)
				if !bytes.Equal(p, q) {
					t.Fatalf("wrong bytes at %d", off)
				}
			}
			if _, err := f.WriteAt(p, size); err == nil {
				t.Error("write past the end succeeded")
			}
		})
	}
}

func TestFilesystems(t *testing.T) {
	needKernel(t)
	for _, c := range []struct {
		fsType string
		sector int
		check  []string
	}{
		{"ext4", 512, []string{"e2fsck", "-fn"}},
		{"ext4", 4096, []string{"e2fsck", "-fn"}},
		{"xfs", 512, []string{"xfs_repair", "-n"}},
		{"xfs", 4096, []string{"xfs_repair", "-n"}},
		{"btrfs", 512, []string{"btrfs", "check"}},
		{"btrfs", 4096, []string{"btrfs", "check"}},
	} {
		t.Run(fmt.Sprint(c.fsType, c.sector), func(t *testing.T) {
			needPrograms(t, "mkfs."+c.fsType, c.check[0])
			testFilesystem(t, c.fsType, c.sector, c.check)
		})
	}
}

func testFilesystem(t *testing.T, fsType string, sector int, check []string) {
	known, err := os.ReadFile("/proc/filesystems")
	ok(t, err)
	mountable := strings.Contains(string(known), "\t"+fsType+"\n")
	dev := newMem(320 << 20)
	a, h := attach(t, dev, Options{SectorBytes: sector})
	ctx := t.Context()
	ok(t, h.Mkfs(ctx, a.Path(), fsType, nil))
	ok(t, h.Mkfs(ctx, a.Path(), fsType, nil)) // over an interrupted one
	ok(t, h.Fsck(ctx, a.Path(), fsType))
	if !mountable {
		t.Skipf("needs a kernel with %s", fsType)
	}
	dir := t.TempDir()
	ok(t, h.Mount(ctx, a.Path(), dir, fsType, nil))
	defer h.ForceUnmount(dir)
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(i / 3)
	}
	ok(t, os.WriteFile(filepath.Join(dir, "file"), data, 0o600))
	ok(t, os.WriteFile(filepath.Join(dir, "gone"), data, 0o600))
	ok(t, os.Remove(filepath.Join(dir, "gone")))
	run(t, "sync", "-f", dir)

	before, err := h.Statfs(dir)
	ok(t, err)
	dev.grow(640 << 20)
	ok(t, a.Resize(ctx))
	ok(t, a.Resize(ctx))
	if fsType == "ext4" && !mayGrowExt4(t) {
		t.Log("no CAP_SYS_RESOURCE: growing ext4 while it is not mounted")
		ok(t, h.Unmount(dir))
		run(t, "e2fsck", "-fp", a.Path())
		run(t, "resize2fs", a.Path())
		ok(t, h.Mount(ctx, a.Path(), dir, fsType, nil))
	} else {
		ok(t, h.GrowFS(a.Path(), dir))
		ok(t, h.GrowFS(a.Path(), dir))
	}
	after, err := h.Statfs(dir)
	ok(t, err)
	if after.TotalBytes < before.TotalBytes+250<<20 {
		t.Errorf("grown from %d to %d bytes", before.TotalBytes, after.TotalBytes)
	}

	err = a.Detach(ctx)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("detach while mounted: %v", err)
	}
	ok(t, h.Unmount(dir))
	ok(t, h.Unmount(dir))
	run(t, check[0], append(check[1:], a.Path())...)
	ok(t, h.Mount(ctx, a.Path(), dir, fsType, []string{"ro"}))
	got, err := os.ReadFile(filepath.Join(dir, "file"))
	ok(t, err)
	if !bytes.Equal(got, data) {
		t.Error("file differs")
	}
	ok(t, h.Unmount(dir))
	ok(t, a.Detach(ctx))
	ok(t, a.Detach(ctx))
}

// mayGrowExt4 tells whether the process may grow a mounted ext4.
func mayGrowExt4(t *testing.T) bool {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	ok(t, unix.Capget(&head, &data[0]))
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestDetachInUse(t *testing.T) {
	a, h := attach(t, newMem(1<<20), Options{})
	f := openDirect(t, a.Path())
	sleeper, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{Files: []*os.File{f}})
	ok(t, err)
	f.Close()
	err = a.Detach(t.Context())
	if want := fmt.Sprintf("process %d (sleep)", sleeper.Pid); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
		t.Errorf("detach while open: %v", err)
	}
	ok(t, sleeper.Kill())
	_, err = sleeper.Wait()
	ok(t, err)
	f = openDirect(t, a.Path()) // it still works, as before
	if dio, err := os.ReadFile(sysfsLoop(a.Number(), "loop/dio")); err != nil || strings.TrimSpace(string(dio)) != "1" {
		t.Errorf("direct I/O %q, %v", dio, err)
	}
	_, err = f.WriteAt(aligned(4096, 0), 0)
	ok(t, err)
	f.Close()

	node := filepath.Join(t.TempDir(), "node")
	ok(t, os.WriteFile(node, nil, 0o600))
	ok(t, h.BindMount(t.Context(), a.Path(), node, nil))
	defer h.ForceUnmount(node)
	if err := a.Detach(t.Context()); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), node) {
		t.Errorf("detach while the node is mounted: %v", err)
	}
	ok(t, h.Unmount(node))
	ok(t, a.Detach(t.Context()))
	if _, err := h.LoopBacking(a.Path()); !errors.Is(err, ErrNotAttached) {
		// The number may be another test's by now, but not ours.
		if b, _ := h.LoopBacking(a.Path()); b.Is(a.name) {
			t.Errorf("still there: %+v", b)
		}
	}
}

// TestSlowWrite: writes that wait without end do not hold up reads and flushes of the
// device itself. In the kernel a flush waits for writes only if it is told to.
func TestSlowWrite(t *testing.T) {
	dev := newMem(64 << 20)
	release, waiting := make(chan struct{}), make(chan struct{}, 256)
	dev.onWrite = func(off int64, n int) error {
		if off >= 8<<20 {
			waiting <- struct{}{}
			<-release
		}
		return nil
	}
	a, _ := attach(t, dev, Options{})
	f := openDirect(t, a.Path())
	defer f.Close()
	var writers sync.WaitGroup
	stuck := 0
	writeMore := func(n int) {
		for range n {
			off, size := 8<<20+int64(stuck)*(128<<10), 4096
			if stuck%2 == 0 {
				size = 128 << 10
			}
			stuck++
			writers.Go(func() {
				if _, err := f.WriteAt(aligned(size, 0), off); err != nil {
					t.Error(err)
				}
			})
		}
	}
	readAll := func(with func(p []byte, off int64) error) error {
		p := aligned(64<<10, 0)
		for off := range int64(64) {
			if _, err := f.ReadAt(p, off*4096); err != nil {
				return err
			}
			if err := with(p, off*4096); err != nil {
				return err
			}
		}
		return nil
	}
	const some = 24
	writeMore(some)
	for range some {
		<-waiting
	}
	inTime(t, "reads, writes or flush beside some stuck writes", func() error {
		err := readAll(func(p []byte, off int64) error {
			_, err := f.WriteAt(p, off)
			return err
		})
		return errors.Join(err, f.Sync())
	})
	writeMore(200 - some) // more than the device takes
	for range loopWrites - some {
		<-waiting
	}
	inTime(t, "reads beside many stuck writes", func() error {
		return readAll(func([]byte, int64) error { return nil })
	})
	close(release)
	writers.Wait()
}

func inTime(t *testing.T, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		ok(t, err)
	case <-time.After(10 * time.Second):
		t.Errorf("%s: not in 10 s", what)
	}
}

func TestErrors(t *testing.T) {
	dev := newMem(1 << 20)
	dev.onWrite = func(off int64, n int) error {
		if off == 0 {
			return errors.New("broken")
		}
		if off == 4096 {
			return fmt.Errorf("append: %w", vfs.ErrNoSpace)
		}
		return nil
	}
	dev.onRead = func(off int64, n int) error {
		if off == 512<<10 {
			return unix.ENOSYS // must not reach the kernel as it is
		}
		return nil
	}
	var flushErr atomic.Value
	flushErr.Store(unix.Errno(0))
	dev.onFlush = func() error {
		if errno := flushErr.Load().(unix.Errno); errno != 0 {
			return errno
		}
		return nil
	}
	a, _ := attach(t, dev, Options{})
	f := openDirect(t, a.Path())
	defer f.Close()
	p := aligned(4096, 0)
	if _, err := f.WriteAt(p, 0); !errors.Is(err, unix.EIO) {
		t.Errorf("broken device: %v", err)
	}
	if _, err := f.WriteAt(p, 4096); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full disk: %v", err)
	}
	if _, err := f.ReadAt(p, 512<<10); !errors.Is(err, unix.EIO) {
		t.Errorf("broken read: %v", err)
	}
	flushErr.Store(unix.EOPNOTSUPP)
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Errorf("broken flush: %v", err)
	}
	flushErr.Store(unix.Errno(0))
	before := dev.flushes()
	ok(t, f.Sync())
	if dev.flushes() == before {
		t.Error("the kernel has stopped flushing")
	}
}

// TestNoSpaceForHoles: where the device has no space for a hole the kernel writes zeros.
func TestNoSpaceForHoles(t *testing.T) {
	dev := newMem(1 << 20)
	dev.onZero = func(int64, int64) error { return fmt.Errorf("hole: %w", vfs.ErrNoSpace) }
	a, _ := attach(t, dev, Options{})
	f := openDirect(t, a.Path())
	defer f.Close()
	p := aligned(64<<10, 0)
	for i := range p {
		p[i] = 7
	}
	for off := int64(0); off < dev.Size(); off += int64(len(p)) {
		_, err := f.WriteAt(p, off)
		ok(t, err)
	}
	for range 2 {
		ok(t, rangeIoctl(f, unix.BLKZEROOUT, 4096, 8192))
		if err := rangeIoctl(f, unix.BLKDISCARD, 32<<10, 4096); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("discard: %v", err)
		}
	}
	clear(p[4096 : 4096+8192])
	got := aligned(len(p), 0)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("zeroed range reads otherwise: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	dev := newMem(1 << 20)
	var writes atomic.Int64
	dev.onWrite = func(int64, int) error {
		writes.Add(1)
		return nil
	}
	a, h := attach(t, dev, Options{ReadOnly: true})
	f, err := openCloexec(a.Path(), unix.O_RDONLY)
	ok(t, err)
	defer f.Close()
	_, err = f.ReadAt(make([]byte, 4096), 0)
	ok(t, err)
	for _, flags := range []int{unix.O_RDWR | unix.O_DIRECT, unix.O_RDWR} {
		w, err := openCloexec(a.Path(), flags)
		if err == nil {
			_, err = w.WriteAt(aligned(4096, 0), 0)
			err = errors.Join(err, w.Sync())
			w.Close()
		}
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
			t.Errorf("write to a read-only device: %v", err)
		}
	}
	if n := writes.Load() + int64(dev.holes()); n != 0 {
		t.Errorf("%d writes reached a read-only device", n)
	}
	if b, err := h.LoopBacking(a.Path()); err != nil || !b.ReadOnly || !b.Is(a.name) {
		t.Errorf("backing %+v, %v", b, err)
	}
}

// TestReadOnlyResize: nothing but a new attachment makes a read-only device larger.
func TestReadOnlyResize(t *testing.T) {
	dev := newMem(1 << 20)
	a, h := attach(t, dev, Options{ReadOnly: true})
	ok(t, a.Resize(t.Context()))
	dev.grow(2 << 20)
	if err := a.Resize(t.Context()); !errors.Is(err, ErrReadOnly) {
		t.Errorf("resize: %v", err)
	}
	if size, err := h.DeviceSize(a.Path()); err != nil || size != 1<<20 {
		t.Errorf("%d bytes, %v", size, err)
	}
	ok(t, a.Detach(t.Context()))
	a, h = attach(t, dev, Options{ReadOnly: true})
	if size, err := h.DeviceSize(a.Path()); err != nil || size != 2<<20 {
		t.Errorf("attached anew: %d bytes, %v", size, err)
	}
}

// TestReadOnlyMount: a filesystem on a read-only device can be mounted for reading only.
func TestReadOnlyMount(t *testing.T) {
	needFilesystem(t, "ext4")
	dev, ctx := newMem(16<<20), t.Context()
	a, h := attach(t, dev, Options{})
	ok(t, h.Mkfs(ctx, a.Path(), "ext4", nil))
	ok(t, a.Detach(ctx))
	a, h = attach(t, dev, Options{ReadOnly: true})
	dir := t.TempDir()
	t.Cleanup(func() { _ = h.ForceUnmount(dir) })
	ok(t, h.Mount(ctx, a.Path(), dir, "ext4", []string{"ro"}))
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	ok(t, h.Unmount(dir))
}

func TestResizeRefused(t *testing.T) {
	dev := newMem(1 << 20)
	a, _ := attach(t, dev, Options{})
	if err := unix.Ftruncate(int(a.file.Fd()), 2<<20); err != unix.EINVAL {
		t.Errorf("ftruncate to a size the device has not: %v", err)
	}
	dev.grow(2 << 20)
	ok(t, a.Resize(t.Context()))
}

func TestConcurrentAttach(t *testing.T) {
	needKernel(t)
	h := NewHost()
	pool, err := NewBuffers(8 << 20)
	ok(t, err)
	defer pool.Close()
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			for range 3 {
				size := int64(i+1) << 20
				a, err := Attach(t.Context(), h, newMem(size), Options{Name: fmt.Sprintf("%s-%d", testName(t), i), Buffers: pool})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := runProgram(t.Context(), nil, time.Minute, "dd", "if=/dev/zero", "of="+a.Path(), "bs=64k", "count=16", "oflag=direct", "status=none"); err != nil {
					t.Error(err)
				}
				if err := a.Detach(t.Context()); err != nil {
					t.Error(err)
					_ = a.Abort()
				}
			}
		})
	}
	all.Wait()
	if n := pool.Taken(); n != 0 {
		t.Errorf("%d buffers still taken", n)
	}
}

func TestAbort(t *testing.T) {
	needKernel(t)
	dev := newMem(1 << 20)
	h := NewHost()
	a, err := Attach(t.Context(), h, dev, Options{Name: testName(t)})
	ok(t, err)
	f := openDirect(t, a.Path())
	ok(t, a.Abort())
	if _, err := f.ReadAt(aligned(4096, 0), 0); err == nil {
		t.Error("read of an aborted device succeeded")
	}
	f.Close()
	ok(t, a.Abort())
	ok(t, a.Detach(t.Context()))
}

// failing fails one call of a Host after it was made or instead of it.
type failing struct {
	Host
	attachLoop error
	size       int64
}

func (h failing) AttachLoop(f *os.File, o LoopOptions) (Loop, error) {
	if h.attachLoop != nil {
		return Loop{}, h.attachLoop
	}
	return h.Host.AttachLoop(f, o)
}

func (h failing) DeviceSize(device string) (int64, error) {
	n, err := h.Host.DeviceSize(device)
	return n + h.size, err
}

func TestAttachUndone(t *testing.T) {
	needKernel(t)
	boom := errors.New("boom")
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		h    Host
		o    Options
		size int64
		want error
	}{
		{t.Context(), failing{Host: NewHost(), attachLoop: boom}, Options{}, 1 << 20, boom},
		{t.Context(), failing{Host: NewHost(), size: 1}, Options{}, 1 << 20, nil},
		{ended, NewHost(), Options{}, 1 << 20, context.Canceled},
		{t.Context(), NewHost(), Options{SectorBytes: 1024}, 1 << 20, ErrInvalid},
		{t.Context(), NewHost(), Options{SectorBytes: 4096}, 1<<20 + 512, ErrInvalid},
		{t.Context(), NewHost(), Options{Name: "a/b"}, 1 << 20, ErrInvalid},
		{t.Context(), NewHost(), Options{Name: strings.Repeat("x", 201)}, 1 << 20, ErrInvalid},
	} {
		if c.o.Name == "" {
			c.o.Name = testName(t)
		}
		a, err := Attach(c.ctx, c.h, newMem(c.size), c.o)
		if err == nil || a != nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c.o, err)
		}
		if left := ourLoops(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

func TestLongName(t *testing.T) {
	a, h := attach(t, newMem(1<<20), Options{Name: testName(t) + strings.Repeat("x", 100)})
	b, err := h.LoopBacking(a.Path())
	ok(t, err)
	if len(b.Name) != 63 || !b.Is(a.name) || b.Is(a.name[:len(a.name)-1]) {
		t.Errorf("%+v", b)
	}
}
