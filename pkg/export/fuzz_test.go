package export

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// message makes a request as the kernel sends it.
func message(op opcode, unique, node uint64, body ...byte) []byte {
	return append(words(uint32(inHeaderLen+len(body)), uint32(op), unique, node, [2]uint64{}), body...)
}

// FuzzRequests sends raw messages to a server, one after the other: each that is a
// message at all is answered once, under its own number, in a form that the kernel
// takes; what is none ends the connection; and the device is never asked for what lies
// outside it.
func FuzzRequests(f *testing.F) {
	const size = 64 << 10 // a socket takes no message as long as /dev/fuse does
	frame := func(messages ...[]byte) (out []byte) {
		for _, m := range messages {
			out = append(append(out, byte(len(m)), byte(len(m)>>8)), m...)
		}
		return out
	}
	init := message(opInit, 2, 0, words(uint32(7), uint32(45), uint32(1<<17), ^uint32(0), ^uint32(0), [11]uint32{})...)
	f.Add(frame(init, message(opLookup, 4, 1, []byte("disk\x00")...), message(opRead, 1<<63|6, 2, ioBody(0, 4096)...)), false)
	f.Add(frame(message(opWrite, 4, 2, ioBody(512, 512, make([]byte, 512)...)...), message(opFsync, 6, 2, make([]byte, 16)...)), false)
	f.Add(frame(message(opFallocate, 4, 2, falloc(0, 1024, fallocPunchHole)...), message(opForget, 5, 1), message(opGetattr, 6, 2)), true)
	f.Add(frame(message(opRead, 4, 2, ioBody(1<<63-512, maxRequest)...), message(opWrite, 4, 2, ioBody(1<<63-512, 0xfffffe00)...)), false)
	f.Add(frame(message(opSetattr, 4, 2, make([]byte, setattrInLen)...), message(opStatfs, 6, 1), message(opReaddir, 8, 1)), false)
	f.Add(frame(message(opRead, 1<<63|6, 2, ioBody(0, maxRequest)...), message(opRead, 8, 2, ioBody(size-512, 1024)...)), true)
	f.Add(frame([]byte("short")), false)
	f.Add(frame(append(message(opFsync, 4, 2), 0)), false)
	buffers, err := NewBuffers(4 << 20)
	ok(f, err)
	f.Cleanup(buffers.Close)
	reply := make([]byte, outHeaderLen+2*maxRequest)
	f.Fuzz(func(t *testing.T, stream []byte, readOnly bool) {
		dev := newMem(size)
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		ok(t, err)
		conn := os.NewFile(uintptr(fds[0]), "fuse")
		server, err := NewFUSE(conn, dev, FUSEOptions{Name: "disk", ReadOnly: readOnly, Readers: 1, Buffers: buffers})
		ok(t, err)
		done := make(chan error, 1)
		go func() { done <- server.Serve() }()
		var refused error // why the last message was none
		defer func() {
			unix.Close(fds[1]) // the other readers end with it
			if err := <-done; (err != nil) != (refused != nil) {
				t.Errorf("serve: %v, refused is %v", err, refused)
			}
			conn.Close()
			if n := buffers.Taken(); n != 0 {
				t.Errorf("%d buffers still taken", n)
			}
			if readOnly && (dev.holes() > 0 || len(dev.mu.blocks) > 0) {
				t.Error("a read-only device was changed")
			}
		}()
		for len(stream) >= 2 && refused == nil {
			n := min(int(stream[0])|int(stream[1])<<8, len(stream)-2)
			msg := stream[2 : 2+n]
			stream = stream[2+n:]
			if n == 0 || n > 64<<10 {
				continue
			}
			_, err := unix.Write(fds[1], msg)
			ok(t, err)
			var h inHeader
			if h, refused = parseHeader(msg); refused != nil {
				continue
			}
			switch h.op {
			case opForget, opBatchForget, opInterrupt:
				continue // no reply
			}
			checkReply(t, fds[1], reply, h, msg[inHeaderLen:])
		}
	})
}

// checkReply reads one reply and compares it with what the kernel takes: fuse_dev_do_write
// refuses others.
func checkReply(t *testing.T, fd int, reply []byte, h inHeader, body []byte) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(20*time.Second/time.Millisecond))
	for err == unix.EINTR { // the runtime's signals end it
		n, err = unix.Poll(fds, int(20*time.Second/time.Millisecond))
	}
	if n != 1 || err != nil {
		t.Fatalf("no reply to opcode %d: %v", h.op, err)
	}
	n, err = unix.Read(fd, reply)
	ok(t, err)
	out := reply[:n]
	if n < outHeaderLen || int(order.Uint32(out)) != n || order.Uint64(out[8:]) != h.unique {
		t.Fatalf("opcode %d, unique %d: reply %x of %d bytes", h.op, h.unique, out[:min(n, outHeaderLen)], n)
	}
	errno := int32(order.Uint32(out[4:]))
	if errno > 0 || errno <= -512 || errno != 0 && n != outHeaderLen {
		t.Fatalf("opcode %d: errno %d with %d bytes", h.op, errno, n-outHeaderLen)
	}
	if errno != 0 {
		return
	}
	want := map[opcode]int{
		opInit: initOutLen, opLookup: entryOutLen, opGetattr: attrOutLen, opSetattr: attrOutLen, opOpen: openOutLen,
		opOpendir: openOutLen, opStatfs: statfsOutLen, opWrite: 8,
	}[h.op] // others have no body
	if h.op == opRead {
		in, _ := parseIO(body)
		if got := n - outHeaderLen; got > int(in.size) {
			t.Fatalf("%d bytes read where %d were asked for", got, in.size)
		}
		return
	}
	if n-outHeaderLen != want {
		t.Fatalf("opcode %d: body of %d bytes, want %d", h.op, n-outHeaderLen, want)
	}
}

