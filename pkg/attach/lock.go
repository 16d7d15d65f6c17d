package attach

import (
	"context"
	"sync"
)

// keyedLock is a set of locks by name. The zero value is ready.
type keyedLock struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the holder lets go
}

// try takes the lock of a key, unless somebody has it.
func (k *keyedLock) try(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[key] != nil {
		return false
	}
	if k.held == nil {
		k.held = make(map[string]chan struct{})
	}
	k.held[key] = make(chan struct{})
	return true
}

// wait takes the lock of a key when it is free; the context's error if it ends first.
func (k *keyedLock) wait(ctx context.Context, key string) error {
	for !k.try(key) {
		k.mu.Lock()
		released := k.held[key]
		k.mu.Unlock()
		if released == nil {
			continue
		}
		select {
		case <-released:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (k *keyedLock) release(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.held[key])
	delete(k.held, key)
}
