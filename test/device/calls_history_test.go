package device

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
)

// call is one CSI call and its answer, or a kill of the daemon.
type call struct {
	method     string
	begin, end int64 // stamps; no two are the same
	code       codes.Code
	message    string
	lost       bool // the daemon was killed under it: it may have taken effect or not

	id     string // what the call is about; of a create, what was answered
	name   string // of a create: the name asked for
	source string // of a create: the source asked for
	asked  string // of a create: all that was asked for, if what suits it once always will
	path   string // staging or target path
	detail string // what makes it contradict another call that is like it otherwise

	// What the answer tells: these were there at some moment of the call, these were
	// not, and a complete list leaves nothing out that was there all the time.
	seen     map[string]sight
	gone     []string
	complete byte // 'v' or 's': a list of all volumes or snapshots; 0: not
}

// sight is how an answer describes a volume or snapshot.
type sight struct {
	size      int64 // 0: not told
	tells     bool  // the answer tells whether it is published
	published bool
}

// killed is the method of a kill: it begins before the signal and ends when the next
// daemon answers.
const killed = "kill"

func (c *call) is(methods ...string) bool { return slices.Contains(methods, c.method) }
func (c *call) ok() bool                  { return c.code == codes.OK && !c.lost }

// effective tells whether the call did what it is for, or may have done so.
func (c *call) effective() bool { return c.lost || c.code == codes.OK }

// mayChange tells whether the call may have changed anything, if only for a while.
// ABORTED says that it did not begin.
func (c *call) mayChange() bool { return c.lost || c.code != codes.Aborted }

func (c *call) String() string {
	s := fmt.Sprintf("[%d,%d] %s", c.begin, c.end, c.method)
	for _, part := range []string{c.name, c.id, c.source, c.path, c.detail} {
		if part != "" {
			s += " " + part
		}
	}
	if c.lost {
		return s + ": lost"
	}
	return fmt.Sprintf("%s: %v %.200s", s, c.code, c.message)
}

// see notes that an answer was about something that is there.
func (c *call) see(id string, s sight) {
	if c.seen == nil {
		c.seen = make(map[string]sight)
	}
	c.seen[id] = s
}

// conclude works out what a code tells about what is there.
func (c *call) conclude() {
	about := c.id
	if c.name != "" {
		about = c.source
	}
	switch {
	case c.lost || about == "":
	case c.code == codes.OK && c.is("DeleteVolume", "DeleteSnapshot"):
		c.gone = append(c.gone, about)
	// These may be OK behind a volume that was deleted.
	case c.code == codes.OK && c.is("ControllerUnpublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"):
	case c.name != "" && c.code != codes.NotFound:
	case c.code == codes.OK && c.seen == nil, c.is("DeleteVolume") && c.code == codes.FailedPrecondition:
		c.see(about, sight{})
	case c.code == codes.NotFound && !c.is("NodeGetVolumeStats"): // of stats it may be the path
		c.gone = append(c.gone, about)
	}
}

// history is what many callers asked at once and what they were told. Calls overlap:
// nobody knows in which order they took effect, only that each did so between its two
// stamps, once. check finds answers that no order explains.
type history struct {
	calls      []*call
	judged     map[string]int // by rule: how many answers it was applied to
	violations []string
}

// life is what the history tells of an ID. It is there from some moment until bornBy
// or before, to some moment at aliveAt or later, and has one life.
type life struct {
	id, name        string
	bornBy, aliveAt int64
	calls           []*call // those that tell something of it or may change it, by begin
	makers          []*call // creates that may have made it
	ends            []*call // deletes that may have ended it
}

// check tells what of the history cannot have been.
func (h *history) check() []string {
	h.judged = make(map[string]int)
	slices.SortFunc(h.calls, func(a, b *call) int { return int(a.begin - b.begin) })
	lives := h.lives()
	for _, l := range lives {
		h.checkOnce(l)
		h.checkCauses(l)
		h.checkSizes(l)
		for _, r := range rules {
			h.checkRule(l, r)
		}
	}
	h.checkNames(lives)
	h.checkTaken(lives)
	return h.violations
}

func (h *history) violation(format string, args ...any) {
	h.violations = append(h.violations, fmt.Sprintf(format, args...))
}

// lives collects what is known of each ID that was ever seen.
func (h *history) lives() []*life {
	byID := make(map[string]*life)
	var all []*life
	for _, c := range h.calls {
		for id := range c.seen {
			if byID[id] == nil {
				byID[id] = &life{id: id, bornBy: math.MaxInt64}
				all = append(all, byID[id])
			}
			l := byID[id]
			l.bornBy, l.aliveAt = min(l.bornBy, c.end), max(l.aliveAt, c.begin)
			if c.name == "" {
				continue
			}
			if l.name != "" && l.name != c.name {
				h.violation("%s has two names: %s and %s", id, l.name, c)
			}
			l.name = c.name
		}
	}
	for _, l := range all {
		for _, c := range h.calls {
			l.add(c)
		}
	}
	return all
}

// add sorts a call into what concerns this ID.
func (l *life) add(c *call) {
	there, gone := l.says(c)
	if there || gone || c.id == l.id || c.is(killed) {
		l.calls = append(l.calls, c)
	}
	switch {
	case c.is(l.method("Create")) && (c.id == l.id || c.lost && (l.name == "" || c.name == l.name)):
		l.makers = append(l.makers, c)
	case c.is(l.method("Delete")) && c.id == l.id && c.effective():
		l.ends = append(l.ends, c)
	}
}

