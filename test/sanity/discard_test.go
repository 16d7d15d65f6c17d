package sanity

import (
	"testing"
	"time"
)

// Discarding what was removed takes nothing of what lies beside it, also when the space
// is used again at once, and not when the journal is folded later.
func TestDiscard(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		v, m, now := e.start(kind)
		for round := range uint64(3) {
			now = e.change(m, now, now.every(2+int(round)), nil)
			e.must(m.sync())
			m.trim(e)
			e.same("after discard", m, now)
			now = e.change(m, now, nil, newImage(seed+round, blobs+30*int(round), 30))
		}
		v.release() // a mounted filesystem never stops writing
		_, err := e.daemon.WaitFolded(e.ctx, 0, time.Minute)
		e.must(err)
		e.same("folded and staged again", v.use(), now)
	})
}
