package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/test/rig"
)

// subject is a volume under load: raw, or with a file system on it.
type subject struct {
	t    *torture
	kind string // raw, ext4 or xfs; also the volume's name
	size int64

	device  string
	dir     string     // where its file system is mounted
	writers []*writer  // that overwrite, each its own range or file
	records *rigRecord // appends; nil on a raw volume
	names   *renamer   // replaces a file by renaming; nil on a raw volume
}

// writer overwrites a range that nobody else writes to and keeps the ledger of it.
type writer struct {
	ledger *rig.Ledger
	rand   *rand.Rand
	off    int64  // of the range, on a raw device
	file   string // in a file system; "" on a raw device
	sync   bool   // only what is synced counts as acknowledged
	done   atomic.Int64
}

// rangeBytes is what each writer overwrites.
const rangeBytes = 4 << 20

func (t *torture) newSubject(kind string, size int64) *subject {
	s := &subject{t: t, kind: kind, size: size}
	n := 1
	if kind == "raw" {
		n = int(size / rangeBytes)
	}
	for i := range n {
		w := &writer{ledger: rig.NewLedger(rangeBytes, t.tag()), rand: t.newRand(), off: int64(i) * rangeBytes}
		w.sync = kind != "raw" || t.o.lose != "" // without a power cut every answered write counts
		if kind != "raw" {
			w.file, w.off = "overwritten", 0
		}
		s.writers = append(s.writers, w)
	}
	return s
}

// prepare makes the volume and what is to be on it.
func (s *subject) prepare(ctx context.Context) error {
	if _, err := s.t.daemon.Do(ctx, "volume", "create", s.kind, "--size", fmt.Sprint(s.size)); err != nil {
		return err
	}
	if s.kind == "raw" {
		return nil
	}
	if err := s.attach(ctx); err != nil {
		return err
	}
	if err := mkfs(ctx, s.kind, s.device); err != nil {
		return err
	}
	if err := s.mount(ctx, s.kind, s.device); err != nil {
		return err
	}
	name := filepath.Join(s.dir, s.writers[0].file)
	if err := os.WriteFile(name, make([]byte, rangeBytes), 0o600); err != nil {
		return err
	}
	if err := rig.SyncFS(s.dir); err != nil {
		return err
	}
	return s.close(ctx)
}

func mkfs(ctx context.Context, kind, device string) error {
	args := []string{"-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", device}
	if kind == "xfs" {
		args = []string{"-q", "-f", device}
	}
	_, err := rig.Run(ctx, 0, "mkfs."+kind, args...)
	return err
}

func (s *subject) attach(ctx context.Context) (err error) {
	s.device, err = s.t.attach(ctx, s.kind)
	return err
}

// mount mounts a device, which may be that of a copy.
func (s *subject) mount(ctx context.Context, name, device string) error {
	s.dir = filepath.Join(s.t.dir, "mnt-"+name)
	var options []string
	if s.kind == "xfs" {
		options = []string{"nouuid"}
	}
	return rig.Mount(ctx, &s.t.cleanup, s.kind, device, s.dir, options...)
}

// close unmounts, lets the file system's checker look, and detaches.
func (s *subject) close(ctx context.Context) error {
	if s.kind != "raw" {
		if err := rig.Unmount(ctx, s.dir); err != nil {
			return err
		}
		if err := s.fsck(ctx, s.device); err != nil {
			return err
		}
	}
	_, err := s.t.daemon.Do(ctx, "volume", "detach", s.kind)
	return err
}

// fsck must find nothing to do.
func (s *subject) fsck(ctx context.Context, device string) error {
	var err error
	switch s.kind {
	case "ext4":
		_, err = rig.Run(ctx, 0, "e2fsck", "-fn", device)
	case "xfs":
		_, err = rig.Run(ctx, 0, "xfs_repair", "-n", device)
	}
	return err
}

// bury unmounts what is left when the daemon is dead.
func (s *subject) bury(ctx context.Context) error {
	if s.kind == "raw" {
		return nil
	}
	return rig.Unmount(ctx, s.dir)
}

// open opens what the writer writes to: a raw device for direct I/O.
func (s *subject) open(w *writer, device, dir string) (*os.File, error) {
	if s.kind == "raw" {
		return os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	}
	return os.OpenFile(filepath.Join(dir, w.file), os.O_RDWR, 0)
}

// start starts all writers; they end when their device does. The errors that end them are
// no findings: the device dies with the daemon.
func (s *subject) start(round int) error {
	for _, w := range s.writers {
		f, err := s.open(w, s.device, s.dir)
		if err != nil {
			return err
		}
		s.t.running.Go(func() {
			defer f.Close()
			for s.t.step(w, f) == nil {
			}
		})
	}
	if s.kind == "raw" {
		return nil
	}
	var err error
	if s.records, err = startRecords(s.dir, round); err != nil {
		return err
	}
	s.names = &renamer{dir: s.dir}
	s.t.running.Go(s.names.run)
	return nil
}

// step does one operation, then sometimes a sync.
func (t *torture) step(w *writer, f *os.File) error {
	if t.over.Load() {
		return errors.New("the round is over")
	}
	op, n := w.ledger.Issue(w.rand)
	if err := perform(f, op, w.off); err != nil {
		return err
	}
	w.done.Store(int64(n))
	if !w.sync {
		w.ledger.Ack(n)
		if w.rand.IntN(20) > 0 {
			return nil
		}
	} else if w.rand.IntN(4) > 0 {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	w.ledger.Ack(n)
	return nil
}

// perform does an operation to a file or device whose range begins at off.
func perform(f *os.File, op rig.Op, off int64) error {
	if op.Sample == 0 {
		const zero = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
		for {
			if err := unix.Fallocate(int(f.Fd()), zero, off+op.Off(), op.Len()); err != unix.EINTR {
				return err
			}
		}
	}
	p := aligned(op.Len())
	op.Fill(p)
	_, err := f.WriteAt(p, off+op.Off())
	return err
}

// aligned makes a buffer for direct I/O.
func aligned(n int64) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := int64(-uintptr(unsafe.Pointer(&b[0])) & (page - 1))
	return b[skip : skip+n : skip+n]
}

// alignedReader reads a raw device for a judge whose buffer is anywhere.
type alignedReader struct{ f *os.File }

func (r alignedReader) ReadAt(p []byte, off int64) (int, error) {
	b := aligned(int64(len(p)))
	n, err := r.f.ReadAt(b, off)
	return copy(p, b[:n]), err
}
