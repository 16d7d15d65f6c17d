package catalog

import (
	"fmt"

	"github.com/k8ns/granary/pkg/vfs"
	"github.com/k8ns/granary/pkg/wal"
)

// logReader reads a log's records and sees to their order: parts of a checkpoint, its
// end, commits with numbers that go up by one.
type logReader struct {
	file   vfs.File
	size   int64 // of it, in bytes
	header fileHeader
	scan   *wal.Scanner

	at  int64  // offset of the record that next returned last; at the end, where it would be
	seq uint64 // its sequence

	ended  bool   // the checkpoint's end was read
	commit uint64 // number of the last commit
}

func newLogReader(f vfs.File, size int64, h fileHeader) *logReader {
	return &logReader{
		file: f, size: size, header: h, commit: h.commit,
		scan: wal.NewScanner(f, size, wal.PageSize, h.store, h.epoch, h.log, h.firstSeq),
	}
}

// next returns the next record and its payload without the filling, valid until the
// next call. ok is false at the end of the log, torn or not. Errors are failed reads,
// or wal.ErrCorrupt or wal.ErrVersion naming the offset.
func (r *logReader) next() (rec wal.Record, payload []byte, ok bool, err error) {
	r.at, r.seq = r.scan.Offset(), r.scan.NextSeq()
	rec, _, _, payload, ok, err = r.scan.Next()
	if err != nil {
		return rec, nil, false, err
	}
	// Part of a checkpoint behind a checkpoint's end is not the next record: a start
	// before this log was made has left it in the file, see checkpointWriter.record.
	stale := r.ended && (rec.Type == wal.TypeCheckpointPart || rec.Type == wal.TypeCheckpointEnd)
	if !ok || stale {
		return rec, nil, false, r.end()
	}
	if why := r.take(rec); why != "" {
		return rec, nil, false, fmt.Errorf("%w: %v record %d at offset %d: %s", wal.ErrCorrupt, rec.Type, rec.Seq, r.at, why)
	}
	if rec.Type != wal.TypeCheckpointEnd {
		payload = payload[:rec.Length]
	}
	return rec, payload, true, nil
}

// take accepts rec as the next one or says why not.
func (r *logReader) take(rec wal.Record) string {
	switch rec.Type {
	case wal.TypeCheckpointPart, wal.TypeCheckpointEnd:
		if rec.Offset != r.header.commit {
			return fmt.Sprintf("of commit %d, the checkpoint is of %d", rec.Offset, r.header.commit)
		}
		r.ended = rec.Type == wal.TypeCheckpointEnd
	case wal.TypeCommit:
		if !r.ended {
			return "inside the checkpoint"
		}
		if rec.Offset != r.commit+1 {
			return fmt.Sprintf("commit %d follows %d", rec.Offset, r.commit)
		}
		r.commit = rec.Offset
	default:
		return "not one of a catalog"
	}
	return ""
}

// end tells whether the log may end at r.at: behind its checkpoint, and with nothing
// that proves that the record missing there had been durable.
func (r *logReader) end() error {
	if !r.ended {
		return fmt.Errorf("%w: record %d at offset %d, part of the checkpoint, is missing", wal.ErrCorrupt, r.seq, r.at)
	}
	h := r.header
	at, proved, err := wal.ProvesCorruption(r.file, r.size, r.at, h.store, h.epoch, h.log, r.seq)
	if err != nil {
		return err
	}
	if proved {
		return fmt.Errorf("%w: record %d at offset %d is missing, the record at offset %d says that it was durable",
			wal.ErrCorrupt, r.seq, r.at, at)
	}
	return nil
}
