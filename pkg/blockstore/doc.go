// Package blockstore keeps volumes: it turns blocks written at an address into
// deduplicated chunks and back, and takes snapshots and clones that cost nothing.
//
// # The way of a block
//
// A write becomes a record of the volume's journal (package journal) and an interval
// of its overlay; it is acknowledged once every record up to its own is in the
// journal's files, and survives power loss after the next Flush. A fold (fold.go)
// takes one frozen layer of the overlay, deduplicates its blocks (package dedup),
// appends the new ones as chunks, makes a new block map (package blockmap) and commits
// its root to the catalog (package catalog). Then the journal is trimmed. A read looks
// at the overlay first, then at the block map.
//
// A snapshot is a mark in the journal: the overlay layer in use is frozen and a record
// (the cut) is committed; the fold of that layer gives the cut its root. A clone is a
// volume record that starts with somebody's root. Deleting either removes a record.
// Collection (collect.go) finds the slots that no root reaches, condemns them, waits
// for the folds begun before, looks again and drops what is still dead.
//
// A volume may also be opened with a throw-away layer (scratch.go), for mounts that must
// not change it: what is written there goes nowhere of all this.
//
// Background work is made of step functions (foldOnce, collectStep, markStep) that
// tests call; Run only schedules them. Clock, randomness and files are injected.
//
// # Invariants
//
//   - I1 Death of the process loses no acknowledged write. After power loss a volume
//     equals a prefix of its write order that holds every flushed write; a 4 KiB block is
//     old or new, never mixed.
//   - I2 Publication order: chunk-file data synced, then its index entries, then map
//     nodes, then the root in the catalog, then the journal is trimmed. Deletion runs
//     the other way round.
//   - I3 A root only names durable nodes; a node only names durable chunks.
//   - I4 Snapshots never change.
//   - I5 Wrong bytes are never returned: an error instead, naming volume, file, offset.
//   - I6 No reachable slot is ever dropped, whatever races with the collector.
//   - I7 At most one owner commits to a volume: the directory's lock is held for the
//     process's life, and each start raises the epoch durably before it makes a file.
//   - I8 fsync failure is data loss, never retried on the same file: the volume fails
//     closed and nothing is acknowledged any more.
//   - I9 A full disk never breaks a volume: writers wait until space returns. Folding
//     what is unfolded, deleting and collecting have their reserve as allocated files.
//   - I10 Chunk index, hooks and caches can be thrown away; catalog and chunk files are
//     the truth. A catalog older than the files beside it is refused.
//   - I11 mkfs never runs over data: see VolumeState.
//
// # Why power loss on any line is safe
//
// Nothing durable is ever changed in place. A record is found by its checksum and
// place in the sequence; a torn one ends the log, and only unflushed ones can be torn.
// A chunk is found by its checksum; one that is whole but in no root is garbage. A root
// is one field of one catalog commit, which is itself one record. So each crash leaves
// either the state before a commit or after it, with a journal that covers the
// difference. FORMAT.md, section 8, has the order for each operation.
//
// The package knows nothing of kernels, devices, mounts or CSI.
package blockstore
