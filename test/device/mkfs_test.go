package device

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A stand-in for mkfs lets a test stop the world at a moment of mkfs's run. It is this
// test's binary under the name of mkfs.<kind>, first in the daemon's PATH. It logs each
// call, and runs the real mkfs unless the test has planned something else.

// standInEnv names the directory in which test and stand-in talk by files, and makes
// the test's binary be the stand-in.
const standInEnv = "GRANARY_DEVICE_STANDIN"

// moment is what a test plans for the next mkfs.
type moment string

const (
	undisturbed moment = ""
	beforeMkfs  moment = "before" // waits, then becomes mkfs
	halfMkfs    moment = "half"   // writes half of what mkfs writes, waits, becomes mkfs
	afterMkfs   moment = "after"  // runs mkfs, waits, leaves
	failingMkfs moment = "fail"   // complains and leaves
)

// The files of the directory. "bin" is what is in the daemon's PATH.
const (
	planFile    = "plan"    // a moment
	callsFile   = "calls"   // a line for each call
	reachedFile = "reached" // of the stand-in that waits: process ID and device
	goFile      = "go"      // ends its wait
)

// standInWaits bounds a stand-in's wait for a test that has forgotten it.
const standInWaits = time.Minute

// standInSays is what a failing mkfs says.
const standInSays = "mkfs is not in the mood"

// standIn is the whole life of a stand-in; it returns the exit code.
func standIn(dir string) int {
	if err := os.Setenv("PATH", strings.TrimPrefix(os.Getenv("PATH"), filepath.Join(dir, "bin")+":")); err != nil {
		return complain(err)
	}
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	device := args[len(args)-1]
	if err := logCall(dir, name, device); err != nil {
		return complain(err)
	}
	plan, err := os.ReadFile(filepath.Join(dir, planFile))
	if err != nil {
		return complain(err)
	}
	switch moment(plan) {
	case beforeMkfs:
		err = waitForGo(dir, device)
	case halfMkfs:
		err = errors.Join(halfOf(dir, name, args), waitForGo(dir, device))
	case afterMkfs:
		err = errors.Join(exec.Command(name, args...).Run(), waitForGo(dir, device))
		return complain(err)
	case failingMkfs:
		err = errors.New(standInSays)
	}
	if err != nil {
		return complain(err)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return complain(err)
	}
	return complain(unix.Exec(path, os.Args, os.Environ()))
}

func complain(err error) (code int) {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func logCall(dir, name, device string) error {
	f, err := os.OpenFile(filepath.Join(dir, callsFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, name, device)
	return err
}

// waitForGo tells the test that the moment has come and waits for its word.
func waitForGo(dir, device string) error {
	if err := replaceFile(dir, reachedFile, fmt.Sprint(os.Getpid(), " ", device)); err != nil {
		return err
	}
	for end := time.Now().Add(standInWaits); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, goFile)); err == nil {
			return nil
		}
	}
	return errors.New("nobody let the stand-in go on")
}

// replaceFile writes a file that others see whole or not at all.
func replaceFile(dir, name, content string) error {
	temporary := filepath.Join(dir, name+".tmp")
	if err := os.WriteFile(temporary, []byte(content), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}

// halfOf writes the first half of what mkfs writes, as far as it is not zeros,
// durably. The superblock of ext4 and xfs is in there: it looks like a filesystem.
func halfOf(dir, name string, args []string) error {
	device, err := os.OpenFile(args[len(args)-1], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	size, err := device.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	image, err := os.CreateTemp(dir, "image-")
	if err != nil {
		return err
	}
	defer image.Close()
	defer os.Remove(image.Name())
	if err := image.Truncate(size); err != nil {
		return err
	}
	args = append(args[:len(args)-1:len(args)-1], image.Name())
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	blocks, err := writtenBlocks(image)
	if err != nil {
		return err
	}
	block := make([]byte, imageBlock)
	for _, off := range blocks[:len(blocks)/2] {
		if _, err := image.ReadAt(block, off); err != nil {
			return err
		}
		if _, err := device.WriteAt(block, off); err != nil {
			return err
		}
	}
	return device.Sync()
}

const imageBlock = 4096

// writtenBlocks lists where an image is not zeros.
func writtenBlocks(image *os.File) ([]int64, error) {
	var found []int64
	zeros, p := make([]byte, imageBlock), make([]byte, imageBlock)
	for off := int64(0); ; off += imageBlock {
		data, err := unix.Seek(int(image.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO { // nothing but a hole is left
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		off = data / imageBlock * imageBlock
		if _, err := image.ReadAt(p, off); err != nil {
			return nil, err
		}
		if !bytes.Equal(p, zeros) {
			found = append(found, off)
		}
	}
}

// guarded is an env whose daemon has stand-ins for mkfs.
type guarded struct {
	*env
	dir string // where they talk
}

// process is a stand-in that waits.
type process struct {
	pid    int
	device string
}

// plan says what the next mkfs does.
func (g *guarded) plan(m moment) {
	g.Helper()
	for _, name := range []string{reachedFile, goFile} {
		if err := os.Remove(filepath.Join(g.dir, name)); err != nil && !os.IsNotExist(err) {
			g.Fatal(err)
		}
	}
	if err := replaceFile(g.dir, planFile, string(m)); err != nil {
		g.Fatal(err)
	}
}

// reached waits until the planned moment has come, during a stage.
func (g *guarded) reached(stage <-chan error) process {
	g.Helper()
	for g.ctx.Err() == nil {
		text, err := os.ReadFile(filepath.Join(g.dir, reachedFile))
		pid, device, _ := strings.Cut(string(text), " ")
		if err == nil {
			n, err := strconv.Atoi(pid)
			if err != nil {
				g.Fatal(err)
			}
			return process{n, device}
		}
		select {
		case err := <-stage:
			g.Fatalf("the stage ended before mkfs was where it should be: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	g.Fatal(g.ctx.Err())
	return process{}
}

// goOn ends the wait of a stand-in.
func (g *guarded) goOn() {
	g.Helper()
	if err := replaceFile(g.dir, goFile, ""); err != nil {
		g.Fatal(err)
	}
}

// waitGone waits until a process has ended; whose child it was does not matter.
func (g *guarded) waitGone(p process) {
	g.Helper()
	for g.ctx.Err() == nil {
		if !p.alive() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	g.Fatalf("process %d does not end", p.pid)
}

func (p process) alive() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// calls is how often mkfs has been called.
func (g *guarded) calls() int {
	g.Helper()
	log, err := os.ReadFile(filepath.Join(g.dir, callsFile))
	if err != nil && !os.IsNotExist(err) {
		g.Fatal(err)
	}
	return strings.Count(string(log), "\n")
}

// wantCalls wants that mkfs has been called so often in all.
func (g *guarded) wantCalls(want int) {
	g.Helper()
	if got := g.calls(); got != want {
		g.Fatalf("mkfs has been called %d times, want %d", got, want)
	}
}
