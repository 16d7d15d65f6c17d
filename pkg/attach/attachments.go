package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// Store is what this package needs of an engine; Engine makes one of a
// *blockstore.Store. All methods may be called concurrently, and what they change is
// durable when they return.
type Store interface {
	Volume(idOrName string) (blockstore.VolumeInfo, error)
	ResizeVolume(id string, size int64) (blockstore.VolumeInfo, error)
	DeleteVolume(id string) error
	SetVolumeState(id string, state blockstore.VolumeState, fsType string) error
	// OpenVolume opens a volume for reading and writing; ErrInUse when it is open.
	OpenVolume(ctx context.Context, id string) (Volume, error)
	// OpenScratch opens a volume under a layer that takes all writes and is thrown
	// away; ErrInUse when it is open.
	OpenScratch(ctx context.Context, id string) (Volume, error)
	Records
}

// Records is the part of a Store about attachments.
type Records interface {
	PutAttachment(a blockstore.Attachment) error
	RemoveAttachment(volumeID string) error
	Attachment(volumeID string) (blockstore.Attachment, bool)
	Attachments() []blockstore.Attachment
}

// Volume is an open volume. Close syncs its journal.
type Volume interface {
	export.Device
	SectorBytes() int
	Close() error
}

// Engine makes a Store of an engine.
func Engine(s *blockstore.Store) Store { return engine{s} }

type engine struct{ *blockstore.Store }

func (e engine) OpenVolume(ctx context.Context, id string) (Volume, error) {
	v, err := e.Store.OpenVolume(ctx, id)
	if err != nil {
		return nil, err // not a nil *Volume in an interface
	}
	return v, nil
}

func (e engine) OpenScratch(ctx context.Context, id string) (Volume, error) {
	v, err := e.Store.OpenScratch(ctx, id)
	if err != nil {
		return nil, err
	}
	return v, nil
}

// ErrLimit is one attached volume too many.
var ErrLimit = errors.New("as many volumes as can be are attached")

// Mode says what the block device of a volume does with writes.
type Mode int

const (
	ReadWrite Mode = iota
	// Scratch keeps writes beside the volume until it is detached, then throws them
	// away: a filesystem mounted read-only writes too, when it replays its log.
	Scratch
	// ReadOnly makes a device that refuses writes.
	ReadOnly
)

func (m Mode) String() string {
	return [...]string{"read-write", "read-only under a throw-away layer", "read-only"}[m]
}

// Options are the choices of New. The zero value is usable.
type Options struct {
	// Limit is how many volumes can be attached at a time; default: any number.
	Limit   int
	Buffers *export.Buffers // shared by all devices; default: each has its own
	Logger  *slog.Logger
	// Warned hears of dangerous settings of the machine that an attach has found, when
	// they change. It must not block. Default: nobody does.
	Warned func(warning string)

	// The machine as the package sees it beside its Host; tests replace it.
	LoopDevices func() ([]string, error) // default: those in /sys/block
}

// Attachments is every volume of a store that is a block device on this machine. All
// methods may be called concurrently.
type Attachments struct {
	store   Store
	host    export.Host
	buffers *export.Buffers
	log     *slog.Logger
	limit   int // 0: none
	warned  func(string)

	loopDevices func() ([]string, error)

	// locks has one lock per volume ID. Taken before mu.
	locks KeyedLock
	// writingBack has the volumes whose filesystems are written back before an unmount.
	writingBack KeyedLock

	mu struct {
		sync.Mutex
		attached map[string]*attachment // by volume ID
		places   int                    // attached or being attached
		last     uint64                 // serial of the newest attachment
		closed   bool                   // Shutdown has begun
		warning  string                 // of the last attach, see checkTimeout
	}
}

// attachment is one attached volume. Fixed but for uses, which belongs to the holder
// of the volume's lock; the slice is replaced, never changed, under Attachments.mu.
type attachment struct {
	volume Volume
	mode   Mode
	device *export.Attached
	serial uint64 // order of attaching
	uses   []blockstore.Use
}

// record is what the catalog is told.
func (at *attachment) record(id string) blockstore.Attachment {
	r := blockstore.Attachment{Volume: id, Uses: at.uses, ReadOnly: at.mode == ReadOnly, Scratch: at.mode == Scratch}
	r.Device = at.path()
	return r
}

// path is the block device; "" before it is there and when it is gone.
func (at *attachment) path() string {
	if at.device == nil || at.device.Gone() {
		return ""
	}
	return at.device.Path()
}

