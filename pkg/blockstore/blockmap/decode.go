package blockmap

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/k8ns/granary/pkg/dedup"
)

// corrupt is a dedup.ErrCorrupt with a reason.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), dedup.ErrCorrupt)
}

// zeros is what has to stand behind a node's used bytes.
var zeros [dedup.BlockSize]byte

// DecodeNode reads a page of dedup.BlockSize bytes, which it does not keep. It accepts
// any bytes; what is not exactly a node wraps dedup.ErrFormat (no magic),
// dedup.ErrVersion or dedup.ErrCorrupt. Children in the page's own chunk come back
// with a zero chunk ID.
func DecodeNode(page []byte) (*Node, error) {
	d, err := decodeHead(page)
	if err != nil {
		return nil, err
	}
	read := d.extent
	if d.node.level > 0 {
		read = d.child
	}
	for i := range d.entries {
		e, err := read()
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		d.node.entries = append(d.node.entries, e)
	}
	switch {
	case len(d.rest) > 0:
		return nil, corrupt("%d bytes behind the last entry", len(d.rest))
	case d.usedIDs != len(d.node.ids):
		return nil, corrupt("%d of %d chunk IDs used", d.usedIDs, len(d.node.ids))
	}
	return d.node, nil
}

// decoder is the state of decoding one page.
type decoder struct {
	node    *Node
	entries int    // stated number
	rest    []byte // used bytes not read yet
	at      uint64 // where the entry before ended (extents) or began (children)
	usedIDs int    // chunk IDs that an entry has named so far
}

// decodeHead reads everything before the entries.
func decodeHead(page []byte) (*decoder, error) {
	le := binary.LittleEndian
	switch {
	case len(page) != dedup.BlockSize:
		return nil, corrupt("node of %d bytes", len(page))
	case page[0] != 'G' || page[1] != 'N':
		return nil, fmt.Errorf("magic %x is not a map node's: %w", page[:2], dedup.ErrFormat)
	case page[2] != nodeVersion:
		return nil, fmt.Errorf("map node version %d, known is %d: %w", page[2], nodeVersion, dedup.ErrVersion)
	case page[3] >= MaxLevels:
		return nil, corrupt("level %d", page[3])
	case !bytes.Equal(page[10:headSize], zeros[10:headSize]):
		return nil, corrupt("reserved bytes are not zero")
	}
	entries, ids, used := int(le.Uint16(page[4:])), int(le.Uint16(page[6:])), int(le.Uint16(page[8:]))
	table := headSize + chunkIDSize*ids
	smallest := leafEntryMin
	if page[3] > 0 {
		smallest = innerEntryMin
	}
	switch {
	case used > len(page) || table+smallest*entries > used:
		return nil, corrupt("%d bytes used by %d chunk IDs and %d entries", used, ids, entries)
	case page[3] > 0 && entries == 0:
		return nil, corrupt("inner node without a child")
	case !bytes.Equal(page[used:], zeros[used:]):
		return nil, corrupt("bytes behind the used ones are not zero")
	}
	n := &Node{level: page[3], entries: make([]entry, 0, entries), ids: make([]dedup.ChunkID, ids)}
	for i := range n.ids {
		copy(n.ids[i][:], page[headSize+chunkIDSize*i:])
		if n.ids[i].IsZero() {
			return nil, corrupt("chunk ID %d is zero", i+1)
		}
	}
	return &decoder{node: n, entries: entries, rest: page[table:used]}, nil
}

// varint reads one unsigned varint of the shortest form.
func (d *decoder) varint() (uint64, error) {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 || n > 1 && d.rest[n-1] == 0 {
		return 0, corrupt("bad varint")
	}
	d.rest = d.rest[n:]
	return v, nil
}

// advance reads a difference of blocks and moves on by it.
func (d *decoder) advance() error {
	v, err := d.varint()
	if err != nil {
		return err
	}
	if v > endOfSpace-d.at {
		return corrupt("block number overflows")
	}
	d.at += v
	return nil
}

// place reads chunk number and slot.
func (d *decoder) place() (chunk, slot uint16, err error) {
	c, err := d.varint()
	if err != nil {
		return 0, 0, err
	}
	s, err := d.varint()
	if err != nil {
		return 0, 0, err
	}
	switch {
	case c > uint64(d.usedIDs)+1: // so one behind the last ID makes more used than there are
		return 0, 0, corrupt("chunk IDs are not in the order of their first use")
	case s >= dedup.MaxSlots:
		return 0, 0, corrupt("slot %d", s)
	}
	d.usedIDs = max(d.usedIDs, int(c))
	return uint16(c), uint16(s), nil
}

// extent reads a leaf's entry.
func (d *decoder) extent() (entry, error) {
	if err := d.advance(); err != nil {
		return entry{}, err
	}
	count, err := d.varint()
	if err != nil {
		return entry{}, err
	}
	damaged := count&1 != 0
	count >>= 1
	chunk, slot, err := d.place()
	if err != nil {
		return entry{}, err
	}
	switch {
	case chunk == 0:
		return entry{}, corrupt("extent in a node chunk")
	case count == 0 || count > dedup.MaxSlots-uint64(slot):
		return entry{}, corrupt("extent of %d blocks from slot %d", count, slot)
	case count > endOfSpace-d.at:
		return entry{}, corrupt("block number overflows")
	case damaged && count != 1:
		return entry{}, corrupt("damaged extent of %d blocks", count)
	case damaged && (len(d.rest) == 0 || d.rest[0] == 0):
		return entry{}, corrupt("damaged extent without a mask")
	}
	e := entry{first: d.at, count: uint16(count), chunk: chunk, slot: slot}
	if damaged {
		e.damaged = d.rest[0]
		d.rest = d.rest[1:]
	}
	d.at += count
	return e, nil
}

// child reads an inner node's entry.
func (d *decoder) child() (entry, error) {
	before := d.at
	if err := d.advance(); err != nil {
		return entry{}, err
	}
	if d.at == before && len(d.node.entries) > 0 {
		return entry{}, corrupt("two children from block %d", before)
	}
	chunk, slot, err := d.place()
	return entry{first: d.at, chunk: chunk, slot: slot}, err
}
