package export

import (
	"encoding/binary"
	"fmt"
)

// The wire form of the FUSE protocol, as far as one file needs it. Every message from
// the kernel is
//
//	offset|size|field
//	     0|   4|length of the message with this header, bytes
//	     4|   4|opcode
//	     8|   8|unique: names the request in its reply; bit 63 is set when resent
//	    16|   8|node ID
//	    24|   4|uid
//	    28|   4|gid
//	    32|   4|pid
//	    36|   4|length of extensions / padding
//	    40|    |body, by opcode
//
// and every message to it is
//
//	 0|   4|length of the message with this header, bytes
//	 4|   4|0 or a negative errno; in a notification its code
//	 8|   8|unique of the request; 0 in a notification
//	16|    |body, by opcode
//
// in the byte order of the machine. All structs have a fixed layout without holes.
const (
	inHeaderLen  = 40
	outHeaderLen = 16
	bodyLen      = 40 // of READ and WRITE, the longest fixed bodies that are looked at
	writeHeadLen = inHeaderLen + bodyLen

	initInLen    = 64 // with the extension; 16 without
	initOutLen   = 64
	attrOutLen   = 104
	entryOutLen  = 128
	openOutLen   = 16
	statfsOutLen = 80
	setattrInLen = 88
)

var order = binary.NativeEndian

type opcode uint32

const (
	opLookup      opcode = 1
	opForget      opcode = 2
	opGetattr     opcode = 3
	opSetattr     opcode = 4
	opOpen        opcode = 14
	opRead        opcode = 15
	opWrite       opcode = 16
	opStatfs      opcode = 17
	opRelease     opcode = 18
	opFsync       opcode = 20
	opFlush       opcode = 25
	opInit        opcode = 26
	opOpendir     opcode = 27
	opReaddir     opcode = 28
	opReleasedir  opcode = 29
	opAccess      opcode = 34
	opInterrupt   opcode = 36
	opDestroy     opcode = 38
	opBatchForget opcode = 42
	opFallocate   opcode = 43
)

const (
	protoMajor = 7
	protoMinor = 41 // what this server knows; the kernel uses the smaller minor

	nodeRoot uint64 = 1
	nodeDisk uint64 = 2

	setattrMode = 1 << 0
	setattrUID  = 1 << 1
	setattrGID  = 1 << 2
	setattrSize = 1 << 3

	// The file bypasses the page cache, close does not send a FLUSH (it would make
	// the death of a process wait for the server), and direct writes do not exclude
	// each other.
	openFlags = 1<<0 | 1<<5 | 1<<6

	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10

	modeDir  = 0o040000
	modeFile = 0o100000

	// cacheSeconds is how long the kernel may keep names and attributes: they change
	// only through the kernel itself.
	cacheSeconds = 365 * 24 * 3600
)

// Capabilities of FUSE_INIT; 32 and up travel in a second word, which capInitExt
// announces.
const (
	capAsyncRead = uint64(1) << 0
	capBigWrites = uint64(1) << 5
	capAsyncDIO  = uint64(1) << 15 // half the IOPS are lost without it
	capMaxPages  = uint64(1) << 22
	capInitExt   = uint64(1) << 30
	capHasResend = uint64(1) << 39

	capsWanted = capAsyncRead | capBigWrites | capAsyncDIO | capMaxPages | capInitExt | capHasResend
)

// inHeader is the part of a request's header that is used.
type inHeader struct {
	length uint32
	op     opcode
	unique uint64
	node   uint64
}

// parseHeader decodes the header of the message p, which must be as long as it says.
func parseHeader(p []byte) (inHeader, error) {
	if len(p) < inHeaderLen {
		return inHeader{}, fmt.Errorf("FUSE message of %d bytes", len(p))
	}
	h := inHeader{
		length: order.Uint32(p[0:]),
		op:     opcode(order.Uint32(p[4:])),
		unique: order.Uint64(p[8:]),
		node:   order.Uint64(p[16:]),
	}
	if int(h.length) != len(p) {
		return h, fmt.Errorf("FUSE message of %d bytes says it has %d", len(p), h.length)
	}
	return h, nil
}

func putOutHeader(p []byte, length int, errno int32, unique uint64) {
	order.PutUint32(p[0:], uint32(length))
	order.PutUint32(p[4:], uint32(-errno))
	order.PutUint64(p[8:], unique)
}

