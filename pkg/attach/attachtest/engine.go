package attachtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// StoreID is every Engine's ID.
const StoreID = "00112233445566778899aabbccddeeff"

// Engine is a store in memory: what packages attach, admin and driver need of a
// *blockstore.Store, with its rules about names, sizes and states. Safe for concurrent
// use.
type Engine struct {
	trace *Trace

	mu struct {
		sync.Mutex
		volumes      map[string]*volume
		snapshots    map[string]*snapshot
		attachments  map[string]blockstore.Attachment
		publications map[string]blockstore.Publication
		fail         map[string]error
		serial       int
		problems     []blockstore.Problem
		onCheck      func(context.Context) error
		disk         func(*blockstore.Stats)
	}
}

type volume struct {
	info blockstore.VolumeInfo
	data map[int64][]byte // by block number
}

type snapshot struct {
	info  blockstore.SnapshotInfo
	image volume
}

// NewEngine returns an empty store.
func NewEngine(t *Trace) *Engine {
	e := &Engine{trace: t}
	e.mu.volumes = make(map[string]*volume)
	e.mu.snapshots = make(map[string]*snapshot)
	e.mu.attachments = make(map[string]blockstore.Attachment)
	e.mu.publications = make(map[string]blockstore.Publication)
	e.mu.fail = make(map[string]error)
	return e
}

// Fail makes every call of the named method return err; nil ends it.
func (e *Engine) Fail(method string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.fail[method] = err
}

// Reopen closes every volume, as the death of the process does.
func (e *Engine) Reopen() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range e.mu.volumes {
		v.info.Open = false
	}
}

// SetProblems sets what Check finds.
func (e *Engine) SetProblems(p ...blockstore.Problem) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.problems = p
}

// OnCheck makes Check do f.
func (e *Engine) OnCheck(f func(context.Context) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.onCheck = f
}

// SetFailed makes a volume fail closed.
func (e *Engine) SetFailed(id, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.volumes[id].info.Failed = why
}

// SetDisk makes Stats tell of the disk what disk says.
func (e *Engine) SetDisk(disk func(*blockstore.Stats)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.disk = disk
}

// SetWaiting says since when a volume's writes wait for disk space; nil: they do not.
func (e *Engine) SetWaiting(id string, since *time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.volumes[id].info.WaitingSince = since
}

// enter begins a method; the caller unlocks mu if it returns nil.
func (e *Engine) enter(method string) error {
	e.mu.Lock()
	if err := e.mu.fail[method]; err != nil {
		e.mu.Unlock()
		return err
	}
	return nil
}

func (e *Engine) newID(kind string) string {
	e.mu.serial++
	return fmt.Sprintf("%s-%032x", kind, e.mu.serial)
}

// ID implements driver.Store.
func (e *Engine) ID() string { return StoreID }

// CreateVolume implements driver.Store and admin.Store.
func (e *Engine) CreateVolume(spec blockstore.VolumeSpec) (blockstore.VolumeInfo, error) {
	if err := e.enter("CreateVolume"); err != nil {
		return blockstore.VolumeInfo{}, err
	}
	defer e.mu.Unlock()
	if strings.Contains(spec.Name, "/") || spec.Name == "" {
		return blockstore.VolumeInfo{}, fmt.Errorf("name %q: %w", spec.Name, blockstore.ErrInvalid)
	}
	if v := e.volume(spec.Name); v != nil {
		return blockstore.VolumeInfo{}, fmt.Errorf("volume %q is %s: %w", spec.Name, v.info.ID, blockstore.ErrExists)
	}
	source, err := e.source(spec)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	v := &volume{info: source.info, data: maps.Clone(source.data)}
	size := max(spec.SizeBytes, 0)
	if size == 0 {
		size = source.info.SizeBytes
	}
	if size < max(source.info.SizeBytes, 1) {
		return blockstore.VolumeInfo{}, fmt.Errorf("size of %d bytes: %w", size, blockstore.ErrRange)
	}
	v.info.ID, v.info.Name, v.info.Labels = e.newID("v"), spec.Name, spec.Labels
	v.info.SizeBytes = (size + blockstore.SizeStep - 1) / blockstore.SizeStep * blockstore.SizeStep
	v.info.Source = spec.FromSnapshot + spec.FromVolume
	v.info.Open, v.info.Device, v.info.Created = false, "", time.Unix(1700000000, 0)
	if v.data == nil {
		v.data = make(map[int64][]byte)
	}
	if spec.SectorBytes != 0 {
		v.info.SectorBytes = spec.SectorBytes
	}
	if spec.Compression != "" {
		v.info.Compression = spec.Compression
	}
	e.mu.volumes[v.info.ID] = v
	return v.info, nil
}

