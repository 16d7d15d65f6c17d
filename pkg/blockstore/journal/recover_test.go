package journal

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// fileOf is a segment of one log with one-page records.
type fileOf struct {
	epoch, log, prevEnd uint64
	number              uint32
	seqs                []uint64
	synced              uint64 // of every record that comes after
	broken              uint64 // sequence of a record whose payload is bad
}

// writeFile writes the segment file with a number.
func (f fileOf) writeFile(t *testing.T, fsys vfs.FS, num uint64) {
	t.Helper()
	file := Header{
		Store: [16]byte{1}, Owner: owner, Epoch: f.epoch, Log: f.log, Number: f.number, Pages: 8,
		FirstSeq: f.seqs[0], PrevEnd: f.prevEnd,
	}.Encode()
	for _, seq := range f.seqs {
		head, body := make([]byte, wal.PageSize), make([]byte, wal.PageSize)
		rec := wal.Record{Type: wal.TypeWrite, Owner: owner, Epoch: f.epoch, Log: f.log, Seq: seq, Offset: f.epoch << 20, Length: wal.PageSize}
		if f.synced < seq {
			rec.Synced = f.synced
		}
		wal.EncodeHeader(head, rec, body)
		if seq == f.broken {
			body[0]++
		}
		file = append(append(file, head...), body...)
	}
	file = append(file, make([]byte, 8*wal.PageSize-len(file))...)
	if err := vfs.WriteFileAtomic(fsys, "/j/"+segmentName(num), file); err != nil {
		t.Fatal(err)
	}
}

