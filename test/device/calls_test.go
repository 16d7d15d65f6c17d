package device

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/k8ns/granary/test/rig"
)

const (
	callers      = 64
	kills        = 9
	defaultCalls = 20000
	// callLimit is far more than any call takes: one that is over it hangs.
	callLimit = 2 * time.Minute
	// tooMany is how many violations end the run.
	tooMany = 20
)

// TestConcurrentCalls lets 64 callers loose on 4 volume names and 4 snapshot names, with
// all calls that work on them, contradicting ones too, while the daemon is killed now
// and then. Every answer has to be one that some order of the calls explains, or
// ABORTED; data that was synced is there as long as its volume; and when everything was
// taken down by calls, nothing is left of it.
func TestConcurrentCalls(t *testing.T) {
	total := defaultCalls
	if s := os.Getenv("GRANARY_DEVICE_CALLS"); s != "" {
		var err error
		if total, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	e := newEnv(t, 15*time.Minute, "--http-endpoint", port)
	w := newTraffic(e, total)
	start := w.figures(port)
	w.run()
	w.judge()
	w.takeDown()
	w.checkNothingLeft(port, start)
}

// traffic is a run of many callers.
type traffic struct {
	*env
	ctx    context.Context
	cancel context.CancelFunc

	seed  uint64
	total int64
	dueAt []int64       // the calls before which the daemon is killed
	due   chan struct{} // takes each of them

	conn       *grpc.ClientConn
	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient

	volumes   []*place
	snapshots []*place
	stamps    *stamps

	issued atomic.Int64
	clock  atomic.Int64

	mu       sync.Mutex
	history  history // guarded by mu
	down     []*call // kills; the last one may not have ended; guarded by mu
	failures int     // guarded by mu

	dirs map[string]bool // those that the test made; guarded by mu
}

func newTraffic(e *env, total int) *traffic {
	w := &traffic{env: e, seed: seedOf(e.T), total: int64(total), due: make(chan struct{}, kills), stamps: newStamps(), dirs: make(map[string]bool)}
	e.Logf("GRANARY_SEED=%d", w.seed)
	w.ctx, w.cancel = context.WithCancel(e.ctx)
	e.Cleanup(w.cancel)
	e.Cleanup(w.keepLog)
	r := rand.New(rand.NewPCG(w.seed, 0))
	for range kills {
		w.dueAt = append(w.dueAt, 1+r.Int64N(w.total))
	}
	slices.Sort(w.dueAt)
	w.makePlaces()
	w.connect()
	return w
}

// keepLog keeps the daemon's log of a run that failed: it is too long to be printed, and
// its last lines are not the ones that tell.
func (w *traffic) keepLog() {
	if !w.Failed() {
		return
	}
	log, err := os.ReadFile(w.daemon.LogFile())
	name := filepath.Join(os.TempDir(), fmt.Sprintf("granary-calls-%d.log", w.seed))
	if err == nil {
		err = os.WriteFile(name, log, 0o600)
	}
	w.Logf("the daemon's whole log: %s (%v)", name, err)
}

// seedOf is a new seed, or the one to repeat.
func seedOf(t *testing.T) uint64 {
	s := os.Getenv("GRANARY_SEED")
	if s == "" {
		return uint64(time.Now().UnixNano() % 1e9)
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// makePlaces makes the names, and the directories above the paths of their volumes.
func (w *traffic) makePlaces() {
	w.cleanup.Add("loop devices of the calls", w.dropLoops)
	for _, name := range []string{"fs-a", "fs-b", "fs-c", "raw-d"} {
		p := &place{name: name, raw: strings.HasPrefix(name, "raw"), staging: filepath.Join(w.dir, "staging", name)}
		p.pods = []string{filepath.Join(w.dir, "pod-1", name), filepath.Join(w.dir, "pod-2", name)}
		for _, dir := range append(p.pods, p.staging) {
			w.makeDir(dir)
		}
		w.volumes = append(w.volumes, p)
		w.snapshots = append(w.snapshots, &place{name: "snap-" + name, raw: p.raw})
	}
}

// makePaths makes what a CO makes for a volume, and sees to it that nothing stays
// mounted when the test fails.
func (w *traffic) makePaths(p *place, id string) {
	w.makeDir(p.stagingPath(id))
	rig.NoteMount(w.cleanup, p.stagingPath(id))
	for _, pod := range p.pods {
		rig.NoteMount(w.cleanup, targetPath(pod, id))
	}
}

// makeDir makes a directory that may stay.
func (w *traffic) makeDir(path string) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		w.fail("%v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; path != w.dir; path = filepath.Dir(path) {
		w.dirs[path] = true
	}
}

// dropLoops detaches what a test that failed leaves; the daemon has to go first.
func (w *traffic) dropLoops() error {
	if w.daemon.Running() {
		if err := w.daemon.Stop(30 * time.Second); err != nil {
			_ = w.daemon.Kill()
		}
	}
	loops, err := rig.LoopsOn(w.ours)
	for device := range loops {
		_, _ = rig.Run(context.Background(), 30*time.Second, "losetup", "-d", device)
	}
	return err
}

// ours tells whether a loop device's file is a volume of this test.
func (w *traffic) ours(file string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := engineIDIn(file)
	return id != "" && slices.ContainsFunc(w.history.calls, func(c *call) bool { return engineIDIn(c.id) == id })
}

// connect makes one connection for all: when it is up again after a kill, it is so for
// every caller.
func (w *traffic) connect() {
	quick := grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
	})
	conn, err := grpc.NewClient("unix://"+w.daemon.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		quick, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { conn.Close() })
	w.conn = conn
	w.identity, w.controller, w.node = csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	if _, err := w.identity.Probe(w.ctx, &csi.ProbeRequest{}); err != nil {
		w.Fatal(err)
	}
}

