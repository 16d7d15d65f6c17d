package driver

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// FuzzParameters: of a class's parameters each is understood or refused by name, and
// nothing is both a parameter and a label.
func FuzzParameters(f *testing.F) {
	f.Add(paramFSType, "ext4", paramCompression, "s2")
	f.Add(paramBlockSize, "0512", paramOnFull, "wait")
	f.Add("csi.storage.k8s.io/pvc/name", "pvc-1", "csi.storage.k8s.io/fsType", "ext4")
	f.Add("csi.storage.k8s.io/node-stage-secret-name", "x", "a", strings.Repeat("v", 5000))
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		params := map[string]string{key1: value1, key2: value2}
		before := maps.Clone(params)
		p, err := parseVolumeParameters(params)
		_, snapErr := parseSnapshotParameters(params)
		if !maps.Equal(params, before) {
			t.Fatal("the request was changed")
		}
		for _, err := range []error{err, snapErr} {
			if err != nil && !errors.Is(err, blockstore.ErrInvalid) {
				t.Fatalf("error of no class: %v", err)
			}
		}
		if err != nil {
			return
		}
		known := map[string]string{paramFSType: p.fsType, paramCompression: p.compression, paramOnFull: p.onFull}
		for key, value := range params {
			label, isLabel := p.labels[key]
			switch got, isParam := known[key]; {
			case key == paramBlockSize && (value == "512") == (p.sectorBytes == 512) && (value == "4096") == (p.sectorBytes == 4096) && !isLabel:
			case isParam && got == value && !isLabel:
			case !isParam && isLabel && label == value && strings.HasPrefix(key, "csi.storage.k8s.io/"):
			default:
				t.Fatalf("%q=%q was taken for %+v", key, value, p)
			}
		}
		if (snapErr == nil) != (len(p.labels) == len(params)) {
			t.Fatalf("a snapshot class: %v", snapErr)
		}
	})
}

// FuzzHandle: a handle has one form, which leads to no other path, key or node.
func FuzzHandle(f *testing.F) {
	f.Add("0123456789abcdef.v-0123456789abcdef0123456789abcdef.node-1")
	f.Add("0123456789abcdef.s-0123456789abcdef0123456789abcdef.a.b_c")
	f.Add("0123456789abcdef.v-0123456789abcdef0123456789abcdef.node\n")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHandle(s)
		if err != nil {
			if !errors.Is(err, blockstore.ErrInvalid) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		if h.String() != s || len(s) > 128 || CheckNodeID(h.Node) != nil || !enginePattern.MatchString(h.ID) {
			t.Fatalf("%q is taken for %+v", s, h)
		}
		if strings.ContainsAny(s, "/\\\x00\n ") || strings.ContainsFunc(s, func(r rune) bool { return r > 0x7e }) {
			t.Fatalf("%q is a handle", s)
		}
		for what, want := range map[string]bool{"volume": h.IsVolume(), "snapshot": !h.IsVolume()} {
			if _, err := parseHandle(what, s); (err == nil) != want {
				t.Fatalf("%q as a %s: %v", s, what, err)
			}
		}
	})
}

