package vfs

import (
	"errors"
	"fmt"
	"io"
	"path"
)

// WriteFileAtomic makes data the content of the file name, durably: after a crash the
// file has the old content or the new one, and the new one once this returned nil.
// Calls for the same name must not run at the same time. After an error either may be
// found, and name+".tmp" may be left behind; the next call takes it away.
//
//	openat(name.tmp, O_CREAT|O_EXCL)
//	                            EEXIST: unlink(name.tmp) and again
//	pwrite64(name.tmp, data)
//	fsync(name.tmp)             the content before the name that shows it
//	close(name.tmp)
//	rename(name.tmp, name)
//	fsync(directory)            the name
func WriteFileAtomic(fsys FS, name string, data []byte) error {
	tmp := name + ".tmp"
	err := writeTemp(fsys, tmp, data)
	if err == nil {
		err = fsys.Rename(tmp, name)
	}
	if err != nil {
		_ = fsys.Remove(tmp) // the disk may be full; the error to tell is err
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := fsys.SyncDir(path.Dir(name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// writeTemp writes data to the new file tmp and syncs it.
func writeTemp(fsys FS, tmp string, data []byte) error {
	f, err := fsys.Create(tmp)
	if errors.Is(err, ErrExist) {
		if err := fsys.Remove(tmp); err != nil {
			return err
		}
		f, err = fsys.Create(tmp)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ReadFile returns the content of the file name.
func ReadFile(fsys FS, name string) ([]byte, error) {
	f, err := fsys.OpenReadOnly(name)
	if err != nil {
		return nil, err
	}
	data, err := readAll(f)
	return data, errors.Join(err, f.Close())
}

func readAll(f File) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if n == len(data) && errors.Is(err, io.EOF) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return data, nil
}
