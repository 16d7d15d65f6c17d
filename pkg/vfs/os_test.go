//go:build linux

package vfs_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
)

func TestOS(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) { return vfs.NewOS(), t.TempDir() })
}

// TestOSNoSpace uses the device that is always full.
func TestOSNoSpace(t *testing.T) {
	const full = "/dev/full"
	f, err := vfs.NewOS().Open(full)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	_, at := f.WriteAt([]byte("x"), 0)
	_, vec := f.WriteVec([][]byte{[]byte("x")}, 0)
	for _, err := range []error{at, vec} {
		if !errors.Is(err, vfs.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("error is %v, want ErrNoSpace and ENOSPC", err)
		}
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(full)) {
			t.Errorf("error %v lacks the path", err)
		}
	}
}

// TestOSLockNotInherited runs a child while the lock is held: if it had the lock too,
// this process could not take it again.
func TestOSLockNotInherited(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	l, err := vfs.NewOS().Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = vfs.NewOS().Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// TestOSPrivate: nobody else may read a store.
func TestOSPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	fsys := vfs.NewOS()
	if err := fsys.MkdirAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFileAtomic(fsys, dir+"/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, dir + "/a"} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
}
