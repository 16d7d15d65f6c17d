package dedup

import (
	"bytes"
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// A group that does not decode to its slots is corrupt, whatever its codec made of it.
func TestDecompress_Refuses(t *testing.T) {
	cs := newCodecs(1)
	defer cs.close()
	two := append(block(1), block(2)...)
	zstd := cs.compress(CodecZstd, two, make([]byte, 0, len(two))).data
	snappy := cs.compress(CodecS2, two, make([]byte, 0, len(two))).data
	for _, c := range []struct {
		what  string
		codec Codec
		b     []byte
		text  string
	}{
		{"raw, cut", CodecRaw, two[:BlockSize], "group does not decode to 8192 bytes"},
		{"zstd of one block", CodecZstd, cs.compress(CodecZstd, two[:BlockSize], make([]byte, 0, BlockSize)).data, "group does not decode to 8192 bytes"},
		{"zstd of three blocks", CodecZstd, cs.compress(CodecZstd, append(two, block(3)...), make([]byte, 0, 3*BlockSize)).data, "zstd: "},
		{"zstd, cut", CodecZstd, zstd[:len(zstd)-1], "zstd: "},
		{"s2 of one block", CodecS2, cs.compress(CodecS2, two[:BlockSize], make([]byte, 0, BlockSize)).data, "s2 group is not 8192 bytes"},
		{"s2, cut", CodecS2, snappy[:len(snappy)-1], "s2: "},
		{"no bytes of s2", CodecS2, nil, "s2 group is not 8192 bytes"},
		{"no codec", 7, two, "group does not decode to 8192 bytes"},
	} {
		wantError(t, c.what, cs.decompress(c.codec, make([]byte, len(two)), c.b), ErrCorrupt, c.text)
	}
}

// A group under a good checksum that does not decode is damage: it is told, a check finds
// it, what is in other groups reads, and the content heals it when it is written again.
func TestGroupDoesNotDecode(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1)
	tr := &tree{kind: KindData, n: 16, have: fullBitmap(16)}
	groups := make([]storedGroup, 2)
	for g := range groups {
		var src []byte
		for i := range 8 {
			tr.fps = append(tr.fps, FingerprintOf(block(8*g+i)))
			src = append(src, block(8*g+i)...)
		}
		groups[g] = s.codecs.compress(CodecS2, src, make([]byte, 0, len(src)))
	}
	groups[1].data = groups[1].data[:len(groups[1].data)-1]
	groups[1].crc = wal.PageCRC(groups[1].data)
	id, err := tr.id()
	if err != nil {
		t.Fatal(err)
	}
	e, err := encodeChunk(id, tr, 3, groups, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.append(e); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var told []Damage
	s = open(t, mem, 2, func(o *Options) { o.OnDamage = func(d Damage) { told = append(told, d) } })
	var at []Slot
	for i := range 16 {
		at = append(at, Slot{id, uint16(i)})
	}
	check(t, s, at[:8], seq(0, 8)...)
	var de *DamageError
	if _, err := s.ReadNode(at[9]); !errors.As(err, &de) || de.Unread || !strings.Contains(de.Reason, "s2: ") {
		t.Errorf("%+v", err)
	}
	if len(told) != 8 || told[0].Slot != at[8] || told[0].Fingerprint != FingerprintOf(block(8)) {
		t.Errorf("told of %v", told)
	}
	found := 0
	if err := s.VerifyFile(s.Files()[0].Name, true, func(Problem) { found++ }); err != nil || found != 1 {
		t.Errorf("a check finds %d problems, %v", found, err)
	}
	put(t, s, seq(0, 16)...)
	check(t, s, at, seq(0, 16)...)
}

// A chunk in whose place the file has another, as a disk leaves it that wrote to the wrong
// place, or whose bitmap is another than the footer's: its slots are damage, never another
// slot's content (I5), and heal.
func TestChunkIsNotTheOneOfTheIndex(t *testing.T) {
	t.Run("head", func(t *testing.T) {
		s, at := listedStore(t, func(b []byte, copies []*chunkCopy) {
			copy(b[copies[0].off:], bytes.Clone(b[copies[1].off:][:headSize+copies[1].front]))
		})
		wantDisagree(t, s, at[3], "chunk head and index disagree")
		check(t, s, at[8:], seq(8, 24)...)
		put(t, s, seq(0, 8)...)
		check(t, s, at, seq(0, 24)...)
	})
	t.Run("bitmap", func(t *testing.T) {
		mem, _, at, _ := sealedStore(t, 1, 24)
		s := open(t, mem, 2)
		live := append(append([]Slot{}, at[:8]...), at[10])
		collectAll(t, s, live)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		c := s.index[at[0].Chunk].copies[0]
		if !c.has(10) || c.has(11) {
			t.Fatalf("the copy has %b", c.slots())
		}
		mem.Corrupt(path.Join(testDir, s.Files()[0].Name), int64(c.off), func(b []byte) {
			b[headSize+1] = 1 << 3 // slot 11 in place of slot 10
			le.PutUint32(b[64:], wal.PageCRC(b[headSize:headSize+c.front]))
			le.PutUint32(b[76:], wal.PageCRC(b[:76]))
		})
		s = open(t, mem, 3)
		wantDisagree(t, s, at[10], "bitmaps of chunk and index disagree")
		if _, err := s.ReadNode(at[11]); !errors.Is(err, ErrMissing) {
			t.Errorf("slot 11: %v", err)
		}
		put(t, s, seq(0, 11)...)
		check(t, s, live, append(seq(0, 8), 10)...)
	})
}

// wantDisagree wants a slot that reads as damage for a reason, which a check tells as well.
func wantDisagree(t *testing.T, s *Store, at Slot, reason string) {
	t.Helper()
	var de *DamageError
	if _, err := s.ReadNode(at); !errors.As(err, &de) || de.Unread || !strings.Contains(de.Reason, reason) {
		t.Errorf("slot %s: %v", at, err)
	}
	var text string
	if err := s.VerifyFile(s.Files()[0].Name, true, func(p Problem) { text += p.Text + "\n" }); err != nil || !strings.Contains(text, reason) {
		t.Errorf("a check finds %q, %v", text, err)
	}
}

// collectAll runs a collection to its end that keeps just these slots.
func collectAll(t *testing.T, s *Store, live []Slot) {
	t.Helper()
	runCollection(t, s.Plan(liveOf(live), s.Horizon(), PlanOptions{MinLive: 1}), liveOf(live))
}

// A file that is collected, or abandoned and cut, while a check goes through it is no
// finding, wherever the check is: it says that the file is gone, and no slot is damage.
func TestVerifyMeetsTheEndOfAFile(t *testing.T) {
	for what, sealed := range map[string]bool{"collected": true, "abandoned": false} {
		for n := int64(0); ; n++ {
			mem := vfs.NewMem()
			faulty := vfs.NewFaulty(mem)
			s := open(t, faulty, 1, func(o *Options) { o.FileBytes = 1 << 20 })
			at := append(put(t, s, seq(0, 8)...), put(t, s, seq(8, 16)...)...)
			name := s.Files()[0].Name
			end := func() { collectAll(t, s, at[:1]) }
			left := 1
			if sealed {
				if err := s.SealOpen(); err != nil {
					t.Fatal(err)
				}
				name = s.Files()[0].Name
			} else {
				left = 16
				w, _ := begun(t, s, seq(16, 24)...)
				defer w.Close()
				end = func() {
					if err := w.Sync(); !errors.Is(err, errBroken) {
						t.Errorf("sync: %v", err)
					}
				}
			}
			from, over := faulty.Count(), false
			faulty.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpDatasync && !sealed {
					return errBroken
				}
				if !over && op.Index >= from+n {
					over = true
					end()
				}
				return nil
			})
			err := s.VerifyFile(name, true, func(p Problem) { t.Errorf("%s at operation %d, found: %s", what, n, p) })
			if over {
				wantError(t, what, err, vfs.ErrNotExist, "chunk file "+name)
			} else if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			faulty.SetHook(nil)
			if d := s.Damaged(); len(d) > 0 {
				t.Errorf("%s at operation %d: damage %v", what, n, d)
			}
			check(t, s, at[:left], seq(0, left)...)
			verify(t, s)
			invariants(t, s)
			if t.Failed() || !over {
				break
			}
		}
	}
}
