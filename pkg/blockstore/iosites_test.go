package blockstore

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
)

const ioModule = "github.com/k8ns/granary/"

// ioPackages is what keeps data, below the module's root. The implementations of files
// in pkg/vfs are below the line at which faults are injected; its helpers are above.
var ioPackages = []string{
	"pkg/vfs", "pkg/wal", "pkg/blob", "pkg/catalog", "pkg/dedup",
	"pkg/blockstore/journal", "pkg/blockstore/blockmap", "pkg/blockstore",
}

// ioHelpers are the packages whose functions are as good as file operations to the others:
// each call of one that leads to a file operation is a call site too.
var ioHelpers = []string{"pkg/vfs", "pkg/blob"}

// ioSite is a place in the engine that calls the file system: a method of vfs.FS, of
// vfs.File or of a lock, or a helper that leads to one.
type ioSite struct {
	file        string // below the module's root
	first, last int    // lines of the call; of the whole function if it is deferred
	line        int
	function    string
	call        string // what is called
	direct      bool   // a method of the file system, not a helper
	passed      bool   // of one of package io's interfaces, behind which may be either
	deferred    bool
}

func (s *ioSite) String() string {
	return fmt.Sprintf("%s:%d %s: %s", s.file, s.line, s.function, s.call)
}

// ioSites finds the call sites of the engine's packages, by their types.
func ioSites(root string) ([]*ioSite, error) {
	l := &ioLoader{root: root, fset: token.NewFileSet(), done: map[string]*ioPackage{}}
	l.std = importer.ForCompiler(l.fset, "source", nil).(types.ImporterFrom)
	for _, dir := range ioPackages {
		if _, err := l.load(dir); err != nil {
			return nil, err
		}
	}
	l.findHelpers()
	var sites []*ioSite
	for _, dir := range ioPackages {
		found, err := l.sites(l.done[dir])
		if err != nil {
			return nil, err
		}
		sites = append(sites, found...)
	}
	return sites, nil
}

type ioPackage struct {
	dir   string
	types *types.Package
	info  types.Info
	files []*ast.File
}

type ioLoader struct {
	root    string
	fset    *token.FileSet
	std     types.ImporterFrom
	done    map[string]*ioPackage
	helpers map[types.Object]bool // functions of ioHelpers that lead to a file operation
}

// Import implements types.Importer, from the sources of all packages.
func (l *ioLoader) Import(path string) (*types.Package, error) {
	if dir, ok := strings.CutPrefix(path, ioModule); ok {
		p, err := l.load(dir)
		if err != nil {
			return nil, err
		}
		return p.types, nil
	}
	return l.std.ImportFrom(path, l.root, 0)
}

func (l *ioLoader) load(dir string) (*ioPackage, error) {
	if p := l.done[dir]; p != nil {
		return p, nil
	}
	b, err := build.ImportDir(filepath.Join(l.root, dir), 0)
	if err != nil {
		return nil, err
	}
	p := &ioPackage{dir: dir, info: types.Info{
		Selections: map[*ast.SelectorExpr]*types.Selection{}, Uses: map[*ast.Ident]types.Object{},
		Types: map[ast.Expr]types.TypeAndValue{}, Defs: map[*ast.Ident]types.Object{},
	}}
	for _, name := range b.GoFiles {
		f, err := parser.ParseFile(l.fset, filepath.Join(l.root, dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		p.files = append(p.files, f)
	}
	c := types.Config{Importer: l, Error: func(error) {}} // of packages that are not looked at
	p.types, _ = c.Check(ioModule+dir, l.fset, p.files, &p.info)
	l.done[dir] = p
	return p, nil
}

// below tells whether a file implements the file system: what it calls is another one.
func below(file string) bool {
	return strings.HasPrefix(file, "pkg/vfs/") && file != "pkg/vfs/atomic.go"
}

func (l *ioLoader) position(n ast.Node) (file string, first, last int) {
	p := l.fset.Position(n.Pos())
	file, _ = filepath.Rel(l.root, p.Filename)
	return filepath.ToSlash(file), p.Line, l.fset.Position(n.End()).Line
}

// operation tells whether a function or method is a file operation: one of vfs.FS or
// vfs.File, of the interfaces of package io that these are passed on as, or what gives a
// file to somebody else to read.
func operation(o types.Object) bool {
	f, ok := o.(*types.Func)
	if ok && f.Pkg() != nil && f.Pkg().Path() == "io" && f.Name() == "NewSectionReader" {
		return true // for what reads it, on the same line
	}
	if !ok || f.Signature().Recv() == nil || !types.IsInterface(f.Signature().Recv().Type()) {
		return false
	}
	recv := f.Signature().Recv().Type()
	named, ok := recv.(*types.Named)
	if !ok || named.Obj().Pkg() == nil || f.Name() == "Name" {
		return false
	}
	switch named.Obj().Pkg().Path() {
	case ioModule + "pkg/vfs":
		return named.Obj().Name() == "FS" || named.Obj().Name() == "File"
	case "io":
		return slices.Contains([]string{"ReaderAt", "WriterAt", "Closer"}, named.Obj().Name())
	}
	return false
}

// values lists the functions and methods that a piece of code takes without calling them.
func (p *ioPackage) values(n ast.Node, each func(n ast.Node, o types.Object)) {
	called := map[ast.Node]bool{}
	p.calls(n, func(c ast.Node, _ types.Object) { called[ast.Unparen(c.(*ast.CallExpr).Fun)] = true })
	ast.Inspect(n, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && !called[s] {
			each(s, p.info.Uses[s.Sel])
		}
		return true
	})
}

// calls lists what a piece of code refers to by name and could call.
func (p *ioPackage) calls(n ast.Node, each func(n ast.Node, o types.Object)) {
	ast.Inspect(n, func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok {
			switch f := ast.Unparen(c.Fun).(type) {
			case *ast.SelectorExpr:
				each(c, p.info.Uses[f.Sel])
			case *ast.Ident:
				each(c, p.info.Uses[f])
			}
		}
		return true
	})
}