// FuzzSizes: the size picked for a capacity range is in the range, whole steps and one
// that a volume can have, or it is refused.
func FuzzSizes(f *testing.F) {
	f.Add(int64(1), int64(0), int64(0), "ext4")
	f.Add(int64(1<<40), int64(1<<40+1), int64(1<<20), "xfs")
	f.Add(int64(0), int64(1<<63-1), int64(64<<40), "btrfs")
	f.Add(int64(64<<40), int64(64<<40), int64(5), "")
	f.Fuzz(func(t *testing.T, required, limit, present int64, fsType string) {
		r, err := parseRange(&csi.CapacityRange{RequiredBytes: required, LimitBytes: limit})
		if err != nil {
			if !errors.Is(err, blockstore.ErrInvalid) && !errors.Is(err, blockstore.ErrRange) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		if !slices.Contains(append(fsTypes, ""), fsType) {
			fsType = ""
		}
		check := func(what string, size int64, err error) {
			if err != nil {
				if !errors.Is(err, blockstore.ErrRange) {
					t.Fatalf("%s: error of no class: %v", what, err)
				}
				return
			}
			if size < required || limit > 0 && size > limit || size%blockstore.SizeStep != 0 || size < blockstore.MinVolumeSize || size > blockstore.MaxVolumeSize {
				t.Fatalf("%s: %d bytes for %d to %d", what, size, required, limit)
			}
		}
		size, err := r.pick(max(minSize(fsType), defaultVolumeSize))
		check("create", size, err)
		if present = present / blockstore.SizeStep * blockstore.SizeStep; present < blockstore.MinVolumeSize || present > blockstore.MaxVolumeSize {
			return
		}
		size, err = r.grow(present)
		check("expand", size, err)
		if err == nil && size < present {
			t.Fatalf("expanded from %d to %d", present, size)
		}
	})
}

// FuzzPages: whatever token a list is asked to go on from, the pages behind it are the
// entries behind it, once each and in order; a token that no list gave is refused.
func FuzzPages(f *testing.F) {
	id := func(n byte) string {
		return "v-" + strings.Repeat("0", 30) + string([]byte{"0123456789abcdef"[n>>4], "0123456789abcdef"[n&15]})
	}
	f.Add([]byte{1, 2, 3}, id(1), int32(1))
	f.Add([]byte{9, 200, 3}, "", int32(2))
	f.Add([]byte{9, 200, 3}, "v-zz", int32(2))
	f.Add([]byte{9}, "s-"+strings.Repeat("0", 32), int32(-1))
	f.Fuzz(func(t *testing.T, ns []byte, token string, entries int32) {
		slices.Sort(ns)
		ns = slices.Compact(ns)
		var want []string
		for _, n := range ns {
			if id(n) > token {
				want = append(want, id(n))
			}
		}
		list := func(after string, limit int) (out []string) {
			for _, n := range ns {
				if id(n) > after && len(out) < limit {
					out = append(out, id(n))
				}
			}
			return out
		}
		var got []string
		for at := token; ; {
			page, next, err := paginate(list, 'v', func(s string) string { return s }, at, entries)
			if err != nil {
				if entries >= 0 && !errors.Is(err, errToken) || entries < 0 && !errors.Is(err, blockstore.ErrInvalid) {
					t.Fatalf("error of no class: %v", err)
				}
				if at != token {
					t.Fatalf("a token that was given is refused: %v", err)
				}
				return
			}
			if entries > 0 && len(page) > int(entries) {
				t.Fatalf("%d entries on a page of %d", len(page), entries)
			}
			got = append(got, page...)
			if next == "" {
				break
			}
			at = next
		}
		if !slices.Equal(got, want) {
			t.Fatalf("behind %q: %q, want %q", token, got, want)
		}
	})
}

// FuzzAccess: capabilities that are taken have one text each; mount flags that are taken
// are so for the type that the volume will have.
func FuzzAccess(f *testing.F) {
	f.Add(int32(1), true, "", "", "")
	f.Add(int32(7), false, "ext4", "noatime", "commit=5")
	f.Add(int32(3), false, "", "inode64", "data=journal")
	f.Fuzz(func(t *testing.T, mode int32, block bool, fsType, flag1, flag2 string) {
		c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_Mode(mode)}}
		if block {
			c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		} else {
			c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: []string{flag1, flag2}}}
		}
		a, err := parseAccess(c)
		if err != nil {
			if !errors.Is(err, blockstore.ErrInvalid) && !errors.Is(err, export.ErrInvalid) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		text := strings.Fields(a.String())
		want := []string{csi.VolumeCapability_AccessMode_Mode(mode).String(), "block"}
		if !block {
			want = append(want[:1:1], "mount")
			if fsType != "" {
				want = append(want, fsType)
			}
			want = append(want, flag1, flag2)
		}
		if !slices.Equal(text, want) {
			t.Fatalf("the text of %v is %q, want %q", c, text, want)
		}
	})
}
