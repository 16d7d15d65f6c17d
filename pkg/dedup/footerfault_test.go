package dedup

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/blob"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// sealedStore is a store with one sealed file of a chunk for each part of n blocks.
func sealedStore(t *testing.T, parts, n int) (mem *vfs.Mem, name string, at []Slot, chunks []footerChunk) {
	t.Helper()
	mem = vfs.NewMem()
	s := open(t, mem, 1, func(o *Options) { o.FileBytes = 4 << 20 })
	for i := range parts {
		at = append(at, put(t, s, seq(i*n, (i+1)*n)...)...)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if len(s.Files()) != 1 {
		t.Fatal(fileNames(s))
	}
	name = s.Files()[0].Name
	ff := &foundFile{blob: s.dir.File(name)}
	ff.Name, ff.Size = name, s.Files()[0].Size
	if err := s.readFooter(ff); err != nil || len(ff.chunks) != parts {
		t.Fatalf("%d chunks, %v", len(ff.chunks), err)
	}
	return mem, path.Join(testDir, name), at, ff.chunks
}

// setTrailer changes fields of a sealed file's trailer, and makes its checksum good.
func setTrailer(mem *vfs.Mem, name string, change func(file []byte, tr *trailer)) {
	mem.Corrupt(name, 0, func(b []byte) {
		tr, err := parseTrailer(b[len(b)-trailerSize:])
		if err != nil {
			panic(err)
		}
		change(b, &tr)
		copy(b[len(b)-trailerSize:], tr.encode())
	})
}

// A footer that makes no sense although its checksums are good, or that the disk does not
// let us read, is not believed: the chunks are scanned instead, nothing is lost, and the
// file is not collected.
func TestFooterIsNotBelieved(t *testing.T) {
	for _, c := range []struct {
		text  string
		parts int
		spoil func(mem *vfs.Mem, faulty *vfs.Faulty, name string, size int64)
	}{
		{"damaged: footer of 60000000 bytes in a file of ", 3, func(mem *vfs.Mem, _ *vfs.Faulty, name string, _ int64) {
			setTrailer(mem, name, func(_ []byte, tr *trailer) { tr.footer = 60_000_000 })
		}},
		{"damaged: footer of 156 bytes for 4 chunks and 0 hooks", 3, func(mem *vfs.Mem, _ *vfs.Faulty, name string, _ int64) {
			setTrailer(mem, name, func(b []byte, tr *trailer) {
				tr.chunks, tr.hooks = 4, 0
				tr.footer = 3 * footerEntrySize
				tr.footerCRC = wal.PageCRC(b[len(b)-trailerSize-3*footerEntrySize : len(b)-trailerSize])
			})
		}},
		{"footer entry 1: damaged: chunk kind 9", 3, func(mem *vfs.Mem, _ *vfs.Faulty, name string, _ int64) {
			setTrailer(mem, name, func(b []byte, tr *trailer) {
				footer := b[len(b)-trailerSize-int(tr.footer) : len(b)-trailerSize]
				footer[footerEntrySize+40] = 9
				tr.footerCRC = wal.PageCRC(footer)
			})
		}},
		{"trailer: input/output error", 3, func(_ *vfs.Mem, faulty *vfs.Faulty, name string, size int64) {
			failReads(faulty, name, size-1, size)
		}},
		{"footer: input/output error", 330, func(_ *vfs.Mem, faulty *vfs.Faulty, name string, size int64) {
			failReads(faulty, name, size-trailerSize-330*footerEntrySize, size-trailerSize-330*footerEntrySize+1)
		}},
	} {
		mem, name, at, _ := sealedStore(t, c.parts, 2)
		st, err := mem.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		faulty := vfs.NewFaulty(mem)
		c.spoil(mem, faulty, name, st.Size)
		s := open(t, faulty, 2)
		if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0].Text, c.text) || !strings.HasSuffix(p[0].Text, "; its chunks were scanned instead") {
			t.Errorf("want %q: %v", c.text, p)
		}
		check(t, s, at, seq(0, 2*c.parts)...)
		invariants(t, s)
		if n := s.Plan(LiveSet{}, s.Horizon(), PlanOptions{}).Files(); n != 0 {
			t.Errorf("%s: the file would be collected", c.text)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if now, err := mem.Stat(name); err != nil || now.Size != st.Size {
			t.Errorf("%s: the file has %d bytes, had %d: %v", c.text, now.Size, st.Size, err)
		}
	}
}

