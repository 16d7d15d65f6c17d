package admin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/attach/attachtest"
)

// FuzzRequests sends any body to any operation over an engine in memory: the answer is
// JSON of the stated kind, an error says what was wrong with a status that is one, and
// the server goes on.
func FuzzRequests(f *testing.F) {
	ops := []string{
		opVolumeCreate, opVolumeList, opVolumeShow, opVolumeAttach, opVolumeDetach, opVolumeResize, opVolumeRemove,
		opSnapshotCreate, opSnapshotList, opSnapshotShow, opSnapshotRemove, opStats, opCollect, opCheck,
	}
	for i, body := range []any{
		CreateVolume{Name: "v", SizeBytes: 1 << 20}, nothing{}, Target{Ref: "v"}, Target{Ref: "v"}, Target{Ref: "v"},
		ResizeVolume{Ref: "v", SizeBytes: -1}, Target{Ref: "v"}, CreateSnapshot{Volume: "v", Name: "s", Wait: true},
		ListSnapshots{Volume: "v"}, Target{Ref: "s"}, Target{Ref: "s"}, StatsRequest{PerVolume: true}, Collect{Wait: true}, Check{ReadData: true},
	} {
		b, err := json.Marshal(body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(i), b)
	}
	create, err := json.Marshal(CreateVolume{Name: "v", SizeBytes: 1 << 20})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(byte(0), append(create[:len(create):len(create)], `{"name":"w"}`...))
	f.Add(byte(2), []byte(`{"ref":"v","more":1}`))
	f.Add(byte(1), []byte("null"))
	f.Fuzz(func(t *testing.T, op byte, body []byte) {
		trace := new(attachtest.Trace)
		engine, host := attachtest.NewEngine(trace), attachtest.NewHost(trace)
		s := NewServer(engine, attach.New(engine, host, host.Options()), slog.New(slog.DiscardHandler))
		defer host.End()
		defer s.Close(t.Context())
		h := s.routes()
		call := func(op string, body []byte) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/"+op, bytes.NewReader(body)))
			return w
		}
		if w := call(opVolumeCreate, create); w.Code != http.StatusOK {
			t.Fatalf("create: %s", w.Body)
		}
		name := ops[int(op)%len(ops)]
		w := call(name, body)
		lines, last := 0, event[json.RawMessage]{}
		for sc := bufio.NewScanner(bytes.NewReader(w.Body.Bytes())); sc.Scan(); lines++ {
			if !json.Valid(sc.Bytes()) {
				t.Fatalf("%s answered %q", name, w.Body)
			}
			last = event[json.RawMessage]{}
			_ = json.Unmarshal(sc.Bytes(), &last) // of another form if it is no stream
		}
		if lines == 0 {
			t.Fatalf("%s: no answer", name)
		}
		if failed := last.Error != nil; w.Code != http.StatusOK && !failed || failed && (last.Error.Kind == "" || last.Error.Message == "") {
			t.Fatalf("%s: status %d with %s", name, w.Code, w.Body)
		}
		if !json.Valid(body) && last.Error == nil {
			t.Fatalf("%s took %q", name, body)
		}
		if w := call(opVolumeList, []byte("{}")); w.Code != http.StatusOK {
			t.Fatalf("afterwards: %s", w.Body)
		}
	})
}
