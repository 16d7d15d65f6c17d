package sanity

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/k8ns/granary/test/rig"
)

// granary is the granary binary under test.
var granary string

// notReady says why the tests cannot run here, or is nil.
var notReady error

// seed is where all randomness of this process comes from.
var seed uint64

// repeat is how often the specs are run for each kind of volume.
var repeat = 3

func TestMain(m *testing.M) {
	if plan := os.Getenv(planVariable); plan != "" {
		os.Exit(runSpecs(plan))
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if err := readSwitches(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// A command with the race detector would sleep for a second when it ends.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if notReady = rig.Ready(); notReady != nil {
		return m.Run()
	}
	if granary = os.Getenv("GRANARY_SANITY_BINARY"); granary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "granary-sanity-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func readSwitches() (err error) {
	seed = uint64(time.Now().UnixNano()) % 1_000_000
	if s := os.Getenv("GRANARY_SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 32); err != nil {
			return fmt.Errorf("GRANARY_SEED: %w", err)
		}
	}
	if s := os.Getenv("GRANARY_SANITY_REPEAT"); s != "" {
		if repeat, err = strconv.Atoi(s); err == nil && repeat < 1 {
			err = errors.New("must be at least 1")
		}
		if err != nil {
			return fmt.Errorf("GRANARY_SANITY_REPEAT: %w", err)
		}
	}
	return nil
}

// build builds the binary under test in the main module.
func build(dir string) error {
	granary = filepath.Join(dir, "granary")
	args := []string{"build", "-tags", "grpcnotrace", "-buildvcs=false", "-o", granary}
	cgo := "CGO_ENABLED=0"
	if _, err := exec.LookPath("gcc"); err == nil && os.Getenv("GRANARY_DEVICE_RACE") != "0" {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.Command("go", append(args, "./cmd/granary")...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}
