// Command sabotage takes one safeguard of the engine away at a time, in a copy of the
// tree, and tells which test notices. A breakage that no test notices is a test that is
// missing.
//
// Run it in the root of the module. It exits with 1 if a breakage survives, does not
// compile, or no longer applies (its old text is not in its file exactly once), or if
// the tests fail without any breakage.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"sync"
	"time"
)

func main() {
	only := flag.String("only", "", "apply only breakages whose file or purpose matches this regular expression")
	check := flag.Bool("check", false, "only tell whether every breakage applies")
	workers := flag.Int("workers", 2, "breakages tested at the same time, each in a copy of its own")
	limit := flag.Duration("limit", 5*time.Minute, "the longest that one go test may take; one that takes longer proves nothing")
	seeds := flag.Int("seeds", 0, "instead, tell how many seeds, up to this, the simulation alone needs for the core breakages")
	flag.Parse()
	if err := run(*only, *check, *workers, *seeds, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "sabotage:", err)
		os.Exit(1)
	}
}

// run does what the flags say; an error if anything is not as it should be.
func run(only string, check bool, workers, seeds int, limit time.Duration) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if workers < 1 {
		return fmt.Errorf("-workers is %d, must be at least 1", workers)
	}
	var list []breakage
	for _, b := range breakages {
		if !pattern.MatchString(b.file+" "+b.what) || seeds > 0 && !b.core() {
			continue
		}
		if _, _, err := b.apply("."); err != nil {
			return fmt.Errorf("the list is stale: %w", err)
		}
		list = append(list, b)
	}
	switch {
	case check:
		fmt.Printf("%d breakages apply\n", len(list))
		return nil
	case seeds > 0:
		return simulate(list, seeds, limit)
	}
	return sabotage(list, workers, limit)
}

// sabotage tests the breakages and prints the table, in the order of the list.
func sabotage(list []breakage, workers int, limit time.Duration) error {
	began := time.Now()
	whole, err := copyTree(".")
	defer os.RemoveAll(whole)
	if err != nil {
		return err
	}
	sound := soundness{tree: whole, limit: limit, known: make(map[step]*error)}
	caught, survived, broken := 0, 0, 0
	inOrder(list, workers, func(b breakage, tree string) result { return b.test(tree, limit, &sound) }, func(i int, b breakage, r result) {
		switch {
		case r.err != nil:
			broken++
		case r.by == "":
			survived++
		default:
			caught++
		}
		fmt.Printf("%3d  %-44s %-62s %-44s %4.0f s\n", i+1, b.place(), b.what, r, r.took.Seconds())
	})
	fmt.Printf("%d breakages, %d caught, %d survived, in %v\n", len(list), caught, survived, time.Since(began).Round(time.Second))
	if survived+broken > 0 {
		return fmt.Errorf("%d breakages survived, %d could not be judged", survived, broken)
	}
	return nil
}

// inOrder runs test for every breakage, each worker in a copy of the tree of its own, and
// hands the results to show in the order of the list.
func inOrder(list []breakage, workers int, test func(b breakage, tree string) result, show func(i int, b breakage, r result)) {
	results := make([]chan result, len(list))
	work := make(chan int, len(list))
	for i := range list {
		results[i] = make(chan result, 1)
		work <- i
	}
	close(work)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			tree, err := copyTree(".")
			defer os.RemoveAll(tree)
			for i := range work {
				if err != nil {
					results[i] <- result{err: err}
					continue
				}
				results[i] <- test(list[i], tree)
			}
		})
	}
	for i, b := range list {
		show(i, b, <-results[i])
	}
	wg.Wait()
}

// soundness knows which steps pass without any breakage: one that fails there catches
// nothing. Safe for concurrent use.
type soundness struct {
	tree  string // unbroken
	limit time.Duration

	mu    sync.Mutex // held over a run
	known map[step]*error
}

// check is an error if the step does not pass on the unbroken tree. Each step is run once,
// when it is the first time that it has caught something.
func (s *soundness) check(st step) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[st] == nil {
		by, err := st.run(s.tree, s.limit)
		if err == nil && by != "" {
			err = fmt.Errorf("%s fails without any breakage", by)
		}
		s.known[st] = &err
	}
	return *s.known[st]
}
