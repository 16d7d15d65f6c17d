package blockstore

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/vfs"
)

// checkStopped is CheckStopped with all data read.
func checkStopped(ctx context.Context, fsys vfs.FS) (found []Problem, err error) {
	err = CheckStopped(ctx, fsys, testDir, CheckOptions{ReadData: true}, func(p Problem) { found = append(found, p) })
	return found, err
}

// A record that cannot be read stops a check before it reports anything, and a start: what
// hangs on the record would be taken for garbage. The check changes nothing.
func TestUnreadableRecordStopsCheck(t *testing.T) {
	x := newSick(t)
	for _, prefix := range []string{keyVolume, keyCut, keyDamage} {
		mem := x.fsys.Clone()
		s := openStore(t, mem, sickOptions())
		must(s.commit(put(keyDamage+"0123456789abcdef0123456789abcdef01234567/0003", damageRecord{File: "f", Reason: "r"}, catalog.ExpectAbsent)))(t)
		good := s.scan(prefix)[0]
		spoil(t, s, good.Key)
		s.abandon()
		mem.Kill()
		before := mem.Digest()
		found, err := checkStopped(context.Background(), mem)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "catalog record "+good.Key+": ") || len(found) > 0 {
			t.Errorf("%s: check: %v, found %v", prefix, err, found)
		}
		if mem.Digest() != before {
			t.Errorf("%s: the check has changed the store", prefix)
		}
		if _, err := Open(mem, testDir, sickOptions()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "catalog record "+good.Key+": ") {
			t.Errorf("%s: open: %v", prefix, err)
		}
		cat := must(catalog.Open(mem, path.Join(testDir, dirCatalog), s.id, catalog.Options{}))(t)
		must(cat.Commit(catalog.Op{Key: good.Key, Value: good.Value, Expect: catalog.ExpectAny}))(t)
		ok(t, cat.Close())
		s = openStore(t, mem, sickOptions())
		if bad := x.verify(t, s); len(bad) > 0 {
			t.Errorf("%s: once the record is back: %v", prefix, bad)
		}
		wantClean(t, s)
		ok(t, s.Close())
	}
}

// countdown is a context that ends when it is asked for the n-th time.
type countdown struct {
	context.Context
	left, after int
}

func (c *countdown) Err() error {
	if c.left--; c.left >= 0 {
		return nil
	}
	c.after++
	return context.Canceled
}

// A check ends wherever it is when its context does, with nothing reported that is not so
// and nothing changed.
func TestCheckEndsWithItsContext(t *testing.T) {
	x := newSick(t)
	s := openStore(t, x.fsys.Clone(), sickOptions())
	for id, image := range x.images { // whose journals are to be checked
		v := attach(t, s, id)
		copy(image[:BlockSize], noise(9, BlockSize))
		writeAt(t, v, image[:BlockSize], 0)
		ok(t, v.Flush())
	}
	var found []Problem
	durable, digest := s.cat.Durable(), x.fsys.Digest()
	for what, check := range map[string]func(ctx context.Context) error{
		"running": func(ctx context.Context) error {
			return s.Check(ctx, CheckOptions{ReadData: true}, func(p Problem) { found = append(found, p) })
		},
		"stopped": func(ctx context.Context) (err error) {
			found, err = checkStopped(ctx, x.fsys)
			return err
		},
	} {
		n := 0
		for ; ; n++ {
			ctx := &countdown{Context: context.Background(), left: n}
			err := check(ctx)
			if ctx.after == 0 {
				ok(t, err)
				break
			}
			if !errors.Is(err, context.Canceled) || ctx.after > 1 {
				t.Errorf("%s, ended at question %d: %v, and went on for %d", what, n, err, ctx.after-1)
			}
		}
		if files := len(s.chunks.Files()); n < files+2*len(x.images) {
			t.Errorf("%s: the context was asked %d times for %d files and %d images", what, n, files, len(x.images))
		}
		if len(found) > 0 {
			t.Errorf("%s: found %v", what, found)
		}
	}
	if s.cat.Durable() != durable || x.fsys.Digest() != digest {
		t.Error("a check that ended has changed something")
	}
	wantClean(t, s)
	ok(t, s.Close())
}

