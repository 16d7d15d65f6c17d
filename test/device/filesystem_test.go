package device

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// sample is real data for all tests, read once.
var sample = sync.OnceValues(func() (*rig.Sample, error) {
	return rig.TakeSample(contextForSample(), 48<<20)
})

func (e *env) sample() *rig.Sample {
	e.Helper()
	s, err := sample()
	if err != nil {
		e.Fatal(err)
	}
	return s
}

// verify compares a mounted tree with what must be there.
func (e *env) verify(want rig.Tree, dir string, ignore ...string) {
	e.Helper()
	if err := want.Verify(e.ctx, dir, ignore...); err != nil {
		e.Fatal(err)
	}
}

func (e *env) fill(dir string) {
	e.Helper()
	s := e.sample()
	if err := s.Copy(e.ctx, dir, s.Names()); err != nil {
		e.Fatal(err)
	}
}

// fsSize is enough for the sample, and for the smallest xfs.
const fsSize = "512MiB"

// TestFilesystemKeepsFiles fills a file system, and finds it clean and complete after
// detaching, after a restart of the daemon, and in a clone of a clone.
func TestFilesystemKeepsFiles(t *testing.T) {
	eachFS(t, func(t *testing.T, kind string) {
		e := newFastEnv(t, 2*time.Minute)
		e.create("fs", fsSize)
		device := e.attach("fs")
		e.mkfs(kind, device)
		dir := e.mount(kind, device, "fs")
		e.fill(dir)
		e.unmount(dir)
		e.fsck(kind, device)
		e.detach("fs")
		e.stop()
		e.serve()

		e.create("clone-1", "", "--from-volume", "fs")
		e.do("volume", "rm", "fs")
		e.create("clone-2", "600MiB", "--from-volume", "clone-1")
		e.do("volume", "rm", "clone-1")
		device = e.attach("clone-2")
		e.fsck(kind, device)
		dir = e.mount(kind, device, "clone-2")
		e.verify(e.sample().Tree, dir)
		e.unmount(dir)
		e.detach("clone-2")
	})
}

// TestTrimGivesHoles deletes what was written and trims: the space must be given back
// by the volume, and by the store after a collection.
func TestTrimGivesHoles(t *testing.T) {
	eachFS(t, func(t *testing.T, kind string) {
		e := newFastEnv(t, 2*time.Minute)
		e.create("fs", fsSize)
		device := e.attach("fs")
		e.mkfs(kind, device)
		dir := e.mount(kind, device, "fs")
		e.run("fstrim", dir)
		e.unmount(dir)
		e.detach("fs")
		empty, emptyStore := e.logical("fs"), e.waitFolded().Stored

		device = e.attach("fs")
		dir = e.mount(kind, device, "fs")
		e.fill(dir)
		e.unmount(dir)
		e.detach("fs")
		full := e.logical("fs")
		if full < empty+e.sample().Bytes() {
			t.Errorf("%d bytes in use with the files, %d without", full, empty)
		}

		device = e.attach("fs")
		dir = e.mount(kind, device, "fs")
		for _, top := range []string{"go", "usr"} {
			if err := os.RemoveAll(filepath.Join(dir, top)); err != nil {
				t.Fatal(err)
			}
		}
		e.unmount(dir) // xfs frees the last blocks only now
		dir = e.mount(kind, device, "fs")
		e.run("fstrim", dir)
		e.unmount(dir)
		e.detach("fs")
		if after := e.logical("fs"); after > empty+e.sample().Bytes()/4 { // the file system's own journal stays
			t.Errorf("%d bytes in use after fstrim, %d when it was new, %d when full", after, empty, full)
		}
		e.do("collect", "--wait")
		if stored := e.waitFolded().Stored; stored > emptyStore+(2<<20) {
			t.Errorf("the store has %d bytes after collection, had %d when the volume was new", stored, emptyStore)
		}
	})
}

// logical is how much of a volume is not holes.
func (e *env) logical(name string) int64 {
	e.Helper()
	e.waitFolded()
	return e.show(name).Logical
}

