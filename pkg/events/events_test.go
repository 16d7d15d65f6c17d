package events

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/leaktest"
)

// server plays the part of an API server that is about events, and the cluster whose pod
// we are.
type server struct {
	t     *testing.T
	https *httptest.Server
	api   Cluster
	clock time.Time
	log   bytes.Buffer
	*Poster

	mu       sync.Mutex
	requests []string // method and path
	bodies   []map[string]any
	events   map[string]bool // paths
	fail     int             // status of every answer; 0: as it should be
	instead  http.Handler    // answers everything; nil: nobody does
	asked    int             // requests, whoever answered
}

// wantAsked wants that somebody asked at all since the last call, and tells how often.
func (s *server) wantAsked(what string) int {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.asked
	if s.asked = 0; n == 0 {
		s.t.Errorf("%s: nothing was requested", what)
	}
	return n
}

// answers sets how every request is answered, see fail and instead.
func (s *server) answers(fail int, instead http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.instead = fail, instead
}

const claims = "/api/v1/namespaces/shop/persistentvolumeclaims/"

func newServer(t *testing.T) *server {
	t.Helper()
	leaktest.Check(t)
	s := &server{t: t, clock: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC), events: map[string]bool{}}
	s.https = httptest.NewUnstartedServer(s)
	s.https.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.https.StartTLS()
	t.Cleanup(s.https.Close)
	dir := t.TempDir()
	s.api = Cluster{URL: s.https.URL, TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	s.write(s.api.TokenFile, "secret-1\n")
	s.write(s.api.CAFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.https.Certificate().Raw})))
	s.Poster = New(s.api, Options{
		Component: "granary.csi.k8ns.io", Host: "node-1",
		Now:    func() time.Time { return s.clock },
		Logger: slog.New(slog.NewTextHandler(&s.log, nil)),
	})
	return s
}

func (s *server) write(file, text string) {
	s.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked++
	if instead := s.instead; instead != nil {
		s.mu.Unlock()
		instead.ServeHTTP(w, r)
		return
	}
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
	var body map[string]any
	if raw, err := io.ReadAll(r.Body); err == nil && len(raw) > 0 {
		if err := json.Unmarshal(raw, &body); err != nil {
			s.t.Errorf("%s %s: %v in %s", r.Method, r.URL.Path, err, raw)
		}
	}
	s.bodies = append(s.bodies, body)
	answer := func(code int, text string) {
		w.WriteHeader(code)
		fmt.Fprint(w, text)
	}
	switch {
	case s.fail != 0:
		answer(s.fail, `{"kind":"Status","message":"not today"}`)
	case r.Method == http.MethodGet && r.URL.Path == claims+"data":
		answer(200, `{"metadata":{"uid":"u-1"},"spec":{"volumeName":"pvc-u-1"}}`)
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/events") && r.Header.Get("Content-Type") == "application/json":
		name := body["metadata"].(map[string]any)["name"].(string)
		s.events[r.URL.Path+"/"+name] = true
		answer(201, `{}`)
	case r.Method == http.MethodPatch && s.events[r.URL.Path] && r.Header.Get("Content-Type") == "application/merge-patch+json":
		answer(200, `{}`)
	default:
		answer(404, `{"kind":"Status","message":"not found"}`)
	}
}

// run makes steps until nothing is due at the present time.
func (s *server) run() {
	s.t.Helper()
	for range 1000 {
		if wait := s.step(s.t.Context()); wait != s.o.Pace {
			return
		}
	}
	s.t.Fatal("there is no end of it")
}

// took is what was requested since the last call.
func (s *server) took() (requests []string, bodies []map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests, bodies = s.requests, s.bodies
	s.requests, s.bodies = nil, nil
	return requests, bodies
}

func (s *server) wantRequests(what string, want ...string) []map[string]any {
	s.t.Helper()
	got, bodies := s.took()
	ok := len(got) == len(want)
	for i := range min(len(got), len(want)) {
		ok = ok && strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		s.t.Fatalf("%s: requests %q, want %q", what, got, want)
	}
	return bodies
}

var (
	node  = Object{Kind: "Node", Name: "node-1"}
	claim = Object{Kind: "PersistentVolumeClaim", Namespace: "shop", Name: "data", VolumeName: "pvc-u-1"}
)

