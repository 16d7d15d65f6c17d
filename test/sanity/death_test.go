package sanity

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// The daemon dies between two calls of the CO, which repeats the one that it has no
// answer to and goes on.
func TestDeathBetweenCalls(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		v, _, now := e.start(kind)
		v.release()

		e.restartKilled() // after CreateVolume
		if again := e.callCreate(v.name, kind, request{size: smallest[kind], modes: modes(writer)}); again.GetVolumeId() != v.id {
			e.Fatalf("CreateVolume %s: repeated after a crash it made another volume", v.name)
		}
		v.stage()
		e.restartKilled() // between stage and publish
		v.stage()
		m := v.publish("pod")
		e.same("published after a crash", m, now)
		e.restartKilled() // after publish: the CO asks for both again
		v.stage()
		m = v.publish("pod")
		e.same("published again", m, now)
		now = e.change(m, now, now.every(9), rewritten(now, 8, seed+1))
		v.unpublish("pod")
		e.restartKilled() // between unpublish and unstage
		e.same("after all that", v.again(), now)
	})
}

// The daemon dies in the middle of a call, at any moment of it: it is gone at once, and
// the repeated call finds what is there and does the rest.
func TestDeathInCalls(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		r := rand.New(rand.NewPCG(seed, 3))
		v, _, now := e.start(kind)
		begun := time.Now()
		m := v.again()
		usual := time.Since(begun) // of the calls that are to be hit
		for round := range 5 {
			v.release()
			after := time.Duration(r.Int64N(int64(usual)))
			e.dieDuring(after, func() { _ = v.tryUse() }) // repeated below, whatever the answer
			m = v.use()
			e.same(fmt.Sprintf("round %d, killed after %v", round, after), m, now)
			now = e.change(m, now, nil, newImage(seed+uint64(round), 10*round, 10))
		}
	})
}

// tryUse is use, with an answer or without.
func (v *volume) tryUse() error {
	if err := v.tryStage(); err != nil {
		return err
	}
	_, err := v.tryPublish("pod", false)
	return err
}

// dieDuring kills the daemon so long after some calls have begun, and starts it again
// when they have ended.
func (e *env) dieDuring(after time.Duration, calls func()) {
	e.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		calls()
	}()
	time.Sleep(after)
	e.restartKilled()
	<-done
}

// The daemon dies under a writer: what was durable is there when the CO has staged the
// volume again, whether it took the dead mounts down before or not.
func TestDeathUnderWriter(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		v, m, now := e.start(kind)
		for round, tidy := range []bool{false, true} {
			m, now = e.dieUnderWriter(v, m, now, round, tidy)
		}
		e.same("staged again", v.again(), now)
	})
}

func (e *env) dieUnderWriter(v *volume, m medium, now image, round int, tidy bool) (medium, image) {
	e.Helper()
	more := newImage(seed+uint64(round), blobs+60*round, 60)
	l := startLoad(m, more, 0)
	l.wait(15)
	e.kill()
	died := time.Now()
	if err := l.end(); err == nil && len(l.synced) == len(more) {
		e.Fatal("the writer had ended before the daemon: nothing was tested")
	}
	e.serve()
	if tidy {
		v.release()
	}
	v.stage()
	m = v.publish("pod")
	must, loose := l.between(died, died)
	e.Logf("%d blobs were durable, %d were being written", len(must), len(loose))
	e.sameBut("after the crash", m, now.with(must), loose)
	for n := range loose { // from here on it is known what they hold
		must[n] = more[n]
		e.must(m.put(n, more[n], true))
	}
	return m, now.with(must)
}
