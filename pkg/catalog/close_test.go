package catalog

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
	"github.com/k8ns/granary/pkg/wal"
)

// Close returns when what was queued is durable and the writer has ended: the log is not
// closed under it.
func TestClose_Waits(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	c := mustOpen(t, fsys, Options{LogBytes: minLogBytes})
	entered, goOn := make(chan struct{}), make(chan struct{})
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync {
			fsys.SetHook(nil)
			close(entered)
			<-goOn
		}
		return nil
	})
	committed, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := c.Commit(put("a", "1"))
		committed <- err
	}()
	<-entered
	go func() { closed <- c.Close() }()
	for closing := false; !closing; runtime.Gosched() {
		c.mu.Lock()
		closing = c.mu.closing
		c.mu.Unlock()
	}
	time.Sleep(time.Millisecond) // a Close that does not wait would be through
	select {
	case err := <-closed:
		t.Errorf("Close returned beside a commit: %v", err)
		close(goOn)
	default:
		close(goOn)
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
	if err := <-committed; err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// Whatever happens, no file stays open behind Close or a failed Open.
func TestNothingStaysOpen(t *testing.T) {
	broken := errors.New("broken")
	mem := vfs.NewMem()
	for _, failing := range []vfs.OpKind{0, vfs.OpRename, vfs.OpDatasync, vfs.OpWrite, vfs.OpSyncDir} {
		fsys := vfs.NewFaulty(mem)
		var descriptors vfstest.Descriptors
		fsys.SetHook(func(op vfs.Op) error {
			if op.Kind == failing {
				return broken
			}
			descriptors.See(op)
			return nil
		})
		c, err := Open(fsys, testDir, testStore, Options{LogBytes: minLogBytes})
		if failing != 0 {
			if !errors.Is(err, broken) {
				t.Fatalf("failing %v: %v", failing, err)
			}
		} else {
			for c.Stats().Log < 4 { // over some logs
				mustCommit(t, c, Op{Key: "a", Value: make([]byte, 8<<10), Expect: ExpectAny})
			}
			mustClose(t, c)
		}
		if open := descriptors.Open(); open != 0 {
			t.Errorf("failing %v: %d files stay open", failing, open)
		}
	}
}

// Numbers that no writer gives are damage, though the checksum is good; and so are names.
func TestNumbersFromOne(t *testing.T) {
	good := fileHeader{store: testStore, log: 1, epoch: 1, firstSeq: 1}
	if _, err := parseFileHeader(good.encode()); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*fileHeader){
		"log": func(h *fileHeader) { h.log = 0 }, "epoch": func(h *fileHeader) { h.epoch = 0 },
		"first sequence": func(h *fileHeader) { h.firstSeq = 0 }, "commit": func(h *fileHeader) { h.commit = maxCounter },
	} {
		h := good
		change(&h)
		if _, err := parseFileHeader(h.encode()); !errors.Is(err, wal.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, name := range []string{logName(0), "1.log", "000000000000000g.log", "0000000000000001", logName(1) + ".tmp"} {
		if n, ok := parseLogName(name); ok {
			t.Errorf("%s is taken for log %d", name, n)
		}
	}
}

// A catalog that failed says so to every later commit, and tells nobody of what may not
// have become durable.
func TestFailedCatalogRefuses(t *testing.T) {
	fsys := vfs.NewFaulty(vfs.NewMem())
	var told []string
	c := mustOpen(t, fsys, Options{LogBytes: minLogBytes, Committed: func(ops []Op) { told = append(told, ops[0].Key) }})
	mustCommit(t, c, put("a", "1"))
	broken := errors.New("broken")
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpDatasync {
			return broken
		}
		return nil
	})
	if _, err := c.Commit(put("b", "1")); !errors.Is(err, ErrFailed) || !errors.Is(err, broken) {
		t.Errorf("commit whose sync failed: %v", err)
	}
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite || op.Kind == vfs.OpDatasync {
			t.Errorf("%v of %s after a failed sync", op.Kind, op.Name)
		}
		return nil
	})
	for range 2 {
		if _, err := c.Commit(put("c", "1")); !errors.Is(err, ErrFailed) {
			t.Errorf("commit after a failed sync: %v", err)
		}
	}
	fsys.SetHook(nil)
	if len(told) != 1 || told[0] != "a" || c.View().Len() != 1 {
		t.Errorf("told of %v, %d entries seen", told, c.View().Len())
	}
	mustClose(t, c)
}
