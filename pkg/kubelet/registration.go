package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/k8ns/granary/pkg/socket"
)

const (
	// DefaultRegistrationDir is the directory that kubelet watches unless it was
	// started with another root directory.
	DefaultRegistrationDir = "/var/lib/kubelet/plugins_registry"

	// csiVersion stands for all of CSI 1.x. Kubelet compares it only between two
	// sockets with the same driver; node-driver-registrar gives this one too.
	csiVersion = "1.0.0"

	// maxMessage is how many bytes a message of kubelet may have. The longest is the
	// text of an error.
	maxMessage = 64 << 10

	// handshakeEnd is how long a connection may take to begin to speak HTTP/2. Kubelet
	// begins at once and dials again for 10 s; gRPC's default of 120 s would be how
	// long a silent connection holds up Stop, whose context does not cut this short.
	handshakeEnd = 2 * time.Second
)

// driverName is what CSI allows: it becomes a file's name too.
var driverName = regexp.MustCompile(`^[a-zA-Z0-9]([-.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$`)

// RegistrationOptions are the choices of NewRegistration.
type RegistrationOptions struct {
	// Dir is kubelet's registration directory as this process sees it, with its full
	// path. Default DefaultRegistrationDir.
	Dir    string
	Logger *slog.Logger // default none
}

// Registration tells kubelet about the driver. Its methods may be called concurrently.
type Registration struct {
	driver   string // fixed
	endpoint string // fixed
	socket   string // fixed
	log      *slog.Logger
	grpc     *grpc.Server

	mu         sync.Mutex
	registered bool   // guarded by mu
	lastError  string // guarded by mu; "" if registered

	registerapi.UnimplementedRegistrationServer
}

// NewRegistration makes the registration of a CSI driver. csiSocket is the full path
// of its CSI socket as kubelet sees it, which a mount may make another than our own.
// An error says which of the arguments cannot be.
func NewRegistration(driver, csiSocket string, o RegistrationOptions) (*Registration, error) {
	if o.Dir == "" {
		o.Dir = DefaultRegistrationDir
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if !driverName.MatchString(driver) {
		return nil, fmt.Errorf("driver name %q: give 1 to 63 letters, digits, dots and dashes, with a letter or digit at both ends", driver)
	}
	if err := checkSocketPath("CSI socket", csiSocket); err != nil {
		return nil, err
	}
	path := filepath.Join(o.Dir, driver+"-reg.sock")
	if err := checkSocketPath("registration socket", path); err != nil {
		return nil, err
	}
	r := &Registration{driver: driver, endpoint: csiSocket, socket: path, log: o.Logger}
	r.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.ConnectionTimeout(handshakeEnd))
	registerapi.RegisterRegistrationServer(r.grpc, r)
	return r, nil
}

// checkSocketPath says what is wrong with a path that is to be a socket's. It takes
// no URL: kubelet would dial it as a file's name.
func checkSocketPath(what, path string) error {
	switch {
	case strings.Contains(path, "://"):
		return fmt.Errorf("%s %q: give a path, not a URL", what, path)
	case !filepath.IsAbs(path):
		return fmt.Errorf("%s %q: give a full path", what, path)
	case len(path) > socket.MaxPath:
		return fmt.Errorf("%s %s: the path has %d bytes, a socket's has at most %d", what, path, len(path), socket.MaxPath)
	}
	return nil
}

// Socket is the path of the registration socket.
func (r *Registration) Socket() string { return r.socket }

// Serve answers kubelet until Stop and closes ln, which is of Listen. It returns nil
// after Stop. The CSI socket must be served before: kubelet asks it at once.
func (r *Registration) Serve(ln net.Listener) error {
	r.log.Info("waiting for kubelet to register the driver", "driver", r.driver, "socket", r.socket, "endpoint", r.endpoint)
	if err := r.grpc.Serve(ln); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("registration socket: %w", err)
	}
	return nil
}

// Stop removes the socket, by which kubelet takes the driver off its list, and waits
// for calls that run, until ctx ends. A connection that has said nothing yet may hold
// it up for two seconds more.
func (r *Registration) Stop(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		r.grpc.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		r.grpc.Stop()
		<-done
	}
}

// Registered tells what kubelet said last: whether the driver is registered, and its
// text if that failed. Before kubelet came it is false and "". Kubelet does not say
// when it drops a driver, but it does so if the socket is gone; then Registered is
// false.
func (r *Registration) Registered() (registered bool, lastError string) {
	r.mu.Lock()
	registered, lastError = r.registered, r.lastError
	r.mu.Unlock()
	if !registered {
		return false, lastError
	}
	if _, err := os.Lstat(r.socket); err != nil {
		return false, fmt.Sprintf("registration socket is gone, kubelet drops the driver then: %v", err)
	}
	return true, ""
}

// GetInfo is the first call of kubelet.
func (r *Registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	r.log.Debug("kubelet asks for the driver", "driver", r.driver)
	return &registerapi.PluginInfo{
		Type:              registerapi.CSIPlugin,
		Name:              r.driver,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{csiVersion},
	}, nil
}

// NotifyRegistrationStatus is the last call of kubelet. It never fails: kubelet would
// take a driver back that it has just registered. Nor does a failure end this process:
// kubelet tries again, and volumes that are mounted depend on us.
func (r *Registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	registered, text := s.GetPluginRegistered(), ""
	if registered {
		r.log.Info("kubelet registered the driver", "driver", r.driver)
	} else {
		if text = s.GetError(); text == "" {
			text = "kubelet gave no reason"
		}
		r.log.Error("kubelet did not register the driver; it tries again", "driver", r.driver, "err", text)
	}
	r.mu.Lock()
	r.registered, r.lastError = registered, text
	r.mu.Unlock()
	return &registerapi.RegistrationStatusResponse{}, nil
}
