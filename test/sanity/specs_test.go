package sanity

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// specsLimit is for one run of all specs.
const specsLimit = 3 * time.Minute

// maxVolumes is the attach limit that the daemon is told: one spec reaches it.
const maxVolumes = "12"

// All specs of csi-sanity. Each run is a process of its own, because Ginkgo can run
// specs once in a process and orders them by one seed: so a run has its own order, its
// own daemon to look at afterwards, and a crash of one takes no other along.
func TestSpecs(t *testing.T) {
	for at, kind := range allKinds {
		for n := range repeat {
			t.Run(fmt.Sprintf("%s/%d", kind, n+1), func(t *testing.T) {
				// Both kinds of IDs, and swapped when repeated.
				testSpecs(t, kind, (at+n)%2 == 0, int64(seed)+int64(n))
			})
		}
	}
	for _, spec := range slices.SortedFunc(maps.Keys(skips), func(a, b string) int {
		return cmp.Or(strings.Compare(skips[a], skips[b]), strings.Compare(a, b))
	}) {
		t.Logf("skipped, %s: %s", skips[spec], spec)
	}
}

func testSpecs(t *testing.T, kind string, handles bool, order int64) {
	e := newEnv(t, specsLimit, "--max-volumes", maxVolumes, "--log-level", "debug")
	files, routines := e.quiet(kind)
	p, canaries := e.plan(kind, handles, order)
	results := e.runPlan(p)
	e.judge(p, results)

	e.nothingLeft()
	e.client.Close()
	e.client = nil
	e.filesBack(files)
	if now, trace := e.goroutines(); now > routines+2 {
		e.Errorf("the daemon has %d goroutines, before %d:\n%.30000s", now, routines, trace)
	}
	e.wholeStore()
	e.soundLog()
	e.secretsKept(canaries)
}

// quiet is what an idle daemon has, once everything has been used. It is started anew
// then.
func (e *env) quiet(kind string) (f files, routines int) {
	e.Helper()
	v := e.create(kind)
	v.use()
	v.clone(0).delete()
	v.snapshot().delete()
	v.delete()
	f = e.files()
	e.client.Close()
	e.client = nil
	f["sockets"]-- // that connection's
	routines, _ = e.goroutines()
	return f, routines
}

// plan is what a process that runs the specs has to know.
type plan struct {
	Kind    string
	Socket  string
	Dir     string // staging and target paths are made in it
	Secrets string // file
	Report  string // file, written by the run
	Order   int64
	Size    int64
	Handle  string // of a volume that is gone; "" lets csi-sanity make its IDs
}

// planVariable names the file with the plan in the environment of such a process.
const planVariable = "GRANARY_SANITY_PLAN"

func (e *env) plan(kind string, handles bool, order int64) (plan, []string) {
	e.Helper()
	p := plan{
		Kind: kind, Socket: e.daemon.Socket(), Order: order, Size: smallest[kind],
		Dir:     filepath.Join(e.dir, "mnt"),
		Secrets: filepath.Join(e.dir, "secrets.yaml"),
		Report:  filepath.Join(e.dir, "report.json"),
	}
	if handles {
		v := e.create(kind)
		p.Handle = v.id
		v.delete()
	}
	e.must(os.MkdirAll(p.Dir, 0o755))
	e.must(os.RemoveAll(filepath.Join(p.Dir, "staging"))) // csi-sanity wants to make it
	e.path("staging")
	e.path("target", "target")
	e.must(os.RemoveAll(filepath.Join(p.Dir, "target")))
	canaries := e.writeSecrets(p.Secrets)
	return p, canaries
}

