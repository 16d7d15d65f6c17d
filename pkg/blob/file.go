package blob

import (
	"container/list"
	"errors"
	"fmt"
	"path"
	"sync"

	"github.com/k8ns/granary/pkg/vfs"
)

// ErrSealed is returned by writes to a file that is not open for writing.
var ErrSealed = errors.New("file is not open for writing")

// File is a file of a Dir, whatever its name is at the moment. Readers share one
// descriptor, which stays open while somebody uses it: a removed file can be read to
// the end by who had begun. All methods may be called concurrently, but only one
// goroutine may write, seal or finish.
type File struct {
	dir *Dir
	w   vfs.File // descriptor for writing; nil when there is none. Owned by the writer

	// Lock order: File.mu, then Dir.mu.
	mu struct {
		sync.Mutex
		name    string
		h       vfs.File      // nil when closed
		users   int           // readers between acquire and release
		idle    *list.Element // in dir.mu.idle, when open, unused and not being written
		removed bool
		done    bool // nobody writes it: the descriptor may be closed when idle
	}
}

// Name is the file's name at the moment.
func (f *File) Name() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.name
}

// ReadAt is io.ReaderAt. A file that was removed before the call is
// vfs.ErrNotExist.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	h, err := f.acquire()
	if err != nil {
		return 0, err
	}
	defer f.release()
	return h.ReadAt(p, off)
}

// Hold keeps the file readable until release is called, even if it is removed
// meanwhile.
func (f *File) Hold() (release func(), err error) {
	if _, err := f.acquire(); err != nil {
		return nil, err
	}
	return f.release, nil
}

// DropCache is vfs.File's.
func (f *File) DropCache() error {
	h, err := f.acquire()
	if err != nil {
		return err
	}
	defer f.release()
	return h.DropCache()
}

// Writer is the descriptor for writing; nil when there is none.
func (f *File) Writer() vfs.File { return f.w }

// Seal gives a file that is synced its final name, durably, and ends writing.
func (f *File) Seal(name string) error {
	if f.w == nil {
		return ErrSealed
	}
	old := f.Name()
	d := f.dir
	if err := d.fsys.Rename(path.Join(d.path, old), path.Join(d.path, name)); err != nil {
		return fmt.Errorf("seal %s: %w", old, err)
	}
	f.mu.Lock()
	f.mu.name = name
	f.mu.Unlock()
	if err := d.fsys.SyncDir(d.path); err != nil {
		return fmt.Errorf("seal %s: %w", old, err)
	}
	f.Finish()
	return nil
}

// Finish ends writing without sealing: from here on the file is only read.
func (f *File) Finish() {
	if f.w == nil {
		return
	}
	f.w = nil
	f.mu.Lock()
	f.mu.done = true
	f.park()
	f.mu.Unlock()
	f.dir.shrink()
}

// Close closes the descriptor of a file that nobody writes, unless it is in use; the next
// reader opens it again.
func (f *File) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unpark()
	f.closeUnused()
}

// Remove removes the file. Who reads it at the moment goes on; later reads are
// vfs.ErrNotExist. The removal is not synced: until Dir.Sync a crash may bring
// the file back.
func (f *File) Remove() error {
	f.mu.Lock()
	name := f.mu.name
	f.mu.removed = true
	f.mu.done = true
	f.w = nil
	f.unpark()
	f.closeUnused()
	f.mu.Unlock()
	if err := f.dir.fsys.Remove(path.Join(f.dir.path, name)); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// acquire returns the open descriptor and counts a user.
func (f *File) acquire() (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.removed {
		return nil, fmt.Errorf("%s: %w", f.mu.name, vfs.ErrNotExist)
	}
	if f.mu.h == nil {
		h, err := f.dir.fsys.OpenReadOnly(path.Join(f.dir.path, f.mu.name))
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", f.mu.name, err)
		}
		f.mu.h, f.mu.done = h, true
	}
	f.unpark()
	f.mu.users++
	return f.mu.h, nil
}

func (f *File) release() {
	f.mu.Lock()
	f.mu.users--
	if f.mu.removed {
		f.closeUnused()
	} else {
		f.park()
	}
	f.mu.Unlock()
	f.dir.shrink()
}

// park puts an unused open descriptor at the young end of the idle list. f.mu is
// held.
func (f *File) park() {
	if f.mu.h == nil || f.mu.users > 0 || !f.mu.done || f.mu.idle != nil || f.mu.removed {
		return
	}
	f.dir.mu.Lock()
	f.mu.idle = f.dir.mu.idle.PushBack(f)
	f.dir.mu.Unlock()
}

// unpark takes the file off the idle list. f.mu is held.
func (f *File) unpark() {
	if f.mu.idle == nil {
		return
	}
	f.dir.mu.Lock()
	f.dir.mu.idle.Remove(f.mu.idle) // does nothing if shrink or Close took it off
	f.dir.mu.Unlock()
	f.mu.idle = nil
}

// closeUnused closes the descriptor if nobody uses it. f.mu is held.
func (f *File) closeUnused() {
	if f.mu.h != nil && f.mu.users == 0 {
		f.mu.h.Close()
		f.mu.h = nil
	}
}

// closeIdle closes the descriptor of a file that was taken off the idle list,
// unless somebody has begun to use it.
func (f *File) closeIdle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.idle != nil && f.mu.users == 0 {
		f.mu.idle = nil
		f.closeUnused()
	}
}

// shrink closes the descriptors that have been idle longest until the limit holds.
func (d *Dir) shrink() {
	for {
		d.mu.Lock()
		if d.mu.idle.Len() <= d.max {
			d.mu.Unlock()
			return
		}
		e := d.mu.idle.Front()
		d.mu.idle.Remove(e)
		d.mu.Unlock()
		e.Value.(*File).closeIdle()
	}
}

// MoveTo moves the file into another directory of the same filesystem, made if it is
// not there, durably and without overwriting anything; it returns the name that it has
// there. Later reads are vfs.ErrNotExist, as after Remove.
func (f *File) MoveTo(dir string) (string, error) {
	d := f.dir
	f.mu.Lock()
	name := f.mu.name
	f.mu.Unlock()
	if err := d.fsys.MkdirAll(dir); err != nil {
		return "", fmt.Errorf("move %s: %w", name, err)
	}
	to, err := d.freeName(dir, name)
	if err != nil {
		return "", fmt.Errorf("move %s: %w", name, err)
	}
	if err := d.fsys.Rename(path.Join(d.path, name), path.Join(dir, to)); err != nil {
		return "", fmt.Errorf("move %s: %w", name, err)
	}
	f.mu.Lock()
	f.mu.removed, f.mu.done, f.w = true, true, nil
	f.unpark()
	f.closeUnused()
	f.mu.Unlock()
	for _, p := range []string{dir, d.path} { // a file is in both rather than in none
		if err := d.fsys.SyncDir(p); err != nil {
			return "", fmt.Errorf("move %s: %w", name, err)
		}
	}
	return to, nil
}

// freeName is name, or with a number behind it, so that the directory has no such file.
func (d *Dir) freeName(dir, name string) (string, error) {
	for n := 0; ; n++ {
		to := name
		if n > 0 {
			to = fmt.Sprintf("%s.%d", name, n)
		}
		_, err := d.fsys.Stat(path.Join(dir, to))
		if errors.Is(err, vfs.ErrNotExist) {
			return to, nil
		}
		if err != nil {
			return "", err
		}
	}
}
