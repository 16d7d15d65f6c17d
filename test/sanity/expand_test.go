package sanity

import (
	"testing"

	"github.com/k8ns/granary/test/rig"
)

// A volume grows in use, and one that is not grows when it is staged next.
func TestExpand(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		v, m, now := e.start(kind)
		if kind != ext4 || rig.GrowsExt4() {
			now = e.expandInUse(v, m, now)
		} else {
			e.Log("a mounted ext4 cannot be grown here: CAP_SYS_RESOURCE is missing")
		}
		m = v.again()
		e.same("staged again", m, now)
		before, err := m.capacity()
		e.must(err)
		v.release()
		was := *v
		v.expand(2*v.size, false)
		m = v.use()
		e.grown("grown while not staged", m, before, was.size)
		now = e.beyond(m, now, &was)
		e.same("grown while not staged", m, now)
		e.same("and staged again", v.again(), now)
	})
}

func (e *env) expandInUse(v *volume, m medium, now image) image {
	e.Helper()
	before, err := m.capacity()
	e.must(err)
	was := *v
	l := startLoad(m, newImage(seed+5, 130, 20), 0)
	l.wait(3)
	v.expand(was.size+was.size/2, true)
	l.wait(20)
	e.must(l.end())
	if d, ok := m.(*device); ok {
		d.size = v.size
	}
	e.grown("grown in use", m, before, v.size-was.size)
	now = now.with(l.blobs)
	e.same("grown in use", m, now)
	return now
}

// A raw volume is exactly as large as CreateVolume and ControllerExpandVolume say, also
// for sizes that no filesystem would ask for, and usable to its last byte.
func TestBlockSize(t *testing.T) {
	eachKind(t, []string{block}, func(e *env, kind string) {
		for _, size := range []int64{1, 10*mib + 1, 33 * mib} {
			v := e.createAs(kind, request{size: size})
			m := v.use().(*device)
			e.exactSize(v, m)
			last := int((v.size - 1) / slotSize)
			now := newImage(seed, 0, last+1)
			now[last] = blob{seed: seed, size: slotSize}
			e.must(fillMedium(m, now))
			v.expand(v.size+5, true)
			e.exactSize(v, m)
			e.same("grown in use", m, now)
			m = v.again().(*device)
			e.exactSize(v, m)
			e.same("staged again", m, now)
			v.delete()
		}
	})
}

// exactSize compares the size of a device with the volume's, and adopts it.
func (e *env) exactSize(v *volume, m *device) {
	e.Helper()
	got, err := m.capacity()
	e.must(err)
	if got != v.size {
		e.Errorf("the device has %d bytes, capacity_bytes is %d", got, v.size)
	}
	m.size = got
}