// A check of a stopped store removes no segment, though the next start would: one that lost
// its end, of which nothing is needed.
func TestStoppedCheckLeavesShortSegments(t *testing.T) {
	mem := vfs.NewMem()
	s := openStore(t, mem, tightOptions())
	v := newVolume(t, s, "v", 1<<20)
	writeBlocks(t, v, make([]byte, v.Size()), 0, 3, "write")
	segs := segmentsOf(t, mem, v.ID())
	foldAll(t, s)
	ok(t, v.Close())
	ok(t, s.DeleteVolume(v.ID()))
	ok(t, s.Close())
	rewriteFile(mem, segs[0], func(p []byte) []byte { return p[:4096] })
	digest := mem.Digest()
	must(checkStopped(context.Background(), mem))(t)
	if mem.Digest() != digest {
		t.Error("the check has changed something")
	}
	ok(t, openStore(t, mem, tightOptions()).Close())
	if _, err := mem.Stat(segs[0]); err == nil {
		t.Error("a start keeps what is of no use")
	}
}

// A check of a whole store meets an error at each of its file operations. It ends with an
// error or says what it could not read, never that all is well; what is damaged, of which
// it knows, is told all the same. Nothing is changed, and the next check is as if there had
// been no error.
func TestStoppedCheckFailsAtEveryOperation(t *testing.T) {
	x := newSick(t)
	s, v := x.loseBlock(t, "b", 50)
	ok(t, v.Close())
	ok(t, s.Close())
	want, err := checkStopped(context.Background(), x.fsys)
	ok(t, err)
	if len(want) == 0 {
		t.Fatal("no damage")
	}
	digest := x.fsys.Digest()
	failed, told := 0, 0
	for n := int64(0); ; n++ {
		fsys := vfs.NewFaulty(x.fsys)
		hit := ""
		fsys.SetHook(func(op vfs.Op) error {
			if op.Index != n {
				return nil
			}
			hit = fmt.Sprintf("%v of %s", op.Kind, op.Name)
			return syscall.EIO
		})
		found, err := checkStopped(context.Background(), fsys)
		if hit == "" {
			ok(t, err)
			break
		}
		switch {
		case err != nil && !errors.Is(err, syscall.EIO):
			t.Errorf("%s: %v", hit, err)
		case err != nil:
			failed++
		case !slices.ContainsFunc(found, func(p Problem) bool { return p.Volume == v.ID() }):
			t.Errorf("%s: the damage is not told of: %v", hit, found)
		default:
			told++
		}
		if x.fsys.Digest() != digest {
			t.Fatalf("%s: the check has changed the store", hit)
		}
	}
	if failed == 0 || told == 0 {
		t.Errorf("%d checks failed, %d told of damage", failed, told)
	}
	if again, err := checkStopped(context.Background(), x.fsys); err != nil || !slices.Equal(again, want) {
		t.Errorf("afterwards: %v, %v", again, err)
	}
}

// An image with more wrong in it than anybody reads has its first problems reported, and
// the others of the store are checked as ever.
func TestCheckReportsEnough(t *testing.T) {
	for _, c := range []struct {
		what string
		text string
		make func(t *testing.T, mem *vfs.Mem, s *Store, v *Volume)
	}{
		{"blocks behind the end", "behind the end", func(t *testing.T, _ *vfs.Mem, s *Store, v *Volume) {
			foldAll(t, s)
			var rec volumeRecord
			e := must(get(s.cat, keyVolume+v.ID(), &rec))(t)
			rec.Size = MinVolumeSize
			must(s.commit(put(e.Key, rec, e.Revision)))(t)
		}},
		{"sectors lost to a bad journal", "lost to earlier damage", func(t *testing.T, mem *vfs.Mem, s *Store, v *Volume) {
			ok(t, v.Flush())
			ok(t, v.Close())
			for _, seg := range segmentsOf(t, mem, v.ID()) {
				rewriteFile(mem, seg, func(p []byte) []byte {
					for at := 2 * BlockSize; at < len(p); at += 2 * BlockSize { // payloads
						p[at+5] ^= 1
					}
					return p
				})
			}
			foldAll(t, s)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			mem := vfs.NewMem()
			s := openStore(t, mem, smallOptions())
			v, other := newVolume(t, s, "v", 4*MinVolumeSize), newVolume(t, s, "w", MinVolumeSize)
			for off := int64(MinVolumeSize); off < v.Size(); off += 2 * BlockSize {
				writeAt(t, v, noise(uint64(off), BlockSize), off)
			}
			writeAt(t, other, noise(1, BlockSize), 0)
			c.make(t, mem, s, v)
			n := 0
			for _, p := range problems(t, s) {
				switch {
				case p.Volume == other.ID():
					t.Errorf("the other volume: %v", p)
				case p.Volume == v.ID() && strings.Contains(p.Detail, c.text):
					n++
				}
			}
			if n != maxPerImage {
				t.Errorf("%d problems reported, want %d", n, maxPerImage)
			}
		})
	}
}
