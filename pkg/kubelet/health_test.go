package kubelet_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/kubelet"
	"github.com/k8ns/granary/pkg/leaktest"
)

func newHealth(t *testing.T, check func(context.Context) error, o kubelet.HealthOptions) *kubelet.Health {
	t.Helper()
	h, err := kubelet.NewHealth(check, o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// ask asks a handler and gives status and body.
func ask(ctx context.Context, h http.Handler) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/healthz", nil))
	return w.Code, w.Body.String()
}

func TestHealthAnswers(t *testing.T) {
	leaktest.Check(t)
	var result error
	log := &logBuffer{}
	h := newHealth(t, func(context.Context) error { return result }, kubelet.HealthOptions{Logger: log.logger()})
	for range 2 {
		if code, body := ask(t.Context(), h); code != 200 || body != "ok\n" {
			t.Errorf("ok: %d %q", code, body)
		}
	}
	result = errors.New("the disk is on fire")
	for range 2 {
		if code, body := ask(t.Context(), h); code != 503 || body != "the disk is on fire\n" {
			t.Errorf("failing: %d %q", code, body)
		}
	}
	result = nil
	if code, _ := ask(t.Context(), h); code != 200 {
		t.Errorf("ok again: %d", code)
	}
	if log.count("level=ERROR", "on fire") != 1 || log.count("passes again") != 1 || log.count() != 2 {
		t.Errorf("changes are to be logged, once each: %s", log)
	}
}

func TestHealthArguments(t *testing.T) {
	leaktest.Check(t)
	check := func(context.Context) error { return nil }
	for _, timeout := range []time.Duration{-1, 21 * time.Second} {
		if _, err := kubelet.NewHealth(check, kubelet.HealthOptions{Timeout: timeout}); err == nil || !strings.Contains(err.Error(), "at most 20s") {
			t.Errorf("%v: %v", timeout, err)
		}
	}
	if _, err := kubelet.NewHealth(nil, kubelet.HealthOptions{}); err == nil {
		t.Error("no check: no error")
	}
}

func TestHealthSurvivesPanic(t *testing.T) {
	leaktest.Check(t)
	h := newHealth(t, func(context.Context) error { panic("oops") }, kubelet.HealthOptions{})
	if code, body := ask(t.Context(), h); code != 503 || !strings.Contains(body, "oops") {
		t.Errorf("%d %q", code, body)
	}
}

// A check that takes its time is run once for all who ask meanwhile.
func TestHealthSharesChecks(t *testing.T) {
	leaktest.Check(t)
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		h := newHealth(t, func(context.Context) error {
			calls.Add(1)
			time.Sleep(time.Second)
			return nil
		}, kubelet.HealthOptions{})
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() {
				if code, body := ask(t.Context(), h); code != 200 {
					t.Errorf("%d %q", code, body)
				}
			})
		}
		asking.Wait()
		if calls.Load() != 1 {
			t.Errorf("%d checks for 50 at a time", calls.Load())
		}
		ask(t.Context(), h)
		if calls.Load() != 2 {
			t.Errorf("an old result was given")
		}
	})
}

// A check that obeys its context is ended after five seconds.
func TestHealthEndsSlowCheck(t *testing.T) {
	leaktest.Check(t)
	synctest.Test(t, func(t *testing.T) {
		h := newHealth(t, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}, kubelet.HealthOptions{})
		start := time.Now()
		code, body := ask(t.Context(), h)
		if code != 503 || !strings.Contains(body, "no answer within 5s") || time.Since(start) != 5*time.Second {
			t.Errorf("%d %q after %v", code, body, time.Since(start))
		}
	})
}

// A check that hangs in the kernel does not even obey its context.
func TestHealthBearsHangingCheck(t *testing.T) {
	leaktest.Check(t)
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var calls atomic.Int32
		h := newHealth(t, func(context.Context) error {
			if calls.Add(1) == 1 {
				<-hang
			}
			return nil
		}, kubelet.HealthOptions{Timeout: 2 * time.Second})
		before := runtime.NumGoroutine()
		for i := range 100 {
			start := time.Now()
			if code, body := ask(t.Context(), h); code != 503 || !strings.Contains(body, "no answer within 2s") {
				t.Errorf("%d %q", code, body)
			}
			if took := time.Since(start); i == 0 && took != 2*time.Second || i > 0 && took != 0 {
				t.Errorf("asker %d waited %v", i, took)
			}
		}
		if n := runtime.NumGoroutine() - before; calls.Load() != 1 || n > 2 {
			t.Errorf("%d checks and %d goroutines pile up", calls.Load(), n)
		}
		close(hang)
		synctest.Wait()
		if code, body := ask(t.Context(), h); code != 200 || calls.Load() != 2 {
			t.Errorf("after it came back: %d %q, %d checks", code, body, calls.Load())
		}
	})
}

// Who leaves does not take the check along that others wait for.
func TestHealthAskerLeaves(t *testing.T) {
	leaktest.Check(t)
	synctest.Test(t, func(t *testing.T) {
		log := &logBuffer{}
		h := newHealth(t, func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		}, kubelet.HealthOptions{Logger: log.logger()})
		ctx, cancel := context.WithCancel(t.Context())
		var asking sync.WaitGroup
		asking.Go(func() { ask(ctx, h) })
		synctest.Wait()
		asking.Go(func() {
			if code, body := ask(t.Context(), h); code != 200 {
				t.Errorf("%d %q", code, body)
			}
		})
		synctest.Wait()
		cancel()
		asking.Wait()
		if log.count() != 0 {
			t.Errorf("logged: %s", log)
		}
	})
}

func TestProbeSocket(t *testing.T) {
	leaktest.Check(t)
	hang := func(ctx context.Context) (*csi.ProbeResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for name, c := range map[string]struct {
		probe func(context.Context) (*csi.ProbeResponse, error)
		want  string // in the error; "" = none
	}{
		"ready":     {ready(true), ""},
		"not-ready": {ready(false), "not ready"},
		"unsaid":    {func(context.Context) (*csi.ProbeResponse, error) { return &csi.ProbeResponse{}, nil }, ""},
		"failing":   {func(context.Context) (*csi.ProbeResponse, error) { return nil, errors.New("no disk") }, "no disk"},
		"hanging":   {hang, "DeadlineExceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			leaktest.Check(t)
			socket := filepath.Join(socketDir(t), "a %2f?#.sock") // no URL
			servePlugin(t, socket, &plugin{probe: c.probe})
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			err := kubelet.ProbeSocket(socket)(ctx)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), socket)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// The plugin goes and comes; the check sees both.
func TestProbeSocketAfterRestart(t *testing.T) {
	leaktest.Check(t)
	socket := filepath.Join(socketDir(t), "csi.sock")
	h := newHealth(t, kubelet.ProbeSocket(socket), kubelet.HealthOptions{})
	if code, body := ask(t.Context(), h); code != 503 || !strings.Contains(body, "no such file") {
		t.Errorf("before the plugin: %d %q", code, body)
	}
	for range 2 {
		stop := servePlugin(t, socket, &plugin{probe: ready(true)})
		if code, body := ask(t.Context(), h); code != 200 {
			t.Errorf("%d %q", code, body)
		}
		stop()
		if code, body := ask(t.Context(), h); code != 503 {
			t.Errorf("after the plugin: %d %q", code, body)
		}
	}
	leaveSocket(t, socket)
	if code, body := ask(t.Context(), h); code != 503 || !strings.Contains(body, "refused") {
		t.Errorf("killed plugin: %d %q", code, body)
	}
}
