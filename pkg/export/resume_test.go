package export

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fileDevice is a Device in a file that outlives the process.
type fileDevice struct{ *os.File }

func (d fileDevice) Flush() error               { return d.Sync() }
func (d fileDevice) Discard(off, n int64) error { return d.WriteZeroes(off, n) }
func (d fileDevice) WriteZeroes(off, n int64) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}
func (d fileDevice) Size() int64 {
	st, err := d.Stat()
	if err != nil {
		panic(err)
	}
	return st.Size()
}

const resumeEnv = "GRANARY_EXPORT_TEST_RESUME" // "new", or the session as JSON

// resumeChild serves the connection at descriptor 3 from the file at descriptor 4.
func resumeChild() int {
	o := FUSEOptions{Name: fileName("disk")}
	if s := os.Getenv(resumeEnv); s != "new" {
		o.Resume = new(Session)
		if err := json.Unmarshal([]byte(s), o.Resume); err != nil {
			return 1
		}
	}
	var err error
	if o.Buffers, err = NewBuffers(0); err != nil {
		return 1
	}
	f, err := NewFUSE(os.NewFile(3, "fuse"), fileDevice{os.NewFile(4, "disk")}, o)
	if err != nil {
		return 1
	}
	go func() {
		for {
			if s, have := f.Session(); have {
				line, _ := json.Marshal(s) // plain numbers
				fmt.Println(string(line))
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if err := f.Serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startServer starts a child that serves conn; the function returns its session.
func startServer(t *testing.T, conn FUSEConn, disk *os.File, state string) (*exec.Cmd, func() string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), resumeEnv+"="+state)
	cmd.ExtraFiles = []*os.File{conn.Dev(), disk}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	return cmd, func() string {
		line, err := bufio.NewReader(out).ReadString('\n')
		ok(t, err)
		return line
	}
}

// TestResume: this process holds the connection while servers are killed under verified
// load. Nobody sees an error.
func TestResume(t *testing.T) {
	needKernel(t)
	h, name := NewHost(), testName(t)
	disk, err := os.CreateTemp(t.TempDir(), "disk")
	ok(t, err)
	defer disk.Close()
	const size = 16 << 20
	ok(t, disk.Truncate(size))
	conn, err := h.OpenFUSE(FUSEMount{Name: fileName("disk")})
	ok(t, err)
	defer conn.Close()
	server, session := startServer(t, conn, disk, "new")
	defer func() {
		_ = conn.Abort() // ended already if all went well
		_ = server.Wait()
	}()
	file, err := conn.OpenDisk()
	ok(t, err)
	defer file.Close()
	state := session()
	var s Session
	ok(t, json.Unmarshal([]byte(state), &s))
	if !s.CanResend() {
		t.Skip("needs a kernel that sends requests again (6.9)")
	}
	loop, err := h.AttachLoop(file, LoopOptions{SectorBytes: 512, Name: name})
	ok(t, err)
	defer func() { ok(t, h.DetachLoop(t.Context(), loop.Path, false)) }()

	stop := make(chan struct{})
	var load sync.WaitGroup
	var rounds [8]int
	for w := range rounds {
		load.Go(func() { rounds[w] = verifyLoad(t, loop.Path, int64(w)*(size/8), size/8, stop) })
	}
	for range 10 {
		time.Sleep(time.Duration(20+rand.IntN(80)) * time.Millisecond)
		ok(t, server.Process.Kill())
		_ = server.Wait() // killed
		server, _ = startServer(t, conn, disk, state)
	}
	close(stop)
	load.Wait()
	t.Logf("rounds %v", rounds)
}

// verifyLoad writes and reads back its part of the device until stop.
func verifyLoad(t *testing.T, device string, from, n int64, stop chan struct{}) (rounds int) {
	f, err := openCloexec(device, unix.O_RDWR|unix.O_DIRECT)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	out, in := aligned(64<<10, 0), aligned(64<<10, 0)
	for ; ; rounds++ {
		select {
		case <-stop:
			return
		default:
		}
		for i := range out {
			out[i] = byte(rounds*31 + i>>9)
		}
		off := from + int64(rounds)*int64(len(out))%n
		_, err := f.WriteAt(out, off)
		if err == nil && rounds%8 == 0 {
			err = f.Sync()
		}
		if err == nil {
			_, err = f.ReadAt(in, off)
		}
		if err != nil && err != io.EOF {
			t.Errorf("round %d: %v", rounds, err)
			return
		}
		if !bytes.Equal(in, out) {
			t.Errorf("round %d: wrong bytes", rounds)
			return
		}
	}
}
