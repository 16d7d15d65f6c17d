package export

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSignatures(t *testing.T) {
	head := make([]byte, probeBytes)
	if got := fsTypeOf(head); got != "" {
		t.Errorf("zeros are %q", got)
	}
	for _, s := range signatures {
		head := make([]byte, probeBytes)
		copy(head[s.off:], s.magic)
		if got := fsTypeOf(head); got != s.fsType {
			t.Errorf("%q at %d is %q, not %q", s.magic, s.off, got, s.fsType)
		}
		if got := fsTypeOf(head[:s.off+len(s.magic)-1]); got != "" {
			t.Errorf("cut off, %q at %d is %q", s.magic, s.off, got)
		}
	}
}

// TestProbeFS formats one device with each type over each other.
func TestProbeFS(t *testing.T) {
	types := []string{"ext4", "xfs", "btrfs"}
	for _, fsType := range types {
		needFilesystem(t, fsType)
	}
	for _, sector := range []int{512, 4096} {
		a, h := attach(t, newMem(320<<20), Options{SectorBytes: sector, Name: fmt.Sprint(testName(t), sector)})
		if got, err := h.ProbeFS(t.Context(), a.Path()); got != "" || err != nil {
			t.Errorf("empty: %q, %v", got, err)
		}
		for _, before := range types {
			for _, fsType := range types {
				ok(t, h.Mkfs(t.Context(), a.Path(), before, nil))
				ok(t, h.Mkfs(t.Context(), a.Path(), fsType, nil))
				if got, err := h.ProbeFS(t.Context(), a.Path()); got != fsType || err != nil {
					t.Errorf("%s over %s: %q, %v", fsType, before, got, err)
				}
			}
		}
	}
}

// TestProbeFSUnreadable: any sector of the first MiB that cannot be read is an error, on
// a device with a filesystem and on one without, also if the page cache has it.
func TestProbeFSUnreadable(t *testing.T) {
	const bad = 4096
	for _, size := range []int64{64 << 10, 1 << 20, 16 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dev := newMem(size)
			var at atomic.Int64
			at.Store(-1)
			dev.onRead = func(off int64, n int) error {
				if b := at.Load(); b >= 0 && off <= b && b < off+int64(n) {
					return errors.New("bad block")
				}
				return nil
			}
			a, h := attach(t, dev, Options{})
			cached, err := openCloexec(a.Path(), unix.O_RDONLY)
			ok(t, err)
			defer cached.Close()
			_, err = cached.ReadAt(make([]byte, min(size, probeBytes)), 0)
			ok(t, err)
			for b := int64(0); b < min(size, probeBytes); b += bad {
				at.Store(b)
				if got, err := h.ProbeFS(t.Context(), a.Path()); !errors.Is(err, unix.EIO) || got != "" {
					t.Fatalf("block at %d unreadable: %q, %v", b, got, err)
				}
			}
			at.Store(probeBytes)
			if got, err := h.ProbeFS(t.Context(), a.Path()); err != nil || got != "" {
				t.Errorf("block behind the first MiB unreadable: %q, %v", got, err)
			}
		})
	}
}

func TestProbeFSWaits(t *testing.T) {
	dev, release := newMem(1<<20), make(chan struct{})
	var stuck atomic.Bool
	dev.onRead = func(int64, int) error {
		if stuck.Load() {
			<-release
		}
		return nil
	}
	a, h := attach(t, dev, Options{})
	stuck.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.ProbeFS(ctx, a.Path()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("probe of a device that does not answer: %v", err)
	}
	close(release)
}
