package sanity

import (
	"time"
)

// dataLimit is for one test on all kinds of volumes.
const dataLimit = 3 * time.Minute

// blobs is how many blobs the tests begin with: some 6 MiB.
const blobs = 100

// start makes a volume, uses it and fills it.
func (e *env) start(kind string) (*volume, medium, image) {
	e.Helper()
	v := e.create(kind)
	m := v.use()
	i := newImage(seed, 0, blobs)
	e.must(fillMedium(m, i))
	return v, m, i
}

// same compares a medium with an image.
func (e *env) same(what string, m medium, want image) {
	e.Helper()
	e.sameBut(what, m, want, nil)
}

func (e *env) sameBut(what string, m medium, want image, loose map[int]bool) {
	e.Helper()
	if err := m.compare(want, loose); err != nil {
		e.Errorf("%s: %v", what, err)
	}
}

// change is the function of that name, which must succeed.
func (e *env) change(m medium, i image, remove []int, put image) image {
	e.Helper()
	now, err := change(m, i, remove, put)
	e.must(err)
	return now
}

// again unstages a volume and uses it anew. What the kernel held of it is gone with the
// device, so all that is read comes from the daemon.
func (v *volume) again() medium {
	v.e.Helper()
	v.release()
	return v.use()
}
