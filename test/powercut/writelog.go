package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// A log in the layout of the kernel's dm-log-writes, which QEMU's blklogwrites writes as
// well. Everything is little-endian and counted in log sectors.
//
//	sector 0   magic u64, version u64 = 1, entries u64, sector size u32
//	then, for each entry, a sector of
//	           sector u64, sectors u64, flags u64, data length u64
//	and, unless the entry is a discard, the sectors that were written
//
// The number of entries is brought up to date with each flush.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1
	logSector  = 512

	flagFlush   = 1
	flagFUA     = 2
	flagDiscard = 4
)

// logEntries reads how many entries a log has.
func logEntries(name string) (int, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var head [28]byte
	if _, err := f.ReadAt(head[:], 0); errors.Is(err, io.EOF) {
		return 0, nil // nothing was flushed yet
	} else if err != nil {
		return 0, err
	}
	return parseLogHead(head[:])
}

func parseLogHead(head []byte) (int, error) {
	le := binary.LittleEndian
	switch {
	case le.Uint64(head) == 0:
		return 0, nil
	case le.Uint64(head) != logMagic || le.Uint64(head[8:]) != logVersion || le.Uint32(head[24:]) != logSector:
		return 0, fmt.Errorf("no write log of version %d with sectors of %d: %x", logVersion, logSector, head)
	}
	return int(le.Uint64(head[16:])), nil
}

// entry is one write, flush or discard below a file system.
type entry struct {
	off   int64 // bytes
	n     int64
	flags uint64
	data  []byte // nil for a discard
}

// flush tells whether everything before the entry is on the disk for good.
func (e entry) flush() bool { return e.flags&flagFlush != 0 }

// stays tells whether the entry itself cannot be in a volatile cache.
func (e entry) stays() bool { return e.flags&flagFUA != 0 || e.n == 0 }

// readLog reads all entries.
func readLog(name string) ([]entry, error) {
	n, err := logEntries(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	if _, err := r.Discard(logSector); err != nil {
		return nil, err
	}
	entries := make([]entry, n)
	for i := range entries {
		if entries[i], err = readEntry(r); err != nil {
			return nil, fmt.Errorf("%s: entry %d of %d: %w", name, i, n, err)
		}
	}
	return entries, nil
}

func readEntry(r io.Reader) (entry, error) {
	var head [logSector]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return entry{}, err
	}
	le := binary.LittleEndian
	e := entry{
		off:   int64(le.Uint64(head[:])) * logSector,
		n:     int64(le.Uint64(head[8:])) * logSector,
		flags: le.Uint64(head[16:]),
	}
	if e.off < 0 || e.n < 0 || e.off+e.n > diskBytes {
		return entry{}, fmt.Errorf("%d bytes at %d of a disk of %d", e.n, e.off, int64(diskBytes))
	}
	if e.flags&flagDiscard != 0 || e.n == 0 {
		return e, nil
	}
	e.data = make([]byte, e.n)
	_, err := io.ReadFull(r, e.data)
	return e, err
}
