package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/test/rig"
)

const (
	diskBytes   = 640 << 20 // of the store's disk; xfs wants 300 MiB at least
	spareBytes  = 48 << 20  // free when the writers begin: another file of the reserve, and some
	ballastName = "ballast"
	record      = 512 << 10 // bytes of a writer's record
)

// fullDisk is a store on a small disk of its own that is filled up, with a filesystem of
// the same kind on one of its volumes.
type fullDisk struct {
	*env
	kind    string
	early   []byte // content of a file that was there before
	device  string // of the volume
	mnt     string // where it is mounted
	writers []*rig.Records
}

// newFullDisk starts a daemon on a disk with a volume in use, and a snapshot, "doomed",
// whose deletion gives much space back.
func newFullDisk(t *testing.T, kind string, serveArgs ...string) *fullDisk {
	t.Helper()
	args := append([]string{"--journal-size", "64MiB", "--reserve-size", "16MiB"}, serveArgs...)
	d := &fullDisk{env: prepareEnv(t, plainBinary, 100*time.Second, args...), kind: kind}
	d.makeDisk()
	d.serve()
	d.create("old", "160MiB", "--compression", "none") // the reserve comes back first, of some 100 MiB
	device := d.attach("old")
	d.run("dd", "if=/dev/urandom", "of="+device, "bs=1M", "count=150", "oflag=direct", "status=none")
	d.detach("old")
	d.snapshot("old", "doomed", "--wait")
	d.do("volume", "rm", "old")
	return d
}

// use makes a volume of the kind, mounted so that reading writes nothing, with something on it, and leaves little of the disk.
func (d *fullDisk) use(more ...string) {
	d.Helper()
	d.create("data", "1GiB", append([]string{"--compression", "none"}, more...)...)
	d.device = d.attach("data")
	d.mkfs(d.kind, d.device)
	d.mnt = d.mount(d.kind, d.device, "data", "noatime")
	d.settle()
}

// settle writes a file of which copies are not in memory, and makes the disk small.
func (d *fullDisk) settle() {
	d.Helper()
	d.early = make([]byte, 8<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(d.early)
	f, err := os.Create(filepath.Join(d.mnt, "early"))
	if err == nil {
		_, err = f.Write(d.early)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = rig.SyncFS(d.mnt)
	}
	if err != nil {
		d.Fatal(err)
	}
	if _, err := d.daemon.WaitFolded(d.ctx, 2<<20, time.Minute); err != nil { // a mounted xfs is never quite idle
		d.Fatal(err)
	}
	d.sealedTakesItsSize()
	d.fillUp(spareBytes)
}

// sealedTakesItsSize: what a file system allocates behind a growing file, as xfs does, is
// given back when the chunk file is sealed, though the daemon has it open for reading.
func (d *fullDisk) sealedTakesItsSize() {
	d.Helper()
	sealed, err := filepath.Glob(filepath.Join(d.daemon.DataDir(), "chunks", "*.chunks"))
	if err != nil || len(sealed) == 0 {
		d.Fatalf("sealed chunk files: %v, %v", sealed, err)
	}
	for _, name := range sealed {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			d.Fatal(err)
		}
		if st.Blocks*512 > st.Size+64<<10 {
			d.Errorf("%s: %d bytes are allocated for %d", name, st.Blocks*512, st.Size)
		}
	}
}

// makeDisk makes the disk, on which the store will be.
func (d *fullDisk) makeDisk() {
	d.Helper()
	image := filepath.Join(d.dir, "disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		d.Fatal(err)
	}
	if err := os.Truncate(image, diskBytes); err != nil {
		d.Fatal(err)
	}
	device, err := rig.LoopFile(d.ctx, d.cleanup, image)
	if err != nil {
		d.Fatal(err)
	}
	d.mkfs(d.kind, device)
	if err := rig.Mount(d.ctx, d.cleanup, d.kind, device, d.daemon.DataDir()); err != nil {
		d.Fatal(err)
	}
	d.cleanup.Add("end the daemon before its disk goes", func() error {
		if d.daemon.Running() {
			return d.daemon.Kill()
		}
		return nil
	})
}

