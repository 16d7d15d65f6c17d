package export

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRequestTimeout(t *testing.T) {
	for _, tt := range []struct {
		what, deflt, most string // content of the files; "-": not there
		want              time.Duration
		fails             bool
	}{
		{"older than Linux 6.15", "-", "-", 0, false},
		{"both off", "0\n", "0\n", 0, false},
		{"a default", "120\n", "0\n", 2 * time.Minute, false},
		{"a maximum", "0\n", "60\n", time.Minute, false},
		{"the default is less", "30\n", "60\n", 30 * time.Second, false},
		{"the maximum is less", "90\n", "60\n", time.Minute, false},
		{"the kernel's least", "15\n", "0\n", 15 * time.Second, false},
		{"a default below it", "1\n", "0\n", 15 * time.Second, false},
		{"a maximum below it", "60\n", "14\n", 15 * time.Second, false},
		{"the largest", "65535\n", "0\n", 65535 * time.Second, false},
		{"no number", "soon\n", "0\n", 0, true},
		{"negative", "0\n", "-1\n", 0, true},
		{"empty", "", "0\n", 0, true},
	} {
		t.Run(tt.what, func(t *testing.T) {
			proc := t.TempDir()
			dir := filepath.Join(proc, fuseSettings)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"default_request_timeout": tt.deflt, "max_request_timeout": tt.most} {
				if text == "-" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := (&localHost{proc: proc}).RequestTimeout()
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("%v, %v; want %v, error: %v", got, err, tt.want, tt.fails)
			}
		})
	}
}

// The machine that this runs on has both settings, or neither, in a form that is read.
func TestRequestTimeoutOfThisMachine(t *testing.T) {
	if _, err := NewHost().RequestTimeout(); err != nil {
		t.Error(err)
	}
}
