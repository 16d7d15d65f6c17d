package admin

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/leaktest"
)

// A caller that does not read what it has asked for counts as gone after a while: the
// operation's context ends, and so does what waits for it.
func TestCallerDoesNotRead(t *testing.T) {
	leaktest.Check(t)
	patience = 100 * time.Millisecond
	t.Cleanup(func() { patience = 30 * time.Second })
	mux := http.NewServeMux()
	ended := make(chan error, 1)
	stream(mux, slog.New(slog.DiscardHandler), "talk", func(ctx context.Context, _ nothing, out emitter) (nothing, error) {
		for ctx.Err() == nil {
			out.item("more than anybody reads, again and again, until all that lies between is full of it")
		}
		ended <- ctx.Err()
		return nothing{}, ctx.Err()
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /v1/talk HTTP/1.1\r\nHost: granary\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the operation goes on")
	}
}
