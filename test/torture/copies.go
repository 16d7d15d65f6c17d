package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// snapshot is one that was acknowledged, and what it holds.
type snapshot struct {
	name  string
	of    *subject
	holds *expected
}

// snapshotsKept is how many snapshots stay for later rounds.
const snapshotsKept = 4

// manage takes snapshots, clones and collects until the daemon dies or the round is over.
// What fails then is no finding.
func (t *torture) manage(ctx context.Context) {
	for !t.over.Load() {
		s := t.subjects[t.rand.IntN(len(t.subjects))]
		var err error
		switch k := t.rand.IntN(10); {
		case k < 5:
			err = t.takeSnapshot(ctx, s)
		case k < 7:
			err = t.cloneAndDrop(ctx, s)
		case k < 8:
			_, err = t.daemon.Do(ctx, "collect", "--wait")
		case len(t.snapshots) > 0:
			err = t.dropSnapshot(ctx)
		}
		if err != nil {
			return
		}
		time.Sleep(time.Duration(t.rand.IntN(50)) * time.Millisecond)
	}
}

func (t *torture) takeSnapshot(ctx context.Context, s *subject) error {
	if len(t.snapshots) >= snapshotsKept {
		return t.dropSnapshot(ctx)
	}
	name := t.name("snap")
	holds, err := s.during(func() error {
		_, err := t.daemon.Do(ctx, "snapshot", "create", s.kind, name)
		return err
	})
	if err == nil {
		t.snapshots = append(t.snapshots, snapshot{name, s, holds})
		t.count.snapshots++
	}
	return err
}

func (t *torture) dropSnapshot(ctx context.Context) error {
	i := t.rand.IntN(len(t.snapshots))
	name := t.snapshots[i].name
	// It may or may not be there when this is cut off: from now on nothing is known.
	t.snapshots = append(t.snapshots[:i], t.snapshots[i+1:]...)
	_, err := t.daemon.Do(ctx, "snapshot", "rm", name)
	return err
}

func (t *torture) cloneAndDrop(ctx context.Context, s *subject) error {
	name := t.name("clone")
	if _, err := t.daemon.Do(ctx, "volume", "create", name, "--from-volume", s.kind); err != nil {
		return err
	}
	_, err := t.daemon.Do(ctx, "volume", "rm", name)
	return err
}

// reviewSnapshot makes a volume of a snapshot and judges it.
func (t *torture) reviewSnapshot(ctx context.Context, sn snapshot) error {
	name := t.name("read")
	if _, err := t.daemon.Do(ctx, "volume", "create", name, "--from-snapshot", sn.name); err != nil {
		return err
	}
	device, err := t.attach(ctx, name)
	if err != nil {
		return err
	}
	s := *sn.of // the copy's mount is not the subject's
	if s.kind != "raw" {
		if err := s.mount(ctx, name, device); err != nil {
			return err
		}
	}
	if _, err := s.judge(sn.holds, device, s.dir); err != nil {
		return fmt.Errorf("snapshot %s: %w", sn.name, err)
	}
	if s.kind != "raw" {
		if err := rig.Unmount(ctx, filepath.Clean(s.dir)); err != nil {
			return err
		}
	}
	if _, err := t.daemon.Do(ctx, "volume", "detach", name); err != nil {
		return err
	}
	_, err = t.daemon.Do(ctx, "volume", "rm", name)
	return err
}
