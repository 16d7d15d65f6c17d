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
	t.insert(prefix, chunk)
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

func (t *hookTable) grow(alive func(uint32) bool) {
	live := 0
	for i, k := range t.keys {
		if k != emptyHook && alive(t.vals[i]) {
			live++
		}
	}
	old := *t
	size := max(1024, live*7/4) // 4/7 full
	*t = hookTable{keys: make([]uint64, size), vals: make([]uint32, size)}
	for i := range t.keys {
		t.keys[i] = emptyHook
	}
	for i, k := range old.keys {
		if k != emptyHook && alive(old.vals[i]) {
			t.insert(k, old.vals[i])
		}
	}
}

// bytes is the memory in use.
func (t *hookTable) bytes() int64 { return int64(len(t.keys)) * 12 }
