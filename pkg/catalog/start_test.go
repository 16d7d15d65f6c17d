package catalog

import (
	"errors"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// A start gives its log a name and ends before that is durable. The next one must not write
// to the log before it: a loss of power brings that back as the only one there is (I2).
func TestOpen_NameOfNewestLogNotDurable(t *testing.T) {
	errDisk := errors.New("disk on fire")
	for n := int64(0); n < 40; n++ {
		mem := vfs.NewMem()
		c := mustOpen(t, mem, Options{LogBytes: minLogBytes})
		mustCommit(t, c, put("k", "v"))
		mustClose(t, c)
		faulty := vfs.NewFaulty(mem)
		faulty.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpSyncDir {
				return errDisk
			}
			return nil
		})
		if _, err := Open(faulty, testDir, testStore, Options{LogBytes: minLogBytes}); !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
		mem.Kill()
		faulty.FailNth(n, vfs.ErrDead, true)
		if c, err := Open(faulty, testDir, testStore, Options{LogBytes: minLogBytes}); err == nil {
			c.Close()
		}
		mem.Crash(nil, 0)
		c, err := Open(mem, testDir, testStore, Options{LogBytes: minLogBytes})
		if err != nil {
			t.Fatalf("power lost at operation %d of the start after: %v", n, err)
		}
		wantContent(t, c.View(), map[string]string{"k": "1:v"})
		mustClose(t, c)
	}
}
