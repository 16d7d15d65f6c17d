package blockstore

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"path"
	"sync"

	"github.com/k8ns/granary/pkg/vfs"
)

// scratchRegion is the part of a volume that has one place in a scratch file, in bytes.
// The file gets a region when something is written there first, so its size follows what
// is written and not the volume's: a volume may be larger than a file can be.
const scratchRegion = 64 << 10

// Scratch is an open volume with a throw-away layer above it: it reads as the volume
// overlaid by what was written to it, and Close forgets all of that. A filesystem needs
// one even to be mounted read-only, because the mount replays its log.
//
// Nothing of the layer enters the journal, the catalog or a chunk file. Its bytes are in
// a file that has no name, so whatever ends the process ends the layer, and the volume is
// as it was. What is where is known in memory alone, which takes a small part of what is written.
//
// All methods may be called concurrently. After Close they return ErrClosed.
type Scratch struct {
	// Fixed after OpenScratch.
	base *Volume  // nobody writes to it while it is open so
	file vfs.File // removed already

	// mu is held over the file's I/O, but never while the volume below is read. No other
	// lock is taken under it.
	mu struct {
		sync.RWMutex
		layer   layer             // sectors written (scratchData) and discarded (nil)
		regions map[int64]*region // by volume offset / scratchRegion
		closed  bool
	}
}

// region is the place of scratchRegion bytes of the volume in the file. Guarded by its
// Scratch's mutex.
type region struct {
	off  int64                               // of the first byte in the file
	sums [scratchRegion / sectorBytes]uint32 // CRC32C of each sector that is in the file
}

// scratchData stands for sectors that are in the scratch file: where is said by regions.
var scratchData = new(payload)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// gap is a range of bytes of a volume that the layer says nothing about.
type gap struct{ start, end int64 }

// OpenScratch opens a volume with a throw-away layer. The volume is open then like after
// OpenVolume: ErrInUse if it is already, ErrFailed if it failed closed, ErrNotFound; one
// that starts at a cut without a root waits for it. It takes no journal segment. ErrNoSpace
// if the disk has no room for another file.
func (s *Store) OpenScratch(ctx context.Context, id string) (*Scratch, error) {
	if err := checkID('v', id); err != nil {
		return nil, err
	}
	if err := s.resolveCut(ctx, id); err != nil {
		return nil, err
	}
	file, err := s.scratchFile()
	if err != nil {
		return nil, s.scratchFailed(fmt.Errorf("open volume %s with a throw-away layer: %w", id, err))
	}
	c := &Scratch{file: file}
	c.mu.regions = make(map[int64]*region)
	c.base, err = s.claim(id, func(v *Volume) { v.mu.scratch = c })
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return c, nil
}

