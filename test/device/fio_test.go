package device

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fioArea is a part of the device that one fio job has for itself.
const fioArea = 64 << 20

// fioJob is a job of random writes in an area of its own, read back and verified.
func fioJob(bs string, bytes int64, number int) string {
	return strings.Join([]string{
		"[" + bs + "]", "rw=randwrite", "bs=" + bs, fmt.Sprintf("offset=%d", number*fioArea),
		fmt.Sprintf("size=%d", bytes),
	}, "\n") + "\n"
}

// runFio runs jobs at once, with direct I/O and every block's checksum verified.
func runFio(e *env, device, jobs string, more ...string) {
	e.Helper()
	global := []string{
		"[global]", "filename=" + device, "direct=1", "ioengine=libaio", "iodepth=16",
		"verify=crc32c", "do_verify=1", "verify_fatal=1", "verify_dump=0", "randseed=20", "group_reporting=1",
	}
	file := filepath.Join(e.dir, "jobs.fio")
	text := strings.Join(append(global, more...), "\n") + "\n" + jobs
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		e.Fatal(err)
	}
	e.run("fio", "--minimal", file)
}

// TestFioVerify lets fio write and verify with several block sizes at once, then
// verify all of it again from a store that was stopped and started (I1, I5).
func TestFioVerify(t *testing.T) {
	for _, sector := range []string{"512", "4096"} {
		t.Run("sector-"+sector, func(t *testing.T) {
			e := newEnv(t, 2*time.Minute)
			e.create("fio", "256MiB", "--block-size", sector)
			device := e.attach("fio")
			small := "512"
			if sector == "4096" {
				small = "8k"
			}
			jobs := fioJob(small, 3<<20, 0) + fioJob("4k", 16<<20, 1) + fioJob("64k", 32<<20, 2) + fioJob("1m", 64<<20, 3)
			runFio(e, device, jobs)
			e.detach("fio")
			e.stop()
			e.serve()
			runFio(e, e.attach("fio"), jobs, "verify_only=1")
			e.detach("fio")
		})
	}
}

// TestFioTrim trims each block before it writes it. (Blocks that stay trimmed are
// TestRandomOperations' subject.)
func TestFioTrim(t *testing.T) {
	e := newEnv(t, 2*time.Minute)
	e.create("fio", "256MiB")
	device := e.attach("fio")
	runFio(e, device, strings.ReplaceAll(fioJob("512", 2<<20, 0)+fioJob("4k", 16<<20, 1)+
		fioJob("64k", 32<<20, 2)+fioJob("1m", 64<<20, 3), "rw=randwrite", "rw=randtrimwrite"))
	e.detach("fio")
}
