package attach

import (
	"fmt"
	"time"
)

// checkTimeout finds out whether the kernel will end a device whose write waits, and
// tells it when that has changed. Nothing is refused for it: only on a full disk, or a
// very slow one, does a write wait that long, and a node that serves nothing is worse.
func (a *Attachments) checkTimeout() {
	limit, err := a.host.RequestTimeout()
	warning := timeoutWarning(limit)
	if err != nil {
		warning = fmt.Sprintf("whether the kernel ends devices that wait is not known: %v", err)
	}
	a.mu.Lock()
	changed := warning != a.mu.warning
	a.mu.warning = warning
	a.mu.Unlock()
	if changed && warning != "" {
		a.log.Warn("dangerous setting", "warning", warning)
		a.warned(warning)
	}
}

func timeoutWarning(limit time.Duration) string {
	if limit == 0 {
		return ""
	}
	return fmt.Sprintf("fs.fuse.default_request_timeout or fs.fuse.max_request_timeout is set: the kernel ends volumes whose "+
		"writes wait longer than %v, as they do on a full disk; set both to 0 by sysctl and attach the volumes anew", limit)
}

// Warnings tells dangerous settings of the machine, as of the last attach.
func (a *Attachments) Warnings() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.warning == "" {
		return nil
	}
	return []string{a.mu.warning}
}
