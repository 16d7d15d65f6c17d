package dedup

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
)

// countingReader counts the bytes that are read from it.
type countingReader struct {
	io.ReaderAt
	bytes int64
}

func (r *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, off)
	r.bytes += int64(n)
	return n, err
}

// forgedHeads are n heads that a guest wrote one behind the other, each of the largest
// chunk there can be.
func forgedHeads(n int) []byte {
	h := chunkHead{kind: KindData, id: ChunkID{1}, slots: MaxSlots, present: MaxSlots, front: maxFront - MaxSlots/8, list: maxList, payload: maxPayload}
	b := h.appendTo(nil)
	return append(bytes.Repeat(b, n), make([]byte, maxChunk)...)
}

// However many heads a guest forges, a search reads a file about once, not once for each.
func TestForgedHeadsCostLittle(t *testing.T) {
	const heads = 20_000
	b := forgedHeads(heads)
	r := &countingReader{ReaderAt: bytes.NewReader(b)}
	w := newWindow(r, int64(len(b)))
	found := 0
	for at := int64(0); ; found++ {
		next, err := nextHead(w, at)
		if err != nil {
			t.Fatal(err)
		}
		if next < 0 {
			break
		}
		if _, _, err := readWhole(w, next, int64(len(b))); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("a forged chunk at %d: %v", next, err)
		}
		at = next + 1
	}
	if found != heads {
		t.Errorf("%d heads found, %d are there", found, heads)
	}
	if most := 3 * int64(len(b)); r.bytes > most {
		t.Errorf("%d bytes read in a file of %d", r.bytes, len(b))
	}
}

// A window answers what the file would, wherever it is asked, also where a part of what it
// reads ahead cannot be read.
func TestWindow(t *testing.T) {
	file := make([]byte, 3*windowBytes+77)
	for i := range file {
		file[i] = byte(i * 7 >> 3)
	}
	bad := int64(2*windowBytes + 5)
	w := newWindow(badByte{bytes.NewReader(file), bad}, int64(len(file)))
	for _, at := range []struct{ off, n int64 }{
		{0, 10}, {windowBytes - 5, 10}, {5, 10}, {windowBytes, windowBytes}, {bad - 20, 20}, {bad - 20, 19},
		{bad + 1, 100}, {int64(len(file)) - 10, 10}, {int64(len(file)) - 10, 11}, {int64(len(file)), 1},
	} {
		p := make([]byte, at.n)
		n, err := w.ReadAt(p, at.off)
		want := file[min(at.off, int64(len(file))):min(at.off+at.n, int64(len(file)))]
		if !bytes.Equal(p[:n], want) {
			t.Errorf("%d bytes at %d: %d others", at.n, at.off, n)
		}
		if short := len(want) < int(at.n); short != errors.Is(err, io.EOF) || !short && err != nil {
			t.Errorf("%d bytes at %d: %v", at.n, at.off, err)
		}
	}
	if _, err := w.ReadAt(make([]byte, 10), bad-5); !errors.Is(err, errBadByte) {
		t.Errorf("the byte that cannot be read: %v", err)
	}
}

var errBadByte = errors.New("bad byte")

// badByte fails reads of one byte.
type badByte struct {
	io.ReaderAt
	at int64
}

func (r badByte) ReadAt(p []byte, off int64) (int, error) {
	if off <= r.at && r.at < off+int64(len(p)) {
		n, _ := r.ReaderAt.ReadAt(p[:r.at-off], off)
		return n, errBadByte
	}
	return r.ReaderAt.ReadAt(p, off)
}

// An open file in which the disk answers an error to the search for the next head is left
// alone: what cannot be read now may be whole (I2).
func TestSearchMeetsUnreadableBytes(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	s := open(t, fsys, 1, func(o *Options) { o.FileBytes = 1 << 20 })
	w := s.NewWriter(CodecRaw, 3)
	for i := range 100 {
		if _, err := w.Block(block(i), Slot{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(), w.Sync()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	name := testDir + "/" + s.Files()[0].Name
	mem.Kill()
	mem.Corrupt(name, 0, func(b []byte) { b[fileHeaderSize] ^= 1 }) // the first head
	size := int64(len(readOnly(t, mem)))
	fsys.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Name == name && op.Off > fileHeaderSize && op.Off < size {
			return errBadByte
		}
		return nil
	})
	dir, err := blob.NewDir(fsys, testDir, 8)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{Store: testStore, Epoch: 2, Workers: 1}); !errors.Is(err, errBadByte) {
		t.Errorf("opened although the disk does not answer: %v", err)
	}
	fsys.SetHook(nil)
	if got := int64(len(readOnly(t, mem))); got != size {
		t.Errorf("the file has %d bytes, had %d", got, size)
	}
}
