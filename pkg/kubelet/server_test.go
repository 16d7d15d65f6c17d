package kubelet_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/kubelet"
	"github.com/k8ns/granary/pkg/leaktest"
)

var (
	fine    = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") })
	metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1") })
)

// serveHTTP serves until stop, which the end of the test calls too.
func serveHTTP(t *testing.T, address string, health http.Handler) (addr string, stop func()) {
	t.Helper()
	s, err := kubelet.NewServer(health, kubelet.ServerOptions{
		Handlers: map[string]http.Handler{"/metrics": metrics, "/debug/": metrics},
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := kubelet.ListenHTTP(address)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Serve(ln); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() {
		s.Stop(soon(t))
		running.Wait()
	})
	t.Cleanup(stop)
	return ln.Addr().String(), stop
}

// do sends a request on a connection of its own and gives status and body.
func do(t *testing.T, method, url string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(soon(t), method, url, body)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(text)
}

func TestServerRoutes(t *testing.T) {
	leaktest.Check(t)
	addr, _ := serveHTTP(t, "127.0.0.1:0", fine)
	for _, c := range []struct {
		method, path string
		body         io.Reader
		code         int
		want         string
	}{
		{"GET", "/healthz", nil, 200, "fine"},
		{"HEAD", "/healthz", nil, 200, ""},
		{"GET", "/metrics", nil, 200, "up 1"},
		{"GET", "/debug/x", nil, 200, "up 1"},
		{"POST", "/healthz", nil, 405, "Method"},
		{"DELETE", "/metrics", nil, 405, "Method"},
		{"POST", "/healthz", strings.NewReader("body"), 405, "Method"},
		{"GET", "/", nil, 404, "not found"},
		{"GET", "/healthz/x", nil, 404, "not found"},
		{"GET", "/metricsx", nil, 404, "not found"},
		{"GET", "/healthz", strings.NewReader("body"), 413, "no request body"},
		{"GET", "/healthz", io.MultiReader(strings.NewReader("chunks")), 413, "no request body"},
	} {
		code, text := do(t, c.method, "http://"+addr+c.path, c.body)
		if code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%s %s: %d %q", c.method, c.path, code, text)
		}
	}
}

func TestServerRestarts(t *testing.T) {
	leaktest.Check(t)
	addr, stop := serveHTTP(t, "127.0.0.1:0", fine)
	if code, text := do(t, "GET", "http://"+addr+"/healthz", nil); code != 200 {
		t.Errorf("%d %q", code, text)
	}
	stop()
	if conn, err := net.Dial("tcp", addr); err == nil {
		_ = conn.Close()
		t.Error("it listens after Stop")
	}
	serveHTTP(t, addr, fine)
	if code, text := do(t, "GET", "http://"+addr+"/healthz", nil); code != 200 {
		t.Errorf("restarted: %d %q", code, text)
	}
}

func TestServerArguments(t *testing.T) {
	leaktest.Check(t)
	for path, want := range map[string]string{
		"":           "begins with a slash",
		"metrics":    "begins with a slash",
		"/m/../x":    "..",
		"//m":        "//",
		"/{x}":       "braces",
		"GET /x":     "blanks",
		"/":          "404",
		"/healthz":   "health check's",
		"/fine-path": "no handler",
	} {
		handler := http.Handler(fine)
		if want == "no handler" {
			handler = nil
		}
		_, err := kubelet.NewServer(fine, kubelet.ServerOptions{Handlers: map[string]http.Handler{path: handler}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := kubelet.NewServer(nil, kubelet.ServerOptions{}); err == nil {
		t.Error("no health handler: no error")
	}
	for _, address := range []string{"", "9808", "localhost", "127.0.0.1:", "127.0.0.1:http-port", "127.0.0.1:70000"} {
		ln, err := kubelet.ListenHTTP(address)
		if err == nil {
			_ = ln.Close()
			t.Errorf("%q: no error", address)
		} else if !strings.Contains(err.Error(), "HTTP address") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// raw sends bytes and gives what comes back.
func raw(t *testing.T, conn net.Conn, request string) string {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// A server that has read enough may close before all is written.
	_, _ = io.WriteString(conn, request)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil && err != io.EOF {
		return err.Error()
	}
	return line
}

func connect(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestServerLimitsHeaders(t *testing.T) {
	leaktest.Check(t)
	addr, _ := serveHTTP(t, "127.0.0.1:0", fine)
	header := "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 16<<10) + "\r\n\r\n"
	if line := raw(t, connect(t, addr), header); !strings.Contains(line, "431") {
		t.Errorf("a header of 16 KiB: %q", line)
	}
}

// Who does not get to the end of the header is thrown out.
func TestServerLimitsHeaderTime(t *testing.T) {
	leaktest.Check(t)
	addr, _ := serveHTTP(t, "127.0.0.1:0", fine)
	start := time.Now()
	line := raw(t, connect(t, addr), "GET /healthz HTTP/1.1\r\n")
	if took := time.Since(start); line != "" && !strings.Contains(line, "408") || took > 15*time.Second {
		t.Errorf("%q after %v", line, took)
	}
}

func TestServerLimitsConnections(t *testing.T) {
	leaktest.Check(t)
	addr, _ := serveHTTP(t, "127.0.0.1:0", fine)
	const request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	var held []net.Conn
	for i := range 64 {
		conn := connect(t, addr)
		if line := raw(t, conn, request); !strings.Contains(line, "200") {
			t.Fatalf("connection %d: %q", i, line)
		}
		held = append(held, conn)
	}
	if line := raw(t, connect(t, addr), request); strings.Contains(line, "HTTP") {
		t.Errorf("connection 65: %q", line)
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	within(t, "a connection after the others have gone", func() bool {
		return strings.Contains(raw(t, connect(t, addr), request), "200")
	})
}

// A handler that hangs holds up Stop only as long as its context lasts.
func TestServerStopIsBounded(t *testing.T) {
	leaktest.Check(t)
	entered := make(chan struct{})
	hanging := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	s, err := kubelet.NewServer(hanging, kubelet.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := kubelet.ListenHTTP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Serve(ln); err != nil {
			t.Error(err)
		}
	})
	_, _ = fmt.Fprint(connect(t, ln.Addr().String()), "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	s.Stop(ctx)
	running.Wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Stop took %v", took)
	}
}

func TestServerServeAfterStop(t *testing.T) {
	leaktest.Check(t)
	s, err := kubelet.NewServer(fine, kubelet.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := kubelet.ListenHTTP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Stop(soon(t))
	if err := s.Serve(ln); err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("Serve left its listener")
	}
}

// The whole: a plugin that hangs, seen over HTTP, with askers that pile up.
func TestHangingPluginOverHTTP(t *testing.T) {
	leaktest.Check(t)
	socket := socketDir(t) + "/csi.sock"
	ln, err := net.Listen("unix", socket) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h := newHealth(t, kubelet.ProbeSocket(socket), kubelet.HealthOptions{Timeout: 300 * time.Millisecond})
	addr, _ := serveHTTP(t, "127.0.0.1:0", h)
	var asking sync.WaitGroup
	for range 20 {
		asking.Go(func() {
			code, text := do(t, "GET", "http://"+addr+"/healthz", nil)
			if code != 503 || !strings.Contains(text, "no answer within 300ms") {
				t.Errorf("%d %q", code, text)
			}
		})
	}
	asking.Wait()
}
