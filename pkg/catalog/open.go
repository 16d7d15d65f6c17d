package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// Open reads the catalog of a store from the directory dir and makes an empty one if
// there is none. The caller keeps other processes away from it. Unless read-only it
// writes a new log with a checkpoint, whose epoch is one higher, before it returns:
// nothing is ever appended behind what an earlier process left.
//
// Errors: wal.ErrCorrupt naming file and offset, if the newest log is damaged at a
// place that had been durable (a torn record behind that is cut off); wal.ErrFormat
// or wal.ErrVersion if it is not this store's or not of this version; vfs.ErrNoSpace;
// vfs.ErrNotExist if there is nothing to read and it may not be made. After an error
// the directory is as good as it was.
func Open(fsys vfs.FS, dir string, store [16]byte, o Options) (*Catalog, error) {
	o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("open catalog: %w", err)
	}
	c, err := open(fsys, dir, store, o)
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", dir, err)
	}
	return c, nil
}

func open(fsys vfs.FS, dir string, store [16]byte, o Options) (*Catalog, error) {
	if !o.ReadOnly {
		if err := fsys.MkdirAll(dir); err != nil {
			return nil, err
		}
	}
	files, err := listFiles(fsys, dir)
	if err != nil {
		return nil, err
	}
	old, err := loadNewest(fsys, dir, store, files)
	if err != nil {
		return nil, err
	}
	c := &Catalog{opts: o, epoch: old.header.epoch}
	c.mu.work = sync.NewCond(&c.mu)
	c.mu.head = old.state
	if o.ReadOnly {
		if old.header.log == 0 {
			return nil, fmt.Errorf("no log: %w", vfs.ErrNotExist)
		}
		c.mu.files = fileStats{size: old.size, used: old.end, spare: files.spareSize, log: old.header.log}
	} else {
		c.epoch++
		c.writer = &logWriter{
			fsys: fsys, dir: dir, store: store, epoch: c.epoch, logBytes: o.LogBytes,
			log: old.header.log, size: old.size, seq: old.nextSeq, spare: files.spareSize,
		}
		if err := c.writer.start(files, old.state); err != nil {
			if c.writer.file != nil {
				err = errors.Join(err, c.writer.close())
			}
			return nil, err
		}
		c.mu.room, c.mu.files = c.writer.room(), c.writer.stats()
		c.ended = make(chan struct{})
	}
	c.durable.Store(&View{c.mu.head.copy()})
	if c.writer != nil {
		go c.run()
	}
	return c, nil
}

// start makes the directory tidy and opens a new log with a checkpoint of old. The
// log that old was read from is whole, so those before it are not needed, once its name
// is durable: the start that gave it may have ended before it was.
func (w *logWriter) start(files dirFiles, old state) error {
	if len(files.logs) > 1 {
		if err := w.fsys.SyncDir(w.dir); err != nil {
			return err
		}
	}
	for _, name := range files.tmp {
		if err := w.fsys.Remove(w.path(name)); err != nil {
			return err
		}
	}
	for _, log := range files.logs {
		if log == w.log {
			continue
		}
		if err := w.discard(log); err != nil {
			return err
		}
	}
	if noRoom, err := w.needSpare(old.bytes); noRoom != nil || err != nil {
		return errors.Join(noRoom, err)
	}
	// A larger spare than it needs can wait for the next rotation: who starts does not wait
	// for hundreds of megabytes of zeros.
	if err := w.replace(old); err != nil {
		return err
	}
	return errors.Join(w.needSpare(old.bytes))
}

// discard makes a log that a crash has left the spare, or removes it.
func (w *logWriter) discard(log uint64) error {
	if w.spare > 0 {
		return w.fsys.Remove(w.path(logName(log)))
	}
	info, err := w.fsys.Stat(w.path(logName(log)))
	if err != nil {
		return err
	}
	return w.retire(log, info.Size)
}

// dirFiles are the catalog's files in a directory.
type dirFiles struct {
	logs      []uint64 // numbers, ascending
	tmp       []string // names
	spareSize int64    // 0 if there is none
}

// listFiles reads the directory; other names are left alone.
func listFiles(fsys vfs.FS, dir string) (dirFiles, error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return dirFiles{}, err
	}
	var files dirFiles
	for _, name := range names {
		if n, ok := parseLogName(name); ok {
			files.logs = append(files.logs, n)
		}
		if strings.HasSuffix(name, tmpSuffix) {
			files.tmp = append(files.tmp, name)
		}
		if name == spareName {
			info, err := fsys.Stat(path.Join(dir, name))
			if err != nil {
				return dirFiles{}, err
			}
			files.spareSize = info.Size
		}
	}
	slices.Sort(files.logs)
	return files, nil
}