// New makes an empty set. ClearDead has to run before the first Attach.
func New(store Store, host export.Host, o Options) *Attachments {
	a := &Attachments{
		store:       store,
		host:        host,
		buffers:     o.Buffers,
		log:         o.Logger,
		limit:       o.Limit,
		warned:      o.Warned,
		loopDevices: o.LoopDevices,
	}
	if a.loopDevices == nil {
		a.loopDevices = loopDevices
	}
	if a.warned == nil {
		a.warned = func(string) {}
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.mu.attached = make(map[string]*attachment)
	return a
}

// Device tells where a volume is attached. It takes no volume's lock.
func (a *Attachments) Device(id string) (device string, ok bool) {
	at := a.find(id)
	if at == nil || at.path() == "" {
		return "", false
	}
	return at.path(), true
}

// List tells what is attached, in the order of attaching.
func (a *Attachments) List() []blockstore.Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids := make([]string, 0, len(a.mu.attached))
	for id := range a.mu.attached {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y string) int {
		return int(int64(a.mu.attached[x].serial - a.mu.attached[y].serial))
	})
	list := make([]blockstore.Attachment, 0, len(ids))
	for _, id := range ids {
		at := a.mu.attached[id]
		list = append(list, at.record(id))
	}
	return list
}

// takePlace counts one more attached volume; ErrLimit if there may be no more.
func (a *Attachments) takePlace() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.closed {
		return fmt.Errorf("the daemon is stopping: %w", blockstore.ErrClosed)
	}
	if a.limit > 0 && a.mu.places >= a.limit {
		return fmt.Errorf("%w: %d", ErrLimit, a.limit)
	}
	a.mu.places++
	return nil
}

func (a *Attachments) leavePlace() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.places--
}

func (a *Attachments) find(id string) *attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.attached[id]
}

// Lock takes the lock of a volume, which need not exist. ErrBusy if another operation
// on it is running, with why if the volume waits for disk space, ErrClosed after Shutdown
// has begun. The caller has to Unlock.
func (a *Attachments) Lock(id string) (*Locked, error) {
	if !a.locks.Try(id) {
		err := fmt.Errorf("another operation on volume %s is running: try again when it has ended: %w", id, blockstore.ErrBusy)
		if why := a.waits(id); why != nil {
			err = fmt.Errorf("%w: %w", err, why)
		}
		return nil, err
	}
	a.mu.Lock()
	closed := a.mu.closed
	a.mu.Unlock()
	if closed {
		a.locks.Release(id)
		return nil, fmt.Errorf("the daemon is stopping: %w", blockstore.ErrClosed)
	}
	return a.newLocked(id), nil
}

// byCommand is the use of a volume that somebody attached by a command. It has no path,
// and lasts until the command that ends it.
var byCommand = blockstore.Use{Purpose: "attached by a command"}

// AttachRaw attaches a volume for somebody who asks for the device by a command and may
// write anything there: it counts as used from before its device appears (I11).
// Attached already: the same device.
func (a *Attachments) AttachRaw(ctx context.Context, id string) (device string, err error) {
	l, err := a.Lock(id)
	if err != nil {
		return "", err
	}
	defer l.Unlock()
	_, attached := l.Device()
	if device, err = l.AttachRaw(ctx); err != nil {
		return "", err
	}
	if err = l.AddUse(byCommand); err != nil && !attached {
		err = errors.Join(err, l.Detach(context.WithoutCancel(ctx)))
	}
	return device, err
}

// Attach attaches a volume, see Locked.Attach.
func (a *Attachments) Attach(ctx context.Context, id string, mode Mode) (device string, err error) {
	l, err := a.Lock(id)
	if err != nil {
		return "", err
	}
	defer l.Unlock()
	return l.Attach(ctx, mode)
}

// Detach ends what AttachRaw began. ErrInUse while the volume is staged or published
// somewhere: who did that ends it.
func (a *Attachments) Detach(ctx context.Context, id string) error {
	l, err := a.Lock(id)
	if err != nil {
		return err
	}
	defer l.Unlock()
	for _, use := range l.Uses() {
		if use.Path != "" {
			return fmt.Errorf("volume %s is in use at %s (%s), which has to end first: %w", id, use.Path, use.Purpose, blockstore.ErrInUse)
		}
	}
	return l.Detach(ctx)
}

// Resize grows a volume, see Locked.Resize.
func (a *Attachments) Resize(ctx context.Context, id string, size int64) (blockstore.VolumeInfo, error) {
	l, err := a.Lock(id)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	defer l.Unlock()
	return l.Resize(ctx, size)
}

// Delete deletes a volume, see Locked.Delete.
func (a *Attachments) Delete(ctx context.Context, id string) error {
	l, err := a.Lock(id)
	if err != nil {
		return err
	}
	defer l.Unlock()
	return l.Delete(ctx)
}
