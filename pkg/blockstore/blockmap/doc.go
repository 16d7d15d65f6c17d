// Package blockmap maps the blocks of a volume image to slots of chunks: a
// copy-on-write tree of extents whose nodes are slots of chunks themselves, so that
// a root (a [dedup.Slot]) names a whole image and every older root stays valid.
// FORMAT.md beside package blockstore, section 6 "Map node", has the bytes.
//
// Data flow: [Tree.Lookup] turns a range of blocks into extents; [Tree.Update] takes
// a fold's changes, hands new nodes to a [NodeSink], children before parents, and
// returns the new root; [Tree.Walk] visits nodes for marking and checking. Nodes come
// from a [NodeSource], already verified against their chunk's fingerprints.
//
// What always holds:
//
//   - I3, a node only names durable chunks, is the caller's duty: the data chunks that
//     changes name are appended before Update, and the sink's chunks and they are
//     durable before the new root is published.
//   - I4: no node is ever changed. Update writes the nodes on the way to a change anew
//     and shares all others with the old root.
//   - I5: what cannot be read is an error for its range of blocks ([NodeError]) and for
//     no other. Update keeps pointers to it beside what is written new, so that all of
//     it is there again once it can be read.
//   - A child's content counts only inside the range that its parent gives it: from its
//     entry's first block to that of the next entry. The same child may stand in a node
//     several times, with holes cut out by other entries.
//   - A child's level is below its parent's (any number below). Only nodes that were made
//     above a root that could not be read, of levels that no tree reaches otherwise, may have
//     children of any level. A child in its parent's own chunk has a lower slot, and one in
//     another chunk was there before it, so no path comes back to where it was.
//
// What this package must not know: volumes, snapshots, catalog, journal, files, how
// chunks are stored, found, compressed or verified, and what a block contains.
package blockmap
