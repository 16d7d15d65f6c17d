package export

import (
	"os"
	"sync"

	mountutils "k8s.io/mount-utils"
)

// localHost is the Host that acts in this process.
type localHost struct {
	mounter func() mountutils.Interface // fixed; made at first use, it runs a program

	mu struct {
		sync.Mutex
		loops map[string]*os.File // devices that AttachLoop keeps open, by path
	}
}

// NewHost returns the Host that does everything in this process, which must run as
// root with CAP_SYS_ADMIN, /dev/fuse, /dev/loop-control, for btrfs /dev/btrfs-control
// and, for what it is asked to do, mount, e2fsck, mkfs and the growing tools of the
// filesystems in its PATH.
func NewHost() Host {
	h := &localHost{mounter: sync.OnceValue(func() mountutils.Interface {
		return mountutils.NewWithoutSystemd("")
	})}
	h.mu.loops = make(map[string]*os.File)
	return h
}

func (h *localHost) keepLoop(device string, f *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.loops[device] = f
}

// takeLoop gives the kept descriptor of device to the caller; nil if there is none.
func (h *localHost) takeLoop(device string) *os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.mu.loops[device]
	delete(h.mu.loops, device)
	return f
}
