package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/test/rig"
)

// demo is the state of one run.
type demo struct {
	out         *report
	bin         string
	sampleBytes int64
	cleanup     rig.Cleanup

	dir    string
	daemon *rig.Daemon
	csi    *orchestrator
	sample *rig.Sample

	a, b, restored, clone *volume
	snapshotID            string
	writers               []*rig.Records // those that ran while the snapshot was taken
	called, replied       time.Time      // of that snapshot
	later                 []*rig.Records // those that ran when the daemon was killed

	// What each volume must hold, beside the writers' records.
	wantA, wantClone rig.Tree

	compared int // files and records that were compared
}

const (
	gib         = 1 << 30
	volumeBytes = 4 * gib
	grownBytes  = 6 * gib
	// recordsDir is where the writers write, below a volume's root.
	recordsDir = "records"
	// quiet is how much of a journal may be left unfolded when space is counted.
	quiet = 1 << 20
)

// step is a chapter of the story; it returns facts for the reader.
type step struct {
	title string
	do    func(context.Context) ([]string, error)
}

// play runs all steps, then shows what they take on disk, then takes them down.
func (d *demo) play(ctx context.Context) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	d.out.title("The main job, over the CSI socket")
	err := d.steps(ctx, []step{
		{"start the daemon, ask who it is", d.start},
		{"data-a: create, stage and publish (4 GiB, ext4)", d.makeA},
		{"data-a: fill it", d.fillA},
		{"data-b: create, stage and publish (4 GiB, xfs)", d.makeB},
		{"data-b: fill it with the same files in another order", d.fillB},
		{"fold both journals into chunks", d.fold},
		{"data-a: snapshot while four writers append to it", d.snapshotBusy},
		{"data-a: change, delete and trim", d.changeA},
		{"kill -9 the daemon under six writers", d.kill},
		{"start it again, stage and publish as before", d.recover},
		{"data-a and data-b: compare", d.compareAfterKill},
		{"restored: a volume from the snapshot; compare", d.restore},
		{"clone: another from the snapshot, changed; compare", d.makeClone},
		{"grow from 4 to 6 GiB in use", d.grow},
		{"end the daemon in order and start it again", d.restart},
		{"compare all four volumes with the originals", d.compareAll},
		{"check the store, reading all data", d.check},
		{"collect garbage", d.collect},
	})
	if err != nil {
		return err
	}
	if err := d.showSpace(ctx); err != nil {
		return err
	}
	d.out.title("Clean-up")
	return d.steps(ctx, []step{
		{"unpublish and unstage everything", d.leaveAll},
		{"delete volumes and snapshot, the sources first", d.removeAll},
		{"collect, end the daemon", d.finish},
	})
}