// splitOptions takes a list apart as mount does: at commas outside double quotes.
func splitOptions(list string) []string {
	var out []string
	quoted, from := false, 0
	for i, c := range []byte(list) {
		switch {
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			out = append(out, list[from:i])
			from = i + 1
		}
	}
	return append(out, list[from:])
}

// FuzzMountFlags: a flag that is allowed is one option and stays one in a list, begins
// with an allowed name, and has nothing that a shell, a table of mounts or a log could
// take apart.
func FuzzMountFlags(f *testing.F) {
	for _, flag := range []string{"ro", "commit=5", `context="system_u:object_r:x_t:s0:c1,c2"`, "subvol=/a/b", "logbsize=256k", "compress=zstd:3", "commit=5,dev"} {
		f.Add("ext4", flag)
		f.Add("btrfs", flag)
	}
	f.Add(strings.Repeat("ext4", 1000), "ro") // found: all of it was in the error's text
	f.Fuzz(func(t *testing.T, fsType, flag string) {
		if err := CheckMountFlags(fsType, []string{flag}); err != nil {
			if !errors.Is(err, ErrInvalid) || len(err.Error()) > 4<<10 {
				t.Fatalf("%q refused with %v", flag, err)
			}
			return
		}
		if got := splitOptions("rw," + flag + ",ro"); !slices.Equal(got, []string{"rw", flag, "ro"}) {
			t.Fatalf("%q is taken apart to %q", flag, got)
		}
		name, _, _ := strings.Cut(flag, "=")
		if !slices.ContainsFunc(mountFlags[fsType], func(w string) bool { n, _, _ := strings.Cut(w, "="); return n == name }) {
			t.Fatalf("%q has the name of no flag of %s", flag, fsType)
		}
		if strings.ContainsFunc(flag, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }) || strings.Contains(flag, "..") && strings.Contains(flag, "/..") {
			t.Fatalf("%q is allowed", flag)
		}
	})
}

// FuzzProbe: any first bytes of a device are of some type or none; a btrfs superblock
// that is taken for a copy's can get another ID and its own back, which is the same
// superblock again.
func FuzzProbe(f *testing.F) {
	for _, s := range signatures {
		f.Add(uint32(s.off), []byte(s.magic), []byte{}, byte(0))
	}
	sb := make([]byte, 0x100)
	copy(sb[btrfsMagicAt:], btrfsMagic)
	le.PutUint64(sb[btrfsNumDevicesAt:], 1)
	f.Add(uint32(btrfsSuperOffset), []byte(btrfsMagic), sb, byte(0))
	le.PutUint16(sb[btrfsCsumTypeAt:], 2)
	f.Add(uint32(0), []byte{}, sb, byte(2))
	f.Fuzz(func(t *testing.T, off uint32, bytesThere, super []byte, kind byte) {
		head := make([]byte, off%(2*btrfsSuperOffset))
		head = append(head, bytesThere...)
		if got := fsTypeOf(head); got != "" && !slices.ContainsFunc(signatures, func(s signature) bool { return s.fsType == got }) {
			t.Fatalf("type %q", got)
		}
		sb := make([]byte, btrfsSuperBytes)
		copy(sb, super)
		le.PutUint16(sb[btrfsCsumTypeAt:], uint16(kind%4))
		if sum, err := btrfsChecksum(sb); err == nil {
			copy(sb, sum)
		}
		if checkBtrfsSuper(sb) != nil {
			return
		}
		before, own := bytes.Clone(sb), [16]byte(sb[btrfsFSIDAt:])
		other := own
		other[3] ^= 0x5a
		for _, id := range [][16]byte{other, own} {
			ok(t, putBtrfsFSID(sb, id))
			if err := checkBtrfsSuper(sb); err != nil || [16]byte(sb[btrfsFSIDAt:]) != id {
				t.Fatalf("with another ID: %v", err)
			}
		}
		// A metadata UUID that nothing says is in use may be overwritten by zeros.
		if le.Uint64(before[btrfsIncompatAt:])&btrfsHasMetadataUUID == 0 {
			clear(before[btrfsMetadataUUIDAt:][:16])
			sum, err := btrfsChecksum(before)
			ok(t, err)
			copy(before, sum)
		} else if own == [16]byte(before[btrfsMetadataUUIDAt:]) {
			return // says that it has two IDs and has one: mended on the way
		}
		if !bytes.Equal(sb, before) {
			t.Fatal("there and back is another superblock")
		}
	})
}

// escapeMount is what the kernel does to a path in its mount tables.
func escapeMount(s string) string {
	return strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`).Replace(s)
}

// FuzzMountInfo: paths come back from the kernel's tables as they were, and any text is
// read without harm.
func FuzzMountInfo(f *testing.F) {
	f.Add("/a b")
	f.Add(`/a\040b\`)
	f.Add(`\400\08`)
	f.Fuzz(func(t *testing.T, s string) {
		if got := unescapeMount(escapeMount(s)); got != s {
			t.Fatalf("%q comes back as %q", s, got)
		}
		if got := unescapeMount(s); len(got) > len(s) {
			t.Fatalf("%q becomes %q", s, got)
		}
	})
}
