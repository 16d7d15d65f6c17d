package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/k8ns/granary/pkg/admin"
	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/driver"
	"github.com/k8ns/granary/pkg/events"
	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/pkg/kubelet"
	"github.com/k8ns/granary/pkg/socket"
	"github.com/k8ns/granary/pkg/vfs"
)

const (
	// tellingEnd is how long registration and health may take to end at shutdown.
	tellingEnd = 5 * time.Second
	// callsEnd is how long calls that run may take to end at shutdown.
	callsEnd = 20 * time.Second
	// volumesEnd is how long attached volumes may take to be synced and ended.
	volumesEnd = 2 * time.Minute
)

// endpointEnv is the variable by which CSI wants a CO to name the socket.
const endpointEnv = "CSI_ENDPOINT"

// serveOptions are the flags of granary serve.
type serveOptions struct {
	endpoint        string
	kubeletEndpoint string // CSI socket's path as kubelet sees it
	registrationDir string // where kubelet looks for plugins; "": kubelet is not told
	httpEndpoint    string // for /healthz and /metrics; "": none
	nodeID          string
	maxVolumes      int
	logLevel        slog.Level
	journal         sizeFlag
	cache           sizeFlag
	reserve         sizeFlag
	fullTimeout     time.Duration
	buffers         sizeFlag
}

func (a *app) serveCommand() *cobra.Command {
	o := serveOptions{buffers: 64 << 20}
	cmd := &cobra.Command{
		Use:   "serve --endpoint unix:///PATH",
		Short: "Run the daemon: CSI driver and storage engine",
		Long: `Run the daemon: CSI driver and storage engine. Everything it needs is in the data
directory, which it makes if need be.

SIGTERM or SIGINT syncs and ends what is attached, closes the store and exits with 0; a
second one exits at once, which loses nothing that was acknowledged.`,
		Args: cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, _ []string) error { return a.serve(ctx, o) }),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.endpoint, "endpoint", os.Getenv(endpointEnv), "CSI socket, as unix:///run/granary/csi.sock (also "+endpointEnv+"); without it only the commands are served")
	flags.StringVar(&o.nodeID, "node-id", "", "name of this node in volume IDs and topology; never change it (default the host name)")
	flags.IntVar(&o.maxVolumes, "max-volumes", defaultMaxVolumes(), "most volumes that are attached at a time")
	flags.StringVar(&o.registrationDir, "registration-dir", "", "register with kubelet by a socket in this directory, as /var/lib/kubelet/plugins_registry")
	flags.StringVar(&o.kubeletEndpoint, "kubelet-endpoint", "", "path of the CSI socket as kubelet sees it (default that of --endpoint)")
	flags.StringVar(&o.httpEndpoint, "http-endpoint", "", "serve /healthz and /metrics on this address, as :9808 or 127.0.0.1:9808")
	flags.Var(&o.journal, "journal-size", "budget for journal segments on the disk, preallocated as used (default 512MiB)")
	flags.Var(&o.cache, "cache-size", "memory for decoded data (default 128MiB)")
	flags.Var(&o.reserve, "reserve-size", "disk space set aside for working on a full disk (default 64MiB)")
	flags.DurationVar(&o.fullTimeout, "full-timeout", 30*time.Second, "how long a write to a volume with onFull error waits on a full disk before ENOSPC")
	flags.Var(&o.buffers, "buffer-size", "memory for requests of the block devices")
	flags.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	return a.withDataDir(cmd)
}

// serve runs the daemon until ctx ends or a signal comes.
func (a *app) serve(ctx context.Context, o serveOptions) error {
	socket, err := parseEndpoint(o.endpoint)
	if err != nil {
		return err
	}
	if err := o.check(socket); err != nil {
		return err
	}
	if o.nodeID == "" {
		if o.nodeID, err = os.Hostname(); err != nil {
			return fmt.Errorf("host name: %w: give --node-id", err)
		}
	}
	if err := driver.CheckNodeID(o.nodeID); err != nil {
		return usageError("--node-id: %w", err)
	}
	if a.dataDir, err = filepath.Abs(a.dataDir); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: o.logLevel}))
	klog.SetSlogLogger(log.With("component", "mount-utils"))
	ctx, stop := untilSignal(ctx, log)
	defer stop()

	d := &daemon{dataDir: a.dataDir, socket: socket, o: o, log: log}
	err = d.start(ctx)
	if err == nil {
		log.Info("ready", "version", readVersion().Version, "data_dir", d.dataDir, "endpoint", o.endpoint,
			"node_id", o.nodeID, "store_id", d.store.ID())
		err = d.wait(ctx)
	}
	return errors.Join(err, d.stop())
}

