package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"syscall"

	"github.com/k8ns/granary/pkg/socket"
)

// dialer connects to the socket of a data directory. A path that is too long for a
// socket address cannot have a daemon, see socket.Listen.
func dialer(dataDir string) func(context.Context, string, string) (net.Conn, error) {
	path := filepath.Clean(SocketPath(dataDir))
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR),
			errors.Is(err, syscall.ECONNREFUSED), len(path) > socket.MaxPath:
			return nil, fmt.Errorf("%w on %s: start it with granary serve --data-dir %s", ErrNoDaemon, dataDir, dataDir)
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("may not open %s: run this as root", path)
		}
		return nil, fmt.Errorf("connect to the daemon on %s: %w", dataDir, err)
	}
}
