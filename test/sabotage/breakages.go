package main

// Tests that several breakages share, the quick ones first.
var (
	vfsAll     = all("./pkg/vfs")
	blobAll    = all("./pkg/blob")
	walAll     = all("./pkg/wal")
	catalogAll = all("./pkg/catalog")
	journalAll = all("./pkg/blockstore/journal")
	mapAll     = all("./pkg/blockstore/blockmap")
	mapNode    = tests("./pkg/blockstore/blockmap", "TestDecodeRefuses|TestNewNodeRefuses|TestNodeRoundTrip")
	attachAll  = all("./pkg/attach")

	dedupRefused = tests("./pkg/dedup", "TestChunkHead_Refuses|TestFront_Refuses|TestFooter_Refuses|TestEveryByteOfAFooter|TestBadFooter")
	dedupRot     = tests("./pkg/dedup", "TestEveryByteOfAFooter|TestEveryByte|TestHealing|TestVerifyBelievesNoChecksum")
	dedupCollect = tests("./pkg/dedup", "TestFailedFileIsLeftAlone|TestCondemn|TestPlanPicks|TestCollectDamaged|TestCollectFaults|TestCollectRandom")
	dedupSync    = tests("./pkg/dedup", "TestSyncWaitsForAnother|TestFailedFileIsLeftAlone")
	dedupAll     = all("./pkg/dedup")

	engineTrace   = tests("./pkg/blockstore", "TestTrace")
	engineReach   = tests("./pkg/blockstore", "TestLostSegmentAfterKill|TestOlderSegmentAfterKill|TestCommitsOfFlushes|TestFlushThatCannotBeNoted|TestDeletedVolumeOwesItsCuts.*|TestBadSegmentIsEvidence|TestFlushWhileFoldCommits|TestFlushOfWhatAFoldIsAboutToPass|TestSwappedSegmentsAfterKill")
	engineGate    = tests("./pkg/blockstore", "TestGate|TestCollectionWaitsForFolds|TestCollectWaitsForAnother|TestCommitsAreConditional|TestRootsOfCuts")
	engineVolume  = tests("./pkg/blockstore", "TestWriteOfAVolumeClosedMeanwhile|TestFailedAppendEndsWhoWaits|TestWriterAndCutWaitTogether|TestUnsyncedMemoryIsBounded|TestFlush.*|TestWritersWaitForASegment|TestFoldWaitsForAnother")
	engineRace    = tests("./pkg/blockstore", "TestAcknowledgeWaitsForEarlierRecords|TestSnapshotIsNotOvertaken|TestSnapshotWaitsForWritesInFlight|TestSnapshotDuringFold|TestFoldDuringSnapshot")
	engineCollect = tests("./pkg/blockstore", "TestCollect.*|TestEveryInterleaving|TestConcurrent")
	engineState   = tests("./pkg/blockstore", "TestArguments_Refused|TestCopyHasItsSourcesState|TestStateMovesWhileCopied|TestSizesAndErrors|TestVolumeRanges")
	engineFault   = tests("./pkg/blockstore", "TestJournalSyncFails|TestHeaderFails|TestChunkSyncFails|TestTornTailStaysCut|TestFlushCoversWhatWasRecovered|TestFailedVolumeAttachesAgain|TestMarkSyncFails|TestUnreadableSegmentHeader")
	engineRot     = tests("./pkg/blockstore", "TestEachFileTellsTheAge|TestReplayRefuses|TestStoreHeader_Refused|TestRecords_Refused|TestEpoch_Refused|TestOlderCatalog|TestDamagedHeader|TestLostHeader|TestDamagedMapNode|TestDamageHeals|TestPartialWriteOntoDamage|TestUnreadableSegmentHeader|TestLostCutIsSaid|TestDamagedJournal|TestBadJournalPageStopsNobody")
	engineRotAll  = tests("./pkg/blockstore", "TestRot")
	engineRepair  = tests("./pkg/blockstore", "TestRepair[A-DF-Z].*|TestDamageOf.*")
	engineScratch = tests("./pkg/blockstore", "TestScratch.*")
	engineFull    = tests("./pkg/blockstore", "TestFull.*|TestReserveCoversEachRecord|TestOnFullError|TestCollectOnDiskFullToTheLastPage")
	engineMany    = tests("./pkg/blockstore", "TestConcurrent")
	engineSim     = tests("./pkg/blockstore", "TestSimulation")

	raceEngine  = raceIn("./pkg/blockstore", "TestConcurrent")
	raceDedup   = raceIn("./pkg/dedup", "TestCollectRace")
	raceCatalog = raceIn("./pkg/catalog", "TestCommit.*")

	exportFuse   = tests("./pkg/export", "TestInit|TestOldKernelInit|TestAnswers.*|TestReadOnlyAnswers|TestReaders|TestErrno")
	exportAttach = tests("./pkg/export", "TestVectors|TestSizes|TestDetachInUse|TestErrors|TestReadOnly.*|TestResizeRefused|TestDetach.*|TestAttachChecksTheSize|TestSlowWrite|TestNoSpaceForHoles")
	driverNode   = tests("./pkg/driver", "TestMkfsProtocol|TestStage.*|TestMkfsThatFails|TestSecondStage|TestFilesystem.*|TestNoFsckUnderAMount|TestHostileFields|TestRefusedStageChangesNothing|TestSecondOperationIsAborted|TestNode.*")
)

