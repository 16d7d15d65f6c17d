// Package style tests what a compiler does not see: every package says what it is
// for, imports run one way, and a few calls stay in the few places they belong to.
package style

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/k8ns/granary"

// uses says which packages of the module a package may import. A package that is
// missing here fails the test: decide where it belongs first.
var uses = map[string][]string{
	"pkg/vfs":                 {},
	"pkg/kubelet":             {"pkg/socket"}, // beside the rest: what a node plugin needs but CSI
	"pkg/events":              {},             // beside the rest too
	"pkg/wal":                 {},             // above nothing but the standard library
	"pkg/blob":                {"pkg/vfs"},
	"pkg/dedup":               {"pkg/blob", "pkg/vfs", "pkg/wal"},
	"pkg/catalog":             {"pkg/vfs", "pkg/wal"},
	"pkg/blockstore/journal":  {"pkg/vfs", "pkg/wal"},
	"pkg/blockstore/blockmap": {"pkg/dedup"},
	"pkg/blockstore": {
		"pkg/blockstore/journal", "pkg/blockstore/blockmap", "pkg/catalog", "pkg/dedup", "pkg/blob", "pkg/wal", "pkg/vfs",
	},
	"pkg/export": {"pkg/vfs"},
	"pkg/attach": {"pkg/blockstore", "pkg/export"},
	"pkg/socket": {},
	"pkg/admin":  {"pkg/attach", "pkg/blockstore", "pkg/socket"},
	"pkg/driver": {"pkg/attach", "pkg/blockstore", "pkg/export"},
	"cmd/granary": {
		"pkg/driver", "pkg/kubelet", "pkg/events", "pkg/socket", "pkg/admin", "pkg/attach", "pkg/export", "pkg/blockstore", "pkg/vfs",
	},
	"test/rig":    {},
	"test/demo":   {"test/rig"},
	"test/bench":  {"test/rig"},
	"test/device": {"test/rig"},
	"test/scale": { // no rig: it measures the engine and the driver in its own processes
		"pkg/driver", "pkg/attach", "pkg/export", "pkg/blockstore", "pkg/dedup", "pkg/blob", "pkg/vfs",
	},
	"test/deploy":   {},           // a module of its own
	"test/sanity":   {"test/rig"}, // likewise
	"test/style":    {},
	"test/torture":  {"test/rig"},
	"test/powercut": {"test/rig", "pkg/blockstore", "pkg/export", "pkg/vfs"},
	"test/sabotage": {},
	"test/cover":    {},
}

// isHelper tells packages for tests alone (exporttest, vfstest): they may import what
// they help to test, and only tests import them.
func isHelper(dir string) bool {
	return strings.HasSuffix(dir, "test") && !strings.HasPrefix(dir, "test/")
}

// rule keeps calls of a package's functions in some places.
type rule struct {
	path, names string // import path; names separated by blanks, "*" = all
	only        []string
	why         string
}

// fileCalls are the functions of package os that touch files.
const fileCalls = "Chmod Chown Create CreateTemp Lstat Mkdir MkdirAll MkdirTemp Open OpenFile ReadDir ReadFile Readlink Remove RemoveAll Rename Stat Symlink Truncate WriteFile"

var rules = []rule{
	{"os", fileCalls, []string{"pkg/vfs", "pkg/export", "pkg/attach", "pkg/driver", "pkg/admin", "pkg/kubelet", "pkg/socket", "pkg/events", "cmd/"}, "crashes and I/O errors must be inputs to tests: use pkg/vfs"},
	{"time", "Now Since Until", []string{"pkg/export", "pkg/attach", "pkg/driver", "pkg/admin", "pkg/events", "pkg/vfs", "cmd/", "pkg/blockstore/options.go"}, "the engine's clock is injected"},
	{"google.golang.org/grpc/codes", "*", []string{"pkg/driver/errors.go"}, "one place knows gRPC's codes"},
	{"google.golang.org/grpc/status", "Error Errorf New Newf", []string{"pkg/driver/errors.go"}, "one place knows gRPC's codes"},
}

// source is one parsed file.
type source struct {
	path string // below the module's root, with slashes
	dir  string
	test bool
	ast  *ast.File
	fset *token.FileSet
}

func sources(t *testing.T) []source {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var all []source
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") && path != root {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		dir := filepath.ToSlash(filepath.Dir(rel))
		all = append(all, source{
			path: rel, dir: dir, ast: file, fset: fset,
			test: strings.HasSuffix(rel, "_test.go") || strings.HasPrefix(rel, "test/") || isHelper(dir),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("no Go files below %s", root)
	}
	return all
}

func TestPackagesHaveDocs(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		documented[s.dir] = documented[s.dir] || s.ast.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment", dir)
		}
	}
}

func TestImportsRunOneWay(t *testing.T) {
	for _, s := range sources(t) {
		allowed, known := uses[s.dir]
		if !known && !isHelper(s.dir) {
			t.Errorf("%s: package %s is not in this test's table", s.path, s.dir)
			continue
		}
		for _, i := range s.ast.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			ours, inModule := strings.CutPrefix(path, module+"/")
			switch {
			case s.dir == "pkg/wal" && strings.Contains(strings.Split(path, "/")[0], "."):
				t.Errorf("%s imports %s: it may use nothing but the standard library", s.path, path)
			case isHelper(ours) && !s.test:
				t.Errorf("%s imports %s, which is for tests", s.path, ours)
			case !inModule || s.test || slices.Contains(allowed, ours):
			default:
				t.Errorf("%s imports %s, which is not below it", s.path, ours)
			}
		}
	}
}

func TestCallsStayInPlace(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, r := range rules {
			if slices.ContainsFunc(r.only, func(place string) bool { return strings.HasPrefix(s.path, place) }) {
				continue
			}
			checkRule(t, s, r)
		}
	}
}

func checkRule(t *testing.T, s source, r rule) {
	t.Helper()
	name := ""
	for _, i := range s.ast.Imports {
		if strings.Trim(i.Path.Value, `"`) == r.path {
			name = r.path[strings.LastIndex(r.path, "/")+1:]
			if i.Name != nil {
				name = i.Name.Name
			}
		}
	}
	if name == "" {
		return
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Name == name && id.Obj == nil &&
			(r.names == "*" || slices.Contains(strings.Fields(r.names), sel.Sel.Name)) {
			t.Errorf("%s: %s.%s does not belong here: %s", s.fset.Position(sel.Pos()), r.path, sel.Sel.Name, r.why)
		}
		return true
	})
}

func TestFilesAreFormatted(t *testing.T) {
	for _, s := range sources(t) {
		raw, err := os.ReadFile(filepath.Join("../..", s.path))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := format.Source(raw); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s is not formatted (make fmt) %v", s.path, err)
		}
	}
}