// run lets the callers loose until all calls are made.
func (w *traffic) run() {
	var running sync.WaitGroup
	for i := range callers {
		c := &caller{traffic: w, r: rand.New(rand.NewPCG(w.seed, uint64(i)+1))}
		running.Go(c.run)
	}
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	for {
		select {
		case <-w.due:
			w.killDaemon()
		case <-ended:
			return
		}
	}
}

// killDaemon kills the daemon under the calls that run, and starts it again.
func (w *traffic) killDaemon() {
	k := &call{method: killed, begin: w.clock.Add(1), end: endless}
	w.mu.Lock()
	w.down = append(w.down, k)
	w.mu.Unlock()
	if err := w.daemon.Kill(); err != nil {
		w.fail("kill: %v", err)
		w.cancel()
		return
	}
	if err := w.startAgain(); err != nil {
		w.fail("start after a kill: %v", err)
		w.cancel()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k.end = w.clock.Add(1)
	w.history.calls = append(w.history.calls, k)
}

// startAgain starts the daemon as its supervisor does: a program that the killed one was
// just about to run may hold the lock and the sockets for a moment longer.
func (w *traffic) startAgain() error {
	for tries := 1; ; tries++ {
		err := w.daemon.Start(w.ctx)
		if err == nil {
			err = w.awaitConnection()
		}
		if err == nil || tries == 5 || w.daemon.Running() {
			return err
		}
		w.Logf("start %d after a kill: %v", tries, err)
	}
}

// awaitConnection waits until calls reach the new daemon: whoever calls after that has
// nothing to do with the old one.
func (w *traffic) awaitConnection() error {
	limit := time.Now().Add(callLimit)
	for {
		ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
		_, err := w.identity.Probe(ctx, &csi.ProbeRequest{})
		cancel()
		switch {
		case err == nil || w.ctx.Err() != nil || time.Now().After(limit):
			return err
		case !w.daemon.Running():
			return fmt.Errorf("the daemon has ended: %s", w.daemon.LogTail(1))
		}
	}
}

// endless is the end of what has not ended.
const endless = 1<<63 - 1

// wasDown tells whether the daemon was being killed or started at a time in between.
func (w *traffic) wasDown(begin, end int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.down, func(k *call) bool { return k.begin < end && k.end > begin })
}

// fail reports a violation; too many end the run.
func (w *traffic) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures++
	if w.failures <= tooMany {
		w.Errorf(format, args...)
	}
	if w.failures == tooMany {
		w.cancel()
	}
}

// over tells whether all calls are made.
func (w *traffic) over() bool { return w.issued.Load() >= w.total || w.ctx.Err() != nil }

