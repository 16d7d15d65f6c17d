package device

import (
	"testing"
)

// TestCopiesInEachState makes clones and snapshots of volumes that are empty, that are
// being formatted and that are used. A copy is formatted if its source was not used when
// it was copied, whatever has become of the source since; of one that was nothing is.
func TestCopiesInEachState(t *testing.T) { // I4, I11
	eachKind(t, func(g *guarded, kind string) {
		g.copyEmpty(kind)
		for _, at := range []moment{halfMkfs, afterMkfs} {
			g.copyFormatting(kind, at)
		}
		g.copyUsed(kind)
	})
}

func (g *guarded) copyEmpty(kind string) {
	g.Helper()
	v := g.claim("empty", kind, nil)
	clone := g.clone(v, "empty-clone")
	restored := g.restore(g.cut(v, "empty-snapshot"), kind, "empty-restored")
	for _, one := range []claim{clone, restored, v} {
		g.wantFormatted(one, noise(1000))
		g.unstage(one)
	}
}

// copyFormatting copies a volume during mkfs. One copy is staged before mkfs has ended,
// the other one later.
func (g *guarded) copyFormatting(kind string, at moment) {
	g.Helper()
	name := string(at)
	v := g.claim(name, kind, nil)
	g.plan(at)
	stage := g.stageLater(g.ctx, v)
	g.reached(stage)
	clone, snapshot := g.clone(v, name+"-clone"), g.cut(v, name+"-snapshot")
	g.wantState(clone, "formatting", false)
	g.plan(undisturbed)
	copied := noise(10_000)
	g.wantFormatted(clone, copied)
	g.unstage(clone)
	g.goOn()
	if err := g.answer(stage); err != nil {
		g.Fatal(err)
	}
	content := noise(20_000)
	g.put(g.staging(v), "file", content)
	restored := g.restore(snapshot, kind, name+"-restored")
	g.wantState(restored, "formatting", false)
	g.wantFormatted(restored, copied)
	g.unstage(restored)
	g.unstage(v)
	g.wantKept(v, content)
	g.unstage(v)
	g.wantKept(clone, copied)
	g.unstage(clone)
}

// copyUsed copies a volume that is mounted, and mounts the copies beside it.
func (g *guarded) copyUsed(kind string) {
	g.Helper()
	v, content := g.claim("used", kind, nil), noise(20_000)
	g.wantFormatted(v, content)
	copies := []claim{g.clone(v, "used-clone"), g.restore(g.cut(v, "used-snapshot"), kind, "used-restored")}
	for _, copied := range copies {
		g.wantState(copied, "used", false)
		g.wantKept(copied, content)
	}
	for _, staged := range append(copies, v) {
		g.unstage(staged)
	}
}
