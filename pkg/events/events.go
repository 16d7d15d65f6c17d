package events

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Object is what an event is about.
type Object struct {
	Kind      string // Node or PersistentVolumeClaim
	Namespace string // "" for a Node
	Name      string
	// VolumeName is the PersistentVolume that a claim must be bound to, or it is another
	// claim that has the name by now, which hears nothing; "": any.
	VolumeName string
}

// Event is a note about an object. Of the same object and reason there is one.
type Event struct {
	Object  Object
	Reason  string // a word in CamelCase
	Message string // for people; only its first KiB is posted
	Warning bool   // else all is well
}

// key is what makes two events the same.
type key struct {
	object Object
	reason string
}

const (
	maxPending = 256 // events that are not posted yet
	maxPosted  = 256 // events that are remembered, to be counted up
)

// Options are the choices of New. Component is needed.
type Options struct {
	Component string // who tells: the driver's name
	Host      string // on which node
	// Interval is how often the same event is posted at most; what comes meanwhile is
	// counted. Default one minute.
	Interval time.Duration
	// Pace is the pause between two requests. Default 200 ms.
	Pace   time.Duration
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default none
}

func (o Options) withDefaults() Options {
	if o.Interval == 0 {
		o.Interval = time.Minute
	}
	if o.Pace == 0 {
		o.Pace = 200 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Poster posts events to one API server. Its methods may be called concurrently.
type Poster struct {
	// Fixed after New.
	api  Cluster
	o    Options
	wake chan struct{} // something is to do

	failing bool // Run's: the last request failed

	mu struct {
		sync.Mutex
		pending []*pending // oldest first
		posted  map[key]posted
		dropped int // since the last that was not
	}
}

// pending is an event that is to be posted.
type pending struct {
	Event
	times int       // it happened so often since it was posted last
	noted time.Time // first
	last  time.Time
	due   time.Time
	tries int // that failed
}

func (e *pending) key() key { return key{e.Object, e.Reason} }

// posted is an event that the API server has, or refused.
type posted struct {
	name  string // "": it has none
	count int
	at    time.Time
}

// New makes a poster; Run sends what Post notes.
func New(api Cluster, o Options) *Poster {
	p := &Poster{api: api, o: o.withDefaults(), wake: make(chan struct{}, 1)}
	p.mu.posted = make(map[key]posted)
	return p
}

// Post notes an event. It never blocks, and needs nothing but memory. If too much is
// noted already, it is dropped.
func (p *Poster) Post(e Event) {
	now := p.o.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	k := key{e.Object, e.Reason}
	if old := p.noted(k); old != nil {
		old.Event, old.last = e, now
		old.times++
		return
	}
	if len(p.mu.pending) >= maxPending {
		p.mu.dropped++
		return
	}
	next := &pending{Event: e, times: 1, noted: now, last: now, due: now}
	if before, ok := p.mu.posted[k]; ok && before.at.Add(p.o.Interval).After(now) {
		next.due = before.at.Add(p.o.Interval)
	}
	p.mu.pending = append(p.mu.pending, next)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run posts until ctx ends. Call it once.
func (p *Poster) Run(ctx context.Context) {
	for {
		timer := time.NewTimer(p.step(ctx))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-p.wake:
			timer.Stop()
			if !p.pause(ctx) {
				return
			}
		}
	}
}

// pause keeps the pace; false when ctx has ended.
func (p *Poster) pause(ctx context.Context) bool {
	select {
	case <-time.After(p.o.Pace):
		return true
	case <-ctx.Done():
		return false
	}
}

// step posts the oldest event that is due, if there is one, and tells when to call again.
func (p *Poster) step(ctx context.Context) time.Duration {
	e, wait := p.take()
	if e == nil {
		return wait
	}
	ctx, cancel := context.WithTimeout(ctx, requestEnd)
	defer cancel()
	after, err := p.send(ctx, e)
	p.note(err)
	p.settle(e, after, err)
	return p.o.Pace
}

// idle is how long Run sleeps with nothing to do: Post wakes it.
const idle = time.Hour

// take removes the oldest event that is due; without one it tells when the next is.
func (p *Poster) take() (*pending, time.Duration) {
	now := p.o.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := idle
	for i, e := range p.mu.pending {
		if !e.due.After(now) {
			p.mu.pending = append(p.mu.pending[:i], p.mu.pending[i+1:]...)
			return e, 0
		}
		wait = min(wait, e.due.Sub(now))
	}
	return nil, wait
}

const (
	firstRetry = 5 * time.Second
	giveUp     = 10 * time.Minute // what happened last before that is no news
)

// settle remembers an event that was posted, and notes one anew whose request may succeed
// later. The same event that was noted meanwhile waits as long as this one would.
func (p *Poster) settle(e *pending, after posted, err error) {
	now := p.o.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	k := e.key()
	next := p.noted(k)
	if isTemporary(err) && (next != nil || now.Sub(e.last) <= giveUp) {
		if next == nil {
			next = e
			p.mu.pending = append(p.mu.pending, e)
		} else {
			next.times += e.times
			next.noted = e.noted
		}
		next.due = now.Add(firstRetry << min(e.tries, 5))
		next.tries = e.tries + 1
		return
	}
	if err != nil { // it is lost, but not tried more often for that
		after = p.mu.posted[k]
		after.at = now
	}
	p.remember(k, after)
	if next != nil {
		next.due = after.at.Add(p.o.Interval)
	}
}

// noted is the event that is to be posted, nil if there is none. Called with p.mu held.
func (p *Poster) noted(k key) *pending {
	for _, e := range p.mu.pending {
		if e.key() == k {
			return e
		}
	}
	return nil
}

// remember bounds what is remembered: the oldest is forgotten, and would be posted as a
// new one. Called with p.mu held.
func (p *Poster) remember(k key, after posted) {
	if _, known := p.mu.posted[k]; !known && len(p.mu.posted) >= maxPosted {
		var oldest key
		var at time.Time
		for other, was := range p.mu.posted {
			if at.IsZero() || was.at.Before(at) {
				oldest, at = other, was.at
			}
		}
		delete(p.mu.posted, oldest)
	}
	p.mu.posted[k] = after
}

// note logs the first error of a row, its end, and events that were dropped.
func (p *Poster) note(err error) {
	p.mu.Lock()
	dropped := p.mu.dropped
	p.mu.dropped = 0
	p.mu.Unlock()
	if dropped > 0 {
		p.o.Logger.Warn("too many events: some were not posted", "dropped", dropped)
	}
	if failing := err != nil; failing != p.failing {
		p.failing = failing
		if failing {
			p.o.Logger.Warn("an event could not be posted to Kubernetes; further errors are not logged", "err", err)
		} else {
			p.o.Logger.Info("events are posted to Kubernetes again")
		}
	}
}

// send posts an event as a new object, or counts up the one that is there.
func (p *Poster) send(ctx context.Context, e *pending) (posted, error) {
	p.mu.Lock()
	before := p.mu.posted[e.key()]
	p.mu.Unlock()
	if before.name != "" {
		after := posted{before.name, before.count + e.times, p.o.Now()}
		err := p.api.countUp(ctx, e, after)
		if !isGone(err) {
			return after, err
		}
	}
	uid, err := p.api.uidOf(ctx, e.Object)
	if err != nil {
		return posted{}, err
	}
	after := posted{eventName(e.Object.Name, p.o.Now()), e.times, p.o.Now()}
	return after, p.api.create(ctx, p.o, e, uid, after)
}
