package kubelet_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/k8ns/granary/pkg/kubelet"
	"github.com/k8ns/granary/pkg/leaktest"
)

const (
	driver     = "test.csi.example.org"
	socketName = driver + "-reg.sock"
)

func newRegistration(t *testing.T, dir, csiSocket string, log *logBuffer) *kubelet.Registration {
	t.Helper()
	r, err := kubelet.NewRegistration(driver, csiSocket, kubelet.RegistrationOptions{Dir: dir, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// serve serves until stop, which the end of the test calls too.
func serve(t *testing.T, r *kubelet.Registration) (stop func()) {
	t.Helper()
	ln, err := r.Listen()
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Serve(ln); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() {
		r.Stop(soon(t))
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

func TestRegistration(t *testing.T) {
	leaktest.Check(t)
	dir, log := socketDir(t), &logBuffer{}
	csiSocket := filepath.Join(dir, "csi.sock")
	servePlugin(t, csiSocket, &plugin{probe: ready(true)})
	r := newRegistration(t, dir, csiSocket, log)
	stop := serve(t, r)

	if ok, text := r.Registered(); ok || text != "" {
		t.Errorf("before kubelet came: Registered is %v, %q", ok, text)
	}
	info, node := register(t, filepath.Join(dir, socketName))
	if info.GetType() != "CSIPlugin" || info.GetName() != driver || info.GetEndpoint() != csiSocket ||
		!slices.Equal(info.GetSupportedVersions(), []string{"1.0.0"}) || node != "n1" {
		t.Errorf("kubelet was told %v, node %q", info, node)
	}
	if ok, text := r.Registered(); !ok || text != "" {
		t.Errorf("after registration: Registered is %v, %q", ok, text)
	}
	if log.count("level=INFO", "kubelet registered the driver") != 1 {
		t.Errorf("success is not logged: %s", log)
	}

	stop()
	if left := names(t, dir); left != "csi.sock" {
		t.Errorf("Stop left %s", left)
	}
	if ok, text := r.Registered(); ok || !strings.Contains(text, "socket is gone") {
		t.Errorf("after Stop: Registered is %v, %q", ok, text)
	}
}

func TestFailedRegistration(t *testing.T) {
	leaktest.Check(t)
	dir, log := socketDir(t), &logBuffer{}
	r := newRegistration(t, dir, "/run/csi.sock", log)
	serve(t, r)
	client := registerapi.NewRegistrationClient(dial(t, r.Socket()))

	notify(t, client, false, "no such node")
	if ok, text := r.Registered(); ok || text != "no such node" {
		t.Errorf("Registered is %v, %q", ok, text)
	}
	if log.count("level=ERROR", "no such node") != 1 {
		t.Errorf("failure is not logged: %s", log)
	}
	notify(t, client, false, "")
	if ok, text := r.Registered(); ok || text == "" {
		t.Errorf("failure without a text: Registered is %v, %q", ok, text)
	}
	// Kubelet tries again on the same socket.
	notify(t, client, true, "")
	if ok, text := r.Registered(); !ok || text != "" {
		t.Errorf("second try: Registered is %v, %q", ok, text)
	}
}

// A message that is too long must not be kept.
func TestRegistrationLimitsMessages(t *testing.T) {
	leaktest.Check(t)
	r := newRegistration(t, socketDir(t), "/run/csi.sock", &logBuffer{})
	serve(t, r)
	client := registerapi.NewRegistrationClient(dial(t, r.Socket()))
	status := &registerapi.RegistrationStatus{Error: strings.Repeat("a", 1<<20)}
	if _, err := client.NotifyRegistrationStatus(soon(t), status); err == nil {
		t.Error("a message of 1 MiB was taken")
	}
	if ok, text := r.Registered(); ok || text != "" {
		t.Errorf("Registered is %v with %d bytes", ok, len(text))
	}
}

func TestRegistrationArguments(t *testing.T) {
	leaktest.Check(t)
	long := "/" + strings.Repeat("d", 107)
	for _, c := range []struct{ driver, csiSocket, dir, want string }{
		{"", "/csi.sock", "/reg", "driver name"},
		{"../x", "/csi.sock", "/reg", "driver name"},
		{".x", "/csi.sock", "/reg", "driver name"},
		{strings.Repeat("n", 64), "/csi.sock", "/reg", "1 to 63"},
		{driver, "csi.sock", "/reg", "full path"},
		{driver, "", "/reg", "full path"},
		{driver, "unix:///csi.sock", "/reg", "not a URL"},
		{driver, long, "/reg", "has 108 bytes, a socket's has at most 107"},
		{driver, "/csi.sock", "reg", "full path"},
		{driver, "/csi.sock", long, "registration socket"},
	} {
		_, err := kubelet.NewRegistration(c.driver, c.csiSocket, kubelet.RegistrationOptions{Dir: c.dir})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	r, err := kubelet.NewRegistration(driver, "/csi.sock", kubelet.RegistrationOptions{})
	if err != nil || r.Socket() != "/var/lib/kubelet/plugins_registry/"+socketName {
		t.Errorf("default directory: %v", err)
	}
}

// The longest driver name fits into kubelet's directory, and every path that fits a
// socket can be listened on.
func TestLongestSocketPath(t *testing.T) {
	leaktest.Check(t)
	name := strings.Repeat("n", 63)
	if _, err := kubelet.NewRegistration(name, "/csi.sock", kubelet.RegistrationOptions{}); err != nil {
		t.Error(err)
	}
	dir := socketDir(t)
	dir = filepath.Join(dir, strings.Repeat("d", 107-len(dir)-len("/")-len("/")-len(socketName)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	if len(r.Socket()) != 107 {
		t.Fatalf("the path has %d bytes", len(r.Socket()))
	}
	serve(t, r)
}

func TestListenMode(t *testing.T) {
	leaktest.Check(t)
	dir := socketDir(t)
	r := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	serve(t, r)
	info, err := os.Lstat(r.Socket())
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != os.ModeSocket|0o600 || names(t, dir) != socketName {
		t.Errorf("%v among %s", info.Mode(), names(t, dir))
	}
}

// Kubelet takes every socket for a plugin whose name does not begin with a dot, and
// does not forget one that is renamed: it may see nothing but the right name.
func TestListenShowsKubeletOneName(t *testing.T) {
	leaktest.Check(t)
	dir := socketDir(t)
	created := watch(t, dir)
	r := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	stop := serve(t, r)
	notify(t, registerapi.NewRegistrationClient(dial(t, r.Socket())), true, "")
	stop()
	for _, name := range created() {
		if name != socketName && !strings.HasPrefix(name, ".") {
			t.Errorf("kubelet would take %s for a plugin", name)
		}
	}
}

// watch records the names that appear in a directory, as kubelet's watch does.
func watch(t *testing.T, dir string) (created func() []string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	return func() []string {
		buf := make([]byte, 16<<10)
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for buf = buf[:n]; len(buf) > 0; {
			length := int(buf[12]) | int(buf[13])<<8 // of the name, padded with zeros
			name := buf[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+length]
			all = append(all, strings.TrimRight(string(name), "\x00"))
			buf = buf[unix.SizeofInotifyEvent+length:]
		}
		if !slices.Contains(all, socketName) {
			t.Errorf("the watch saw only %v", all)
		}
		return all
	}
}

// leaveSocket leaves a socket as a killed process does.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	leaktest.Check(t)
	dir := socketDir(t)
	leaveSocket(t, filepath.Join(dir, socketName))
	leaveSocket(t, filepath.Join(dir, "."+socketName[1:])) // killed while it made one
	r := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	stop := serve(t, r)
	notify(t, registerapi.NewRegistrationClient(dial(t, r.Socket())), true, "")
	stop()
	if left := names(t, dir); left != "" {
		t.Errorf("Stop left %s", left)
	}
}

func TestLivingSocketStays(t *testing.T) {
	leaktest.Check(t)
	dir := socketDir(t)
	first := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	serve(t, first)
	second := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	if _, err := second.Listen(); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("second listener: %v", err)
	}
	notify(t, registerapi.NewRegistrationClient(dial(t, first.Socket())), true, "")
}

func TestPlainFileStays(t *testing.T) {
	leaktest.Check(t)
	for _, name := range []string{socketName, "." + socketName[1:]} {
		dir := socketDir(t)
		if err := os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := newRegistration(t, dir, "/csi.sock", &logBuffer{}).Listen()
		if err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != "mine" || names(t, dir) != name {
			t.Errorf("%s: %q, %v, among %s", name, got, err, names(t, dir))
		}
	}
}

func TestListenWithoutDirectory(t *testing.T) {
	leaktest.Check(t)
	dir := filepath.Join(socketDir(t), "not-mounted")
	if _, err := newRegistration(t, dir, "/csi.sock", &logBuffer{}).Listen(); err == nil {
		t.Error("a directory was made that kubelet does not watch")
	}
}

// A successor's socket is not the predecessor's to remove.
func TestStopLeavesSuccessorsSocket(t *testing.T) {
	leaktest.Check(t)
	dir := socketDir(t)
	first := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	stop := serve(t, first)
	if err := os.Remove(first.Socket()); err != nil { // somebody cleans up
		t.Fatal(err)
	}
	second := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	serve(t, second)
	stop()
	notify(t, registerapi.NewRegistrationClient(dial(t, second.Socket())), true, "")
}

func TestServeAfterStop(t *testing.T) {
	leaktest.Check(t)
	dir := socketDir(t)
	r := newRegistration(t, dir, "/csi.sock", &logBuffer{})
	ln, err := r.Listen()
	if err != nil {
		t.Fatal(err)
	}
	r.Stop(soon(t))
	if err := r.Serve(ln); err != nil {
		t.Error(err)
	}
	if left := names(t, dir); left != "" {
		t.Errorf("Serve left %s", left)
	}
}

// Who connects and says nothing does not hold up the end.
func TestStopIsBounded(t *testing.T) {
	leaktest.Check(t)
	r := newRegistration(t, socketDir(t), "/csi.sock", &logBuffer{})
	serve(t, r)
	conn, err := net.Dial("unix", r.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	r.Stop(ctx)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Stop took %v", took)
	}
}
