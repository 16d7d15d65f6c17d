package catalog

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/k8ns/granary/pkg/vfs"
)

// maxDumpValue is how much of a value Dump shows, in bytes.
const maxDumpValue = 4096

// Dump prints the log (or spare) in the file name for a person: a line for the header
// and for each record, its entries indented below it, and a line that says where and
// how the log ends. It prints what it can; then it returns the error of Open for a
// damaged log. It changes nothing.
func Dump(w io.Writer, fsys vfs.FS, name string) error {
	f, err := fsys.OpenReadOnly(name)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	err = dump(out, f)
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return errors.Join(err, out.Flush(), f.Close())
}

func dump(w io.Writer, f vfs.File) error {
	h, size, err := readHeader(f)
	if err != nil {
		return fmt.Errorf("header at offset 0: %w", err)
	}
	fmt.Fprintf(w, "log %d  epoch %d  store %x  size %d  checkpoint of commit %d  first record %d\n",
		h.log, h.epoch, h.store, size, h.commit, h.firstSeq)
	r := newLogReader(f, size, h)
	for {
		rec, payload, ok, err := r.next()
		if err != nil {
			return err
		}
		if !ok {
			fmt.Fprintf(w, "%10d  end: next record %d, %d bytes left\n", r.at, r.seq, size-r.at)
			return nil
		}
		fmt.Fprintf(w, "%10d  record %d  %v  commit %d  length %d  pages %d  synced %d\n",
			r.at, rec.Seq, rec.Type, rec.Offset, rec.Length, rec.Pages, rec.Synced)
		if err := decodeEntries(payload, func(key string, revision uint64, value []byte) error {
			return dumpEntry(w, key, revision, value)
		}); err != nil {
			return fmt.Errorf("%v record %d at offset %d: %w", rec.Type, rec.Seq, r.at, err)
		}
	}
}

// dumpEntry prints one entry; bytes that are no plain text are escaped.
func dumpEntry(w io.Writer, key string, revision uint64, value []byte) error {
	if value == nil {
		_, err := fmt.Fprintf(w, "            delete  %+q\n", key)
		return err
	}
	rest := ""
	if len(value) > maxDumpValue {
		rest = fmt.Sprintf(" and %d bytes more", len(value)-maxDumpValue)
		value = value[:maxDumpValue]
	}
	_, err := fmt.Fprintf(w, "            put     %+q  revision %d  %s%s\n", key, revision, plain(value), rest)
	return err
}

// plain is value as it is if that prints on one line, else quoted.
func plain(value []byte) string {
	for _, b := range value {
		if b < ' ' || b > '~' {
			return fmt.Sprintf("%+q", value)
		}
	}
	return string(value)
}
