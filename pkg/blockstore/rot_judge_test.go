package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

// rotFate is how a store answered for something that was done to its files.
type rotFate int

// Fates, the first that applies.
const (
	rotRefused  rotFate = iota // the store does not open, and says why
	rotFailed                  // a volume does not open, and says why
	rotRead                    // a read is an error that says where
	rotChecked                 // all reads are right, but check tells
	rotHarmless                // all reads are right, and check has nothing to say
	rotUnread                  // as harmless: nothing reads the byte
	rotFates
)

var rotFateNames = [rotFates]string{"refused at open", "volume fails closed", "error by read", "told by check", "harmless", "never read"}

// judge opens a rotten store and reads everything. An error is a violation: a wrong
// byte, an error that does not say what is wrong, or a loss that check does not tell.
func (x *rotStore) judge(fsys vfs.FS) (fate rotFate, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	told, checkErr := x.checkStopped(fsys)
	s, err := Open(fsys, testDir, rotOptions())
	if err != nil {
		if checkErr == nil {
			return 0, fmt.Errorf("does not open (%w), but can be checked", err)
		}
		return rotRefused, errors.Join(clearError(err), clearCheckError(checkErr))
	}
	defer s.Close()
	if checkErr != nil {
		return 0, fmt.Errorf("opens, but cannot be checked: %w", checkErr)
	}
	if got := rotListing(s); got != x.listing {
		return 0, fmt.Errorf("shows\n%s, want\n%s", got, x.listing)
	}
	r := rotReader{x: x, s: s, told: told}
	for _, id := range x.ids() {
		if err := r.image(id); err != nil {
			return 0, err
		}
	}
	switch {
	case r.failed:
		return rotFailed, nil
	case r.read:
		return rotRead, nil
	case len(told) > 0:
		return rotChecked, nil
	}
	return rotHarmless, nil
}

// ids lists volumes before snapshots, so that the latter are read when all is folded
// that can be.
func (x *rotStore) ids() (ids []string) {
	for id := range x.images {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int { return strings.Compare(b, a) })
	return ids
}

// checkStopped returns what check finds that was not wrong before.
func (x *rotStore) checkStopped(fsys vfs.FS) (told []Problem, err error) {
	err = CheckStopped(context.Background(), fsys, testDir, CheckOptions{ReadData: true}, func(p Problem) {
		if !x.known(p) {
			told = append(told, p)
		}
	})
	return told, err
}

// known tells whether a problem is of the block that is damaged from the beginning.
func (x *rotStore) known(p Problem) bool { return slices.Contains(x.knownProblems, p.String()) }

// clearError verifies that an error is of a known kind and names a file.
func clearError(err error) error {
	kind := false
	for _, is := range []error{ErrCorrupt, ErrFormat, ErrVersion, ErrOlder} {
		kind = kind || errors.Is(err, is)
	}
	if !kind {
		return fmt.Errorf("an error of no known kind: %w", err)
	}
	return namesFile(err)
}

// clearCheckError is clearError for a check, which makes nothing that it does not find.
func clearCheckError(err error) error {
	if errors.Is(err, vfs.ErrNotExist) {
		return namesFile(err)
	}
	return clearError(err)
}

func namesFile(err error) error {
	for _, name := range []string{".log", ".seg", ".chunks", ".open", headerName, dirCatalog} {
		if strings.Contains(err.Error(), name) {
			return nil
		}
	}
	return fmt.Errorf("an error that names no file: %w", err)
}

// rotReader reads the images of one rotten store.
type rotReader struct {
	x            *rotStore
	s            *Store
	told         []Problem
	failed, read bool
}

func (r *rotReader) image(id string) error {
	open := id
	if id[0] == 's' {
		r.fold()
		info, err := r.s.CreateVolume(VolumeSpec{Name: "clone of " + id, FromSnapshot: id})
		if err != nil {
			return r.closed(id, err)
		}
		open = info.ID
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	v, err := r.s.OpenVolume(ctx, open)
	if err != nil {
		return r.closed(id, err)
	}
	defer v.Close()
	return r.compare(id, v)
}

// fold folds what can be folded.
func (r *rotReader) fold() {
	for _, v := range r.s.mu.volumes {
		for range 100 {
			if did, err := r.s.foldOnce(v); !did || err != nil {
				break
			}
		}
	}
}

// closed takes a volume or snapshot that cannot be opened.
func (r *rotReader) closed(id string, err error) error {
	r.failed = true
	if !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%s does not open: %w", id, err)
	}
	if err := namesFile(err); err != nil {
		return err
	}
	if len(r.told) == 0 {
		return fmt.Errorf("%s does not open, but check found nothing: %w", id, err)
	}
	return nil
}

// compare reads an image: each block must be right or an error that says where, and
// then check must have named the image.
func (r *rotReader) compare(id string, v *Volume) error {
	im := r.x.images[id]
	got := rotBuffers.Get().(*[MinVolumeSize]byte)[:v.Size()]
	defer rotBuffers.Put((*[MinVolumeSize]byte)(got))
	var bad []int64
	if _, err := v.ReadAt(got, 0); err != nil {
		if bad, err = badBlocks(v, got, 0, nil); err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
	if state := im.shown(got, bad); state < im.least {
		return fmt.Errorf("%s shows state %d, at least %d was due", id, state, im.least)
	}
	fresh := false
	for _, b := range bad {
		fresh = fresh || !slices.Contains(im.broken, b)
	}
	if !fresh {
		return nil
	}
	r.read = true
	if !slices.ContainsFunc(r.told, func(p Problem) bool { return p.Volume == id || p.Snapshot == id }) {
		return fmt.Errorf("%s has lost blocks %v, but check does not name it: %v", id, bad, r.told)
	}
	return nil
}

// rotBuffers hold what was read of an image: a buffer a case would cost more than reading.
var rotBuffers = sync.Pool{New: func() any { return new([MinVolumeSize]byte) }}

// badBlocks reads the halves of what could not be read as a whole, down to single blocks;
// those that are errors are added to bad.
func badBlocks(v *Volume, p []byte, off int64, bad []int64) ([]int64, error) {
	if len(p) > BlockSize {
		half := int64(len(p)) / BlockSize / 2 * BlockSize
		for _, part := range []struct {
			p   []byte
			off int64
		}{{p[:half], off}, {p[half:], off + half}} {
			_, err := v.ReadAt(part.p, part.off)
			if err != nil {
				bad, err = badBlocks(v, part.p, part.off, bad)
			}
			if err != nil {
				return nil, err
			}
		}
		return bad, nil
	}
	_, err := v.ReadAt(p, off)
	if err == nil {
		return bad, nil
	}
	var re *ReadError
	if !errors.As(err, &re) || re.Offset < off || re.Offset >= off+BlockSize {
		return nil, fmt.Errorf("block %d: an error that does not say where: %w", off/BlockSize, err)
	}
	if !errors.Is(err, ErrMissing) {
		if err := namesFile(err); err != nil {
			return nil, err
		}
	}
	return append(bad, off/BlockSize), nil
}
