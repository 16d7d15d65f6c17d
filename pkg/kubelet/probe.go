package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// errNotReady is a plugin that answers but does not work yet.
var errNotReady = errors.New("the plugin says that it is not ready")

// ProbeSocket makes a check for NewHealth that calls Probe of the CSI socket at the
// path that this process sees. Each check connects anew, as kubelet would: it fails
// if the socket's name is gone, if nobody accepts, if the handler hangs or fails, and
// if the answer is that the plugin is not ready. No answer on that is ready, as CSI
// says. It ends with its context.
func ProbeSocket(socket string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if err := probe(ctx, socket); err != nil {
			return fmt.Errorf("probe of the CSI socket %s: %w", socket, err)
		}
		return nil
	}
}

func probe(ctx context.Context, socket string) (err error) {
	// The dialer has the path: in a target it would have to be escaped.
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	resp, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
	if err != nil {
		return err
	}
	if resp.GetReady() != nil && !resp.GetReady().GetValue() {
		return errNotReady
	}
	return nil
}
