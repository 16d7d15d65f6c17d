package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
)

// maxSocketPath is the longest path that fits into a sockaddr_un.
const maxSocketPath = 107

// Listen makes a Unix socket at path that only its owner can open. What is there is
// removed only if it is a socket on which nobody answers: a daemon that died leaves
// one. ErrInUse if somebody answers, ErrInvalid if path cannot be a socket. Closing
// the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	// Made under another name and renamed, so that it never stands there with a
	// wider mode than it ends up with.
	tmp := path + ".new"
	if len(tmp) > maxSocketPath {
		return nil, fmt.Errorf("socket path %s is too long: at most %d bytes: %w", path, maxSocketPath-len(".new"), blockstore.ErrInvalid)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	if err := removeStale(tmp); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		err = errors.Join(err, ln.Close(), os.Remove(tmp))
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &listener{UnixListener: ln, path: path}, nil
}

// removeStale removes a dead daemon's socket.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("listen on %s: %w", path, err)
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is there already and is not a socket: %w", path, blockstore.ErrInvalid)
	}
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("another process listens on %s: %w", path, blockstore.ErrInUse)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return fmt.Errorf("listen on %s: what is there does not answer: %w", path, err)
}

// listener removes its socket when it is closed.
type listener struct {
	*net.UnixListener
	path string
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	if rerr := os.Remove(l.path); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// Addr is where the socket stands, not where it was made.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// dialer connects to the socket of a data directory. A path that is too long for a
// socket address cannot have a daemon, see Listen.
func dialer(dataDir string) func(context.Context, string, string) (net.Conn, error) {
	path := filepath.Clean(SocketPath(dataDir))
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR),
			errors.Is(err, syscall.ECONNREFUSED), len(path) > maxSocketPath:
			return nil, fmt.Errorf("%w on %s: start it with granary serve --data-dir %s", ErrNoDaemon, dataDir, dataDir)
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("may not open %s: run this as root", path)
		}
		return nil, fmt.Errorf("connect to the daemon on %s: %w", dataDir, err)
	}
}
