// Package driver is Granary's CSI driver: gRPC in, store and host out. It serves the
// identity, controller and node services of one node over one Unix socket; the store
// is a directory of that node, so every volume is accessible there and nowhere else.
//
// A handler parses its request into plain values, calls the store (package blockstore,
// by the small interfaces in store.go) or the node's attachments (package attach), and
// renders the answer. It returns ordinary errors; errors.go alone knows which gRPC
// code they are, and the interceptor in server.go applies it, writes the log line and
// catches panics.
//
// All calls can be repeated: each handler asks what is there already and does the
// rest. Node operations on one volume exclude each other by attach.Lock; the second is
// ABORTED. Names are reserved by the store in the commit that makes the thing, so
// two calls with one name cannot both make something.
//
// mkfs never runs over data (I11); stage.go has the protocol.
package driver