func TestEventOfANode(t *testing.T) {
	s := newServer(t)
	s.Post(Event{Object: node, Reason: "StoreFull", Message: "the disk is full", Warning: true})
	s.run()
	bodies := s.wantRequests("post", "POST /api/v1/namespaces/default/events Bearer secret-1")
	var got object
	raw, _ := json.Marshal(bodies[0])
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got.Metadata.Name, "node-1.") {
		t.Errorf("name %q", got.Metadata.Name)
	}
	want := object{
		APIVersion: "v1", Kind: "Event", Metadata: metadata{got.Metadata.Name, "default"},
		InvolvedObject: reference{"v1", "Node", "", "node-1", "node-1"},
		Reason:         "StoreFull", Type: "Warning", Source: source{"granary.csi.k8ns.io", "node-1"},
		FirstTimestamp: s.clock, changing: changing{"the disk is full", 1, s.clock},
		ReportingComponent: "granary.csi.k8ns.io", ReportingInstance: "node-1",
	}
	if got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

// An event of a claim has the claim's UID: kubectl describe looks for it.
func TestEventOfAClaim(t *testing.T) {
	s := newServer(t)
	s.Post(Event{Object: claim, Reason: "SpaceBack", Message: "all is well"})
	s.run()
	bodies := s.wantRequests("post", "GET "+claims+"data", "POST /api/v1/namespaces/shop/events")
	got := fmt.Sprintf("%v %v", bodies[1]["involvedObject"], bodies[1]["type"])
	if want := "map[apiVersion:v1 kind:PersistentVolumeClaim name:data namespace:shop uid:u-1] Normal"; got != want {
		t.Errorf("%s, want %s", got, want)
	}

	other, gone := claim, claim
	other.VolumeName, gone.Name = "pvc-u-2", "gone" // the name is another's by now; nobody's
	s.Post(Event{Object: other, Reason: "SpaceBack"})
	s.Post(Event{Object: gone, Reason: "SpaceBack"})
	s.run()
	s.wantRequests("claims that are not there", "GET "+claims+"data", "GET "+claims+"gone")
	s.clock = s.clock.Add(time.Hour)
	s.run()
	s.wantRequests("later")
}

// What happens again is counted up, and not more often than once a minute.
func TestRepeatedEvent(t *testing.T) {
	s := newServer(t)
	full := Event{Object: node, Reason: "StoreFull", Message: "1st", Warning: true}
	s.Post(full)
	s.run()
	s.wantRequests("first", "POST ")
	for i := range 3 {
		s.clock = s.clock.Add(time.Second)
		full.Message = fmt.Sprint("again ", i)
		s.Post(full)
	}
	if wait := s.step(t.Context()); wait != 57*time.Second {
		t.Errorf("the next is due in %v, want 57s", wait)
	}
	s.wantRequests("too early")
	s.Post(Event{Object: node, Reason: "StoreSpaceBack"}) // something else does not wait
	s.run()
	s.wantRequests("another", "POST ")
	s.clock = s.clock.Add(time.Minute)
	s.run()
	bodies := s.wantRequests("counted up", "PATCH /api/v1/namespaces/default/events/node-1.")
	if got := bodies[0]; len(got) != 3 || got["count"] != 4.0 || got["message"] != "again 2" || got["lastTimestamp"] != "2026-11-26T12:00:03Z" {
		t.Errorf("patch %v", got)
	}
	// The API server forgets events after an hour.
	s.mu.Lock()
	clear(s.events)
	s.mu.Unlock()
	s.clock = s.clock.Add(time.Hour)
	s.Post(full)
	s.run()
	bodies = s.wantRequests("forgotten", "PATCH ", "POST ")
	if bodies[1]["count"] != 1.0 {
		t.Errorf("count %v, want 1", bodies[1]["count"])
	}
}

func TestTokenIsReadAgain(t *testing.T) {
	s := newServer(t)
	s.Post(Event{Object: node, Reason: "A"})
	s.run()
	s.write(s.api.TokenFile, "secret-2")
	s.Post(Event{Object: node, Reason: "B"})
	s.run()
	s.wantRequests("both", "POST /api/v1/namespaces/default/events Bearer secret-1", "POST /api/v1/namespaces/default/events Bearer secret-2")
}