func (d *demo) steps(ctx context.Context, all []step) error {
	for _, s := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.out.step(s.title, func() ([]string, error) { return s.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// prepare reads the originals.
func (d *demo) prepare(ctx context.Context) error {
	var err error
	if d.dir, err = rig.WorkDir("granary-demo-", 4*gib, &d.cleanup); err != nil {
		return err
	}
	if d.sample, err = rig.TakeSample(ctx, d.sampleBytes); err != nil {
		return err
	}
	d.out.title("Granary demo")
	d.out.text("  %s files, %s of this machine's Go tree and /usr; %d cores; in %s",
		thousands(len(d.sample.Tree)), size(d.sample.Bytes()), runtime.NumCPU(), d.dir)
	return nil
}

func (d *demo) start(ctx context.Context) ([]string, error) {
	d.daemon = rig.NewDaemon(d.bin, d.dir, &d.cleanup)
	if err := d.daemon.Start(ctx); err != nil {
		return nil, err
	}
	var err error
	if d.csi, err = newOrchestrator(d.daemon.Socket(), filepath.Join(d.dir, "mnt"), &d.cleanup); err != nil {
		return nil, err
	}
	who, err := d.csi.whoAreYou(ctx)
	return []string{who}, err
}

// makeVolume creates a volume and puts it to use.
func (d *demo) makeVolume(ctx context.Context, name, fsType string, size int64, fromSnapshot string) (*volume, error) {
	v, err := d.csi.create(ctx, name, fsType, size, fromSnapshot)
	if err != nil {
		return nil, err
	}
	return v, d.csi.use(ctx, v)
}

func (d *demo) makeA(ctx context.Context) (facts []string, err error) {
	d.a, err = d.makeVolume(ctx, "data-a", "ext4", volumeBytes, "")
	return nil, err
}

func (d *demo) makeB(ctx context.Context) (facts []string, err error) {
	d.b, err = d.makeVolume(ctx, "data-b", "xfs", volumeBytes, "")
	return nil, err
}

func (d *demo) fillA(ctx context.Context) ([]string, error) {
	d.wantA = d.sample.Tree.Clone()
	return d.fill(ctx, d.a, d.sample.Names())
}

func (d *demo) fillB(ctx context.Context) ([]string, error) {
	names := d.sample.Names()
	rand.New(rand.NewPCG(2, 3)).Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return d.fill(ctx, d.b, names)
}

func (d *demo) fill(ctx context.Context, v *volume, names []string) ([]string, error) {
	start := time.Now()
	if err := d.sample.Copy(ctx, v.target, names); err != nil {
		return nil, err
	}
	rate := float64(d.sample.Bytes()) / (1 << 20) / time.Since(start).Seconds()
	return []string{fmt.Sprintf("%s in %s files, %.0f MiB/s with the last sync", size(d.sample.Bytes()), thousands(len(names)), rate)}, nil
}

func (d *demo) fold(ctx context.Context) ([]string, error) {
	stats, err := d.daemon.WaitFolded(ctx, quiet, time.Minute)
	if err != nil {
		return nil, err
	}
	plain, err := rig.Allocated(d.a.target)
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("one copy as plain files takes %s; both volumes together are stored in %s", size(plain), size(stats.Stored))}, nil
}

// startWriters starts writers of records in a volume: small ones as a database's log
// writes them, and one of large records.
func (d *demo) startWriters(v *volume, dir string, tag uint32, small int) ([]*rig.Records, error) {
	path := filepath.Join(v.target, recordsDir, dir)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	var all []*rig.Records
	for i := range small + 1 {
		bytes, rest := 4096, time.Duration(0)
		if i == small {
			bytes, rest = 256<<10, 5*time.Millisecond
		}
		w, err := rig.StartRecords(filepath.Join(path, fmt.Sprintf("writer-%d", i)), tag+uint32(i), bytes, rest)
		if err != nil {
			return nil, err
		}
		d.cleanup.Add("end a writer", func() error { _ = w.Stop(); return nil })
		all = append(all, w)
	}
	return all, nil
}

func (d *demo) snapshotBusy(ctx context.Context) ([]string, error) {
	var err error
	if d.writers, err = d.startWriters(d.a, "first", 100, 3); err != nil {
		return nil, err
	}
	began := time.Now()
	time.Sleep(1500 * time.Millisecond)
	d.called = time.Now()
	snap, err := d.csi.snapshot(ctx, d.a, "before-the-change")
	d.replied = time.Now()
	if err != nil {
		return nil, err
	}
	d.snapshotID = snap.SnapshotId
	time.Sleep(500 * time.Millisecond)
	if err := stopAll(d.writers); err != nil {
		return nil, err
	}
	if err := d.csi.waitReady(ctx, d.a, "before-the-change"); err != nil {
		return nil, err
	}
	calm := longest(d.writers, began, d.called.Add(-time.Millisecond))
	during := longest(d.writers, d.called, d.replied)
	return []string{
		fmt.Sprintf("taken %s after the call, under load; folded and ready to use after %s",
			ms(snap.CreationTime.AsTime().Sub(d.called)), ms(d.replied.Sub(d.called))),
		fmt.Sprintf("the slowest write with fsync took %s meanwhile, %s before", ms(during), ms(calm)),
	}, nil
}

func stopAll(writers []*rig.Records) error {
	for _, w := range writers {
		if err := w.Stop(); err != nil {
			return fmt.Errorf("a writer failed: %w", err)
		}
	}
	return nil
}

func longest(writers []*rig.Records, from, to time.Time) time.Duration {
	var t time.Duration
	for _, w := range writers {
		t = max(t, w.Longest(from, to))
	}
	return t
}

// changeSome deletes and changes files in a copy of the sample and keeps the tree of
// what must be there in step.
func (d *demo) changeSome(v *volume, want rig.Tree, seed uint64) (deleted, changed int, err error) {
	r := rand.New(rand.NewPCG(seed, 5))
	text := []byte(strings.Repeat(fmt.Sprintf("changed by the demo, seed %d\n", seed), 300))
	for _, name := range d.sample.Names() {
		switch n := r.IntN(100); {
		case n < 20:
			if err := os.Remove(filepath.Join(v.target, name)); err != nil {
				return deleted, changed, err
			}
			delete(want, name)
			deleted++
		case n < 25 && want[name].Mode.IsRegular() && want[name].Size > 0:
			if want[name], err = d.sample.Change(v.target, name, text); err != nil {
				return deleted, changed, err
			}
			changed++
		}
	}
	return deleted, changed, rig.SyncFS(v.target)
}

func (d *demo) changeA(ctx context.Context) ([]string, error) {
	deleted, changed, err := d.changeSome(d.a, d.wantA, 7)
	if err != nil {
		return nil, err
	}
	if _, err := rig.Run(ctx, 0, "fstrim", d.a.target); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("%s files deleted, %s changed in place and lengthened", thousands(deleted), thousands(changed))}, nil
}

func (d *demo) kill(context.Context) ([]string, error) {
	for i, v := range []*volume{d.a, d.b} {
		w, err := d.startWriters(v, "killed", uint32(200+100*i), 2)
		if err != nil {
			return nil, err
		}
		d.later = append(d.later, w...)
	}
	time.Sleep(1200 * time.Millisecond)
	if err := d.daemon.Kill(); err != nil {
		return nil, err
	}
	records := 0
	for _, w := range d.later {
		_ = w.Stop() // most have met an I/O error, as they should
		records += w.Synced(time.Now())
	}
	return []string{fmt.Sprintf("%s records had been synced by then", thousands(records))}, nil
}

func (d *demo) recover(ctx context.Context) ([]string, error) {
	start := time.Now()
	if err := d.daemon.Start(ctx); err != nil {
		return nil, err
	}
	took := time.Since(start)
	for _, v := range []*volume{d.a, d.b} {
		if err := d.csi.use(ctx, v); err != nil {
			return nil, err
		}
	}
	return []string{fmt.Sprintf("the daemon answers again after %s", ms(took))}, nil
}

func (d *demo) compareAfterKill(ctx context.Context) ([]string, error) {
	if err := d.verify(ctx, d.a, d.wantA); err != nil {
		return nil, err
	}
	if err := d.verify(ctx, d.b, d.sample.Tree); err != nil {
		return nil, err
	}
	n, err := d.judgeKilled()
	return []string{fmt.Sprintf("every file as it was; of the synced records none is missing (%s read)", thousands(n))}, err
}

// judgeKilled reads the records that were written when the daemon was killed.
func (d *demo) judgeKilled() (int, error) {
	end := time.Now()
	sum := 0
	for _, w := range d.later {
		n, err := w.Judge(w.Path, w.Synced(end), w.Begun(end))
		if err != nil {
			return sum, err
		}
		sum += n
	}
	d.compared += sum
	return sum, nil
}

// judgeSnapshot reads the records that were written while the snapshot was taken, in
// a volume made from it: all that were synced before the call must be there, none
// that was begun after the reply may be.
func (d *demo) judgeSnapshot(v *volume) (int, error) {
	sum := 0
	for _, w := range d.writers {
		rel, err := filepath.Rel(d.a.target, w.Path)
		if err != nil {
			return sum, err
		}
		n, err := w.Judge(filepath.Join(v.target, rel), w.Synced(d.called), w.Begun(d.replied))
		if err != nil {
			return sum, err
		}
		sum += n
	}
	d.compared += sum
	return sum, nil
}

func (d *demo) verify(ctx context.Context, v *volume, want rig.Tree) error {
	if err := want.Verify(ctx, v.target, recordsDir); err != nil {
		return fmt.Errorf("%s: %w", v.name, err)
	}
	d.compared += len(want)
	return nil
}

func (d *demo) restore(ctx context.Context) ([]string, error) {
	start := time.Now()
	v, err := d.csi.create(ctx, "restored", "ext4", volumeBytes, d.snapshotID)
	if err != nil {
		return nil, err
	}
	made := time.Since(start)
	if err := d.csi.use(ctx, v); err != nil {
		return nil, err
	}
	d.restored = v
	if err := d.verify(ctx, v, d.sample.Tree); err != nil {
		return nil, err
	}
	n, err := d.judgeSnapshot(v)
	return []string{
		fmt.Sprintf("made in %s; every file is the original", ms(made)),
		fmt.Sprintf("%s records: all that were synced before the call, none begun after the answer", thousands(n)),
	}, err
}

func (d *demo) makeClone(ctx context.Context) (facts []string, err error) {
	if d.clone, err = d.makeVolume(ctx, "clone", "ext4", grownBytes, d.snapshotID); err != nil {
		return nil, err
	}
	if err := wantCapacity(d.clone); err != nil {
		return nil, err
	}
	d.wantClone = d.sample.Tree.Clone()
	deleted, changed, err := d.changeSome(d.clone, d.wantClone, 11)
	if err != nil {
		return nil, err
	}
	if err := d.verify(ctx, d.clone, d.wantClone); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("larger than its source; %s files deleted and %s changed in it alone", thousands(deleted), thousands(changed))}, nil
}

