// Command bench compares an attached Granary volume with a plain loop device on the
// same disk, both with direct I/O, by fio: four rows, the two sides in turn, medians
// of the rounds. It prints a table and writes all figures as JSON.
//
// Both sides hold the same real data before reading: the volume folded into chunks,
// the plain file fully written. Writes carry data of fio's own making that compresses
// to about half and never repeats, because fio cannot take its buffers from a file of
// any length.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/k8ns/granary/test/rig"
)

func main() {
	bin := flag.String("granary", "bin/granary", "the granary binary")
	out := flag.String("out", "bin/bench.json", "where the figures go")
	rounds := flag.Int("rounds", 3, "rounds; the medians are shown")
	flag.Parse()
	if err := rig.Ready(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: this makes block devices, but here is %v\n", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := &bench{bin: *bin, rounds: *rounds}
	err := b.run(ctx)
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	if cleanErr := b.cleanup.Run(); err == nil {
		err = cleanErr
	}
	if err == nil {
		err = b.save(*out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// deviceBytes is the size of both devices, all of it filled.
const deviceBytes = 1 << 30

// row is one kind of I/O.
type row struct {
	Name string   `json:"name"`
	Args []string `json:"fio"`
	Read bool     `json:"read"`
}

// Sequential writes fit into the journal: what is measured is the way of the data to
// its acknowledgement, not the fold behind it.
var rows = []row{
	{"sequential write 1 MiB, 8 in flight", []string{"--rw=write", "--bs=1M", "--iodepth=8", "--io_size=256M"}, false},
	{"sequential read 1 MiB, 8 in flight", []string{"--rw=read", "--bs=1M", "--iodepth=8", "--runtime=4", "--time_based"}, true},
	{"random write 4 KiB, one at a time", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--runtime=4", "--time_based"}, false},
	{"random read 4 KiB, one at a time", []string{"--rw=randread", "--bs=4k", "--iodepth=1", "--runtime=4", "--time_based"}, true},
}

// figure is what one run of fio gave.
type figure struct {
	BytesPerSecond float64 `json:"bytesPerSecond"`
	IOPS           float64 `json:"iops"`
	P50Micros      float64 `json:"p50Micros"`
	P99Micros      float64 `json:"p99Micros"`
}

// result is a row with the figures of every round and their medians.
type result struct {
	row
	Granary       []figure `json:"granaryRounds"`
	Loop          []figure `json:"loopRounds"`
	GranaryMedian figure   `json:"granary"`
	LoopMedian    figure   `json:"loop"`
	Ratio         float64  `json:"ratio"` // bytes per second, Granary / loop
}

type bench struct {
	bin     string
	rounds  int
	cleanup rig.Cleanup
	daemon  *rig.Daemon
	dir     string
	results []result
	runs    int
}

func (b *bench) run(ctx context.Context) error {
	start := time.Now()
	var err error
	if b.dir, err = rig.WorkDir("granary-bench-", 6*deviceBytes, &b.cleanup); err != nil {
		return err
	}
	b.daemon = rig.NewDaemon(b.bin, b.dir, &b.cleanup)
	if err := b.daemon.Start(ctx); err != nil {
		return err
	}
	content, err := b.content(ctx)
	if err != nil {
		return err
	}
	plain, err := rig.LoopFile(ctx, &b.cleanup, content)
	if err != nil {
		return err
	}
	volume, err := b.makeVolume(ctx, content)
	if err != nil {
		return err
	}
	for _, r := range rows {
		b.results = append(b.results, result{row: r})
	}
	for round := range b.rounds {
		for i := range b.results {
			if err := b.both(ctx, &b.results[i], volume, plain, round%2 == 0); err != nil {
				return err
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d done\n", round+1, b.rounds)
	}
	b.print(time.Since(start))
	if _, err := b.daemon.Do(ctx, "volume", "detach", "bench"); err != nil {
		return err
	}
	return b.daemon.Stop(2 * time.Minute)
}

// content makes the plain file and fills it with sample data to its end.
func (b *bench) content(ctx context.Context) (string, error) {
	sample, err := rig.TakeSample(ctx, deviceBytes)
	if err != nil {
		return "", err
	}
	path := b.dir + "/plain"
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var size int64
	for size < deviceBytes { // a small machine's sample is repeated
		n, err := sample.Append(ctx, f, deviceBytes-size)
		if err != nil {
			return "", err
		}
		size += n
	}
	return path, f.Sync()
}

// makeVolume makes a volume with the plain file's content, folded, and attaches it.
func (b *bench) makeVolume(ctx context.Context, content string) (string, error) {
	if _, err := b.daemon.Do(ctx, "volume", "create", "bench", "--size", fmt.Sprint(deviceBytes)); err != nil {
		return "", err
	}
	device, err := b.attach(ctx)
	if err != nil {
		return "", err
	}
	if _, err := rig.Run(ctx, 0, "dd", "if="+content, "of="+device, "bs=1M", "oflag=direct", "status=none"); err != nil {
		return "", err
	}
	if _, err := b.daemon.Do(ctx, "volume", "detach", "bench"); err != nil {
		return "", err
	}
	if _, err := b.daemon.WaitFolded(ctx, 0, 2*time.Minute); err != nil {
		return "", err
	}
	return b.attach(ctx)
}

func (b *bench) attach(ctx context.Context) (string, error) {
	device, err := b.daemon.Do(ctx, "volume", "attach", "bench")
	if err != nil {
		return "", err
	}
	return device, rig.NoteLoop(&b.cleanup, device)
}

// both runs a row on both sides, Granary first or last.
func (b *bench) both(ctx context.Context, r *result, volume, plain string, first bool) error {
	side := func(device string, to *[]figure) error {
		// Let the fold of the row before end: it is work that the row did not do.
		if _, err := b.daemon.WaitFolded(ctx, 1<<20, 2*time.Minute); err != nil {
			return err
		}
		if err := rig.DropCaches(); err != nil {
			return err
		}
		b.runs++
		f, err := fio(ctx, device, r.row, b.runs)
		*to = append(*to, f)
		return err
	}
	if first {
		if err := side(volume, &r.Granary); err != nil {
			return err
		}
		return side(plain, &r.Loop)
	}
	if err := side(plain, &r.Loop); err != nil {
		return err
	}
	return side(volume, &r.Granary)
}

// fio runs one row on a device. Each run has a seed of its own: with fio's default all
// runs would write the same data, and the store would know it already.
func fio(ctx context.Context, device string, r row, seed int) (figure, error) {
	args := append([]string{
		"--name=bench", "--filename=" + device, "--direct=1", "--ioengine=libaio", fmt.Sprintf("--randseed=%d", seed),
		"--refill_buffers", "--buffer_compress_percentage=50", "--output-format=json",
	}, r.Args...)
	out, err := rig.Run(ctx, 0, "fio", args...)
	if err != nil {
		return figure{}, err
	}
	type side struct {
		Bytes float64 `json:"bw_bytes"`
		IOPS  float64 `json:"iops"`
		Lat   struct {
			P map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var got struct {
		Jobs []struct {
			Error int  `json:"error"`
			Read  side `json:"read"`
			Write side `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Jobs) != 1 || got.Jobs[0].Error != 0 {
		return figure{}, fmt.Errorf("fio on %s: cannot read its output (%v): %.500s", device, err, out)
	}
	s := got.Jobs[0].Write
	if r.Read {
		s = got.Jobs[0].Read
	}
	return figure{s.Bytes, s.IOPS, s.Lat.P["50.000000"] / 1000, s.Lat.P["99.000000"] / 1000}, nil
}

// median takes the median of each quantity for itself.
func median(all []figure) figure {
	of := func(get func(figure) float64) float64 {
		var v []float64
		for _, f := range all {
			v = append(v, get(f))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return figure{
		of(func(f figure) float64 { return f.BytesPerSecond }),
		of(func(f figure) float64 { return f.IOPS }),
		of(func(f figure) float64 { return f.P50Micros }),
		of(func(f figure) float64 { return f.P99Micros }),
	}
}

func (b *bench) print(took time.Duration) {
	fmt.Printf("\n%-38s %12s %12s %7s %11s %11s\n", "", "Granary", "plain loop", "ratio", "p50", "p50 loop")
	for i := range b.results {
		r := &b.results[i]
		r.GranaryMedian, r.LoopMedian = median(r.Granary), median(r.Loop)
		r.Ratio = r.GranaryMedian.BytesPerSecond / r.LoopMedian.BytesPerSecond
		fmt.Printf("%-38s %12s %12s %7.2f %8.0f us %8.0f us\n", r.Name, r.rate(r.GranaryMedian), r.rate(r.LoopMedian),
			r.Ratio, r.GranaryMedian.P50Micros, r.LoopMedian.P50Micros)
	}
	fmt.Printf("\nmedians of %d rounds, %d cores, %.0f s in all\n", b.rounds, runtime.NumCPU(), took.Seconds())
}

// rate is in MiB/s for large requests and in requests a second for small ones.
func (r *result) rate(f figure) string {
	if f.BytesPerSecond/f.IOPS > 64<<10 {
		return fmt.Sprintf("%.0f MiB/s", f.BytesPerSecond/(1<<20))
	}
	return fmt.Sprintf("%.0f IOPS", f.IOPS)
}

// save writes all figures for a program to read.
func (b *bench) save(path string) error {
	raw, err := json.MarshalIndent(map[string]any{
		"cores": runtime.NumCPU(), "deviceBytes": deviceBytes, "rows": b.results,
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}
