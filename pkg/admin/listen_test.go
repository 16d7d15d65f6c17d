package admin

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSocketElsewhere: a file system that has no sockets, as one in user space, takes the
// link to one. Killed daemons leave both behind.
func TestSocketElsewhere(t *testing.T) {
	dir, run := t.TempDir(), filepath.Join(t.TempDir(), "run")
	elsewhere, err := socketElsewhere(dir, run)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: elsewhere, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := errors.Join(dead.Close(), os.Symlink(elsewhere, SocketPath(dir))); err != nil {
		t.Fatal(err)
	}
	for _, errno := range []syscall.Errno{syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.EPERM} {
		refuse := func(string) (net.Listener, error) { return nil, &net.OpError{Op: "listen", Err: errno} }
		ln, err := listen(dir, run, refuse)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dialer(dir)(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(SocketPath(dir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the link is still there: %v", err)
		}
	}
	other := func(string) (net.Listener, error) { return nil, syscall.EACCES }
	if _, err := listen(dir, run, other); !errors.Is(err, syscall.EACCES) {
		t.Errorf("error %v, want EACCES", err)
	}
	if err := os.Chmod(run, 0o777); err != nil {
		t.Fatal(err)
	}
	refuse := func(string) (net.Listener, error) { return nil, syscall.ENOSYS }
	if _, err := listen(dir, run, refuse); err == nil {
		t.Error("a directory that everybody may write to was taken")
	}
}