// grow grows volumes in use. To grow a mounted ext4 the kernel wants a capability that
// some machines withhold; xfs grows everywhere.
func (d *demo) grow(ctx context.Context) ([]string, error) {
	volumes, facts := []*volume{d.b, d.a}, []string{"both grew under running writers"}
	if !rig.GrowsExt4() {
		volumes = volumes[:1]
		facts = []string{"data-b grew under running writers; for a mounted ext4 this machine lacks CAP_SYS_RESOURCE"}
	}
	for i, v := range volumes {
		w, err := d.startWriters(v, "grown", uint32(500+100*i), 1)
		if err != nil {
			return nil, err
		}
		if err := d.csi.expand(ctx, v, grownBytes); err != nil {
			return nil, err
		}
		if err := wantCapacity(v); err != nil {
			return nil, err
		}
		if err := stopAll(w); err != nil {
			return nil, err
		}
		d.later = append(d.later, w...)
	}
	return facts, nil
}

// wantCapacity wants a volume's file system as large as the volume.
func wantCapacity(v *volume) error {
	has, err := capacity(v.target)
	if err == nil && has < v.size*9/10 {
		err = fmt.Errorf("%s: the file system has %d bytes, the volume %d", v.name, has, v.size)
	}
	return err
}

// capacity is the size of the file system at dir.
func capacity(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Blocks) * st.Bsize, nil
}