// fillUp puts ballast on the disk until only so much is left.
func (d *fullDisk) fillUp(left int64) {
	d.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.daemon.DataDir(), &st); err != nil {
		d.Fatal(err)
	}
	d.run("fallocate", "-l", fmt.Sprint(int64(st.Bavail)*st.Bsize-left), d.ballast())
}

// ballast is a file whose removal makes the disk larger.
func (d *fullDisk) ballast() string { return filepath.Join(d.daemon.DataDir(), ballastName) }

// write starts a writer of records with an fsync after each.
func (d *fullDisk) write() *rig.Records {
	d.Helper()
	tag := uint32(len(d.writers) + 1)
	w, err := rig.StartRecords(filepath.Join(d.mnt, fmt.Sprint("records-", tag)), tag, record, 0)
	if err != nil {
		d.Fatal(err)
	}
	d.writers = append(d.writers, w)
	return w
}

// until polls.
func (d *fullDisk) until(what string, cond func() bool) {
	d.Helper()
	for !cond() {
		select {
		case <-d.ctx.Done():
			d.Fatalf("%s: not before the test's end", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stalls waits until the volume says that it waits and the writer makes no progress.
func (d *fullDisk) stalls(w *rig.Records) {
	d.Helper()
	d.until("the volume waits", func() bool { return d.show("data").WaitingSince != nil })
	last, since := -1, time.Now()
	d.until("the writer stands still", func() bool {
		if now := w.Synced(time.Now()); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond && d.show("data").WaitingSince != nil
	})
	if out := d.do("volume", "ls"); !strings.Contains(out, "WAITING for space since") {
		d.Errorf("volume ls does not say that it waits:\n%s", out)
	}
	if out := d.do("stats"); !strings.Contains(out, "FULL: ") {
		d.Errorf("stats does not say so:\n%s", out)
	}
	d.logged("disk is full", "volume waits for disk space")
}

func (d *fullDisk) logged(parts ...string) {
	d.Helper()
	log, err := os.ReadFile(d.daemon.LogFile())
	if err != nil {
		d.Fatal(err)
	}
	for _, part := range parts {
		if !strings.Contains(string(log), part) {
			d.Errorf("the log does not say %q", part)
		}
	}
}

// goesOn waits until the writer has synced more records.
func (d *fullDisk) goesOn(w *rig.Records) {
	d.Helper()
	before := w.Synced(time.Now())
	d.until("the writer goes on", func() bool { return w.Synced(time.Now()) > before+8 })
}

// reads reads from the volume, past the kernel's cache. (Reading its device directly would
// write back first what the filesystem has in the device's cache, and wait like a writer.)
func (d *fullDisk) reads() {
	d.Helper()
	f, err := os.Open(filepath.Join(d.mnt, "early"))
	if err != nil {
		d.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		d.Fatal(err)
	}
	got := make([]byte, len(d.early))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, d.early) {
		d.Errorf("the early file reads otherwise: %v", err)
	}
}

// judge mounts the volume, which replays its log, checks it, and looks for every record
// whose fsync had returned.
func (d *fullDisk) judge() {
	d.Helper()
	d.device = d.attach("data")
	d.mnt = d.mount(d.kind, d.device, "data", "noatime")
	d.unmount(d.mnt)
	d.fsck(d.kind, d.device)
	d.mnt = d.mount(d.kind, d.device, "data", "noatime")
	for _, w := range d.writers {
		path := filepath.Join(d.mnt, filepath.Base(w.Path))
		if _, err := w.Judge(path, w.Synced(time.Now()), w.Begun(time.Now())); err != nil {
			d.Error(err)
		}
	}
	d.reads()
	d.unmount(d.mnt)
	d.detach("data")
}

// leave ends the use of the volume.
func (d *fullDisk) leave() {
	d.Helper()
	d.unmount(d.mnt)
	d.detach("data")
}

// TestFullDiskWaits fills the store's disk under a filesystem: its writers stand still and
// fail in nothing, reads go on, and the writers too when a snapshot or a volume is deleted
// or the disk grows (I9).
func TestFullDiskWaits(t *testing.T) {
	eachFS(t, func(t *testing.T, kind string) {
		d := newFullDisk(t, kind)
		d.use()
		w := d.write()
		d.stalls(w)
		d.reads()
		var out string
		_, err := d.daemon.Do(d.ctx, "volume", "detach", "data")
		if err != nil {
			out = err.Error()
		}
		if !strings.Contains(out, "wait for disk space since") || !strings.Contains(out, "--on-full error") {
			t.Errorf("detach of a waiting volume: %q", out)
		}
		if _, err := d.daemon.Do(d.ctx, "volume", "create", "another", "--size", "16MiB"); err == nil || !strings.Contains(err.Error(), "is full") {
			t.Errorf("create on a full store: %v", err)
		}
		d.snapshot("data", "meanwhile") // what makes no room for writers works
		d.do("snapshot", "rm", "meanwhile")
		d.do("snapshot", "rm", "doomed")
		d.goesOn(w)
		d.logged("disk has space again")

		d.stalls(w)
		if err := os.Remove(d.ballast()); err != nil {
			t.Fatal(err)
		}
		d.goesOn(w)
		if err := w.Stop(); err != nil {
			t.Errorf("a writer failed: %v", err)
		}
		d.leave()
		d.judge()
	})
}

// TestFullDiskError lets the writes of a volume fail: by its class after the stated time,
// or at once by a word to one that waits. What was synced stays, and the filesystem is
// clean.
func TestFullDiskError(t *testing.T) {
	t.Run("class ext4", func(t *testing.T) { testFullDiskError(t, "ext4", "class") })
	t.Run("word xfs", func(t *testing.T) { testFullDiskError(t, "xfs", "word") })
}

func testFullDiskError(t *testing.T, kind, by string) {
	const timeout = 3 * time.Second
	var d *fullDisk
	if by == "class" {
		d = newFullDisk(t, kind, "--full-timeout", timeout.String())
		d.use("--on-full", "error")
	} else {
		d = newFullDisk(t, kind, "--full-timeout", "1h")
		d.use()
	}
	w := d.write()
	if by == "word" {
		d.stalls(w)
		d.do("volume", "set", "data", "--on-full", "error")
	}
	var since time.Time
	d.until("the writer is told", func() bool {
		if v := d.show("data"); since.IsZero() && v.WaitingSince != nil {
			since = *v.WaitingSince
		}
		return w.Ended()
	})
	if err := w.Stop(); err == nil {
		t.Error("no error")
	}
	if by == "class" && time.Since(since) < timeout {
		t.Errorf("failed %v after the volume began to wait, not after %v", time.Since(since), timeout)
	}
	if kind == "ext4" { // read-only by now; xfs shuts down with its log
		d.reads()
	}
	d.unmount(d.mnt)
	d.detachSoon()
	d.do("snapshot", "rm", "doomed")
	d.do("volume", "set", "data", "--on-full", "wait")
	d.judge()
}

// detachSoon detaches a volume whose last writes have failed: the kernel may tell that to
// one who asks for a flush, and then not again.
func (d *fullDisk) detachSoon() {
	d.Helper()
	if _, err := d.daemon.Do(d.ctx, "volume", "detach", "data"); err != nil {
		d.Logf("first detach: %v", err)
		d.detach("data")
	}
}

// TestFullDiskRestart kills the daemon, and ends it in order, while a volume waits for
// space: the next one starts on the full disk, and nothing synced is lost.
func TestFullDiskRestart(t *testing.T) {
	eachFS(t, func(t *testing.T, kind string) {
		d := newFullDisk(t, kind)
		d.use()
		for _, end := range []func(){d.kill, d.stop} {
			w := d.write()
			d.stalls(w)
			end()
			if err := w.Stop(); err == nil {
				t.Error("the writer did not see that its device died")
			}
			d.unmount(d.mnt)
			d.serve()
			d.device = d.attach("data")
			d.run("dd", "if="+d.device, "of=/dev/null", "bs=1M", "count=32", "iflag=direct", "status=none")
			d.do("snapshot", "create", "data", "at-"+fmt.Sprint(len(d.writers)))
			if len(d.writers) == 1 {
				d.do("snapshot", "rm", "doomed")
			} else if err := os.Remove(d.ballast()); err != nil {
				t.Fatal(err)
			}
			d.mnt = d.mount(kind, d.device, "data", "noatime")
		}
		d.leave()
		d.judge()
	})
}

// TestFullDiskUnstage unstages volumes on a full disk: one whose writer waits, and one
// that has something to write back and does not know yet that it will wait. Both are
// refused in time, with what to do, and stay mounted; with space the repeated call succeeds.
func TestFullDiskUnstage(t *testing.T) {
	eachFS(t, func(t *testing.T, kind string) {
		d := newFullDisk(t, kind)
		busy := d.claimOf("data", kind, 1<<30, nil, "compression=none")
		late := d.claimOf("late", kind, 512<<20, nil, "compression=none")
		d.mnt = d.stage(busy)
		mnt := d.stage(late)
		d.device = d.show("data").Device
		d.settle()
		w := d.write()
		d.stalls(w)
		content := d.early[:4<<20]
		written := make(chan error, 1) // at once, or it waits already: ext4 has work of its own
		go func() { written <- os.WriteFile(filepath.Join(mnt, "late"), content, 0o600) }()
		d.until("it is written or waits", func() bool { return len(written) > 0 || d.show("late").WaitingSince != nil })
		left := []claim{busy, late}
		for range 2 {
			for _, v := range slices.Clone(left) {
				ctx, cancel := context.WithTimeout(d.ctx, 15*time.Second)
				err := d.tryUnstage(ctx, v)
				if err == nil && v == late { // what little it had to write found space for a moment
					cancel()
					left = left[:1]
					continue
				}
				d.wantCode(err, codes.ResourceExhausted, v.name, "wait for disk space since", "--on-full error")
				if mounted, err := rig.Mounted(d.staging(v)); err != nil || !mounted || ctx.Err() != nil {
					t.Errorf("%s: mounted %v, %v; the call's time: %v", v.name, mounted, err, ctx.Err())
				}
				cancel()
			}
		}
		d.do("snapshot", "rm", "doomed")
		d.goesOn(w)
		if err := w.Stop(); err != nil {
			t.Errorf("a writer failed: %v", err)
		}
		if err := <-written; err != nil {
			t.Errorf("writing to the other volume: %v", err)
		}
		for _, v := range left {
			var err error
			d.until("unstage", func() bool { err = d.tryUnstage(d.ctx, v); return err == nil })
			if d.show(v.name).Device != "" {
				t.Errorf("%s is still attached", v.name)
			}
		}
		mnt = d.stage(late)
		if got, err := os.ReadFile(filepath.Join(mnt, "late")); err != nil || !bytes.Equal(got, content) {
			t.Errorf("what was written late reads otherwise: %v", err)
		}
		d.unstage(late)
		d.judge()
	})
}

// TestFullDiskReads: reads go on beside whatever else the kernel has to do on a volume
// that waits: more direct writes than it takes, much to write back, holes and zeros to make.
func TestFullDiskReads(t *testing.T) {
	eachFS(t, func(t *testing.T, kind string) {
		d := newFullDisk(t, kind)
		d.use()
		w := d.write()
		d.stalls(w)
		begin := func(name string, args ...string) <-chan error {
			ended := make(chan error, 1)
			go func() {
				_, err := rig.Run(d.ctx, 100*time.Second, name, args...)
				ended <- err
			}()
			return ended
		}
		direct := begin("fio", "--name=direct", "--directory="+d.mnt, "--size=40M", "--bs=64k", "--rw=write", "--ioengine=libaio",
			"--iodepth=400", "--direct=1", "--fallocate=none")
		cached := begin("dd", "if=/dev/urandom", "of="+filepath.Join(d.mnt, "cached"), "bs=1M", "count=40", "status=none")
		trim := begin("fstrim", d.mnt)
		for range 3 {
			time.Sleep(time.Second) // they come to stand
			d.reads()
		}
		d.do("snapshot", "rm", "doomed")
		if err := os.Remove(d.ballast()); err != nil {
			t.Fatal(err)
		}
		d.goesOn(w)
		if err := errors.Join(w.Stop(), <-direct, <-cached, <-trim); err != nil {
			t.Errorf("a writer failed: %v", err)
		}
		d.leave()
		d.judge()
	})
}
