// Package locktest shows that calls wait for a lock. What a call does without one the race
// detector sees only if another happens to be at the same place.
package locktest

import (
	"sync"
	"testing"
	"time"
)

// Wait holds a lock, which nobody else may have, and fails the test for each of the calls,
// by name, that ends meanwhile, or that has not ended ten seconds after the lock was let go.
func Wait(t *testing.T, lock sync.Locker, calls map[string]func()) {
	t.Helper()
	lock.Lock()
	ended := make(map[string]chan struct{})
	for what, call := range calls {
		done := make(chan struct{})
		ended[what] = done
		go func() {
			defer close(done)
			call()
		}()
	}
	time.Sleep(50 * time.Millisecond)
	for what, done := range ended {
		select {
		case <-done:
			t.Errorf("%s does not wait for who has the lock", what)
		default:
		}
	}
	lock.Unlock()
	limit := time.After(10 * time.Second)
	for what, done := range ended {
		select {
		case <-done:
		case <-limit:
			t.Fatalf("%s goes on waiting when the lock is free", what)
		}
	}
}
