package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// Name is the driver's name towards Kubernetes. It never changes.
const Name = "granary.csi.k8ns.io"

// TopologyKey is the label whose value is the node that a volume is on.
const TopologyKey = "topology." + Name + "/node"

// handshakeEnd is how long a connection may say nothing. gRPC's default of 120 s would
// be how long a silent one holds up Stop.
const handshakeEnd = 2 * time.Second

// defaultOvercommit is how many bytes of volumes each free byte may carry.
const defaultOvercommit = 10

// Options are the choices of New. NodeID is needed.
type Options struct {
	NodeID     string // see CheckNodeID
	Version    string // of the driver, for GetPluginInfo
	Overcommit int64  // default 10
	// MaxVolumes is how many volumes the node takes at a time, the limit that the
	// attachments keep; 0 tells the CO nothing.
	MaxVolumes int
	// Private are files and directories of the daemon itself, with their full paths:
	// nothing is mounted there, in them or above them, and nothing removed.
	Private []string
	Metrics prometheus.Registerer // default: nobody sees them
	Now     func() time.Time      // default time.Now
	Logger  *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Version == "" {
		o.Version = "devel" // CSI wants one
	}
	if o.Overcommit == 0 {
		o.Overcommit = defaultOvercommit
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Driver serves CSI for one store on one node.
type Driver struct {
	store    Store
	storeID  string // first 16 digits of the store's ID
	attached *attach.Attachments
	host     export.Host
	o        Options
	log      *slog.Logger
	metrics  *metrics
	grpc     *grpc.Server

	// names has a lock for each name that is being given to a volume or snapshot,
	// and each snapshot that is being deleted. Volumes have theirs in attached.
	names attach.KeyedLock
	// counting is held from counting the publications until one more is on record.
	counting sync.Mutex

	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
}

// New makes a driver; Serve starts it. ErrInvalid if the options are wrong.
func New(store Store, attached *attach.Attachments, host export.Host, o Options) (*Driver, error) {
	if err := CheckNodeID(o.NodeID); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	id := store.ID()
	if len(id) < 16 {
		return nil, fmt.Errorf("store ID %q is shorter than 16 digits: %w", id, blockstore.ErrInvalid)
	}
	d := &Driver{store: store, storeID: id[:16], attached: attached, host: host, o: o, log: o.Logger}
	var err error
	if d.metrics, err = newMetrics(o, store, attached); err != nil {
		return nil, err
	}
	d.grpc = grpc.NewServer(d.interceptors(), grpc.ConnectionTimeout(handshakeEnd))
	csi.RegisterIdentityServer(d.grpc, d)
	csi.RegisterControllerServer(d.grpc, d)
	csi.RegisterNodeServer(d.grpc, d)
	return d, nil
}

// Serve answers calls until Stop and closes ln. It returns nil after Stop.
func (d *Driver) Serve(ln net.Listener) error {
	if err := d.grpc.Serve(ln); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("CSI socket: %w", err)
	}
	return nil
}

// Stop takes no more calls and waits for those that run, until ctx ends. What runs on
// then is told so by its context, and has the locks of its volumes.
func (d *Driver) Stop(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		d.grpc.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		d.grpc.Stop()
	}
}
