package device

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/test/rig"
)

// takeDown takes everything down by calls, each of them twice: as nobody else calls any
// more, every one has to succeed.
func (w *traffic) takeDown() {
	if w.ctx.Err() != nil {
		w.Fatal("the run was ended early")
	}
	for id := range w.listed() {
		if p := w.placeOf(id); p != nil {
			w.takeVolumeDown(id, p)
		}
		w.twice("DeleteVolume", id, "", func(ctx context.Context) error {
			_, err := w.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
			return err
		})
	}
	w.cleanUpBehind()
	for id := range w.listedSnapshots() {
		w.twice("DeleteSnapshot", id, "", func(ctx context.Context) error {
			_, err := w.controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
			return err
		})
	}
	if v, s := w.listed(), w.listedSnapshots(); len(v)+len(s) > 0 {
		w.Errorf("still listed after the deletion: %v, %v", v, s)
	}
}

// cleanUpBehind unpublishes volumes that were deleted after a kill before anybody had
// unpublished them, from where they were published or may have been: COs do so too.
func (w *traffic) cleanUpBehind() {
	for _, c := range w.publications() {
		u := &call{method: "NodeUnpublishVolume", id: c.id, path: c.path}
		w.ask(u, func(ctx context.Context) error {
			_, err := w.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: c.id, TargetPath: c.path})
			return err
		})
		if u.code != codes.OK && u.code != codes.NotFound {
			w.fail("at the end, alone: %s", u)
		}
	}
}

// publications are all that were made or may have been, each target once.
func (w *traffic) publications() map[string]*call {
	w.mu.Lock()
	defer w.mu.Unlock()
	byTarget := make(map[string]*call)
	for _, c := range w.history.calls {
		if c.is("NodePublishVolume") && c.effective() {
			byTarget[c.path] = c
		}
	}
	return byTarget
}

func (w *traffic) takeVolumeDown(id string, p *place) {
	for _, pod := range p.pods {
		target := targetPath(pod, id)
		w.twice("NodeUnpublishVolume", id, target, func(ctx context.Context) error {
			_, err := w.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
			return err
		})
	}
	w.twice("NodeUnstageVolume", id, p.stagingPath(id), func(ctx context.Context) error {
		_, err := w.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: p.stagingPath(id)})
		return err
	})
	w.twice("ControllerUnpublishVolume", id, "", func(ctx context.Context) error {
		_, err := w.controller.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: id})
		return err
	})
}

// twice makes a call two times that has to succeed.
func (w *traffic) twice(method, id, path string, invoke func(context.Context) error) {
	for range 2 {
		c := &call{method: method, id: id, path: path}
		w.ask(c, invoke)
		if c.code != codes.OK {
			w.fail("at the end, alone: %s", c)
		}
	}
}

// placeOf is the place whose name a volume was given; nil if no answer told that, so
// that nobody can have used it.
func (w *traffic) placeOf(id string) *place {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.history.calls, func(c *call) bool { return c.is("CreateVolume") && c.id == id })
	if i < 0 {
		return nil
	}
	return w.volumes[slices.IndexFunc(w.volumes, func(p *place) bool { return p.name == w.history.calls[i].name })]
}

func (w *traffic) listed() map[string]bool {
	ids := make(map[string]bool)
	resp, err := w.controller.ListVolumes(w.ctx, &csi.ListVolumesRequest{})
	if err != nil {
		w.Fatal(err)
	}
	for _, e := range resp.GetEntries() {
		ids[e.GetVolume().GetVolumeId()] = true
	}
	return ids
}

func (w *traffic) listedSnapshots() map[string]bool {
	ids := make(map[string]bool)
	resp, err := w.controller.ListSnapshots(w.ctx, &csi.ListSnapshotsRequest{})
	if err != nil {
		w.Fatal(err)
	}
	for _, e := range resp.GetEntries() {
		ids[e.GetSnapshot().GetSnapshotId()] = true
	}
	return ids
}

// checkNothingLeft looks for whatever outlived the volumes: on the machine, in the
// daemon, in its log and in the catalog.
func (w *traffic) checkNothingLeft(port string, start figures) {
	w.waitFolded()
	w.checkMachine()
	w.checkFigures(port, start)
	for _, command := range []string{"volume", "snapshot"} {
		if out := w.env.do(command, "ls", "-o", "json"); out != "[]" {
			w.Errorf("granary %s ls: %s", command, out)
		}
	}
	w.stop()
	w.checkCatalog()
	w.checkLog()
}

