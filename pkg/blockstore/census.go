package blockstore

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"github.com/tidwall/btree"
	"golang.org/x/sync/errgroup"

	"github.com/k8ns/granary/pkg/catalog"
	"github.com/k8ns/granary/pkg/dedup"
)

// census keeps what is asked of the catalog too often to be counted over all its
// records: sums for Stats, and which snapshots a volume has. It is told of every commit,
// in order, when that is durable and before any reader or the committer sees it, so it
// never lags behind a View. It is safe for concurrent use.
type census struct {
	mu struct {
		sync.Mutex
		volumes map[rawKey]volumeCount
		waiting map[rawKey]rawKey // volumes that start at a cut -> the cut
		cuts    map[rawKey]cutCount
		snaps   map[rawKey]snapCount
		images  map[dedup.Slot]imageCount
		byOwner *btree.BTreeG[[2]rawKey] // (volume, snapshot)

		live            int   // volumes that are not deleted
		volumeBlocks    int64 // mapped in them, those waiting left out
		snapshotsBlocks int64 // mapped in images that only snapshots name, each counted once
	}
}

// rawKey is an ID without its kind.
type rawKey [16]byte

type volumeCount struct {
	root    dedup.Slot
	mapped  int64 // blocks
	deleted bool
	waits   bool // for a cut's root
}

type cutCount struct {
	root      dedup.Slot
	mapped    int64
	snapshots int
}

type snapCount struct{ volume, cut rawKey }

// imageCount is what a root names and who names it.
type imageCount struct {
	mapped    int64
	volumes   int
	snapshots int // cuts that snapshots name
}

// own is what the image adds to the sum of snapshots.
func (i imageCount) own() int64 {
	if i.volumes == 0 && i.snapshots > 0 {
		return i.mapped
	}
	return 0
}

func newCensus() *census {
	c := &census{}
	c.mu.volumes = make(map[rawKey]volumeCount)
	c.mu.waiting = make(map[rawKey]rawKey)
	c.mu.cuts = make(map[rawKey]cutCount)
	c.mu.snaps = make(map[rawKey]snapCount)
	c.mu.images = make(map[dedup.Slot]imageCount)
	c.mu.byOwner = btree.NewBTreeGOptions(func(a, b [2]rawKey) bool {
		if n := bytes.Compare(a[0][:], b[0][:]); n != 0 {
			return n < 0
		}
		return bytes.Compare(a[1][:], b[1][:]) < 0
	}, btree.Options{NoLocks: true})
	return c
}

