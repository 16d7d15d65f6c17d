package admin_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/admin"
	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/attach/attachtest"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/socket"
)

// daemon is an admin server over an engine in memory.
type daemon struct {
	engine *attachtest.Engine
	host   *attachtest.Host
	server *admin.Server
	*admin.Client
}

// dataDir is a directory whose path is short enough for a socket.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "granary")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T) *daemon {
	t.Helper()
	leaktest.Check(t)
	trace := new(attachtest.Trace)
	d := &daemon{engine: attachtest.NewEngine(trace), host: attachtest.NewHost(trace)}
	t.Cleanup(d.host.End)
	attached := attach.New(d.engine, d.host, d.host.Options())
	d.server = admin.NewServer(d.engine, attached, slog.New(slog.DiscardHandler))
	dir := dataDir(t)
	ln, err := socket.Listen(admin.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- d.server.Serve(ln) }()
	t.Cleanup(func() {
		if err := errors.Join(d.server.Close(context.Background()), <-done); err != nil {
			t.Error(err)
		}
	})
	d.Client = admin.NewClient(dir)
	return d
}

func (d *daemon) volume(t *testing.T, name string) blockstore.VolumeInfo {
	t.Helper()
	info, err := d.CreateVolume(context.Background(), admin.CreateVolume{Name: name, SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestEverySentinelSurvivesTheSocket(t *testing.T) {
	d := start(t)
	for _, want := range []error{
		blockstore.ErrNotFound, blockstore.ErrExists, blockstore.ErrInUse, blockstore.ErrBusy, blockstore.ErrInvalid,
		blockstore.ErrRange, blockstore.ErrFailed, blockstore.ErrClosed, blockstore.ErrOlder, blockstore.ErrNoSpace,
		blockstore.ErrLocked, blockstore.ErrFormat, blockstore.ErrVersion, blockstore.ErrCorrupt, blockstore.ErrMissing,
		context.DeadlineExceeded, errors.New("anything"),
	} {
		sent := fmt.Errorf("while doing it: %w", want)
		d.engine.Fail("Volume", sent)
		d.engine.Fail("Check", sent)
		_, plain := d.Volume(context.Background(), "v")
		_, streamed := d.Check(context.Background(), admin.Check{}, nil, nil)
		for _, got := range []error{plain, streamed} {
			if got == nil || got.Error() != sent.Error() {
				t.Errorf("%v arrived as %v", sent, got)
			}
			if known := want.Error() != "anything"; errors.Is(got, want) != known {
				t.Errorf("errors.Is(%v, %v) = %v", got, want, !known)
			}
		}
	}
}

func TestVolumes(t *testing.T) {
	d := start(t)
	ctx := context.Background()
	v := d.volume(t, "v")
	if _, err := d.CreateVolume(ctx, admin.CreateVolume{Name: "v", SizeBytes: 1 << 20}); !errors.Is(err, blockstore.ErrExists) {
		t.Errorf("same name: %v", err)
	}
	attached, err := d.Attach(ctx, "v")
	if err != nil || attached.ID != v.ID || !strings.HasPrefix(attached.Device, "/dev/loop") {
		t.Errorf("Attach = %+v, %v", attached, err)
	}
	if info, err := d.Volume(ctx, v.ID); err != nil || !info.Open || info.Device != attached.Device || info.State != blockstore.StateUsed {
		t.Errorf("Volume = %+v, %v", info, err)
	}
	if info, err := d.SetVolume(ctx, admin.SetVolume{Ref: "v", OnFull: "error"}); err != nil || info.OnFull != "error" {
		t.Errorf("set: %v %v", info.OnFull, err)
	}
	if _, err := d.SetVolume(ctx, admin.SetVolume{Ref: "v", OnFull: "panic"}); !errors.Is(err, blockstore.ErrInvalid) {
		t.Errorf("set to what there is not: %v, want ErrInvalid", err)
	}
	if info, err := d.ResizeVolume(ctx, "v", 16<<20); err != nil || info.SizeBytes != 16<<20 {
		t.Errorf("Resize = %+v, %v", info, err)
	}
	if err := d.DeleteVolume(ctx, "v"); !errors.Is(err, blockstore.ErrInUse) || !strings.Contains(err.Error(), attached.Device) {
		t.Errorf("delete of an attached volume: %v", err)
	}
	if err := errors.Join(d.Detach(ctx, "v"), d.DeleteVolume(ctx, "v")); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"detach": d.Detach(ctx, "v"), "delete": d.DeleteVolume(ctx, "v"), "snapshot": func() error {
			_, err := d.CreateSnapshot(ctx, admin.CreateSnapshot{Volume: "v", Name: "s"}, nil)
			return err
		}(),
	} {
		if !errors.Is(err, blockstore.ErrNotFound) {
			t.Errorf("%s of nothing: %v", name, err)
		}
	}
	if infos, err := d.Volumes(ctx, admin.Page{}); err != nil || len(infos) != 0 {
		t.Errorf("Volumes = %+v, %v", infos, err)
	}
}

func TestSnapshotsAndSources(t *testing.T) {
	d := start(t)
	ctx := context.Background()
	v := d.volume(t, "v")
	var created blockstore.SnapshotInfo
	s, err := d.CreateSnapshot(ctx, admin.CreateSnapshot{Volume: "v", Name: "s", Wait: true},
		func(info blockstore.SnapshotInfo) { created = info })
	if err != nil || !s.Ready || created.ID != s.ID || created.Ready {
		t.Fatalf("created %+v, then %+v, %v", created, s, err)
	}
	if s, err := d.CreateSnapshot(ctx, admin.CreateSnapshot{Volume: v.ID, Name: "s2"}, nil); err != nil || s.Ready {
		t.Errorf("without wait: %+v, %v", s, err)
	}
	if list, err := d.Snapshots(ctx, "v", admin.Page{}); err != nil || len(list) != 2 {
		t.Errorf("Snapshots = %+v, %v", list, err)
	}
	for _, req := range []admin.CreateVolume{{Name: "r", FromSnapshot: "s"}, {Name: "c", FromVolume: "v"}} {
		info, err := d.CreateVolume(ctx, req)
		if err != nil || info.SizeBytes != v.SizeBytes || info.Source == "" {
			t.Errorf("%+v: %+v, %v", req, info, err)
		}
	}
	if _, err := d.CreateVolume(ctx, admin.CreateVolume{Name: "x", FromSnapshot: "s", FromVolume: "v"}); !errors.Is(err, blockstore.ErrInvalid) {
		t.Errorf("two sources: %v", err)
	}
	if err := d.DeleteSnapshot(ctx, "s"); err != nil {
		t.Error(err)
	}
	if _, err := d.Snapshot(ctx, s.ID); !errors.Is(err, blockstore.ErrNotFound) {
		t.Errorf("deleted snapshot: %v", err)
	}
}

func TestCheckStreams(t *testing.T) {
	d := start(t)
	want := []blockstore.Problem{{Kind: "map", Volume: "v-1", Detail: "a"}, {Kind: "data", File: "f", Offset: 4096, Detail: "b"}}
	d.engine.SetProblems(want...)
	var got []blockstore.Problem
	progress := 0
	checked, err := d.Check(context.Background(), admin.Check{ReadData: true},
		func(done, total int64) { progress++ }, func(p blockstore.Problem) { got = append(got, p) })
	if err != nil || checked.Problems != 2 || progress != 2 {
		t.Errorf("Check = %+v, %v, %d calls of progress", checked, err, progress)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("problems %v", got)
	}
}

func TestStatsAndCollect(t *testing.T) {
	d := start(t)
	ctx := context.Background()
	d.volume(t, "v")
	if s, err := d.Stats(ctx, true); err != nil || len(s.PerVolume) != 1 || s.Volumes != 1 {
		t.Errorf("Stats = %+v, %v", s, err)
	}
	if c, err := d.Collect(ctx, true); err != nil || c.FreedBytes == 0 || c.Started {
		t.Errorf("Collect = %+v, %v", c, err)
	}
	if c, err := d.Collect(ctx, false); err != nil || !c.Started {
		t.Errorf("Collect without wait = %+v, %v", c, err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := dataDir(t)
	c := admin.NewClient(dir)
	want := "no daemon is running on " + dir + ": start it with granary serve"
	for _, what := range []string{"no socket", "dead socket", "no directory"} {
		switch what {
		case "dead socket":
			leaveSocket(t, admin.SocketPath(dir))
		case "no directory":
			os.RemoveAll(dir)
		}
		_, err := c.Volumes(context.Background(), admin.Page{})
		if !errors.Is(err, admin.ErrNoDaemon) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// leaveSocket leaves a socket as a killed daemon does.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

// A daemon that dies in the middle of an answer is not taken for one that is done.
func TestDaemonGoesAway(t *testing.T) {
	dir := dataDir(t)
	ln, err := socket.Listen(admin.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n{\"progress\":{\"done\":1,\"total\":2}}\n")
			conn.Close()
		}
	}()
	_, err = admin.NewClient(dir).Check(context.Background(), admin.Check{}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "went away") {
		t.Errorf("Check: %v", err)
	}
}

// The end of the server ends what runs in it.
func TestCloseCancels(t *testing.T) {
	d := start(t)
	entered := make(chan struct{})
	d.engine.OnCheck(func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	})
	result := make(chan error)
	go func() {
		_, err := d.Check(context.Background(), admin.Check{}, nil, nil)
		result <- err
	}()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := d.server.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("Check: %v", err)
	}
}
