package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/driver"
	"github.com/k8ns/granary/pkg/events"
	"github.com/k8ns/granary/pkg/vfs"
)

// posts collects events.
type posts chan events.Event

func (p posts) Post(e events.Event) { p <- e }

// next is the next event, as kind/namespace/name reason type.
func (p posts) next(t *testing.T) (about string, e events.Event) {
	t.Helper()
	select {
	case e = <-p:
	case <-time.After(20 * time.Second):
		t.Fatal("no event")
	}
	kind := "Normal"
	if e.Warning {
		kind = "Warning"
	}
	return fmt.Sprintf("%s %s/%s %s %s", e.Object.Kind, e.Object.Namespace, e.Object.Name, e.Reason, kind), e
}

func TestTeller(t *testing.T) {
	p := make(posts, 100)
	teller := newTeller("n1", "/var/lib/granary", 30*time.Second, p)
	volumes := map[string]blockstore.VolumeInfo{
		"v-1": {ID: "v-1", OnFull: "wait", Labels: map[string]string{driver.LabelClaim: "data", driver.LabelClaimNamespace: "shop", driver.LabelPersistentVolume: "pvc-1"}},
		"v-2": {ID: "v-2", OnFull: "error", Labels: map[string]string{driver.LabelClaim: "log", driver.LabelClaimNamespace: "shop"}},
		"v-3": {ID: "v-3", OnFull: "wait"}, // made by hand
	}
	teller.volume = func(id string) (blockstore.VolumeInfo, error) {
		if v, ok := volumes[id]; ok {
			return v, nil
		}
		return blockstore.VolumeInfo{}, blockstore.ErrNotFound
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		teller.run(ctx)
	}()
	full := errors.New("no room for a segment")
	teller.hear(blockstore.Event{Kind: blockstore.StoreFull, Err: full})
	for _, id := range []string{"v-2", "v-1", "v-3", "v-4"} {
		teller.hear(blockstore.Event{Kind: blockstore.VolumeWaiting, Volume: id})
	}
	teller.hear(blockstore.Event{Kind: blockstore.StoreSpaceBack})
	teller.hear(blockstore.Event{Kind: blockstore.StoreSpaceBack}) // nobody waits any more
	teller.hear(blockstore.Event{Kind: blockstore.VolumeFailed, Volume: "v-1", Err: errors.New("disk is on fire")})
	for _, want := range []struct{ about, text string }{
		{"Node /n1 StoreFull Warning", "no room for a segment"},
		{"PersistentVolumeClaim shop/log VolumeWaiting Warning", "fail with ENOSPC after 30s"},
		{"PersistentVolumeClaim shop/data VolumeWaiting Warning", "granary volume set v-1 --on-full error"},
		{"Node /n1 StoreSpaceBack Normal", "/var/lib/granary"},
		{"PersistentVolumeClaim shop/data SpaceBack Normal", "node n1"},
		{"PersistentVolumeClaim shop/log SpaceBack Normal", "node n1"},
		{"Node /n1 StoreSpaceBack Normal", "go on"},
		{"PersistentVolumeClaim shop/data VolumeFailed Warning", "disk is on fire"},
	} {
		about, e := p.next(t)
		if about != want.about || !strings.Contains(e.Message, want.text) {
			t.Errorf("%s: %q; want %s with %q", about, e.Message, want.about, want.text)
		}
		if e.Object.Name == "data" && e.Object.VolumeName != "pvc-1" {
			t.Errorf("%s: of volume %q", about, e.Object.VolumeName)
		}
	}
	teller.warn("a setting")
	if about, e := p.next(t); about != "Node /n1 DangerousSetting Warning" || e.Message != "a setting" {
		t.Errorf("%s: %q", about, e.Message)
	}
	cancel()
	<-ended
	for range 2 * maxHeard { // nobody listens: nothing blocks
		teller.hear(blockstore.Event{Kind: blockstore.StoreFull, Err: full})
	}
}

// A real store on a disk that fills up says what the cluster is told.
func TestTellerOfAFullStore(t *testing.T) {
	p := make(posts, 100)
	teller := newTeller("n1", "/s", time.Second, p)
	disk := vfs.NewMem()
	s, err := blockstore.Open(disk, "/s", blockstore.Options{
		JournalBytes: 2 << 20, SegmentBytes: 256 << 10, ReserveBytes: 1 << 20, ChunkFileBytes: 1 << 20,
		FullTimeout: 10 * time.Millisecond, Events: teller.hear,
	})
	if err != nil {
		t.Fatal(err)
	}
	teller.volume = s.Volume
	ctx, cancel := context.WithCancel(context.Background())
	var ended []chan struct{}
	for _, run := range []func(context.Context){teller.run, s.Run} {
		done := make(chan struct{})
		ended = append(ended, done)
		go func() {
			defer close(done)
			run(ctx)
		}()
	}
	info, err := s.CreateVolume(blockstore.VolumeSpec{
		Name: "v", SizeBytes: 16 << 20, OnFull: blockstore.OnFullError, Compression: "none",
		Labels: map[string]string{driver.LabelClaim: "data", driver.LabelClaimNamespace: "shop"},
	})
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.OpenVolume(ctx, info.ID)
	if err != nil {
		t.Fatal(err)
	}
	disk.SetCapacity(4 << 20)
	block := make([]byte, 64<<10)
	for off := int64(0); err == nil && off < v.Size(); off += int64(len(block)) {
		for i := range block {
			block[i] = byte(off>>16) ^ byte(i*i>>8)
		}
		_, err = v.WriteAt(block, off)
	}
	if !errors.Is(err, blockstore.ErrNoSpace) {
		t.Errorf("filling the disk: %v", err)
	}
	var heard []string
	for !slices.Contains(heard, "PersistentVolumeClaim shop/data VolumeWaiting Warning") {
		about, _ := p.next(t)
		heard = append(heard, about)
	}
	if !slices.Contains(heard, "Node /n1 StoreFull Warning") {
		t.Errorf("heard %q", heard)
	}
	disk.SetCapacity(1 << 30)
	for !slices.Contains(heard, "PersistentVolumeClaim shop/data SpaceBack Normal") {
		about, _ := p.next(t)
		heard = append(heard, about)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	for _, done := range ended {
		<-done
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
