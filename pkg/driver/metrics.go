package driver

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// metrics are what the driver counts: each call with its time and code, under the
// names that CSI's sidecars use too, and the store's figures when somebody asks.
type metrics struct {
	calls *prometheus.HistogramVec
}

func newMetrics(o Options, store Store, attached *attach.Attachments) (*metrics, error) {
	m := &metrics{calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "csi_plugin_operations_seconds",
		Help:    "Time of each CSI call, by method and gRPC code.",
		Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"driver_name", "method_name", "grpc_status_code"})}
	for _, c := range []prometheus.Collector{m.calls, storeCollector{store, attached, o.Now}} {
		if err := o.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return m, nil
}

// measure counts one call.
func (m *metrics) measure(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := next(ctx, req)
	m.calls.WithLabelValues(Name, info.FullMethod, status.Code(err).String()).Observe(time.Since(start).Seconds())
	return resp, err
}

// storeCollector asks the store when somebody asks for metrics.
type storeCollector struct {
	store    Store
	attached *attach.Attachments
	now      func() time.Time
}

// storeMetrics are the store's figures, all gauges in base units. Each is always there.
var storeMetrics = []struct {
	desc  *prometheus.Desc
	value func(blockstore.Stats) float64
}{
	{storeDesc("volumes", "Volumes in the store."), func(s blockstore.Stats) float64 { return float64(s.Volumes) }},
	{storeDesc("snapshots", "Snapshots in the store."), func(s blockstore.Stats) float64 { return float64(s.Snapshots) }},
	{storeDesc("logical_bytes", "What volumes and snapshots hold, holes left out."), func(s blockstore.Stats) float64 { return float64(s.Logical) }},
	{storeDesc("unique_bytes", "Distinct blocks before compression."), func(s blockstore.Stats) float64 { return float64(s.Unique) }},
	{storeDesc("stored_bytes", "Chunk files and catalog on the disk."), func(s blockstore.Stats) float64 { return float64(s.Stored) }},
	{storeDesc("garbage_bytes", "Estimate of stored bytes that nobody names."), func(s blockstore.Stats) float64 { return float64(s.Garbage) }},
	{storeDesc("journal_used_bytes", "Journal that is not folded yet."), func(s blockstore.Stats) float64 { return float64(s.JournalUsed) }},
	{storeDesc("damaged_slots", "Blocks that were found damaged and are not healed."), func(s blockstore.Stats) float64 { return float64(s.Damaged) }},
	{storeDesc("volumes_waiting", "Volumes whose writes wait for disk space or are refused."), func(s blockstore.Stats) float64 { return float64(s.Waiting) }},
	{storeDesc("full", "1 while writers wait for disk space."), func(s blockstore.Stats) float64 {
		if s.Full {
			return 1
		}
		return 0
	}},
}

// diskFreeDesc is of a figure that is left out where it is not known: a 0 would be a full disk.
var diskFreeDesc = storeDesc("disk_free_bytes", "Free space of the data directory's disk; absent if its file system does not tell.")

var attachedDesc = storeDesc("attached_volumes", "Volumes that are block devices now.")

// waitingDesc is told of attached volumes alone: others do not write, and there may be very
// many of them.
var waitingDesc = prometheus.NewDesc("granary_volume_waiting_seconds",
	"How long writes of an attached volume have been waiting for disk space, or are refused because of that; 0: none is.",
	[]string{"volume", "name", "pvc", "namespace"}, nil)

func storeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("granary_store_"+name, help, nil, nil)
}

// Describe implements prometheus.Collector.
func (c storeCollector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range storeMetrics {
		out <- m.desc
	}
	out <- diskFreeDesc
	out <- attachedDesc
	out <- waitingDesc
}

// Collect implements prometheus.Collector.
func (c storeCollector) Collect(out chan<- prometheus.Metric) {
	stats := c.store.Stats(false)
	for _, m := range storeMetrics {
		out <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, m.value(stats))
	}
	if !stats.DiskUnknown {
		out <- prometheus.MustNewConstMetric(diskFreeDesc, prometheus.GaugeValue, float64(stats.DiskFree))
	}
	attached := c.attached.List()
	out <- prometheus.MustNewConstMetric(attachedDesc, prometheus.GaugeValue, float64(len(attached)))
	now := c.now()
	for _, at := range attached {
		info, err := c.store.Volume(at.Volume)
		if err != nil {
			continue // deleted meanwhile
		}
		waiting := 0.0
		if info.WaitingSince != nil {
			waiting = max(0, now.Sub(*info.WaitingSince).Seconds())
		}
		out <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, waiting,
			info.ID, info.Name, info.Labels[LabelClaim], info.Labels[LabelClaimNamespace])
	}
}
