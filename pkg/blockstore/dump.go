package blockstore

import (
	"errors"
	"fmt"
	"io"

	"github.com/k8ns/granary/pkg/blockstore/blockmap"
	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// DumpFile prints a file of a store for a person, whatever its kind: store header,
// catalog log, journal segment, chunk file (with its map nodes), or one map node of
// 4096 bytes. It needs no lock and trusts nothing.
func DumpFile(w io.Writer, fsys vfs.FS, name string) error {
	f, err := fsys.OpenReadOnly(name)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	defer f.Close()
	var head [8]byte
	if _, err := f.ReadAt(head[:], 0); errors.Is(err, io.EOF) {
		return fmt.Errorf("dump %s: shorter than any Granary file: %w", name, wal.ErrFormat)
	} else if err != nil {
		return fmt.Errorf("dump %s: %w", name, err)
	}
	switch magic := string(head[:4]); {
	case magic == "GRST":
		return dumpHeader(w, fsys, name)
	case magic == "GRCL":
		return catalog.Dump(w, fsys, name)
	case magic == "GRJS":
		return journal.Dump(w, fsys, name)
	case magic == "GRCF":
		return dedup.Dump(w, fsys, name, blockmap.DumpNode)
	case magic[:2] == "GN":
		page := make([]byte, BlockSize)
		if _, err := f.ReadAt(page, 0); err != nil {
			return fmt.Errorf("dump %s: a map node of %d bytes: %w", name, BlockSize, err)
		}
		return blockmap.DumpNode(w, page)
	default:
		return fmt.Errorf("dump %s: begins with %q: not a store header, catalog log, journal segment, chunk file or map node: %w", name, magic, wal.ErrFormat)
	}
}

func dumpHeader(w io.Writer, fsys vfs.FS, name string) error {
	page, err := vfs.ReadFile(fsys, name)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	h, err := decodeStoreHeader(page)
	if err != nil {
		return fmt.Errorf("dump %s: %w", name, err)
	}
	_, err = fmt.Fprintf(w, "store header\n  store              %x\n  commit at last clean stop %d\n", h.store, h.commit)
	return err
}
