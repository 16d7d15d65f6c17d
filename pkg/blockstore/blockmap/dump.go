package blockmap

import (
	"bytes"
	"fmt"
	"io"
)

// DumpNode writes what a page holds to w, a line for each entry. What it cannot decode
// is an error as from DecodeNode; otherwise errors come from w.
func DumpNode(w io.Writer, page []byte) error {
	n, err := DecodeNode(page)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "map node: level %d, %d entries, %d chunk IDs, %d bytes used\n",
		n.Level(), n.Len(), len(n.ids), n.size())
	for i := range n.Len() {
		if n.Level() > 0 {
			c := n.Child(i)
			at := c.Node.String()
			if c.Node.IsZero() {
				at = fmt.Sprintf("self/%d", c.Node.Slot)
			}
			fmt.Fprintf(&b, "  from %d: node %s\n", c.First, at)
			continue
		}
		e := n.Extent(i)
		fmt.Fprintf(&b, "  %d+%d: %s/%d", e.First, e.Count, e.Chunk, e.Slot)
		if e.Damaged != 0 {
			fmt.Fprintf(&b, ", damaged sectors %08b", e.Damaged)
		}
		b.WriteByte('\n')
	}
	_, err = w.Write(b.Bytes())
	return err
}
