package blockstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

const headerName = "granary.store"

var headerMagic = wal.Magic{'G', 'R', 'S', 'T'}

// storeHeader is the file granary.store (FORMAT.md, section 2).
type storeHeader struct {
	store  [16]byte
	commit uint64 // catalog commit number at the last clean stop
	// The garbage that was estimated then (see collector), in logical bytes.
	pending, held int64
}

func (h storeHeader) encode() []byte {
	page := make([]byte, wal.PageSize)
	wal.Head{Magic: headerMagic, Store: h.store}.Put(page)
	binary.LittleEndian.PutUint64(page[32:], h.commit)
	binary.LittleEndian.PutUint64(page[40:], uint64(max(h.pending, 0)))
	binary.LittleEndian.PutUint64(page[48:], uint64(max(h.held, 0)))
	wal.SealPage(page)
	return page
}

func decodeStoreHeader(page []byte) (h storeHeader, err error) {
	if len(page) < wal.PageSize {
		return h, fmt.Errorf("%d bytes instead of %d: %w", len(page), wal.PageSize, ErrCorrupt)
	}
	head, err := wal.ParseHead(page, headerMagic)
	if err != nil {
		return h, err
	}
	if len(page) != wal.PageSize {
		return h, fmt.Errorf("%d bytes instead of %d: %w", len(page), wal.PageSize, ErrCorrupt)
	}
	if err := wal.CheckPage(page); err != nil {
		return h, err
	}
	if len(bytes.TrimLeft(page[56:wal.PageSize-4], "\x00")) > 0 {
		return h, fmt.Errorf("bytes are set that must be zero: %w", ErrCorrupt)
	}
	number := binary.LittleEndian.Uint64
	h = storeHeader{store: head.Store, commit: number(page[32:]), pending: int64(number(page[40:])), held: int64(number(page[48:]))}
	if h.pending < 0 || h.held < 0 {
		return storeHeader{}, fmt.Errorf("an estimate of 2^63 bytes and more: %w", ErrCorrupt)
	}
	return h, nil
}

// readStoreHeader reads the header of the store in dir; vfs.ErrNotExist if there is none.
func readStoreHeader(fsys vfs.FS, dir string) (storeHeader, error) {
	name := path.Join(dir, headerName)
	page, err := vfs.ReadFile(fsys, name)
	if err != nil {
		return storeHeader{}, err
	}
	h, err := decodeStoreHeader(page)
	if err != nil {
		return h, fmt.Errorf("%s: %w", name, err)
	}
	return h, nil
}

func writeStoreHeader(fsys vfs.FS, dir string, h storeHeader) error {
	return vfs.WriteFileAtomic(fsys, path.Join(dir, headerName), h.encode())
}

// openStoreHeader reads the header, or makes a store in a directory that holds none.
func openStoreHeader(fsys vfs.FS, dir string, newID func() [16]byte) (storeHeader, error) {
	h, err := readStoreHeader(fsys, dir)
	if !errors.Is(err, vfs.ErrNotExist) {
		return h, err
	}
	for _, sub := range []string{dirCatalog, dirChunks, dirJournal} {
		names, err := fsys.ReadDir(path.Join(dir, sub))
		if err != nil && !errors.Is(err, vfs.ErrNotExist) {
			return h, err // it may well hold a store
		}
		if len(names) > 0 {
			return h, fmt.Errorf("%s holds a store, but its header %s is missing: %w", dir, headerName, ErrCorrupt)
		}
	}
	h = storeHeader{store: newID()}
	return h, writeStoreHeader(fsys, dir, h)
}
