// Package blob is the home of chunk files: it creates, lists, seals, reads and
// removes whole files by name and knows nothing of what is in them.
//
// Dir keeps them in a directory. The methods that its users call are few, so that
// a bucket can stand behind the same ones.
package blob

import (
	"container/list"
	"fmt"
	"path"
	"sync"

	"github.com/k8ns/granary/pkg/vfs"
)

// DefaultDescriptors is how many idle descriptors a Dir keeps open.
const DefaultDescriptors = 512

// Dir is a directory of files. All methods may be called concurrently.
type Dir struct {
	fsys vfs.FS
	path string
	max  int

	mu struct {
		sync.Mutex
		idle *list.List // of *File: a descriptor is open and nobody uses it; oldest first
	}
}

// Info describes a file in a Dir.
type Info struct {
	Name string
	Size int64 // bytes
}

// NewDir is the directory path, made durably unless it is there. It keeps at most
// descriptors idle files open; 0 means DefaultDescriptors.
func NewDir(fsys vfs.FS, path string, descriptors int) (*Dir, error) {
	d, err := existing(fsys, path, descriptors), fsys.MkdirAll(path)
	if err != nil {
		return nil, fmt.Errorf("make chunk directory %s: %w", path, err)
	}
	return d, nil
}

// ExistingDir is NewDir for a directory that is there: it writes nothing.
func ExistingDir(fsys vfs.FS, path string, descriptors int) *Dir {
	return existing(fsys, path, descriptors)
}

func existing(fsys vfs.FS, path string, descriptors int) *Dir {
	if descriptors <= 0 {
		descriptors = DefaultDescriptors
	}
	d := &Dir{fsys: fsys, path: path, max: descriptors}
	d.mu.idle = list.New()
	return d
}

// List lists the files in the directory by name.
func (d *Dir) List() ([]Info, error) {
	names, err := d.fsys.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", d.path, err)
	}
	var out []Info
	for _, name := range names {
		st, err := d.fsys.Stat(path.Join(d.path, name))
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", d.path, err)
		}
		if !st.IsDir {
			out = append(out, Info{Name: name, Size: st.Size})
		}
	}
	return out, nil
}

// Sync makes removals durable that ended before the call.
func (d *Dir) Sync() error {
	err := d.fsys.SyncDir(d.path)
	if err != nil {
		err = fmt.Errorf("sync %s: %w", d.path, err)
	}
	return err
}

// Create makes a new file open for writing. Its name is durable when Create returns.
func (d *Dir) Create(name string) (*File, error) {
	h, err := d.fsys.Create(path.Join(d.path, name))
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	if err := d.fsys.SyncDir(d.path); err != nil {
		h.Close()
		d.fsys.Remove(path.Join(d.path, name))
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	f := &File{dir: d, w: h}
	f.mu.name, f.mu.h = name, h
	return f, nil
}

// OpenWrite opens an existing file for writing.
func (d *Dir) OpenWrite(name string) (*File, error) {
	h, err := d.fsys.Open(path.Join(d.path, name))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	f := &File{dir: d, w: h}
	f.mu.name, f.mu.h = name, h
	return f, nil
}

// File is a file to be read. It is opened by its first reader.
func (d *Dir) File(name string) *File {
	f := &File{dir: d}
	f.mu.name = name
	return f
}

// Close closes every idle descriptor. Files in use are closed by their last reader
// as further ones displace them; Dir stays usable.
func (d *Dir) Close() {
	d.mu.Lock()
	old := d.mu.idle
	d.mu.idle = list.New()
	d.mu.Unlock()
	for e := old.Front(); e != nil; e = e.Next() {
		e.Value.(*File).closeIdle()
	}
}