// findHelpers finds the functions that lead to a file operation, in the packages that
// count as helpers.
func (l *ioLoader) findHelpers() {
	l.helpers = map[types.Object]bool{}
	for more := true; more; {
		more = false
		l.functions(ioHelpers, func(p *ioPackage, f *ast.FuncDecl) {
			file, _, _ := l.position(f)
			def := p.info.Defs[f.Name]
			if below(file) || l.helpers[def] {
				return
			}
			p.calls(f, func(_ ast.Node, o types.Object) {
				if o != nil && operation(o) {
					l.helpers[def], more = true, true
				}
			})
		})
	}
}

func (l *ioLoader) functions(dirs []string, each func(p *ioPackage, f *ast.FuncDecl)) {
	for _, dir := range dirs {
		p := l.done[dir]
		for _, file := range p.files {
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
					each(p, f)
				}
			}
		}
	}
}

// sites lists the call sites of one package. A call by a name that a file operation has
// must be known for what it is, or the list could miss one.
func (l *ioLoader) sites(p *ioPackage) (sites []*ioSite, err error) {
	l.functions([]string{p.dir}, func(p *ioPackage, f *ast.FuncDecl) {
		file, _, _ := l.position(f)
		if below(file) {
			return
		}
		_, from, to := l.position(f)
		deferred := map[ast.Node]bool{}
		ast.Inspect(f, func(n ast.Node) bool {
			if d, ok := n.(*ast.DeferStmt); ok {
				deferred[d.Call] = true
			}
			return true
		})
		p.calls(f, func(n ast.Node, o types.Object) {
			_, first, last := l.position(n)
			if o == nil && l.unclear(n.(*ast.CallExpr)) {
				err = fmt.Errorf("%s:%d: the type of this call is not known", file, first)
			}
			if o == nil || !operation(o) && !l.helpers[o] {
				return
			}
			s := &ioSite{file: file, first: first, last: last, line: first, function: f.Name.Name, call: o.Name(), direct: operation(o)}
			if s.call == "NewSectionReader" {
				s.call = "ReadAt"
			}
			s.passed = s.direct && o.Pkg().Path() == "io"
			if deferred[n] {
				s.deferred, s.first, s.last = true, from, to
			}
			sites = append(sites, s)
		})
		p.values(f, func(n ast.Node, o types.Object) {
			if o != nil && operation(o) {
				_, line, _ := l.position(n)
				err = fmt.Errorf("%s:%d: %s is not called here: who can say where it is?", file, line, o.Name())
			}
		})
	})
	return sites, err
}

// unclear tells whether a call of which nothing is known has the name of a file operation.
func (l *ioLoader) unclear(c *ast.CallExpr) bool {
	f, ok := ast.Unparen(c.Fun).(*ast.SelectorExpr)
	if !ok {
		return false
	}
	for _, name := range []string{"FS", "File"} {
		t := l.done["pkg/vfs"].types.Scope().Lookup(name).Type()
		if o, _, _ := types.LookupFieldOrMethod(t, false, nil, f.Sel.Name); o != nil {
			return true
		}
	}
	return false
}