// method is the name of a call for this kind of thing.
func (l *life) method(verb string) string {
	if kindOf(l.id) == 's' {
		return verb + "Snapshot"
	}
	return verb + "Volume"
}

// kindOf tells a volume's handle from a snapshot's.
func kindOf(id string) byte {
	if strings.Contains(id, ".s-") {
		return 's'
	}
	return 'v'
}

// says tells what an answer says of this ID: that it was there at some moment of the
// call, that it was not at some moment, or neither.
func (l *life) says(c *call) (there, gone bool) {
	if _, ok := c.seen[l.id]; ok {
		return true, false
	}
	return false, slices.Contains(c.gone, l.id) || c.complete == kindOf(l.id)
}

// checkOnce: what is there, then not, never comes back.
func (h *history) checkOnce(l *life) {
	for _, c := range l.calls {
		if _, gone := l.says(c); !gone || c.begin < l.bornBy {
			continue
		}
		h.judged["an ID lives once"]++
		if c.end < l.aliveAt {
			h.violation("%s was seen before and after an answer that it is not there: %s", l.id, c)
		}
	}
}

// checkCauses: nothing comes into being without a create, nothing goes without a delete.
func (h *history) checkCauses(l *life) {
	before := func(t int64) func(*call) bool { return func(c *call) bool { return c.begin < t } }
	if !slices.ContainsFunc(l.makers, before(l.bornBy)) {
		h.violation("%s was seen by %d, and nobody had made it", l.id, l.bornBy)
	}
	for _, c := range l.calls {
		if _, gone := l.says(c); !gone || c.begin < l.bornBy {
			continue
		}
		h.judged["what is gone was deleted"]++
		if !slices.ContainsFunc(l.ends, before(c.end)) {
			h.violation("%s is gone, and nobody had deleted it: %s", l.id, c)
		}
	}
}

// checkSizes: a size that was answered is not less than one that was known before.
func (h *history) checkSizes(l *life) {
	var told []*call
	for _, c := range l.calls {
		if c.seen[l.id].size > 0 {
			told = append(told, c)
		}
	}
	byEnd := slices.SortedFunc(slices.Values(told), func(a, b *call) int { return int(a.end - b.end) })
	known, next := (*call)(nil), 0
	for _, c := range told {
		for ; byEnd[next].end < c.begin; next++ {
			if known == nil || byEnd[next].seen[l.id].size > known.seen[l.id].size {
				known = byEnd[next]
			}
		}
		if known == nil {
			continue
		}
		h.judged["sizes never shrink"]++
		if was, is := known.seen[l.id].size, c.seen[l.id].size; is < was {
			h.violation("%s shrank from %d (%s) to %d (%s)", l.id, was, known, is, c)
		}
	}
}

// checkNames: a name is one thing's at a time. Lives of one name come one after the
// other; a create that answers another ID says that the one before has gone.
func (h *history) checkNames(lives []*life) {
	byName := make(map[string][]*life)
	for _, l := range lives {
		if l.name != "" {
			byName[l.method("")+" "+l.name] = append(byName[l.method("")+" "+l.name], l)
		}
	}
	for name, of := range byName {
		slices.SortFunc(of, func(a, b *life) int { return int(a.bornBy - b.bornBy) })
		for i := range of[1:] {
			h.judged["a name has one ID at a time"]++
			if x, y := of[i], of[i+1]; x.aliveAt > y.bornBy {
				h.violation("%s is %s until %d at least, but %s from %d at most", name, x.id, x.aliveAt, y.id, y.bornBy)
			}
		}
	}
}

// checkTaken: a create is refused as contradicting only if there was something to
// contradict, and never one like which another was answered with that very thing.
func (h *history) checkTaken(lives []*life) {
	for _, c := range h.calls {
		if c.code != codes.AlreadyExists || !c.is("CreateVolume", "CreateSnapshot") {
			continue
		}
		h.judged["a name that is taken is somebody's"]++
		contradicted, suits := false, (*call)(nil)
		for _, l := range lives {
			if !l.mayHave(c) {
				continue
			}
			if m := l.madeLike(c); m != nil {
				suits = m
			} else {
				contradicted = true
			}
		}
		switch {
		case contradicted:
		case suits != nil:
			h.violation("the same was asked for twice:\n  %s\n  %s", suits, c)
		default:
			h.violation("nothing of that name was there: %s", c)
		}
	}
}

// madeLike is a create before c that asked for the same and was answered with this; nil
// for none. What suited once does so for ever.
func (l *life) madeLike(c *call) *call {
	for _, m := range l.makers {
		if m.ok() && m.end < c.begin && m.name == c.name && m.asked == c.asked && c.asked != "" {
			return m
		}
	}
	return nil
}

// mayHave tells whether this may have had the name of a create while that ran.
func (l *life) mayHave(c *call) bool {
	if !c.is(l.method("Create")) || l.name != "" && l.name != c.name {
		return false
	}
	for _, e := range l.ends {
		if e.ok() && e.end < c.begin {
			return false
		}
	}
	return slices.ContainsFunc(l.makers, func(m *call) bool { return m.begin < c.end })
}
