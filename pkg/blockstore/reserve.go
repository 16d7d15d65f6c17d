package blockstore

import (
	"errors"
	"fmt"
	"path"
	"sync"

	"github.com/k8ns/granary/pkg/vfs"
)

// reserve is disk space kept in allocated files, so that folding what is unfolded,
// deleting and collecting go on when the disk is full (I9). Each journal segment in
// use has a file of its own size and a sixteenth (what folding it can append at most),
// and collection has some. A fold that meets a full disk gives up one file at a time;
// no segment is handed to a writer before all are back.
type reserve struct {
	fsys      vfs.FS
	dir       string
	fileBytes int64
	base      int // files beside those for segments

	mu struct {
		sync.Mutex
		files []string
		next  int
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
	return r, nil
}

// ensure allocates what is missing for segments in use. ErrNoSpace if the disk is full.
func (r *reserve) ensure(segments int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.mu.files) < r.base+segments {
		full := path.Join(r.dir, fmt.Sprintf("%08d", r.mu.next))
		r.mu.next++
		if err := r.allocate(full); err != nil {
			return fmt.Errorf("allocate reserve: %w", err)
		}
		r.mu.files = append(r.mu.files, full)
	}
	return nil
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

// release gives one file's space back to the disk; false if there is none left.
func (r *reserve) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.mu.files)
	if n == 0 {
		return false
	}
	full := r.mu.files[n-1]
	r.mu.files = r.mu.files[:n-1]
	return r.fsys.Remove(full) == nil
}

func (r *reserve) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(len(r.mu.files)) * r.fileBytes
}
