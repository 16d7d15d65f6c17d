package events

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// requestEnd is how long posting one event may take.
	requestEnd = 15 * time.Second
	// maxMessage is the longest message that the API takes, in bytes.
	maxMessage = 1024
	// maxAnswer is how much of an answer is read, in bytes.
	maxAnswer = 1 << 20
	// maxPrefix is how much of an object's name an event's begins with, in bytes.
	maxPrefix = 200
)

// Cluster is how to reach an API server.
type Cluster struct {
	URL       string // as https://10.96.0.1:443
	TokenFile string // who we are
	CAFile    string // who vouches for the server: its certificate must be signed by one of these
}

// serviceAccount is where every pod finds its own.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// InCluster finds the API server of the cluster that this process is a pod of; false if it
// is none, or has no service account.
func InCluster() (Cluster, bool) { return inCluster(os.Getenv, serviceAccount) }

func inCluster(env func(string) string, dir string) (Cluster, bool) {
	host, port := env("KUBERNETES_SERVICE_HOST"), env("KUBERNETES_SERVICE_PORT")
	c := Cluster{
		URL:       "https://" + net.JoinHostPort(host, port),
		TokenFile: filepath.Join(dir, "token"),
		CAFile:    filepath.Join(dir, "ca.crt"),
	}
	for _, file := range []string{c.TokenFile, c.CAFile} {
		if _, err := os.Stat(file); err != nil {
			return Cluster{}, false
		}
	}
	return c, host != "" && port != ""
}

// statusError is an answer that is no success.
type statusError struct {
	request string
	code    int
	text    string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s: %d %s: %s", e.request, e.code, http.StatusText(e.code), e.text)
}

// errOther is a claim that has only the name of the one that is meant.
var errOther = errors.New("another claim has this name")

// isTemporary tells errors that may be over later from those that will not, and from none.
func isTemporary(err error) bool {
	if err == nil {
		return false
	}
	var status *statusError
	if errors.As(err, &status) {
		return status.code >= 500 || status.code == http.StatusTooManyRequests || status.code == http.StatusUnauthorized
	}
	return !errors.Is(err, errOther)
}

// isGone tells that what was asked for is not there.
func isGone(err error) bool {
	var status *statusError
	return errors.As(err, &status) && status.code == http.StatusNotFound
}

// uidOf asks for an object's UID.
func (c Cluster) uidOf(ctx context.Context, o Object) (string, error) {
	if o.Kind == "Node" {
		return o.Name, nil
	}
	var claim struct {
		Metadata struct{ UID string }
		Spec     struct{ VolumeName string }
	}
	err := c.do(ctx, http.MethodGet, "/api/v1/namespaces/"+o.Namespace+"/persistentvolumeclaims/"+o.Name, nil, &claim)
	if err == nil && o.VolumeName != "" && o.VolumeName != claim.Spec.VolumeName {
		err = fmt.Errorf("claim %s/%s is bound to %q, not to %q: %w", o.Namespace, o.Name, claim.Spec.VolumeName, o.VolumeName, errOther)
	}
	return claim.Metadata.UID, err
}

// object is an Event as the API has it.
type object struct {
	APIVersion         string    `json:"apiVersion"`
	Kind               string    `json:"kind"`
	Metadata           metadata  `json:"metadata"`
	InvolvedObject     reference `json:"involvedObject"`
	Reason             string    `json:"reason"`
	Type               string    `json:"type"`
	Source             source    `json:"source"`
	FirstTimestamp     time.Time `json:"firstTimestamp"`
	ReportingComponent string    `json:"reportingComponent"`
	ReportingInstance  string    `json:"reportingInstance"`
	changing
}

// changing is what a repeated event changes.
type changing struct {
	Message       string    `json:"message"`
	Count         int       `json:"count"`
	LastTimestamp time.Time `json:"lastTimestamp"`
}

type metadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

type source struct {
	Component string `json:"component"`
	Host      string `json:"host,omitempty"`
}

// seconds are all that the API keeps of a time.
func seconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func (e *pending) changing(count int) changing {
	return changing{Message: shortened(e.Message), Count: count, LastTimestamp: seconds(e.last)}
}

func shortened(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return strings.ToValidUTF8(text[:maxMessage-3], "") + "..."
}

// namespaceOf is the namespace of an object's events.
func namespaceOf(o Object) string {
	if o.Namespace == "" {
		return "default"
	}
	return o.Namespace
}

func eventsPath(o Object) string { return "/api/v1/namespaces/" + namespaceOf(o) + "/events" }

// eventName is a name that no other event has.
func eventName(of string, now time.Time) string {
	of = strings.TrimRight(of[:min(len(of), maxPrefix)], ".-")
	return of + "." + strconv.FormatInt(now.UnixNano(), 16)
}

func (c Cluster) create(ctx context.Context, o Options, e *pending, uid string, as posted) error {
	kind := "Normal"
	if e.Warning {
		kind = "Warning"
	}
	return c.do(ctx, http.MethodPost, eventsPath(e.Object), object{
		APIVersion:     "v1",
		Kind:           "Event",
		Metadata:       metadata{as.name, namespaceOf(e.Object)},
		InvolvedObject: reference{"v1", e.Object.Kind, e.Object.Namespace, e.Object.Name, uid},
		Reason:         e.Reason,
		Type:           kind,
		Source:         source{o.Component, o.Host},
		FirstTimestamp: seconds(e.noted),
		changing:       e.changing(as.count),

		ReportingComponent: o.Component,
		ReportingInstance:  o.Host,
	}, nil)
}

func (c Cluster) countUp(ctx context.Context, e *pending, as posted) error {
	return c.do(ctx, http.MethodPatch, eventsPath(e.Object)+"/"+as.name, e.changing(as.count), nil)
}

// do makes one request, with a connection of its own: requests are rare, and what the files
// say now counts.
func (c Cluster) do(ctx context.Context, method, path string, body, answer any) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return &statusError{method + " " + path, resp.StatusCode, reasonIn(text)}
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// client trusts those in CAFile and nobody else, and follows nobody elsewhere with the
// token.
func (c Cluster) client() (*http.Client, error) {
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", c.CAFile)
	}
	return &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

func (c Cluster) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	token, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return nil, err
	}
	var content io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, content)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Accept", "application/json")
	switch method {
	case http.MethodPost:
		req.Header.Set("Content-Type", "application/json")
	case http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	return req, nil
}

// reasonIn is the message of a Status, or the beginning of whatever it is.
func reasonIn(answer []byte) string {
	var status struct{ Message string }
	if json.Unmarshal(answer, &status) == nil && status.Message != "" {
		return shortened(status.Message)
	}
	return shortened(string(answer))
}
