package dedup

import (
	"testing"

	"github.com/k8ns/granary/pkg/locktest"
	"github.com/k8ns/granary/pkg/vfs"
)

func TestListsAreLocked(t *testing.T) {
	fp := FingerprintOf(block(1))
	c := newListCache(4)
	locktest.Wait(t, &c.mu, map[string]func(){
		"get":    func() { c.get(1) },
		"add":    func() { c.add(&fpList{num: 1}, true) },
		"hit":    func() { c.hit(1) },
		"lookup": func() { c.lookup(&fp) },
		"drop":   func() { c.drop(1) },
	})
}

func TestDamageIsLocked(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	at := put(t, s, seq(0, 16)...)
	ch := s.index[at[0].Chunk]
	c := ch.copies[0]
	bad := func(slot int) func() {
		return func() { s.markBad(&badPart{copy: c, lo: slot, hi: slot + 1, reason: "test"}) }
	}
	bad(1)()
	if _, err := s.loadList(ch); err != nil { // takes no lock from here on
		t.Fatal(err)
	}
	locktest.Wait(t, &s.mu, map[string]func(){
		"list of damage":     func() { s.Damaged() },
		"damage like it":     func() { s.damagedLike(FingerprintOf(block(1))) },
		"a list that is bad": func() { s.listBad(c) },
		"a hook":             func() { s.hooked(1) },
		"settled damage":     func() { s.Settled(at[1]) },
		"lost damage":        func() { s.lost(nil) },
		"chunk by its ID":    func() { s.chunkOf(ch.id) },
	})
	locktest.Wait(t, s.mu.RLocker(), map[string]func(){
		"damage found":      bad(2),
		"damage taken back": func() { s.markGood(c, 1, 2) },
		"damage of records": func() { s.LoadDamage([]Damage{{Slot: at[5]}}) },
	})
}