// do makes a call, one of the total, and notes what was answered. Past the total, or
// when the run has been ended, it does nothing.
func (w *traffic) do(c *call, invoke func(context.Context) error) {
	n := w.issued.Add(1)
	if n > w.total || w.ctx.Err() != nil {
		c.lost = true
		return
	}
	for _, at := range w.dueAt {
		if at == n {
			w.due <- struct{}{}
		}
	}
	w.ask(c, invoke)
}

// ask makes a call whatever the total is.
func (w *traffic) ask(c *call, invoke func(context.Context) error) {
	ctx, cancel := context.WithTimeout(w.ctx, callLimit)
	defer cancel()
	c.begin = w.clock.Add(1)
	err := invoke(ctx)
	c.end = w.clock.Add(1)
	if w.ctx.Err() != nil {
		c.lost = true
		return
	}
	c.code, c.message = status.Code(err), status.Convert(err).Message()
	c.lost = (c.code == codes.Unavailable || c.code == codes.Canceled) && w.wasDown(c.begin, c.end)
	c.conclude()
	sourceless := c.code == codes.NotFound && c.is("CreateVolume") && c.source == ""
	if !c.lost && (sourceless || !slices.Contains(allowedCodes[c.method], c.code)) {
		w.fail("no answer to this call: %s", c)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history.calls = append(w.history.calls, c)
}

// allowedCodes are what each call may answer to what the callers ask, by docs/csi.md and
// the spec. Nothing may be INTERNAL, UNKNOWN or DATA_LOSS.
var allowedCodes = map[string][]codes.Code{
	"Probe":                      {codes.OK},
	"GetCapacity":                {codes.OK},
	"CreateVolume":               {codes.OK, codes.AlreadyExists, codes.Aborted, codes.NotFound, codes.OutOfRange},
	"DeleteVolume":               {codes.OK, codes.FailedPrecondition, codes.Aborted},
	"ControllerPublishVolume":    {codes.OK, codes.NotFound, codes.AlreadyExists, codes.Aborted},
	"ControllerUnpublishVolume":  {codes.OK, codes.Aborted},
	"ControllerExpandVolume":     {codes.OK, codes.NotFound, codes.OutOfRange, codes.Aborted},
	"ValidateVolumeCapabilities": {codes.OK, codes.NotFound},
	"ControllerGetVolume":        {codes.OK, codes.NotFound},
	"ListVolumes":                {codes.OK},
	"CreateSnapshot":             {codes.OK, codes.NotFound, codes.AlreadyExists, codes.Aborted},
	"DeleteSnapshot":             {codes.OK, codes.Aborted},
	"ListSnapshots":              {codes.OK},
	"GetSnapshot":                {codes.OK, codes.NotFound},
	"NodeStageVolume":            {codes.OK, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted},
	"NodeUnstageVolume":          {codes.OK, codes.NotFound, codes.FailedPrecondition, codes.Aborted},
	"NodePublishVolume":          {codes.OK, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted},
	"NodeUnpublishVolume":        {codes.OK, codes.NotFound, codes.FailedPrecondition, codes.Aborted},
	"NodeExpandVolume":           {codes.OK, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange, codes.Aborted},
	"NodeGetVolumeStats":         {codes.OK, codes.NotFound},
}

// judge looks at all answers together, and prints how many there were of each kind: a
// run that was all ABORTED, or a rule that was never put to use, shows nothing.
func (w *traffic) judge() {
	if w.ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, v := range w.history.check() {
		if i == tooMany {
			w.Errorf("and more")
			break
		}
		w.Errorf("no order of the calls explains this: %s", v)
	}
	w.Logf("answers:\n%s", w.history.table())
	w.Logf("stamps: %s", w.stamps)
}

// table counts the answers by method and code, and what the rules were applied to.
func (h *history) table() string {
	counts := make(map[string]map[string]int)
	for _, c := range h.calls {
		if counts[c.method] == nil {
			counts[c.method] = make(map[string]int)
		}
		code := c.code.String()
		if c.lost {
			code = "lost"
		}
		counts[c.method][code]++
	}
	var lines []string
	for method, of := range counts {
		lines = append(lines, fmt.Sprintf("  %-27s %v", method, of))
	}
	slices.Sort(lines)
	lines = append(lines, "rules applied:")
	first := len(lines)
	for what, n := range h.judged {
		lines = append(lines, fmt.Sprintf("  %6d  %s", n, what))
	}
	slices.Sort(lines[first:])
	return strings.Join(lines, "\n")
}
