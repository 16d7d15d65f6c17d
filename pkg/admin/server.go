package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
)

// Store is what the server needs of an engine; *blockstore.Store has it. All
// methods may be called concurrently.
type Store interface {
	CreateVolume(spec blockstore.VolumeSpec) (blockstore.VolumeInfo, error)
	Volume(idOrName string) (blockstore.VolumeInfo, error)
	VolumePage(after string, limit int) []blockstore.VolumeInfo
	// SetOnFull works on a volume that waits and on a full store.
	SetOnFull(id, onFull string) (blockstore.VolumeInfo, error)
	Snapshots
	Maintenance
}

// Snapshots is the part of a Store about snapshots.
type Snapshots interface {
	CreateSnapshot(ctx context.Context, volumeID, name string, labels map[string]string) (blockstore.SnapshotInfo, error)
	WaitSnapshot(ctx context.Context, id string) (blockstore.SnapshotInfo, error)
	DeleteSnapshot(id string) error
	Snapshot(idOrName string) (blockstore.SnapshotInfo, error)
	SnapshotPage(volumeID, after string, limit int) []blockstore.SnapshotInfo
}

// Maintenance is the part of a Store that looks at all of it.
type Maintenance interface {
	Stats(perVolume bool) blockstore.Stats
	Collect(ctx context.Context) (blockstore.CollectResult, error)
	Check(ctx context.Context, o blockstore.CheckOptions, report func(blockstore.Problem)) error
}

// Attacher is what the server needs to make volumes into devices;
// *attach.Attachments has it. Volumes go by ID. All methods may be called
// concurrently; the second one on the same volume is ErrBusy.
type Attacher interface {
	// AttachRaw attaches for whatever the caller wants to put there: the volume
	// counts as used from then on and is never formatted (I11).
	AttachRaw(ctx context.Context, id string) (device string, err error)
	Detach(ctx context.Context, id string) error
	Resize(ctx context.Context, id string, size int64) (blockstore.VolumeInfo, error)
	// Delete removes a volume that is not attached; ErrInUse says where it is.
	Delete(ctx context.Context, id string) error
	// Warnings tells dangerous settings of the machine.
	Warnings() []string
}

// Server answers the granary commands.
type Server struct {
	store    Store
	attacher Attacher
	log      *slog.Logger
	http     *http.Server

	// background ends collections that nobody waits for.
	background context.Context
	cancel     context.CancelFunc
	running    sync.WaitGroup
}

// NewServer makes a server; Serve starts it.
func NewServer(store Store, attacher Attacher, log *slog.Logger) *Server {
	s := &Server{store: store, attacher: attacher, log: log}
	s.background, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return s.background },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return s
}

// Serve answers requests until Close and closes ln. It returns nil after Close.
func (s *Server) Serve(ln net.Listener) error {
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

// Close cancels what runs, waits for it until ctx ends, and stops the server.
func (s *Server) Close(ctx context.Context) error {
	s.cancel()
	err := s.http.Shutdown(ctx)
	s.running.Wait()
	return err
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	call(mux, s.log, opVolumeCreate, s.volumeCreate)
	call(mux, s.log, opVolumeList, s.volumeList)
	call(mux, s.log, opVolumeShow, s.volumeShow)
	call(mux, s.log, opVolumeAttach, s.volumeAttach)
	call(mux, s.log, opVolumeDetach, s.volumeDetach)
	call(mux, s.log, opVolumeResize, s.volumeResize)
	call(mux, s.log, opVolumeSet, s.volumeSet)
	call(mux, s.log, opVolumeRemove, s.volumeRemove)
	stream(mux, s.log, opSnapshotCreate, s.snapshotCreate)
	call(mux, s.log, opSnapshotList, s.snapshotList)
	call(mux, s.log, opSnapshotShow, s.snapshotShow)
	call(mux, s.log, opSnapshotRemove, s.snapshotRemove)
	call(mux, s.log, opStats, s.stats)
	stream(mux, s.log, opCollect, s.collect)
	stream(mux, s.log, opCheck, s.check)
	return mux
}

// call routes an operation with one answer.
func call[Req, Resp any](mux *http.ServeMux, log *slog.Logger, op string, f func(context.Context, Req) (Resp, error)) {
	mux.HandleFunc("POST /v1/"+op, func(w http.ResponseWriter, r *http.Request) {
		var req Req
		err := readRequest(r.Body, &req)
		var resp Resp
		if err == nil {
			resp, err = f(r.Context(), req)
		}
		w.Header().Set("Content-Type", "application/json")
		var body any = resp
		if err != nil {
			value, status := encodeError(err)
			log.Info("command failed", "op", op, "kind", value.Kind, "err", err)
			w.WriteHeader(status)
			body = event[nothing]{Error: &value}
		}
		if err := json.NewEncoder(w).Encode(body); err != nil {
			log.Debug("answer not delivered", "op", op, "err", err)
		}
	})
}

// stream routes an operation that answers with JSON lines. An emitter may be called
// concurrently.
func stream[Req, Resp any](mux *http.ServeMux, log *slog.Logger, op string, f func(context.Context, Req, emitter) (Resp, error)) {
	mux.HandleFunc("POST /v1/"+op, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		lines := &lineWriter{enc: json.NewEncoder(w), control: http.NewResponseController(w)}
		var req Req
		err := readRequest(r.Body, &req)
		var resp Resp
		if err == nil {
			resp, err = f(r.Context(), req, lines)
		}
		last := event[Resp]{Result: &resp}
		if err != nil {
			value, _ := encodeError(err)
			log.Info("command failed", "op", op, "kind", value.Kind, "err", err)
			last = event[Resp]{Error: &value}
		}
		lines.write(last)
	})
}

func readRequest(body io.Reader, req any) error {
	d := json.NewDecoder(io.LimitReader(body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(req); err != nil {
		return fmt.Errorf("request: %v: %w", err, blockstore.ErrInvalid)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("request: more than one JSON value: %w", blockstore.ErrInvalid)
	}
	return nil
}

// emitter sends lines of a stream. Lines that cannot be delivered are dropped: the
// request's context tells the operation that its caller is gone.
type emitter interface {
	progress(done, total int64)
	item(v any)
}

type lineWriter struct {
	mu      sync.Mutex // held for one line
	enc     *json.Encoder
	control *http.ResponseController
}

// patience is how long a caller may not read before it counts as gone: the operation waits
// with it, and others may wait for that.
var patience = 30 * time.Second

func (l *lineWriter) progress(done, total int64) {
	l.write(event[nothing]{Progress: &progress{done, total}})
}

func (l *lineWriter) item(v any) { l.write(event[nothing]{Item: v}) }

func (l *lineWriter) write(line any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.control.SetWriteDeadline(time.Now().Add(patience))
	if l.enc.Encode(line) == nil {
		_ = l.control.Flush()
	}
}
