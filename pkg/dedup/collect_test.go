package dedup

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

func liveOf(at []Slot) LiveSet {
	live := LiveSet{}
	for _, a := range at {
		live.Add(a)
	}
	return live
}

// runCollection runs all of a collection's phases.
func runCollection(t testing.TB, c *Collection, live LiveSet) {
	t.Helper()
	c.Condemn()
	c.Recheck(live)
	sweep(t, c)
}

// sweep steps a collection to its end.
func sweep(t testing.TB, c *Collection) {
	t.Helper()
	for more := true; more; {
		var err error
		if more, err = c.Step(); err != nil {
			t.Fatal(err)
		}
	}
}

// pickLive keeps each address with this probability, in runs.
func pickLive(rng *rand.Rand, at []Slot, ns []int, part float64) ([]Slot, []int) {
	var a []Slot
	var b []int
	keep := false
	for i := range at {
		if rng.IntN(5) == 0 {
			keep = rng.Float64() < part
		}
		if keep {
			a, b = append(a, at[i]), append(b, ns[i])
		}
	}
	return a, b
}

// I6: random live sets over several rounds; what is live stays, what is dead goes,
// space comes back, before and after a crash at any point.
func TestCollectRandom(t *testing.T) {
	seeds := uint64(25)
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 9))
		mem := vfs.NewMem()
		s := open(t, mem, 1)
		var at []Slot
		var ns []int
		next := 0
		for epoch := uint32(2); epoch < 7; epoch++ {
			k := 50 + rng.IntN(400)
			at = append(at, put(t, s, seq(next, next+k)...)...)
			ns = append(ns, seq(next, next+k)...)
			next += k
			at, ns = pickLive(rng, at, ns, rng.Float64())
			if rng.IntN(3) == 0 { // further copies of dropped things
				at = append(at, put(t, s, seq(0, 40)...)...)
				ns = append(ns, seq(0, 40)...)
			}
			if err := s.SealOpen(); err != nil {
				t.Fatal(err)
			}
			h := s.Horizon()
			live := liveOf(at)
			c := s.Plan(live, h, PlanOptions{MinLive: 0.9, MergeSmall: rng.IntN(2) == 0, GroupShift: rng.IntN(2) * 5})
			before := s.Stats().Stored
			c.Condemn()
			c.Recheck(live)
			stop := -1
			if rng.IntN(2) == 0 {
				stop = rng.IntN(len(c.files) + 2)
			}
			for i := 0; i != stop; i++ {
				more, err := c.Step()
				if err != nil {
					t.Fatal(err)
				}
				invariants(t, s)
				if !more {
					if got := before - s.Stats().Stored; got != c.Freed() {
						t.Errorf("freed %d, says %d", got, c.Freed())
					}
					break
				}
			}
			check(t, s, at, ns...)
			switch rng.IntN(3) {
			case 0:
				c.Abort()
				invariants(t, s)
			case 1:
				mem.Crash(rng, 0.5)
				s = open(t, mem, epoch)
			default:
				mem.Kill()
				s = open(t, mem, epoch)
			}
			check(t, s, at, ns...)
			verify(t, s)
			invariants(t, s)
			if p := s.Problems(); len(p) > 0 {
				t.Error(p)
			}
		}
		// Everything live, twice collected: little garbage is left.
		s.SealOpen()
		live := liveOf(at)
		for range 2 {
			runCollection(t, s.Plan(live, s.Horizon(), PlanOptions{MinLive: 0.999}), live)
		}
		if g := s.GarbageBytes(live); g > 4096 {
			t.Errorf("seed %d: %d bytes of garbage are left", seed, g)
		}
		runCollection(t, s.Plan(LiveSet{}, s.Horizon(), PlanOptions{}), LiveSet{})
		if st := s.Stats(); st.Files != 0 || st.Chunks != 0 || st.Stored != 0 {
			t.Errorf("%+v\n%s", st, fileNames(s))
		}
	}
}

// A condemned slot is no dedup target; what a second marking finds live is kept.
func TestCondemn(t *testing.T) {
	s := open(t, vfs.NewMem(), 1)
	at := put(t, s, seq(0, 20)...)
	s.SealOpen()
	c := s.Plan(liveOf(at[:5]), s.Horizon(), PlanOptions{})
	if c.Files() != 1 || s.Plan(LiveSet{}, s.Horizon(), PlanOptions{}).Files() != 0 {
		t.Fatal("plan")
	}
	c.Condemn()
	again := put(t, s, seq(0, 10)...)
	for i := range again {
		if (again[i] == at[i]) != (i < 5) {
			t.Errorf("block %d at %s, was at %s", i, again[i], at[i])
		}
	}
	whole := put(t, s, seq(0, 20)...) // a chunk of the ten that no list has usable
	check(t, s, whole, seq(0, 20)...)
	live := liveOf(append(append(at[:5:5], at[12]), append(again, whole...)...))
	c.Recheck(live)
	sweep(t, c)
	check(t, s, []Slot{at[12]}, 12)
	check(t, s, again, seq(0, 10)...)
	check(t, s, whole, seq(0, 20)...)
	if _, err := s.ReadNode(at[6]); err == nil {
		t.Error("a dead slot is still there")
	}
}

