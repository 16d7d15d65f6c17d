package main

// Tests that several breakages share.
var (
	walAll      = all("./pkg/wal")
	catalogAll  = all("./pkg/catalog")
	dedupAll    = all("./pkg/dedup")
	blobAll     = all("./pkg/blob")
	vfsAll      = all("./pkg/vfs")
	journalAll  = all("./pkg/blockstore/journal")
	exportFuse  = tests("./pkg/export", "TestInit|TestOldKernelInit|TestAnswers|TestReadOnlyAnswers|TestReaders|TestErrno")
	driverNode  = all("./pkg/driver")
	engineFault = tests("./pkg/blockstore", "TestFaults|TestJournalSyncFails|TestChunkSyncFails|TestTornTailStaysCut|TestFlushCoversWhatWasRecovered")
	engineRot   = tests("./pkg/blockstore", "TestOlderCatalog|TestDamagedHeader|TestDamagedJournal|TestDamagedMapNode|TestDamageHeals")
	engineRace  = tests("./pkg/blockstore", "TestAcknowledgeWaitsForEarlierRecords|TestSnapshotWaitsForWritesInFlight|TestSnapshotDuringFold|TestFoldDuringSnapshot")
	engineState = tests("./pkg/blockstore", "TestCopyHasItsSourcesState|TestStateMovesWhileCopied|TestSizesAndErrors")
	engineReach = tests("./pkg/blockstore", "TestLostSegmentAfterKill|TestOlderSegmentAfterKill|TestCommitsOfFlushes|TestFlushWhileFoldCommits|TestFlushThatCannotBeNoted")
	engineSim   = tests("./pkg/blockstore", "TestSimulation")
)

