package attach_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/attach"
)

func TestDangerousTimeoutIsTold(t *testing.T) {
	w := newWorld(t)
	var told []string
	o := w.host.Options()
	o.Warned = func(warning string) { told = append(told, warning) }
	w.Attachments = attach.New(w.engine, w.host, o)
	w.mustAttach(w.volume("a"))
	if got := w.Warnings(); len(told) > 0 || len(got) > 0 {
		t.Errorf("without a limit: told %q, warnings %q", told, got)
	}
	w.host.SetRequestTimeout(90 * time.Second)
	w.mustAttach(w.volume("b"))
	w.mustAttach(w.volume("c"))
	if len(told) != 1 { // once
		t.Fatalf("told: %q", told)
	}
	for _, part := range []string{"fs.fuse.default_request_timeout", "fs.fuse.max_request_timeout", "1m30s", "set both to 0"} {
		if !strings.Contains(told[0], part) {
			t.Errorf("%q does not say %q", told[0], part)
		}
	}
	if got := w.Warnings(); len(got) != 1 || got[0] != told[0] {
		t.Errorf("warnings: %q", got)
	}
	w.host.Fail("RequestTimeout", errors.New("unreadable"))
	w.mustAttach(w.volume("d"))
	if len(told) != 2 || !strings.Contains(told[1], "unreadable") {
		t.Errorf("told: %q", told)
	}
	w.host.Fail("RequestTimeout", nil)
	w.host.SetRequestTimeout(0)
	w.mustAttach(w.volume("e"))
	if got := w.Warnings(); len(told) != 2 || len(got) > 0 {
		t.Errorf("with the limit gone: told %q, warnings %q", told, got)
	}
}
