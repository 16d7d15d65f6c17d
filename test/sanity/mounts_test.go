package sanity

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What a pod wrote is there for the next one, at the same target and at another, and
// after the volume was unstaged.
func TestRepublishAndRestage(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		v, _, now := e.start(kind)
		v.unpublish("pod")
		m := v.publish("pod")
		e.same("at the same target", m, now)
		now = e.change(m, now, now.every(6), rewritten(now, 4, seed+1))
		v.unpublish("pod")
		m = v.publish("other")
		e.same("at another target", m, now)
		e.same("staged again", v.again(), now)
	})
}

// A read-only publication of a writable volume: content as it is, writing is EROFS, and
// writable again for the next pod.
func TestReadOnlyPublish(t *testing.T) {
	eachKind(t, filesystems, func(e *env, kind string) {
		v, _, now := e.start(kind)
		v.unpublish("pod")
		m := v.publishReadOnly("reader")
		e.same("read-only", m, now)
		e.readOnly(m)
		v.unpublish("reader")
		m = v.publish("pod")
		now = e.change(m, now, nil, newImage(seed+1, 150, 5))
		e.same("writable again", m, now)
	})
}

// readOnly wants every kind of change to be refused.
func (e *env) readOnly(m medium) {
	e.Helper()
	d, ok := m.(*directory)
	if !ok {
		if m.put(1, blob{1, 100}, true) == nil {
			e.Error("a read-only device could be written to")
		}
		return
	}
	file := d.file(0)
	for what, err := range map[string]error{
		"create":   d.put(7777, blob{1, 100}, false),
		"remove":   os.Remove(file),
		"mkdir":    os.Mkdir(filepath.Join(d.path, "new"), 0o755),
		"truncate": os.Truncate(file, 0),
		"chmod":    os.Chmod(file, 0o777),
	} {
		if !errors.Is(err, unix.EROFS) {
			e.Errorf("%s on a read-only publication: %v, want EROFS", what, err)
		}
	}
}

// Two pods on one volume see each other's files; one may go without the other noticing.
func TestTwoPods(t *testing.T) {
	eachKind(t, allKinds, func(e *env, kind string) {
		v := e.createAs(kind, request{size: smallest[kind], modes: modes(multiWriter, writer)})
		v.stage()
		a, b := v.publish("a"), v.publish("b")
		ofA, ofB := newImage(seed, 0, 40), newImage(seed+1, 40, 40)
		la, lb := startLoad(a, ofA, 0), startLoad(b, ofB, 0)
		la.wait(len(ofA))
		lb.wait(len(ofB))
		e.must(errors.Join(la.end(), lb.end()))
		all := ofA.with(ofB)
		e.same("a", a, all)
		e.same("b", b, all)
		v.unpublish("a")
		all = e.change(b, all, all.every(3), newImage(seed+2, 90, 10))
		e.same("b, alone", b, all)
		e.same("a again", v.publish("a"), all)
		v.mode = writer
		e.same("as a volume of one pod", v.again(), all)
	})
}