// TestRecover_WhichRecords: which records of which segments are the volume's, and which
// segments are kept for them. A record is named epoch.sequence.
func TestRecover_WhichRecords(t *testing.T) {
	for _, c := range []struct {
		name             string
		files            []fileOf
		epoch, log, from uint64 // the volume's position
		reach            uint64
		want             []string
		kept             int
		err              error
	}{
		{
			name:  "logs go by epoch, then number, whatever their files are called",
			files: []fileOf{{epoch: 2, log: 1, prevEnd: 3, seqs: []uint64{4}}, {epoch: 1, log: 9, prevEnd: 2, seqs: []uint64{3}}, {epoch: 1, log: 8, seqs: []uint64{1, 2}}},
			want:  []string{"1.1", "1.2", "1.3", "2.4"}, kept: 3,
		},
		{
			name:  "segments of a log go by sequence",
			files: []fileOf{{epoch: 1, log: 1, number: 1, seqs: []uint64{3, 4}}, {epoch: 1, log: 1, seqs: []uint64{1, 2}}},
			want:  []string{"1.1", "1.2", "1.3", "1.4"}, kept: 2,
		},
		{
			name:  "what a later log has cut off is not the volume's, though the log numbers are the same",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1, 2, 3}}, {epoch: 2, log: 1, prevEnd: 1, seqs: []uint64{2}}},
			want:  []string{"1.1", "2.2"}, kept: 2,
		},
		{
			name:  "a log before that of the position is over",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{2, 3}}, {epoch: 1, log: 2, prevEnd: 1, seqs: []uint64{2}}},
			epoch: 1, log: 2, from: 1, want: []string{"1.2"}, kept: 1,
		},
		{
			name:  "a log of an epoch before that of the position is over",
			files: []fileOf{{epoch: 1, log: 7, seqs: []uint64{2, 3}}, {epoch: 2, log: 2, prevEnd: 1, seqs: []uint64{2}}},
			epoch: 2, log: 2, from: 1, want: []string{"2.2"}, kept: 1,
		},
		{
			name:  "what was cut off a log stays cut off when the log that did is folded and gone",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{2, 3}}},
			epoch: 2, log: 1, from: 2, want: nil, kept: 0,
		},
		{
			name:  "a log of a later epoch is not over because its number is low",
			files: []fileOf{{epoch: 2, log: 1, prevEnd: 1, seqs: []uint64{2}}},
			epoch: 1, log: 7, from: 1, want: []string{"2.2"}, kept: 1,
		},
		{
			name:  "what is folded is not read: damage there harms nobody",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1, 2, 3}, synced: 1, broken: 2}, {epoch: 1, log: 1, number: 1, seqs: []uint64{4}, synced: 3}},
			epoch: 1, log: 1, from: 3, want: []string{"1.4"}, kept: 1,
		},
		{
			name:  "an older copy of a segment before it",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1}}, {epoch: 1, log: 1, seqs: []uint64{1, 2, 3}}},
			reach: 3, want: []string{"1.1", "1.2", "1.3"}, kept: 2,
		},
		{
			name:  "an older copy of a segment behind it",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1, 2, 3}}, {epoch: 1, log: 1, seqs: []uint64{1}}, {epoch: 1, log: 1, number: 1, seqs: []uint64{4}}},
			reach: 4, want: []string{"1.1", "1.2", "1.3", "1.4"}, kept: 2,
		},
		{
			name:  "an older copy of a segment that is folded in part",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1, 2}}, {epoch: 1, log: 1, seqs: []uint64{1, 2, 3}}},
			epoch: 1, log: 1, from: 2, reach: 3, want: []string{"1.3"}, kept: 1,
		},
		{
			name:  "behind a gap nothing is the volume's",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1}}, {epoch: 1, log: 1, number: 2, seqs: []uint64{4, 5}}},
			want:  []string{"1.1"}, kept: 1,
		},
		{
			name:  "nor behind the end of a log in the segment before",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1, 2}, broken: 2}, {epoch: 1, log: 1, number: 1, seqs: []uint64{3}}, {epoch: 1, log: 1, number: 2, seqs: []uint64{4}}},
			want:  []string{"1.1"}, kept: 1,
		},
		{
			name:  "a gap of what was durable is damage",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1}}, {epoch: 1, log: 1, number: 2, seqs: []uint64{4}, synced: 2}},
			err:   wal.ErrCorrupt,
		},
		{
			name:  "a journal that ends before what it is known to have reached is damage",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1, 2}}},
			reach: 3, err: wal.ErrCorrupt,
		},
		{
			name:  "one that reaches it is whole",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1, 2}}},
			reach: 2, want: []string{"1.1", "1.2"}, kept: 1,
		},
		{
			name:  "a first log that says that there was one before is damage",
			files: []fileOf{{epoch: 2, log: 1, prevEnd: 1, seqs: []uint64{2}}},
			err:   wal.ErrCorrupt,
		},
		{
			name:  "a log that ends before a later one says is damage",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1}}, {epoch: 2, log: 1, prevEnd: 2, seqs: []uint64{3}}},
			err:   wal.ErrCorrupt,
		},
		{
			name:  "a gap in a log is no damage where a later log has cut it before",
			files: []fileOf{{epoch: 1, log: 1, seqs: []uint64{1}}, {epoch: 1, log: 1, number: 2, seqs: []uint64{4}, synced: 2}, {epoch: 2, log: 1, prevEnd: 1, seqs: []uint64{2}}},
			want:  []string{"1.1", "2.2"}, kept: 2,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := vfs.NewMem()
			if err := fsys.MkdirAll("/j"); err != nil {
				t.Fatal(err)
			}
			for i, f := range c.files {
				f.writeFile(t, fsys, uint64(i))
			}
			p, owned := pool(t, fsys, 16)
			l := NewLog(p, owner, 9, func() uint64 { return 0 })
			var got []string
			_, err := l.Recover(owned, c.epoch, c.log, c.from, c.reach, func(e Entry) error {
				got = append(got, fmt.Sprintf("%d.%d", e.Record.Offset>>20, e.Record.Seq))
				return nil
			})
			if !errors.Is(err, c.err) || c.err == nil && err != nil {
				t.Fatalf("%v, want %v", err, c.err)
			}
			kept := c.kept
			if err != nil {
				kept = len(c.files) // all is evidence
			} else if !slices.Equal(got, c.want) {
				t.Errorf("records %v, want %v", got, c.want)
			}
			if st := p.Stats(); len(l.segs) != kept || st.InUse != kept {
				t.Errorf("%d segments are the log's and %d are in use, want %d", len(l.segs), st.InUse, kept)
			}
		})
	}
}

// Only what is above the position and was durable is lost with a segment; if the header
// could not be read, all above it.
func TestTraceLost(t *testing.T) {
	trace := Trace{Seqs: []uint64{3, 4, 5}, Synced: 4}
	for _, c := range []struct {
		from   uint64
		unread bool
		seq    uint64
		lost   bool
	}{
		{2, false, 4, true}, {3, false, 4, true}, {4, false, 0, false}, {4, true, 5, true}, {5, true, 0, false},
	} {
		if seq, lost := trace.Lost(c.from, c.unread); lost != c.lost || lost && seq != c.seq {
			t.Errorf("folded up to %d, header unread: %v: %d, %v; want %d, %v", c.from, c.unread, seq, lost, c.seq, c.lost)
		}
	}
}
