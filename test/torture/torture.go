package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// torture is one run.
type torture struct {
	o       options
	dir     string
	daemon  *rig.Daemon
	cleanup rig.Cleanup
	serial  int
	rand    *rand.Rand // of the main goroutine, and of manage while the main one waits

	subjects  []*subject
	snapshots []snapshot

	running sync.WaitGroup // writers and the manager
	over    atomic.Bool    // they are to end

	count struct{ rounds, kills, startKills, snapshots, compared int }
}

func newTorture(o options) *torture {
	return &torture{o: o, rand: rand.New(rand.NewPCG(o.seed, 0))}
}

// newRand makes the source of one writer.
func (t *torture) newRand() *rand.Rand { return rand.New(rand.NewPCG(t.rand.Uint64(), 1)) }

func (t *torture) tag() uint16 {
	t.serial++
	return uint16(t.serial)
}

func (t *torture) name(what string) string {
	t.serial++
	return fmt.Sprintf("%s-%d", what, t.serial)
}

// run makes the volumes and goes through all rounds. The first finding ends it.
func (t *torture) run(ctx context.Context) (err error) {
	if t.dir, err = rig.WorkDir("granary-torture-", 3<<30, &t.cleanup); err != nil {
		return err
	}
	// A small store: journals fill, files are sealed, garbage is collected.
	t.daemon = rig.NewDaemon(t.o.granary, t.dir, &t.cleanup,
		"--journal-size", "64MiB", "--reserve-size", "8MiB", "--cache-size", "16MiB", "--buffer-size", "16MiB")
	if t.o.store != "" {
		if err := os.Symlink(t.o.store, t.daemon.DataDir()); err != nil {
			return err
		}
	}
	if err := t.daemon.Start(ctx); err != nil {
		return err
	}
	t.subjects = []*subject{t.newSubject("raw", 8<<20), t.newSubject("ext4", 48<<20), t.newSubject("xfs", 300<<20)}
	for _, s := range t.subjects {
		if err := s.prepare(ctx); err != nil {
			return err
		}
	}
	if err := t.openAll(ctx, make([]*expected, len(t.subjects))); err != nil {
		return err
	}
	for t.count.rounds < t.o.rounds {
		if err := t.round(ctx); err != nil {
			return err
		}
		t.count.rounds++
		if t.count.rounds%10 == 0 {
			fmt.Printf("%d rounds, %d kills\n", t.count.rounds, t.count.kills)
		}
	}
	return t.end(ctx)
}

// round lets everybody work, kills the daemon, starts it again and judges.
func (t *torture) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	t.over.Store(false)
	for _, s := range t.subjects {
		if err := s.start(t.count.rounds); err != nil {
			return err
		}
	}
	var manager sync.WaitGroup
	pause := time.Duration(50+t.rand.IntN(1150)) * time.Millisecond
	manager.Go(func() { t.manage(ctx) })
	time.Sleep(pause)
	if err := t.kill(); err != nil {
		return err
	}
	t.over.Store(true)
	manager.Wait()
	t.running.Wait()
	var holds []*expected
	for _, s := range t.subjects {
		if s.records != nil {
			_ = s.records.Stop() // its device is gone, and so it ended with an error
		}
		e, err := s.expect()
		if err != nil {
			return err
		}
		holds = append(holds, e)
		if err := s.bury(ctx); err != nil {
			return err
		}
	}
	if err := t.restart(ctx); err != nil {
		return err
	}
	if err := t.openAll(ctx, holds); err != nil {
		return err
	}
	return t.reviewCopies(ctx)
}

func (t *torture) kill() error {
	t.count.kills++
	return t.daemon.Kill()
}

// restart starts the daemon, and sometimes kills it before it is ready.
func (t *torture) restart(ctx context.Context) error {
	for {
		if err := t.lose(ctx); err != nil {
			return err
		}
		if t.rand.IntN(4) > 0 {
			return t.daemon.Start(ctx)
		}
		starting, cancel := context.WithTimeout(ctx, time.Duration(t.rand.IntN(400))*time.Millisecond)
		err := t.daemon.Start(starting)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("a start: %w", err)
		}
		if err == nil && t.rand.IntN(2) == 0 {
			return nil
		}
		t.count.startKills++
		if err := t.kill(); err != nil {
			return err
		}
	}
}

// lose loses what was not synced.
func (t *torture) lose(ctx context.Context) error {
	if t.o.lose == "" {
		return nil
	}
	_, err := rig.Run(ctx, 0, "sh", "-c", t.o.lose)
	return err
}

func (t *torture) attach(ctx context.Context, volume string) (string, error) {
	device, err := t.daemon.Do(ctx, "volume", "attach", volume)
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(device, "/dev/loop") {
		return "", fmt.Errorf("volume attach %s: printed %q", volume, device)
	}
	return device, rig.NoteLoop(&t.cleanup, device)
}

// openAll attaches the subjects and judges those of which something is expected.
func (t *torture) openAll(ctx context.Context, holds []*expected) error {
	for i, s := range t.subjects {
		if err := s.attach(ctx); err != nil {
			return err
		}
		switch {
		case holds[i] != nil:
			if err := s.review(ctx, holds[i]); err != nil {
				return err
			}
		case s.kind != "raw":
			if err := s.mount(ctx, s.kind, s.device); err != nil {
				return err
			}
		}
	}
	return nil
}

// reviewCopies looks at a snapshot, and every few rounds checks the whole store.
func (t *torture) reviewCopies(ctx context.Context) error {
	if len(t.snapshots) > 0 {
		t.count.compared++
		if err := t.reviewSnapshot(ctx, t.snapshots[t.rand.IntN(len(t.snapshots))]); err != nil {
			return err
		}
	}
	if t.count.rounds%5 != 0 {
		return nil
	}
	_, err := t.daemon.Do(ctx, "check", "--read-data")
	return err
}

// end judges all snapshots that are left and checks the store once more, at rest.
func (t *torture) end(ctx context.Context) error {
	for _, sn := range t.snapshots {
		t.count.compared++
		if err := t.reviewSnapshot(ctx, sn); err != nil {
			return err
		}
	}
	for _, s := range t.subjects {
		if err := s.close(ctx); err != nil {
			return err
		}
	}
	if err := t.daemon.Stop(time.Minute); err != nil {
		return err
	}
	_, err := t.daemon.Do(ctx, "check", "--read-data")
	return err
}
