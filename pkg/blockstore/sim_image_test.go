package blockstore

// simBlock is one block's content.
type simBlock [BlockSize]byte

var simZeros simBlock

// simImage is what the model knows of a volume: its blocks, nil for zeros. Blocks are
// never changed once they are in an image, so that copies share them.
type simImage []*simBlock

func newSimImage(size int64) simImage { return make(simImage, size/BlockSize) }

func (m simImage) size() int64 { return int64(len(m)) * BlockSize }

func (m simImage) clone() simImage { return append(simImage(nil), m...) }

// grown is the image with zeros up to size bytes.
func (m simImage) grown(size int64) simImage {
	return append(m, make(simImage, size/BlockSize-int64(len(m)))...)
}

// put writes p at off, or zeros if p is nil, and calls touched for each block changed.
func (m simImage) put(off, n int64, p []byte, touched func(block int)) {
	for at := off; at < off+n; {
		i, in := int(at/BlockSize), at%BlockSize
		k := min(BlockSize-in, off+n-at)
		if p != nil || m[i] != nil {
			b := new(simBlock)
			if m[i] != nil && k < BlockSize {
				*b = *m[i]
			}
			if p != nil {
				copy(b[in:in+k], p[at-off:])
			} else {
				clear(b[in : in+k])
			}
			m[i] = b
			if p == nil && k == BlockSize {
				m[i] = nil
			}
			if touched != nil {
				touched(i)
			}
		}
		at += k
	}
}

// same tells whether two blocks have the same content.
func (b *simBlock) same(o *simBlock) bool {
	switch {
	case b == o:
		return true
	case b == nil:
		return *o == simZeros
	case o == nil:
		return *b == simZeros
	}
	return *b == *o
}

// simWrite is one write or discard in the history of a volume.
type simWrite struct {
	off   int64
	n     int64
	data  []byte // nil: zeros
	acked bool
}

// apply does the write to an image in one piece.
func (w simWrite) apply(image []byte) {
	if w.data == nil {
		clear(image[w.off : w.off+w.n])
		return
	}
	copy(image[w.off:], w.data)
}

// simHistory is a volume as the model knows it: an image that is durable, and the writes
// since, of which a power loss may leave any prefix (I1).
type simHistory struct {
	base   simImage
	writes []simWrite
	now    simImage // base with all writes
}

func newSimHistory(base simImage) simHistory {
	return simHistory{base: base, now: base.clone()}
}

// add is a new write.
func (h *simHistory) add(w simWrite) {
	h.writes = append(h.writes, w)
	h.now.put(w.off, w.n, w.data, nil)
}

// settle makes the first n writes part of the base: they are durable.
func (h *simHistory) settle(n int) {
	for _, w := range h.writes[:n] {
		h.base.put(w.off, w.n, w.data, nil)
	}
	h.writes = append([]simWrite(nil), h.writes[n:]...)
}

// cut forgets all writes but the first n: the others are lost.
func (h *simHistory) cut(n int) {
	h.writes = h.writes[:n]
	h.now = h.base.clone()
	for i, w := range h.writes {
		h.writes[i].acked = true // read back: as good as acknowledged from now on
		h.now.put(w.off, w.n, w.data, nil)
	}
}

// grow makes the volume larger.
func (h *simHistory) grow(size int64) {
	h.base, h.now = h.base.grown(size), h.now.grown(size)
}

// acked counts the leading writes that were acknowledged.
func (h *simHistory) acked() int {
	n := 0
	for n < len(h.writes) && h.writes[n].acked {
		n++
	}
	return n
}

// prefix returns the longest prefix of the writes, of at least least, with which the
// blocks in got read as they do there; -1 if there is none.
func (h *simHistory) prefix(got map[int]*simBlock, least int) int {
	img := h.base.clone()
	bad := make(map[int]bool)
	look := func(i int) {
		if b, ok := got[i]; ok && !img[i].same(b) {
			bad[i] = true
		} else {
			delete(bad, i)
		}
	}
	for i := range got {
		look(i)
	}
	found := -1
	for k := 0; ; k++ {
		if k >= least && len(bad) == 0 {
			found = k
		}
		if k == len(h.writes) {
			return found
		}
		w := h.writes[k]
		img.put(w.off, w.n, w.data, look)
	}
}
