package export

// Device is what the kernel gets to see of a volume. Offsets and lengths are in bytes
// and multiples of 512, also on a volume with 4096-byte sectors: the kernel may cut a
// request anywhere between two 512-byte units. Ranges never reach past Size. All
// methods may be called concurrently, and there is no order between calls that overlap
// in time. A method may wait as long as it must (a full disk): nothing else waits for
// it but the caller and, behind a Flush, the volume's later writes.
//
// An error that wraps vfs.ErrNoSpace reaches the caller of the block device as ENOSPC,
// any other error as EIO.
type Device interface {
	// ReadAt fills p with the bytes at off. Fewer bytes than len(p) are an error.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt stores p at off. p is only valid during the call. What it wrote is
	// read by every later ReadAt, but survives power loss only after Flush.
	WriteAt(p []byte, off int64) (int, error)
	// Flush returns when every write, discard and zeroing that completed before the
	// call survives power loss.
	Flush() error
	// Discard gives n bytes at off back; they read as zeros afterwards, exactly those. An
	// error that is vfs.ErrNoSpace makes the kernel write zeros instead. Neither this nor
	// WriteZeroes may wait long: the kernel hands over no other request meanwhile.
	Discard(off, n int64) error
	// WriteZeroes makes n bytes at off read as zeros, exactly those.
	WriteZeroes(off, n int64) error
	// Size is the volume's size in bytes. It may grow between calls, never shrink.
	// It does not wait.
	Size() int64
}
