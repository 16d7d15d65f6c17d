package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// report prints the story: one line a step, with its time, and facts below.
type report struct {
	w     io.Writer
	color bool
	steps int
	open  bool // a step's line is begun and not ended
}

func newReport(f *os.File) *report {
	info, err := f.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &report{w: f, color: terminal && os.Getenv("NO_COLOR") == ""}
}

// titleWidth leaves room for the time within 80 columns.
const titleWidth = 62

func (r *report) title(s string) { fmt.Fprintf(r.w, "\n%s\n", r.paint("1", s)) }

func (r *report) text(format string, args ...any) {
	fmt.Fprintf(r.w, format+"\n", args...)
}

// step runs one step and prints its line. The facts that it returns go below.
func (r *report) step(title string, do func() (facts []string, err error)) error {
	r.steps++
	fmt.Fprintf(r.w, "%3d  %s", r.steps, pad(title, titleWidth))
	r.open = true
	start := time.Now()
	facts, err := do()
	took := time.Since(start)
	if err != nil {
		return fmt.Errorf("step %d (%s): %w", r.steps, title, err)
	}
	r.open = false
	fmt.Fprintf(r.w, " %6.1f s\n", took.Seconds())
	for _, f := range facts {
		fmt.Fprintf(r.w, "     %s\n", r.paint("2", f))
	}
	return nil
}

func (r *report) problem(err error, log string) {
	if r.open {
		fmt.Fprintf(r.w, " %s\n", r.paint("31", "FAILED"))
		r.open = false
	}
	fmt.Fprintf(r.w, "\n%s %v\n", r.paint("31", "demo:"), err)
	if log != "" {
		fmt.Fprintf(r.w, "\nThe daemon's last lines:\n%s\n", log)
	}
}

func (r *report) end(compared int, took time.Duration) {
	fmt.Fprintf(r.w, "\n%s %s comparisons, no difference, %.0f s in all; nothing is left behind.\n",
		r.paint("32", "All is well:"), thousands(compared), took.Seconds())
}

// table prints rows of cells: the first column to the left, the others to the right.
// A row without cells is a rule.
func (r *report) table(rows [][]string) {
	var width []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for _, row := range rows {
		if len(row) == 0 {
			total := 0
			for _, w := range width {
				total += w + 3
			}
			fmt.Fprintf(r.w, "  %s\n", strings.Repeat("-", total-3))
			continue
		}
		var line strings.Builder
		for i, c := range row {
			fill := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i == 0 {
				line.WriteString(c + fill)
			} else {
				line.WriteString("   " + fill + c)
			}
		}
		fmt.Fprintf(r.w, "  %s\n", strings.TrimRight(line.String(), " "))
	}
}

func (r *report) paint(code, s string) string {
	if !r.color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

// size prints bytes for a person.
func size(n int64) string {
	switch {
	case n >= 10<<30 || n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 100<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// ms prints a short time for a person.
func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
