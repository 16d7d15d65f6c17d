package blockstore_test

import (
	"bytes"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/blockstore"
)

// csiSlots are the places of a volume that are written to; csiStride is how far apart.
const (
	csiSlots  = 6
	csiStride = 96 << 10
)

// csiImage is what stands at each place: a block full of that byte.
type csiImage [csiSlots]byte

// csiData is a volume's content as the model knows it: an image that is durable, and the
// writes since.
type csiData struct {
	base    csiImage
	writes  []csiWrite
	flushed int // writes known durable
}

type csiWrite struct {
	slot  int
	tag   byte
	acked bool
}

// now is the image with all writes.
func (d *csiData) now() csiImage {
	img := d.base
	for _, wr := range d.writes {
		img[wr.slot] = wr.tag
	}
	return img
}

// settle makes all writes durable.
func (d *csiData) settle() { d.base, d.writes, d.flushed = d.now(), nil, 0 }

// lose is a power loss: only what was flushed is promised any more.
func (d *csiData) lose() {
	for i := range d.writes[d.flushed:] {
		d.writes[d.flushed+i].acked = false
	}
}

// anchor makes what was read the truth; false if it is no prefix of the writes that holds
// every acknowledged one (I1).
func (d *csiData) anchor(got csiImage) bool {
	least := d.flushed
	for i, wr := range d.writes {
		if wr.acked {
			least = max(least, i+1)
		}
	}
	for k := len(d.writes); k >= least; k-- {
		part := csiData{base: d.base, writes: d.writes[:k]}
		if part.now() == got {
			d.writes = slices.Clone(d.writes[:k])
			for i := range d.writes {
				d.writes[i].acked = true
			}
			return true
		}
	}
	return false
}

// csiVolume is a volume as the CO knows it.
type csiVolume struct {
	name, handle string
	size         int64
	raw          bool
	source       string // handle
	data         csiData
	formatted    bool // it has had a filesystem that was mounted: mkfs must not run again
	published    bool // ControllerPublishVolume was answered
	device       string
	target       string // "" until NodePublishVolume was answered
}

func (m *csiVolume) id() string { return engineID(m.handle) }

// capability is what the CO asks for with each call about the volume.
func (m *csiVolume) capability() *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if m.raw {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}}
	}
	return c
}

// csiSnapshot is a snapshot as the CO knows it.
type csiSnapshot struct {
	name, handle, source string
	size                 int64
	image                csiImage
	raw, formatted       bool
}

// blockOf is a block that holds a tag.
func blockOf(tag byte) []byte { return bytes.Repeat([]byte{tag}, blockstore.BlockSize) }

// readImage reads the places of an image.
func (w *csiWorld) readImage(what string, read func(p []byte, off int64) error) (img csiImage) {
	p := make([]byte, blockstore.BlockSize)
	for i := range img {
		w.ok(read(p, int64(i+1)*csiStride), "read %s", what)
		if img[i] = p[0]; !bytes.Equal(p, blockOf(p[0])) {
			w.fail("%s: place %d is mixed (I1)", what, i)
		}
	}
	return img
}
