package export

import (
	"os"
	"path/filepath"
	"testing"
)

// A call that waits for a full disk must not hold what would make room there: the
// descriptor of a file that is removed meanwhile keeps the file's space.
func TestAloneHoldsNoFiles(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "chunks"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	holds := func() (held bool, err error) {
		const table = "/proc/thread-self/fd"
		names, err := os.ReadDir(table)
		for _, n := range names {
			to, _ := os.Readlink(filepath.Join(table, n.Name())) // gone is not held
			held = held || to == f.Name()
		}
		return held, err
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
