package journal

import (
	"fmt"

	"github.com/k8ns/granary/pkg/wal"
)

// Trace is what a segment without a good header still shows of one log.
type Trace struct {
	Owner  [16]byte
	Seqs   []uint64 // of its records there
	Synced uint64   // highest synced mark among them
}

// Lost tells whether the segment held a record above sequence from that was durable, or,
// if unread, any at all: then a volume folded up to from has lost it with the header. It
// returns the highest.
func (t Trace) Lost(from uint64, unread bool) (seq uint64, lost bool) {
	for _, s := range t.Seqs {
		if s > from && (unread || s <= t.Synced) {
			seq, lost = max(seq, s), true
		}
	}
	return seq, lost
}

// Inspect looks at every page of a segment for good record headers, whatever log they
// belong to. Several logs may show, because segments are recycled.
func Inspect(s *Segment) ([]Trace, error) {
	type key struct {
		owner      [16]byte
		epoch, log uint64
	}
	found := make(map[key]int)
	var out []Trace
	const batch = 256
	buf := make([]byte, batch*wal.PageSize)
	for at := int64(1); at < s.pages; at += batch {
		n := min(batch, s.pages-at)
		b := buf[:n*wal.PageSize]
		if _, err := s.ReadAt(b, at*wal.PageSize); err != nil {
			return out, fmt.Errorf("read %s: %w", s.Name(), err)
		}
		for ; len(b) > 0; b = b[wal.PageSize:] {
			rec, _, err := wal.DecodeHeader(b[:wal.PageSize])
			if err != nil {
				continue
			}
			k := key{rec.Owner, rec.Epoch, rec.Log}
			i, ok := found[k]
			if !ok {
				i = len(out)
				found[k] = i
				out = append(out, Trace{Owner: rec.Owner})
			}
			t := &out[i]
			t.Seqs = append(t.Seqs, rec.Seq)
			t.Synced = max(t.Synced, rec.Synced)
		}
	}
	return out, nil
}
