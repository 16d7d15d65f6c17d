package device

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/test/rig"
)

const (
	stampBytes = 4096
	// rawStamps have a block of their own each, of the smallest volume.
	rawStamps = unusualSize / stampBytes
	// fileStamps fit on the smallest volume, beside those that a copy has already.
	fileStamps = 200
)

// stamps are what callers wrote and synced. Each is written once, to a file or block of
// its own, so that what is promised never changes: as long as its volume lives, it is
// there, and in every copy that was begun after it was synced.
//
// Who writes holds the filesystem or device open from before it knows which volume that
// is until the sync is over. So the volume cannot be unstaged or deleted meanwhile, and
// a target path that is another volume's by now, or nobody's, does no harm.
type stamps struct {
	mu       sync.Mutex
	serial   int                // guarded by mu
	promised map[string][]stamp // by the engine's ID, of volume or snapshot; guarded by mu
	verified int                // guarded by mu
}

type stamp struct {
	serial int
	synced int64 // the clock when it was
}

func newStamps() *stamps { return &stamps{promised: make(map[string][]stamp)} }

func (s *stamps) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d written, %d times one was read back", s.serial, s.verified)
}

// content fills a block and is like no other stamp's.
func (s stamp) content() []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%063d\n", s.serial), stampBytes/64)
}

func (s stamp) file() string  { return fmt.Sprintf("stamp-%d", s.serial) }
func (s stamp) offset() int64 { return int64(s.serial) * stampBytes }

// next is a new stamp for a volume; false if that has enough.
func (s *stamps) next(volume string, raw bool) (stamp, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if raw && s.serial+1 >= rawStamps || len(s.promised[volume]) >= fileStamps {
		return stamp{}, false
	}
	s.serial++
	return stamp{serial: s.serial}, true
}

// promise notes that a stamp was synced.
func (s *stamps) promise(volume string, st stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promised[volume] = append(s.promised[volume], st)
}

// inherit notes that a volume or snapshot is a copy that was begun at a time or later.
func (s *stamps) inherit(handle, source string, began int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.promised[engineIDIn(source)] {
		if st.synced < began {
			s.promised[engineIDIn(handle)] = append(s.promised[engineIDIn(handle)], st)
		}
	}
}

// of lists what is promised of a volume.
func (s *stamps) of(volume string) []stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.promised[volume])
}

func (s *stamps) verify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verified++
}

var enginePattern = regexp.MustCompile(`[vs]-[0-9a-f]{32}`)

// engineIDIn is the engine's ID in a handle or in the path of a loop device's file.
func engineIDIn(s string) string { return enginePattern.FindString(s) }

// opened is a target or staging path that is held open, and the volume that is there.
type opened struct {
	*os.File
	raw    bool
	volume string // the engine's ID
}

var errNoVolume = errors.New("no volume is there")

// openVolume opens what is at a path, a filesystem's root or a raw device.
func openVolume(path string, raw bool, flags int) (*opened, error) {
	if !raw {
		flags = os.O_RDONLY | unix.O_DIRECTORY
	}
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	number := st.Dev
	if raw {
		number = st.Rdev
	}
	backing := ""
	if isDevice := st.Mode&unix.S_IFMT == unix.S_IFBLK; err == nil && isDevice == raw {
		backing, err = rig.BackingFile(number)
	}
	o := &opened{f, raw, engineIDIn(backing)}
	if err == nil && o.volume == "" {
		err = errNoVolume
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return o, nil
}

// write writes and syncs a stamp.
func (o *opened) write(s stamp) error {
	if o.raw {
		if _, err := o.WriteAt(s.content(), s.offset()); err != nil {
			return err
		}
		return o.Sync()
	}
	f, err := o.openFile(s, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(s.content()); err != nil {
		return err
	}
	return errors.Join(f.Sync(), o.Sync())
}

// read reads a stamp back.
func (o *opened) read(s stamp) ([]byte, error) {
	content := make([]byte, stampBytes)
	if o.raw {
		_, err := o.ReadAt(content, s.offset())
		return content, err
	}
	f, err := o.openFile(s, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.ReadAt(content, 0)
	return content[:n], err
}

// openFile opens a stamp's file below the directory that is held open, wherever that is
// mounted now.
func (o *opened) openFile(s stamp, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(o.Fd()), s.file(), flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: s.file(), Err: err}
	}
	return os.NewFile(uintptr(fd), s.file()), nil
}

func (c *caller) writeStamp() {
	p := c.anyVolume()
	c.stampAt(p, targetPath(c.anyPod(p), p.latest()))
}

// stampAt writes a stamp at a target, if a volume is there that can be written.
func (c *caller) stampAt(p *place, target string) {
	begin := c.clock.Add(1)
	o, err := openVolume(target, p.raw, os.O_RDWR)
	if err != nil {
		c.checkIO(err, begin, target)
		return
	}
	defer o.Close()
	s, ok := c.stamps.next(o.volume, p.raw)
	if !ok {
		return
	}
	if err := o.write(s); err != nil {
		c.checkIO(err, begin, target)
		return
	}
	s.synced = c.clock.Add(1)
	c.stamps.promise(o.volume, s)
}

// checkIO: an I/O error comes of a kill, or it is one too many. Others only say that the
// volume is gone, or attached read-only.
func (c *caller) checkIO(err error, begin int64, path string) {
	end := c.clock.Add(1)
	if errors.Is(err, unix.EIO) && !c.wasDown(begin, end) && c.ctx.Err() == nil {
		c.fail("I/O error at %s in [%d,%d] while no daemon was killed: %v", path, begin, end, err)
	}
}

// readStamps reads some stamps of a volume through its staging path or a target.
func (c *caller) readStamps() {
	p := c.anyVolume()
	id := p.latest()
	path := targetPath(c.anyPod(p), id)
	if !p.raw && c.chance(30) {
		path = p.stagingPath(id)
	}
	begin := c.clock.Add(1)
	o, err := openVolume(path, p.raw, os.O_RDONLY)
	if err != nil {
		c.checkIO(err, begin, path)
		return
	}
	defer o.Close()
	promised := c.stamps.of(o.volume)
	for range min(8, len(promised)) {
		s := promised[c.r.IntN(len(promised))]
		content, err := o.read(s)
		if c.wasDown(begin, c.clock.Add(1)) {
			return // a mount that is dying; the next one has to have it
		}
		if err != nil || !bytes.Equal(content, s.content()) {
			c.fail("volume %s at %s: stamp %d, synced at %d, is not there: %v, %.64q", o.volume, path, s.serial, s.synced, err, content)
			return
		}
		c.stamps.verify()
	}
}