// load counts what a view holds, the kinds of records side by side: it is most of what a
// start does. ErrCorrupt for a volume or a cut that cannot be read; a snapshot counts as
// none.
func (c *census) load(view catalog.View) error {
	var g errgroup.Group
	for _, prefix := range []string{keyVolume, keyCut, keySnapshot} {
		g.Go(func() error {
			for e := range view.All(prefix) {
				if err := c.put(e.Key, e.Value); err != nil && prefix != keySnapshot {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// committed takes a commit.
func (c *census) committed(ops []catalog.Op) {
	for _, op := range ops {
		if op.Value == nil {
			c.remove(op.Key)
		} else if c.put(op.Key, op.Value) != nil {
			c.remove(op.Key)
		}
	}
}

// rawOf is the ID in a key behind its prefix.
func rawOf(key, prefix string) rawKey { return rawText(strings.TrimPrefix(key, prefix)) }

// rawText is an ID without its kind; zero for what is none.
func rawText(id string) (raw rawKey) {
	if len(id) == 2+2*len(raw) {
		hex.Decode(raw[:], []byte(id[2:]))
	}
	return raw
}

func (c *census) put(key string, value []byte) error {
	e := catalog.Entry{Key: key, Value: value}
	switch {
	case strings.HasPrefix(key, keyVolume):
		var rec volumeRecord
		if err := decode(e, &rec); err != nil {
			return err
		}
		n := volumeCount{root: rec.Root.slot(), mapped: rec.Mapped, deleted: rec.Deleted, waits: rec.Cut != ""}
		c.setVolume(rawOf(key, keyVolume), &n, rawText(rec.Cut))
	case strings.HasPrefix(key, keyCut):
		var rec cutRecord
		if err := decode(e, &rec); err != nil {
			return err
		}
		c.setCut(rawOf(key, keyCut), rec.Root.slot(), rec.Mapped)
	case strings.HasPrefix(key, keySnapshot):
		var rec snapshotRecord
		if err := decode(e, &rec); err != nil {
			return err
		}
		c.setSnapshot(rawOf(key, keySnapshot), &snapCount{rawText(rec.Volume), rawText(rec.Cut)})
	}
	return nil
}

func (c *census) remove(key string) {
	switch {
	case strings.HasPrefix(key, keyVolume):
		c.setVolume(rawOf(key, keyVolume), nil, rawKey{})
	case strings.HasPrefix(key, keyCut):
		c.setCut(rawOf(key, keyCut), dedup.Slot{}, 0)
	case strings.HasPrefix(key, keySnapshot):
		c.setSnapshot(rawOf(key, keySnapshot), nil)
	}
}

// setVolume replaces what is known of a volume; nil: it is gone.
func (c *census) setVolume(id rawKey, now *volumeCount, cut rawKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	count := func(v volumeCount, sign int) {
		if v.deleted {
			return
		}
		c.mu.live += sign
		if !v.waits {
			c.mu.volumeBlocks += int64(sign) * v.mapped
			c.name(v.root, v.mapped, sign, 0)
		}
	}
	if old, ok := c.mu.volumes[id]; ok {
		count(old, -1)
		delete(c.mu.volumes, id)
		delete(c.mu.waiting, id)
	}
	if now == nil {
		return
	}
	count(*now, 1)
	c.mu.volumes[id] = *now
	if now.waits && !now.deleted {
		c.mu.waiting[id] = cut
	}
}

// setCut replaces what a cut names. One that is gone, or that has no root yet, names
// nothing.
func (c *census) setCut(id rawKey, root dedup.Slot, mapped int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.mu.cuts[id]
	now := cutCount{root, mapped, old.snapshots}
	if old.snapshots > 0 {
		c.name(old.root, old.mapped, 0, -1)
		c.name(root, mapped, 0, 1)
	}
	c.keepCut(id, now)
}

// keepCut stores a cut, unless nothing is known of it. Called with mu held.
func (c *census) keepCut(id rawKey, now cutCount) {
	if now == (cutCount{}) {
		delete(c.mu.cuts, id)
	} else {
		c.mu.cuts[id] = now
	}
}

// setSnapshot replaces what is known of a snapshot; nil: it is gone.
func (c *census) setSnapshot(id rawKey, now *snapCount) {
	c.mu.Lock()
	defer c.mu.Unlock()
	count := func(s snapCount, sign int) {
		cut := c.mu.cuts[s.cut]
		was := cut.snapshots > 0
		cut.snapshots += sign
		if is := cut.snapshots > 0; was != is {
			c.name(cut.root, cut.mapped, 0, sign)
		}
		c.keepCut(s.cut, cut)
	}
	if old, ok := c.mu.snaps[id]; ok {
		count(old, -1)
		delete(c.mu.snaps, id)
		c.mu.byOwner.Delete([2]rawKey{old.volume, id})
	}
	if now != nil {
		count(*now, 1)
		c.mu.snaps[id] = *now
		c.mu.byOwner.Set([2]rawKey{now.volume, id})
	}
}

// name changes how many name a root. Called with mu held.
func (c *census) name(root dedup.Slot, mapped int64, volumes, snapshots int) {
	if root.IsZero() {
		return
	}
	i := c.mu.images[root]
	c.mu.snapshotsBlocks -= i.own()
	i.mapped = mapped
	i.volumes += volumes
	i.snapshots += snapshots
	c.mu.snapshotsBlocks += i.own()
	if i.volumes == 0 && i.snapshots == 0 {
		delete(c.mu.images, root)
	} else {
		c.mu.images[root] = i
	}
}

// figures are the sums of a census.
type figures struct {
	volumes, snapshots           int
	logicalVolumes, logicalSnaps int64 // bytes
}

func (c *census) figures() figures {
	c.mu.Lock()
	defer c.mu.Unlock()
	blocks := c.mu.volumeBlocks
	for _, cut := range c.mu.waiting {
		blocks += c.mu.cuts[cut].mapped
	}
	return figures{
		volumes: c.mu.live, snapshots: len(c.mu.snaps),
		logicalVolumes: blocks * BlockSize, logicalSnaps: c.mu.snapshotsBlocks * BlockSize,
	}
}

// named tells whether a volume or a snapshot has the image of a root.
func (c *census) named(root dedup.Slot) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.mu.images[root]
	return ok
}

// snapshotsOf lists the IDs of a volume's snapshots that come after one, in order;
// at most limit of them if limit is above 0.
func (c *census) snapshotsOf(volume, after string, limit int) (ids []string) {
	owner := rawText(volume)
	from := [2]rawKey{owner, rawText(after)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.byOwner.Ascend(from, func(k [2]rawKey) bool {
		if k[0] != owner {
			return false
		}
		if after == "" || k[1] != from[1] {
			ids = append(ids, fmt.Sprintf("s-%x", k[1]))
		}
		return len(ids) != limit || limit == 0
	})
	return ids
}
