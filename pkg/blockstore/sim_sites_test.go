package blockstore

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/k8ns/granary/pkg/vfs"
)

// ioTally notes which call sites of the engine a simulation has executed, and in what
// ways it made them fail. Safe for concurrent use.
type ioTally struct {
	sites []*ioSite // fixed

	mu      sync.Mutex
	stacks  map[ioStack][]*ioSite // what they are, once it is known
	outcome map[*ioSite]map[string]int
}

// ioStack stands for an operation and where it comes from.
type ioStack struct {
	sum  uint64 // of the program counters
	kind vfs.OpKind
}

// ioFrame is a call on the stack.
type ioFrame struct {
	file     string // below the module's root; empty outside of the engine
	line     int
	function string
}

// ranWell is the outcome of an operation that no fault preceded; ranLater that of one
// after a fault: it may be reached in no other way.
const ranWell, ranLater = "executed", "executed after a fault"

func newIOTally(sites []*ioSite) *ioTally {
	return &ioTally{sites: sites, stacks: map[ioStack][]*ioSite{}, outcome: map[*ioSite]map[string]int{}}
}

// note counts an outcome for the call sites that an operation under way comes from, and
// returns these.
func (t *ioTally) note(kind vfs.OpKind, outcome string) []*ioSite {
	var pcs [64]uintptr
	n := runtime.Callers(2, pcs[:])
	stack := ioStack{kind: kind}
	for _, pc := range pcs[:n] {
		stack.sum = (stack.sum ^ uint64(pc)) * 1099511628211
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	sites, ok := t.stacks[stack]
	if !ok {
		sites = t.find(pcs[:n], kind)
		t.stacks[stack] = sites
	}
	for _, s := range sites {
		if t.outcome[s] == nil {
			t.outcome[s] = map[string]int{}
		}
		t.outcome[s][outcome]++
	}
	return sites
}

// find lists the call sites that are on a stack.
func (t *ioTally) find(pcs []uintptr, kind vfs.OpKind) (sites []*ioSite) {
	inner, direct := "", true
	frames := runtime.CallersFrames(pcs)
	for more := true; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		if f := engineFrame(frame); f.file != "" {
			sites = append(sites, t.at(f, kind, inner, direct)...)
			inner, direct = f.function, false
		}
	}
	return sites
}

// engineFrame is f if the engine's code runs there.
func engineFrame(f runtime.Frame) ioFrame {
	for _, dir := range ioPackages {
		at := strings.LastIndex(f.File, "/"+dir+"/")
		if at < 0 || !strings.HasPrefix(f.Function, ioModule+dir+".") {
			continue
		}
		name := f.File[at+1:]
		if strings.HasSuffix(name, "_test.go") || below(name) {
			return ioFrame{}
		}
		return ioFrame{file: name, line: f.Line, function: f.Function}
	}
	return ioFrame{}
}

// at finds the call sites of a frame from which an operation of this kind comes, by way of
// the function inner if not directly.
func (t *ioTally) at(f ioFrame, kind vfs.OpKind, inner string, direct bool) (found []*ioSite) {
	for _, s := range t.sites {
		if s.file != f.file || f.line < s.first || f.line > s.last || s.direct != direct && !s.passed {
			continue
		}
		if direct && !slices.Contains(kindsOf[s.call], kind) || !direct && !strings.HasSuffix(inner, "."+s.call) {
			continue
		}
		found = append(found, s)
	}
	// A deferred call has no line of its own on the stack.
	exact := slices.ContainsFunc(found, func(s *ioSite) bool { return !s.deferred })
	return slices.DeleteFunc(found, func(s *ioSite) bool { return s.deferred && exact })
}

// kindsOf says what the file system sees of a call.
var kindsOf = map[string][]vfs.OpKind{
	"Create": {vfs.OpCreate}, "Open": {vfs.OpOpen}, "OpenReadOnly": {vfs.OpOpen}, "Remove": {vfs.OpRemove},
	"Rename": {vfs.OpRename}, "MkdirAll": {vfs.OpMkdir}, "ReadDir": {vfs.OpReadDir}, "Stat": {vfs.OpStat},
	"SyncDir": {vfs.OpSyncDir}, "Lock": {vfs.OpLock}, "Space": {vfs.OpSpace}, "ReadAt": {vfs.OpRead},
	"WriteAt": {vfs.OpWrite}, "WriteVec": {vfs.OpWrite}, "Sync": {vfs.OpSync}, "Datasync": {vfs.OpDatasync},
	"DropCache": {vfs.OpDropCache}, "Truncate": {vfs.OpTruncate}, "Allocate": {vfs.OpAllocate},
	"Size": {vfs.OpStat}, "Close": {vfs.OpClose},
}

// missing lists the call sites that were never executed, and those that were never failed
// in one of the ways that there are for them.
func (t *ioTally) missing(ways []everyFault) (executed, failed []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sites {
		if had := t.outcome[s]; had[ranWell]+had[ranLater] == 0 {
			executed = append(executed, s.String())
		} else if without := t.without(s, ways); len(without) > 0 {
			failed = append(failed, fmt.Sprintf("%v, with %s", s, strings.Join(without, ", ")))
		}
	}
	return executed, failed
}

// wants tells whether one of the call sites has not been failed in every way.
func (t *ioTally) wants(sites map[*ioSite]bool, ways []everyFault) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range sites {
		if len(t.without(s, ways)) > 0 {
			return true
		}
	}
	return false
}

// without lists the ways in which a call site was never failed. The call of a helper
// counts by the calls in it. Called with t.mu held.
func (t *ioTally) without(s *ioSite, ways []everyFault) (names []string) {
	had, any := t.outcome[s], false
	for _, way := range ways {
		if !s.direct || !slices.ContainsFunc(kindsOf[s.call], way.hits) {
			continue
		}
		if had[way.name] == 0 {
			names = append(names, way.name)
		} else {
			any = true
		}
	}
	if had[ranWell] == 0 && any {
		return nil // it takes an error of some kind to get there: no other can follow that
	}
	return names
}