// checkMachine: no mount, no loop device, and of files and directories what the test
// made and the store.
func (w *traffic) checkMachine() {
	if mounts, err := rig.MountsBelow(w.dir); err != nil || len(mounts) > 0 {
		w.Errorf("still mounted: %v (%v)", mounts, err)
	}
	if loops, err := rig.LoopsOn(w.ours); err != nil || len(loops) > 0 {
		w.Errorf("loop devices left: %v (%v)", loops, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	expected := []string{w.dir, w.daemon.DataDir(), w.daemon.Socket(), w.daemon.LogFile()}
	err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !w.dirs[path] && !slices.Contains(expected, path) {
			w.Errorf("left behind: %s", path)
		}
		if path == w.daemon.DataDir() {
			return filepath.SkipDir // granary check is about that
		}
		return err
	})
	if err != nil {
		w.Error(err)
	}
}

// figures are what a daemon holds that should not grow with what it has done.
type figures struct {
	goroutines int
	open       []string // descriptors, without those of the store's files
}

// figures asks the daemon's metrics, and the kernel.
func (w *traffic) figures(address string) (f figures) {
	w.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	f.goroutines = metric(w.T, string(text), "go_goroutines")
	open, err := w.daemon.Descriptors()
	if err != nil {
		w.Fatal(err)
	}
	f.open = slices.DeleteFunc(open, func(target string) bool { return strings.HasPrefix(target, w.daemon.DataDir()+"/") })
	return f
}

func metric(t *testing.T, text, name string) int {
	_, rest, ok := strings.Cut(text, "\n"+name+" ")
	value, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(value)
	if !ok || err != nil {
		t.Fatalf("no metric %s: %v", name, err)
	}
	return n
}

// figuresSlack is what comes and goes by itself: connections and who serves them.
const figuresSlack = 4

// checkFigures waits until the daemon holds hardly more than it did at its start. What
// ends is given a while to end.
func (w *traffic) checkFigures(port string, start figures) {
	limit := time.Now().Add(30 * time.Second)
	for {
		now := w.figures(port)
		if now.goroutines <= start.goroutines+figuresSlack && len(now.open) <= len(start.open)+figuresSlack {
			return
		}
		if time.Now().After(limit) {
			w.Errorf("the daemon holds more than at its start: %d goroutines, were %d; open are %q, were %q",
				now.goroutines, start.goroutines, now.open, start.open)
			return
		}
		time.Sleep(200 * time.Millisecond) // asking changes the figures
	}
}

// checkCatalog replays the newest log of the catalog: no record of a volume, snapshot,
// attachment or publication may be left.
func (w *traffic) checkCatalog() {
	logs, err := filepath.Glob(filepath.Join(w.daemon.DataDir(), "catalog", "*.log"))
	if err != nil || len(logs) == 0 {
		w.Fatalf("no catalog log: %v", err)
	}
	slices.Sort(logs)
	out, err := rig.Run(w.env.ctx, 0, w.daemon.CLI, "dump", logs[len(logs)-1])
	if err != nil {
		w.Fatal(err)
	}
	left := replay(out)
	for key, value := range left {
		kind, _, _ := strings.Cut(key, "/")
		if slices.Contains([]string{"volume", "volumename", "snapshot", "snapshotname", "cut", "attach", "publish"}, kind) {
			w.Errorf("left in the catalog: %s %s", key, value)
		}
	}
}

// replay reads a dump of a catalog log: what the last line about each key says.
func replay(dump string) map[string]string {
	left := make(map[string]string)
	for s := bufio.NewScanner(strings.NewReader(dump)); s.Scan(); {
		verb, rest, _ := strings.Cut(strings.TrimSpace(s.Text()), " ")
		key, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(rest), `"`), `"`)
		switch verb {
		case "put":
			left[key] = strings.TrimSpace(value)
		case "delete":
			delete(left, key)
		}
	}
	return left
}

// checkLog looks for what no caller was told. Data races and panics are looked for after
// every test.
func (w *traffic) checkLog() {
	log, err := os.ReadFile(w.daemon.LogFile())
	if err != nil {
		w.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		for _, bad := range []string{"code=Internal", "code=Unknown", "code=DataLoss", "could be cleared", "panic in a CSI call"} {
			if strings.Contains(line, bad) {
				w.fail("the daemon's log: %.600s", line)
			}
		}
	}
}

// freePort is an address that the daemon can serve its metrics on.
func freePort(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return fmt.Sprint(ln.Addr())
}
