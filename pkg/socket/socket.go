// Package socket makes the Unix sockets that the daemon listens on: commands, CSI and
// kubelet's registration. It knows nothing of what is said there.
package socket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Errors that callers distinguish, by errors.Is.
var (
	ErrInUse   = errors.New("in use")  // another process answers there
	ErrInvalid = errors.New("invalid") // no socket can be there
)

// MaxPath is the longest path that fits into a sockaddr_un, in bytes.
const MaxPath = 107

// answerEnd is how long a socket that is there already may take to answer.
const answerEnd = 5 * time.Second

// Listen makes a socket at path that only its owner can open. What is there is replaced
// only if it is a socket on which nobody answers: a killed daemon leaves one. ErrInUse
// if somebody answers, ErrInvalid if path cannot be a socket. Closing the listener
// removes the socket.
//
// It is made under another name and renamed when it answers, so that it never stands
// there with a wider mode than it ends up with, or without anybody behind it. The name
// begins with a dot: kubelet, which takes what it finds in its registration directory
// for plugins, passes over those.
func Listen(path string) (net.Listener, error) {
	if len(path) > MaxPath || filepath.Base(path) == "/" || filepath.Base(path) == "." {
		return nil, fmt.Errorf("%q cannot be a socket: at most %d bytes are allowed: %w", path, MaxPath, ErrInvalid)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("the directory of the socket %s is not there: %w", path, ErrInvalid)
	}
	tmp := hidden(path)
	if err := checkFree(path); err != nil {
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
	file, err := publish(tmp, path)
	if err != nil {
		err = errors.Join(err, ln.Close(), os.Remove(tmp))
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &listener{UnixListener: ln, path: path, file: file}, nil
}

// hidden is the name under which a socket is made. It is as long as the other, so that
// every path that fits a socket can be used.
func hidden(path string) string {
	dir, base := filepath.Split(path)
	if base[0] == '.' {
		return dir + "~" + base[1:]
	}
	return dir + "." + base[1:]
}

// publish gives a socket that answers its mode and its name, and tells which file it
// is.
func publish(tmp, path string) (os.FileInfo, error) {
	if err := os.Chmod(tmp, 0o600); err != nil {
		return nil, err
	}
	file, err := os.Lstat(tmp)
	if err != nil {
		return nil, err
	}
	return file, os.Rename(tmp, path)
}

// checkFree is nil if path is free or a socket of a dead process.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("listen on %s: %w", path, err)
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is there already and is not a socket: remove it if nobody needs it: %w", path, ErrInvalid)
	}
	conn, err := net.DialTimeout("unix", path, answerEnd)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("another process listens on %s: %w", path, ErrInUse)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil
	}
	return fmt.Errorf("listen on %s: what is there does not answer: %w", path, err)
}

// removeStale removes a socket of a dead process.
func removeStale(path string) error {
	if err := checkFree(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove what a killed process left: %w", err)
	}
	return nil
}

// listener removes its socket when it is closed.
type listener struct {
	*net.UnixListener
	path string
	file os.FileInfo // the socket itself, to tell it from a successor's
}

// Close removes the name first: while it stands somebody answers there, so that no
// successor takes it for stale and loses its own to us.
func (l *listener) Close() error {
	return errors.Join(l.remove(), l.UnixListener.Close())
}

func (l *listener) remove() error {
	info, err := os.Lstat(l.path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(info, l.file) {
		return nil
	}
	if err == nil {
		err = os.Remove(l.path)
	}
	return err
}

// Addr is where the socket stands, not where it was made.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }
