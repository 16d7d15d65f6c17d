package export

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"
)

// flatDevice is a Device in one piece of memory, with nothing in the way.
type flatDevice []byte

func (d flatDevice) ReadAt(p []byte, off int64) (int, error)  { return copy(p, d[off:]), nil }
func (d flatDevice) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }
func (d flatDevice) Flush() error                             { return nil }
func (d flatDevice) Discard(off, n int64) error               { clear(d[off : off+n]); return nil }
func (d flatDevice) WriteZeroes(off, n int64) error           { clear(d[off : off+n]); return nil }
func (d flatDevice) Size() int64                              { return int64(len(d)) }

// BenchmarkTransport measures the way to a device in memory with fio: 3 s per pattern,
// whatever b.N says. Run it with -benchtime 1x.
func BenchmarkTransport(b *testing.B) {
	needKernel(b)
	needPrograms(b, "fio")
	dev := make(flatDevice, 1<<30)
	for i := range dev {
		dev[i] = byte(i >> 12)
	}
	a, _ := attach(b, dev, Options{})
	for _, c := range []struct {
		rw, bs string
		depth  int
	}{
		{"randread", "4k", 32}, {"randwrite", "4k", 32}, {"randread", "4k", 1},
		{"read", "1m", 8}, {"write", "1m", 8},
	} {
		b.Run(fmt.Sprintf("%s/%s/qd%d", c.rw, c.bs, c.depth), func(b *testing.B) {
			for b.Loop() {
				fio(b, a.Path(), c.rw, c.bs, c.depth)
			}
		})
	}
}

func fio(b *testing.B, device, rw, bs string, depth int) {
	b.Helper()
	out, err := exec.Command("fio", "--name=b", "--filename="+device, "--rw="+rw, "--bs="+bs,
		fmt.Sprint("--iodepth=", depth), "--ioengine=libaio", "--direct=1", "--time_based",
		"--runtime=3", "--output-format=json").Output()
	ok(b, err)
	type side struct {
		IOPS float64 `json:"iops"`
		BW   float64 `json:"bw_bytes"`
	}
	var r struct {
		Jobs []struct{ Read, Write side } `json:"jobs"`
	}
	ok(b, json.Unmarshal(out, &r))
	b.ReportMetric(r.Jobs[0].Read.IOPS+r.Jobs[0].Write.IOPS, "IOPS")
	b.ReportMetric((r.Jobs[0].Read.BW+r.Jobs[0].Write.BW)/1e6, "MB/s")
}