// A file with a bad live slot is left alone.
func TestCollectDamaged(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1, noCache)
	at := put(t, s, seq(0, 30)...)
	s.SealOpen()
	c := s.index[at[0].Chunk].copies[0]
	f, _ := s.front(c)
	mem.Corrupt(testDir+"/"+c.file.blob.Name(), int64(c.off)+f.payloadAt()+int64(f.groups[0].off), func(b []byte) { b[9] ^= 1 })
	live := liveOf(at[7:12])
	runCollection(t, s.Plan(live, s.Horizon(), PlanOptions{}), live)
	check(t, s, at[8:30], seq(8, 30)...)
	if len(s.Damaged()) != 8 || s.Plan(live, s.Horizon(), PlanOptions{}).Files() != 0 {
		t.Error(s.Damaged())
	}
	s.Plan(LiveSet{}, s.Horizon(), PlanOptions{}).Abort()
	live = liveOf(at[8:12])
	runCollection(t, s.Plan(live, s.Horizon(), PlanOptions{}), live)
	check(t, s, at[8:12], seq(8, 12)...)
}

// Readers and writers race with collections, with the waiting that the caller owes:
// no session that began before Condemn is open at Recheck.
func TestCollectRace(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem, 1, func(o *Options) { o.CacheBytes = 64 << 10 })
	var mu sync.Mutex
	owned := map[int]Slot{} // the catalog
	var sessions sync.RWMutex
	stop := make(chan struct{})
	var folds atomic.Int64
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 4))
			for {
				select {
				case <-stop:
					return
				default:
				}
				sessions.RLock()
				lo := rng.IntN(600)
				ns := seq(lo, lo+1+rng.IntN(60))
				at, err := tryPut(s, ns...)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				for i := range at {
					owned[ns[i]] = at[i]
				}
				if rng.IntN(2) == 0 {
					lo := rng.IntN(600)
					for i := lo; i < lo+100; i++ {
						delete(owned, i)
					}
				}
				mu.Unlock()
				sessions.RUnlock()
				folds.Add(1)
			}
		})
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 6))
			for {
				select {
				case <-stop:
					return
				default:
				}
				sessions.RLock() // a read that began before the drop is waited for
				n := rng.IntN(600)
				mu.Lock()
				at, ok := owned[n]
				mu.Unlock()
				if ok {
					if b, err := s.ReadNode(at); err != nil || string(b) != string(block(n)) {
						t.Errorf("block %d at %s: %v", n, at, err)
					}
				}
				sessions.RUnlock()
			}
		})
	}
	marking := func() LiveSet {
		mu.Lock()
		defer mu.Unlock()
		live := LiveSet{}
		for _, at := range owned {
			live.Add(at)
		}
		return live
	}
	rounds := 30
	if testing.Short() {
		rounds = 10
	}
	freed := int64(0)
	for range rounds {
		for n := folds.Load(); folds.Load() < n+5 && !t.Failed(); {
			runtime.Gosched()
		}
		if err := s.SealOpen(); err != nil {
			t.Fatal(err)
		}
		h := s.Horizon()
		c := s.Plan(marking(), h, PlanOptions{MinLive: 0.95, MergeSmall: true})
		c.Condemn()
		sessions.Lock() // all that began before have ended
		live := marking()
		sessions.Unlock()
		c.Recheck(live)
		for more := true; more; {
			var err error
			if more, err = c.Step(); err != nil {
				t.Fatal(err)
			}
		}
		freed += c.Freed()
	}
	close(stop)
	wg.Wait()
	if freed == 0 {
		t.Error("nothing was freed")
	}
	invariants(t, s)
	verify(t, s)
	for n, at := range owned {
		check(t, s, []Slot{at}, n)
	}
	mem.Crash(nil, 0)
	s = open(t, mem, 2)
	for n, at := range owned {
		check(t, s, []Slot{at}, n)
	}
}

// Every operation of a collection fails once, or the disk fills up: nothing live is
// lost, in memory or after a crash, and a later collection succeeds.
func TestCollectFaults(t *testing.T) {
	step := int64(1)
	if testing.Short() {
		step = 5
	}
	for _, fault := range []error{errors.New("input/output error"), vfs.ErrNoSpace} {
		for n := int64(0); ; n += step {
			mem := vfs.NewMem()
			faulty := vfs.NewFaulty(mem)
			s := open(t, faulty, 1, noCache)
			at := put(t, s, seq(0, 100)...)
			s.SealOpen()
			again := put(t, s, seq(90, 140)...)
			s.SealOpen()
			ns := append(seq(0, 20), seq(100, 120)...)
			at = append(at[:20:20], again[10:30]...)
			live := liveOf(at)
			c := s.Plan(live, s.Horizon(), PlanOptions{MinLive: 0.9})
			c.Condemn()
			c.Recheck(live)
			from := faulty.Count()
			faulty.FailNth(n, fault, errors.Is(fault, vfs.ErrNoSpace))
			if errors.Is(fault, vfs.ErrNoSpace) {
				faulty.SetHook(func(op vfs.Op) error {
					if op.Index >= from+n && (op.Kind == vfs.OpWrite || op.Kind == vfs.OpCreate) {
						return fault
					}
					return nil
				})
			}
			for more := true; more; {
				var err error
				if more, err = c.Step(); err != nil && more {
					t.Fatal("more after", err)
				}
			}
			done := faulty.Count()-from <= n
			faulty.SetHook(nil)
			invariants(t, s)
			check(t, s, at, ns...)
			after := mem.Clone()
			after.Crash(rand.New(rand.NewPCG(uint64(n), 3)), 0.5)
			check(t, open(t, after, 2), at, ns...)
			runCollection(t, s.Plan(live, s.Horizon(), PlanOptions{MinLive: 0.9}), live)
			check(t, s, at, ns...)
			verify(t, s)
			if done {
				break
			}
		}
	}
}
