package device

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// rule is about a fact that an answer established and that holds until something may
// have undone it. An answer in between that denies the fact is wrong, however the calls
// overlapped.
type rule struct {
	what   string
	fact   func(f *call) bool
	undone func(u, f *call) bool // u may have undone the fact that f established
	asked  func(c, f *call) bool // the answer to c depends on that fact
	denied func(c *call, id string) bool
}

// checkRule holds each answer against the newest fact before it.
func (h *history) checkRule(l *life, r rule) {
	var facts []*call // that began before c
	for _, c := range l.calls {
		if f := newestFact(facts, c, r); f != nil && !undone(l.calls, f, c, r) {
			h.judged[r.what]++
			if r.denied(c, l.id) {
				h.violation("%s:\n  %s\n  %s", r.what, f, c)
			}
		}
		if r.fact(c) {
			facts = append(facts, c)
		}
	}
}

// newestFact is the fact that c depends on with the least time in between.
func newestFact(facts []*call, c *call, r rule) *call {
	for _, f := range slices.Backward(facts) {
		if f.end < c.begin && r.asked(c, f) {
			return f
		}
	}
	return nil
}

// undone tells whether any call that overlaps the time from f to c may have undone f. A
// stage that failed leaves everything as it was, so it counts while it runs.
func undone(calls []*call, f, c *call, r rule) bool {
	for _, u := range calls {
		if u.begin > c.end {
			return false
		}
		since := f.begin
		if u.is("NodeStageVolume") && !u.effective() {
			since = c.begin
		}
		if u != f && u != c && u.end > since && u.mayChange() && r.undone(u, f) {
			return true
		}
	}
	return false
}

// okOf is a fact that a method's OK establishes.
func okOf(methods ...string) func(*call) bool {
	return func(f *call) bool { return f.is(methods...) && f.ok() }
}

// by is undone by any of the methods, whatever path they are about.
func by(methods ...string) func(u, f *call) bool {
	return func(u, _ *call) bool { return u.is(methods...) }
}

// byOfPath is undone by the methods at the fact's own path, and by a kill.
func byOfPath(method string) func(u, f *call) bool {
	return func(u, f *call) bool { return u.is(killed) || u.is(method) && u.path == f.path }
}

func asks(methods ...string) func(c, f *call) bool {
	return func(c, _ *call) bool { return c.is(methods...) && !c.lost }
}

// asksOfPath asks a method at the fact's own path.
func asksOfPath(method string) func(c, f *call) bool {
	return func(c, f *call) bool { return c.is(method) && !c.lost && c.path == f.path }
}

// contradicts asks the fact's method again at the same path in another way.
func contradicts(c, f *call) bool {
	return c.method == f.method && !c.lost && c.path == f.path && c.detail != f.detail
}

func answersOK(c *call, _ string) bool { return c.code == codes.OK }

func answersTaken(c *call, _ string) bool { return c.code == codes.AlreadyExists }

func answersInUse(c *call, _ string) bool { return c.code == codes.FailedPrecondition }

func answersNotFound(c *call, _ string) bool { return c.code == codes.NotFound }

// oneTarget is the detail of a NodePublishVolume that allows no other target beside.
var oneTarget = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER.String()

// rules are what docs/csi.md promises of calls that follow each other. A call that was
// ABORTED, and any that only looks, undoes nothing. Whatever was attached is not
// after a kill; a publication stays on record.
var rules = []rule{
	{
		"a published volume is listed at its node",
		okOf("ControllerPublishVolume"), by("ControllerUnpublishVolume"),
		func(c, f *call) bool { return c.seen[f.id].tells },
		func(c *call, id string) bool { return !c.seen[id].published },
	},
	{
		"a published volume is not published in another way",
		okOf("ControllerPublishVolume"), by("ControllerUnpublishVolume", "NodeUnstageVolume"),
		contradicts, answersOK,
	},
	{
		"a published volume is not deleted",
		okOf("ControllerPublishVolume"), by("ControllerUnpublishVolume", "NodeUnstageVolume"),
		asks("DeleteVolume"), answersOK,
	},
	{
		"a staged volume is not deleted",
		okOf("NodeStageVolume"), by("NodeUnstageVolume", killed),
		asks("DeleteVolume"), answersOK,
	},
	{
		"a staged volume is not staged in another way",
		okOf("NodeStageVolume"), by("NodeUnstageVolume", killed),
		contradicts, answersOK,
	},
	{
		"a staged volume is there",
		okOf("NodeStageVolume"), by("NodeUnstageVolume", killed),
		asksOfPath("NodeGetVolumeStats"), answersNotFound,
	},
	{
		"an unstaged volume is not used",
		okOf("NodeUnstageVolume", killed), by("NodeStageVolume"),
		asks("NodePublishVolume", "NodeExpandVolume", "NodeGetVolumeStats"), answersOK,
	},
	{
		"a volume that is used is not unstaged",
		okOf("NodePublishVolume"), byOfPath("NodeUnpublishVolume"),
		asks("NodeUnstageVolume"), answersOK,
	},
	{
		"a used target is there",
		okOf("NodePublishVolume"), byOfPath("NodeUnpublishVolume"),
		asksOfPath("NodeGetVolumeStats"), answersNotFound,
	},
	{
		"a used target is not used in another way",
		okOf("NodePublishVolume"), byOfPath("NodeUnpublishVolume"),
		contradicts, answersOK,
	},
	{
		"one target at a time, unless all allow more",
		func(f *call) bool { return f.is("NodePublishVolume") && f.ok() && f.detail == oneTarget },
		byOfPath("NodeUnpublishVolume"),
		func(c, f *call) bool { return c.is("NodePublishVolume") && !c.lost && c.path != f.path },
		answersOK,
	},
	{
		"an unpublished volume can be published in any way",
		okOf("ControllerUnpublishVolume"), by("ControllerPublishVolume"),
		asks("ControllerPublishVolume"), answersTaken,
	},
	{
		"an unstaged volume can be staged in any way",
		okOf("NodeUnstageVolume", killed), by("NodeStageVolume"),
		asks("NodeStageVolume"), answersTaken,
	},
	{
		"an unstaged volume is not in use",
		okOf("NodeUnstageVolume"), by("NodeStageVolume", "ControllerPublishVolume"),
		asks("DeleteVolume"), answersInUse,
	},
	{
		"an unpublished target can be used in any way",
		okOf("NodeUnpublishVolume"), byOfPath("NodePublishVolume"),
		asksOfPath("NodePublishVolume"), answersTaken,
	},
	{
		"after a kill every target can be used in any way",
		okOf(killed), by("NodePublishVolume"),
		asks("NodePublishVolume"), answersTaken,
	},
	{
		"an unpublished target is empty",
		okOf("NodeUnpublishVolume"), byOfPath("NodePublishVolume"),
		asksOfPath("NodeGetVolumeStats"), answersOK,
	},
}