func (e *Engine) source(spec blockstore.VolumeSpec) (volume, error) {
	switch {
	case spec.FromSnapshot != "":
		s := e.mu.snapshots[spec.FromSnapshot]
		if s == nil {
			return volume{}, fmt.Errorf("snapshot %s: %w", spec.FromSnapshot, blockstore.ErrNotFound)
		}
		return s.image, nil
	case spec.FromVolume != "":
		v := e.mu.volumes[spec.FromVolume]
		if v == nil {
			return volume{}, fmt.Errorf("volume %s: %w", spec.FromVolume, blockstore.ErrNotFound)
		}
		return *v, nil
	}
	return volume{info: blockstore.VolumeInfo{
		SectorBytes: 512, Compression: "zstd", OnFull: "wait", State: blockstore.StateEmpty,
	}}, nil
}

// volume finds a volume by ID or name; nil if there is none.
func (e *Engine) volume(idOrName string) *volume {
	if v := e.mu.volumes[idOrName]; v != nil {
		return v
	}
	for _, v := range e.mu.volumes {
		if v.info.Name == idOrName {
			return v
		}
	}
	return nil
}

// find is volume with ErrNotFound.
func (e *Engine) find(idOrName string) (*volume, error) {
	v := e.volume(idOrName)
	if v == nil {
		return nil, fmt.Errorf("volume %s: %w", idOrName, blockstore.ErrNotFound)
	}
	return v, nil
}

// Volume implements attach.Store.
func (e *Engine) Volume(idOrName string) (blockstore.VolumeInfo, error) {
	if err := e.enter("Volume"); err != nil {
		return blockstore.VolumeInfo{}, err
	}
	defer e.mu.Unlock()
	v, err := e.find(idOrName)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	return e.describe(v), nil
}

func (e *Engine) describe(v *volume) blockstore.VolumeInfo {
	info := v.info
	info.Device = e.mu.attachments[info.ID].Device
	info.MappedBytes = int64(len(v.data)) * blockstore.BlockSize
	if p, ok := e.mu.publications[info.ID]; ok {
		info.Publication = &p
	}
	return info
}

