package export

import (
	"sync"

	mountutils "k8s.io/mount-utils"
)

// localHost is the Host that acts in this process.
type localHost struct {
	mounter func() mountutils.Interface // fixed; made at first use, it runs a program
	proc    string                      // fixed; where procfs is
}

// NewHost returns the Host that does everything in this process, which must run as
// root with CAP_SYS_ADMIN, /dev/fuse, /dev/loop-control, for btrfs /dev/btrfs-control
// and, for what it is asked to do, mount, e2fsck, mkfs and the growing tools of the
// filesystems in its PATH.
func NewHost() Host {
	return &localHost{proc: "/proc", mounter: sync.OnceValue(func() mountutils.Interface {
		return mountutils.NewWithoutSystemd("")
	})}
}
