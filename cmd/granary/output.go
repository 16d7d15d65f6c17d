package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// print writes v as JSON, or what table does with a table.
func (a *app) print(v any, table func(t *table)) error {
	if a.output == "json" {
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	t := newTable(a.stdout)
	table(t)
	return t.Flush()
}

// table lines up columns.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer) *table { return &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

// row writes one line. The last cell stands alone, so that it pads nothing.
func (t *table) row(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }

// field writes one line of a description; empty values are left out.
func (t *table) field(name, value string) {
	if value != "" {
		t.row(name+":", value)
	}
}

func formatTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// isTerminal tells whether somebody sees what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// progressBar shows how far something is, on a terminal only. Its methods may not be
// called concurrently.
type progressBar struct {
	w     io.Writer // nil: nobody looks
	shown string
}

func newProgressBar(w io.Writer) *progressBar {
	if !isTerminal(w) {
		return &progressBar{}
	}
	return &progressBar{w: w}
}

const barWidth = 40

// update draws the bar; a total of 0 is not known yet.
func (b *progressBar) update(done, total int64) {
	if b.w == nil || total <= 0 {
		return
	}
	done = min(max(done, 0), total)
	filled := int(float64(done) / float64(total) * barWidth)
	line := fmt.Sprintf("[%s%s] %3d%%  %s of %s", strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled),
		int(float64(done)/float64(total)*100), formatSize(done), formatSize(total))
	if line != b.shown {
		fmt.Fprint(b.w, "\r\033[K", line)
		b.shown = line
	}
}

// clear takes the bar away, so that a line can be printed.
func (b *progressBar) clear() {
	if b.shown != "" {
		fmt.Fprint(b.w, "\r\033[K")
		b.shown = ""
	}
}