// Volumes lists all volumes by name.
func (e *Engine) Volumes() []blockstore.VolumeInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	var infos []blockstore.VolumeInfo
	for _, v := range e.mu.volumes {
		infos = append(infos, e.describe(v))
	}
	slices.SortFunc(infos, func(a, b blockstore.VolumeInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos
}

// VolumePage implements driver.Store and admin.Store.
func (e *Engine) VolumePage(after string, limit int) []blockstore.VolumeInfo {
	return page(e.Volumes(), func(v blockstore.VolumeInfo) string { return v.ID }, after, limit)
}

// page is what comes after an ID of a list, in the order of IDs.
func page[T any](all []T, id func(T) string, after string, limit int) []T {
	all = slices.DeleteFunc(all, func(t T) bool { return id(t) <= after })
	slices.SortFunc(all, func(a, b T) int { return strings.Compare(id(a), id(b)) })
	if limit > 0 {
		all = all[:min(limit, len(all))]
	}
	return all
}

// DeleteVolume implements attach.Store.
func (e *Engine) DeleteVolume(id string) error {
	if err := e.enter("DeleteVolume"); err != nil {
		return err
	}
	defer e.mu.Unlock()
	v, err := e.find(id)
	if err != nil {
		return err
	}
	if v.info.Open {
		return fmt.Errorf("volume %s: %w", id, blockstore.ErrInUse)
	}
	delete(e.mu.volumes, id)
	delete(e.mu.publications, id)
	return nil
}

// ResizeVolume implements attach.Store.
func (e *Engine) ResizeVolume(id string, size int64) (blockstore.VolumeInfo, error) {
	if err := e.enter("ResizeVolume"); err != nil {
		return blockstore.VolumeInfo{}, err
	}
	defer e.mu.Unlock()
	v, err := e.find(id)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	size = (size + blockstore.SizeStep - 1) / blockstore.SizeStep * blockstore.SizeStep
	if size < v.info.SizeBytes || size > blockstore.MaxVolumeSize {
		return blockstore.VolumeInfo{}, fmt.Errorf("size of %d bytes: %w", size, blockstore.ErrRange)
	}
	if err := e.trace.step("resize volume"); err != nil {
		return blockstore.VolumeInfo{}, err
	}
	v.info.SizeBytes = size
	return e.describe(v), nil
}

// SetOnFull implements admin.Store.
func (e *Engine) SetOnFull(id, onFull string) (blockstore.VolumeInfo, error) {
	if err := e.enter("SetOnFull"); err != nil {
		return blockstore.VolumeInfo{}, err
	}
	defer e.mu.Unlock()
	v, err := e.find(id)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	if onFull != blockstore.OnFullWait && onFull != blockstore.OnFullError {
		return blockstore.VolumeInfo{}, fmt.Errorf("onFull %q: %w", onFull, blockstore.ErrInvalid)
	}
	v.info.OnFull = onFull
	return e.describe(v), nil
}

// SetVolumeState implements attach.Store.
func (e *Engine) SetVolumeState(id string, state blockstore.VolumeState, fsType string) error {
	if err := e.enter("SetVolumeState"); err != nil {
		return err
	}
	defer e.mu.Unlock()
	v, err := e.find(id)
	if err != nil {
		return err
	}
	if v.info.State == blockstore.StateUsed && state != blockstore.StateUsed {
		return fmt.Errorf("volume %s is %s: %w", id, v.info.State, blockstore.ErrInvalid)
	}
	if err := e.trace.step(strings.TrimSpace("state " + string(state) + " " + fsType)); err != nil {
		return err
	}
	v.info.State = state
	if fsType != "" {
		v.info.FSType = fsType
	}
	return nil
}

// OpenVolume implements attach.Store.
func (e *Engine) OpenVolume(_ context.Context, id string) (attach.Volume, error) {
	if err := e.enter("OpenVolume"); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	v, err := e.find(id)
	if err != nil {
		return nil, err
	}
	if v.info.Open {
		return nil, fmt.Errorf("volume %s: %w", id, blockstore.ErrInUse)
	}
	if err := e.trace.step("open"); err != nil {
		return nil, err
	}
	v.info.Open = true
	return &openVolume{e, v, v.data}, nil
}

// OpenScratch opens a volume with a throw-away layer, as blockstore.OpenScratch does.
func (e *Engine) OpenScratch(_ context.Context, id string) (attach.Volume, error) {
	if err := e.enter("OpenScratch"); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	v, err := e.find(id)
	if err != nil {
		return nil, err
	}
	switch {
	case v.info.Open:
		return nil, fmt.Errorf("volume %s: %w", id, blockstore.ErrInUse)
	case v.info.Failed != "":
		return nil, fmt.Errorf("volume %s: %w: %s", id, blockstore.ErrFailed, v.info.Failed)
	}
	if err := e.trace.step("open scratch"); err != nil {
		return nil, err
	}
	v.info.Open = true
	return &openVolume{e, v, maps.Clone(v.data)}, nil
}

// PutPublication keeps the rules of blockstore: ErrNotFound without a volume, and a zero
// Created is now.
func (e *Engine) PutPublication(id string, p blockstore.Publication) error {
	if err := e.enter("PutPublication"); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if e.mu.volumes[id] == nil {
		return fmt.Errorf("volume %s: %w", id, blockstore.ErrNotFound)
	}
	if err := e.trace.step("publish record"); err != nil {
		return err
	}
	if p.Created.IsZero() {
		p.Created = time.Unix(1700000000, 0)
	}
	e.mu.publications[id] = p
	return nil
}

// RemovePublication does nothing, not even a step, if there is none.
func (e *Engine) RemovePublication(id string) error {
	if err := e.enter("RemovePublication"); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if _, ok := e.mu.publications[id]; !ok {
		return nil
	}
	if err := e.trace.step("remove publish record"); err != nil {
		return err
	}
	delete(e.mu.publications, id)
	return nil
}

// Publications returns every publication by volume ID.
func (e *Engine) Publications() map[string]blockstore.Publication {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.mu.publications)
}