// loaded is what was read from a log.
type loaded struct {
	header  fileHeader
	state   state
	size    int64  // of the file, in bytes
	end     int64  // offset behind the last good record
	nextSeq uint64 // sequence behind it
}

// loadNewest reads the log with the highest number; without one the result is empty,
// with log number 0.
func loadNewest(fsys vfs.FS, dir string, store [16]byte, files dirFiles) (loaded, error) {
	if len(files.logs) == 0 {
		if err := checkNoLog(fsys, dir, files); err != nil {
			return loaded{}, err
		}
		return loaded{state: newState(), nextSeq: 1}, nil
	}
	n := files.logs[len(files.logs)-1]
	l, err := loadFile(fsys, path.Join(dir, logName(n)), store, n)
	if err != nil {
		return loaded{}, fmt.Errorf("%s: %w", logName(n), err)
	}
	return l, nil
}

// checkNoLog refuses to take a catalog that has lost its log for a new one: a spare
// that was a second log proves that there was another.
func checkNoLog(fsys vfs.FS, dir string, files dirFiles) error {
	if files.spareSize < wal.PageSize {
		return nil
	}
	f, err := fsys.OpenReadOnly(path.Join(dir, spareName))
	if err != nil {
		return err
	}
	defer f.Close()
	page := make([]byte, wal.PageSize)
	if _, err := f.ReadAt(page, 0); err != nil {
		return err
	}
	if h, err := parseFileHeader(page); err == nil && h.log > 1 {
		return fmt.Errorf("%w: the log is missing, the spare has been log %d", wal.ErrCorrupt, h.log)
	}
	return nil
}

// loadFile reads log number n of the store.
func loadFile(fsys vfs.FS, name string, store [16]byte, n uint64) (loaded, error) {
	f, err := fsys.OpenReadOnly(name)
	if err != nil {
		return loaded{}, err
	}
	defer f.Close()
	header, size, err := readHeader(f)
	if err != nil {
		return loaded{}, fmt.Errorf("header at offset 0: %w", err)
	}
	if header.store != store {
		return loaded{}, fmt.Errorf("%w: log of store %x, this is %x", wal.ErrFormat, header.store, store)
	}
	if header.log != n {
		return loaded{}, fmt.Errorf("%w: header at offset 0 says log %d", wal.ErrCorrupt, header.log)
	}
	r := newLogReader(f, size, header)
	l := loaded{header: header, state: newState(), size: size}
	for {
		rec, payload, ok, err := r.next()
		if err != nil {
			return loaded{}, err
		}
		if !ok {
			break
		}
		if err := l.apply(rec, payload); err != nil {
			return loaded{}, fmt.Errorf("record %d at offset %d: %w", rec.Seq, r.at, err)
		}
	}
	l.end, l.nextSeq = r.at, r.seq
	return l, nil
}

// readHeader reads a log's header and size.
func readHeader(f vfs.File) (fileHeader, int64, error) {
	size, err := f.Size()
	if err != nil {
		return fileHeader{}, 0, err
	}
	page := make([]byte, min(size, wal.PageSize))
	if _, err := f.ReadAt(page, 0); err != nil {
		return fileHeader{}, 0, err
	}
	header, err := parseFileHeader(page)
	return header, size, err
}

// apply takes a record into the state; the logReader has seen to its order.
func (l *loaded) apply(rec wal.Record, payload []byte) error {
	if rec.Type == wal.TypeCheckpointEnd {
		if n := uint64(l.state.tree.Len()); n != rec.Length {
			return fmt.Errorf("%w: checkpoint of %d entries has %d", wal.ErrCorrupt, rec.Length, n)
		}
		l.state.commit = rec.Offset
		return nil
	}
	err := decodeEntries(payload, func(key string, revision uint64, value []byte) error {
		if value == nil {
			l.state.remove(key)
			return nil
		}
		if revision == 0 || revision > rec.Offset {
			return fmt.Errorf("%w: %q has revision %d in commit %d", wal.ErrCorrupt, key, revision, rec.Offset)
		}
		l.state.put(Entry{key, revision, bytes.Clone(value)})
		return nil
	})
	l.state.commit = rec.Offset
	return err
}
