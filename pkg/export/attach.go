package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxName     = 200 // bytes; with the prefix it must fit into a file name
	endPatience = 5 * time.Second
	keepOwn     = 4 << 20 // bytes of large buffers in a pool of one device
)

// Options are the choices of Attach. Only Name is needed.
type Options struct {
	Name          string // the volume's ID: at most 200 bytes, no slash, no control characters
	SectorBytes   int    // logical block size: 512 (default) or 4096
	ReadOnly      bool
	Readers       int      // goroutines that stay to read requests after a burst; default 2
	MaxBackground int      // reads and writes the kernel may have under way; default 256
	Buffers       *Buffers // shared between devices; default: a small pool of its own
	Logger        *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.SectorBytes == 0 {
		o.SectorBytes = 512
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate(size int64) error {
	control := func(r rune) bool { return r < ' ' || r == '/' || r == '\\' || r == 0x7f }
	switch {
	case o.Name == "" || len(o.Name) > maxName || strings.ContainsFunc(o.Name, control):
		return fmt.Errorf("attach: name %q: %w", o.Name, ErrInvalid)
	case o.SectorBytes != 512 && o.SectorBytes != 4096:
		return fmt.Errorf("attach %s: sectors of %d bytes: %w", o.Name, o.SectorBytes, ErrInvalid)
	case size <= 0 || size%int64(o.SectorBytes) != 0:
		return fmt.Errorf("attach %s: size of %d bytes: %w", o.Name, size, ErrInvalid)
	}
	return nil
}

// Attached is a Device that the kernel has as a block device. Its methods may be called
// concurrently; they wait for each other, and never for I/O of the device except where
// they say so.
type Attached struct {
	// Fixed after construction.
	host Host
	dev  Device
	name string
	ro   bool
	log  *slog.Logger
	conn FUSEConn
	fuse *FUSE
	file *os.File
	loop Loop
	own  *Buffers // pool of its own; nil if shared

	gone atomic.Bool // the loop device is taken away; its number may be another's

	served   chan struct{} // closed when Serve has ended
	serveErr error         // valid then

	mu struct {
		sync.Mutex // held over Resize, Detach
		cleared    bool
		closed     bool
	}
}

// Attach makes a block device of dev and serves it until Detach. When ctx ends before
// it is done, or anything fails, everything half made is undone.
func Attach(ctx context.Context, h Host, dev Device, o Options) (*Attached, error) {
	o = o.withDefaults()
	if err := o.validate(dev.Size()); err != nil {
		return nil, err
	}
	a := &Attached{host: h, dev: dev, name: o.Name, ro: o.ReadOnly, log: o.Logger, served: make(chan struct{})}
	if err := a.serve(ctx, o); err != nil {
		return nil, fmt.Errorf("attach %s: %w", o.Name, err)
	}
	if err := a.attachLoop(o); err != nil {
		err = fmt.Errorf("attach %s: %w", o.Name, err)
		return nil, errors.Join(err, a.closeFUSE())
	}
	if err := a.checkSize(dev.Size()); err != nil {
		return nil, errors.Join(fmt.Errorf("attach %s: %w", o.Name, err), a.Abort())
	}
	return a, nil
}

// serve makes the connection, starts the server and opens the file.
func (a *Attached) serve(ctx context.Context, o Options) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	buffers := o.Buffers
	if buffers == nil {
		var err error
		if buffers, err = NewBuffers(keepOwn); err != nil {
			return fmt.Errorf("request buffers: %w", err)
		}
		a.own = buffers
	}
	err := a.start(o, buffers)
	if err != nil {
		a.closeBuffers()
		return err
	}
	// Nothing in this answers but our own server; if that is too slow, the end of
	// the connection ends the wait.
	stop := context.AfterFunc(ctx, func() { a.abortConn() })
	a.file, err = a.conn.OpenDisk()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return errors.Join(err, a.closeFUSE())
	}
	return nil
}

func (a *Attached) start(o Options, buffers *Buffers) error {
	name := fileName(o.Name)
	conn, err := a.host.OpenFUSE(FUSEMount{Name: name, ReadOnly: o.ReadOnly})
	if err != nil {
		return err
	}
	a.conn = conn
	a.fuse, err = NewFUSE(conn.Dev(), a.dev, FUSEOptions{
		Name: name, ReadOnly: o.ReadOnly, Readers: o.Readers, MaxBackground: o.MaxBackground,
		Buffers: buffers, Logger: o.Logger,
	})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	go func() {
		defer close(a.served)
		if a.serveErr = a.fuse.Serve(); a.serveErr != nil {
			a.log.Error("block device server ended", "volume_id", a.name, "err", a.serveErr)
			a.abortConn()
		}
	}()
	return nil
}

func (a *Attached) attachLoop(o Options) error {
	loop, err := a.host.AttachLoop(a.file, LoopOptions{SectorBytes: o.SectorBytes, ReadOnly: o.ReadOnly, Name: o.Name})
	a.loop = loop
	return err
}

func (a *Attached) checkSize(want int64) error {
	got, err := a.host.DeviceSize(a.loop.Path)
	if err == nil && got != want {
		err = fmt.Errorf("%s has %d bytes, the volume %d", a.loop.Path, got, want)
	}
	return err
}

