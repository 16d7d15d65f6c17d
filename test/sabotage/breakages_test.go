package main

import (
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// Every breakage applies to the tree as it is, leaves a Go file, and has a purpose of its
// own and a test that is to catch it. Whether one does is for the command: it takes most
// of an hour.
func TestBreakagesApply(t *testing.T) {
	seen := make(map[string]bool)
	for _, b := range breakages {
		_, after, err := b.apply("../..")
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := parser.ParseFile(token.NewFileSet(), b.file, after, parser.SkipObjectResolution); err != nil {
			t.Errorf("%s: %v", b.what, err)
		}
		if seen[b.what] || len(b.steps) == 0 {
			t.Errorf("%s: there twice, or no test is named", b.what)
		}
		seen[b.what] = true
	}
	for _, what := range simulated {
		if !slices.ContainsFunc(breakages, func(b breakage) bool { return b.what == what }) {
			t.Errorf("for the simulation, there is no breakage %q", what)
		}
	}
}