// secretFields are the fields of csi-sanity's secrets file.
var secretFields = []string{
	"CreateVolumeSecret", "DeleteVolumeSecret", "ControllerPublishVolumeSecret", "ControllerUnpublishVolumeSecret",
	"ControllerValidateVolumeCapabilitiesSecret", "NodeStageVolumeSecret", "NodePublishVolumeSecret",
	"CreateSnapshotSecret", "DeleteSnapshotSecret", "ControllerExpandVolumeSecret", "ControllerModifyVolumeSecret",
	"ListSnapshotsSecret", "GetSnapshotSecret",
}

// writeSecrets makes a secret for every field.
func (e *env) writeSecrets(file string) (canaries []string) {
	e.Helper()
	var yaml strings.Builder
	for _, field := range secretFields {
		canary := fmt.Sprintf("canary-%s-%d", strings.ToLower(field), seed)
		canaries = append(canaries, canary)
		fmt.Fprintf(&yaml, "%s:\n  key: %s\n", field, canary)
	}
	e.must(os.WriteFile(file, []byte(yaml.String()), 0o600))
	return canaries
}

// secretsKept wants no secret in the daemon's log, and some sign there that it got any.
func (e *env) secretsKept(canaries []string) {
	e.Helper()
	log := e.log()
	for _, canary := range canaries {
		if i := strings.Index(log, canary); i >= 0 {
			e.Errorf("a secret is in the daemon's log: %.300s", log[max(0, i-200):])
		}
	}
	if !strings.Contains(log, "***stripped***") {
		e.Error("no call with secrets is in the daemon's log: nothing was tested")
	}
}

// result is how one spec went.
type result struct {
	Spec    string
	State   string // as Ginkgo calls it
	Message string // of a failure or skip
	Seconds float64
}

// runPlan runs the specs in another process.
func (e *env) runPlan(p plan) []result {
	e.Helper()
	file := filepath.Join(e.dir, "plan.json")
	b, err := json.Marshal(p)
	e.must(err)
	e.must(os.WriteFile(file, b, 0o644))
	self, err := os.Executable()
	e.must(err)

	ctx, cancel := context.WithTimeout(e.ctx, specsLimit-20*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), planVariable+"="+file)
	cmd.Stdout, cmd.Stderr = &out, &out
	ended := cmd.Run()
	if ended != nil {
		e.Logf("the specs' output:\n%s", out.Bytes()[max(0, out.Len()-60000):])
	}
	b, err = os.ReadFile(p.Report)
	if err != nil {
		e.Fatalf("the specs did not run to their end: %v", ended)
	}
	var results []result
	e.must(json.Unmarshal(b, &results))
	if ended != nil {
		e.Errorf("the specs' process: %v", ended)
	}
	return results
}

// judge compares what was skipped with the list, and counts.
func (e *env) judge(p plan, results []result) {
	e.Helper()
	count := map[string]int{}
	open := maps.Clone(skips)
	for _, r := range results {
		count[r.State]++
		reason, listed := open[r.Spec]
		delete(open, r.Spec)
		switch left := r.State == "skipped" || r.State == "pending"; {
		case left && !listed:
			e.Errorf("skipped, but not listed: %q (%s)", r.Spec, r.Message)
		case !left && listed:
			e.Errorf("%s: %q is listed as skipped, because %s", r.State, r.Spec, reason)
		case !left && r.State != "passed":
			e.Errorf("%s: %q: %s", r.State, r.Spec, r.Message)
		}
	}
	for _, spec := range slices.Sorted(maps.Keys(open)) {
		e.Errorf("listed as skipped, but there is no such spec: %q", spec)
	}
	failed := len(results) - count["passed"] - count["skipped"] - count["pending"]
	ids := "its own IDs"
	if p.Handle != "" {
		ids = "well-formed IDs"
	}
	e.Logf("%s, %s, GRANARY_SEED=%d: %d specs: %d passed, %d skipped, %d failed",
		p.Kind, ids, p.Order, len(results), count["passed"], count["skipped"]+count["pending"], failed)
	if count["passed"] == 0 {
		e.Error("no spec passed: nothing was tested")
	}
}
