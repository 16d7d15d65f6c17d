package catalog

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// Names in a catalog's directory; a log's is its number.
const (
	spareName = "spare"
	tmpSuffix = ".tmp"
	logSuffix = ".log"
)

func logName(n uint64) string { return fmt.Sprintf("%016x%s", n, logSuffix) }

// parseLogName is the inverse of logName.
func parseLogName(name string) (uint64, bool) {
	n, err := strconv.ParseUint(strings.TrimSuffix(name, logSuffix), 16, 64)
	return n, err == nil && n > 0 && name == logName(n)
}

// partBytes is about how much payload a part of a checkpoint has; more only if one
// entry is longer.
const partBytes = 1 << 20

// checkpointBytes is what a log has at most with a checkpoint of so many bytes of
// entries and nothing else. Two parts that follow each other have more than partBytes
// together, and each has a header and less than a page of filling.
func checkpointBytes(entries int64) int64 {
	parts := 2*entries/partBytes + 1
	return roundUp(entries, wal.PageSize) + (2*parts+2)*wal.PageSize
}

// growStep is what the size of a log that has grown is a multiple of, in bytes.
const growStep = 1 << 20

// fileStats are the sizes of the files, in bytes, and the log's number.
type fileStats struct {
	size, used, spare int64
	log               uint64
}

// logWriter writes the log and replaces it when it is full. It is owned by one
// goroutine. An error of commit, or the second one of grow, is for good.
type logWriter struct {
	fsys     vfs.FS
	dir      string
	store    [16]byte
	epoch    uint64
	logBytes int64 // what a log has at least

	file vfs.File // the log; nil before the first
	log  uint64   // its number; 0 before the first
	size int64    // of it, in bytes
	off  int64    // where the next record goes
	seq  uint64   // its sequence: synced < seq, synced = seq-1 between calls

	spare int64 // size of the spare, 0 if there is none
}

func (w *logWriter) path(name string) string { return path.Join(w.dir, name) }

// room is what a state's log may have, in bytes, to fit both files.
func (w *logWriter) room() int64 { return min(w.size, w.spare) }

func (w *logWriter) stats() fileStats {
	return fileStats{size: w.size, used: w.off, spare: w.spare, log: w.log}
}

// enough tells whether a file of size bytes is as large as it should be for a state
// of so many bytes of entries: a checkpoint takes half of it at most.
func (w *logWriter) enough(size, entries int64) bool {
	return size >= w.logBytes && checkpointBytes(entries) <= size/2
}

// wantSize is the size of a new file for such a state.
func (w *logWriter) wantSize(entries int64) int64 {
	if w.enough(w.logBytes, entries) {
		return w.logBytes
	}
	return roundUp(4*checkpointBytes(entries), growStep)
}

// commit makes the commits durable; head is the state behind the last.
func (w *logWriter) commit(commits []*request, head state) error {
	if len(commits) == 0 {
		return nil
	}
	var total int64
	for _, r := range commits {
		total += wal.PageSize + int64(len(r.payload))
	}
	if w.off+total > w.size {
		return w.rotate(head)
	}
	return w.append(commits)
}

// writeBatch is how many records go into one write at most.
const writeBatch = 128

