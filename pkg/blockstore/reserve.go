package blockstore

import (
	"errors"
	"fmt"
	"path"
	"sync"
	"sync/atomic"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// reserve is disk space kept in allocated files, so that folding what is unfolded,
// deleting and collecting go on when the disk is full (I9). It covers the debt of the
// store, which is what folding all records not folded yet can append at most (foldDebt),
// and collection has some beside that. A fold that meets a full disk gives up one file at
// a time; no record is taken from a writer before all are back.
type reserve struct {
	fsys      vfs.FS
	dir       string
	fileBytes int64
	base      int // files beside those for the debt

	debt    atomic.Int64 // bytes that folding can append at most
	covered atomic.Int64 // bytes of the files that are there for it

	mu struct {
		sync.Mutex
		files []string
		next  int
		lent  int // files given up for the collection that is under way
	}
}

func openReserve(fsys vfs.FS, dir string, segmentBytes, baseBytes int64) (*reserve, error) {
	r := &reserve{fsys: fsys, dir: dir, fileBytes: segmentBytes + segmentBytes/16}
	r.base = int((baseBytes + r.fileBytes - 1) / r.fileBytes)
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("open reserve: %w", err)
	}
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open reserve: %w", err)
	}
	for _, name := range names {
		full := path.Join(dir, name)
		info, err := fsys.Stat(full)
		if err != nil {
			return nil, fmt.Errorf("open reserve: %w", err)
		}
		var n int
		if _, err := fmt.Sscanf(name, "%08d", &n); err == nil {
			r.mu.next = max(r.mu.next, n+1)
		}
		if info.Size != r.fileBytes || info.Used < info.Size { // half made, or of another setting
			if err := fsys.Remove(full); err != nil {
				return nil, fmt.Errorf("open reserve: %w", err)
			}
			continue
		}
		r.mu.files = append(r.mu.files, full)
	}
	r.count()
	return r, nil
}

// count says how much of the debt the files cover. Called with r.mu held, or before
// anybody else knows r.
func (r *reserve) count() { r.covered.Store(int64(len(r.mu.files)-r.base) * r.fileBytes) }

// charge adds n bytes to the debt and sees that it is covered; after an error nothing was
// added. ErrNoSpace if the disk is full.
func (r *reserve) charge(n int64) error {
	if r.debt.Add(n) <= r.covered.Load() {
		return nil
	}
	err := r.ensure(0)
	if err != nil {
		r.debt.Add(-n)
	}
	return err
}

// chargeHole is charge on a full disk, of which free bytes are free, for a hole: it may use
// a quarter of the part for collection too, and what is free. A hole must not wait as a write
// does: the kernel makes holes with the same thread that hands over its reads, and they may
// be what gives space back. errWait if folding makes room for it, else ErrNoSpace.
func (r *reserve) chargeHole(n, free int64) error {
	room := r.covered.Load() + int64(r.base)*r.fileBytes/4 + free
	if r.debt.Add(n) <= room {
		return nil
	}
	r.debt.Add(-n)
	if n <= room {
		return errWait
	}
	return fmt.Errorf("no space is left for holes either: %w", ErrNoSpace)
}

// pay takes n bytes from the debt.
func (r *reserve) pay(n int64) { r.debt.Add(-n) }

// wanted is how many files there should be if the debt grew by more bytes. Called with
// r.mu held.
func (r *reserve) wanted(more int64) int {
	return r.base + int((r.debt.Load()+more+r.fileBytes-1)/r.fileBytes)
}

// ensure allocates what is missing for collection, the debt and more bytes of it.
// ErrNoSpace if the disk is full.
func (r *reserve) ensure(more int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.count()
	if err := r.leaveLent(more); err != nil {
		return fmt.Errorf("allocate reserve: %w", err)
	}
	for len(r.mu.files) < r.wanted(more) {
		full := path.Join(r.dir, fmt.Sprintf("%08d", r.mu.next))
		r.mu.next++
		if err := r.allocate(full); err != nil {
			return fmt.Errorf("allocate reserve: %w", err)
		}
		r.mu.files = append(r.mu.files, full)
	}
	return nil
}

// leaveLent is ErrNoSpace if allocating what is missing would take what a collection was
// given: it would start again without end. Called with r.mu held.
func (r *reserve) leaveLent(more int64) error {
	missing := r.wanted(more) - len(r.mu.files)
	if r.mu.lent == 0 || missing <= 0 {
		return nil
	}
	space, err := r.fsys.Space(r.dir)
	if err == nil && space.Free < int64(missing+r.mu.lent)*r.fileBytes {
		err = fmt.Errorf("a collection uses it: %w", ErrNoSpace)
	}
	return err
}

func (r *reserve) allocate(full string) error {
	f, err := r.fsys.Create(full)
	if err != nil {
		return err
	}
	err = f.Allocate(0, r.fileBytes)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		err = errors.Join(err, r.fsys.Remove(full))
	}
	return err
}

// trim lets go of what has been more than twice of what is needed.
func (r *reserve) trim() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.count()
	for len(r.mu.files) > 2*r.wanted(0)+1 {
		if err := r.drop(); err != nil {
			return err
		}
	}
	return nil
}

// drop removes the last file. Called with r.mu held.
func (r *reserve) drop() error {
	n := len(r.mu.files)
	full := r.mu.files[n-1]
	r.mu.files = r.mu.files[:n-1]
	if err := r.fsys.Remove(full); err != nil {
		return fmt.Errorf("give up reserve: %w", err)
	}
	return nil
}

// release gives one file's space back to the disk; false if there is none left.
func (r *reserve) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.count()
	return len(r.mu.files) > 0 && r.drop() == nil
}

// lend is release for the collection that is under way: what it was given is not taken back
// before ended.
func (r *reserve) lend() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.count()
	if len(r.mu.files) == 0 || r.drop() != nil {
		return false
	}
	r.mu.lent++
	return true
}

// ended is the end of that collection.
func (r *reserve) ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.lent = 0
}

// foldDebt is what folding a record of n bytes at off can append at most, in bytes: the
// blocks that it touches (of a hole only those that keep a part), with list entry and group
// header; and two map nodes, for what lies in one leaf, or at the border of two, and above.
func foldDebt(t wal.Type, off, n int64) int64 {
	if t == wal.TypeMark {
		return 0
	}
	blocks := (roundUp(off+n, BlockSize) - off/BlockSize*BlockSize) / BlockSize
	if t == wal.TypeHole {
		ends := int64(0)
		if off%BlockSize != 0 {
			ends++
		}
		if (off+n)%BlockSize != 0 {
			ends++
		}
		blocks = min(blocks, ends)
	}
	const perBlock, perRecord = BlockSize + 32, 2*(BlockSize+32) + 256
	return blocks*perBlock + perRecord
}

func (r *reserve) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(len(r.mu.files)) * r.fileBytes
}
