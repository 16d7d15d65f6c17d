package blockstore

import (
	"path"
	"slices"
	"testing"
	"time"

	"github.com/k8ns/granary/pkg/vfs"
)

// BenchmarkFlushedWrite writes 4 KiB and flushes, one after the other, on the disk of the
// temporary directory, with everything in the background going on as in a daemon. It also
// says how many commits the catalog took, and the slowest flush in a thousand.
func BenchmarkFlushedWrite(b *testing.B) {
	s := must(Open(vfs.NewOS(), path.Join(b.TempDir(), "store"), Options{}))(b)
	stop := runStore(b, s)
	v := newVolume(b, s, "v", 1<<30)
	block := noise(1, BlockSize)
	commits := s.cat.Durable()
	took := make([]time.Duration, 0, b.N)
	b.SetBytes(BlockSize)
	b.ResetTimer()
	for i := range b.N {
		block[0], block[1], block[2] = byte(i), byte(i>>8), byte(i>>16)
		began := time.Now()
		writeAt(b, v, block, int64(i)*7919%(1<<18)*BlockSize)
		ok(b, v.Flush())
		took = append(took, time.Since(began))
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us-median")
	b.ReportMetric(float64(took[len(took)*999/1000].Microseconds()), "us-p99.9")
	b.ReportMetric(float64(s.cat.Durable()-commits), "commits")
	stop()
	ok(b, v.Close())
	ok(b, s.Close())
}

// BenchmarkFirstFlush is the flush that has to be noted: a fold before each has emptied the
// journal. Beside it stands one that has not.
func BenchmarkFirstFlush(b *testing.B) {
	s := must(Open(vfs.NewOS(), path.Join(b.TempDir(), "store"), Options{}))(b)
	v := newVolume(b, s, "v", 1<<30)
	block := noise(1, BlockSize)
	var first, second time.Duration
	flush := func(i int) time.Duration {
		block[0], block[1], block[2] = byte(i), byte(i>>8), byte(i>>16)
		began := time.Now()
		writeAt(b, v, block, int64(i)*7919%(1<<18)*BlockSize)
		ok(b, v.Flush())
		return time.Since(began)
	}
	for i := range b.N {
		first += flush(2 * i)
		second += flush(2*i + 1)
		must(s.foldOnce(v))(b)
	}
	b.ReportMetric(float64(first.Microseconds())/float64(b.N), "us-first")
	b.ReportMetric(float64(second.Microseconds())/float64(b.N), "us-second")
	ok(b, v.Close())
	ok(b, s.Close())
}