// breakages is the list. Each old text stands in its file exactly once.
var breakages = []breakage{
	// Syncs of files.
	{"pkg/catalog/log.go", "if err := w.file.Datasync(); err != nil {", "if err := error(nil); err != nil {", "catalog: commit not synced", []step{catalogAll}},
	{"pkg/catalog/log.go", "if err := f.Datasync(); err != nil {", "if err := error(nil); err != nil {", "catalog: checkpoint named before it is synced", []step{catalogAll}},
	{"pkg/catalog/log.go", "return f.Sync()", "return nil", "catalog: spare not synced", []step{catalogAll}},
	{"pkg/vfs/atomic.go", "err = f.Sync()", "err = nil", "atomic file: content not synced before its name", []step{vfsAll, engineSim}},
	{"pkg/blockstore/journal/pool.go", "return f.Sync()", "return nil", "journal: new segment not synced", []step{journalAll, engineSim}},
	{"pkg/blockstore/journal/segment.go", "if err := s.file.Datasync(); err != nil {", "if err := error(nil); err != nil {", "journal: segment not synced by a flush", []step{journalAll, engineFault, engineSim}},
	{"pkg/blockstore/journal/log.go", "return n.seg.Datasync()", "return nil", "journal: header of a new log not synced", []step{journalAll, engineFault, engineSim}},
	{"pkg/blockstore/journal/log.go", "n.before = l.Dirty()", "", "journal: what a new log builds on not synced", []step{journalAll, engineFault, engineSim}},
	{"pkg/blockstore/fold.go", "if err := w.Sync(); err != nil {", "if err := error(nil); err != nil {", "fold: commit before chunks are synced", []step{engineFault, engineSim}},
	{"pkg/dedup/append.go", "if err := f.blob.Writer().Datasync(); err != nil {", "if err := error(nil); err != nil {", "chunk file: sync answered without one", []step{dedupAll}},
	{"pkg/dedup/append.go", "if err := w.Sync(); err != nil { // the size too", "if err := error(nil); err != nil { // the size too", "chunk file: sealed before it is synced", []step{dedupAll, engineSim}},
	{"pkg/dedup/open.go", "if err := w.Sync(); err != nil {", "if err := error(nil); err != nil {", "chunk file: written anew at start, not synced", []step{dedupAll, engineSim}},
	// Syncs of directories.
	{"pkg/catalog/log.go", "return next.off, next.seq, w.fsys.SyncDir(w.dir)", "return next.off, next.seq, nil", "catalog: name of a new log not durable", []step{catalogAll}},
	{"pkg/catalog/log.go", "if err := w.fsys.SyncDir(w.dir); err != nil {", "if err := error(nil); err != nil {", "catalog: name of the spare not durable", []step{catalogAll}},
	{"pkg/vfs/atomic.go", "if err := fsys.SyncDir(path.Dir(name)); err != nil {", "if err := error(nil); err != nil {", "atomic file: name not durable", []step{vfsAll, engineSim}},
	{"pkg/blockstore/journal/pool.go", "err = p.fsys.SyncDir(p.dir)", "err = nil", "journal: name of a segment not durable", []step{journalAll, engineSim}},
	{"pkg/blob/dir.go", "if err := d.fsys.SyncDir(d.path); err != nil {", "if err := error(nil); err != nil {", "chunk file: name of a new file not durable", []step{blobAll, dedupAll, engineSim}},
	{"pkg/blob/file.go", "if err := d.fsys.SyncDir(d.path); err != nil {", "if err := error(nil); err != nil {", "chunk file: final name not durable", []step{blobAll}},
	// Checksums.
	{"pkg/wal/record.go", "if got := headerCRC(page); got != want {", "if got := headerCRC(page); false && got != want {", "record: header's checksum", []step{walAll}},
	{"pkg/wal/scan.go", "if PageCRC(payload[i*PageSize:(i+1)*PageSize]) != crc {", "if false && PageCRC(payload[i*PageSize:(i+1)*PageSize]) != crc {", "record: payload's checksum", []step{walAll}},
	{"pkg/wal/wal.go", "if got := PageCRC(page[:offSeal]); got != want {", "if got := PageCRC(page[:offSeal]); false && got != want {", "header page: checksum", []step{walAll}},
	{"pkg/wal/record.go", "if b != 0 {", "if false && b != 0 {", "record: bytes that must be zero", []step{walAll}},
	{"pkg/dedup/chunk.go", "if wal.PageCRC(b[:76]) != le.Uint32(b[76:]) {", "if false {", "chunk: head's checksum", []step{dedupAll}},
	{"pkg/dedup/chunk.go", "if wal.PageCRC(b) != h.frontCRC {", "if false {", "chunk: front's checksum", []step{dedupAll}},
	{"pkg/dedup/chunk.go", "if wal.PageCRC(b) != f.head.listCRC {", "if false {", "chunk: list's checksum", []step{dedupAll}},
	{"pkg/dedup/chunk.go", "if id != want {", "if false && id != want {", "chunk: proof of its ID", []step{dedupAll}},
	{"pkg/dedup/read.go", "if wal.PageCRC(stored) == r.crc {", "if true {", "group: checksum on read", []step{dedupAll}},
	{"pkg/dedup/open.go", "if wal.PageCRC(b) != t.footerCRC {", "if false {", "chunk file: footer's checksum", []step{dedupAll}},
	{"pkg/dedup/file.go", "|| wal.PageCRC(b[:60]) != le.Uint32(b[60:])", "", "chunk file: header's checksum", []step{dedupAll}},
	{"pkg/dedup/file.go", "if wal.PageCRC(b[:92]) != le.Uint32(b[92:]) {", "if false {", "chunk file: trailer's checksum", []step{dedupAll}},
	{"pkg/dedup/verify.go", "if FingerprintOf(group[:BlockSize]) != t.fps[i] {", "if false {", "check: fingerprint of a block", []step{dedupAll}},
	{"pkg/dedup/verify.go", "case t.hash != sum:", "case false && t.hash != sum:", "check: content hash of a file", []step{dedupAll}},
	{"pkg/blockstore/header.go", "if err := wal.CheckPage(page); err != nil {", "if err := error(nil); err != nil {", "store header: checksum", []step{engineRot}},
	{"pkg/blockstore/journal/segment.go", "if err := wal.CheckPage(page); err != nil {", "if err := error(nil); err != nil {", "segment header: checksum", []step{journalAll, engineRot}},
	// Fences.
	{"pkg/catalog/open.go", "\t\tc.epoch++\n", "", "catalog: a start does not raise the epoch", []step{catalogAll}},
	{"pkg/catalog/catalog.go", "if e.Revision != op.Expect {", "if false && e.Revision != op.Expect {", "catalog: revision not compared", []step{catalogAll}},
	{"pkg/catalog/open.go", "if header.store != store {", "if false && header.store != store {", "catalog: another store's log", []step{catalogAll}},
	{"pkg/catalog/open.go", "if header.log != n {", "if false && header.log != n {", "catalog: log under another's number", []step{catalogAll}},
	{"pkg/blockstore/fold.go", "if rec.Position != job.from {", "if false && rec.Position != job.from {", "fold: position not compared at commit", []step{engineFault, engineSim}},
	{"pkg/wal/scan.go", "rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {", "rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {", "record: owner not compared", []step{walAll}},
	{"pkg/wal/scan.go", "rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {", "rec.Owner != s.owner || rec.Log != s.log || rec.Seq != s.next {", "record: epoch not compared", []step{walAll}},
	{"pkg/wal/scan.go", "rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {", "rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Seq != s.next {", "record: log not compared", []step{walAll}},
	{"pkg/blockstore/journal/recover.go", "over := s.Header.Epoch < epoch || s.Header.Epoch == epoch && s.Header.Log < log", "over := false", "journal: logs that are over read again", []step{journalAll, engineSim}},
	{"pkg/blockstore/journal/recover.go", "if proved {", "if false && proved {", "journal: synced record missing", []step{journalAll, engineRot, engineSim}},
	// Orders.
	{"pkg/blockstore/volume.go", "return v.acknowledge(op)", "return nil", "write: acknowledged before it is appended", []step{engineRace, engineSim}},
	{"pkg/blockstore/volume.go", "\tif last != nil {\n\t\t<-last.wait\n\t}\n", "", "cut: records in flight not waited for", []step{engineRace, engineSim}},
	{"pkg/blockstore/volume.go", "clean := v.mu.dataSeq <= v.mu.synced", "clean := true", "flush: answered without one", []step{engineFault, engineSim}},
	{"pkg/blockstore/journal/recover.go", "seg.dirty = true // read back", "seg.dirty = false // read back", "flush: does not cover what was recovered", []step{engineFault, engineSim}},
	{"pkg/blockstore/journal/log.go", "l.segs[0].last <= seq {", "l.segs[0].last <= seq+1 {", "journal: trimmed too far", []step{journalAll, engineSim}},
	{"pkg/blockstore/fold.go", "if v.mu.unfoldable || oldest.hold > 0 {", "if v.mu.unfoldable {", "fold: begins before its cut is recorded", []step{engineRace, engineSim}},
	// Collection and dedup.
	{"pkg/blockstore/gate.go", "if n < mark {", "if false && n < mark {", "collector: does not wait for folds", []step{engineSim}},
	{"pkg/blockstore/collect.go", "c.plan.Recheck(c.live)", "", "collector: second marking not looked at", []step{engineSim}},
	{"pkg/dedup/collect.go", "cp.condemned = &dead\n\t\t\t}\n\t\t}\n\t}\n\tc.live = nil", "_ = dead\n\t\t\t}\n\t\t}\n\t}\n\tc.live = nil", "collector: nothing condemned", []step{dedupAll}},
	{"pkg/dedup/index.go", "return c.good(slot) && (c.condemned == nil || !c.condemned.has(slot))", "return c.good(slot)", "dedup against a condemned slot", []step{dedupAll}},
	{"pkg/dedup/index.go", "return c.good(slot) && (c.condemned == nil || !c.condemned.has(slot))", "return c.condemned == nil || !c.condemned.has(slot)", "dedup against a damaged or dropped slot", []step{dedupAll}},
	// Cuts.
	{"pkg/blockstore/open.go", "\tif cut.Names <= 1 {", "\tif cut.Names <= 2 {", "cut: goes before its last name", []step{engineSim}},
	{"pkg/blockstore/snapshot.go", "case c.rec.Position.Seq < at.Seq:", "case false:", "cut: given the root of an earlier position", []step{engineRace, engineSim}},
	// The device.
	{"pkg/export/errors.go", "\t\treturn unix.EIO\n", "\t\treturn unix.ENOSYS\n", "FSYNC that failed answered with ENOSYS", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "f.errno(\"flush\", 0, 0, f.dev.Flush())", "0", "FSYNC answered without a flush", []step{exportFuse}},
	{"pkg/driver/stage.go", "if s.info.State == blockstore.StateUsed {\n\t\treturn nil\n\t}\n\tif s.readOnly {", "if false {\n\t\treturn nil\n\t}\n\tif s.readOnly {", "stage: volume in use looked at as an empty one", []step{driverNode}},
	{"pkg/driver/stage.go", "if err := s.volume.SetState(blockstore.StateFormatting, fsType); err != nil {", "if err := error(nil); err != nil {", "mkfs before formatting is durable", []step{driverNode}},
	{"pkg/driver/stage.go", "return s.volume.SetState(blockstore.StateUsed, fsType)", "return nil", "mkfs: used is never recorded", []step{driverNode}},
	// How far journals reach.
	{"pkg/blockstore/volume.go", "for err == nil && v.noteDue(upto) {", "for false && v.noteDue(upto) {", "flush: answered before the catalog knows its segment", []step{engineReach}},
	{"pkg/blockstore/reach.go", "known := max(v.mu.log.First(seq), v.mu.passed+1)", "known := v.mu.passed + 1", "flush: further segments not noted", []step{engineReach}},
	{"pkg/blockstore/reach.go", "known := max(v.mu.log.First(seq), v.mu.passed+1)", "known := v.mu.log.First(seq)", "flush: what a fold leaves in a segment not noted", []step{engineReach}},
	{"pkg/blockstore/reach.go", "\tv.mu.passed = max(v.mu.passed, seq)\n", "", "flush: counts with a position that a commit is about to pass", []step{engineReach}},
	{"pkg/blockstore/reach.go", "if reach := max(durable, v.mu.synced); reach > seq {", "if reach := max(durable, v.mu.synced); false && reach > seq {", "fold: forgets how far the journal reaches", []step{engineReach}},
	{"pkg/blockstore/journal/recover.go", "if err == nil && r.cut.Last < reach {", "if err == nil && false && r.cut.Last < reach {", "journal: may end before what it had reached", []step{journalAll, engineReach}},
	{"pkg/blockstore/reach.go", "found[id] == nil &&", "false &&", "journal: nobody misses one without a segment", []step{engineReach}},
	{"pkg/blockstore/journal/recover.go", "first.Header.PrevEnd > r.cut.Last {", "false && first.Header.PrevEnd > r.cut.Last {", "journal: nobody misses the logs before the first", []step{journalAll}},
	{"pkg/blockstore/journal/recover.go", "return a.Number < b.Number", "return false", "journal: an empty segment read instead of its successor", []step{journalAll}},
}
