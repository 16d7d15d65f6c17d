package sanity

import (
	"crypto/sha256"
	"io"
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

func modes(m ...csi.VolumeCapability_AccessMode_Mode) []csi.VolumeCapability_AccessMode_Mode {
	return m
}

// A copy of a volume in use has a journal to replay. Who may only read it sees the right
// content nevertheless, again and again, also when the daemon dies between, and the
// volume stays as it is, byte for byte, until a writer comes.
func TestUncleanCopyForReaders(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		source, snap, want, loose := e.snapshotUnderWriter(kind)
		source.delete()
		v := snap.restore(0, multiReader, reader, writer)
		before := e.rawContent(v)

		for range 2 {
			e.readers(v, want, loose, "one", "two")
		}
		v.mode = reader
		e.readers(v, want, loose, "one")
		v.mode, v.readOnly = writer, true
		e.readers(v, want, loose, "one")
		v.mode, v.readOnly = multiReader, false
		v.stage()
		e.restartKilled()
		e.readers(v, want, loose, "one", "two")

		if e.rawContent(v) != before {
			e.Error("reading has changed the volume")
		}
		v.mode = writer
		m := v.use()
		e.sameBut("as a writer", m, want, loose)
		now := e.change(m, want, want.every(3), newImage(seed+2, blobs, 150)) // over what was loose, too
		e.same("as a writer, staged again", v.again(), now)
	})
}

// readers stages a volume for pods that may only read, whatever they ask for.
func (e *env) readers(v *volume, want image, loose map[int]bool, pods ...string) {
	e.Helper()
	v.stage()
	for n, pod := range pods {
		m, err := v.tryPublish(pod, n%2 == 0)
		e.must(err)
		e.sameBut(v.mode.String()+", pod "+pod, m, want, loose)
		e.readOnly(m)
	}
	v.release()
}

// rawContent is a fingerprint of all bytes of a volume that is not staged.
func (e *env) rawContent(v *volume) [32]byte {
	e.Helper()
	dev, err := e.daemon.Do(e.ctx, "volume", "attach", v.name)
	e.must(err)
	sum, err := sumDevice(dev)
	e.must(err)
	_, err = e.daemon.Do(e.ctx, "volume", "detach", v.name)
	e.must(err)
	return sum
}

// sumDevice reads a device past the page cache, in pieces that are large because most of
// it is empty.
func sumDevice(path string) (sum [32]byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	// Direct I/O wants a buffer that begins at a page.
	buf, err := unix.Mmap(-1, 0, 4*mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return sum, err
	}
	defer func() { _ = unix.Munmap(buf) }() // an address that it has given out
	h := sha256.New()
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return [32]byte(h.Sum(nil)), nil
		}
		if err != nil {
			return sum, err
		}
	}
}
