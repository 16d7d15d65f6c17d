package rig

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCleanupRunsBackwardsAndGoesOn(t *testing.T) {
	var c Cleanup
	var order []string
	note := func(s string) func() error { return func() error { order = append(order, s); return nil } }
	c.Add("first", note("first"))
	forget := c.Add("second", note("second"))
	c.Add("third", func() error { order = append(order, "third"); return errors.New("broken") })
	forget()
	if err := c.Run(); err == nil || !strings.Contains(err.Error(), "third: broken") {
		t.Errorf("error %v, want that of the third", err)
	}
	if want := []string{"third", "first"}; !slices.Equal(order, want) {
		t.Errorf("ran %v, want %v", order, want)
	}
	if err := c.Run(); err != nil {
		t.Errorf("a second run: %v", err)
	}
}

func TestRunEndsWhatHangs(t *testing.T) {
	start := time.Now()
	if _, err := Run(context.Background(), 100*time.Millisecond, "sleep", "30"); err == nil {
		t.Error("no error")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	var failed *CommandError
	if _, err := Run(context.Background(), 0, "sh", "-c", "echo why >&2; exit 3"); !errors.As(err, &failed) || failed.Code != 3 || failed.Stderr != "why" {
		t.Errorf("error %v, want exit code 3", err)
	}
}

func TestRecordsAreJudged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records")
	w, err := StartRecords(path, 7, 4096, 0)
	if err != nil {
		t.Fatal(err)
	}
	for w.Synced(time.Now()) < 5 {
		time.Sleep(time.Millisecond)
	}
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	n := w.Synced(time.Now())
	if got, err := w.Judge(path, n, w.Begun(time.Now())); err != nil || got != n {
		t.Errorf("judged %d (%v), wrote %d", got, err, n)
	}
	if _, err := w.Judge(path, 0, n-1); err == nil {
		t.Error("a record too many was not noticed")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[3*4096+100] ^= 1
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Judge(path, n, n); err == nil || got != 3 {
		t.Errorf("a damaged record was not noticed: %d (%v)", got, err)
	}
	if _, err := w.Judge(path+".missing", 1, n); err == nil {
		t.Error("a missing file was not noticed")
	}
}

func TestTreeSeesEveryDifference(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	s := &Sample{Tree: Tree{}, source: map[string]string{}}
	for name, content := range map[string]string{"a": "alpha", "dir/b": strings.Repeat("beta ", 5000), "c": ""} {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if _, err := s.add(ctx, "x", from, 1<<20); err != nil {
		t.Fatal(err)
	}
	if len(s.Tree) != 4 {
		t.Fatalf("sample of %d files, want 4: %v", len(s.Tree), s.Names())
	}
	if err := s.Copy(ctx, to, s.Names()); err != nil {
		t.Fatal(err)
	}
	want := s.Tree.Clone()
	if err := want.Verify(ctx, to); err != nil {
		t.Fatal(err)
	}
	var err error
	if want["x/dir/b"], err = s.Change(to, "x/dir/b", []byte("changed")); err != nil {
		t.Fatal(err)
	}
	if want["x/a"], err = s.Change(to, "x/a", []byte("longer than it was")); err != nil {
		t.Fatal(err)
	}
	if err := want.Verify(ctx, to); err != nil {
		t.Errorf("after a change: %v", err)
	}
	if err := s.Tree.Verify(ctx, to); err == nil {
		t.Error("changed content was not noticed")
	}
	file := filepath.Join(to, "more")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := want.Verify(ctx, to); err == nil {
		t.Error("a file too many was not noticed")
	}
	if err := errors.Join(os.Remove(file), os.Remove(filepath.Join(to, "x/link"))); err != nil {
		t.Fatal(err)
	}
	if err := want.Verify(ctx, to); err == nil {
		t.Error("a missing link was not noticed")
	}
}

// A trace of all goroutines is cut down to what is this module's.
func TestOwnFrames(t *testing.T) {
	trace := "quit\nPC=0x1\n\ngoroutine 0 [idle]:\nruntime.futex(0x1)\n\t/go/sys.s:5 +0x1\n\n" +
		"goroutine 7 gp=0x1 m=nil [select, 1 minutes]:\nruntime.gopark(0x1)\n\t/go/proc.go:4 +0x2\n" +
		"github.com/k8ns/granary/pkg/blockstore.(*Volume).awaitRoom(0x1, {0x2})\n\t/src/pkg/blockstore/onfull.go:90 +0x3\n" +
		"main.run(...)\n\t/src/cmd/granary/main.go:15\n"
	want := "goroutine 7 gp=0x1 m=nil [select, 1 minutes]:\n    pkg/blockstore.(*Volume).awaitRoom onfull.go:90\n    main.run main.go:15\n"
	if got := ownFrames(trace); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
