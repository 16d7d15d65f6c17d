package device

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// TestJudge puts the judge to the test, with histories that are wrong in one way each
// and with ones that look so and are not.
func TestJudge(t *testing.T) {
	const v, other = "store.v-1.rig", "store.v-2.rig"
	// at makes a call of a method between two stamps.
	at := func(begin, end int64, method string) *call {
		return &call{method: method, begin: begin, end: end, id: v}
	}
	created := func(begin, end int64, id string, size int64) *call {
		c := &call{method: "CreateVolume", name: "name", begin: begin, end: end, id: id, asked: "this"}
		c.see(id, sight{size: size})
		return c
	}
	answered := func(c *call, code codes.Code) *call {
		c.code = code
		c.conclude()
		return c
	}
	refused := func(begin, end int64, asked string) *call {
		return &call{method: "CreateVolume", name: "name", begin: begin, end: end, code: codes.AlreadyExists, asked: asked}
	}
	lost := func(c *call) *call { c.lost = true; return c }
	found := func(begin, end, size int64) *call {
		c := at(begin, end, "ControllerGetVolume")
		c.see(v, sight{size: size, tells: true, published: true})
		return c
	}
	on := func(c *call, path, detail string) *call { c.path, c.detail = path, detail; return c }
	ok := func(begin, end int64, method string) *call { return answered(at(begin, end, method), codes.OK) }
	kill := &call{method: killed, begin: 30, end: 40}

	for _, c := range []struct {
		name  string
		calls []*call
		want  string // part of the violation; "" for none
	}{
		{"two at once", []*call{created(1, 4, v, 1), created(2, 5, v, 1)}, ""},
		{"two IDs for one name", []*call{created(1, 4, v, 1), created(2, 5, other, 1), found(6, 7, 1)}, "Volume name is"},
		{"a new ID after a deletion", []*call{created(1, 2, v, 1), ok(3, 4, "DeleteVolume"), created(5, 6, other, 1)}, ""},
		{"a new ID after a deletion that was lost", []*call{created(1, 2, v, 1), lost(at(3, 35, "DeleteVolume")), kill, created(50, 60, other, 1)}, ""},
		{"found during its deletion", []*call{created(1, 2, v, 1), ok(3, 8, "DeleteVolume"), found(4, 6, 1)}, ""},
		{"found after its deletion", []*call{created(1, 2, v, 1), ok(3, 4, "DeleteVolume"), found(5, 6, 1)}, "seen before and after"},
		{"gone without a deletion", []*call{created(1, 2, v, 1), answered(at(3, 4, "ControllerGetVolume"), codes.NotFound)}, "nobody had deleted it"},
		{"not listed without a deletion", []*call{created(1, 2, v, 1), {method: "ListVolumes", begin: 3, end: 4, complete: 'v'}}, "nobody had deleted it"},
		{"never made", []*call{found(3, 4, 1)}, "nobody had made it"},
		{"made by a call that was lost", []*call{lost(&call{method: "CreateVolume", name: "name", begin: 1, end: 35}), kill, found(50, 60, 1)}, ""},
		{"it shrank", []*call{created(1, 2, v, 9), found(3, 4, 8)}, "shrank"},
		{"it grew meanwhile", []*call{created(1, 4, v, 8), found(2, 3, 9)}, ""},
		{"taken by nobody", []*call{refused(1, 2, "this")}, "nothing of that name"},
		{"taken by another", []*call{created(1, 2, v, 1), refused(3, 4, "that")}, ""},
		{"taken by the same", []*call{created(1, 2, v, 1), refused(3, 4, "this")}, "asked for twice"},
		{"deleted while staged", []*call{created(1, 2, v, 1), ok(3, 4, "NodeStageVolume"), ok(5, 6, "DeleteVolume")}, "a staged volume is not deleted"},
		{"deleted while perhaps unstaged", []*call{created(1, 2, v, 1), ok(3, 4, "NodeStageVolume"), lost(at(5, 35, "NodeUnstageVolume")), kill, ok(50, 60, "DeleteVolume")}, ""},
		{"unstaging was ABORTED", []*call{created(1, 2, v, 1), ok(3, 4, "NodeStageVolume"), answered(at(5, 6, "NodeUnstageVolume"), codes.Aborted), ok(7, 8, "DeleteVolume")}, "a staged volume is not deleted"},
		{"in use though a stage failed", []*call{created(1, 2, v, 1), ok(3, 4, "NodeUnstageVolume"), answered(at(5, 6, "NodeStageVolume"), codes.FailedPrecondition), answered(at(7, 8, "DeleteVolume"), codes.FailedPrecondition)}, "an unstaged volume is not in use"},
		{"in use while a stage fails", []*call{created(1, 2, v, 1), ok(3, 4, "NodeUnstageVolume"), answered(at(5, 8, "NodeStageVolume"), codes.FailedPrecondition), answered(at(6, 7, "DeleteVolume"), codes.FailedPrecondition)}, ""},
		{"used after a kill", []*call{created(1, 2, v, 1), ok(3, 4, "NodeStageVolume"), kill, on(ok(50, 60, "NodePublishVolume"), "a", "")}, "an unstaged volume is not used"},
		{"unstaged while used", []*call{created(1, 2, v, 1), on(ok(3, 4, "NodePublishVolume"), "a", ""), on(ok(5, 6, "NodeUnpublishVolume"), "b", ""), ok(7, 8, "NodeUnstageVolume")}, "a volume that is used is not unstaged"},
		{"used in two ways", []*call{created(1, 2, v, 1), on(ok(3, 4, "NodePublishVolume"), "a", "x"), on(ok(5, 6, "NodePublishVolume"), "a", "y")}, "not used in another way"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := history{calls: c.calls}
			switch got := strings.Join(h.check(), "\n"); {
			case c.want == "" && got != "":
				t.Errorf("nothing is wrong with it, but: %s", got)
			case !strings.Contains(got, c.want):
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
