package dedup

// hookTable maps the prefix of a sampled fingerprint to the number of a chunk: 12
// bytes a place, at most 7 of 8 places used, so 14 to 24 bytes a hook. It is a hint:
// an entry may name a chunk that lost the slot or is gone (its number is not used
// again), and the list that a hit loads decides. Open addressing with linear probing;
// entries of chunks that are gone are swept out when the table grows.
type hookTable struct {
	keys []uint64 // prefix; emptyHook where free
	vals []uint32 // chunk number
	n    int

	budget int64  // bytes that the table may take; 0: no limit
	thin   uint64 // hooks with one of these bits set are not kept: the budget was full
}

// emptyHook is never a sampled prefix: its low bits are not zero.
const emptyHook = ^uint64(0)

// place is where the search for a prefix begins (Fibonacci hashing: the low bits of
// a sampled prefix are all zero).
func (t *hookTable) place(prefix uint64) int {
	return int(prefix * 0x9e3779b97f4a7c15 >> 32 % uint64(len(t.keys)))
}

// get finds the chunk of a prefix.
func (t *hookTable) get(prefix uint64) (chunk uint32, ok bool) {
	if len(t.keys) == 0 {
		return 0, false
	}
	for i := t.place(prefix); ; {
		switch t.keys[i] {
		case prefix:
			return t.vals[i], true
		case emptyHook:
			return 0, false
		}
		if i++; i == len(t.keys) {
			i = 0
		}
	}
}

// put sets the chunk of a prefix, in place of the one before. alive tells whether a
// chunk number is still in use.
func (t *hookTable) put(prefix uint64, chunk uint32, alive func(uint32) bool) {
	if t.n*8 >= len(t.keys)*7 {
		t.grow(alive)
	}
	if prefix&t.thin == 0 {
		t.insert(prefix, chunk)
	}
}

func (t *hookTable) insert(prefix uint64, chunk uint32) {
	i := t.place(prefix)
	for t.keys[i] != emptyHook && t.keys[i] != prefix {
		if i++; i == len(t.keys) {
			i = 0
		}
	}
	if t.keys[i] == emptyHook {
		t.n++
	}
	t.keys[i], t.vals[i] = prefix, chunk
}

// grow makes room, first by leaving out what is gone; if the budget does not allow a
// larger table, half of the hooks go: one in 64 stays, then one in 128.
func (t *hookTable) grow(alive func(uint32) bool) {
	old := *t
	live := old.count(alive)
	size := max(1024, live*7/4) // 4/7 full
	for t.budget > 0 && int64(size)*12 > t.budget && size > 1024 {
		old.thin = old.thin<<1 | (hookMask + 1)
		size = max(1024, old.count(alive)*7/4)
	}
	*t = hookTable{keys: make([]uint64, size), vals: make([]uint32, size), budget: old.budget, thin: old.thin}
	for i := range t.keys {
		t.keys[i] = emptyHook
	}
	for i, k := range old.keys {
		if k != emptyHook && k&old.thin == 0 && alive(old.vals[i]) {
			t.insert(k, old.vals[i])
		}
	}
}

// count is how many entries are worth keeping.
func (t *hookTable) count(alive func(uint32) bool) int {
	n := 0
	for i, k := range t.keys {
		if k != emptyHook && k&t.thin == 0 && alive(t.vals[i]) {
			n++
		}
	}
	return n
}

// bytes is the memory in use.
func (t *hookTable) bytes() int64 { return int64(len(t.keys)) * 12 }
