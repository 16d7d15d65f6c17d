package kubelet_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// within waits until ok or fails the test.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// soon returns a context for something that should take no time.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// socketDir is a directory with a short path.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kubelet-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// logBuffer is a log that a test can read.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, nil))
}

// count counts the lines with all of the words.
func (b *logBuffer) count(words ...string) int {
	n := 0
lines:
	for line := range strings.Lines(b.String()) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue lines
			}
		}
		n++
	}
	return n
}

// plugin is a fake CSI plugin on a socket.
type plugin struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	probe func(ctx context.Context) (*csi.ProbeResponse, error)
}

func (p *plugin) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return p.probe(ctx)
}

func (p *plugin) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: "n1"}, nil
}

func ready(value bool) func(context.Context) (*csi.ProbeResponse, error) {
	return func(context.Context) (*csi.ProbeResponse, error) {
		return &csi.ProbeResponse{Ready: wrapperspb.Bool(value)}, nil
	}
}

// servePlugin serves until stop, which the end of the test calls too.
func servePlugin(t *testing.T, socket string, p *plugin) (stop func()) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, p)
	csi.RegisterNodeServer(server, p)
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(ln); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() {
		server.Stop()
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// dial connects as kubelet does: the path as it stands.
func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// register does with a registration socket what kubelet does, and gives the plugin's
// node ID.
func register(t *testing.T, socket string) (*registerapi.PluginInfo, string) {
	t.Helper()
	client := registerapi.NewRegistrationClient(dial(t, socket))
	info, err := client.GetInfo(soon(t), &registerapi.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	node, err := csi.NewNodeClient(dial(t, info.GetEndpoint())).NodeGetInfo(soon(t), &csi.NodeGetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	notify(t, client, true, "")
	return info, node.GetNodeId()
}

func notify(t *testing.T, client registerapi.RegistrationClient, ok bool, text string) {
	t.Helper()
	status := &registerapi.RegistrationStatus{PluginRegistered: ok, Error: text}
	if _, err := client.NotifyRegistrationStatus(soon(t), status); err != nil {
		t.Fatal(err)
	}
}

// names are the names in a directory.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, filepath.Base(e.Name()))
	}
	return strings.Join(all, " ")
}