func (d *demo) volumes() []*volume { return []*volume{d.a, d.b, d.restored, d.clone} }

func (d *demo) restart(ctx context.Context) ([]string, error) {
	for _, v := range d.volumes() {
		if err := d.csi.leave(ctx, v); err != nil {
			return nil, err
		}
	}
	if err := d.daemon.Stop(time.Minute); err != nil {
		return nil, err
	}
	if err := d.daemon.Start(ctx); err != nil {
		return nil, err
	}
	for _, v := range d.volumes() {
		if err := d.csi.use(ctx, v); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (d *demo) compareAll(ctx context.Context) ([]string, error) {
	if err := rig.DropCaches(); err != nil {
		return nil, err
	}
	start, before := time.Now(), d.compared
	var bytes int64
	for _, v := range d.volumes() {
		want := d.sample.Tree
		switch v {
		case d.a:
			want = d.wantA
		case d.clone:
			want = d.wantClone
		}
		if err := d.verify(ctx, v, want); err != nil {
			return nil, err
		}
		bytes += want.Bytes()
	}
	if _, err := d.judgeSnapshot(d.restored); err != nil {
		return nil, err
	}
	if _, err := d.judgeSnapshot(d.clone); err != nil {
		return nil, err
	}
	if _, err := d.judgeKilled(); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("%s files and records, %s read at %.0f MiB/s, no difference", thousands(d.compared-before),
		size(bytes), float64(bytes)/(1<<20)/time.Since(start).Seconds())}, nil
}

func (d *demo) check(ctx context.Context) ([]string, error) {
	_, err := d.daemon.Do(ctx, "check", "--read-data")
	return nil, err
}

func (d *demo) collect(ctx context.Context) ([]string, error) {
	if _, err := d.daemon.WaitFolded(ctx, quiet, time.Minute); err != nil {
		return nil, err
	}
	before, err := d.daemon.Stats(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := d.daemon.Do(ctx, "collect", "--wait"); err != nil {
		return nil, err
	}
	after, err := d.daemon.Stats(ctx)
	return []string{fmt.Sprintf("stored %s before, %s after", size(before.Stored), size(after.Stored))}, err
}

func (d *demo) leaveAll(ctx context.Context) ([]string, error) {
	for _, v := range d.volumes() {
		if err := d.csi.leave(ctx, v); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (d *demo) removeAll(ctx context.Context) ([]string, error) {
	start := time.Now()
	for _, v := range []*volume{d.a, d.b} {
		if err := d.csi.remove(ctx, v); err != nil {
			return nil, err
		}
	}
	if err := d.csi.removeSnapshot(ctx, d.snapshotID); err != nil {
		return nil, err
	}
	for _, v := range []*volume{d.restored, d.clone} {
		if err := d.csi.remove(ctx, v); err != nil {
			return nil, err
		}
	}
	return []string{fmt.Sprintf("five deletions in %s", ms(time.Since(start)))}, nil
}

func (d *demo) finish(ctx context.Context) ([]string, error) {
	if _, err := d.daemon.WaitFolded(ctx, 0, time.Minute); err != nil {
		return nil, err
	}
	if _, err := d.daemon.Do(ctx, "collect", "--wait"); err != nil {
		return nil, err
	}
	stats, err := d.daemon.Stats(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.daemon.Stop(time.Minute); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("the empty store holds %s", size(stats.Stored))}, nil
}
