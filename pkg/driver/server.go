package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// Name is the driver's name towards Kubernetes. It never changes.
const Name = "granary.csi.k8ns.io"

// TopologyKey is the label whose value is the node that a volume is on.
const TopologyKey = "topology." + Name + "/node"

// defaultOvercommit is how many bytes of volumes each free byte may carry.
const defaultOvercommit = 10

// Options are the choices of New. NodeID is needed.
type Options struct {
	NodeID     string // see CheckNodeID
	Version    string // of the driver, for GetPluginInfo
	Overcommit int64  // default 10
	Logger     *slog.Logger
}

// Driver serves CSI for one store on one node.
type Driver struct {
	store    Store
	storeID  string // first 16 digits of the store's ID
	attached *attach.Attachments
	host     export.Host
	o        Options
	log      *slog.Logger
	grpc     *grpc.Server

	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
}

// New makes a driver; Serve starts it. ErrInvalid if the options are wrong.
func New(store Store, attached *attach.Attachments, host export.Host, o Options) (*Driver, error) {
	if err := CheckNodeID(o.NodeID); err != nil {
		return nil, err
	}
	if o.Version == "" {
		o.Version = "devel" // CSI wants one
	}
	if o.Overcommit == 0 {
		o.Overcommit = defaultOvercommit
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	id := store.ID()
	if len(id) < 16 {
		return nil, fmt.Errorf("store ID %q is shorter than 16 digits: %w", id, blockstore.ErrInvalid)
	}
	d := &Driver{store: store, storeID: id[:16], attached: attached, host: host, o: o, log: o.Logger}
	d.grpc = grpc.NewServer(grpc.UnaryInterceptor(d.intercept))
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

// Stop takes no more calls and waits for those that run, until ctx ends.
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
		<-done
	}
}

// intercept surrounds every call: panics become errors, errors get their gRPC code,
// and one line is logged, without secrets.
func (d *Driver) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("panic in a CSI call", "method", method, "panic", p, "stack", string(debug.Stack()))
			resp, err = nil, fmt.Errorf("panic in %s: %v", method, p)
		}
		err = toStatus(err)
		d.logCall(ctx, method, req, resp, err, time.Since(start))
	}()
	return handler(ctx, req)
}

// quiet are calls that come all the time and change nothing.
var quiet = map[string]bool{
	"Probe": true, "GetPluginInfo": true, "GetPluginCapabilities": true,
	"ControllerGetCapabilities": true, "NodeGetCapabilities": true, "NodeGetInfo": true,
	"NodeGetVolumeStats": true, "GetCapacity": true,
	"ListVolumes": true, "ListSnapshots": true,
}

func (d *Driver) logCall(ctx context.Context, method string, req, resp any, err error, took time.Duration) {
	level := slog.LevelInfo
	switch {
	case err != nil:
		level = slog.LevelError
	case quiet[method]:
		level = slog.LevelDebug
	}
	if !d.log.Enabled(ctx, level) {
		return
	}
	attrs := []any{"method", method, "request", protosanitizer.StripSecrets(req).String(), "took", took}
	if err != nil {
		attrs = append(attrs, "code", status.Code(err).String(), "err", status.Convert(err).Message())
	} else {
		attrs = append(attrs, "response", protosanitizer.StripSecrets(resp).String())
	}
	d.log.Log(ctx, level, "CSI call", attrs...)
}
