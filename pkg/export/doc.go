// Package export makes a Device, a volume as the storage engine has it, a Linux block
// device. The way of a request is
//
//	/dev/loopN -> loop driver (direct I/O) -> FUSE file -> /dev/fuse -> FUSE -> Device
//
// One FUSE connection per attached device holds one file; its mount is in no namespace.
// The protocol loop is our own: a handful of opcodes, fixed node IDs (1 the root, 2 the
// disk), nothing kept per open file, so that a successor could take a connection over
// knowing only its Session. Attach puts it all together, Detach takes it apart, and
// ClearDead removes what a killed process left: the loop device outlives its server and
// answers with errors.
//
// What the package promises:
//
//   - A flush of the block device returns after Device.Flush did. FSYNC answers ENOSYS or
//     EOPNOTSUPP in no state: the kernel would remember that and turn later flushes into
//     silent successes.
//   - Holes and zeroings are passed on exactly, in units of 512 bytes. One that the device
//     has no space for is refused so that the kernel writes zeros instead.
//   - A request that waits holds up no other one: requests that may wait have their own
//     goroutine and buffer. What it holds up is in the kernel: a FLUSH or FALLOCATE
//     occupies the loop device's thread and must be answered soon, and a loop device has
//     128 requests under way at most, of which 32 are kept from writes.
//   - Formatting happens only when the caller says so (invariant I11); nothing here
//     looks at the content of a device to decide it.
//   - The death of the process waits for nobody: it maps no file on its own devices,
//     closing the FUSE file sends no request, and whatever waits for an answer of this
//     process or closes one of its block devices does so on a thread that does not have
//     /dev/fuse (apart.go, keeper.go).
//
// What needs privilege is behind Host. The package knows nothing of volumes, snapshots,
// catalogs or CSI; it must not take a lock of a layer above on the way of a request.
package export
