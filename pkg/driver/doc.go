// Package driver is Granary's CSI driver: gRPC in, store and host out. It serves the
// identity, controller and node services of one node over one Unix socket; the store
// is a directory of that node, so every volume is accessible there and nowhere else.
// docs/csi.md says what it offers and how it decides; a test compares the two.
//
// A handler parses its request into plain values, calls the store (package blockstore,
// by the small interfaces in store.go) or the node's attachments (package attach), and
// renders the answer. Nothing is touched before everything is parsed. It returns
// ordinary errors; errors.go alone knows which gRPC code they are. Around each call
// stand the interceptors (interceptors.go, metrics.go), one for each concern: the log
// line, metrics, the code, panics, the lock.
//
// All calls can be repeated: each handler asks what is there already and does the
// rest. Two calls on one volume exclude each other by the lock of package attach, which
// the commands take too, and so do two calls for one name; the second is ABORTED. Names
// are reserved by the store in the commit that makes the thing, so two calls with one
// name cannot both make something. A handler that fails undoes what it did: the CO may
// never call again.
//
// A handle names store and node (handle.go). Calls about another node's volume are
// answered from it, or refused naming the node; no driver asks another.
//
// Where a volume is staged and published is on record, with its arguments, in the
// attachment (uses.go); what the CO was told about it, in the publication
// (controllerpublish.go). mkfs never runs over data (I11); stage.go has the protocol.
package driver