// scratchFile makes a file and takes its name away at once, so that nothing is left of it
// when the process ends. The name's removal need not be durable: removeScratch looks again.
func (s *Store) scratchFile() (vfs.File, error) {
	dir := path.Join(s.dir, dirScratch)
	if err := s.fsys.MkdirAll(dir); err != nil {
		return nil, err
	}
	name := path.Join(dir, fmt.Sprintf("%08x-%08x", s.cat.Epoch(), s.scratches.Add(1)))
	f, err := s.fsys.Create(name)
	if err != nil {
		return nil, err
	}
	if err := s.fsys.Remove(name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeScratch removes scratch files whose names came back with a power loss. One that
// stays costs space and nothing else, so the store is served all the same.
func (s *Store) removeScratch() {
	dir := path.Join(s.dir, dirScratch)
	names, err := s.fsys.ReadDir(dir)
	if errors.Is(err, vfs.ErrNotExist) {
		return
	}
	for _, name := range names {
		err = errors.Join(err, s.fsys.Remove(path.Join(dir, name)))
	}
	if err != nil {
		s.log.Warn("files of throw-away layers cannot be removed", "dir", dir, "err", err)
	}
}

// scratchFailed passes err on; for a full disk it starts a collection at once, so that
// there may be room when the caller tries again.
func (s *Store) scratchFailed(err error) error {
	if errors.Is(err, ErrNoSpace) {
		s.setFull(true, err)
	}
	return err
}

// ID returns the volume's ID.
func (c *Scratch) ID() string { return c.base.id }

// Size is the volume's size in bytes, also after it has grown meanwhile.
func (c *Scratch) Size() int64 { return c.base.Size() }

// SectorBytes is the size of a logical sector.
func (c *Scratch) SectorBytes() int { return c.base.sector }

// usable is ErrClosed after Close. Called with c.mu held.
func (c *Scratch) usable() error {
	if c.mu.closed {
		return fmt.Errorf("throw-away layer of volume %s: %w", c.base.id, ErrClosed)
	}
	return nil
}

// ReadAt fills p from off; both must be multiples of 512 bytes. Damage of the volume or of
// the layer's file is a *ReadError, never wrong data (I5).
//
// The layer is looked at first and at once, the volume below afterwards: that does not
// change, so what comes together is the image of one moment.
func (c *Scratch) ReadAt(p []byte, off int64) (int, error) {
	if err := c.base.checkRange("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	gaps, err := c.readLayer(p, off)
	if err != nil {
		return 0, err
	}
	for _, g := range gaps {
		if _, err := c.base.ReadAt(p[g.start-off:g.end-off], g.start); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// readLayer fills what the layer knows of p and returns the rest.
func (c *Scratch) readLayer(p []byte, off int64) (gaps []gap, err error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if err := c.usable(); err != nil {
		return nil, err
	}
	at, end := off, off+int64(len(p))
	c.mu.layer.each(off/sectorBytes, end/sectorBytes, func(s, e int64, src *payload) bool {
		from, to := s*sectorBytes, e*sectorBytes
		if from > at {
			gaps = append(gaps, gap{at, from})
		}
		if dst := p[from-off : to-off]; src == nil {
			clear(dst)
		} else {
			err = c.readFile(dst, from)
		}
		at = to
		return err == nil
	})
	if at < end {
		gaps = append(gaps, gap{at, end})
	}
	return gaps, err
}

// readFile reads dst, which begins at volume offset at, from the file. The file is never
// synced, so a disk that loses a page of it tells nobody: the sums do (I5). Called with
// c.mu held.
func (c *Scratch) readFile(dst []byte, at int64) error {
	for len(dst) > 0 {
		r, in := c.mu.regions[at/scratchRegion], at%scratchRegion
		n := min(int64(len(dst)), scratchRegion-in)
		if _, err := c.file.ReadAt(dst[:n], r.off+in); err != nil {
			return &ReadError{c.base.id, at, n, fmt.Errorf("throw-away layer: %w", err)}
		}
		for i := int64(0); i < n; i += sectorBytes {
			if crc32.Checksum(dst[i:i+sectorBytes], castagnoli) != r.sums[(in+i)/sectorBytes] {
				return &ReadError{c.base.id, at + i, sectorBytes, fmt.Errorf("throw-away layer: %s at %d: checksum does not match: %w",
					c.file.Name(), r.off+in+i, ErrCorrupt)}
			}
		}
		dst, at = dst[n:], at+n
	}
	return nil
}

// WriteAt writes p at off into the layer; both must be multiples of 512 bytes. It lasts
// until Close. p is not kept. A full disk is ErrNoSpace and not a wait: nothing that
// anybody wants to keep is at stake. After an error the first n bytes are written; behind
// them each sector reads as before, or as an error.
func (c *Scratch) WriteAt(p []byte, off int64) (n int, err error) {
	if err := c.base.checkRange("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err = c.write(p, off)
	return n, c.base.store.scratchFailed(err)
}

func (c *Scratch) write(p []byte, off int64) (done int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return 0, err
	}
	for done < len(p) {
		at := off + int64(done)
		r, in := c.region(at), at%scratchRegion
		part := p[done:min(len(p), done+scratchRegion-int(in))]
		n, err := c.file.WriteAt(part, r.off+in)
		n -= n % sectorBytes
		c.written(r, part[:n], at)
		done += n
		if err != nil {
			return done, fmt.Errorf("write of %d bytes at %d to the throw-away layer of volume %s: %w", len(p), off, c.base.id, err)
		}
	}
	return done, nil
}

// region returns the region of volume offset at, new if need be. Called with c.mu held.
func (c *Scratch) region(at int64) *region {
	r := c.mu.regions[at/scratchRegion]
	if r == nil {
		r = &region{off: int64(len(c.mu.regions)) * scratchRegion}
		c.mu.regions[at/scratchRegion] = r
	}
	return r
}

// written notes that p is in the file for volume offset at. Called with c.mu held.
func (c *Scratch) written(r *region, p []byte, at int64) {
	if len(p) == 0 {
		return
	}
	first := at % scratchRegion / sectorBytes
	for i := 0; i < len(p); i += sectorBytes {
		r.sums[first+int64(i/sectorBytes)] = crc32.Checksum(p[i:i+sectorBytes], castagnoli)
	}
	c.mu.layer.put(at/sectorBytes, (at+int64(len(p)))/sectorBytes, scratchData)
}

// Discard makes the range read as zeros; exact to 512 bytes. It needs no disk space, and
// the file keeps what it has for the next write there.
func (c *Scratch) Discard(off, n int64) error {
	if err := c.base.checkRange("discard", off, n); err != nil || n == 0 {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	c.mu.layer.put(off/sectorBytes, (off+n)/sectorBytes, nil)
	return nil
}

// WriteZeroes is Discard: zeros are holes.
func (c *Scratch) WriteZeroes(off, n int64) error { return c.Discard(off, n) }

// Flush makes nothing durable and returns at once: a power loss ends the layer, so nobody
// will ever look for what was flushed to it.
func (c *Scratch) Flush() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.usable()
}

// Close throws away all that was written and lets the volume be opened anew. It waits for
// calls that use the layer's file. ErrClosed if it was closed already.
func (c *Scratch) Close() error {
	if err := c.drop(); err != nil {
		return err
	}
	v := c.base
	v.mu.Lock()
	v.mu.scratch = nil
	v.recovered()
	v.mu.Unlock()
	v.store.forget(v)
	return nil
}

// drop ends the layer.
func (c *Scratch) drop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	c.mu.closed = true
	c.mu.layer, c.mu.regions = layer{}, nil
	_ = c.file.Close() // whatever it says, nobody needs the bytes
	return nil
}
