package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"sync/atomic"
	"time"
)

// Limits of the HTTP server. It may be reachable for others than kubelet, and what it
// spends on them is missing for volumes.
const (
	readHeaderEnd = 5 * time.Second
	requestEnd    = 30 * time.Second // to read it, and to answer it from then on
	idleEnd       = 30 * time.Second
	maxHeader     = 8 << 10 // bytes; net/http adds 4 KiB
	maxConns      = 64      // at a time; further ones are closed at once
)

// healthPath is the path that everybody's pod descriptions use.
const healthPath = "/healthz"

// ServerOptions are the choices of NewServer.
type ServerOptions struct {
	// Handlers are further handlers by their path, as "/metrics"; a path that ends
	// with a slash is for all below it. They see only GET and HEAD, without a body,
	// have 30 s to answer, and are called concurrently.
	Handlers map[string]http.Handler
	Logger   *slog.Logger // default none
}

// Server answers over HTTP, without encryption and without asking who it is: give it
// nothing that is secret. Its methods may be called concurrently.
type Server struct {
	http  *http.Server
	log   *slog.Logger
	conns atomic.Int64 // open connections
}

// NewServer makes a server that answers GET and HEAD on /healthz by health and on the
// options' paths by theirs, 405 to other methods and 404 on other paths. Serve starts
// it.
func NewServer(health http.Handler, o ServerOptions) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if health == nil {
		return nil, fmt.Errorf("HTTP path %s: no handler was given", healthPath)
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+healthPath, withoutBody(health))
	for p, h := range o.Handlers {
		if err := checkHandler(p, h); err != nil {
			return nil, err
		}
		mux.Handle("GET "+p, withoutBody(h))
	}
	s := &Server{log: o.Logger}
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: readHeaderEnd,
		// Not shorter than a handler may take: net/http goes on reading while one
		// runs, and cancels its request when the time for reading is over.
		ReadTimeout:    requestEnd,
		WriteTimeout:   requestEnd,
		IdleTimeout:    idleEnd,
		MaxHeaderBytes: maxHeader,
		ConnState:      s.connState,
		ErrorLog:       slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	}
	return s, nil
}

// checkHandler says what is wrong with a handler before http.ServeMux panics.
func checkHandler(p string, h http.Handler) error {
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	switch {
	case p != clean || !strings.HasPrefix(p, "/") || strings.ContainsAny(p, "{} \t"):
		return fmt.Errorf("HTTP path %q: give one that begins with a slash, without blanks, braces, // and ..", p)
	case p == "/":
		return errors.New("HTTP path /: paths that nobody knows have to be answered with 404")
	case p == healthPath:
		return fmt.Errorf("HTTP path %s is the health check's", p)
	case h == nil:
		return fmt.Errorf("HTTP path %s: no handler was given", p)
	}
	return nil
}

// withoutBody refuses requests with a body: nothing here takes one.
func withoutBody(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 { // -1 if it comes in chunks
			w.Header().Set("Connection", "close")
			http.Error(w, "no request body is taken here", http.StatusRequestEntityTooLarge)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// connState counts connections and closes those that are too many. Without this they
// could use up the process's file descriptors.
func (s *Server) connState(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if n := s.conns.Add(1); n > maxConns {
			s.log.Debug("HTTP connection refused: too many are open", "remote", conn.RemoteAddr().String(), "open", n)
			_ = conn.Close()
		}
	case http.StateClosed, http.StateHijacked:
		s.conns.Add(-1)
	}
}

// ListenHTTP listens on a TCP address with a port, as ":9808" or "127.0.0.1:9808".
func ListenHTTP(address string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return nil, fmt.Errorf("HTTP address %q: give an address and a port, as 127.0.0.1:9808 or :9808", address)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("HTTP address %s: %w", address, err)
	}
	return ln, nil
}

// Serve answers requests until Stop and closes ln. It returns nil after Stop.
func (s *Server) Serve(ln net.Listener) error {
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("HTTP server: %w", err)
	}
	return nil
}

// Stop takes no more requests and waits for those that run, until ctx ends.
func (s *Server) Stop(ctx context.Context) {
	if err := s.http.Shutdown(ctx); err != nil {
		s.log.Warn("HTTP requests were cut off", "err", err)
		_ = s.http.Close()
	}
}
