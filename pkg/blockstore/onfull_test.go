package blockstore

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/leaktest"
	"github.com/k8ns/granary/pkg/vfs"
)

// heard collects a store's events.
type heard struct {
	sync.Mutex
	kinds []EventKind
}

func (h *heard) hear(e Event) {
	h.Lock()
	defer h.Unlock()
	h.kinds = append(h.kinds, e.Kind)
}

func (h *heard) has(k EventKind) bool {
	h.Lock()
	defer h.Unlock()
	return slices.Contains(h.kinds, k)
}

// fill writes noise until a write fails or stop is closed; what was acknowledged is in image.
func fill(v *Volume, image []byte, from int64) (int64, error) {
	const piece = 64 << 10
	for off := from; off < v.Size(); off += piece {
		p := noise(uint64(off)+1, piece)
		if _, err := v.WriteAt(p, off); err != nil {
			return off, err
		}
		copy(image[off:], p)
	}
	return v.Size(), nil
}

// TestOnFullError fills the disk under a volume whose writes fail after a time, by its
// class or by a word while they wait: ErrNoSpace, nothing acknowledged lost, and writing
// goes on when there is space.
func TestOnFullError(t *testing.T) {
	leaktest.Check(t)
	for _, by := range []string{"class", "word"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			testOnFullError(t, by)
		})
	}
}

func testOnFullError(t *testing.T, by string) {
	fsys, events := vfs.NewMem(), &heard{}
	o := fullOptions()
	o.FullTimeout = 300 * time.Millisecond
	var first sync.Once
	var waits time.Time // when the first write waited
	o.Events = func(e Event) {
		if e.Kind == VolumeWaiting {
			first.Do(func() { waits = time.Now() })
		}
		events.hear(e)
	}
	if by == "word" {
		o.FullTimeout = time.Hour
	}
	s := openStore(t, fsys, o)
	stopRun := runStore(t, s)
	doomed, _ := ballast(t, s, "doomed", 1, 4<<20)
	waitFor(t, 10*time.Second, "fold", func() bool { return s.loaded(doomed) == nil })
	spec := VolumeSpec{Name: "w", SizeBytes: 16 << 20}
	if by == "class" {
		spec.OnFull = OnFullError
	}
	info := must(s.CreateVolume(spec))(t)
	clone := must(s.CreateVolume(VolumeSpec{Name: "clone", FromVolume: info.ID}))(t)
	if clone.OnFull != info.OnFull {
		t.Errorf("the clone has onFull %q, its source %q", clone.OnFull, info.OnFull)
	}
	v, idle := attach(t, s, info.ID), attach(t, s, clone.ID)
	fsys.SetCapacity(used(t, fsys) + 2<<20)
	image := make([]byte, v.Size())
	var at int64
	var err error
	var over time.Time
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		at, err = fill(v, image, 0)
		over = time.Now()
	}()
	if by == "word" {
		waitFor(t, 20*time.Second, "the volume says that it waits", func() bool {
			return must(s.Volume(info.ID))(t).WaitingSince != nil
		})
		time.Sleep(500 * time.Millisecond)
		select {
		case <-ended:
			t.Fatalf("a write that waits without limit has ended: %v", err)
		default:
		}
		must(s.SetOnFull(info.ID, OnFullError))(t)
	}
	within(t, 20*time.Second, "the write ends", func() { <-ended })
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "delete volumes or snapshots") {
		t.Fatalf("write on a full disk: %v, want ErrNoSpace and what to do", err)
	}
	if waited := over.Sub(waits); by == "class" && waited < o.FullTimeout {
		t.Errorf("the write waited %v, want at least %v", waited, o.FullTimeout)
	}
	if !events.has(StoreFull) || !events.has(VolumeWaiting) || s.Stats(false).Waiting != 1 {
		t.Errorf("events %v, %d volumes waiting", events.kinds, s.Stats(false).Waiting)
	}
	began := time.Now()
	if _, err := v.WriteAt(noise(7, 64<<10), at); !errors.Is(err, ErrNoSpace) {
		t.Errorf("next write: %v, want ErrNoSpace", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the next write failed only after %v", took)
	}
	must(s.SetOnFull(info.ID, OnFullWait))(t)
	if since := must(s.Volume(info.ID))(t).WaitingSince; since != nil {
		t.Errorf("waiting since %v: what was refused does not wait", since)
	}
	must(s.SetOnFull(info.ID, OnFullError))(t)
	within(t, 10*time.Second, "flush on a full disk", func() { ok(t, v.Flush()) })
	wantImage(t, readAll(t, v), image, "volume on a full disk")
	crashed := crashedClone(t, fsys, fullOptions())
	cv := attach(t, crashed, v.ID())
	wantImage(t, readAll(t, cv), image, "volume after a power cut on a full disk")
	if got := must(crashed.Volume(info.ID))(t).OnFull; got != OnFullError {
		t.Errorf("onFull is %q after a power cut", got)
	}

	within(t, 10*time.Second, "delete", func() { ok(t, s.DeleteVolume(doomed)) })
	waitFor(t, 20*time.Second, "a write goes through again", func() bool {
		_, err := v.WriteAt(noise(uint64(at)+1, 64<<10), at)
		return err == nil
	})
	copy(image[at:], noise(uint64(at)+1, 64<<10))
	waitFor(t, 10*time.Second, "nobody waits", func() bool {
		return must(s.Volume(info.ID))(t).WaitingSince == nil
	})
	if !events.has(StoreSpaceBack) {
		t.Errorf("events %v", events.kinds)
	}
	ok(t, v.Flush())
	wantImage(t, readAll(t, v), image, "volume")
	wantClean(t, s)
	ok(t, idle.Close())
	stopRun()
	ok(t, s.Close())
}

// What is told last of a full disk is how it is: of two changes at the same time the first
// could be told last.
func TestFullIsToldInOrder(t *testing.T) {
	kinds := map[bool]EventKind{true: StoreFull, false: StoreSpaceBack}
	for first, kind := range kinds {
		events, second := &heard{}, make(chan struct{})
		armed := false
		o := smallOptions()
		o.Events = func(e Event) {
			switch {
			case !armed:
				return
			case e.Kind == kind:
				select { // slow at telling it
				case <-second:
				case <-time.After(50 * time.Millisecond):
				}
			default:
				close(second)
			}
			events.hear(e)
		}
		s := openStore(t, vfs.NewMem(), o)
		s.setFull(!first, ErrNoSpace)
		armed = true
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.setFull(first, ErrNoSpace)
		}()
		waitFor(t, 10*time.Second, "the first change", func() bool { return s.isFull() == first })
		s.setFull(!first, ErrNoSpace)
		<-done
		if want := []EventKind{kind, kinds[!first]}; !slices.Equal(events.kinds, want) {
			t.Errorf("told %v, want %v", events.kinds, want)
		}
		ok(t, s.Close())
	}
}
