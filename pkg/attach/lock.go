package attach

import (
	"context"
	"sync"
)

// KeyedLock is a set of locks by name. The zero value is ready. Safe for concurrent use.
type KeyedLock struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the holder lets go
}

// Try takes the lock of a key, unless somebody has it.
func (k *KeyedLock) Try(key string) bool {
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

// Wait takes the lock of a key when it is free; the context's error if it ends first.
func (k *KeyedLock) Wait(ctx context.Context, key string) error {
	for !k.Try(key) {
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

// Release lets the next one in.
func (k *KeyedLock) Release(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.held[key])
	delete(k.held, key)
}