// append writes the commits behind each other and syncs once. There is room.
func (w *logWriter) append(commits []*request) error {
	synced := w.seq - 1
	bufs := make([][]byte, 0, 2*min(len(commits), writeBatch))
	at, n := w.off, int64(0)
	flush := func() error {
		if _, err := w.file.WriteVec(bufs, at); err != nil {
			return fmt.Errorf("write %s at offset %d: %w", w.path(logName(w.log)), at, err)
		}
		at, n, bufs = at+n, 0, bufs[:0]
		return nil
	}
	for i, r := range commits {
		page := make([]byte, wal.PageSize)
		wal.EncodeHeader(page, wal.Record{
			Type: wal.TypeCommit, Owner: w.store, Epoch: w.epoch, Log: w.log,
			Seq: w.seq, Synced: synced, Offset: r.commit, Length: uint64(r.length),
		}, r.payload)
		w.seq++
		bufs = append(bufs, page, r.payload)
		n += int64(len(page) + len(r.payload))
		if len(bufs) == cap(bufs) || i == len(commits)-1 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := w.file.Datasync(); err != nil {
		return fmt.Errorf("sync %s: %w", w.path(logName(w.log)), err)
	}
	w.off = at
	return nil
}

// grow makes both files hold a state of so many bytes of entries; head is the durable
// state. noRoom says why that cannot be, err that the catalog fails.
func (w *logWriter) grow(entries int64, head state) (noRoom, err error) {
	if noRoom, err = w.needSpare(entries); noRoom != nil || err != nil {
		return noRoom, err
	}
	if w.size < checkpointBytes(entries) {
		if err := w.rotate(head); err != nil {
			return nil, err
		}
	}
	return w.needSpare(entries)
}

// needSpare replaces the spare if it does not hold a state of so many bytes.
func (w *logWriter) needSpare(entries int64) (noRoom, err error) {
	if w.spare >= checkpointBytes(entries) {
		return nil, nil
	}
	return w.makeSpare(w.wantSize(entries))
}

// tryGrowSpare replaces the spare if it should be larger for a state of so many
// bytes. If it cannot, the one that is there does for now. An error is for good.
func (w *logWriter) tryGrowSpare(entries int64) error {
	if w.enough(w.spare, entries) {
		return nil
	}
	_, err := w.makeSpare(w.wantSize(entries))
	return err
}

// rotate is replace, after which the spare gets larger if the state asks for it and the
// disk has the space.
func (w *logWriter) rotate(head state) error {
	if err := w.replace(head); err != nil {
		return err
	}
	return w.tryGrowSpare(head.bytes)
}

// replace replaces the log by one that begins with a checkpoint of head, and the spare
// by the log. The spare must have room for it.
//
//	write spare, fdatasync, rename to <n>.log, fsync directory, rename old to spare
func (w *logWriter) replace(head state) error {
	f, err := w.fsys.Open(w.path(spareName))
	if err != nil {
		return err
	}
	off, seq, err := w.writeNext(f, head)
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", w.path(logName(w.log+1)), err), f.Close())
	}
	old, oldLog, oldSize := w.file, w.log, w.size
	w.file, w.log, w.size, w.off, w.seq = f, w.log+1, w.spare, off, seq
	w.spare = 0
	if old != nil {
		if err := old.Close(); err != nil {
			return err
		}
	}
	if oldLog != 0 {
		if err := w.retire(oldLog, oldSize); err != nil {
			return err
		}
	}
	return nil
}

// writeNext writes the next log with a checkpoint of head into the spare, which is
// open as f, and gives it its name, durably. It returns the offset and the sequence
// of the record behind the checkpoint. Records from an earlier use of the file have
// another log number or epoch, or are parts of a checkpoint that never got a name.
func (w *logWriter) writeNext(f vfs.File, head state) (off int64, seq uint64, err error) {
	header := fileHeader{store: w.store, log: w.log + 1, epoch: w.epoch, commit: head.commit, firstSeq: w.seq}
	if _, err := f.WriteAt(header.encode(), 0); err != nil {
		return 0, 0, err
	}
	next := checkpointWriter{
		file: f, size: w.spare, off: wal.PageSize, seq: w.seq,
		record: wal.Record{Owner: w.store, Epoch: w.epoch, Log: w.log + 1, Offset: head.commit},
	}
	if err := next.write(head); err != nil {
		return 0, 0, err
	}
	if err := f.Datasync(); err != nil {
		// The next start must not sync this file again (I8): it makes another one.
		return 0, 0, errors.Join(err, w.fsys.Remove(w.path(spareName)))
	}
	if err := w.fsys.Rename(w.path(spareName), w.path(logName(w.log+1))); err != nil {
		return 0, 0, err
	}
	return next.off, next.seq, w.fsys.SyncDir(w.dir)
}

