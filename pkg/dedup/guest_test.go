package dedup

import (
	"bytes"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// A guest writes data that looks like a chunk: the head and list of somebody else's
// chunk before content of its own, with a huge commit number. When a torn head makes a
// start search for the next chunk, that must not be taken for the other's content (I5),
// nor its commit number be believed (I10).
func TestScanIsNotFooledByGuestData(t *testing.T) {
	victim, evil := block(1), block(2)
	fake := fakeChunk(t, victim, evil)

	fsys := vfs.NewMem()
	s := open(t, fsys, 1)
	w := s.NewWriter(CodecRaw, 3)
	guest := make([]byte, BlockSize) // one block of the guest's volume
	copy(guest, fake)
	ref, err := w.Block(guest, Slot{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	id := w.Slot(ref).Chunk
	w.Close()
	name := s.Files()[0].Name
	fsys.Kill()
	torn := false
	fsys.Corrupt(testDir+"/"+name, 0, func(b []byte) {
		i := bytes.Index(b, id[:])
		b[i] ^= 1 // the real chunk's head no longer checks
		torn = i > 0
	})
	if !torn {
		t.Fatal("the chunk's head was not found")
	}

	s = open(t, fsys, 2)
	if s.MaxCommit() > 1<<20 {
		t.Errorf("commit number %d is believed", s.MaxCommit())
	}
	victimID := chunkOfBlock(victim)
	got := make([]byte, BlockSize)
	if err := s.ReadSlots(victimID, 0, 1, got); err == nil && !bytes.Equal(got, victim) {
		t.Error("guest data was read as another chunk's content")
	}
}

// fakeChunk is a chunk that says it holds victim, and holds a run of evil's bytes.
func fakeChunk(t *testing.T, victim, evil []byte) []byte {
	cs := newCodecs(1)
	defer cs.close()
	zeros := make([]byte, BlockSize) // must fit a block: evil's content compressed
	copy(zeros, evil[:64])
	g := cs.compress(CodecZstd, zeros, nil)
	if g.crc != wal.PageCRC(g.data) {
		t.Fatal("group checksum")
	}
	tr := &tree{kind: KindData, n: 1, fps: []Fingerprint{FingerprintOf(victim)}, have: fullBitmap(1)}
	e, err := encodeChunk(chunkOfBlock(victim), tr, 3, []storedGroup{g}, 1<<60)
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(e.meta), bytes.Join(e.data, nil)...)
}

func chunkOfBlock(b []byte) ChunkID {
	tr := &tree{kind: KindData, n: 1, fps: []Fingerprint{FingerprintOf(b)}, have: fullBitmap(1)}
	id, err := tr.id()
	if err != nil {
		panic(err)
	}
	return id
}
