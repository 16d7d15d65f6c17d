package rig

import (
	"errors"
	"fmt"
	"sync"
)

// Cleanup is a stack of things to undo. Undoing works once for each, from the
// newest to the oldest, and goes on after an error.
type Cleanup struct {
	mu    sync.Mutex
	steps []*undo
}

type undo struct {
	what string
	do   func() error
}

// Add notes something to undo. The function it returns takes the note back, for a
// caller that has undone it in the ordinary way.
func (c *Cleanup) Add(what string, do func() error) (forget func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := &undo{what, do}
	c.steps = append(c.steps, u)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, s := range c.steps {
			if s == u {
				c.steps = append(c.steps[:i], c.steps[i+1:]...)
				return
			}
		}
	}
}

// Run undoes everything that is noted.
func (c *Cleanup) Run() error {
	var errs []error
	for {
		c.mu.Lock()
		if len(c.steps) == 0 {
			c.mu.Unlock()
			return errors.Join(errs...)
		}
		u := c.steps[len(c.steps)-1]
		c.steps = c.steps[:len(c.steps)-1]
		c.mu.Unlock()
		if err := u.do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.what, err))
		}
	}
}
