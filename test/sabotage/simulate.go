package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// simulated are the breakages, by their purpose, that the simulation is asked for alone.
var simulated = []string{
	"catalog: commit not synced",
	"catalog: name of a new log not durable",
	"journal: segment not synced by a flush",
	"journal: header of a new log not synced",
	"journal: name of a segment not durable",
	"journal: trimmed too far",
	"journal: logs that are over read again",
	"fold: commit before chunks are synced",
	"chunk file: name of a new file not durable",
	"record: payload's checksum",
	"record: log not compared",
	"group: checksum on read",
	"write: acknowledged before it is appended",
	"flush: answered without one",
	"flush: does not cover what was recovered",
	"cut: goes before its last name",
	"collector: second marking not looked at",
	"dedup against a condemned slot",
}

func (b breakage) core() bool { return slices.Contains(simulated, b.what) }

// simulate tells for each breakage the first of so many seeds with which the simulation
// finds a violation. One that it does not find is not an error: what looks at a fault
// that it never makes, another test has to catch.
func simulate(list []breakage, seeds int, limit time.Duration) error {
	began := time.Now()
	caught := 0
	var err error
	inOrder(list, 1, func(b breakage, tree string) result { return b.simulate(tree, seeds, limit) }, func(i int, b breakage, r result) {
		if r.err != nil && err == nil {
			err = fmt.Errorf("%s: %w", b.what, r.err)
		}
		if r.by != "" {
			caught++
		}
		fmt.Printf("%3d  %-44s %-62s %-20s %4.0f s\n", i+1, b.place(), b.what, r, r.took.Seconds())
	})
	fmt.Printf("%d breakages, %d caught by the simulation within %d seeds, in %v\n", len(list), caught, seeds, time.Since(began).Round(time.Second))
	return err
}

// simulate builds the simulation on a broken tree and runs more and more seeds.
func (b breakage) simulate(tree string, seeds int, limit time.Duration) result {
	return b.with(tree, func() (string, error) {
		program := filepath.Join(tree, "sim.test")
		build := exec.Command("go", "test", "-trimpath", "-tags", "grpcnotrace", "-c", "-o", program, "./pkg/blockstore")
		build.Dir = tree
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("does not compile: %s", firstLines(out, 4))
		}
		first := 1
		for n := 10; first <= seeds; n *= 2 {
			n = min(n, seeds-first+1)
			if seed, err := violation(program, first, n, limit); err != nil || seed > 0 {
				return fmt.Sprintf("seed %d", seed), err
			}
			first += n
		}
		return "", nil
	})
}

// inSeed is how the simulation begins the report of a violation or of a hang.
var inSeed = regexp.MustCompile(`(?m)\bseed (\d+) (?:step|hangs|had)`)

// violation runs n seeds and returns the lowest that failed, 0 if none did.
func violation(program string, first, n int, limit time.Duration) (seed int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.run", "^TestSimulation$", "-test.timeout", "0",
		"-sim.first", strconv.Itoa(first), "-sim.seeds", strconv.Itoa(n))
	cmd.Dir = filepath.Dir(program)
	group(cmd)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return 0, fmt.Errorf("%d seeds from %d on took longer than %v", n, first, limit)
	}
	if err == nil {
		return 0, nil
	}
	for _, m := range inSeed.FindAllSubmatch(out, -1) {
		if k, err := strconv.Atoi(string(m[1])); err == nil && (seed == 0 || k < seed) {
			seed = k
		}
	}
	if seed == 0 {
		return 0, fmt.Errorf("simulation: %w: %s", err, firstLines(out, 4))
	}
	return seed, nil
}
