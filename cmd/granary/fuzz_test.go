package main

import (
	"math/big"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzSize: a size that is taken is the number times its unit, computed in another way,
// and the text of a size flag is a size again, near the same one.
func FuzzSize(f *testing.F) {
	for _, s := range []string{"0", "1.5Gi", "512B", "8GiB", "0.5KiB", "9223372036854775807", "1e3", ".5k", "00010k", "1.k"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1000 {
			return
		}
		n, err := parseSize(s)
		if err != nil {
			if n != 0 || !strings.Contains(err.Error(), "size ") {
				t.Fatalf("%q: %d and %v", s, n, err)
			}
			return
		}
		number, unit := s, ""
		if i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' }); i >= 0 {
			number, unit = s[:i], s[i:]
		}
		whole, fraction, _ := strings.Cut(number, ".")
		want, ok := new(big.Int).SetString("0"+whole+fraction, 10)
		if !ok || strings.Contains(fraction, ".") {
			t.Fatalf("%q was taken for %d", s, n)
		}
		want.Mul(want, big.NewInt(sizeUnits[unit]))
		got := new(big.Int).Mul(big.NewInt(n), new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(len(fraction))), nil))
		if n < 0 || got.Cmp(want) != 0 {
			t.Fatalf("%q was taken for %d", s, n)
		}
		var flag sizeFlag
		if err := flag.Set(s); err != nil || int64(flag) != n {
			t.Fatalf("as a flag: %d, %v", flag, err)
		}
		if n == 0 || n > 999<<40 { // what a person reads goes on to EiB, what is taken ends with TiB
			return
		}
		if back, err := parseSize(flag.String()); err != nil && !strings.Contains(err.Error(), "whole number") || err == nil && (back < n-n/50 || back > n+n/50) {
			t.Fatalf("%d is written %s, which is %d, %v", n, flag.String(), back, err)
		}
	})
}

// FuzzEndpoint: an endpoint that is taken is a full path.
func FuzzEndpoint(f *testing.F) {
	f.Add("unix:///run/csi.sock")
	f.Add("unix://run/csi.sock")
	f.Add("tcp://:80")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		path, err := parseEndpoint(s)
		if err == nil && s != "" && (!filepath.IsAbs(path) || "unix://"+path != s) {
			t.Fatalf("%q is taken for %q", s, path)
		}
		if err != nil && path != "" {
			t.Fatalf("%q: %q and %v", s, path, err)
		}
	})
}
