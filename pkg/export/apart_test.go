package export

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A call that waits for a full disk must not hold what would make room there: the
// descriptor of a file that is removed meanwhile keeps the file's space.
func TestAloneHoldsNoFiles(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "chunks"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	holds := func() (held bool, err error) { // without package os, whose calls a test's harness writes down
		path := make([]byte, 4096)
		for fd := range 1024 {
			n, err := unix.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", fd), path)
			held = held || err == nil && string(path[:n]) == f.Name()
		}
		return held, nil
	}
	if held, err := apartValue(holds); err != nil || !held {
		t.Errorf("apart: held %v, %v; it has what its caller has", held, err)
	}
	if held, err := aloneValue(holds); err != nil || held {
		t.Errorf("alone: held %v, %v", held, err)
	}
	if _, err := f.WriteString("still open here"); err != nil {
		t.Error(err)
	}
}
