package export

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Since Linux 6.15 the kernel can end FUSE connections of which a request is not answered
// in time, and two settings of the machine switch that on for everybody. A device whose
// write waits for disk space would be gone for good, with whatever is mounted on it.

// fuseSettings is where they are below /proc.
const fuseSettings = "sys/fs/fuse"

// leastTimeout is how often the kernel looks, in seconds, and so the least limit that it
// makes of a smaller one.
const leastTimeout = 15

// requestTimeout reads what a connection that is made now gets, by the kernel's rule: the
// default is for a server that does not ask for a limit, as ours, and the maximum is for
// all. A request may take leastTimeout longer before the kernel sees it.
func requestTimeout(proc string) (time.Duration, error) {
	deflt, err := fuseSetting(proc, "default_request_timeout")
	if err != nil {
		return 0, err
	}
	most, err := fuseSetting(proc, "max_request_timeout")
	if err != nil {
		return 0, err
	}
	limit := most
	if deflt > 0 && (most == 0 || deflt < most) {
		limit = deflt
	}
	if limit > 0 {
		limit = max(limit, leastTimeout)
	}
	return time.Duration(limit) * time.Second, nil
}

// fuseSetting is a setting in seconds; 0 if it is off, or the kernel does not have it.
func fuseSetting(proc, name string) (int64, error) {
	path := filepath.Join(proc, fuseSettings, name)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n < 0 || n > 1<<32 {
		return 0, fmt.Errorf("%s: %q is no number of seconds", path, text)
	}
	return n, nil
}

func (h *localHost) RequestTimeout() (time.Duration, error) { return requestTimeout(h.proc) }
