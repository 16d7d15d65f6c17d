package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/k8ns/granary/test/rig"
)

// rigRecord is a file of records that is appended to and synced, one a round.
type rigRecord struct {
	*rig.Records
	name string
}

func startRecords(dir string, round int) (*rigRecord, error) {
	name := fmt.Sprintf("records-%d", round)
	// The name must be there after the crash: the judge expects what is synced.
	r, err := rig.StartRecords(filepath.Join(dir, name), uint32(round), 4000, 0)
	return &rigRecord{r, name}, err
}

const (
	current = "current"
	next    = "next"
)

// renamer replaces a file by a new one again and again, each with the next number, as
// programs do that save a file: write beside it, sync, rename, sync the directory.
//
// A file system that has died may answer the sync of a directory with success, see
// docs/decisions/0015, but it makes no file afterwards and never again. So a number counts
// as synced when the file for the next one has been made.
type renamer struct {
	dir    string
	begun  atomic.Int64
	synced atomic.Int64
}

func (r *renamer) run() {
	for n := int64(1); ; n++ {
		f, err := os.Create(filepath.Join(r.dir, next))
		if err != nil {
			return
		}
		r.synced.Store(n - 1)
		r.begun.Store(n)
		if r.replace(f, n) != nil {
			return
		}
	}
}

// replace puts the n-th content into a new file, and that in the place of the last one.
func (r *renamer) replace(f *os.File, n int64) error {
	_, err := f.Write(numbered(n))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(r.dir, current)); err != nil {
		return err
	}
	d, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// numbered is the content of the file with a number.
func numbered(n int64) []byte {
	b := make([]byte, 8, 6000)
	binary.LittleEndian.PutUint64(b, uint64(n))
	for len(b) < 6000 {
		b = append(b, byte(n)+byte(len(b)))
	}
	return b
}

// judge looks at the file below a directory: it must hold one number, whole, from the
// given bounds.
func judgeRenames(dir string, atLeast, atMost int64) error {
	name := filepath.Join(dir, current)
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) && atLeast == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if len(b) < 8 {
		return fmt.Errorf("%s has %d bytes", name, len(b))
	}
	n := int64(binary.LittleEndian.Uint64(b))
	if n < atLeast || n > atMost || string(b) != string(numbered(n)) {
		return fmt.Errorf("%s has number %d, must be %d to %d, whole", name, n, atLeast, atMost)
	}
	return nil
}
