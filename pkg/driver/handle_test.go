package driver

import (
	"errors"
	"strings"
	"testing"

	"github.com/k8ns/granary/pkg/blockstore"
)

func TestParseHandle(t *testing.T) {
	store, volume := "0011223344556677", "v-"+strings.Repeat("0a", 16)
	good := map[string]Handle{
		store + "." + volume + ".node-1":          {store, volume, "node-1"},
		store + "." + volume + ".a.b_c.example":   {store, volume, "a.b_c.example"},
		store + ".s-" + volume[2:] + ".N":         {store, "s-" + volume[2:], "N"},
		store + "." + volume + "." + longest("n"): {store, volume, longest("n")},
	}
	for text, want := range good {
		got, err := ParseHandle(text)
		if err != nil || got != want {
			t.Errorf("ParseHandle(%q) = %+v, %v", text, got, err)
		}
		if got.String() != text || len(text) > 128 {
			t.Errorf("%q becomes %q, %d bytes", text, got, len(text))
		}
		if got.IsVolume() != strings.HasPrefix(want.ID, "v-") {
			t.Errorf("%q: IsVolume = %v", text, got.IsVolume())
		}
	}
	for _, text := range []string{
		"", volume, store + "." + volume, store + "." + volume + ".",
		store + "." + volume + ".-a", store + "." + volume + ".a-", store + "." + volume + ".a/b",
		store + "." + volume + ".a\n", "\n" + store + "." + volume + ".a",
		store[:15] + "." + volume + ".a", store + "0." + volume + ".a",
		strings.ToUpper(store[:15]) + "A." + volume + ".a",
		store + ".x-" + volume[2:] + ".a", store + "." + volume[:33] + ".a", store + "." + volume + "0.a",
		store + "." + volume + "." + longest("n") + "n",
	} {
		if _, err := ParseHandle(text); !errors.Is(err, blockstore.ErrInvalid) {
			t.Errorf("ParseHandle(%q): %v", text, err)
		}
	}
}

func longest(s string) string { return strings.Repeat(s, maxNodeID) }

func TestForeignHandles(t *testing.T) {
	d := newWorld(t).driver
	id := "v-" + strings.Repeat("0a", 16)
	for _, tt := range []struct {
		handle  string
		err     error
		foreign bool
		text    string
	}{
		{handleOf(id), nil, false, ""},
		{"", blockstore.ErrInvalid, false, "missing"},
		{"nonsense", blockstore.ErrNotFound, false, "nonsense"},
		{handleOf("s-" + id[2:]), blockstore.ErrNotFound, false, "volume"},
		{Handle{"0011223344556677", id, "elsewhere"}.String(), blockstore.ErrNotFound, true, "on node elsewhere, this is node " + node},
		{Handle{"ffffffffffffffff", id, node}.String(), blockstore.ErrNotFound, true, "ffffffffffffffff"},
	} {
		got, err := d.volumeID(tt.handle)
		if !errors.Is(err, tt.err) || errors.Is(err, errForeign) != tt.foreign {
			t.Errorf("%q: %v, foreign %v", tt.handle, err, errors.Is(err, errForeign))
		}
		if err == nil && got != id {
			t.Errorf("%q: %s", tt.handle, got)
		}
		if err != nil && !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%q: %q does not say %q", tt.handle, err, tt.text)
		}
	}
}