// PutAttachment implements attach.Store.
func (e *Engine) PutAttachment(a blockstore.Attachment) error {
	if err := e.enter("PutAttachment"); err != nil {
		return err
	}
	defer e.mu.Unlock()
	words := []string{"record"}
	if a.Device != "" {
		words = append(words, "device")
	}
	if len(a.Uses) > 0 {
		words = append(words, fmt.Sprintf("%d uses", len(a.Uses)))
	}
	if err := e.trace.step(strings.Join(words, " ")); err != nil {
		return err
	}
	e.mu.attachments[a.Volume] = a
	return nil
}

// RemoveAttachment implements attach.Store.
func (e *Engine) RemoveAttachment(id string) error {
	if err := e.enter("RemoveAttachment"); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if err := e.trace.step("remove record"); err != nil {
		return err
	}
	delete(e.mu.attachments, id)
	return nil
}

// Attachment implements attach.Store.
func (e *Engine) Attachment(id string) (blockstore.Attachment, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a, ok := e.mu.attachments[id]
	return a, ok
}

// Attachments implements attach.Store.
func (e *Engine) Attachments() []blockstore.Attachment {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []blockstore.Attachment
	for _, id := range slices.Sorted(maps.Keys(e.mu.attachments)) {
		list = append(list, e.mu.attachments[id])
	}
	return list
}

// openVolume is an open volume of an Engine. Its fields are fixed; what data holds is
// guarded by the Engine's mutex.
type openVolume struct {
	e    *Engine
	v    *volume
	data map[int64][]byte // the volume's, or a copy that is thrown away
}

func (o *openVolume) Size() int64 {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	return o.v.info.SizeBytes
}

func (o *openVolume) SectorBytes() int { return o.v.info.SectorBytes }

func (o *openVolume) ReadAt(p []byte, off int64) (int, error) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	for i := range p {
		p[i] = 0
		at := off + int64(i)
		if block := o.data[at/blockstore.BlockSize]; block != nil {
			p[i] = block[at%blockstore.BlockSize]
		}
	}
	return len(p), nil
}

func (o *openVolume) WriteAt(p []byte, off int64) (int, error) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	for i := 0; i < len(p); {
		at := off + int64(i)
		// Blocks are replaced, not changed: copies of the volume share them.
		block := make([]byte, blockstore.BlockSize)
		copy(block, o.data[at/blockstore.BlockSize])
		i += copy(block[at%blockstore.BlockSize:], p[i:])
		o.data[at/blockstore.BlockSize] = block
	}
	return len(p), nil
}

func (o *openVolume) Flush() error {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	return o.e.mu.fail["Flush"]
}

func (o *openVolume) Discard(off, n int64) error {
	_, err := o.WriteAt(make([]byte, n), off)
	return err
}

func (o *openVolume) WriteZeroes(off, n int64) error { return o.Discard(off, n) }

func (o *openVolume) Close() error {
	if err := o.e.trace.step("close"); err != nil {
		return err
	}
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	if !o.v.info.Open {
		return blockstore.ErrClosed
	}
	o.v.info.Open = false
	return nil
}
