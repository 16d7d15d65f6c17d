package driver

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
)

// interceptors surround every call, each with one concern, outermost first: logs and
// metrics see the code that the caller gets; a panic is an error like others; locks
// are let go of even then.
func (d *Driver) interceptors() grpc.ServerOption {
	return grpc.ChainUnaryInterceptor(d.logCall, d.metrics.measure, giveCode, d.catchPanic, d.lockCall)
}

// giveCode gives errors their gRPC code.
func giveCode(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	return resp, toStatus(err)
}

// catchPanic makes an error of a panic.
func (d *Driver) catchPanic(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("panic in a CSI call", "method", shortName(info), "panic", p, "stack", string(debug.Stack()))
			resp, err = nil, fmt.Errorf("panic in %s: %v", shortName(info), p)
		}
	}()
	return next(ctx, req)
}

// shortName is CreateVolume of /csi.v1.Controller/CreateVolume.
func shortName(info *grpc.UnaryServerInfo) string {
	return info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
}

// quiet are calls that come all the time and change nothing.
var quiet = map[string]bool{
	"Probe": true, "GetPluginInfo": true, "GetPluginCapabilities": true,
	"ControllerGetCapabilities": true, "NodeGetCapabilities": true, "NodeGetInfo": true,
	"NodeGetVolumeStats": true, "GetCapacity": true, "ListVolumes": true, "ListSnapshots": true,
	"ControllerGetVolume": true, "GetSnapshot": true,
}

// logCall writes one line for each call, without secrets.
func (d *Driver) logCall(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	start := d.o.Now()
	resp, err := next(ctx, req)
	method := shortName(info)
	level := slog.LevelInfo
	switch {
	case err != nil:
		level = levelOf(err)
	case quiet[method]:
		level = slog.LevelDebug
	}
	if !d.log.Enabled(ctx, level) {
		return resp, err
	}
	attrs := []any{"method", method, "request", loggable(req), "took", d.o.Now().Sub(start).Round(time.Microsecond)}
	if err != nil {
		attrs = append(attrs, "code", status.Code(err).String(), "err", status.Convert(err).Message())
	} else {
		attrs = append(attrs, "response", loggable(resp))
	}
	d.log.Log(ctx, level, "CSI call", attrs...)
	return resp, err
}

// loggable is the text of a message without its secrets: neither the fields that CSI
// calls so, nor the values of maps, which are free text of others (a CO has put tokens
// into the volume context before). Topology is told. One call cannot fill a disk: its
// text has an end.
func loggable(msg any) string {
	m, ok := msg.(proto.Message)
	if !ok {
		return ""
	}
	m = proto.Clone(m)
	hideMaps(m.ProtoReflect())
	return shortened(protosanitizer.StripSecrets(m).String(), maxLogged)
}

// maxLogged is the longest text of a message in the log, in bytes.
const maxLogged = 8 << 10

func hideMaps(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.Name() == "segments" {
				break
			}
			v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
				v.Map().Set(k, protoreflect.ValueOfString("***"))
				return true
			})
		case f.Name() == "mount_flags": // the spec calls them sensitive
			for i := range v.List().Len() {
				v.List().Set(i, protoreflect.ValueOfString("***"))
			}
		case f.Message() != nil && f.IsList():
			for i := range v.List().Len() {
				hideMaps(v.List().Get(i).Message())
			}
		case f.Message() != nil:
			hideMaps(v.Message())
		}
		return true
	})
}

// lockCall lets one call at a time work on a volume, on a name that is being given,
// or on a snapshot that is being deleted; a second one is ErrBusy. Calls that only
// look take no lock: kubelet asks for stats while a volume is being formatted.
// Snapshots of a volume are taken whatever else is done with it.
func (d *Driver) lockCall(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	switch r := req.(type) {
	case *csi.CreateVolumeRequest:
		return d.withName(ctx, "volume", r.GetName(), req, next)
	case *csi.CreateSnapshotRequest:
		return d.withName(ctx, "snapshot", r.GetName(), req, next)
	case *csi.DeleteSnapshotRequest:
		return d.withName(ctx, "snapshot ID", r.GetSnapshotId(), req, next)
	case *csi.DeleteVolumeRequest, *csi.ControllerPublishVolumeRequest, *csi.ControllerUnpublishVolumeRequest,
		*csi.ControllerExpandVolumeRequest, *csi.NodeStageVolumeRequest, *csi.NodeUnstageVolumeRequest,
		*csi.NodePublishVolumeRequest, *csi.NodeUnpublishVolumeRequest, *csi.NodeExpandVolumeRequest:
		return d.withVolume(ctx, req.(interface{ GetVolumeId() string }).GetVolumeId(), req, next)
	}
	return next(ctx, req)
}

func (d *Driver) withName(ctx context.Context, what, name string, req any, next grpc.UnaryHandler) (any, error) {
	key := what + " " + name
	if !d.names.Try(key) {
		return nil, fmt.Errorf("another call for %s %q is running: try again when it has ended: %w", what, name, blockstore.ErrBusy)
	}
	defer d.names.Release(key)
	return next(ctx, req)
}

// lockedKey is the context's key of the volume that a call has locked.
type lockedKey struct{}

// withVolume locks the volume of a handle. One that is not of this node's store has
// no lock: the handler says what is wrong, or answers from the handle.
func (d *Driver) withVolume(ctx context.Context, handle string, req any, next grpc.UnaryHandler) (any, error) {
	id, err := d.volumeID(handle)
	if err != nil {
		return next(ctx, req)
	}
	volume, err := d.attached.Lock(id)
	if err != nil {
		return nil, err
	}
	defer volume.Unlock()
	return next(context.WithValue(ctx, lockedKey{}, volume), req)
}

// locked is the volume that lockCall has locked for this call, and what it is.
// ErrNotFound if there is no such volume: with its lock if there could be one here.
func (d *Driver) locked(ctx context.Context, handle string) (*attach.Locked, blockstore.VolumeInfo, error) {
	if _, err := d.volumeID(handle); err != nil {
		return nil, blockstore.VolumeInfo{}, err
	}
	volume := ctx.Value(lockedKey{}).(*attach.Locked)
	info, err := volume.Info()
	return volume, info, err
}
