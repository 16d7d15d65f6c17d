// Package exporttest has a Host without kernel devices, privileges and mounts, for tests
// of packages that attach volumes. Its FUSE connections are packet sockets whose other
// end plays the kernel, so that the real server and the real Device are at work; loop
// devices, filesystems and mounts are entries in tables. A "filesystem" is a label in
// the first block of the device, written through the server: it is in snapshots and
// clones, and is lost with the data.
package exporttest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8ns/granary/pkg/export"
)

const labelBytes = 4096

// Host is a fake export.Host. All methods may be called concurrently.
type Host struct {
	mu struct {
		sync.Mutex
		calls  []string
		fail   map[string]error
		files  map[*os.File]*conn
		loops  map[string]*loop
		conns  []*conn // all that there were
		mounts []export.Mount
		limit  time.Duration
	}
}

type loop struct {
	conn *conn
	o    export.LoopOptions
	n    int
	size int64 // as of AttachLoop or GrowLoop
}

var _ export.Host = (*Host)(nil)

// NewHost returns a fake with nothing attached.
func NewHost() *Host {
	h := &Host{}
	h.mu.fail = make(map[string]error)
	h.mu.files = make(map[*os.File]*conn)
	h.mu.loops = make(map[string]*loop)
	return h
}

// Fail makes every call of the named method (as "Mkfs") return err; nil ends it.
func (h *Host) Fail(method string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.fail[method] = err
}

// SetRequestTimeout says what RequestTimeout answers.
func (h *Host) SetRequestTimeout(limit time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.limit = limit
}

// RequestTimeout implements export.Devices.
func (h *Host) RequestTimeout() (time.Duration, error) {
	if err := h.begin("RequestTimeout"); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.limit, nil
}

// Calls lists what was called, as "Mkfs /dev/loop0 ext4".
func (h *Host) Calls() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.mu.calls)
}

