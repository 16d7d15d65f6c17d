package blockstore

import (
	"errors"
	"testing"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// Each kind of file alone shows that the catalog is older than it (I10).
func TestEachFileTellsTheAge(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	seg := must(s.pool.Get())(t)
	defer seg.Release()
	durable := s.cat.Durable()
	segment := func(commit uint64) []journal.Recovered {
		return []journal.Recovered{{Segment: seg, Header: journal.Header{Commit: commit}}}
	}
	ok(t, s.checkAge(storeHeader{commit: durable}, segment(durable)))
	for what, err := range map[string]error{
		"store header": s.checkAge(storeHeader{commit: durable + 1}, nil),
		"segment":      s.checkAge(storeHeader{}, segment(durable+1)),
	} {
		if !errors.Is(err, ErrOlder) {
			t.Errorf("a %s that is newer: %v", what, err)
		}
	}
	writeAt(t, v, noise(1, BlockSize), 0)
	foldAll(t, s)
	fresh := must(catalog.Open(mem, "/fresh", s.id, catalog.Options{}))(t)
	whole := s.cat
	s.cat = fresh
	if err := s.checkAge(storeHeader{}, nil); !errors.Is(err, ErrOlder) {
		t.Errorf("a chunk file that is newer: %v", err)
	}
	s.cat = whole
	ok(t, fresh.Close())
	ok(t, v.Close())
	ok(t, s.Close())
}

// A journal's record that its volume cannot have had is damage, whatever its checksum
// says.
func TestReplayRefuses(t *testing.T) {
	s := openStore(t, vfs.NewMem(), smallOptions())
	v := newVolume(t, s, "v", 1<<20)
	seg := must(s.pool.Get())(t)
	defer seg.Release()
	const end = 1 << 20
	for _, r := range []wal.Record{
		{Type: wal.TypeWrite, Offset: end, Length: 512}, {Type: wal.TypeWrite, Offset: end - 512, Length: 1024},
		{Type: wal.TypeHole, Offset: 1 << 63, Length: 512}, {Type: wal.TypeHole, Length: 1 << 63},
		{Type: wal.TypeHole, Offset: 100, Length: 512}, {Type: wal.TypeHole, Length: 100}, {Type: wal.TypeHole},
		{Type: wal.TypeCommit, Length: 512},
	} {
		if err := v.replay(journal.Entry{Record: r, Segment: seg}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v of %d bytes at %d: %v", r.Type, r.Length, r.Offset, err)
		}
	}
	ok(t, v.replay(journal.Entry{Record: wal.Record{Type: wal.TypeHole, Offset: end - 512, Length: 512}, Segment: seg}))
}
