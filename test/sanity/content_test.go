package sanity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/k8ns/granary/test/rig"
)

// blob is the content of one file, or of one slot of a raw volume: it follows from the
// seed, so nothing has to be kept to compare with.
type blob struct {
	seed uint64
	size int
}

// bytes makes the content in blocks of 4 KiB: most are random, some are zero, and some
// are the same in many blobs, so that the store has something to share.
func (b blob) bytes() []byte {
	out := make([]byte, b.size)
	choose := rand.New(rand.NewPCG(b.seed, 1))
	for at := 0; at < b.size; at += blockSize {
		part := out[at:min(at+blockSize, b.size)]
		switch choose.IntN(8) {
		case 0: // zero
		case 1, 2:
			fill(part, uint64(choose.IntN(64)))
		default:
			fill(part, choose.Uint64()|1<<63)
		}
	}
	return out
}

const blockSize = 4096

func fill(part []byte, seed uint64) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(part) // never fails
}

// slotSize is the largest blob, and the distance of two on a raw volume.
const slotSize = 128 << 10

// image is what a volume holds: blobs by number.
type image map[int]blob

// newImage makes an image of so many blobs, numbered from first on.
func newImage(seed uint64, first, count int) image {
	r := rand.New(rand.NewPCG(seed, 2))
	i := image{}
	for n := first; n < first+count; n++ {
		i[n] = blob{seed: r.Uint64(), size: 1 + r.IntN(slotSize)}
	}
	return i
}

// with is the image with others put over it.
func (i image) with(others ...image) image {
	all := maps.Clone(i)
	for _, o := range others {
		maps.Copy(all, o)
	}
	return all
}

// without is the image with some blobs removed.
func (i image) without(numbers ...int) image {
	all := maps.Clone(i)
	for _, n := range numbers {
		delete(all, n)
	}
	return all
}

func (i image) numbers() []int { return slices.Sorted(maps.Keys(i)) }

// every is each step'th number of the image.
func (i image) every(step int) []int {
	var some []int
	for at, n := range i.numbers() {
		if at%step == 0 {
			some = append(some, n)
		}
	}
	return some
}

// medium is a published volume as a pod uses it.
type medium interface {
	// put writes a blob; synced on its own if asked for.
	put(n int, b blob, synced bool) error
	// remove takes a blob away.
	remove(n int) error
	// sync makes everything that was put durable.
	sync() error
	// trim tells the volume what is unused.
	trim(e *env)
	// compare wants exactly this image, byte by byte. Blobs that are called loose may
	// hold anything or be missing.
	compare(want image, loose map[int]bool) error
	// capacity is what the pod can use, in bytes.
	capacity() (int64, error)
}

// fill puts an image onto a medium and syncs it.
func fillMedium(m medium, i image) error {
	for _, n := range i.numbers() {
		if err := m.put(n, i[n], false); err != nil {
			return err
		}
	}
	return m.sync()
}

// change removes some blobs and puts others, and returns what is there then.
func change(m medium, i image, remove []int, put image) (image, error) {
	for _, n := range remove {
		if err := m.remove(n); err != nil {
			return nil, err
		}
	}
	return i.without(remove...).with(put), fillMedium(m, put)
}

// directory is a mounted filesystem.
type directory struct{ path string }

func (d *directory) file(n int) string {
	return filepath.Join(d.path, fmt.Sprintf("d%d", n%7), strconv.Itoa(n))
}

func (d *directory) put(n int, b blob, synced bool) error {
	name := d.file(n)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b.bytes()); err != nil {
		return err
	}
	if !synced {
		return nil
	}
	// The file, its name, and the name of its directory.
	return errors.Join(f.Sync(), syncPath(filepath.Dir(name)), syncPath(d.path))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *directory) remove(n int) error { return os.Remove(d.file(n)) }

func (d *directory) sync() error { return rig.SyncFS(d.path) }

func (d *directory) trim(e *env) {
	e.Helper()
	e.run("fstrim", d.path)
}