// Attached lists the attached devices, sorted.
func (h *Host) Attached() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]string, 0, len(h.mu.loops))
	for path := range h.mu.loops {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

// Kill ends the server of a device as the death of its process would: the device stays
// and answers with errors.
func (h *Host) Kill(device string) error {
	h.mu.Lock()
	l := h.mu.loops[device]
	h.mu.Unlock()
	if l == nil {
		return notAttached(device)
	}
	return l.conn.Abort()
}

// Bury is Kill for a process that nobody asks for anything any more: what it had open of
// the device is closed too, as the kernel closes a dead process's files.
func (h *Host) Bury(device string) error {
	err := h.Kill(device)
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.mu.loops[device]
	for file, c := range h.mu.files {
		if l != nil && c == l.conn {
			_ = file.Close() // it may be closed already: a device is buried once for each life
		}
	}
	return err
}

// End is the end of the machine, and so of every process that used it: it closes what
// the dead ones had open. Only one host may be in use meanwhile.
func (h *Host) End() {
	h.mu.Lock()
	conns, files := slices.Clone(h.mu.conns), slices.Collect(maps.Keys(h.mu.files))
	h.mu.Unlock()
	if len(conns) == 0 {
		return
	}
	for _, c := range conns {
		_ = c.Abort() // who has detached in order has closed it
	}
	for _, file := range files {
		_ = file.Close()
	}
	awaitServers()
	for _, c := range conns {
		_ = c.Close()
	}
}

// awaitServers waits until no server reads any more: one does so by the number of its
// descriptor, which must not be another file's by then.
func awaitServers() {
	buf := make([]byte, 1<<20)
	for range 2000 {
		stacks := string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(stacks, "/export.(*FUSE).") {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// ReadAt reads from an attached device through its server, at most 64 KiB.
func (h *Host) ReadAt(device string, p []byte, off int64) error {
	l, err := h.loop(device)
	if err != nil {
		return err
	}
	return l.conn.readAt(p, off)
}

// WriteAt writes to an attached device through its server, at most 64 KiB.
func (h *Host) WriteAt(device string, p []byte, off int64) error {
	l, err := h.loop(device)
	if err != nil {
		return err
	}
	return l.conn.writeAt(p, off)
}

// begin records a call and returns the error it is to fail with.
func (h *Host) begin(method string, args ...string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.calls = append(h.mu.calls, strings.Join(append([]string{method}, args...), " "))
	return h.mu.fail[method]
}

func notAttached(device string) error {
	return fmt.Errorf("%s: %w", device, export.ErrNotAttached)
}

func (h *Host) loop(device string) (*loop, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.mu.loops[device]
	if l == nil {
		return nil, notAttached(device)
	}
	return l, nil
}

// OpenFUSE implements export.Devices.
func (h *Host) OpenFUSE(o export.FUSEMount) (export.FUSEConn, error) {
	if err := h.begin("OpenFUSE", o.Name); err != nil {
		return nil, err
	}
	c, err := newConn(h, o)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.conns = append(h.mu.conns, c)
	return c, nil
}

// AttachLoop implements export.Devices.
func (h *Host) AttachLoop(file *os.File, o export.LoopOptions) (export.Loop, error) {
	if err := h.begin("AttachLoop", o.Name); err != nil {
		return export.Loop{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.mu.files[file]
	if c == nil {
		return export.Loop{}, fmt.Errorf("file %s is of no connection: %w", file.Name(), export.ErrInvalid)
	}
	n := 0
	for h.mu.loops[fmt.Sprintf("/dev/loop%d", n)] != nil {
		n++
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	c.loopOn()
	h.mu.loops[path] = &loop{conn: c, o: o, n: n, size: c.diskSize()}
	return export.Loop{Path: path, Number: n}, nil
}

// GrowLoop implements export.Devices.
func (h *Host) GrowLoop(device string) error {
	if err := h.begin("GrowLoop", device); err != nil {
		return err
	}
	l, err := h.loop(device)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	l.size = l.conn.diskSize()
	return nil
}

// DetachLoop implements export.Devices.
func (h *Host) DetachLoop(_ context.Context, device string, lazy bool) error {
	if err := h.begin("DetachLoop", device); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.mu.loops[device]
	if l == nil {
		return notAttached(device)
	}
	used := slices.ContainsFunc(h.mu.mounts, func(m export.Mount) bool {
		return m.Device == device && m.FSType != "devtmpfs"
	})
	if used && !lazy {
		return fmt.Errorf("%s: %w", device, export.ErrInUse)
	}
	delete(h.mu.loops, device)
	l.conn.loopGone()
	return nil
}

// LoopBacking implements export.Devices.
func (h *Host) LoopBacking(device string) (export.Backing, error) {
	if err := h.begin("LoopBacking", device); err != nil {
		return export.Backing{}, err
	}
	l, err := h.loop(device)
	if err != nil {
		return export.Backing{}, err
	}
	return export.Backing{
		File: "/" + l.conn.name, Name: l.o.Name[:min(len(l.o.Name), 63)], Inode: 2,
		Major: 7, Minor: uint32(l.n), ReadOnly: l.o.ReadOnly,
	}, nil
}

// DeviceSize implements export.Devices.
func (h *Host) DeviceSize(device string) (int64, error) {
	if err := h.begin("DeviceSize", device); err != nil {
		return 0, err
	}
	l, err := h.loop(device)
	if err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return l.size, nil
}

// FlushDevice implements export.Devices.
func (h *Host) FlushDevice(device string) error {
	if err := h.begin("FlushDevice", device); err != nil {
		return err
	}
	l, err := h.loop(device)
	if err != nil {
		return err
	}
	return l.conn.fsync()
}

// Mkfs implements export.Filesystems.
func (h *Host) Mkfs(ctx context.Context, device, fsType string, options []string) error {
	if err := h.begin("Mkfs", append([]string{device, fsType}, options...)...); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !slices.Contains([]string{"ext4", "xfs", "btrfs"}, fsType) {
		return fmt.Errorf("filesystem type %q: %w", fsType, export.ErrInvalid)
	}
	l, err := h.loop(device)
	if err != nil {
		return err
	}
	label := make([]byte, labelBytes)
	copy(label, "granary fake "+fsType)
	return l.conn.writeAt(label, 0)
}

// Formatted tells which filesystem is on a device; empty if none.
func (h *Host) Formatted(device string) (string, error) {
	l, err := h.loop(device)
	if err != nil {
		return "", err
	}
	label := make([]byte, labelBytes)
	if err := l.conn.readAt(label, 0); err != nil {
		return "", err
	}
	fsType, ok := bytes.CutPrefix(bytes.TrimRight(label, "\x00"), []byte("granary fake "))
	if !ok {
		return "", nil
	}
	return string(fsType), nil
}

// Fsck implements export.Filesystems.
func (h *Host) Fsck(ctx context.Context, device, fsType string) error {
	if err := h.begin("Fsck", device, fsType); err != nil {
		return err
	}
	return h.checkLabel(device, fsType)
}

func (h *Host) checkLabel(device, fsType string) error {
	got, err := h.Formatted(device)
	if err == nil && got != fsType {
		err = fmt.Errorf("%s has the filesystem %q, not %q", device, got, fsType)
	}
	return err
}

// ProbeFS implements export.Filesystems: it answers from the label.
func (h *Host) ProbeFS(ctx context.Context, device string) (string, error) {
	if err := h.begin("ProbeFS", device); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	return h.Formatted(device)
}

// PrepareCopy implements export.Filesystems: of a btrfs it looks at the label, and it
// changes nothing.
func (h *Host) PrepareCopy(ctx context.Context, device, fsType string, uuid [16]byte) error {
	if err := h.begin("PrepareCopy", device, fsType, fmt.Sprintf("%x", uuid)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	switch fsType {
	case "ext4", "xfs":
		return nil
	}
	return h.checkLabel(device, fsType)
}

// Mount implements export.Filesystems. The target must be a directory.
func (h *Host) Mount(ctx context.Context, source, target, fsType string, flags []string) error {
	if err := h.begin("Mount", append([]string{source, target, fsType}, flags...)...); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if st, err := os.Stat(target); err != nil || !st.IsDir() {
		return fmt.Errorf("mount %s: target %s is no directory: %w", source, target, err)
	}
	if err := h.checkLabel(source, fsType); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	l, err := h.loop(source)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.mounts = append(h.mu.mounts, export.Mount{
		Device: source, Target: target, FSType: fsType, Root: "/",
		Options: slices.Clone(flags), Major: 7, Minor: uint32(l.n),
	})
	return nil
}

// BindMount implements export.Filesystems: of a mount, of a directory in one, or of an
// attached device's node. The target must exist.
func (h *Host) BindMount(ctx context.Context, source, target string, flags []string) error {
	if err := h.begin("BindMount", append([]string{source, target}, flags...)...); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := os.Stat(target); err != nil {
		return fmt.Errorf("bind mount %s: %w", source, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.mu.loops[source]; l != nil {
		h.mu.mounts = append(h.mu.mounts, export.Mount{
			Device: source, Target: target, FSType: "devtmpfs", Root: strings.TrimPrefix(source, "/dev"),
			Options: slices.Clone(flags), Minor: 5,
		})
		return nil
	}
	for _, m := range slices.Backward(h.mu.mounts) {
		rest, under := strings.CutPrefix(source, m.Target)
		if under && (rest == "" || rest[0] == '/') {
			m.Root, m.Target, m.Options = "/"+strings.TrimPrefix(rest, "/"), target, slices.Clone(flags)
			h.mu.mounts = append(h.mu.mounts, m)
			return nil
		}
	}
	return fmt.Errorf("bind mount %s: nothing is mounted there", source)
}

// Unmount implements export.Filesystems.
func (h *Host) Unmount(target string) error {
	if err := h.begin("Unmount", target); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, m := range slices.Backward(h.mu.mounts) {
		if m.Target == target {
			h.mu.mounts = slices.Delete(h.mu.mounts, i, i+1)
			break
		}
	}
	return nil
}

// ForceUnmount implements export.Filesystems.
func (h *Host) ForceUnmount(target string) error {
	if err := h.begin("ForceUnmount", target); err != nil {
		return err
	}
	return h.Unmount(target)
}

// Mounts implements export.Filesystems.
func (h *Host) Mounts() ([]export.Mount, error) {
	if err := h.begin("Mounts"); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.mu.mounts), nil
}

// GrowUnmounted implements export.Filesystems: there is nothing to grow.
func (h *Host) GrowUnmounted(_ context.Context, device, fsType string) error {
	return h.begin("GrowUnmounted", device, fsType)
}

// GrowFS implements export.Filesystems.
func (h *Host) GrowFS(device, mountPoint string) error {
	if err := h.begin("GrowFS", device, mountPoint); err != nil {
		return err
	}
	if m, err := export.IsMounted(h, mountPoint); err != nil || m == nil || m.Device != device {
		return fmt.Errorf("grow %s: not mounted at %s: %w", device, mountPoint, err)
	}
	return nil
}

// SyncFS implements export.Filesystems: there is nothing to write back.
func (h *Host) SyncFS(path string) error { return h.begin("SyncFS", path) }

// Statfs implements export.Filesystems: the whole device is free.
func (h *Host) Statfs(path string) (export.FSStats, error) {
	if err := h.begin("Statfs", path); err != nil {
		return export.FSStats{}, err
	}
	m, err := export.IsMounted(h, path)
	if err != nil {
		return export.FSStats{}, err
	}
	if m == nil {
		return export.FSStats{}, &os.PathError{Op: "statfs", Path: path, Err: os.ErrNotExist}
	}
	l, err := h.loop(m.Device)
	if err != nil {
		return export.FSStats{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return export.FSStats{
		TotalBytes: l.size, FreeBytes: l.size, AvailableBytes: l.size,
		TotalInodes: 1 << 16, FreeInodes: 1<<16 - 1,
	}, nil
}
