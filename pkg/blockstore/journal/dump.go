package journal

import (
	"fmt"
	"io"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// Dump prints a segment for a person: its header, one line a record, and how it ends.
func Dump(w io.Writer, fsys vfs.FS, name string) error {
	f, err := fsys.OpenReadOnly(name)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("dump %s: %w", name, err)
	}
	page := make([]byte, wal.PageSize)
	if _, err := f.ReadAt(page, 0); err != nil {
		return fmt.Errorf("dump %s: %w", name, err)
	}
	h, err := DecodeHeader(page)
	if err != nil {
		return fmt.Errorf("dump %s: %w", name, err)
	}
	fmt.Fprintf(w, "journal segment of %d bytes, store %x\n", size, h.Store)
	if h.Owner == [16]byte{} {
		_, err := fmt.Fprintln(w, "  free")
		return err
	}
	fmt.Fprintf(w, "  volume v-%x  epoch %d  log %d  segment %d\n", h.Owner, h.Epoch, h.Log, h.Number)
	fmt.Fprintf(w, "  first sequence %d  logs before end at %d (epoch %d, log %d)  catalog commit %d\n",
		h.FirstSeq, h.PrevEnd, h.PrevEpoch, h.PrevLog, h.Commit)
	sc := wal.NewScanner(f, size, wal.PageSize, h.Owner, h.Epoch, h.Log, h.FirstSeq)
	for {
		at := sc.Offset()
		rec, _, _, _, ok, err := sc.Next()
		if err != nil {
			return fmt.Errorf("dump %s: %w", name, err)
		}
		if !ok {
			break
		}
		fmt.Fprintf(w, "  @%-10d seq %-8d synced %-8d %-6v offset %d length %d\n", at, rec.Seq, rec.Synced, rec.Type, rec.Offset, rec.Length)
	}
	if err := sc.CheckTail(); err != nil {
		_, err := fmt.Fprintf(w, "  DAMAGED: %v\n", err)
		return err
	}
	_, err = fmt.Fprintf(w, "  ends at offset %d\n", sc.Offset())
	return err
}