// parseEndpoint takes the path out of unix:///path. There is no other kind: the socket's
// mode is what protects it.
func parseEndpoint(endpoint string) (path string, err error) {
	if endpoint == "" {
		return "", nil
	}
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return "", usageError("--endpoint %q: give a Unix socket with its full path, as unix:///run/granary/csi.sock", endpoint)
	}
	return path, nil
}

// check refuses flags that cannot be, or that need one that is missing.
func (o *serveOptions) check(socket string) error {
	switch {
	case o.maxVolumes < 1:
		return usageError("--max-volumes %d: at least 1", o.maxVolumes)
	case o.fullTimeout <= 0:
		return usageError("--full-timeout %v: give a time above 0, as 30s; with onFull wait a write waits without limit", o.fullTimeout)
	case socket == "" && o.registrationDir+o.kubeletEndpoint+o.httpEndpoint != "":
		return usageError("--registration-dir, --kubelet-endpoint and --http-endpoint are about the CSI driver: give --endpoint too")
	case o.kubeletEndpoint != "" && o.registrationDir == "":
		return usageError("--kubelet-endpoint is told to kubelet: give --registration-dir too")
	}
	if o.kubeletEndpoint == "" {
		o.kubeletEndpoint = socket
	}
	return nil
}

// untilSignal ends the context with the first SIGTERM or SIGINT and the process with
// the second.
func untilSignal(ctx context.Context, log *slog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	done := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			select {
			case s := <-signals:
				if !first {
					log.Warn("second signal: leaving at once", "signal", s.String())
					os.Exit(exitFailed)
				}
				log.Info("stopping", "signal", s.String())
				cancel()
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

// daemon is what granary serve consists of. start fills it in, in this order; stop
// takes it apart in the other direction, whatever there is.
type daemon struct {
	dataDir string
	socket  string
	o       serveOptions
	log     *slog.Logger

	teller      *teller // nil outside a cluster
	store       *blockstore.Store
	endWork     context.CancelFunc // ends background work
	buffers     *export.Buffers
	attachments *attach.Attachments
	admin       *admin.Server
	driver      *driver.Driver
	http        *kubelet.Server
	registered  *kubelet.Registration

	running sync.WaitGroup // background work and the servers
	failed  chan error     // a server gave up
}

// start opens the store, clears what a killed daemon left, and serves.
func (d *daemon) start(ctx context.Context) (err error) {
	d.failed = make(chan error, 2)
	var poster *events.Poster
	d.teller, poster = d.newTeller()
	err = d.openStore(ctx)
	if errors.Is(err, blockstore.ErrLocked) {
		return fmt.Errorf("another daemon is running on %s: %w", d.dataDir, err)
	}
	if err != nil {
		return err
	}
	if d.buffers, err = export.NewBuffers(int64(d.o.buffers)); err != nil {
		return err
	}
	work, cancel := context.WithCancel(context.Background())
	d.endWork = cancel
	o := attach.Options{Buffers: d.buffers, Limit: d.o.maxVolumes, Logger: d.log}
	if d.teller != nil {
		d.teller.volume = d.store.Volume
		o.Warned = d.teller.warn
		d.running.Go(func() { d.teller.run(work) })
		d.running.Go(func() { poster.Run(work) })
	}
	host := export.NewHost()
	d.attachments = attach.New(attach.Engine(d.store), host, o)
	// What cannot be cleared keeps only its own volume from working.
	if err := d.attachments.ClearDead(ctx); err != nil {
		d.log.Error("not everything that a killed daemon left could be cleared", "err", err)
	}
	d.running.Go(func() { d.store.Run(work) })

	d.admin = admin.NewServer(d.store, d.attachments, d.log)
	commands, err := admin.Listen(d.dataDir)
	if err != nil {
		return err
	}
	d.serveOn(commands, d.admin.Serve)
	if d.socket == "" {
		return nil
	}
	return d.startDriver(host)
}

// newTeller makes who tells the cluster, and what it tells it by, if this is a pod of one;
// nil if not.
func (d *daemon) newTeller() (*teller, *events.Poster) {
	api, ok := events.InCluster()
	if !ok || d.socket == "" {
		return nil, nil
	}
	poster := events.New(api, events.Options{Component: driver.Name, Host: d.o.nodeID, Logger: d.log})
	return newTeller(d.o.nodeID, d.dataDir, d.o.fullTimeout, poster), poster
}

// lockEnd is how long a daemon that is ending may still hold the data directory: its
// children may have its descriptors for a moment longer than it lives.
const lockEnd = 5 * time.Second

// openStore opens the store, or says who has it.
func (d *daemon) openStore(ctx context.Context) (err error) {
	var hear func(blockstore.Event)
	if d.teller != nil {
		hear = d.teller.hear
	}
	deadline := time.Now().Add(lockEnd)
	for {
		d.store, err = blockstore.Open(vfs.NewOS(), d.dataDir, blockstore.Options{
			Logger:       d.log,
			JournalBytes: int64(d.o.journal),
			CacheBytes:   int64(d.o.cache),
			ReserveBytes: int64(d.o.reserve),
			FullTimeout:  d.o.fullTimeout,
			Events:       hear,
		})
		if !errors.Is(err, blockstore.ErrLocked) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// startDriver serves CSI, then tells the world: kubelet asks as soon as it hears of us.
func (d *daemon) startDriver(host export.Host) (err error) {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.driver, err = driver.New(d.store, d.attachments, host, driver.Options{
		NodeID: d.o.nodeID, Version: readVersion().Version, MaxVolumes: d.o.maxVolumes, Private: d.private(), Metrics: metrics, Logger: d.log,
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.socket), 0o750); err != nil {
		return err
	}
	if err := d.listen(d.socket, d.driver.Serve); err != nil {
		return err
	}
	if d.o.httpEndpoint != "" {
		if err := d.startHTTP(metrics); err != nil {
			return err
		}
	}
	if d.o.registrationDir == "" {
		return nil
	}
	return d.register()
}

// private are the daemon's own paths, as the mount table has them.
func (d *daemon) private() []string {
	paths := []string{d.dataDir, d.socket}
	for i, p := range paths {
		if real, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil {
			paths[i] = filepath.Join(real, filepath.Base(p))
		}
	}
	return paths
}

// startHTTP serves health and metrics. The health check takes the way that kubelet's
// calls take: socket, gRPC, handler.
func (d *daemon) startHTTP(metrics *prometheus.Registry) error {
	health, err := kubelet.NewHealth(kubelet.ProbeSocket(d.socket), kubelet.HealthOptions{Logger: d.log})
	if err != nil {
		return err
	}
	d.http, err = kubelet.NewServer(health, kubelet.ServerOptions{
		Handlers: map[string]http.Handler{"/metrics": promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})},
		Logger:   d.log,
	})
	if err != nil {
		return err
	}
	ln, err := kubelet.ListenHTTP(d.o.httpEndpoint)
	if err != nil {
		return err
	}
	d.background(func() error { return d.http.Serve(ln) })
	return nil
}

// register tells kubelet about the driver, which is served already.
func (d *daemon) register() (err error) {
	d.registered, err = kubelet.NewRegistration(driver.Name, d.o.kubeletEndpoint, kubelet.RegistrationOptions{
		Dir: d.o.registrationDir, Logger: d.log,
	})
	if err != nil {
		return err
	}
	ln, err := d.registered.Listen()
	if err != nil {
		return err
	}
	d.background(func() error { return d.registered.Serve(ln) })
	return nil
}

// background runs a server that volumes do not depend on: its end is no reason to take
// them down.
func (d *daemon) background(serve func() error) {
	d.running.Go(func() {
		if err := serve(); err != nil {
			d.log.Error("a server has ended", "err", err)
		}
	})
}

// listen serves on a Unix socket.
func (d *daemon) listen(path string, serve func(net.Listener) error) error {
	ln, err := socket.Listen(path)
	if err != nil {
		return err
	}
	d.serveOn(ln, serve)
	return nil
}

// serveOn serves in the background; that it ends with an error ends the daemon.
func (d *daemon) serveOn(ln net.Listener, serve func(net.Listener) error) {
	d.running.Go(func() {
		if err := serve(ln); err != nil {
			d.failed <- err
		}
	})
}

// stopTelling ends registration and health: kubelet sends no new pods.
func (d *daemon) stopTelling() {
	ctx, cancel := context.WithTimeout(context.Background(), tellingEnd)
	defer cancel()
	if d.registered != nil {
		d.registered.Stop(ctx)
	}
	if d.http != nil {
		d.http.Stop(ctx)
	}
}

// wait waits for a signal, or for a server that fails.
func (d *daemon) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-d.failed:
		return err
	}
}

// stop takes no more calls, ends what is attached, and closes the store.
func (d *daemon) stop() error {
	if d.store == nil {
		return nil
	}
	var failed []error
	d.stopTelling()
	if d.driver != nil {
		ctx, cancel := context.WithTimeout(context.Background(), callsEnd)
		d.driver.Stop(ctx)
		cancel()
	}
	if d.admin != nil {
		ctx, cancel := context.WithTimeout(context.Background(), callsEnd)
		failed = append(failed, d.admin.Close(ctx))
		cancel()
	}
	if d.attachments != nil {
		ctx, cancel := context.WithTimeout(context.Background(), volumesEnd)
		failed = append(failed, d.attachments.Shutdown(ctx))
		cancel()
	}
	if d.endWork != nil {
		d.endWork()
	}
	d.running.Wait()
	failed = append(failed, d.store.Close())
	if d.buffers != nil {
		d.buffers.Close()
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	d.log.Info("stopped")
	return nil
}