// A sealed file that was cut to less than a trailer holds nothing that can be used: it is
// told of and left where it is, and the store goes on.
func TestSealedFileCutShort(t *testing.T) {
	for _, size := range []int64{0, fileHeaderSize - 1, fileHeaderSize, trailerSize - 1} {
		mem, name, at, _ := sealedStore(t, 3, 2)
		cutFile(t, mem, name, size)
		s := open(t, mem, 2)
		wantProblem := "damaged: file of "
		found := false
		for _, p := range s.Problems() {
			found = found || strings.Contains(p.Text, wantProblem)
		}
		if !found {
			t.Errorf("%d bytes: %v", size, s.Problems())
		}
		if _, err := s.ReadNode(at[0]); !errors.Is(err, ErrMissing) {
			t.Errorf("%d bytes: %v", size, err)
		}
		invariants(t, s)
		check(t, s, put(t, s, seq(0, 6)...), seq(0, 6)...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if now, err := mem.Stat(name); err != nil || now.Size != size {
			t.Errorf("the file has %d bytes, had %d: %v", now.Size, size, err)
		}
	}
}

// cutFile makes a file shorter, durably.
func cutFile(t *testing.T, mem *vfs.Mem, name string, size int64) {
	t.Helper()
	f, err := mem.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(size), f.Sync()); err != nil {
		t.Fatal(err)
	}
}

// failReads fails the reads of a file that meet bytes [lo, hi).
func failReads(faulty *vfs.Faulty, name string, lo, hi int64) {
	faulty.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Name == name && op.Off < hi && lo < op.Off+op.Len {
			return errBroken
		}
		return nil
	})
}

// A chunk in which a sector cannot be read costs its file no other chunk when the footer
// is bad as well: the scan goes on behind it. In an open file nobody knows whether it is
// whole, so the store does not start, and nothing is cut off.
func TestScanMeetsUnreadableSector(t *testing.T) {
	const parts, n = 3, 40
	for _, sealed := range []bool{true, false} {
		mem, name, at, chunks := sealedStore(t, parts, n)
		bad := chunks[1]
		if sealed {
			mem.Corrupt(name, 0, func(b []byte) { b[len(b)-90] ^= 1 }) // the trailer
		} else {
			last := chunks[parts-1]
			cutFile(t, mem, name, int64(last.off)+last.head.size())
			num, _, _ := parseName(path.Base(name))
			to := path.Join(testDir, num.openName())
			if err := errors.Join(mem.Rename(name, to), mem.SyncDir(testDir)); err != nil {
				t.Fatal(err)
			}
			name = to
		}
		st, err := mem.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		front := int64(bad.off) + headSize
		list := front + int64(bad.head.front)
		payload := list + int64(bad.head.list)
		if bad.head.payload < 2*512 {
			t.Fatal("a chunk that is too small for this")
		}
		for what, off := range map[string]int64{"head": int64(bad.off), "front": front, "list": list, "payload": payload + 700} {
			faulty := vfs.NewFaulty(mem)
			failReads(faulty, name, off, off+headSize)
			dir := blob.ExistingDir(faulty, testDir, 8)
			o := Options{Store: testStore, Epoch: 2, FileBytes: 1 << 20, Workers: 1}
			before := mem.Digest()
			s, err := Open(dir, o)
			switch {
			case sealed && err != nil || !sealed && !errors.Is(err, errBroken):
				t.Fatalf("%s, sealed %v: %v", what, sealed, err)
			case sealed:
				check(t, s, at[:n], seq(0, n)...)
				if what != "head" { // without it the next is found by a search, which this ends
					check(t, s, at[2*n:], seq(2*n, 3*n)...)
				}
				gone(t, s, at[n:2*n])
				if c := s.Plan(LiveSet{}, s.Horizon(), PlanOptions{}); c.Files() != 0 {
					t.Error("the file would be collected")
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			default:
				o.ReadOnly = true // who only looks sees what can be read
				s, err := Open(dir, o)
				if err != nil {
					t.Fatal(err)
				}
				if len(s.Problems()) == 0 {
					t.Errorf("%s: nothing is told", what)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if now, err := mem.Stat(name); err != nil || now.Size != st.Size || mem.Digest() != before {
				t.Errorf("%s, sealed %v: the file was changed: %d bytes of %d, %v", what, sealed, now.Size, st.Size, err)
			}
			s = open(t, mem.Clone(), 2) // the disk is well again
			check(t, s, at, seq(0, parts*n)...)
		}
	}
}
