package driver

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/k8ns/granary/pkg/blockstore"
)

// A volume that waits for disk space is not let go of, and whoever asks is told why and
// what to do; nothing is half done, and a repeated call succeeds when there is space.
func TestUnstageOfAWaitingVolume(t *testing.T) { // I9
	for _, kind := range []string{"mount", "block"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			c := mountCap("ext4")
			if kind == "block" {
				c = blockCap()
			}
			id, p := w.create("v").VolumeId, w.paths()
			w.must(w.stage(id, p, c))
			w.must(w.publish(id, p, c))
			since := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
			engineID := w.engineID(id)
			w.engine.SetWaiting(engineID, &since)
			// The pod can go: the filesystem stays mounted at its stage.
			w.must(w.unpublish(id, p))
			w.trace.Steps()
			err := w.unstage(id, p)
			wantCode(t, "unstage", err, codes.ResourceExhausted, engineID, "2026-11-26T12:00:00Z",
				"store's disk is full", "delete volumes or snapshots", "granary volume set "+engineID+" --on-full error")
			if got := w.trace.Steps(); len(got) > 0 {
				t.Errorf("steps: %q", got)
			}
			w.must(w.publish(id, p, c)) // it is staged as before
			w.must(w.unpublish(id, p))

			w.engine.SetWaiting(engineID, nil)
			w.must(w.unstage(id, p))
			w.must(w.unstage(id, p))
		})
	}
}

// Writes that fail hold no unstage up.
func TestUnstageWithOnFullError(t *testing.T) {
	w := newWorld(t)
	id, p := w.create("v").VolumeId, w.paths()
	w.must(w.stage(id, p, mountCap("ext4")))
	since := w.clock
	w.engine.SetWaiting(w.engineID(id), &since)
	if _, err := w.engine.SetOnFull(w.engineID(id), blockstore.OnFullError); err != nil {
		t.Fatal(err)
	}
	w.must(w.unstage(id, p))
}

// Each attached volume says how long its writes have been waiting, and whose it is.
func TestWaitingMetric(t *testing.T) {
	w := newWorld(t)
	registry := prometheus.NewRegistry()
	if _, err := newMetrics(Options{Metrics: registry, Now: func() time.Time { return w.clock }}, w.engine, w.attached); err != nil {
		t.Fatal(err)
	}
	labelled := parameters(LabelClaim, "claim", LabelClaimNamespace, "shop")
	id, p := w.create("v", labelled).VolumeId, w.paths()
	w.create("idle")
	waiting := func() map[string]float64 {
		t.Helper()
		families, err := registry.Gather()
		w.must(err)
		found := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				if f.GetName() == "granary_volume_waiting_seconds" {
					var labels []string
					for _, l := range m.Label {
						labels = append(labels, l.GetName()+"="+l.GetValue())
					}
					found[strings.Join(labels, " ")] = m.GetGauge().GetValue()
				}
			}
		}
		return found
	}
	if got := waiting(); len(got) > 0 {
		t.Errorf("nothing attached: %v", got)
	}
	w.must(w.stage(id, p, mountCap("ext4")))
	key := "name=v namespace=shop pvc=claim volume=" + w.engineID(id)
	if got := waiting(); len(got) != 1 || got[key] != 0 {
		t.Errorf("attached: %v, want %s: 0", got, key)
	}
	since := w.clock.Add(-90 * time.Second)
	w.engine.SetWaiting(w.engineID(id), &since)
	if got := waiting(); len(got) != 1 || got[key] != 90 {
		t.Errorf("waiting: %v, want %s: 90", got, key)
	}
}
