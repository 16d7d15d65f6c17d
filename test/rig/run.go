package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// CommandTimeout bounds a command that has no limit of its own.
const CommandTimeout = 2 * time.Minute

// ErrHangs is a command that did not even end when it was killed: it waits inside
// the kernel for a device that does not answer.
var ErrHangs = errors.New("does not end when killed")

// CommandError is a command that ran and failed.
type CommandError struct {
	Command string
	Code    int    // exit code, -1 when a signal ended it
	Stdout  string // what it said, trimmed
	Stderr  string
}

func (e *CommandError) Error() string {
	said := e.Stderr
	if said == "" {
		said = e.Stdout
	}
	return fmt.Sprintf("%s: exit code %d: %s", e.Command, e.Code, said)
}

// Run runs a command to its end and returns its standard output, trimmed. A command
// that is still running after the limit (0 = CommandTimeout) is killed.
func Run(ctx context.Context, limit time.Duration, name string, args ...string) (string, error) {
	if limit == 0 {
		limit = CommandTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	shown := strings.Join(append([]string{name}, args...), " ")

	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		select {
		case err = <-ended:
		case <-time.After(10 * time.Second):
			return "", fmt.Errorf("%s: %w", shown, ErrHangs)
		}
	}
	out := strings.TrimSpace(stdout.String())
	if err == nil {
		return out, nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return out, fmt.Errorf("%s: %w after %v: %s", shown, context.Cause(ctx), limit, strings.TrimSpace(stderr.String()))
	}
	if ctx.Err() != nil {
		return out, fmt.Errorf("%s: %w: %s", shown, context.Cause(ctx), strings.TrimSpace(stderr.String()))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, &CommandError{shown, exit.ExitCode(), out, strings.TrimSpace(stderr.String())}
	}
	return out, fmt.Errorf("%s: %w", shown, err)
}
