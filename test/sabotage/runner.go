package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// step is one go test: a package and what of it to run.
type step struct {
	pkg, tests string
	race       bool // with the race detector
}

func all(pkg string) step            { return step{pkg: pkg, tests: "."} }
func tests(pkg, pattern string) step { return step{pkg: pkg, tests: "^(" + pattern + ")$"} }
func raceIn(pkg, pattern string) step {
	return step{pkg: pkg, tests: "^(" + pattern + ")$", race: true}
}

// breakage takes one safeguard away.
type breakage struct {
	file, old, new string
	what           string
	steps          []step // the most likely test first
}

// result is what became of a breakage: by is the test that failed, empty if none did.
type result struct {
	by   string
	took time.Duration
	err  error
}

func (r result) String() string {
	switch {
	case r.err != nil:
		return "NOT JUDGED: " + r.err.Error()
	case r.by == "":
		return "SURVIVED"
	}
	return r.by
}

// place is the file and line of the breakage in the tree that the command runs in.
func (b breakage) place() string {
	text, err := os.ReadFile(b.file)
	if err != nil {
		return b.file
	}
	line := 1 + bytes.Count(text[:max(0, bytes.Index(text, []byte(b.old)))], []byte("\n"))
	return fmt.Sprintf("%s:%d", b.file, line)
}

// apply returns the file's text before and after the breakage; nothing is written.
func (b breakage) apply(tree string) (before, after []byte, err error) {
	before, err = os.ReadFile(filepath.Join(tree, b.file))
	if err != nil {
		return nil, nil, err
	}
	if n := bytes.Count(before, []byte(b.old)); n != 1 {
		return nil, nil, fmt.Errorf("%s (%s): its old text is there %d times, must be once: %q", b.file, b.what, n, b.old)
	}
	return before, bytes.Replace(before, []byte(b.old), []byte(b.new), 1), nil
}

// test breaks the tree, runs the steps until one fails, and mends the tree.
func (b breakage) test(tree string, limit time.Duration, sound *soundness) result {
	return b.with(tree, func() (by string, err error) {
		for _, s := range b.steps {
			if by, err = s.run(tree, limit); by != "" {
				return by, sound.check(s)
			}
			if err != nil {
				return "", err
			}
		}
		return "", nil
	})
}

// with runs try on the broken tree, and mends the tree.
func (b breakage) with(tree string, try func() (by string, err error)) (r result) {
	began := time.Now()
	defer func() { r.took = time.Since(began) }()
	before, after, err := b.apply(tree)
	if err != nil {
		return result{err: err}
	}
	name := filepath.Join(tree, b.file)
	if err := os.WriteFile(name, after, 0o644); err != nil {
		return result{err: err}
	}
	defer func() { r.err = errors.Join(r.err, os.WriteFile(name, before, 0o644)) }()
	by, err := try()
	return result{by: by, err: err}
}

var (
	failed  = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	running = regexp.MustCompile(`(?m)^=== (?:RUN|CONT)\s+(\S+)`)
	racing  = regexp.MustCompile(`(?m)^WARNING: DATA RACE`)
	noTests = regexp.MustCompile(`(?m)\[no tests to run\]`)
)

// run runs the step and names the test that failed, "" if none did. A build that fails,
// a name that no test has, and a run that takes longer than limit are errors: they catch
// nothing.
func (s step) run(tree string, limit time.Duration) (by string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args := []string{"test", "-trimpath", "-vet=off", "-ldflags=-s -w", "-v", "-failfast", "-count=1",
		"-tags", "grpcnotrace", "-timeout", limit.String(), "-run", s.tests, s.pkg}
	cgo := "CGO_ENABLED=0"
	if s.race {
		args, cgo = slices.Insert(args, 1, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), cgo)
	group(cmd)
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil || bytes.Contains(out, []byte("panic: test timed out")):
		return "", fmt.Errorf("%s took longer than %v", s.pkg, limit)
	case err == nil && noTests.Match(out):
		return "", fmt.Errorf("%s has no test %s", s.pkg, s.tests)
	case err == nil:
		return "", nil
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
		return "", fmt.Errorf("does not compile: %s", firstLines(out, 4))
	}
	if m := failed.FindSubmatch(out); m != nil {
		by = string(m[1])
		if racing.Match(out) {
			by += ", a data race"
		}
		return by, nil
	}
	if m := running.FindAllSubmatch(out, -1); m != nil { // a panic ends the test without a verdict
		return string(m[len(m)-1][1]), nil
	}
	return "", fmt.Errorf("go test: %w: %s", err, firstLines(out, 4))
}

// group makes the end of the command's time the end of what it has started, too: go test
// would leave the test running.
func group(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
}

func firstLines(out []byte, n int) string {
	lines := strings.SplitN(strings.TrimSpace(string(out)), "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "; ")
}

// copyTree copies the tree's regular files into a new temporary directory, which the
// caller removes, on an error too.
func copyTree(root string) (string, error) {
	dst, err := os.MkdirTemp("", "sabotage-")
	if err != nil {
		return "", err
	}
	return dst, filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "bin" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(dst, name), 0o755)
		}
		if !d.Type().IsRegular() || d.Name() == ".git" {
			return nil
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dst, name), data, 0o644)
	})
}
