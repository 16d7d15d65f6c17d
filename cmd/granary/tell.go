package main

import (
	"context"
	"fmt"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/driver"
	"github.com/k8ns/granary/pkg/events"
)

// maxHeard is how much of what the store says may wait to be told.
const maxHeard = 1024

// poster is who tells the cluster; *events.Poster.
type poster interface{ Post(events.Event) }

// teller turns what the store says of itself into Events: of a volume on its claim; of the
// store on its Node, where kubelet tells about disks too, and which, unlike the driver's
// pod, is the same after an update.
type teller struct {
	// Fixed before run.
	node        string
	dataDir     string
	fullTimeout time.Duration
	post        poster
	volume      func(idOrName string) (blockstore.VolumeInfo, error)

	heard   chan blockstore.Event
	waiting map[string]bool // run's: volumes of which it was told that they wait
}

func newTeller(node, dataDir string, fullTimeout time.Duration, post poster) *teller {
	return &teller{
		node: node, dataDir: dataDir, fullTimeout: fullTimeout, post: post,
		heard: make(chan blockstore.Event, maxHeard), waiting: make(map[string]bool),
	}
}

// hear is the store's Options.Events: the store holds locks and waits for nobody.
func (t *teller) hear(e blockstore.Event) {
	select {
	case t.heard <- e:
	default: // a store that says so much is told of by what it has said
	}
}

// run tells what was heard until ctx ends.
func (t *teller) run(ctx context.Context) {
	for {
		select {
		case e := <-t.heard:
			t.tell(e)
		case <-ctx.Done():
			return
		}
	}
}

func (t *teller) tell(e blockstore.Event) {
	switch e.Kind {
	case blockstore.StoreFull:
		t.post.Post(events.Event{
			Object: t.nodeObject(), Reason: string(e.Kind), Warning: true,
			Message: fmt.Sprintf("The disk of the Granary store in %s is full: writes to its volumes wait. "+
				"Delete volumes or snapshots, or grow the disk. (%v)", t.dataDir, e.Err),
		})
	case blockstore.StoreSpaceBack:
		t.post.Post(events.Event{
			Object: t.nodeObject(), Reason: string(e.Kind),
			Message: fmt.Sprintf("The disk of the Granary store in %s has space again: writes go on.", t.dataDir),
		})
		t.spaceBack()
	case blockstore.VolumeWaiting:
		t.ofVolume(e.Volume, func(v blockstore.VolumeInfo) events.Event {
			return events.Event{Reason: string(e.Kind), Warning: true, Message: t.waitingText(v)}
		})
		t.waiting[e.Volume] = true
	case blockstore.VolumeFailed:
		t.ofVolume(e.Volume, func(v blockstore.VolumeInfo) events.Event {
			return events.Event{Reason: string(e.Kind), Warning: true, Message: fmt.Sprintf("Volume %s on node %s has failed, "+
				"and refuses everything until the daemon is started again; what it had acknowledged is kept: %v", v.ID, t.node, e.Err)}
		})
	}
}

func (t *teller) waitingText(v blockstore.VolumeInfo) string {
	text := fmt.Sprintf("Writes to volume %s wait: the disk of the store on node %s is full. "+
		"They go on when volumes or snapshots are deleted there or the disk grows", v.ID, t.node)
	if v.OnFull == blockstore.OnFullError {
		return fmt.Sprintf("%s, and fail with ENOSPC after %v (onFull: error).", text, t.fullTimeout)
	}
	return fmt.Sprintf("%s; granary volume set %s --on-full error ends the wait with ENOSPC.", text, v.ID)
}

// spaceBack tells those who were told that they wait.
func (t *teller) spaceBack() {
	ids := sortedKeys(t.waiting)
	clear(t.waiting)
	for _, id := range ids {
		t.ofVolume(id, func(blockstore.VolumeInfo) events.Event {
			return events.Event{Reason: "SpaceBack", Message: fmt.Sprintf("The store on node %s has space again: writes go on.", t.node)}
		})
	}
}

// ofVolume posts an event on the claim of a volume, if it has one.
func (t *teller) ofVolume(id string, event func(blockstore.VolumeInfo) events.Event) {
	v, err := t.volume(id)
	if err != nil || v.Labels[driver.LabelClaim] == "" || v.Labels[driver.LabelClaimNamespace] == "" {
		return // deleted meanwhile, or made by hand
	}
	e := event(v)
	e.Object = events.Object{
		Kind: "PersistentVolumeClaim", Namespace: v.Labels[driver.LabelClaimNamespace],
		Name: v.Labels[driver.LabelClaim], VolumeName: v.Labels[driver.LabelPersistentVolume],
	}
	t.post.Post(e)
}

// warn tells about a dangerous setting of the machine.
func (t *teller) warn(warning string) {
	t.post.Post(events.Event{Object: t.nodeObject(), Reason: "DangerousSetting", Warning: true, Message: warning})
}

func (t *teller) nodeObject() events.Object { return events.Object{Kind: "Node", Name: t.node} }
