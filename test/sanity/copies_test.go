package sanity

import (
	"testing"
	"time"
)

// A clone of a volume in use is its source at that moment; whatever happens to one
// afterwards, the other does not see it. Both are mounted side by side.
func TestClone(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		source, m, was := e.start(kind)
		clone := source.clone(0)
		ofSource := e.change(m, was, was.every(3), newImage(seed+1, 150, 20).with(rewritten(was, 5, seed+2)))
		c := clone.use()
		e.same("clone", c, was)
		ofClone := e.change(c, was, was.every(4), newImage(seed+3, 180, 20).with(rewritten(was, 7, seed+4)))
		e.same("source beside its clone", m, ofSource)
		m, c = source.again(), clone.again()
		e.same("source, staged again", m, ofSource)
		e.same("clone, staged again", c, ofClone)
		source.delete()
		e.same("clone without its source", clone.again(), ofClone)
	})
}

// rewritten is each step'th blob of an image with another content.
func rewritten(i image, step int, seed uint64) image {
	some := image{}
	for _, n := range i.every(step) {
		some[n] = blob{seed: seed + uint64(n), size: i[n].size}
	}
	return some
}

// A restored volume is the snapshot, also when source and snapshot are gone.
func TestRestore(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		source, m, was := e.start(kind)
		snap := source.snapshot()
		ofSource := e.change(m, was, was.every(2), newImage(seed+1, 150, 40))
		restored := snap.restore(0)
		r := restored.use()
		e.same("restored", r, was)
		e.same("source", m, ofSource)
		snap.delete()
		source.delete()
		ofRestored := e.change(r, was, was.every(5), newImage(seed+2, 200, 10))
		e.same("restored, without source and snapshot", restored.again(), ofRestored)
	})
}

// What was durable when a snapshot was asked for is in it, whole; what was begun after
// the answer is not.
func TestSnapshotUnderWriter(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		_, snap, want, loose := e.snapshotUnderWriter(kind)
		r := snap.restore(0).use()
		e.sameBut("restored", r, want, loose)
	})
}

// snapshotUnderWriter takes a snapshot while somebody writes to the volume and returns
// what has to be in it.
func (e *env) snapshotUnderWriter(kind string) (source *volume, s *snapshot, want image, loose map[int]bool) {
	e.Helper()
	source, m, base := e.start(kind)
	small := image{}
	for n, b := range newImage(seed+1, blobs, 150) {
		small[n] = blob{seed: b.seed, size: 1 + b.size%(32<<10)}
	}
	l := startLoad(m, small, 15*time.Millisecond) // the call may wait for 2 s to say that it is ready
	l.wait(20)
	call := time.Now()
	s = source.snapshot()
	answer := time.Now()
	l.wait(len(l.synced) + 5)
	e.must(l.end())
	must, loose := l.between(call, answer)
	after := len(l.begun) - len(must) - len(loose)
	e.Logf("%d blobs were durable before the call, %d were being written, %d came after the answer", len(must), len(loose), after)
	if len(must) == len(small) {
		e.Fatal("the writer had ended before the snapshot: nothing was tested")
	}
	return source, s, base.with(must), loose
}

// A copy may be larger than what it is of: its filesystem grows with it.
func TestLargerCopy(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		source, m, was := e.start(kind)
		before, err := m.capacity()
		e.must(err)
		snap := source.snapshot()
		clone, restored := source.clone(2*source.size), snap.restore(2*source.size)
		for what, v := range map[string]*volume{"clone": clone, "restored": restored} {
			got := v.use()
			e.grown(what, got, before, source.size)
			e.same(what, got, was)
			now := e.beyond(got, was, source)
			e.same(what+", staged again", v.again(), now)
		}
		e.same("source", m, was)
	})
}

// beyond uses what a volume has more than another: a raw one behind the old end, a
// filesystem by a file that would not have fitted.
func (e *env) beyond(m medium, now image, old *volume) image {
	e.Helper()
	if d, ok := m.(*directory); ok {
		e.must(d.reserve(old.size))
		return e.change(m, now, nil, newImage(seed+9, 1000, 20))
	}
	return e.change(m, now, nil, newImage(seed+9, int(old.size/slotSize), 40))
}

// grown wants a medium to have grown by about as much as the volume did.
func (e *env) grown(what string, m medium, before, more int64) {
	e.Helper()
	now, err := m.capacity()
	e.must(err)
	if now < before+more*9/10 {
		e.Errorf("%s: has %d MiB, before it were %d: want about %d more", what, now/mib, before/mib, more/mib)
	}
}
