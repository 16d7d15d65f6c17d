package blockstore

import (
	"reflect"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

// The record of an attachment comes back as it was put, after a power loss too, and goes
// with its volume.
func TestAttachmentRecords(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys, smallOptions())
	id := must(s.CreateVolume(VolumeSpec{Name: "v", SizeBytes: 1}))(t).ID
	ok(t, s.PutAttachment(Attachment{Volume: id}))
	a := Attachment{
		Volume: id, Device: "/dev/loop7", ReadOnly: true, Scratch: true,
		Uses: []Use{{"/staging", "stage"}, {"/a", ""}, {"/b", "publish"}},
	}
	ok(t, s.PutAttachment(a))
	s.abandon()
	fsys.Crash(nil, 0)
	s = openStore(t, fsys, smallOptions())
	if got := s.Attachments(); !reflect.DeepEqual(got, []Attachment{a}) {
		t.Errorf("%+v, want %+v", got, a)
	}
	if info := must(s.Volume(id))(t); info.Device != a.Device {
		t.Errorf("volume is at %q", info.Device)
	}
	ok(t, s.DeleteVolume(id))
	if got := s.Attachments(); len(got) > 0 {
		t.Errorf("left: %+v", got)
	}
	wantClean(t, s)
	ok(t, s.Close())
}
