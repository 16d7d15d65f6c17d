package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/k8ns/granary/pkg/blockstore"
)

// ErrNoDaemon means that nobody listens on the data directory's socket.
var ErrNoDaemon = errors.New("no daemon is running")

// errorKinds is the one place that maps errors to HTTP and back. The first row that
// matches wins, so a row that wraps another comes before it. Kinds are part of the
// protocol: they are never renamed.
var errorKinds = []struct {
	err    error
	kind   string
	status int
}{
	{blockstore.ErrNotFound, "not_found", http.StatusNotFound},
	{blockstore.ErrExists, "exists", http.StatusConflict},
	{blockstore.ErrInUse, "in_use", http.StatusConflict},
	{blockstore.ErrBusy, "busy", http.StatusConflict},
	{blockstore.ErrInvalid, "invalid", http.StatusBadRequest},
	{blockstore.ErrRange, "range", http.StatusBadRequest},
	{blockstore.ErrFailed, "failed", http.StatusInternalServerError},
	{blockstore.ErrClosed, "closed", http.StatusServiceUnavailable},
	{blockstore.ErrOlder, "older", http.StatusInternalServerError},
	{blockstore.ErrNoSpace, "no_space", http.StatusInsufficientStorage},
	{blockstore.ErrLocked, "locked", http.StatusLocked},
	{blockstore.ErrFormat, "format", http.StatusInternalServerError},
	{blockstore.ErrVersion, "version", http.StatusInternalServerError},
	{blockstore.ErrCorrupt, "corrupt", http.StatusInternalServerError},
	{blockstore.ErrMissing, "missing", http.StatusInternalServerError},
	{context.Canceled, "canceled", http.StatusRequestTimeout},
	{context.DeadlineExceeded, "deadline", http.StatusGatewayTimeout},
}

// kindInternal is the kind of every error that is not in errorKinds.
const kindInternal = "internal"

// errorValue is an error on the wire.
type errorValue struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

func encodeError(err error) (errorValue, int) {
	for _, k := range errorKinds {
		if errors.Is(err, k.err) {
			return errorValue{k.kind, err.Error()}, k.status
		}
	}
	return errorValue{kindInternal, err.Error()}, http.StatusInternalServerError
}

// remoteError is the server's error on the client's side: its text, and the sentinel
// that its kind stands for (nil for kinds that this version does not know).
type remoteError struct {
	message  string
	sentinel error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.sentinel }

func decodeError(v errorValue) error {
	e := &remoteError{message: v.Message}
	if e.message == "" {
		e.message = fmt.Sprintf("the daemon reported an error of kind %q", v.Kind)
	}
	for _, k := range errorKinds {
		if k.kind == v.Kind {
			e.sentinel = k.err
		}
	}
	return e
}
