// Command cover says how much of the durable packages the unit tests run, and lists
// every error return that none of them has ever executed: what loses data is most
// often the branch that nobody has seen.
//
//	go test -coverpkg=./pkg/wal,... -coverprofile=cover.out ./pkg/...
//	go run ./test/cover -profile cover.out [-skip pkg/vfs/mem,...] pkg/wal ...
//
// An error return is a return statement of a function whose last result is an error,
// unless what it returns there is nil. It is executed if the profile says so of the
// block that it is in. Whether the error was another than nil at that moment no profile
// tells: `return err` at the end of a function counts with its first success, so what is
// behind `if err != nil` is what the list is about.
//
// Lines are those on which a statement begins. The command fails if a package has less
// than 90 % of them executed, or if the list is not empty.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const module = "github.com/k8ns/granary/"

func main() {
	profile := flag.String("profile", "cover.out", "what go test -coverprofile has written")
	least := flag.Float64("least", 90, "percent of lines that each package must have executed")
	skip := flag.String("skip", "", "path prefixes of files that do not count, with commas between")
	flag.Parse()
	if err := run(*profile, *least, strings.FieldsFunc(*skip, func(r rune) bool { return r == ',' }), flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "cover:", err)
		os.Exit(1)
	}
}

func run(profile string, least float64, skip, dirs []string) error {
	blocks, err := readProfile(profile)
	if err != nil {
		return err
	}
	var never []string
	below := 0
	fmt.Printf("%-24s %8s %8s %8s\n", "package", "lines", "run", "")
	for _, dir := range dirs {
		r, err := examine(dir, skip, blocks)
		if err != nil {
			return err
		}
		percent := 100 * float64(r.run) / float64(max(r.lines, 1))
		mark := ""
		if percent < least {
			below++
			mark = fmt.Sprintf("  below %.0f %%", least)
		}
		fmt.Printf("%-24s %8d %8d %7.1f %%%s\n", dir, r.lines, r.run, percent, mark)
		never = append(never, r.never...)
	}
	fmt.Printf("\nerror returns never executed: %d\n", len(never))
	for _, n := range never {
		fmt.Println(" ", n)
	}
	if below > 0 || len(never) > 0 {
		return fmt.Errorf("%d packages below %.0f %% of lines, %d error returns never executed", below, least, len(never))
	}
	return nil
}

// block is a piece of code without a branch, as the profile counts it.
type block struct {
	startLine, startCol, endLine, endCol int
	count                                int
}

// holds tells whether a position is in the block.
func (b *block) holds(line, col int) bool {
	after := line > b.startLine || line == b.startLine && col >= b.startCol
	before := line < b.endLine || line == b.endLine && col < b.endCol
	return after && before
}

// readProfile reads the blocks of each file, by its path below the module's root. The
// same block may come once for each test binary.
func readProfile(name string) (map[string][]block, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	at := make(map[string]map[block]int)
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		if n == 1 && strings.HasPrefix(sc.Text(), "mode:") {
			continue
		}
		file, rest, _ := strings.Cut(sc.Text(), ":")
		file = strings.TrimPrefix(file, module)
		var b block
		var statements, count int
		if _, err := fmt.Sscanf(rest, "%d.%d,%d.%d %d %d", &b.startLine, &b.startCol, &b.endLine, &b.endCol, &statements, &count); err != nil {
			return nil, fmt.Errorf("%s:%d: %q is no line of a profile: %w", name, n, sc.Text(), err)
		}
		if at[file] == nil {
			at[file] = make(map[block]int)
		}
		at[file][b] += count
	}
	out := make(map[string][]block)
	for file, counts := range at {
		for b, count := range counts {
			b.count = count
			out[file] = append(out[file], b)
		}
	}
	return out, sc.Err()
}

// result is what is known of a package.
type result struct {
	lines, run int
	never      []string
}

// examine looks at the files of one package. One that no test has even been linked with
// is an error: a profile that was made for other packages would show it as executed.
func examine(dir string, skip []string, blocks map[string][]block) (result, error) {
	var r result
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return r, err
	}
	slices.Sort(names)
	found := false
	for _, name := range names {
		name = path.Clean(filepath.ToSlash(name))
		if strings.HasSuffix(name, "_test.go") || slices.ContainsFunc(skip, func(s string) bool { return strings.HasPrefix(name, s) }) {
			continue
		}
		found = found || blocks[name] != nil
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			return r, err
		}
		s := &source{fset: fset, name: name, blocks: blocks[name], lines: make(map[int]bool)}
		ast.Walk(visitor{source: s}, file)
		for _, run := range s.lines {
			r.lines++
			if run {
				r.run++
			}
		}
		r.never = append(r.never, s.never...)
	}
	if !found {
		return r, fmt.Errorf("the profile has nothing of %s", dir)
	}
	return r, nil
}

// source is a file that is being looked at.
type source struct {
	fset   *token.FileSet
	name   string
	blocks []block
	lines  map[int]bool // on which a statement begins: executed
	never  []string
}

// executed tells whether the block of a statement was; counted is false if no block has it.
func (s *source) executed(n ast.Node) (executed, counted bool) {
	p := s.fset.Position(n.Pos())
	for i := range s.blocks {
		if s.blocks[i].holds(p.Line, p.Column) {
			return s.blocks[i].count > 0, true
		}
	}
	return false, false
}

// visitor walks through the functions of a file.
type visitor struct {
	*source
	function string
	failing  bool // the function's last result is an error
}

func (v visitor) Visit(n ast.Node) ast.Visitor {
	switch n := n.(type) {
	case *ast.FuncDecl:
		v.function, v.failing = n.Name.Name, canFail(n.Type)
		return v
	case *ast.FuncLit:
		v.failing = canFail(n.Type)
		return v
	case *ast.ReturnStmt:
		v.look(n)
		if v.failing && len(n.Results) > 0 && !isNil(n.Results[len(n.Results)-1]) {
			if executed, _ := v.executed(n); !executed {
				v.source.never = append(v.source.never, fmt.Sprintf("%s:%d: in %s", v.name, v.fset.Position(n.Pos()).Line, v.function))
			}
		}
	case *ast.BlockStmt, *ast.CaseClause, *ast.CommClause, *ast.EmptyStmt, *ast.LabeledStmt:
	case ast.Stmt:
		v.look(n)
	}
	return v
}

// look notes the line that a statement begins on.
func (s *source) look(n ast.Node) {
	if executed, counted := s.executed(n); counted {
		line := s.fset.Position(n.Pos()).Line
		s.lines[line] = s.lines[line] || executed
	}
}

// canFail tells whether a function's last result is an error.
func canFail(f *ast.FuncType) bool {
	if f.Results == nil || len(f.Results.List) == 0 {
		return false
	}
	id, ok := f.Results.List[len(f.Results.List)-1].Type.(*ast.Ident)
	return ok && id.Name == "error"
}

func isNil(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "nil"
}