// records starts writers of small and of large records below dir.
func (e *env) records(dir string, tag uint32) []*rig.Records {
	e.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		e.Fatal(err)
	}
	var all []*rig.Records
	for i, size := range []int{512, 4096, 128 << 10} {
		rest := time.Duration(i) * time.Millisecond
		w, err := rig.StartRecords(filepath.Join(dir, fmt.Sprint(size)), tag+uint32(i), size, rest)
		if err != nil {
			e.Fatal(err)
		}
		e.cleanup.Add("end a writer", func() error { _ = w.Stop(); return nil })
		all = append(all, w)
	}
	return all
}

// TestKillUnderWriters kills the daemon again and again while writers append records
// with fsync. Each time the file system must come back clean after its own replay,
// with every record whose fsync had returned (I1).
func TestKillUnderWriters(t *testing.T) {
	const rounds = 8
	eachFS(t, func(t *testing.T, kind string) {
		e := newEnv(t, 3*time.Minute)
		e.create("fs", fsSize)
		e.mkfs(kind, e.attach("fs"))
		var all []*rig.Records
		synced := 0
		for round := range rounds {
			device := e.attach("fs")
			dir := e.mount(kind, device, "fs")
			all = e.records(filepath.Join(dir, fmt.Sprint(round)), uint32(round*10))
			time.Sleep(time.Duration(20+rand.IntN(700)) * time.Millisecond)
			e.kill()
			for _, w := range all {
				_ = w.Stop() // an I/O error, as it should be
				synced += w.Synced(time.Now())
			}
			e.unmountAll()

			e.serve()
			device = e.attach("fs")
			dir = e.mount(kind, device, "fs") // replays the file system's journal
			for _, w := range all {
				if _, err := w.Judge(w.Path, w.Synced(time.Now()), w.Begun(time.Now())); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
			e.unmount(dir)
			e.fsck(kind, device)
		}
		e.detach("fs")
		t.Logf("%d records synced in %d rounds", synced, rounds)
		if synced == 0 {
			t.Error("no record was ever synced")
		}
	})
}

// TestSnapshotOfBusyVolume takes snapshots of a mounted file system under writers. A
// clone of each must hold what was synced before and nothing that was begun after,
// be clean after its replay, and stay so whatever happens to the source (I4).
func TestSnapshotOfBusyVolume(t *testing.T) {
	eachFS(t, func(t *testing.T, kind string) {
		e := newEnv(t, 2*time.Minute)
		e.create("fs", fsSize)
		device := e.attach("fs")
		e.mkfs(kind, device)
		dir := e.mount(kind, device, "fs")
		e.fill(dir)
		writers := e.records(filepath.Join(dir, "records"), 1)

		type moment struct{ called, replied time.Time }
		var taken []moment
		for i := range 5 {
			time.Sleep(200 * time.Millisecond)
			m := moment{called: time.Now()}
			e.snapshot("fs", fmt.Sprint("snap-", i))
			m.replied = time.Now()
			taken = append(taken, m)
		}
		for _, w := range writers {
			if err := w.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		e.unmount(dir)
		e.detach("fs")
		e.do("volume", "rm", "fs")

		for i, m := range taken {
			name := fmt.Sprint("clone-", i)
			e.create(name, "", "--from-snapshot", fmt.Sprint("snap-", i))
			e.do("snapshot", "rm", fmt.Sprint("snap-", i))
			device := e.attach(name)
			clone := e.mount(kind, device, name)
			for _, w := range writers {
				rel, err := filepath.Rel(dir, w.Path)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Judge(filepath.Join(clone, rel), w.Synced(m.called), w.Begun(m.replied)); err != nil {
					t.Errorf("snapshot %d: %v", i, err)
				}
			}
			e.verify(e.sample().Tree, clone, "records")
			e.unmount(clone)
			e.fsck(kind, device)
			e.detach(name)
			e.do("volume", "rm", name)
		}
	})
}

// TestStartClearsMounts leaves a file system mounted when the daemon dies; the next
// start must still come up, and the volume must be usable once that is unmounted.
func TestStartClearsMounts(t *testing.T) {
	e := newEnv(t, time.Minute)
	e.create("fs", fsSize)
	device := e.attach("fs")
	e.mkfs("ext4", device)
	dir := e.mount("ext4", device, "fs")
	e.fill(dir)
	e.kill()
	e.serve()
	e.unmountAll()
	device = e.attach("fs")
	dir = e.mount("ext4", device, "again")
	e.verify(e.sample().Tree, dir)
	e.unmount(dir)
	e.fsck("ext4", device)
	e.detach("fs")
}
