// Package admin is how the granary commands talk to a running daemon: HTTP with
// JSON bodies over the Unix socket granary.sock in the data directory, which only
// root can open. There is no other listener.
//
// Every operation is one POST route, named like the command ("/v1/volume.create"),
// with one request and one response type, both in api.go. Long operations (check,
// collect and snapshot with wait) answer with JSON lines instead: progress and
// items as they come, then exactly one line with the result or the error. A stream
// that ends without that line means that the daemon is gone.
//
// An error travels as text plus a kind (errors.go), so that errors.Is with the
// sentinels of package blockstore works on the client's side as it does on the
// server's.
//
// The package knows neither devices nor the command line: it carries calls between
// Client and the Store and Attacher that the server was given.
package admin
