package kubelet

import (
	"fmt"
	"net"

	"github.com/k8ns/granary/pkg/socket"
)

// Listen makes the registration socket, which only its owner can open; see
// socket.Listen. A directory that is not there is an error: one of our own making is
// not the one that kubelet watches. Closing the listener removes the socket.
func (r *Registration) Listen() (net.Listener, error) {
	ln, err := socket.Listen(r.socket)
	if err != nil {
		return nil, fmt.Errorf("registration socket: %w", err)
	}
	return ln, nil
}
