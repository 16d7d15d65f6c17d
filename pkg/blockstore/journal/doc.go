// Package journal keeps the write-ahead logs of volumes in recycled segments.
//
// A Pool owns all segments of a store: files of one fixed size, written full of zeros
// once and then used again and again, so that an append never changes the file
// system's metadata. A Log is the tail of one attached volume: it holds the segments
// with records that are not folded yet and hands out places for new records. Recover
// reads a volume's logs back after a start.
//
// The package knows records, segments and sequence numbers. It knows nothing of
// overlays, folds or roots: what a record means and when a segment may go is the
// volume's business (package blockstore). The bytes are described in
// pkg/blockstore/FORMAT.md, sections 3 and 5.
//
// Invariants:
//   - A segment is in the free list, or in exactly one log; it returns to the free
//     list only when its log has let it go and no reader or append in flight uses it.
//   - Segment 0 of a log is durable (header synced) before the log's first record is
//     written, so that a cut after a recovery cannot be forgotten.
//   - Nothing is ever appended behind the place where a recovery stopped reading.
package journal