// breakages is the list. Each old text stands in its file exactly once.
var breakages = []breakage{
	// Syncs of files.
	{"pkg/vfs/osfile.go", "return mapErr(f.f.Sync())", "return nil", "os file: Sync does not sync", []step{vfsAll}},
	{"pkg/vfs/osfile.go", "return f.control(\"fdatasync\", unix.Fdatasync)", "return nil", "os file: Datasync does not sync", []step{vfsAll}},
	{"pkg/vfs/atomic.go", "err = f.Sync()", "err = nil", "atomic file: content not synced before its name", []step{vfsAll}},
	{"pkg/vfs/atomic.go", "return errors.Join(err, f.Close())\n}\n\n// ReadFile", "_, _ = err, f.Close()\n\treturn nil\n}\n\n// ReadFile", "atomic file: failed write or sync not told", []step{vfsAll}},
	{"pkg/catalog/log.go", "if err := w.file.Datasync(); err != nil {", "if err := error(nil); err != nil {", "catalog: commit not synced", []step{catalogAll}},
	{"pkg/catalog/log.go", "if err := f.Datasync(); err != nil {", "if err := error(nil); err != nil {", "catalog: checkpoint named before it is synced", []step{catalogAll}},
	{"pkg/catalog/log.go", "return f.Sync()", "return nil", "catalog: spare not synced", []step{catalogAll}},
	{"pkg/blockstore/journal/pool.go", "return f.Sync()", "return nil", "journal: new segment not synced", []step{engineTrace}},
	{"pkg/blockstore/journal/segment.go", "if err := s.file.Datasync(); err != nil {", "if err := error(nil); err != nil {", "journal: segment not synced by a flush", []step{journalAll, engineTrace}},
	{"pkg/blockstore/journal/log.go", "return n.seg.Datasync()", "return nil", "journal: header of a new log not synced", []step{journalAll, engineTrace}},
	{"pkg/blockstore/journal/log.go", "n.before = l.Dirty()", "", "journal: what a new log builds on not synced", []step{journalAll, engineTrace}},
	{"pkg/blockstore/fold.go", "if err := w.Sync(); err != nil {", "if err := error(nil); err != nil {", "fold: commit before chunks are synced", []step{engineTrace}},
	{"pkg/dedup/writer.go", "if err := w.s.syncFile(f, w.need[f]); err != nil {", "if err := error(nil); f == nil || err != nil {", "writer: Sync syncs no file", []step{dedupAll, engineTrace}},
	{"pkg/dedup/writer.go", "\tif c != nil {\n\t\tw.needs(c)\n\t}\n", "", "writer: what it refers to is not synced", []step{dedupAll, engineSim}},
	{"pkg/dedup/writer.go", "\tfor _, c := range copies {\n\t\tw.needs(c)\n\t}\n", "", "writer: what it appended is not synced", []step{engineTrace}},
	{"pkg/dedup/append.go", "if err := f.blob.Writer().Datasync(); err != nil {", "if err := error(nil); err != nil {", "chunk file: sync answered without one", []step{engineTrace}},
	{"pkg/dedup/append.go", "err = w.Sync() // the size too", "err = nil // the size too", "chunk file: sealed before it is synced", []step{engineTrace}},
	{"pkg/dedup/open.go", "if err := w.Sync(); err != nil {", "if err := error(nil); err != nil {", "chunk file: written anew at start, not synced", []step{engineTrace}},
	{"pkg/blockstore/reserve.go", "err = f.Sync()", "err = nil", "reserve: space not durably allocated", []step{engineTrace}},
	{"pkg/blockstore/volume.go", "\tif err == nil {\n\t\tv.markStep()\n\t\terr = v.syncJournal()\n\t}\n", "", "detach: mark not written and synced", []step{engineTrace}},
	{"pkg/blockstore/volume.go", "\terr := v.syncJournal()\n\tif err == nil {\n\t\tv.markStep()", "\terr := error(nil)\n\tif err == nil {\n\t\tv.markStep()", "detach: journal not synced", []step{engineTrace}},
	{"pkg/blockstore/snapshot.go", "err = v.syncUpTo(at.Seq)", "err = nil", "snapshot: journal not synced up to the mark", []step{engineTrace}},
	{"pkg/blockstore/store.go", "\t\terrs = append(errs, s.cat.Close())\n", "", "stop: catalog left open", []step{engineFault}},
	{"pkg/blockstore/store.go", "err = v.syncRecovered()", "err = nil", "stop: what was read back is not synced", []step{engineTrace, engineRot, engineSim}},
	{"pkg/export/attach.go", "if err := Within(ctx, func() error { return a.host.FlushDevice(a.loop.Path) }); err != nil {", "if err := error(nil); err != nil {", "detach: device not flushed", []step{exportAttach}},
	{"pkg/export/attach.go", "if err := Within(ctx, a.dev.Flush); err != nil {", "if err := error(nil); err != nil {", "detach: what the last close wrote not flushed", []step{exportAttach}},
	{"pkg/driver/stage.go", "if err := s.d.host.FlushDevice(device); err != nil {", "if err := error(nil); err != nil {", "mkfs: device not flushed before used is recorded", []step{driverNode}},
	// Syncs of directories.
	{"pkg/vfs/os.go", "err = f.Sync()\n", "err = nil\n", "os: SyncDir does not sync", []step{vfsAll}},
	{"pkg/vfs/os.go", "return syncDir(parent)", "return nil", "os: name of a new directory not durable", []step{vfsAll}},
	{"pkg/vfs/atomic.go", "if err := fsys.SyncDir(path.Dir(name)); err != nil {", "if err := error(nil); path.Dir(name) == \"\" || err != nil {", "atomic file: name not durable", []step{vfsAll}},
	{"pkg/catalog/log.go", "return next.off, next.seq, w.fsys.SyncDir(w.dir)", "return next.off, next.seq, nil", "catalog: name of a new log not durable", []step{catalogAll}},
	{"pkg/catalog/log.go", "if err := w.fsys.SyncDir(w.dir); err != nil {", "if err := error(nil); err != nil {", "catalog: name of the spare not durable", []step{catalogAll}},
	{"pkg/blockstore/journal/pool.go", "\t\terr = p.fsys.SyncDir(p.dir)\n", "\t\terr = nil\n", "journal: name of a segment not durable", []step{engineTrace}},
	{"pkg/blockstore/journal/pool.go", "\t\terr = fsys.SyncDir(dir)\n", "\t\terr = nil\n", "journal: names that a dead process made not made durable", []step{journalAll}},
	{"pkg/blob/dir.go", "if err := d.fsys.SyncDir(d.path); err != nil {", "if err := error(nil); err != nil {", "chunk file: name of a new file not durable", []step{blobAll}},
	{"pkg/blob/file.go", "if err := d.fsys.SyncDir(d.path); err != nil {", "if err := error(nil); err != nil {", "chunk file: final name not durable", []step{blobAll}},
	// Page caches, allocation and the tail of a file.
	{"pkg/vfs/osfile.go", "return f.control(\"fadvise\", func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })", "return nil", "os file: cache not dropped", []step{vfsAll}},
	{"pkg/blockstore/journal/pool.go", "err = f.DropCache()", "err = nil", "journal: read back from the page cache", []step{engineTrace}},
	{"pkg/dedup/open.go", "if err := ff.blob.DropCache(); err != nil {", "if err := error(nil); err != nil {", "chunk file: read back from the page cache", []step{engineTrace}},
	{"pkg/dedup/open.go", "if err := retryNoSpace(s.o.NoSpace, func() error { _, err := w.WriteAt(b, at); return err }); err != nil {", "if err := error(nil); err != nil {", "chunk file: not written anew at start", []step{engineTrace}},
	{"pkg/dedup/open.go", "if err := w.Truncate(f.size); err != nil {", "if err := error(nil); err != nil {", "chunk file: torn tail not cut at start", []step{engineTrace}},
	{"pkg/dedup/append.go", "w.Truncate(cut) //", "_ = cut //", "chunk file: abandoned with what was not synced", []step{dedupAll}},
	{"pkg/blockstore/journal/pool.go", "if err := f.Allocate(0, p.o.SegmentBytes); err != nil {", "if err := error(nil); err != nil {", "journal: new segment not allocated", []step{engineTrace}},
	{"pkg/blockstore/journal/pool.go", "if _, err := f.WriteAt(zeros[:n], off); err != nil {", "if err := error(nil); n < 0 || zeros == nil || err != nil {", "journal: new segment not filled with zeros", []step{journalAll}},
	{"pkg/blockstore/journal/pool.go", "\t\tp.fsys.Remove(full)\n", "", "journal: segment that could not be made left", []step{journalAll}},
	{"pkg/catalog/log.go", "if err := f.Allocate(0, size); err != nil {", "if err := error(nil); err != nil {", "catalog: spare not allocated", []step{catalogAll}},
	{"pkg/blockstore/reserve.go", "err = f.Allocate(0, r.fileBytes)", "err = nil", "reserve: no space allocated", []step{engineTrace}},
	// Checksums.
	{"pkg/wal/record.go", "if got := headerCRC(page); got != want {", "if got := headerCRC(page); false && got != want {", "record: header's checksum", []step{walAll}},
	{"pkg/wal/scan.go", "if PageCRC(payload[i*PageSize:(i+1)*PageSize]) != crc {", "if false && PageCRC(payload[i*PageSize:(i+1)*PageSize]) != crc {", "record: payload's checksum", []step{walAll}},
	{"pkg/wal/wal.go", "if got := PageCRC(page[:offSeal]); got != want {", "if got := PageCRC(page[:offSeal]); false && got != want {", "header page: checksum", []step{walAll}},
	{"pkg/wal/record.go", "if b != 0 {", "if false && b != 0 {", "record: bytes that must be zero", []step{walAll}},
	{"pkg/wal/record.go", "if err := checkZeros(page, r); err != nil {", "if err := error(nil); err != nil {", "record: zero fields not looked at", []step{walAll}},
	{"pkg/wal/record.go", "\tif err := r.Validate(); err != nil {\n\t\treturn Record{}, nil, err\n\t}\n\tif err := checkZeros", "\tif err := checkZeros", "record: fields not validated", []step{walAll}},
	{"pkg/dedup/chunk.go", "if wal.PageCRC(b[:76]) != le.Uint32(b[76:]) {", "if false {", "chunk: head's checksum", []step{dedupRefused}},
	{"pkg/dedup/chunk.go", "if wal.PageCRC(b) != h.frontCRC {", "if false {", "chunk: front's checksum", []step{dedupRefused}},
	{"pkg/dedup/chunk.go", "if wal.PageCRC(b) != f.head.listCRC {", "if false {", "chunk: list's checksum", []step{dedupRefused}},
	{"pkg/dedup/chunk.go", "if id != want {", "if false && id != want {", "chunk: proof of its ID", []step{dedupRefused}},
	{"pkg/dedup/read.go", "if wal.PageCRC(stored) == r.crc {", "if wal.PageCRC(stored) == r.crc || true {", "group: checksum on read", []step{dedupRot, dedupAll}},
	{"pkg/dedup/open.go", "if r.size > 0 && wal.PageCRC(payload[r.off:r.off+r.size]) != r.crc {", "if false && wal.PageCRC(payload[r.off:r.off+r.size]) != r.crc {", "chunk: groups' checksums at a scan", []step{dedupRot, dedupAll}},
	{"pkg/dedup/open.go", "if wal.PageCRC(b) != t.footerCRC {", "if false {", "chunk file: footer's checksum", []step{dedupRot, dedupAll}},
	{"pkg/dedup/file.go", "|| wal.PageCRC(b[:60]) != le.Uint32(b[60:])", "", "chunk file: header's checksum", []step{dedupRefused, dedupAll}},
	{"pkg/dedup/file.go", "if wal.PageCRC(b[:92]) != le.Uint32(b[92:]) {", "if false {", "chunk file: trailer's checksum", []step{dedupRefused, dedupAll}},
	{"pkg/dedup/verify.go", "if FingerprintOf(group[:BlockSize]) != t.fps[i] {", "if false {", "check: fingerprint of a block", []step{dedupAll}},
	{"pkg/dedup/verify.go", "case t.hash != sum:", "case false && t.hash != sum:", "check: content hash of a file", []step{dedupAll}},
	{"pkg/dedup/open.go", "if FingerprintOf(content) != t.fps[slot] {", "if false && FingerprintOf(content) != t.fps[slot] {", "scan: a guest's data taken for a chunk", []step{dedupAll}},
	{"pkg/blockstore/header.go", "if err := wal.CheckPage(page); err != nil {", "if err := error(nil); err != nil {", "store header: checksum", []step{engineRot}},
	{"pkg/blockstore/header.go", "if len(bytes.TrimLeft(page[56:wal.PageSize-4], \"\\x00\")) > 0 {", "if false && len(bytes.TrimLeft(page[56:wal.PageSize-4], \"\\x00\")) > 0 {", "store header: bytes that must be zero", []step{engineRot}},
	{"pkg/blockstore/journal/segment.go", "if err := wal.CheckPage(page); err != nil {", "if err := error(nil); err != nil {", "segment header: checksum", []step{journalAll, engineRot}},
	{"pkg/blockstore/overlay.go", "if wal.PageCRC(page) != p.crcs[i] {", "if false && wal.PageCRC(page) != p.crcs[i] {", "overlay: checksum of a journal page that is read back", []step{engineRot, engineSim}},
	{"pkg/blockstore/scratch.go", "if crc32.Checksum(dst[i:i+sectorBytes], castagnoli) != r.sums[(in+i)/sectorBytes] {", "if false {", "throw-away layer: checksum of what is read back", []step{engineScratch}},
	// Fences.
	{"pkg/vfs/os.go", "return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)", "return nil", "os: directory not locked", []step{vfsAll}},
	{"pkg/catalog/open.go", "\t\tc.epoch++\n", "", "catalog: a start does not raise the epoch", []step{catalogAll}},
	{"pkg/catalog/catalog.go", "if e.Revision != op.Expect {", "if false && e.Revision != op.Expect {", "catalog: revision not compared", []step{catalogAll}},
	{"pkg/catalog/open.go", "if header.store != store {", "if false && header.store != store {", "catalog: another store's log", []step{catalogAll}},
	{"pkg/catalog/open.go", "if header.log != n {", "if false && header.log != n {", "catalog: log under another's number", []step{catalogAll}},
	{"pkg/catalog/open.go", "if err := checkNoLog(fsys, dir, files); err != nil {", "if err := error(nil); err != nil {", "catalog: one that lost its log taken for a new one", []step{catalogAll}},
	{"pkg/catalog/open.go", "if n := uint64(l.state.tree.Len()); n != rec.Length {", "if n := uint64(l.state.tree.Len()); false && n != rec.Length {", "catalog: entries of a checkpoint not counted", []step{catalogAll}},
	{"pkg/catalog/reader.go", "if rec.Offset != r.commit+1 {", "if false && rec.Offset != r.commit+1 {", "catalog: a commit left out", []step{catalogAll}},
	{"pkg/catalog/reader.go", "if !r.ended {\n\t\treturn fmt", "if false {\n\t\treturn fmt", "catalog: checkpoint without its end", []step{catalogAll}},
	{"pkg/catalog/reader.go", "\tif proved {", "\tif false && proved {", "catalog: durable record missing at the end", []step{catalogAll}},
	{"pkg/wal/scan.go", "rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {", "rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {", "record: owner not compared", []step{walAll}},
	{"pkg/wal/scan.go", "rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {", "rec.Owner != s.owner || rec.Log != s.log || rec.Seq != s.next {", "record: epoch not compared", []step{walAll}},
	{"pkg/wal/scan.go", "rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Log != s.log || rec.Seq != s.next {", "rec.Owner != s.owner || rec.Epoch != s.epoch || rec.Seq != s.next {", "record: log not compared", []step{walAll}},
	{"pkg/wal/scan.go", "|| rec.Seq != s.next {", "{", "record: sequence not compared", []step{walAll}},
	{"pkg/wal/scan.go", "if rec.Owner == owner && rec.Epoch == epoch && rec.Log == log && rec.Seq > expected && rec.Synced >= expected {", "if rec.Epoch == epoch && rec.Log == log && rec.Seq > expected && rec.Synced >= expected {", "proof of damage: another owner's record", []step{walAll}},
	{"pkg/wal/scan.go", "if rec.Owner == owner && rec.Epoch == epoch && rec.Log == log && rec.Seq > expected && rec.Synced >= expected {", "if rec.Owner == owner && rec.Log == log && rec.Seq > expected && rec.Synced >= expected {", "proof of damage: another epoch's record", []step{walAll}},
	{"pkg/wal/scan.go", "if rec.Owner == owner && rec.Epoch == epoch && rec.Log == log && rec.Seq > expected && rec.Synced >= expected {", "if rec.Owner == owner && rec.Epoch == epoch && rec.Seq > expected && rec.Synced >= expected {", "proof of damage: another log's record", []step{walAll}},
	{"pkg/wal/scan.go", "if rec.Owner == owner && rec.Epoch == epoch && rec.Log == log && rec.Seq > expected && rec.Synced >= expected {", "if rec.Seq == 0 && false {", "proof of damage: never found", []step{walAll}},
	{"pkg/blockstore/store.go", "if err := s.checkAge(h, owned); err != nil {", "if err := error(nil); err != nil {", "store: an older catalog is served", []step{engineRot}},
	{"pkg/blockstore/store.go", "if c := s.chunks.MaxCommit(); c > newest {", "if c := s.chunks.MaxCommit(); false && c > newest {", "store: catalog not compared with chunk files", []step{engineRot}},
	{"pkg/blockstore/store.go", "if o.Header.Commit > newest {", "if false && o.Header.Commit > newest {", "store: catalog not compared with segments", []step{engineRot}},
	{"pkg/blockstore/store.go", "if e := s.cat.Epoch(); e > math.MaxUint32 {", "if e := s.cat.Epoch(); false && e > math.MaxUint32 {", "store: epoch that overflows file numbers", []step{engineRot}},
	{"pkg/blockstore/header.go", "if len(names) > 0 {", "if false && len(names) > 0 {", "store: a new one made over one that lost its header", []step{engineRot}},
	{"pkg/blockstore/header.go", "if err != nil && !errors.Is(err, vfs.ErrNotExist) {", "if false {", "store: a new one made where a directory cannot be listed", []step{engineRot}},
	{"pkg/blockstore/fold.go", "if rec.Position != job.from {", "if false && rec.Position != job.from {", "fold: position not compared at commit", []step{engineGate}},
	{"pkg/blockstore/open.go", "case v.inUse():", "case false && v.inUse():", "volume opened twice", []step{engineState}},
	{"pkg/blockstore/open.go", "case v.mu.failed != nil:", "case false && v.mu.failed != nil:", "failed volume attached again", []step{engineFault}},
	{"pkg/blockstore/volumes.go", "if v.inUse() {", "if false && v.inUse() {", "volume deleted while it is open", []step{engineState, engineScratch}},
	{"pkg/blockstore/journal/pool.go", "case h.Store != o.Store:", "case false && h.Store != o.Store:", "journal: another store's segment", []step{journalAll}},
	{"pkg/blockstore/journal/pool.go", "case int64(h.Pages) > seg.pages:", "case false && int64(h.Pages) > seg.pages:", "journal: cut segment taken for whole", []step{journalAll}},
	{"pkg/blockstore/journal/pool.go", "if num >= p.mu.next {", "if false && num >= p.mu.next {", "journal: new segment over one that is there", []step{journalAll}},
	{"pkg/blockstore/journal/pool.go", "return p.mu.logs<<32 | uint64(binary.LittleEndian.Uint32(random[:]))", "return p.mu.logs<<32 | uint64(binary.LittleEndian.Uint32(random[:]))&0", "journal: log numbers can be guessed", []step{journalAll}},
	{"pkg/blockstore/journal/recover.go", "over := s.Header.Epoch < epoch || s.Header.Epoch == epoch && s.Header.Log < log", "over := false", "journal: logs that are over read again", []step{journalAll}},
	{"pkg/blockstore/journal/recover.go", "return applied, r.prove(s, sc.Offset())", "return applied, nil", "journal: proof of damage not looked for", []step{journalAll}},
	{"pkg/blockstore/journal/recover.go", "if stated && r.next <= limit {", "if false && r.next <= limit {", "journal: log shorter than a later one says", []step{journalAll}},
	{"pkg/blockstore/journal/recover.go", "if rec.Seq > limit {", "if false && rec.Seq > limit {", "journal: records behind a cut applied", []step{journalAll}},
	{"pkg/blockstore/journal/recover.go", "case torn || s.Header.FirstSeq > r.next:", "case torn && false:", "journal: gap between segments not seen", []step{journalAll}},
	{"pkg/blockstore/journal/log.go", "n.header.PrevEnd = seq - 1", "n.header.PrevEnd = 0", "journal: new log does not say where the one before ends", []step{journalAll}},
	{"pkg/blockstore/journal/recover.go", "if err == nil && r.cut.Last < reach {", "if false && err == nil && r.cut.Last < reach {", "recovery: journal shorter than what it had reached", []step{journalAll}},
	{"pkg/blockstore/journal/recover.go", "first.Header.PrevEnd > r.cut.Last {", "false {", "recovery: log missing before the first", []step{journalAll}},
	{"pkg/blockstore/volume.go", "\t\terr = v.note(upto)\n", "\t\terr = v.store.noteReach()\n\t\tv.mu.noted = upto\n", "flush: not noted how far the journal reaches", []step{engineTrace}},
	{"pkg/blockstore/fold.go", "\t\trec.Durable = job.v.passing(job.to.Seq, rec.Durable)\n", "\t\trec.Durable = 0\n", "fold: forgets how far the journal reaches", []step{engineReach, engineSim}},
	{"pkg/blockstore/recovery.go", "return s.missingJournals(byVolume)", "return nil", "recovery: missing journal not noticed", []step{engineReach}},
	{"pkg/blockstore/reach.go", "seq = max(seq, cuts[n-1].seq)", "_ = n", "recovery: journal that ends before a cut", []step{engineReach}},
	{"pkg/blockstore/recovery.go", "if off < 0 || n <= 0 || off%sectorBytes != 0 || n%sectorBytes != 0 || off > v.Size() || n > v.Size()-off {", "if off < 0 || n <= 0 {", "recovery: record outside of its volume", []step{engineRot}},
	{"pkg/blockstore/recovery.go", "if seq, ok := t.Lost(rec.Position.Seq, b.Unread); ok {", "if seq, ok := t.Lost(rec.Position.Seq, b.Unread); ok && false {", "recovery: segment with a bad header taken for free", []step{engineReach}},
	// Orders.
	{"pkg/blockstore/volume.go", "return v.acknowledge(op)", "return nil", "write: acknowledged before it is appended", []step{engineRace}},
	{"pkg/blockstore/volume.go", "\tif last != nil {\n\t\t<-last.wait\n\t}\n", "", "cut: records in flight not waited for", []step{engineRace}},
	{"pkg/blockstore/volume.go", "clean := v.mu.dataSeq <= v.mu.synced", "clean := true", "flush: answered without one", []step{engineTrace}},
	{"pkg/blockstore/volume.go", "v.mu.synced = max(v.mu.synced, upto)", "v.mu.synced = max(v.mu.synced, v.mu.next-1)", "flush: what came meanwhile counts as synced", []step{engineVolume}},
	{"pkg/blockstore/volume.go", "\tif v.mu.synced >= target {\n", "\tif target >= 0 {\n", "sync: answered without one", []step{engineTrace}},
	{"pkg/blockstore/volume.go", "\tfor len(v.mu.ops) > 0 && v.mu.ops[0].done {", "\tfor len(v.mu.ops) > 0 {", "write: acknowledged before those before it", []step{engineRace}},
	{"pkg/blockstore/volume.go", "\t\tif wait := v.mu.prep; wait != nil {", "\t\tif wait := v.mu.prep; false && wait != nil {", "write: beside the making of a segment", []step{engineVolume}},
	{"pkg/blockstore/journal/recover.go", "seg.dirty = true // read back", "seg.dirty = false // read back", "flush: does not cover what was recovered", []step{engineTrace}},
	{"pkg/blockstore/recovery.go", "v.mu.synced, v.mu.marked = min(max(end.Synced, from), end.Last), min(max(end.Synced, from), end.Last)", "v.mu.synced, v.mu.marked = end.Last, end.Last", "recovery: what was read back counts as durable", []step{engineTrace}},
	{"pkg/blockstore/journal/log.go", "func (s *Segment) Appended() { s.dirty = true }", "func (s *Segment) Appended() { _ = s.dirty }", "journal: append does not make its segment dirty", []step{engineTrace}},
	{"pkg/blockstore/journal/log.go", "l.segs[0].last <= seq {", "l.segs[0].last <= seq+1 {", "journal: trimmed too far", []step{journalAll}},
	{"pkg/blockstore/fold.go", "v.mu.log.Trim(job.to.Seq)", "v.mu.log.Trim(v.mu.next - 1)", "fold: trims what it has not folded", []step{engineTrace, engineGate, engineSim}},
	{"pkg/blockstore/reach.go", "due := v.mu.failed == nil && v.mu.found > max(seq, v.mu.synced)", "due := false", "fold: passes what an earlier process may have flushed behind it", []step{engineReach}},
	{"pkg/blockstore/reach.go", "known := max(v.mu.log.First(seq), v.mu.pos.Seq+1)", "known := max(v.mu.log.First(seq), v.mu.passed+1)", "flush: counts with a position that may never be durable", []step{engineReach}},
	{"pkg/blockstore/reach.go", "if seq > v.mu.passed {", "if seq > v.mu.passed && false {", "flush: counts with a position that a fold's commit has passed", []step{engineReach}},
	{"pkg/blockstore/fold.go", "if v.mu.unfoldable || oldest.hold > 0 {", "if v.mu.unfoldable {", "fold: begins before its cut is recorded", []step{engineRace}},
	{"pkg/blockstore/fold.go", "\tif err := w.Flush(); err != nil {\n\t\treturn err\n\t}\n\tfor _, f := range folders {\n\t\tif err := f.remap()", "\tfor _, f := range folders {\n\t\tif err := f.remap()", "fold: map made before chunks are appended", []step{engineTrace, engineGate}},
	{"pkg/blockstore/snapshot.go", "case c.rec.Position.Seq < at.Seq:", "case false:", "cut: given the root of an earlier position", []step{engineRace}},
	{"pkg/blockstore/snapshot.go", "\t\tcase c.rec.Position.Seq > at.Seq:\n\t\t\treturn nil, errMoved\n", "", "cut: given the root of a later position", []step{engineGate}},
	{"pkg/blockstore/snapshot.go", "if c.rec.State != state {", "if false && c.rec.State != state {", "copy: state that moved meanwhile", []step{engineState}},
	{"pkg/blockstore/open.go", "\tif cut.Names <= 1 {", "\tif cut.Names <= 2 {", "cut: goes before its last name", []step{engineGate, engineSim}},
	{"pkg/blockstore/volumes.go", "\t\tcut.Names++\n", "", "cut: a clone does not name it", []step{engineGate, engineSim}},
	{"pkg/catalog/catalog.go", "\t\tif failed := last.wait(); failed != nil {\n\t\t\treturn 0, failed\n\t\t}\n", "\t\t_ = last\n", "catalog: answered before it is durable", []step{catalogAll}},
	{"pkg/catalog/log.go", "\t\tif err := w.retire(oldLog, oldSize); err != nil {\n\t\t\treturn err\n\t\t}\n", "\t\tw.spare = oldSize\n", "catalog: log before not retired", []step{catalogAll}},
	// Failures (I8).
	{"pkg/blockstore/volume.go", "\tif err != nil {\n\t\tv.fail(err)\n\t\treturn fmt.Errorf(\"volume %s: %w: %w\", v.id, ErrFailed, v.mu.failed)\n\t}\n\tv.mu.synced", "\tv.mu.synced", "flush: acknowledged though the sync failed", []step{engineFault}},
	{"pkg/blockstore/volume.go", "\tif err != nil {\n\t\tv.fail(err)\n\t\treturn\n\t}\n", "", "write: acknowledged though the append failed", []step{engineFault}},
	{"pkg/blockstore/volume.go", "\tif err != nil {\n\t\tv.fail(err)\n\t\tseg.Release()\n", "\tif err != nil {\n\t\tseg.Release()\n", "journal: volume goes on though a header failed", []step{engineFault}},
	{"pkg/blockstore/journal/segment.go", "\tif err := s.file.Datasync(); err != nil {\n\t\ts.bad.Store(true)\n", "\tif err := s.file.Datasync(); err != nil {\n", "journal: segment used again after a failed sync", []step{journalAll}},
	{"pkg/blockstore/journal/segment.go", "\tif _, err := s.file.WriteVec(bufs, off); err != nil {\n\t\ts.bad.Store(true)\n", "\tif _, err := s.file.WriteVec(bufs, off); err != nil {\n", "journal: segment used again after a failed append", []step{journalAll}},
	{"pkg/blockstore/journal/log.go", "\t\tn.seg.bad.Store(true)\n", "", "journal: segment used again after a failed header", []step{journalAll}},
	{"pkg/dedup/append.go", "\t\ts.abandon(f, err)\n\t\treturn err\n\t}\n\ts.mu.Lock()\n\tdefer s.mu.Unlock()\n\tif f.failed {", "\t\treturn err\n\t}\n\ts.mu.Lock()\n\tdefer s.mu.Unlock()\n\tif f.failed {", "chunk file: synced again after a failed sync", []step{dedupAll, engineFault}},
	{"pkg/dedup/append.go", "\tcase failed:\n\t\treturn fmt", "\tcase false && failed:\n\t\treturn fmt", "chunk file: abandoned one synced again", []step{dedupAll}},
	{"pkg/catalog/log.go", "return 0, 0, errors.Join(err, w.fsys.Remove(w.path(spareName)))", "return 0, 0, err", "catalog: log synced again by the next start", []step{catalogAll}},
	{"pkg/catalog/catalog.go", "\t\terr = fmt.Errorf(\"%w: %w\", ErrFailed, err)\n", "\t\terr = nil\n", "catalog: failed sync acknowledged", []step{catalogAll}},
	{"pkg/catalog/catalog.go", "\tc.mu.err = err\n", "\t_ = err\n", "catalog: goes on after a failed sync", []step{catalogAll}},
	{"pkg/dedup/read.go", "\t\ts.markBad(bad)\n\t\tfailed = bad.err(i)\n", "\t\tfailed = bad.err(i)\n", "damage: found by a read and not noted", []step{dedupAll}},
	{"pkg/blockstore/check.go", "if c.unread {", "if false && c.unread {", "repair: cut of a snapshot whose record cannot be read deleted", []step{engineRepair}},
	{"pkg/dedup/damage.go", "if there[num] && (", "if false && there[num] && (", "damage: forgotten of a file that cannot be read now", []step{engineRepair}},
	{"pkg/blockstore/damage.go", "\ts.damage.found = append(s.damage.found, d)\n", "\t_ = d\n", "damage: not recorded", []step{engineRot}},
	{"pkg/blockstore/store.go", "\tif err := s.loadDamage(); err != nil {\n\t\treturn err\n\t}\n", "", "damage: forgotten by a start", []step{engineRot, engineRepair}},
	{"pkg/blockstore/foldblocks.go", "\t\tdamaged = lost &^ covered\n", "\t\t_ = lost\n", "fold: sectors lost below a write read as zeros", []step{engineRot}},
	{"pkg/blockstore/read.go", "if e.Damaged&(1<<(sector%8)) != 0 {", "if false && e.Damaged&(1<<(sector%8)) != 0 {", "read: sector mask", []step{engineRot}},
	{"pkg/blockstore/read.go", "\tif v.mu.failed != nil {\n\t\terr", "\tif false {\n\t\terr", "read: of a volume that failed closed", []step{engineFault}},
	// Collection and dedup.
	{"pkg/blockstore/gate.go", "if n < mark {", "if false && n < mark {", "collector: does not wait for folds", []step{engineGate}},
	{"pkg/blockstore/fold.go", "\tdefer end()\n", "\tend()\n", "collector: fold not counted", []step{engineGate}},
	{"pkg/blockstore/collect.go", "\t\tc.plan.Recheck(c.live)\n", "", "collector: second marking not looked at", []step{engineCollect}},
	{"pkg/blockstore/collect.go", "\tfor _, e := range view.Scan(keyCut, \"\", 0) {", "\tfor _, e := range view.Scan(keyCut, \"\", 0)[:0] {", "collector: cuts' roots not marked", []step{engineGate, engineSim}},
	{"pkg/blockstore/collect.go", "\t\t\tc.plan.Condemn()\n", "", "collector: nothing condemned before the wait", []step{engineCollect}},
	{"pkg/dedup/collect.go", "cp.condemned = &dead\n\t\t\t}\n\t\t}\n\t}\n\tc.live = nil", "_ = dead\n\t\t\t}\n\t\t}\n\t}\n\tc.live = nil", "collector: nothing condemned", []step{dedupCollect}},
	{"pkg/dedup/collect.go", "|| f.private || f.seq > h.seq {", "|| f.private {", "collector: takes what came after its horizon", []step{dedupCollect}},
	{"pkg/dedup/collect.go", "\t\tif slices.ContainsFunc(m.extra, func(x extraSlot) bool { return c.other(x.copy, x.slot) == nil }) {", "\t\tif false {", "collector: drops what another copy was to hold, unlooked", []step{dedupAll}},
	{"pkg/dedup/collect.go", "\tif s.collecting || s.closed || s.o.ReadOnly {", "\tif s.closed || s.o.ReadOnly {", "collector: two at a time", []step{dedupCollect}},
	{"pkg/dedup/collect.go", "if err := s.checkGroup(k.copy, k.group); err != nil {", "if err := error(nil); k.copy == nil || err != nil {", "collector: other copy not checked", []step{dedupAll}},
	{"pkg/dedup/collect.go", "!o.usable(slot) || !o.file.sealed || o.file.failed {", "!o.usable(slot) {", "collector: other copy that is not durable", []step{dedupAll}},
	{"pkg/dedup/index.go", "return c.good(slot) && (c.condemned == nil || !c.condemned.has(slot))", "return c.good(slot)", "dedup against a condemned slot", []step{dedupCollect}},
	{"pkg/dedup/index.go", "return c.good(slot) && (c.condemned == nil || !c.condemned.has(slot))", "return c.condemned == nil || !c.condemned.has(slot)", "dedup against a damaged or dropped slot", []step{dedupAll}},
	{"pkg/dedup/index.go", "\tif c.condemned != nil {\n\t\tb = b.minus(c.condemned)\n\t}\n", "", "chunk with a condemned slot not appended anew", []step{dedupAll}},
	{"pkg/dedup/index.go", "\tif c.bad != nil {\n\t\tb = b.minus(c.bad)\n\t}\n", "", "chunk with a damaged slot not appended anew", []step{dedupAll}},
	{"pkg/dedup/writer.go", "return l != nil && l.at(int(at.Slot), fp) && w.take(l, int(at.Slot))", "return l != nil && w.take(l, int(at.Slot))", "parent hint taken without comparing", []step{dedupAll}},
	{"pkg/blockstore/blockmap/decode.go", "case !bytes.Equal(page[10:headSize], zeros[10:headSize]):", "case false:", "map node: reserved bytes", []step{mapNode}},
	{"pkg/blockstore/blockmap/decode.go", "case !bytes.Equal(page[used:], zeros[used:]):", "case false:", "map node: bytes behind the used ones", []step{mapNode}},
	{"pkg/blockstore/blockmap/decode.go", "case page[0] != 'G' || page[1] != 'N':", "case false:", "map node: magic", []step{mapNode}},
	{"pkg/blockstore/blockmap/decode.go", "case page[2] != nodeVersion:", "case false:", "map node: version", []step{mapNode}},
	{"pkg/blockstore/blockmap/decode.go", "case d.usedIDs != len(d.node.ids):", "case false:", "map node: chunk number outside of its table", []step{mapNode}},
	{"pkg/blockstore/blockmap/decode.go", "case s >= dedup.MaxSlots:", "case false:", "map node: slot that no chunk has", []step{mapNode}},
	{"pkg/blockstore/blockmap/decode.go", "case count == 0 || count > dedup.MaxSlots-uint64(slot):", "case false:", "map node: extent behind its chunk", []step{mapNode}},
	{"pkg/blockstore/blockmap/tree.go", "if n.Level() >= below {", "if false && n.Level() >= below {", "map node: child that is no lower", []step{mapAll}},
	{"pkg/blockstore/blockmap/node.go", "if _, err := DecodeNode(buf); err != nil {", "if err := error(nil); err != nil {", "map node: not read back before it is stored", []step{mapNode}},
	// Space (I9).
	{"pkg/blockstore/volume.go", "\tif err := v.store.charge(debt, spare); err != nil {", "\tif err := error(nil); err != nil {", "reserve: record taken without it", []step{engineFull}},
	{"pkg/blockstore/reserve.go", "if r.debt.Add(n) <= r.covered.Load() {", "if r.debt.Add(n); true {", "reserve: not held to the debt", []step{engineFull}},
	{"pkg/blockstore/store.go", "func (s *Store) allowSegment() error { return s.wholeReserve(0) }", "func (s *Store) allowSegment() error { return nil }", "reserve: segment handed out without it", []step{engineFull}},
	{"pkg/blockstore/store.go", "\tok := s.reserve != nil && s.reserve.release()\n", "\tok := false\n", "reserve: never given up", []step{engineFull}},
	{"pkg/blockstore/volumes.go", "\tif full {\n\t\treturn fmt", "\tif full && false {\n\t\treturn fmt", "new volume on a full disk", []step{engineFull}},
	// Ranges.
	{"pkg/blockstore/volume.go", "if off > v.Size() || n > v.Size()-off {", "if false {", "volume: access behind its end", []step{engineState}},
	{"pkg/blockstore/volume.go", "off%sectorBytes != 0 || n%sectorBytes != 0 {\n\t\treturn fmt.Errorf(\"%s of", "false {\n\t\treturn fmt.Errorf(\"%s of", "volume: access that is not whole sectors", []step{engineState}},
	{"pkg/blockstore/volumes.go", "if size < rec.Size {", "if false && size < rec.Size {", "volume: made smaller", []step{engineState}},
	{"pkg/blockstore/volumes.go", "if r.Size < src.size {", "if false && r.Size < src.size {", "copy: smaller than its source", []step{engineState}},
	// The device.
	{"pkg/export/errors.go", "\t\treturn unix.EIO\n", "\t\treturn unix.ENOSYS\n", "FSYNC that failed answered with ENOSYS", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "f.reply(h, f.errno(\"flush\", 0, 0, f.dev.Flush()))", "f.reply(h, unix.ENOSYS)", "FSYNC answered with ENOSYS", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "f.errno(\"flush\", 0, 0, f.dev.Flush())", "0", "FSYNC answered without a flush", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "\treturn errnoOf(err)\n", "\treturn 0\n", "device: errors answered as successes", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "if err == nil && n != size {", "if false && err == nil && n != size {", "device: short write answered as whole", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "if err == nil && got != n {", "if false && err == nil && got != n {", "device: short read answered as whole", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "case in.off > f.dev.Size()-int64(size):", "case false:", "device: write behind its end", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "\tcase f.o.ReadOnly:\n\t\terrno = unix.EROFS\n", "", "device: write to a read-only one", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "in.off < 0 || in.length <= 0 || in.off%512 != 0 || in.length%512 != 0:", "in.off < 0 || in.length <= 0:", "device: hole that is not whole sectors", []step{exportFuse}},
	{"pkg/blockstore/journal/pool.go", "err == nil && !bytes.Equal(page[headerLog:headerLogEnd], names) {", "err != nil && !bytes.Equal(page[headerLog:headerLogEnd], names) {", "journal: a torn header's segment is its first record's", []step{journalAll}},
	{"pkg/dedup/repair.go", "case err != nil && ff.sealed: // a", "case ff.sealed: // a", "repair: a sound file is rebuilt", []step{tests("./pkg/dedup", "TestRebuildLeavesASoundFile")}},
	{"pkg/dedup/repair.go", "t.prove(id) == nil && (best", "t.prove(id) != nil && (best", "repair: no other file's list proves a copy", []step{tests("./pkg/dedup", "TestRebuildProvesByAnotherFile")}},
	{"pkg/dedup/repair.go", "d.File == \"\" {", "true {", "repair: lost slots are said to be where they are not", []step{tests("./pkg/dedup", "TestRebuildAgainAfterMoreDamage")}},
	{"pkg/dedup/open.go", "strange: ff.rescan || ff.nameless}", "strange: ff.rescan}", "repair: a file that may be another store's stands for one of ours", []step{tests("./pkg/dedup", "TestRebuildTrustsNoUnknownFile")}},
	{"pkg/export/fuse_server.go", "return unix.EOPNOTSUPP", "return errno", "device: a hole without space answered with EIO", []step{exportAttach}},
	{"pkg/export/loop.go", "\tleaveRoomForReads(n)\n", "\t_ = leaveRoomForReads\n", "device: waiting writes take all requests", []step{exportAttach}},
	{"pkg/blockstore/volume.go", "spare := t == wal.TypeHole && v.store.isFull()", "spare := false", "full disk: holes wait as writes do", []step{engineFull}},
	{"pkg/export/fuse_server.go", "f.holeErrno(\"discard\", in.off, in.length, f.dev.Discard(in.off, in.length))", "0", "device: PUNCH_HOLE answered without one", []step{exportFuse}},
	{"pkg/export/fuse_server.go", "f.holeErrno(\"write zeroes\", in.off, in.length, f.dev.WriteZeroes(in.off, in.length))", "0", "device: ZERO_RANGE answered without one", []step{exportFuse}},
	{"pkg/export/attach.go", "\tif len(by) > 0 {\n", "\tif false {\n", "device: taken away while it is mounted", []step{exportAttach}},
	{"pkg/export/attach.go", "errors.Is(err, ErrNotAttached) || err == nil && !b.Is(a.name) {", "errors.Is(err, ErrNotAttached) {", "device: another volume's taken away", []step{exportAttach}},
	{"pkg/export/attach.go", "if err == nil && got != want {", "if false && err == nil && got != want {", "device: of another size than its volume", []step{exportAttach}},
	// mkfs (I11) and calls that are repeated.
	{"pkg/driver/stage.go", "if s.info.State == blockstore.StateUsed {\n\t\treturn nil\n\t}\n\tif s.readOnly {", "if false {\n\t\treturn nil\n\t}\n\tif s.readOnly {", "stage: volume in use looked at as an empty one", []step{driverNode}},
	{"pkg/driver/stage.go", "\tif s.info.State == blockstore.StateUsed {\n\t\terr = s.prepare", "\tif false {\n\t\terr = s.prepare", "mkfs over a volume in use", []step{driverNode}},
	{"pkg/driver/stage.go", "if err := s.volume.SetState(blockstore.StateFormatting, fsType); err != nil {", "if err := error(nil); err != nil {", "mkfs before formatting is durable", []step{driverNode}},
	{"pkg/driver/stage.go", "return s.volume.SetState(blockstore.StateUsed, fsType)", "return nil", "mkfs: used is never recorded", []step{driverNode}},
	{"pkg/driver/stage.go", "\tcase there == \"\":\n\t\treturn fmt", "\tcase false:\n\t\treturn fmt", "stage: volume without a filesystem mounted", []step{driverNode}},
	{"pkg/driver/stage.go", "case there != fsType:", "case false:", "stage: another filesystem than asked for", []step{driverNode}},
	{"pkg/driver/stage.go", "if len(mounts) > 0 { // somewhere", "if len(mounts) < 0 { // somewhere", "stage: fsck under a mounted filesystem", []step{driverNode}},
	{"pkg/driver/stage.go", "if err := s.d.host.Fsck(ctx, device, fsType); err != nil {", "if err := error(nil); err != nil {", "stage: mounted without fsck", []step{driverNode}},
	{"pkg/blockstore/volumes.go", "if order[state] < order[rec.State] {", "if false && order[state] < order[rec.State] {", "volume: state goes back", []step{engineState}},
	{"pkg/blockstore/volumes.go", "r.State = src.state", "r.State = StateEmpty", "copy: empty though its source is used", []step{engineState}},
	{"pkg/attach/locked.go", "\tif ready != nil {\n\t\tif err := ready()", "\tif false {\n\t\tif err := ready()", "raw volume: used recorded after its device appears", []step{attachAll}},
	{"pkg/attach/locked.go", "\tif err := a.clearLeft(ctx, l.id); err != nil {\n\t\treturn \"\", err\n\t}\n", "", "attach: beside a dead daemon's device", []step{attachAll}},
	{"pkg/attach/attachments.go", "if !a.locks.Try(id) {", "if a.locks.Try(id); false {", "two operations on a volume at a time", []step{attachAll, driverNode}},
	// Locks: the race detector has to see that they are gone.
	{"pkg/blockstore/gate.go", "func (g *gate) begin() (end func()) {\n\tg.mu.Lock()\n\tdefer g.mu.Unlock()\n", "func (g *gate) begin() (end func()) {\n", "lock: gate", []step{raceEngine}},
	{"pkg/blockstore/reserve.go", "func (r *reserve) ensure(more int64) error {\n\tr.mu.Lock()\n\tdefer r.mu.Unlock()\n", "func (r *reserve) ensure(more int64) error {\n", "lock: reserve", []step{raceEngine}},
	{"pkg/blockstore/volume.go", "\tseg := op.place.Segment\n\terr := seg.Append(op.place.Offset, op.head, op.body)\n\tv.mu.Lock()\n\tdefer v.mu.Unlock()\n", "\tseg := op.place.Segment\n\terr := seg.Append(op.place.Offset, op.head, op.body)\n", "lock: volume, at the end of an append", []step{raceEngine}},
	{"pkg/blockstore/volume.go", "\tv.syncMu.Lock()\n\tdefer v.syncMu.Unlock()\n\tv.mu.Lock()\n\tif v.mu.failed != nil {", "\tv.mu.Lock()\n\tif v.mu.failed != nil {", "lock: two syncs of a journal at a time", []step{engineVolume, raceEngine}},
	{"pkg/blockstore/volume.go", "\tv.syncMu.Lock()\n\tdefer v.syncMu.Unlock()\n\tv.mu.Lock()\n\tdefer v.mu.Unlock()\n\tif err := v.usable()", "\tv.mu.Lock()\n\tdefer v.mu.Unlock()\n\tif err := v.usable()", "lock: sync beside a new log's header", []step{engineVolume, raceEngine}},
	{"pkg/blockstore/fold.go", "\t\tv.foldMu.Lock()\n\t\tdefer v.foldMu.Unlock()\n", "", "lock: two folds of a volume at a time", []step{engineVolume, raceEngine}},
	{"pkg/blockstore/fold.go", "func (v *Volume) publish(job *foldJob, root dedup.Slot) {\n\tv.mu.Lock()\n\tdefer v.mu.Unlock()\n", "func (v *Volume) publish(job *foldJob, root dedup.Slot) {\n", "lock: volume, when a fold is published", []step{raceEngine}},
	{"pkg/blockstore/read.go", "\t\t\tpc.src.seg.Acquire()\n", "\t\t\t_ = pc\n", "read: segment not held", []step{engineVolume, engineMany}},
	{"pkg/blockstore/collect.go", "func (s *Store) Collect(ctx context.Context) (CollectResult, error) {\n\ts.coll.run.Lock()\n\tdefer s.coll.run.Unlock()\n", "func (s *Store) Collect(ctx context.Context) (CollectResult, error) {\n", "lock: two collections at a time", []step{engineGate}},
	{"pkg/blockstore/journal/pool.go", "func (p *Pool) put(s *Segment) {\n\tp.mu.Lock()\n\tdefer p.mu.Unlock()\n", "func (p *Pool) put(s *Segment) {\n", "lock: journal pool", []step{raceEngine}},
	{"pkg/catalog/catalog.go", "func (c *Catalog) admit(fn func(View) ([]Op, error)) (commit uint64, last *request, err error) {\n\tc.mu.Lock()\n\tdefer c.mu.Unlock()\n", "func (c *Catalog) admit(fn func(View) ([]Op, error)) (commit uint64, last *request, err error) {\n", "lock: catalog's head", []step{raceCatalog}},
	{"pkg/dedup/append.go", "\ts.appending.Lock()\n\tdefer s.appending.Unlock()\n\ts.mu.RLock()\n\tclosed", "\ts.mu.RLock()\n\tclosed", "lock: chunk file that is appended to", []step{raceDedup}},
	{"pkg/dedup/append.go", "\th := &e.front.head\n\ts.mu.Lock()\n\tdefer s.mu.Unlock()\n", "\th := &e.front.head\n", "lock: chunk index, at an append", []step{raceDedup}},
	{"pkg/dedup/append.go", "func (s *Store) syncFile(f *file, end int64) error {\n\tf.syncing.Lock()\n\tdefer f.syncing.Unlock()\n", "func (s *Store) syncFile(f *file, end int64) error {\n", "lock: two syncs of a chunk file at a time", []step{dedupSync, raceDedup}},
	{"pkg/dedup/collect.go", "func (c *Collection) Condemn() {\n\tc.s.mu.Lock()\n\tdefer c.s.mu.Unlock()\n", "func (c *Collection) Condemn() {\n", "lock: chunk index, at a condemnation", []step{raceDedup}},
}
