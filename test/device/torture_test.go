package device

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// runProgram builds a program of this module that judges for itself, runs it, and looks at
// its last line.
func runProgram(t *testing.T, pkg string, limit time.Duration, last string, args ...string) {
	t.Helper()
	if notReady != nil {
		if os.Getenv("GRANARY_DEVICE_TESTS") == "require" {
			t.Fatalf("cannot test devices: %v", notReady)
		}
		t.Skipf("cannot test devices: %v", notReady)
	}
	bin := filepath.Join(t.TempDir(), filepath.Base(pkg))
	if _, err := rig.Run(t.Context(), limit, "go", "build", "-tags", "grpcnotrace", "-buildvcs=false", "-o", bin, pkg); err != nil {
		t.Fatal(err)
	}
	if seed := os.Getenv("GRANARY_SEED"); seed != "" {
		args = append(args, "-seed", seed)
	}
	// timeout's SIGTERM, unlike our SIGKILL, lets it take away what it made.
	out, err := rig.Run(t.Context(), limit+time.Minute, "timeout", append([]string{"-k", "45", fmt.Sprint(limit.Seconds()), bin}, args...)...)
	t.Log(out)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(out, "\n"); !strings.Contains(lines[len(lines)-1], last) {
		t.Errorf("its last line lacks %q", last)
	}
}

// TestKills is a short `make torture` (I1, I4).
func TestKills(t *testing.T) {
	runProgram(t, "github.com/k8ns/granary/test/torture", 5*time.Minute, " 0 losses, ", "-granary", plainBinary, "-rounds", "6")
}

// TestPowerCuts is a short `make powercut` (I1, I2, I3, I4).
func TestPowerCuts(t *testing.T) {
	runProgram(t, "github.com/k8ns/granary/test/powercut", 5*time.Minute, " 0 losses, ", "-points", "20")
}
