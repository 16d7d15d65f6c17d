package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// recording is a load on a store on a file system, and everything that reached the disk
// below it, in order.
type recording struct {
	fsType  string
	entries []entry
	begin   int // entries before the store: partition and mkfs
	load    *load
}

// record makes a file system of a kind, runs a load on it until the log has so many
// entries more, and reads the log.
func record(ctx context.Context, dir, fsType string, seed uint64, entries int, c *rig.Cleanup) (rec *recording, err error) {
	logged, err := startLogging(ctx, dir, c)
	if err != nil {
		return nil, err
	}
	mnt := filepath.Join(dir, "mnt")
	defer func() { err = errors.Join(err, logged.stop()) }()
	if err := mkfs(ctx, fsType, logged.device); err != nil {
		return nil, err
	}
	if err := rig.Mount(ctx, c, fsType, logged.device, mnt); err != nil {
		return nil, err
	}
	if err := rig.SyncFS(mnt); err != nil {
		return nil, err
	}
	rec = &recording{fsType: fsType, load: newLoad(filepath.Join(mnt, "store"), seed, logged.entries)}
	if rec.begin, err = logged.entries(); err != nil {
		return nil, err
	}
	if err := rec.load.run(ctx, entries); err != nil {
		return nil, fmt.Errorf("the load, with nothing cut yet: %w", err)
	}
	if err := unmount(ctx, mnt); err != nil {
		return nil, err
	}
	rec.entries, err = readLog(logged.log)
	return rec, err
}

// settled does again, for ten seconds, what fails in a way that passes. A child that
// another recording has just forked has all our files open, the store's lock too, until it
// is the program that it is to be.
func settled(passes func(error) bool, do func() error) (err error) {
	for range 100 {
		if err = do(); err == nil || !passes(err) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// unmount unmounts dir when nobody has a file of it open.
func unmount(ctx context.Context, dir string) error {
	return settled(func(error) bool { return true }, func() error { return rig.Unmount(ctx, dir) })
}

// mkfs leaves out the discard of the whole device, which would be a long entry of zeros.
func mkfs(ctx context.Context, fsType, device string) error {
	args := []string{"-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", device}
	if fsType == "xfs" {
		args = []string{"-q", "-f", "-K", device}
	}
	_, err := rig.Run(ctx, 0, "mkfs."+fsType, args...)
	return err
}

// logging is a loop device on a disk whose writes QEMU's storage daemon logs.
type logging struct {
	log    string // file
	device string

	cmd   *exec.Cmd
	ended chan struct{}
}

// startLogging makes the device. The loop device is buffered: with direct I/O over the
// daemon's FUSE export data went missing. The files behind are never flushed, for speed:
// it is the log that tells what a flush covers.
func startLogging(ctx context.Context, dir string, c *rig.Cleanup) (*logging, error) {
	image, export := filepath.Join(dir, "disk.img"), filepath.Join(dir, "export.img")
	l := &logging{log: filepath.Join(dir, "writes.log"), ended: make(chan struct{})}
	for _, name := range []string{image, export, l.log} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.Truncate(image, diskBytes); err != nil {
		return nil, err
	}
	l.cmd = exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=image,cache.no-flush=on,filename="+image,
		"--blockdev", "driver=file,node-name=log,cache.no-flush=on,filename="+l.log,
		"--blockdev", fmt.Sprintf("driver=blklogwrites,node-name=logged,file=image,log=log,log-sector-size=%d", logSector),
		"--export", "type=fuse,id=export,node-name=logged,writable=on,mountpoint="+export)
	l.cmd.Stderr = os.Stderr
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = l.cmd.Wait() // it is killed, or its death shows
		close(l.ended)
	}()
	rig.NoteMount(c, export)
	c.Add("end the storage daemon", l.end)
	if err := l.waitMounted(ctx, export); err != nil {
		return nil, err
	}
	var err error
	if l.device, err = rig.Run(ctx, 0, "losetup", "--find", "--show", export); err != nil {
		return nil, err
	}
	return l, rig.NoteLoop(c, l.device)
}

func (l *logging) waitMounted(ctx context.Context, export string) error {
	for limit := time.After(30 * time.Second); ; {
		if mounted, err := rig.Mounted(export); err != nil || mounted {
			return err
		}
		select {
		case <-l.ended:
			return fmt.Errorf("qemu-storage-daemon ended at start: %v", l.cmd.ProcessState)
		case <-limit:
			return errors.New("qemu-storage-daemon: no export within 30 s")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *logging) entries() (int, error) { return logEntries(l.log) }

// stop takes device and daemon away.
func (l *logging) stop() error {
	_, err := rig.Run(context.Background(), 0, "losetup", "-d", l.device)
	return errors.Join(err, l.end())
}

// end ends the daemon.
func (l *logging) end() error {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-l.ended:
			return nil
		default:
		}
		if err := l.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-l.ended:
			return nil
		case <-time.After(10 * time.Second):
		}
	}
	return errors.New("qemu-storage-daemon does not end when killed")
}
