package blockstore

import (
	"fmt"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore/journal"
	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// simWatch sees to I8 on a simulated disk: once a sync of a file has failed, nobody syncs
// that file again, whatever its name is by then, and no flush is answered well that rests
// on it. It ends with the process, as the pages that were lost are not read from the cache
// again (File.DropCache).
type simWatch struct {
	files map[string]*simInode // by name
}

// simInode is a file, by whatever name.
type simInode struct {
	failed string // the sync that failed
}

// at returns the file of a name.
func (w *simWatch) at(name string) *simInode {
	if w.files == nil {
		w.files = map[string]*simInode{}
	}
	if w.files[name] == nil {
		w.files[name] = &simInode{}
	}
	return w.files[name]
}

// ended is the end of the process.
func (w *simWatch) ended() { w.files = nil }

// named follows a file from name to name.
func (w *simWatch) named(kind vfs.OpKind, from, to string, err error) {
	if err != nil {
		return
	}
	switch kind {
	case vfs.OpCreate, vfs.OpRemove:
		delete(w.files, from)
	case vfs.OpRename:
		w.files[to] = w.at(from)
		delete(w.files, from)
	}
}

// synced takes note of how a sync has ended.
func (w *simWatch) synced(f *simInode, kind vfs.OpKind, name string, err error) {
	if f.failed != "" {
		panic(simViolation(fmt.Sprintf("%v of %s after %s (I8)", kind, name, f.failed)))
	}
	if err != nil {
		f.failed = fmt.Sprintf("a failed %v of it: %v", kind, err)
	}
}

// dropped is the end of what was lost: reads show the disk's content from now on.
func (w *simWatch) dropped(f *simInode, err error) {
	if err == nil {
		f.failed = ""
	}
}

// watchFlush is called when a flush of m was answered well: no segment of its journal may
// have failed to sync. One that has goes as soon as nothing rests on it.
func (w *simWorld) watchFlush(m *simVolume) {
	for name, f := range w.disk.watch.files {
		if f.failed == "" || !strings.HasSuffix(name, ".seg") {
			continue
		}
		page := make([]byte, wal.PageSize)
		file, err := w.disk.mem.OpenReadOnly(name)
		if err == nil {
			_, err = file.ReadAt(page, 0)
		}
		if h, herr := journal.DecodeHeader(page); err == nil && herr == nil && h.Owner == m.v.raw {
			w.fail("a flush of volume %s was answered over %s in %s (I8)", m.id, f.failed, name)
		}
	}
}
