package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Daemon is a granary daemon and its store in a directory.
type Daemon struct {
	Bin  string   // the granary binary that serves
	CLI  string   // and the one that the commands run
	Dir  string   // data directory, CSI socket and log live below this one
	Args []string // further arguments of `granary serve`
	Env  []string // variables that it has beside ours, as NAME=value

	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// NewDaemon prepares a daemon below dir, which must exist. The daemon is killed by
// the cleanup if it still runs then.
func NewDaemon(bin, dir string, c *Cleanup, args ...string) *Daemon {
	d := &Daemon{Bin: bin, CLI: bin, Dir: dir, Args: args}
	c.Add("end the daemon", func() error {
		if !d.Running() {
			return nil
		}
		err := d.Stop(20 * time.Second)
		if d.Running() {
			err = errors.Join(err, d.Kill())
		}
		return err
	})
	return d
}

// DataDir is the store's directory.
func (d *Daemon) DataDir() string { return filepath.Join(d.Dir, "store") }

// Socket is the path of the CSI socket.
func (d *Daemon) Socket() string { return filepath.Join(d.Dir, "csi.sock") }

// LogFile is where the daemon's output of all its lives goes.
func (d *Daemon) LogFile() string { return filepath.Join(d.Dir, "daemon.log") }

// Running tells whether the daemon's process is there.
func (d *Daemon) Running() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// T is what Limit needs of a test.
type T interface {
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(func())
}

// Limit gives a test so much time. An I/O that hangs ends with an error when the daemon
// dies, and so does the test: when the time is over the daemon is killed.
func (d *Daemon) Limit(t T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("time limit of %v passed: killing the daemon", limit)
			t.Logf("what it was doing:\n%s", d.KillWithTrace())
		}
	})
	t.Cleanup(func() { stop() })
	return ctx
}

// PID is the process ID of the daemon, or of its last life.
func (d *Daemon) PID() int {
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Start starts the daemon and waits until both of its sockets answer.
func (d *Daemon) Start(ctx context.Context) error {
	if d.Running() {
		return errors.New("the daemon runs already")
	}
	log, err := os.OpenFile(d.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := os.MkdirAll(d.DataDir(), 0o700); err != nil {
		return err
	}
	args := append([]string{"serve", "--endpoint", "unix://" + d.Socket(), "--data-dir", d.DataDir(), "--node-id", "rig"}, d.Args...)
	cmd := exec.Command(d.Bin, args...)
	cmd.Stdout, cmd.Stderr = log, log
	// A binary with the race detector would sleep for a second when it ends.
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), d.Env...)
	// A group of its own: Ctrl-C in a terminal must reach only us, who then end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.cmd, d.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait() // the exit state is read from cmd.ProcessState
		close(ended)
	}(d.ended)
	return d.waitReady(ctx)
}

