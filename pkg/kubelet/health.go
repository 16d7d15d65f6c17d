package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// defaultCheckEnd is longer than livenessprobe's one second: a wrong alarm has
	// kubelet restart a daemon on which mounted volumes depend, so that a disk under
	// load must not look like a dead process.
	defaultCheckEnd = 5 * time.Second

	// maxCheckEnd leaves time to deliver the answer, see requestEnd.
	maxCheckEnd = 20 * time.Second
)

// HealthOptions are the choices of NewHealth.
type HealthOptions struct {
	// Timeout is how long a check may take, at most 20 s. Default 5 s. The pod's
	// timeoutSeconds has to be longer, or kubelet does not hear the reason.
	Timeout time.Duration
	Logger  *slog.Logger // default none
}

// Health is a handler that runs a check and answers 200 and "ok", or 503 and the
// reason as plain text. It may be called concurrently.
type Health struct {
	check func(ctx context.Context) error // fixed
	o     HealthOptions                   // fixed

	mu      sync.Mutex
	running *run // guarded by mu: the check that runs now
	failing bool // guarded by mu: the last answer
}

// run is one check for all who ask while it runs.
type run struct {
	ctx  context.Context // ends when the check's time is over
	done chan struct{}   // closed when the check is back
	err  error           // the result, written before done is closed
}

// NewHealth makes a handler for check. One check runs at a time; who asks meanwhile
// gets its result. One that does not even come back when its context ends costs one
// goroutine: everybody gets a 503 until it does.
func NewHealth(check func(ctx context.Context) error, o HealthOptions) (*Health, error) {
	if check == nil {
		return nil, errors.New("health check: no function was given")
	}
	if o.Timeout == 0 {
		o.Timeout = defaultCheckEnd
	}
	if o.Timeout < 0 || o.Timeout > maxCheckEnd {
		return nil, fmt.Errorf("timeout %v of the health check: give more than 0 and at most %v", o.Timeout, maxCheckEnd)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Health{check: check, o: o}, nil
}

// ServeHTTP answers with the result of a check. It does not look at method and path.
func (h *Health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := h.wait(r.Context(), h.join())
	if r.Context().Err() != nil {
		return // nobody listens any more
	}
	h.note(err)
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok\n")
}

// join starts a check unless one runs.
func (h *Health) join() *run {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running == nil {
		// Not the asker's context: it may leave while others wait.
		ctx, cancel := context.WithTimeout(context.Background(), h.o.Timeout)
		h.running = &run{ctx: ctx, done: make(chan struct{})}
		go h.do(h.running, cancel)
	}
	return h.running
}

// do runs the check and lets the next one start.
func (h *Health) do(r *run, cancel context.CancelFunc) {
	r.err = h.safely(r.ctx)
	if r.err != nil && r.ctx.Err() != nil {
		r.err = fmt.Errorf("%w: %w", h.late(), r.err)
	}
	h.mu.Lock()
	h.running = nil
	h.mu.Unlock()
	close(r.done)
	cancel()
}

// safely turns a panic into an error: net/http guards only its own goroutines.
func (h *Health) safely(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			h.o.Logger.Error("panic in the health check", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic in the health check: %v", p)
		}
	}()
	return h.check(ctx)
}

// wait waits for a check, but not longer than it may take.
func (h *Health) wait(ctx context.Context, r *run) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
	}
	select { // it ends with the check too
	case <-r.done:
		return r.err
	default:
		return h.late()
	}
}

func (h *Health) late() error {
	return fmt.Errorf("the health check gave no answer within %v", h.o.Timeout)
}

// note logs when the answer changes. Kubelet shows a reason only in an event, and the
// restart that it decides on has to be explained here too.
func (h *Health) note(err error) {
	h.mu.Lock()
	changed := h.failing != (err != nil)
	h.failing = err != nil
	h.mu.Unlock()
	switch {
	case !changed:
	case err != nil:
		h.o.Logger.Error("health check fails", "err", err)
	default:
		h.o.Logger.Info("health check passes again")
	}
}
