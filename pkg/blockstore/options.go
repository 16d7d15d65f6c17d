package blockstore

import (
	crand "crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"time"

	"github.com/k8ns/granary/pkg/dedup"
	"github.com/k8ns/granary/pkg/wal"
)

// Options are the choices of a store. The zero value is usable: each zero field takes
// its default.
type Options struct {
	Logger *slog.Logger
	// Now is the clock; Rand the source of IDs. Tests inject theirs.
	Now  func() time.Time
	Rand io.Reader

	JournalBytes   int64 // budget of the node-wide segment pool; default 512 MiB
	SegmentBytes   int64 // one journal segment; default 32 MiB
	FoldBytes      int64 // fold a volume when its journal passes this; default JournalBytes/2
	UnsyncedBytes  int64 // payloads a volume keeps in memory before it syncs; default 64 MiB
	ChunkFileBytes int64 // a chunk file is sealed at this size; default 32 MiB, at most 256 MiB
	CatalogBytes   int64 // a catalog log, of which there are two; default 8 MiB, at least 64 KiB
	CacheBytes     int64 // decoded groups kept in memory; default 128 MiB
	NodeCache      int   // decoded map nodes kept; default 8192
	ListCache      int   // fingerprint lists kept; default 1024 chunks
	OpenFiles      int   // descriptors kept of sealed chunk files that nobody reads; default 256
	ReserveBytes   int64 // allocated for collecting on a full disk, beside what records not folded yet need; default 64 MiB
	Workers        int   // compression workers of one fold; default GOMAXPROCS
	FoldWorkers    int   // volumes folded at once; default 2

	IdleBytes int64         // an idle volume is folded from this on; default 1 MiB
	IdleAfter time.Duration // without a write for this long it is idle; default 2 s
	MaxAge    time.Duration // any unfolded write is folded after this; default 5 min
	// FullTimeout is how long a write of a volume with OnFullError waits for space before
	// it is ErrNoSpace; default 30 s.
	FullTimeout time.Duration
	// Events hears of the store's misfortunes at once; nil: nobody does. It may be called
	// by any goroutine with locks of the store held: it must not block nor call the store.
	Events func(Event)
	// MaxLayers is how many cuts of one volume may wait for their fold before
	// CreateSnapshot waits; default 32.
	MaxLayers int
	// GarbageBytes starts a collection by itself; default: a quarter of what is stored,
	// but at least 256 MiB.
	GarbageBytes int64
}

func (o Options) withDefaults() Options {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = crand.Reader
	}
	def(&o.JournalBytes, 512<<20)
	def(&o.SegmentBytes, min(32<<20, o.JournalBytes))
	def(&o.FoldBytes, o.JournalBytes/2)
	def(&o.UnsyncedBytes, 64<<20)
	def(&o.ChunkFileBytes, 32<<20)
	def(&o.CacheBytes, 128<<20)
	def(&o.ReserveBytes, 64<<20)
	def(&o.IdleBytes, 1<<20)
	def((*int64)(&o.IdleAfter), int64(2*time.Second))
	def((*int64)(&o.MaxAge), int64(5*time.Minute))
	def((*int64)(&o.FullTimeout), int64(30*time.Second))
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	defInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	defInt(&o.NodeCache, 8192)
	defInt(&o.ListCache, 1024)
	defInt(&o.OpenFiles, 256)
	defInt(&o.Workers, runtime.GOMAXPROCS(0))
	defInt(&o.FoldWorkers, 2)
	defInt(&o.MaxLayers, 32)
	return o
}

func (o Options) validate() error {
	switch {
	case o.SegmentBytes < 4*wal.PageSize || o.SegmentBytes%wal.PageSize != 0:
		return fmt.Errorf("segment of %d bytes: must be a multiple of %d and at least %d: %w", o.SegmentBytes, wal.PageSize, 4*wal.PageSize, ErrInvalid)
	case o.JournalBytes < o.SegmentBytes:
		return fmt.Errorf("journal of %d bytes is smaller than a segment of %d: %w", o.JournalBytes, o.SegmentBytes, ErrInvalid)
	case o.ChunkFileBytes < 16<<10 || o.ChunkFileBytes > dedup.MaxFileBytes:
		return fmt.Errorf("chunk file of %d bytes: 16 KiB to 256 MiB are allowed: %w", o.ChunkFileBytes, ErrInvalid)
	case o.CacheBytes < 0 || o.ReserveBytes < 0 || o.FoldBytes < 0 || o.Workers < 0 || o.FullTimeout < 0:
		return fmt.Errorf("a limit is negative: %w", ErrInvalid)
	}
	return nil
}
