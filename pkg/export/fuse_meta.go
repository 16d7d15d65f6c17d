package export

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// answer handles the requests that need nothing but the size of the device. It runs in
// the reader.
func (f *FUSE) answer(h inHeader, body []byte) {
	switch h.op {
	case opInit:
		f.init(h, body)
	case opLookup:
		f.lookup(h, body)
	case opGetattr:
		f.getattr(h)
	case opSetattr:
		f.setattr(h, body)
	case opOpen:
		f.open(h)
	case opOpendir:
		var out [outHeaderLen + openOutLen]byte
		f.send(h, out[:])
	case opStatfs:
		var out [outHeaderLen + statfsOutLen]byte
		putStatfsOut(out[outHeaderLen:], f.dev.Size())
		f.send(h, out[:])
	case opFlush, opRelease, opReleasedir, opAccess, opDestroy, opReaddir:
		// FLUSH belongs to close and promises nothing; nothing is kept per open
		// file; only root has the file; directories look empty.
		f.reply(h, 0)
	case opForget, opBatchForget, opInterrupt:
		// No reply. Nodes are not counted; a request that waits is not given up.
	default:
		f.reply(h, unix.ENOSYS)
	}
}

// init agrees on the session. The kernel sends nothing else before the reply.
func (f *FUSE) init(h inHeader, body []byte) {
	in, ok := parseInit(body)
	if !ok || in.major != protoMajor || f.session.Load() != nil {
		f.reply(h, unix.EPROTO)
		return
	}
	s := Session{
		Minor:         min(in.minor, protoMinor),
		Flags:         in.flags & capsWanted,
		MaxReadahead:  in.maxReadahead,
		MaxWrite:      maxRequest,
		MaxPages:      uint32(maxRequest / pageSize),
		MaxBackground: f.o.MaxBackground,
	}
	f.session.Store(&s)
	var out [outHeaderLen + initOutLen]byte
	putInitOut(out[outHeaderLen:], s)
	f.send(h, out[:])
}

func (f *FUSE) lookup(h inHeader, body []byte) {
	name, _, _ := bytes.Cut(body, []byte{0})
	if h.node != nodeRoot || string(name) != f.o.Name {
		f.reply(h, unix.ENOENT)
		return
	}
	var out [outHeaderLen + entryOutLen]byte
	putEntryOut(out[outHeaderLen:], f.diskAttr())
	f.send(h, out[:])
}

func (f *FUSE) diskAttr() nodeAttr {
	a := nodeAttr{node: nodeDisk, size: f.dev.Size(), mode: modeFile | 0o600}
	if f.o.ReadOnly {
		a.mode = modeFile | 0o400
	}
	return a
}

func (f *FUSE) getattr(h inHeader) {
	var a nodeAttr
	switch h.node {
	case nodeRoot:
		a = nodeAttr{node: nodeRoot, mode: modeDir | 0o700}
	case nodeDisk:
		a = f.diskAttr()
	default:
		f.reply(h, unix.ENOENT)
		return
	}
	var out [outHeaderLen + attrOutLen]byte
	putAttrOut(out[outHeaderLen:], a)
	f.send(h, out[:])
}

// setattr takes a new size only if the device has it already: the kernel is told that
// the volume has grown, it does not make it grow.
func (f *FUSE) setattr(h inHeader, body []byte) {
	in, ok := parseSetattr(body)
	switch {
	case !ok || h.node != nodeDisk:
		f.reply(h, unix.EINVAL)
		return
	case in.valid&(setattrMode|setattrUID|setattrGID) != 0:
		f.reply(h, unix.EPERM)
		return
	}
	a := f.diskAttr()
	if in.valid&setattrSize != 0 && in.size != a.size {
		f.reply(h, unix.EINVAL)
		return
	}
	var out [outHeaderLen + attrOutLen]byte
	putAttrOut(out[outHeaderLen:], a)
	f.send(h, out[:])
}

func (f *FUSE) open(h inHeader) {
	if h.node != nodeDisk {
		f.reply(h, unix.EACCES)
		return
	}
	var out [outHeaderLen + openOutLen]byte
	order.PutUint32(out[outHeaderLen+8:], openFlags)
	f.send(h, out[:])
}