// initIn is FUSE_INIT: major, minor, readahead, flags, and since 7.36 flags2.
type initIn struct {
	major, minor, maxReadahead uint32
	flags                      uint64
}

func parseInit(p []byte) (initIn, bool) {
	if len(p) < 16 {
		return initIn{}, false
	}
	in := initIn{
		major:        order.Uint32(p[0:]),
		minor:        order.Uint32(p[4:]),
		maxReadahead: order.Uint32(p[8:]),
		flags:        uint64(order.Uint32(p[12:])),
	}
	if in.flags&capInitExt != 0 && len(p) >= 20 {
		in.flags |= uint64(order.Uint32(p[16:])) << 32
	}
	return in, true
}

func putInitOut(p []byte, s Session) {
	clear(p[:initOutLen])
	order.PutUint32(p[0:], protoMajor)
	order.PutUint32(p[4:], s.Minor)
	order.PutUint32(p[8:], s.MaxReadahead)
	order.PutUint32(p[12:], uint32(s.Flags))
	order.PutUint16(p[16:], uint16(s.MaxBackground))
	order.PutUint16(p[18:], uint16(s.MaxBackground*3/4)) // congestion threshold
	order.PutUint32(p[20:], s.MaxWrite)
	order.PutUint32(p[24:], 1) // time granularity, ns
	order.PutUint16(p[28:], uint16(s.MaxPages))
	order.PutUint32(p[32:], uint32(s.Flags>>32))
}

// ioIn is the common beginning of READ and WRITE: handle, offset, size.
type ioIn struct {
	off  int64
	size uint32
}

func parseIO(p []byte) (ioIn, bool) {
	if len(p) < bodyLen {
		return ioIn{}, false
	}
	return ioIn{off: int64(order.Uint64(p[8:])), size: order.Uint32(p[16:])}, true
}

// fallocateIn is FALLOCATE: handle, offset, length, mode.
type fallocateIn struct {
	off, length int64
	mode        uint32
}

func parseFallocate(p []byte) (fallocateIn, bool) {
	if len(p) < 32 {
		return fallocateIn{}, false
	}
	return fallocateIn{
		off:    int64(order.Uint64(p[8:])),
		length: int64(order.Uint64(p[16:])),
		mode:   order.Uint32(p[24:]),
	}, true
}

// setattrIn is what is used of SETATTR: the mask of what changes, and the size.
type setattrIn struct {
	valid uint32
	size  int64
}

func parseSetattr(p []byte) (setattrIn, bool) {
	if len(p) < setattrInLen {
		return setattrIn{}, false
	}
	return setattrIn{valid: order.Uint32(p[0:]), size: int64(order.Uint64(p[16:]))}, true
}

// nodeAttr is what GETATTR tells; times are the epoch, the owner is root.
type nodeAttr struct {
	node uint64
	size int64
	mode uint32
}

// put writes the 88 bytes of attributes: inode, size, 512-byte blocks, three times,
// their nanoseconds, mode, links, uid, gid, rdev, block size, flags.
func (a nodeAttr) put(p []byte) {
	clear(p[:88])
	order.PutUint64(p[0:], a.node)
	order.PutUint64(p[8:], uint64(a.size))
	order.PutUint64(p[16:], uint64(a.size)/512)
	order.PutUint32(p[60:], a.mode)
	order.PutUint32(p[64:], 1)
	order.PutUint32(p[80:], preferredBytes)
}

// preferredBytes is the block size in attributes and statfs. The loop driver takes it
// as its discard granularity.
const preferredBytes = 4096

func putAttrOut(p []byte, a nodeAttr) {
	clear(p[:16])
	order.PutUint64(p[0:], cacheSeconds)
	a.put(p[16:])
}

func putEntryOut(p []byte, a nodeAttr) {
	clear(p[:40])
	order.PutUint64(p[0:], a.node)
	order.PutUint64(p[16:], cacheSeconds) // name
	order.PutUint64(p[24:], cacheSeconds) // attributes
	a.put(p[40:])
}

func putStatfsOut(p []byte, size int64) {
	clear(p[:statfsOutLen])
	order.PutUint64(p[0:], uint64(size)/preferredBytes)
	order.PutUint64(p[24:], 1) // files
	order.PutUint32(p[40:], preferredBytes)
	order.PutUint32(p[44:], 255) // longest name
	order.PutUint32(p[48:], preferredBytes)
}