func (d *directory) compare(want image, loose map[int]bool) error {
	var diff differences
	found, err := d.list()
	if err != nil {
		return err
	}
	for n := range found {
		if _, ok := want[n]; !ok && !loose[n] {
			diff.add("%s should not be there", d.file(n))
		}
	}
	for _, n := range want.numbers() {
		if loose[n] {
			continue
		}
		got, err := os.ReadFile(d.file(n))
		if err != nil {
			diff.add("%v", err)
			continue
		}
		diff.bytes(d.file(n), got, want[n].bytes())
	}
	return diff.result()
}

// list lists the files, by number.
func (d *directory) list() (map[int]bool, error) {
	found := map[int]bool{}
	err := filepath.WalkDir(d.path, func(path string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && e.Name() == "lost+found":
			return filepath.SkipDir
		case e.IsDir():
			return nil
		}
		n, err := strconv.Atoi(e.Name())
		if err != nil || d.file(n) != path {
			return fmt.Errorf("%s should not be there", path)
		}
		found[n] = true
		return nil
	})
	return found, err
}

func (d *directory) capacity() (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(d.path, &st)
	return int64(st.Blocks) * st.Bsize, err
}

// reserve makes the filesystem set aside so many bytes for a file, and gives them back.
func (d *directory) reserve(size int64) error {
	f, err := os.CreateTemp(d.path, "reserve")
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err != nil {
		err = fmt.Errorf("no room for a file of %d MiB: %w", size/mib, err)
	}
	return errors.Join(err, os.Remove(f.Name()))
}

// device is a raw volume, divided into slots: a blob is at the beginning of the slot of
// its number, and everything else is zero.
type device struct {
	path string
	size int64
}

func (d *device) open() (*os.File, error) { return os.OpenFile(d.path, os.O_RDWR, 0) }

func (d *device) put(n int, b blob, synced bool) error {
	f, err := d.open()
	if err != nil {
		return err
	}
	defer f.Close()
	slot := make([]byte, slotSize)
	copy(slot, b.bytes())
	if _, err := f.WriteAt(slot, int64(n)*slotSize); err != nil || !synced {
		return err
	}
	return f.Sync()
}

// remove discards the slot, which the volume then reads as zeros.
func (d *device) remove(n int) error {
	f, err := d.open()
	if err != nil {
		return err
	}
	defer f.Close()
	return discard(f, int64(n)*slotSize, slotSize)
}

func (d *device) sync() error {
	f, err := d.open()
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *device) trim(*env) {} // removed slots are discarded already

func (d *device) compare(want image, loose map[int]bool) error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer f.Close()
	var diff differences
	got := make([]byte, slotSize)
	for n := 0; int64(n)*slotSize < d.size; n++ {
		size := min(slotSize, d.size-int64(n)*slotSize)
		if _, err := f.ReadAt(got[:size], int64(n)*slotSize); err != nil {
			diff.add("slot %d: %v", n, err)
			continue
		}
		if loose[n] {
			continue
		}
		slot := make([]byte, size)
		copy(slot, want[n].bytes())
		diff.bytes(fmt.Sprintf("slot %d", n), got[:size], slot)
	}
	return diff.result()
}

func (d *device) capacity() (int64, error) { return rig.DeviceSize(d.path) }

// differences collects what differs; the first few are told.
type differences struct {
	first []string
	count int
}

func (d *differences) add(format string, args ...any) {
	if d.count++; len(d.first) < 5 {
		d.first = append(d.first, fmt.Sprintf(format, args...))
	}
}

// bytes compares two contents and tells where they part.
func (d *differences) bytes(what string, got, want []byte) {
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	d.add("%s: %d bytes, want %d; they differ from byte %d on (%.8x, want %.8x)",
		what, len(got), len(want), at, got[at:], want[at:])
}

func (d *differences) result() error {
	if d.count == 0 {
		return nil
	}
	return fmt.Errorf("%d differences: %s", d.count, strings.Join(d.first, "; "))
}