// A server that nobody vouches for gets no token.
func TestServerMustBeVouchedFor(t *testing.T) {
	s := newServer(t)
	right, err := os.ReadFile(s.api.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, ca := range []string{strangersCA(t), "no certificate"} {
		s.write(s.api.CAFile, ca)
		s.Post(Event{Object: node, Reason: "A"})
		s.run()
		s.wantRequests("stranger")
	}
	s.write(s.api.CAFile, string(right)) // read again too
	s.clock = s.clock.Add(time.Minute)
	s.run()
	s.wantRequests("the right one", "POST ")
}

// strangersCA is an authority that has nothing to do with the server.
func strangersCA(t *testing.T) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, ca, ca, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
}

// Nobody is followed elsewhere with the token.
func TestRedirectIsNotFollowed(t *testing.T) {
	s := newServer(t)
	other := newServer(t)
	s.answers(0, http.RedirectHandler(other.https.URL+"/api/v1/namespaces/default/events", http.StatusTemporaryRedirect))
	s.Post(Event{Object: node, Reason: "A"})
	s.run()
	s.wantAsked("the one that sends elsewhere")
	other.wantRequests("redirected")
}

// A server that fails is asked again for ten minutes, ever less often, and logged once.
func TestServerThatFails(t *testing.T) {
	s := newServer(t)
	s.answers(http.StatusServiceUnavailable, nil)
	s.Post(Event{Object: node, Reason: "A", Message: "one"})
	s.run()
	s.wantRequests("first", "POST ")
	s.Post(Event{Object: node, Reason: "A", Message: "two"}) // the same, not a second one
	requests := 0
	for range 60 {
		s.clock = s.clock.Add(5 * time.Second)
		s.run()
		got, _ := s.took()
		requests += len(got)
	}
	if requests < 3 || requests > 8 {
		t.Errorf("%d requests in five minutes", requests)
	}
	if got := strings.Count(s.log.String(), "level=WARN"); got != 1 || !strings.Contains(s.log.String(), "not today") {
		t.Errorf("%d lines of log:\n%s", got, s.log.String())
	}
	s.answers(0, nil)
	s.clock = s.clock.Add(3 * time.Minute)
	s.run()
	bodies := s.wantRequests("mended", "POST ")
	if got := bodies[0]; got["message"] != "two" || got["count"] != 2.0 || got["firstTimestamp"] != "2026-11-26T12:00:00Z" {
		t.Errorf("%v", got)
	}
	if !strings.Contains(s.log.String(), "again") {
		t.Errorf("the end is not logged:\n%s", s.log.String())
	}

	s.answers(http.StatusServiceUnavailable, nil)
	s.Post(Event{Object: node, Reason: "old"})
	for range 400 {
		s.clock = s.clock.Add(5 * time.Second)
		s.run()
	}
	s.answers(0, nil)
	s.took()
	s.clock = s.clock.Add(time.Hour)
	s.run()
	s.wantRequests("no news any more")
}

// What the server does not allow is not asked for again.
func TestServerThatRefuses(t *testing.T) {
	for _, code := range []int{http.StatusForbidden, http.StatusUnprocessableEntity} {
		s := newServer(t)
		s.answers(code, nil)
		s.Post(Event{Object: node, Reason: "A"})
		s.run()
		s.wantRequests("first", "POST ")
		s.clock = s.clock.Add(time.Hour)
		s.run()
		s.wantRequests("refused")
	}
}

// What cannot be posted is not tried more often for happening again and again: refused for
// good it is asked for once a minute, and a failing server ever less often.
func TestRepeatedEventThatCannotBePosted(t *testing.T) {
	for code, most := range map[int]int{http.StatusForbidden: 6, http.StatusServiceUnavailable: 7} {
		for _, during := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d during=%v", code, during), func(t *testing.T) {
				s := newServer(t)
				again := Event{Object: node, Reason: "A", Message: "again"}
				s.answers(0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if during { // the request for it is under way
						s.Post(again)
					}
					w.WriteHeader(code)
				}))
				s.Post(again)
				for range 300 {
					s.run()
					s.clock = s.clock.Add(time.Second)
					if !during {
						s.Post(again)
					}
				}
				if n := s.wantAsked("five minutes"); n > most || n < 3 {
					t.Errorf("%d requests in five minutes, want 3 to %d", n, most)
				}
				s.answers(0, nil)
				s.clock = s.clock.Add(3 * time.Minute)
				s.run()
				// What was refused is lost, the rest is counted.
				if bodies := s.wantRequests("mended", "POST "); code == http.StatusServiceUnavailable && bodies[0]["count"].(float64) < 7 {
					t.Errorf("%v", bodies[0])
				}
			})
		}
	}
}

