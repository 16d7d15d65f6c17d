package sanity

import (
	"sync"
	"time"
)

// load is a writer that puts blobs, each synced before the next, and notes when each was
// begun and durable, so that a copy taken meanwhile can be judged.
type load struct {
	m     medium
	blobs image // what it will write, in the order of the numbers
	rest  time.Duration

	stop chan struct{}
	done chan struct{}

	mu sync.Mutex // guards the rest
	// By number; a blob that is not there was not begun, or not durable.
	begun, synced map[int]time.Time
	err           error // what ended it
}

// startLoad begins to write, with a rest before each blob.
func startLoad(m medium, blobs image, rest time.Duration) *load {
	l := &load{
		m: m, blobs: blobs, rest: rest, stop: make(chan struct{}), done: make(chan struct{}),
		begun: map[int]time.Time{}, synced: map[int]time.Time{},
	}
	go l.run()
	return l
}

func (l *load) run() {
	defer close(l.done)
	for _, n := range l.blobs.numbers() {
		select {
		case <-l.stop:
			return
		default:
		}
		time.Sleep(l.rest)
		l.mu.Lock()
		l.begun[n] = time.Now()
		l.mu.Unlock()
		err := l.m.put(n, l.blobs[n], true)
		l.mu.Lock()
		if l.err = err; err == nil {
			l.synced[n] = time.Now()
		}
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// wait waits until so many blobs are durable, or the writer has ended.
func (l *load) wait(count int) {
	for {
		l.mu.Lock()
		have := len(l.synced)
		l.mu.Unlock()
		select {
		case <-l.done:
			return
		default:
		}
		if have >= count {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// end ends the writer between two blobs, and returns what had ended it before, if that
// was an error.
func (l *load) end() error {
	close(l.stop)
	<-l.done
	return l.err
}

// between says what a copy must hold of the writer's blobs that was taken by a call
// between the two moments: what was durable before is whole, what was begun after the
// answer is not there, and the rest is loose.
func (l *load) between(call, answer time.Time) (must image, loose map[int]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	must, loose = image{}, map[int]bool{}
	for n, b := range l.blobs {
		begun, ok := l.begun[n]
		synced, done := l.synced[n]
		switch {
		case done && synced.Before(call):
			must[n] = b
		case ok && !begun.After(answer):
			loose[n] = true
		}
	}
	return must, loose
}
