package dedup

import (
	"fmt"
	"io"
	"path"

	"github.com/k8ns/granary/pkg/vfs"
)

// Dump prints a chunk file for a person. It goes on as far as the file can be read;
// the first thing wrong that it could not pass is the error. node, if not nil, prints
// the content of each slot of a node chunk.
func Dump(w io.Writer, fsys vfs.FS, name string, node func(w io.Writer, page []byte) error) error {
	h, err := fsys.OpenReadOnly(name)
	if err != nil {
		return err
	}
	defer h.Close()
	size, err := h.Size()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s: %d bytes\n", path.Base(name), size)
	if err := dumpHeader(w, h, size); err != nil {
		return err
	}
	end := dumpTrailer(w, h, size)
	r := newWindow(h, end)
	for at := int64(fileHeaderSize); at < end; {
		c, _, err := readWhole(r, at, end)
		if c == nil {
			next, _ := nextHead(r, at+1)
			fmt.Fprintf(w, "%10d  no chunk: %v\n", at, err)
			if next < 0 {
				return fmt.Errorf("%s at %d: %w", name, at, err)
			}
			at = next
			continue
		}
		state := "whole"
		if err != nil {
			state = err.Error()
		}
		k := &c.head
		fmt.Fprintf(w, "%10d  chunk %s  %-5s %4d of %4d slots  groups of %-2d  front %d list %d payload %d  commit %d  %s\n",
			at, k.id, k.kind, k.present, k.slots, 1<<k.shift, k.front, k.list, k.payload, k.commit, state)
		dumpGroups(w, h, at, k)
		if err == nil && k.kind == KindNodes && node != nil {
			if err := dumpNodes(w, h, at, k, node); err != nil {
				fmt.Fprintf(w, "%10s  %v\n", "", err)
			}
		}
		at += k.size()
	}
	return nil
}

func dumpHeader(w io.Writer, r io.ReaderAt, size int64) error {
	b := make([]byte, min(size, fileHeaderSize))
	if _, err := r.ReadAt(b, 0); err != nil {
		return err
	}
	h, err := parseFileHeader(b)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%10d  header: store %x  epoch %d  counter %d  commit %d\n", 0, h.store, h.num.Epoch, h.num.Counter, h.commit)
	return nil
}

// dumpTrailer prints trailer and footer and returns where the chunks end.
func dumpTrailer(w io.Writer, r io.ReaderAt, size int64) int64 {
	b := make([]byte, trailerSize)
	if size < fileHeaderSize+trailerSize {
		return size
	}
	if _, err := r.ReadAt(b, size-trailerSize); err != nil {
		fmt.Fprintf(w, "%10d  trailer: %v\n", size-trailerSize, err)
		return size
	}
	t, err := parseTrailer(b)
	end := size - trailerSize - int64(t.footer)
	if err != nil || end < fileHeaderSize {
		fmt.Fprintf(w, "%10s  not sealed: %v\n", "", err)
		return size
	}
	fmt.Fprintf(w, "%10d  trailer: %d chunks  %d hooks  highest commit %d  content %x\n", size-trailerSize, t.chunks, t.hooks, t.commit, t.hash)
	b = make([]byte, t.footer)
	if _, err = r.ReadAt(b, end); err == nil {
		_, _, err = parseFooter(b, t.chunks, t.hooks, end)
	}
	if err != nil {
		fmt.Fprintf(w, "%10d  footer: %v\n", end, err)
	}
	return end
}

// dumpNodes prints every slot of a node chunk.
func dumpNodes(w io.Writer, r io.ReaderAt, at int64, h *chunkHead, node func(io.Writer, []byte) error) error {
	cs := newCodecs(1)
	defer cs.close()
	return eachSlot(cs, r, at, h, func(_ *tree, slot int, content []byte) error {
		fmt.Fprintf(w, "%10s  slot %d: ", "", slot)
		if err := node(w, content); err != nil {
			fmt.Fprintf(w, "%v\n", err)
		}
		return nil
	})
}

// dumpGroups prints how a chunk's groups are stored, in one line.
func dumpGroups(w io.Writer, r io.ReaderAt, at int64, h *chunkHead) {
	b := make([]byte, h.front)
	_, err := r.ReadAt(b, at+headSize)
	var f *front
	if err == nil {
		f, err = parseFront(*h, b)
	}
	if err != nil {
		fmt.Fprintf(w, "%10s  groups: %v\n", "", err)
		return
	}
	var n, bytes [CodecS2 + 1]int
	for _, g := range f.groups {
		if g.size > 0 {
			n[g.codec]++
			bytes[g.codec] += int(g.size)
		}
	}
	fmt.Fprintf(w, "%10s ", "")
	for c := range n {
		if n[c] > 0 {
			fmt.Fprintf(w, " %d groups %s, %d bytes;", n[c], Codec(c), bytes[c])
		}
	}
	fmt.Fprintln(w)
}
