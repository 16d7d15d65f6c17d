package attach

import (
	"context"
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
	Records
}

// Records is the part of a Store about attachments.
type Records interface {
	PutAttachment(a blockstore.Attachment) error
	RemoveAttachment(volumeID string) error
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

// Options are the choices of New. The zero value is usable.
type Options struct {
	Buffers *export.Buffers // shared by all devices; default: each has its own
	Logger  *slog.Logger

	// The machine as the package sees it beside its Host; tests replace it.
	LoopDevices func() ([]string, error) // default: those in /sys/block
	SyncFS      func(path string) error  // default: syncfs
}

// Attachments is every volume of a store that is a block device on this machine. All
// methods may be called concurrently.
type Attachments struct {
	store   Store
	host    export.Host
	buffers *export.Buffers
	log     *slog.Logger

	loopDevices func() ([]string, error)
	syncFS      func(path string) error

	// locks has one lock per volume ID. Taken before mu.
	locks keyedLock

	mu struct {
		sync.Mutex
		attached map[string]*attachment // by volume ID
		last     uint64                 // serial of the newest attachment
		closed   bool                   // Shutdown has begun
	}
}

// attachment is one attached volume. Fixed but for mounts, which belongs to the holder
// of the volume's lock; the slice is replaced, never changed, under Attachments.mu.
type attachment struct {
	volume Volume
	device *export.Attached
	serial uint64 // order of attaching
	mounts []string
}

// New makes an empty set. ClearDead has to run before the first Attach.
func New(store Store, host export.Host, o Options) *Attachments {
	a := &Attachments{
		store:       store,
		host:        host,
		buffers:     o.Buffers,
		log:         o.Logger,
		loopDevices: o.LoopDevices,
		syncFS:      o.SyncFS,
	}
	if a.loopDevices == nil {
		a.loopDevices = loopDevices
	}
	if a.syncFS == nil {
		a.syncFS = syncFS
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
	if at == nil {
		return "", false
	}
	return at.device.Path(), true
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
		list = append(list, blockstore.Attachment{Volume: id, Device: at.device.Path(), Mounts: at.mounts})
	}
	return list
}

func (a *Attachments) find(id string) *attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.attached[id]
}

// Lock takes the lock of a volume, which need not exist. ErrBusy if another operation
// on it is running, ErrClosed after Shutdown has begun. The caller has to Unlock.
func (a *Attachments) Lock(id string) (*Locked, error) {
	if !a.locks.try(id) {
		return nil, fmt.Errorf("another operation on volume %s is running: try again when it has ended: %w", id, blockstore.ErrBusy)
	}
	a.mu.Lock()
	closed := a.mu.closed
	a.mu.Unlock()
	if closed {
		a.locks.release(id)
		return nil, fmt.Errorf("the daemon is stopping: %w", blockstore.ErrClosed)
	}
	return &Locked{a: a, id: id}, nil
}

// AttachRaw attaches a volume for a caller who may write anything there: it counts as
// used from before its device appears (I11). Attached already: the same device.
func (a *Attachments) AttachRaw(ctx context.Context, id string) (device string, err error) {
	l, err := a.Lock(id)
	if err != nil {
		return "", err
	}
	defer l.Unlock()
	return l.AttachRaw(ctx)
}

// Attach attaches a volume, see Locked.Attach.
func (a *Attachments) Attach(ctx context.Context, id string) (device string, err error) {
	l, err := a.Lock(id)
	if err != nil {
		return "", err
	}
	defer l.Unlock()
	return l.Attach(ctx)
}

// Detach detaches a volume, see Locked.Detach.
func (a *Attachments) Detach(ctx context.Context, id string) error {
	l, err := a.Lock(id)
	if err != nil {
		return err
	}
	defer l.Unlock()
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