// retire makes a log of size bytes that is not needed any more the spare. Its name
// need not be durable: two logs after a crash are retired by the next Open.
func (w *logWriter) retire(log uint64, size int64) error {
	if err := w.fsys.Rename(w.path(logName(log)), w.path(spareName)); err != nil {
		return err
	}
	w.spare = size
	return nil
}

// makeSpare replaces the spare by a new file of zeros of the size. noRoom says why it
// could not be made: the spare is what it was, and nothing is lost. err: a directory
// that could not be synced.
//
//	create spare.tmp, allocate, write zeros, fsync, rename to spare, fsync directory
func (w *logWriter) makeSpare(size int64) (noRoom, err error) {
	tmp := w.path(spareName + tmpSuffix)
	if err := fillFile(w.fsys, tmp, size); err != nil {
		return fmt.Errorf("make catalog log of %d bytes: %w", size, err), nil
	}
	if err := w.fsys.Rename(tmp, w.path(spareName)); err != nil {
		return nil, err
	}
	if err := w.fsys.SyncDir(w.dir); err != nil {
		return nil, err
	}
	w.spare = size
	return nil, nil
}

// fillFile makes a durable file of zeros, written and not only reserved, so that
// writing it later changes no allocation. A file left by an earlier try is replaced;
// after an error there is none.
func fillFile(fsys vfs.FS, name string, size int64) (err error) {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, vfs.ErrNotExist) {
		return err
	}
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, fsys.Remove(name))
		}
	}()
	if err := f.Allocate(0, size); err != nil {
		return err
	}
	zeros := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// close lets go of the log.
func (w *logWriter) close() error { return w.file.Close() }

// checkpointWriter writes a checkpoint into a file.
type checkpointWriter struct {
	file vfs.File
	size int64 // of the file, in bytes
	off  int64 // where the next record goes
	seq  uint64
	// record is what all records have in common. The synced mark is 0: what is left
	// of a checkpoint that never got its log's name, after a start that a crash ended,
	// must not prove a record missing in the log that was made in its place.
	record wal.Record

	page    [wal.PageSize]byte
	payload []byte
}

// write writes all entries of head in parts, then the end record.
func (w *checkpointWriter) write(head state) (err error) {
	head.tree.Scan(func(e Entry) bool {
		if len(w.payload) > 0 && int64(len(w.payload))+putSize(e.Key, e.Value) > partBytes {
			err = w.part()
		}
		w.payload = appendPut(w.payload, e)
		return err == nil
	})
	if err == nil && len(w.payload) > 0 {
		err = w.part()
	}
	if err != nil {
		return err
	}
	return w.put(wal.TypeCheckpointEnd, uint64(head.tree.Len()))
}

// part writes the entries gathered.
func (w *checkpointWriter) part() error {
	length := len(w.payload)
	w.payload = pad(w.payload)
	return w.put(wal.TypeCheckpointPart, uint64(length))
}

// put writes one record with the payload gathered, if any.
func (w *checkpointWriter) put(t wal.Type, length uint64) error {
	r := w.record
	r.Type, r.Seq, r.Length = t, w.seq, length
	size := int64(wal.PageSize + len(w.payload))
	if w.off+size > w.size {
		return fmt.Errorf("%w: checkpoint needs more than the %d bytes of %s", vfs.ErrNoSpace, w.size, w.file.Name())
	}
	wal.EncodeHeader(w.page[:], r, w.payload)
	if _, err := w.file.WriteVec([][]byte{w.page[:], w.payload}, w.off); err != nil {
		return err
	}
	w.off, w.seq, w.payload = w.off+size, w.seq+1, w.payload[:0]
	return nil
}
