package sanity

import (
	"context"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// client is a connection to the driver. It outlives the daemon: gRPC connects again.
type client struct {
	*grpc.ClientConn
	controller csi.ControllerClient
	node       csi.NodeClient

	nodeID    string
	publishes bool // the driver wants ControllerPublishVolume before NodeStageVolume
}

func dial(ctx context.Context, socket string) (*client, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// The daemon may just have been killed and be on its way.
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 5 * time.Second,
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond},
		}),
		grpc.WithAuthority("localhost"))
	if err != nil {
		return nil, err
	}
	c := &client{ClientConn: conn, controller: csi.NewControllerClient(conn), node: csi.NewNodeClient(conn)}
	if err := c.ask(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// ask asks what a CO has to know.
func (c *client) ask(ctx context.Context) error {
	node, err := c.node.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return fmt.Errorf("NodeGetInfo: %w", err)
	}
	c.nodeID = node.GetNodeId()
	caps, err := c.controller.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
	if err != nil {
		return fmt.Errorf("ControllerGetCapabilities: %w", err)
	}
	for _, k := range caps.GetCapabilities() {
		if k.GetRpc().GetType() == csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME {
			c.publishes = true
		}
	}
	return nil
}

// retry repeats a call as a CO does while it is answered that it should: another
// operation on the volume is under way, or the daemon has just been started again.
func retry(ctx context.Context, call func() error) error {
	for {
		err := call()
		switch status.Code(err) {
		case codes.Aborted, codes.Unavailable:
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// capability is a volume capability for a kind of volume.
func capability(kind string, mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode}}
	if kind == block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: kind}}
	}
	return c
}

// Access modes, with the names that this package's tests use.
const (
	writer      = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	multiWriter = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	reader      = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	multiReader = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
)
