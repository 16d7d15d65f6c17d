// Package dedup turns bytes into addresses: a block goes in, a (chunk, slot) comes
// out, and equal blocks get equal addresses as often as that is cheap to find out. It
// keeps chunk files in a blob.Dir. It knows nothing of volumes, roots or catalogs;
// FORMAT.md of pkg/blockstore, section 6, has the bytes.
//
// Data flow of a fold, one Writer:
//
//	Block -> fingerprint -> known? -> its address
//	                         | no
//	                         v
//	        group of 8 -> compressed by a worker -> chunk of 1,024 -> chunk file -> Sync
//
// A block is looked for, in this order: behind the slot that the block before it hit
// (duplicates come in runs), at its predecessor's address, in the blocks pending in
// this Writer, in the fingerprint lists of recently hit or written chunks, in the
// lists of the hinted chunks, in the hooks. Hooks are the one fingerprint in 32 that
// memory keeps; a hit loads its chunk's whole list, which answers for the neighbours.
// That is the locality cache of Zhu, Li and Patterson (Avoiding the Disk Bottleneck
// in the Data Domain Deduplication File System, FAST '08) and the sparse index of
// Lillibridge et al. (Sparse Indexing, FAST '09). Chunk IDs are hash trees split as
// in RFC 6962.
//
// Data flow of a read: chunk index -> copies -> group table (cached) -> one read ->
// CRC -> decompressed -> cache of groups -> caller.
//
// Invariants (numbers as in package blockstore):
//   - I2: an index entry is made after its chunk's bytes were written, a sealed name
//     after they were synced. Writer.Sync says that everything a Writer made or
//     referred to is durable.
//   - I5: ReadSlots returns bytes that match the checksum of their group, or an error.
//   - I6: a slot is dropped only if it was condemned, found dead by a marking that
//     began later, or is in another sealed copy that was just read and checked. A
//     condemned, damaged or missing slot is never a dedup target.
//   - I8: a chunk file whose fdatasync failed is abandoned; its unsynced chunks leave
//     the index and every Writer that needs them fails its Sync.
//   - I10: the index, hooks and caches are rebuilt from chunk files by Open.
//   - A missed duplicate costs space, never correctness.
//
// Locks, in the order they are taken: Store.appending (who appends), file.syncing
// (who syncs or seals it), Store.mu (index), lists.mu and the caches' own. No disk is
// touched under Store.mu or below it.
package dedup
