package admin

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/k8ns/granary/pkg/socket"
)

// runDir is where the socket stands when the data directory's file system has none.
const runDir = "/run/granary"

// Listen makes the admin socket of a data directory. Some file systems have no sockets
// (FUSE ones above all): then it stands in /run/granary, and a symbolic link to it in its
// place. Errors are those of socket.Listen. Closing the listener removes both.
func Listen(dataDir string) (net.Listener, error) {
	return listen(dataDir, runDir, socket.Listen)
}

// listen is Listen with another place for the socket, and another way to make it.
func listen(dataDir, runDir string, open func(path string) (net.Listener, error)) (net.Listener, error) {
	path := SocketPath(dataDir)
	if err := removeLink(path); err != nil {
		return nil, err
	}
	ln, err := open(path)
	if !noSockets(err) {
		return ln, err
	}
	elsewhere, err2 := socketElsewhere(dataDir, runDir)
	if err2 == nil {
		ln, err2 = socket.Listen(elsewhere)
	}
	if err2 != nil {
		return nil, fmt.Errorf("%w; nor in %s: %w", err, runDir, err2)
	}
	if err := os.Symlink(elsewhere, path); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &linkedListener{ln, path}, nil
}

// noSockets tells the answers of a file system that cannot hold a socket.
func noSockets(err error) bool {
	return errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPERM)
}

// socketElsewhere names the socket of a data directory in runDir, which only its owner may
// enter.
func socketElsewhere(dataDir, runDir string) (string, error) {
	real, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(runDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(runDir)
	if err != nil {
		return "", err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || !ok || int(owner.Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s must be a directory that only this user can write to", runDir)
	}
	sum := sha256.Sum256([]byte(real))
	return filepath.Join(runDir, fmt.Sprintf("%x.sock", sum[:8])), nil
}

// removeLink removes the link of an earlier daemon.
func removeLink(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSymlink {
		return nil //nolint:nilerr // socket.Listen says what is wrong
	}
	return os.Remove(path)
}

// linkedListener is a socket with a link to it.
type linkedListener struct {
	net.Listener
	link string
}

func (l *linkedListener) Close() error {
	return errors.Join(removeLink(l.link), l.Listener.Close())
}
