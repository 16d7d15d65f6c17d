package attachtest

import (
	"context"
	"os"
	"strings"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/pkg/export/exporttest"
)

// Host is exporttest's Host with a Trace.
type Host struct {
	*exporttest.Host
	trace *Trace
}

// NewHost returns a Host with nothing attached.
func NewHost(t *Trace) *Host { return &Host{exporttest.NewHost(), t} }

// Options makes attach.New see no machine but this one.
func (h *Host) Options() attach.Options {
	return attach.Options{
		LoopDevices: func() ([]string, error) { return h.Attached(), nil },
	}
}

func (h *Host) step(words ...string) error {
	return h.trace.step(strings.TrimSpace(strings.Join(words, " ")))
}

// AttachLoop implements export.Devices.
func (h *Host) AttachLoop(file *os.File, o export.LoopOptions) (export.Loop, error) {
	if err := h.step("attach"); err != nil {
		return export.Loop{}, err
	}
	return h.Host.AttachLoop(file, o)
}

// DetachLoop implements export.Devices.
func (h *Host) DetachLoop(ctx context.Context, device string, lazy bool) error {
	if err := h.step("detach"); err != nil {
		return err
	}
	return h.Host.DetachLoop(ctx, device, lazy)
}

// GrowLoop implements export.Devices.
func (h *Host) GrowLoop(device string) error {
	if err := h.step("grow device"); err != nil {
		return err
	}
	return h.Host.GrowLoop(device)
}

// FlushDevice implements export.Devices.
func (h *Host) FlushDevice(device string) error {
	if err := h.step("flush"); err != nil {
		return err
	}
	return h.Host.FlushDevice(device)
}

// Mkfs implements export.Filesystems.
func (h *Host) Mkfs(ctx context.Context, device, fsType string, options []string) error {
	if err := h.step("mkfs", fsType); err != nil {
		return err
	}
	return h.Host.Mkfs(ctx, device, fsType, options)
}

// Fsck implements export.Filesystems.
func (h *Host) Fsck(ctx context.Context, device, fsType string) error {
	if err := h.step("fsck", fsType); err != nil {
		return err
	}
	return h.Host.Fsck(ctx, device, fsType)
}

// PrepareCopy implements export.Filesystems. It is a step only where the real one writes.
func (h *Host) PrepareCopy(ctx context.Context, device, fsType string, uuid [16]byte) error {
	if fsType == "btrfs" {
		if err := h.step("prepare copy", fsType); err != nil {
			return err
		}
	}
	return h.Host.PrepareCopy(ctx, device, fsType, uuid)
}

// Mount implements export.Filesystems.
func (h *Host) Mount(ctx context.Context, source, target, fsType string, flags []string) error {
	if err := h.step("mount", fsType, strings.Join(flags, ",")); err != nil {
		return err
	}
	return h.Host.Mount(ctx, source, target, fsType, flags)
}

// BindMount implements export.Filesystems.
func (h *Host) BindMount(ctx context.Context, source, target string, flags []string) error {
	if err := h.step("bind", strings.Join(flags, ",")); err != nil {
		return err
	}
	return h.Host.BindMount(ctx, source, target, flags)
}

// Unmount implements export.Filesystems.
func (h *Host) Unmount(target string) error {
	if err := h.step("unmount"); err != nil {
		return err
	}
	return h.Host.Unmount(target)
}

// GrowUnmounted implements export.Filesystems.
func (h *Host) GrowUnmounted(ctx context.Context, device, fsType string) error {
	if err := h.step("grow unmounted filesystem"); err != nil {
		return err
	}
	return h.Host.GrowUnmounted(ctx, device, fsType)
}

// GrowFS implements export.Filesystems.
func (h *Host) GrowFS(device, mountPoint string) error {
	if err := h.step("grow filesystem"); err != nil {
		return err
	}
	return h.Host.GrowFS(device, mountPoint)
}
