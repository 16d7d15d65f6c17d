// Command scale measures what a store costs when it holds much: starting, listing,
// making and deleting with many records, marking, rewriting, the index after many small
// folds, and reading back a journal. It prints one line for each figure, with its limit,
// and fails if one is over.
//
// Each part runs in a process of its own, so that memory is that part's.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
)

// figure is one line of the table.
type figure struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Limit float64 `json:"limit"` // 0: none
	Least bool    `json:"least"` // the limit is a lower one
}

func (f figure) ok() bool {
	return f.Limit == 0 || f.Least && f.Value >= f.Limit || !f.Least && f.Value <= f.Limit
}

func (f figure) row() string {
	limit, verdict := "", ""
	if f.Limit != 0 {
		limit, verdict = fmt.Sprintf("<= %g", f.Limit), "ok"
		if f.Least {
			limit = fmt.Sprintf(">= %g", f.Limit)
		}
		if !f.ok() {
			verdict = "OVER"
		}
	}
	return fmt.Sprintf("%s\t%.4g %s\t%s\t%s", f.What, f.Value, f.Unit, limit, verdict)
}

// part is a piece of the measurement. It works in dir, which is empty unless an earlier
// part with the same directory has filled it.
type part struct {
	name, dir string
	run       func(dir string) ([]figure, error)
}

var parts = []part{
	{"records", "records", makeRecords},
	{"start", "records", startRecords},
	{"lists", "records", lists},
	{"deletes", "records", deletes},
	{"marking", "marking", marking},
	{"rewriting", "rewriting", rewriting},
	{"index", "index", smallFolds},
	{"journal", "journal", fillJournal},
	{"replay", "journal", replay},
}

func main() {
	dir := flag.String("dir", "", "a directory on the disk to measure on; default: a temporary one")
	only := flag.String("parts", "", "comma-separated parts; default: all")
	child := flag.String("part", "", "run one part here and print its figures as JSON")
	flag.Parse()
	if *child != "" {
		if err := runPart(*child, *dir); err != nil {
			fmt.Fprintln(os.Stderr, "scale:", err)
			os.Exit(1)
		}
		return
	}
	if err := runAll(*dir, *only); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func runPart(name, dir string) error {
	for _, p := range parts {
		if p.name != name {
			continue
		}
		figures, err := p.run(dir)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return json.NewEncoder(os.Stdout).Encode(figures)
	}
	return fmt.Errorf("no part %q", name)
}

func runAll(dir, only string) (err error) {
	if dir, err = os.MkdirTemp(dir, "granary-scale-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	over := 0
	fmt.Printf("%d CPUs; other work on the machine makes times longer\n", runtime.NumCPU())
	for _, p := range parts {
		if only != "" && !strings.Contains(","+only+",", ","+p.name+",") {
			continue
		}
		figures, err := runChild(p.name, filepath.Join(dir, p.dir))
		if err != nil {
			return err
		}
		for _, f := range figures {
			fmt.Fprintln(out, f.row())
			if !f.ok() {
				over++
			}
		}
		out.Flush()
	}
	if over > 0 {
		return fmt.Errorf("%d figures are over their limits", over)
	}
	return nil
}

// runChild runs a part in a process of its own, with two CPUs whatever there are.
func runChild(name, dir string) (figures []figure, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-part", name, "-dir", dir)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("part %s: %w", name, err)
	}
	return figures, json.Unmarshal(out, &figures)
}

// peakMemory is the largest resident size that the process has had, in bytes.
func peakMemory() (float64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib * 1024, err
		}
	}
	return 0, errors.New("no peak size in /proc/self/status")
}