func (d *Daemon) waitReady(ctx context.Context) error {
	limit := time.After(60 * time.Second)
	for {
		if answers(d.Socket()) && answers(filepath.Join(d.DataDir(), "granary.sock")) {
			return nil
		}
		select {
		case <-d.ended:
			return fmt.Errorf("the daemon ended at start: %v\n%s", d.cmd.ProcessState, d.LogTail(15))
		case <-limit:
			tail := d.LogTail(15)
			return fmt.Errorf("the daemon does not answer after a minute\n%s\nwhat it was doing:\n%s", tail, d.KillWithTrace())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func answers(socket string) bool {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// Kill ends the daemon with SIGKILL and waits until it is gone.
func (d *Daemon) Kill() error { return d.signal(syscall.SIGKILL, 30*time.Second) }

// KillWithTrace kills the daemon so that it says what each goroutine was doing.
func (d *Daemon) KillWithTrace() string {
	_ = d.signal(syscall.SIGQUIT, 5*time.Second)
	if d.Running() {
		_ = d.Kill()
	}
	b, err := os.ReadFile(d.LogFile())
	if err != nil {
		return err.Error()
	}
	_, trace, _ := strings.Cut(string(b), "SIGQUIT: ")
	trace = ownFrames(trace)
	return trace[:min(len(trace), 30000)]
}

// ownFrames leaves of a trace of all goroutines the functions of this module, and their
// goroutines' states.
func ownFrames(trace string) string {
	var out strings.Builder
	for _, block := range strings.Split(trace, "\n\n") {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		var own []string
		for i, line := range lines[1:] {
			call, isOwn := strings.CutPrefix(line, "github.com/k8ns/granary/")
			if !isOwn {
				call, isOwn = line, strings.HasPrefix(line, "main.")
			}
			if !isOwn || i+2 >= len(lines) {
				continue
			}
			if end := strings.LastIndex(call, "("); end > 0 {
				call = call[:end]
			}
			place, _, _ := strings.Cut(strings.TrimSpace(lines[i+2]), " ")
			own = append(own, fmt.Sprintf("    %s %s", call, filepath.Base(place)))
		}
		if len(own) > 0 {
			fmt.Fprintf(&out, "%s\n%s\n", lines[0], strings.Join(own, "\n"))
		}
	}
	return out.String()
}

// Stop ends the daemon with SIGTERM and waits until it is gone. It is an error when
// that takes longer than the limit or the exit code is not 0.
func (d *Daemon) Stop(limit time.Duration) error {
	if err := d.signal(syscall.SIGTERM, limit); err != nil {
		return err
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("the daemon ended with %v\n%s", d.cmd.ProcessState, d.LogTail(15))
	}
	return nil
}

func (d *Daemon) signal(sig syscall.Signal, limit time.Duration) error {
	if !d.Running() {
		return errors.New("the daemon does not run")
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.ended:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("the daemon (process %d) is still there %v after %v\n%s\n%s", d.cmd.Process.Pid, limit, sig, d.waits(), d.LogTail(15))
	}
}

// Descriptors tells what the daemon has open, as the kernel names it: paths, sockets
// and the like.
func (d *Daemon) Descriptors() ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var open []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // else it is closed by now
			open = append(open, target)
		}
	}
	return open, nil
}

// waits shows where in the kernel threads of the daemon wait that no signal reaches.
func (d *Daemon) waits() string {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", d.cmd.Process.Pid)) // only a bad pattern is an error
	var out []string
	for _, task := range tasks {
		stat, _ := os.ReadFile(filepath.Join(task, "stat")) // gone is gone
		_, state, _ := strings.Cut(string(stat), ") ")
		if strings.HasPrefix(state, "D") {
			stack, _ := os.ReadFile(filepath.Join(task, "stack"))
			out = append(out, "thread "+filepath.Base(task)+" waits:\n"+string(stack))
		}
	}
	return strings.Join(out, "\n")
}

// LogTail is the end of the daemon's output.
func (d *Daemon) LogTail(lines int) string {
	b, err := os.ReadFile(d.LogFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Do runs a granary command on this daemon's store and returns what it printed.
func (d *Daemon) Do(ctx context.Context, args ...string) (string, error) {
	return Run(ctx, 0, d.CLI, append(args, "--data-dir", d.DataDir())...)
}

// JSON runs a granary command with -o json and decodes what it printed into v.
func (d *Daemon) JSON(ctx context.Context, v any, args ...string) error {
	out, err := d.Do(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("granary %s: the output is no JSON: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Stats is what we read of `granary stats -o json`, in bytes.
type Stats struct {
	Logical          int64   `json:"logical"`
	Unique           int64   `json:"unique"`
	Stored           int64   `json:"stored"`
	Reduction        float64 `json:"reduction"`
	Garbage          int64   `json:"garbage"`
	JournalUsed      int64   `json:"journalUsed"`
	JournalAllocated int64   `json:"journalAllocated"`
	Reserve          int64   `json:"reserve"`
	ChunkFiles       int     `json:"chunkFiles"`
}

// Volume is what we read of `granary volume show -o json`.
type Volume struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	Sector  int    `json:"sector"`
	Logical int64  `json:"logical"`
	Journal int64  `json:"journal"`
	Device  string `json:"device"`
	State   string `json:"state"`
	FSType  string `json:"fsType"`
	Failed  string `json:"failed"`
	// WaitingSince is when its writes began to wait for disk space; nil: they do not.
	WaitingSince *time.Time `json:"waitingSince"`
}

// Snapshot is what we read of `granary snapshot create -o json`.
type Snapshot struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Size  int64  `json:"size"`
	Ready bool   `json:"ready"`
}

// Stats asks the daemon for the store's figures.
func (d *Daemon) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	err := d.JSON(ctx, &s, "stats")
	return s, err
}

// WaitFolded waits until no more than the given bytes are left in the journals, and
// returns the figures of that moment. Nobody may write meanwhile.
func (d *Daemon) WaitFolded(ctx context.Context, atMost int64, limit time.Duration) (Stats, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		s, err := d.Stats(ctx)
		if err != nil {
			return s, err
		}
		if s.JournalUsed <= atMost {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("%d bytes of the journal are still not folded after %v", s.JournalUsed, limit)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
