package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testsOf are the names of a package's tests.
func testsOf(t *testing.T, pkg string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no tests: %v", pkg, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

// Every test that is named is there: go test runs the others without a word.
func TestNamedTestsAreThere(t *testing.T) {
	there := make(map[string][]string)
	asked := make(map[step]bool)
	for _, b := range breakages {
		for _, s := range b.steps {
			if asked[s] {
				continue
			}
			asked[s] = true
			if there[s.pkg] == nil {
				there[s.pkg] = testsOf(t, s.pkg)
			}
			pattern := strings.TrimSuffix(strings.TrimPrefix(s.tests, "^("), ")$")
			for _, name := range strings.Split(pattern, "|") {
				if s.tests != "." {
					name = "^(" + name + ")$"
				}
				if !slices.ContainsFunc(there[s.pkg], regexp.MustCompile(name).MatchString) {
					t.Errorf("%s has no test %s", s.pkg, name)
				}
			}
		}
	}
}

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
