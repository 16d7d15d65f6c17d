package journal

import (
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/vfs/vfstest"
	"github.com/k8ns/granary/pkg/wal"
)

// A segment file that is shorter than a header is no crash's work: nobody knows which
// acknowledged writes it held, so the pool is not opened, and nothing is changed or left
// open. Once it is moved away, the others are opened.
func TestOpenPool_SegmentCutShort(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewFaulty(mem)
	segmentFile(t, fsys, segment0, nil)
	short := "/j/0000000000000001.seg"
	segmentFile(t, fsys, short, nil)
	var descriptors vfstest.Descriptors
	fsys.SetHook(func(op vfs.Op) error {
		descriptors.See(op)
		switch op.Kind {
		case vfs.OpWrite, vfs.OpTruncate, vfs.OpRemove, vfs.OpRename, vfs.OpSync, vfs.OpDatasync:
			t.Errorf("%v of %s", op.Kind, op.Name)
		}
		return nil
	})
	for _, size := range []int64{0, 1, wal.PageSize - 1} {
		f, err := mem.Open(short)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f.Close()
		for _, readOnly := range []bool{false, true} {
			p, _, _, err := open(fsys, PoolOptions{ReadOnly: readOnly})
			wantError(t, "a short segment", err, wal.ErrCorrupt, short+": shorter than a segment's header")
			if files := descriptors.Open(); p != nil || files != 0 {
				t.Errorf("%d bytes: a pool %v, %d files open", size, p != nil, files)
			}
		}
		if st, err := mem.Stat(short); err != nil || st.Size != size {
			t.Errorf("the file has %d bytes, had %d: %v", st.Size, size, err)
		}
	}
	if err := mem.Rename(short, "/aside"); err != nil {
		t.Fatal(err)
	}
	p, owned, bad, err := open(fsys, PoolOptions{})
	if err != nil || len(owned) != 1 || len(bad) != 0 {
		t.Fatalf("%v, %v, %v", owned, bad, err)
	}
	if err := p.Close(); err != nil || descriptors.Open() != 0 {
		t.Errorf("%v, %d files open", err, descriptors.Open())
	}
}