func TestTooManyEvents(t *testing.T) {
	s := newServer(t)
	for i := range maxPending + 10 {
		s.Post(Event{Object: Object{Kind: "Node", Name: fmt.Sprint("node-", i)}, Reason: "A"})
	}
	s.run()
	requests, bodies := s.took()
	if len(requests) != maxPending || len(s.remembered()) > maxPosted {
		t.Errorf("%d requests, %d remembered", len(requests), len(s.remembered()))
	}
	if got := bodies[0]["metadata"].(map[string]any)["name"].(string); !strings.HasPrefix(got, "node-0.") {
		t.Errorf("the first is %s", got)
	}
	if !strings.Contains(s.log.String(), "dropped=10") {
		t.Errorf("log: %s", s.log.String())
	}
	for i := range maxPosted { // others push the oldest out
		s.clock = s.clock.Add(time.Second)
		s.Post(Event{Object: Object{Kind: "Node", Name: fmt.Sprint("other-", i)}, Reason: "A"})
		s.run()
	}
	if len(s.remembered()) > maxPosted {
		t.Errorf("%d remembered", len(s.remembered()))
	}
}

// remembered are the events that the poster would count up.
func (s *server) remembered() map[key]posted {
	s.Poster.mu.Lock()
	defer s.Poster.mu.Unlock()
	return s.Poster.mu.posted
}

func TestLongMessageAndName(t *testing.T) {
	s := newServer(t)
	long := Object{Kind: "Node", Name: strings.Repeat("n", 199) + ".node"}
	s.Post(Event{Object: long, Reason: "A", Message: strings.Repeat("ü", 1000)})
	s.run()
	bodies := s.wantRequests("post", "POST ")
	message := bodies[0]["message"].(string)
	name := bodies[0]["metadata"].(map[string]any)["name"].(string)
	if len(message) > maxMessage || !strings.HasSuffix(message, "ü...") || len(name) > 253 || strings.Contains(name, "..") {
		t.Errorf("message of %d bytes, name %s", len(message), name)
	}
}

// Post never waits for a server that does not answer, and Run ends with its context.
func TestServerThatHangs(t *testing.T) {
	s := newServer(t)
	asked, release := make(chan struct{}, 1), make(chan struct{})
	s.answers(0, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-release
	}))
	defer close(release)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	s.Post(Event{Object: node, Reason: "A"})
	<-asked
	for i := range 1000 {
		s.Post(Event{Object: node, Reason: fmt.Sprint("B", i)})
	}
	cancel()
	<-ended
}

func TestRunPosts(t *testing.T) {
	s := newServer(t)
	s.o.Pace = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	for i := range 5 {
		s.Post(Event{Object: node, Reason: fmt.Sprint("A", i)})
	}
	var all []string
	for end := time.Now().Add(20 * time.Second); len(all) < 5 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		got, _ := s.took()
		all = append(all, got...)
	}
	cancel()
	<-ended
	if len(all) != 5 {
		t.Errorf("requests: %q", all)
	}
}

func TestInCluster(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
	get := func(name string) string { return env[name] }
	for _, file := range []string{"", "token", "ca.crt"} {
		if _, ok := inCluster(get, dir); ok {
			t.Errorf("a cluster without a whole service account, after %q", file)
		}
		if file != "" {
			if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	c, ok := inCluster(get, dir)
	if want := (Cluster{"https://[fd00::1]:443", dir + "/token", dir + "/ca.crt"}); !ok || c != want {
		t.Errorf("%+v, %v; want %+v", c, ok, want)
	}
	for _, name := range []string{"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"} {
		was := env[name]
		delete(env, name)
		if _, ok := inCluster(get, dir); ok {
			t.Errorf("a cluster without %s", name)
		}
		env[name] = was
	}
}
