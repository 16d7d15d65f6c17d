// Package attach joins the volumes of a store to block devices of this machine, and
// keeps the records by which the next start clears what a killed daemon left.
//
// A volume is attached at most once. Everything that is done with one volume here, and
// all of CSI's work on it, happens under that volume's lock (Attachments.Lock); a
// second operation does not wait but gets ErrBusy, so that a caller that repeats
// itself never piles up. The data path takes none of these locks: mounting does I/O
// while the lock is held.
//
// The record of an attachment is written before the thing that it tells about exists
// and removed after it is gone. So a record may name a device or a mount point that
// is not there, which clearing does not mind, but nothing is ever there without a
// record:
//
//	attach   record without device -> device -> record with device
//	mount    record with the mount point -> mount       (AddUse, then mount)
//	unmount  unmount -> record without the mount point  (unmount, then RemoveUse)
//	detach   device taken away -> volume closed -> record removed
//
// Whether a volume may be formatted is not decided here, with one exception: AttachRaw
// hands the device to somebody who may write anything there, and so makes the volume
// `used` first (I11).
package attach
