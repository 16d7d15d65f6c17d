package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// expected is what a subject, or a copy of it, may hold.
type expected struct {
	spans   []*rig.Span // one for each writer
	records *rigRecord  // nil: there are none
	atLeast int         // records
	atMost  int
	named   [2]int64 // least and most number of the replaced file
}

// expect tells what the subject must hold now that the daemon is dead.
func (s *subject) expect() (*expected, error) {
	e := &expected{records: s.records}
	for _, w := range s.writers {
		span, err := w.ledger.Span(w.ledger.Bounds())
		if err != nil {
			return nil, err
		}
		e.spans = append(e.spans, span)
	}
	if s.records != nil {
		e.atLeast, e.atMost = s.records.Synced(time.Now()), s.records.Begun(time.Now())
		e.named = [2]int64{s.names.synced.Load(), s.names.begun.Load()}
	}
	return e, nil
}

// during tells what a copy holds that fn makes while the subject is written to.
func (s *subject) during(fn func() error) (*expected, error) {
	e := &expected{records: s.records}
	var from []int
	for _, w := range s.writers {
		acked, _ := w.ledger.Bounds()
		if s.kind == "raw" {
			acked = max(acked, int(w.done.Load())) // on a device an answer is enough
		}
		from = append(from, acked)
	}
	if s.records != nil {
		e.atLeast, e.named[0] = s.records.Synced(time.Now()), s.names.synced.Load()
	}
	if err := fn(); err != nil {
		return nil, err
	}
	if s.records != nil {
		e.atMost, e.named[1] = s.records.Begun(time.Now()), s.names.begun.Load()
	}
	for i, w := range s.writers {
		_, issued := w.ledger.Bounds()
		span, err := w.ledger.Span(from[i], issued)
		if err != nil {
			return nil, err
		}
		e.spans = append(e.spans, span)
	}
	return e, nil
}

// judge compares what is on a device, or mounted, with what is expected. It returns what
// each writer's range holds.
func (s *subject) judge(e *expected, device, dir string) ([]*rig.Found, error) {
	var all []*rig.Found
	for i, w := range s.writers {
		f, err := s.open(w, device, dir)
		if err != nil {
			return nil, err
		}
		var found *rig.Found
		if s.kind == "raw" {
			found, err = e.spans[i].Prefix(alignedReader{f}, w.off, true)
		} else {
			found, err = e.spans[i].Loose(f, 0)
		}
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s, range %d: %w", s.kind, i, err)
		}
		all = append(all, found)
	}
	if e.records == nil {
		return all, nil
	}
	if _, err := e.records.Judge(filepath.Join(dir, e.records.name), e.atLeast, e.atMost); err != nil {
		return nil, fmt.Errorf("%s: %w", s.kind, err)
	}
	return all, judgeRenames(dir, e.named[0], e.named[1])
}

// review judges the subject after a kill, with the daemon back and the device attached,
// and takes what is there as the beginning of the next round.
func (s *subject) review(ctx context.Context, e *expected) error {
	if s.kind != "raw" {
		if err := s.mount(ctx, s.kind, s.device); err != nil {
			return err
		}
		if err := rig.Unmount(ctx, s.dir); err != nil { // the log is replayed now
			return err
		}
		if err := s.fsck(ctx, s.device); err != nil {
			return err
		}
		if err := s.mount(ctx, s.kind, s.device); err != nil {
			return err
		}
	}
	found, err := s.judge(e, s.device, s.dir)
	if err != nil {
		return err
	}
	for i, w := range s.writers {
		w.ledger.Settle(found[i])
		acked, _ := w.ledger.Bounds()
		w.done.Store(int64(acked))
	}
	if s.records == nil {
		return nil
	}
	names := []string{s.records.name, current, next}
	s.records, err = nil, nil
	for _, name := range names {
		if gone := os.Remove(filepath.Join(s.dir, name)); gone != nil && !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return errors.Join(err, rig.SyncFS(s.dir))
}