// Path is the block device, as /dev/loop3.
func (a *Attached) Path() string { return a.loop.Path }

// Gone tells that the block device has been taken away, though Detach has not ended: an
// error or the end of its time came between. Path may be the name of another device by
// then. Repeating Detach goes on.
func (a *Attached) Gone() bool { return a.gone.Load() }

// Number is the N of /dev/loopN.
func (a *Attached) Number() int { return a.loop.Number }

// Session is what the kernel and the server have agreed on.
func (a *Attached) Session() Session {
	s, _ := a.fuse.Session()
	return s
}

// Resize makes the block device as large as the Device is now. It may be repeated. A
// device that is attached read-only keeps its size until it is attached anew:
// ErrReadOnly if that is not the Device's.
func (a *Attached) Resize(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.resize(ctx); err != nil {
		return fmt.Errorf("resize %s: %w", a.name, err)
	}
	return nil
}

func (a *Attached) resize(ctx context.Context) error {
	if a.mu.cleared {
		return ErrNotAttached
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	size := a.dev.Size()
	if a.ro { // its file is open for reading: the kernel refuses to truncate it
		if err := a.checkSize(size); err != nil {
			return fmt.Errorf("%w: %w", ErrReadOnly, err)
		}
		return nil
	}
	if err := a.conn.Truncate(a.file, size); err != nil {
		return err
	}
	if err := a.host.GrowLoop(a.loop.Path); err != nil {
		return err
	}
	return a.checkSize(size)
}

// Detach flushes and takes the block device away. It returns ErrInUse, naming mount
// points or holders, and changes nothing while the device is mounted or open; it waits
// for the flush as long as ctx allows. When it returns nil nothing calls the Device any
// more. Repeating it is allowed: after an error it goes on where it was, after success
// it does nothing.
func (a *Attached) Detach(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.detach(ctx); err != nil {
		return fmt.Errorf("detach %s: %w", a.name, err)
	}
	return nil
}

func (a *Attached) detach(ctx context.Context) error {
	if a.mu.closed {
		return nil
	}
	if !a.mu.cleared {
		if err := a.clearLoop(ctx); err != nil {
			return err
		}
		a.mu.cleared = true
		a.gone.Store(true)
	}
	// What the last close wrote back has been written, not flushed.
	if err := within(ctx, a.dev.Flush); err != nil {
		return err
	}
	a.mu.closed = true
	return a.closeFUSE()
}

// clearLoop flushes and detaches the loop device, if it is still there and ours.
func (a *Attached) clearLoop(ctx context.Context) error {
	b, err := a.host.LoopBacking(a.loop.Path)
	if errors.Is(err, ErrNotAttached) || err == nil && !b.Is(a.name) {
		return nil
	}
	if err != nil {
		return err
	}
	by, err := mountedAt(a.host, a.loop.Path, b)
	if err != nil {
		return err
	}
	if len(by) > 0 {
		return inUse(a.loop.Path, by)
	}
	if err := within(ctx, func() error { return a.host.FlushDevice(a.loop.Path) }); err != nil {
		return err
	}
	return a.host.DetachLoop(ctx, a.loop.Path, false)
}

// Abort ends the device at once, for tests and for giving up: its users see I/O errors,
// and it goes with its last opener. It waits for calls of the Device that are under way.
func (a *Attached) Abort() error {
	a.abortConn()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.closed {
		return nil
	}
	var err error
	if !a.mu.cleared {
		err = detachIfOurs(context.Background(), a.host, a.loop.Path, a.name)
		a.mu.cleared = true
		a.gone.Store(true)
	}
	a.mu.closed = true
	return errors.Join(err, a.closeFUSE())
}

func (a *Attached) abortConn() {
	if err := a.conn.Abort(); err != nil {
		a.log.Error("abort of a block device failed", "volume_id", a.name, "err", err)
	}
}

// closeFUSE closes the file, which ends the connection when no loop device has it, and
// waits for the server.
func (a *Attached) closeFUSE() error {
	var err error
	if a.file != nil {
		err = a.file.Close()
	} else {
		a.abortConn()
	}
	select {
	case <-a.served:
	case <-time.After(endPatience): // somebody else has the file open
		a.abortConn()
		<-a.served
	}
	err = errors.Join(err, a.conn.Close(), a.serveErr)
	a.closeBuffers()
	return err
}

func (a *Attached) closeBuffers() {
	if a.own != nil {
		a.own.Close()
	}
}

// within runs f and waits for it as long as ctx allows. f may outlive the call.
func within(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mountedAt lists where a device is mounted, as a filesystem or as a device node.
func mountedAt(h Host, device string, b Backing) ([]string, error) {
	mounts, err := h.Mounts()
	if err != nil {
		return nil, err
	}
	var by []string
	for _, m := range mounts {
		if m.uses(device, b) {
			by = append(by, "mounted at "+m.Target)
		}
	}
	return by, nil
}

// uses tells whether the mount is the filesystem on the device or the device's node.
func (m Mount) uses(device string, b Backing) bool {
	return m.IsNodeOf(device) || m.Device == device || m.Major == b.Major && m.Minor == b.Minor
}
