package driver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/k8ns/granary/pkg/attach/attachtest"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/leaktest"
)

// arena is a world all of whose state can be seen, and whose every path is below a
// directory of its own: in is where a CO would make its directories, out is what nobody
// gave to the driver.
type arena struct {
	*world
	in, out  string
	log      *lockedBuffer
	subjects []subject
	snapshot string
	precious map[string]string     // what was there before the driver
	named    int                   // names in use
	spoilers map[string][]mutation // by method
	failing  string                // the host's method that fails, "" for none
	last     map[string]string     // the state after the last call
}

// subject is a volume with what a CO would say of it.
type subject struct {
	handle  string
	staging string
	targets []string
	c       *csi.VolumeCapability
}

// canary is in every secret, and in no log.
const canary = "canary-77d0"

func newArena(t *testing.T) *arena {
	t.Helper()
	leaktest.Check(t)
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a := &arena{world: newWorld(t), in: filepath.Join(root, "in"), out: filepath.Join(root, "out"), log: new(lockedBuffer)}
	a.driver.store = namedStore{a.engine}
	a.driver.log = slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.layOut()
	a.precious = a.state()
	delete(a.precious, filepath.Join(a.in, "empty")) // an empty directory may be a target
	t.Chdir(filepath.Join(a.in, "cwd"))              // where relative paths would lead
	a.populate()
	a.log.take()
	a.spoilers = make(map[string][]mutation)
	a.last = a.state()
	t.Cleanup(a.close)
	return a
}

// close ends the daemon and the servers of its devices, each of which holds a thread.
func (a *arena) close() {
	a.halt()
	for _, device := range a.host.Attached() {
		a.must(a.host.Kill(device))
	}
}

// layOut makes what hostile paths name.
func (a *arena) layOut() {
	for _, dir := range []string{"in/cwd", "in/full/below", "in/empty", "out/canary", "out/empty"} {
		a.must(os.MkdirAll(filepath.Join(a.out, "..", dir), 0o750))
	}
	for _, file := range []string{"in/file", "in/full/below/file", "out/file", "out/canary/file"} {
		a.must(os.WriteFile(filepath.Join(a.out, "..", file), []byte("precious"), 0o640))
	}
	a.must(os.WriteFile(filepath.Join(a.out, "nothing"), nil, 0o640))
	for name, to := range map[string]string{"dir": "../out/empty", "filelink": "../out/nothing", "full-link": "../out/canary", "dead": "nowhere", "round": "round"} {
		a.must(os.Symlink(to, filepath.Join(a.in, name)))
	}
}

// populate makes volumes in all the conditions that calls find them in.
func (a *arena) populate() {
	const writer, reader = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	a.subjects = append(a.subjects, a.subject("fresh", withMode(mountCap(""), writer)))
	used := a.subject("used", withMode(mountCap("ext4"), writer))
	a.subjects = append(a.subjects, used, a.subject("block", withMode(blockCap(), writer)))
	a.occupy(used)
	a.snapshot = a.world.snapshot(used.handle, "snap")
	a.subjects = append(a.subjects, a.subject("copy", withMode(mountCap(""), reader), fromSnapshot(a.snapshot)))
	for _, s := range a.subjects[2:] {
		a.occupy(s)
	}
	_, err := a.controllerPublish(used.handle, node, used.c, false)
	a.must(err)
}

func (a *arena) subject(name string, c *csi.VolumeCapability, change ...func(*csi.CreateVolumeRequest)) subject {
	path := func(s string) string { return filepath.Join(a.in, name+"-"+s) }
	return subject{a.create(name, change...).VolumeId, path("staging"), []string{path("target"), path("second")}, c}
}

// occupy stages and publishes a subject.
func (a *arena) occupy(s subject) {
	p := paths{s.staging, s.targets[0]}
	a.must(a.stage(s.handle, p, s.c))
	a.must(a.publish(s.handle, p, s.c))
}

// namedStore is an engine in memory that takes the names that the real one takes;
// TestNames looks that it does.
type namedStore struct{ *attachtest.Engine }

func checkTestName(name string) error {
	control := func(r rune) bool { return r < ' ' || r == 0x7f || r == '/' || r == '\uFFFD' }
	id := (strings.HasPrefix(name, "v-") || strings.HasPrefix(name, "s-")) && len(name) == 34
	if name == "" || len(name) > blockstore.MaxNameBytes || strings.ContainsFunc(name, control) || id {
		return fmt.Errorf("a bad name: %w", blockstore.ErrInvalid)
	}
	return nil
}

func (s namedStore) CreateVolume(spec blockstore.VolumeSpec) (blockstore.VolumeInfo, error) {
	if err := checkTestName(spec.Name); err != nil {
		return blockstore.VolumeInfo{}, err
	}
	return s.Engine.CreateVolume(spec)
}

func (s namedStore) CreateSnapshot(ctx context.Context, volume, name string, labels map[string]string) (blockstore.SnapshotInfo, error) {
	if err := checkTestName(name); err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	return s.Engine.CreateSnapshot(ctx, volume, name, labels)
}

// rpc is one method of a service.
type rpc struct {
	path, name string
	in, out    protoreflect.MessageDescriptor
}

// rpcs are the methods of the services that the driver registers.
func rpcs() []rpc {
	var all []rpc
	services := csi.File_csi_proto.Services()
	for _, name := range []protoreflect.Name{"Identity", "Controller", "Node"} {
		service := services.ByName(name)
		for i := range service.Methods().Len() {
			m := service.Methods().Get(i)
			all = append(all, rpc{fmt.Sprintf("/%s/%s", service.FullName(), m.Name()), string(m.Name()), m.Input(), m.Output()})
		}
	}
	return all
}

// errorCodes are what the spec and docs/csi.md let each method answer, beside OK and
// INVALID_ARGUMENT. Nothing else runs meanwhile, so ABORTED is about page tokens alone.
var errorCodes = map[string][]codes.Code{
	"CreateVolume":               {codes.NotFound, codes.AlreadyExists, codes.ResourceExhausted, codes.OutOfRange},
	"DeleteVolume":               {codes.FailedPrecondition},
	"ControllerPublishVolume":    {codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.ResourceExhausted},
	"ControllerUnpublishVolume":  {},
	"ValidateVolumeCapabilities": {codes.NotFound},
	"ListVolumes":                {codes.Aborted},
	"GetCapacity":                {},
	"CreateSnapshot":             {codes.NotFound, codes.AlreadyExists},
	"DeleteSnapshot":             {codes.FailedPrecondition},
	"ListSnapshots":              {codes.Aborted},
	"GetSnapshot":                {codes.NotFound},
	"ControllerExpandVolume":     {codes.NotFound, codes.FailedPrecondition, codes.OutOfRange},
	"ControllerGetVolume":        {codes.NotFound},
	// A filesystem that does not fit is OUT_OF_RANGE here too.
	"NodeStageVolume":            {codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.OutOfRange},
	"NodeUnstageVolume":          {codes.NotFound, codes.FailedPrecondition},
	"NodePublishVolume":          {codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition},
	"NodeUnpublishVolume":        {codes.NotFound, codes.FailedPrecondition},
	"NodeGetVolumeStats":         {codes.NotFound},
	"NodeExpandVolume":           {codes.NotFound, codes.FailedPrecondition, codes.OutOfRange},
	"GetPluginInfo":              {},
	"GetPluginCapabilities":      {},
	"Probe":                      {},
	"ControllerGetCapabilities":  {},
	"NodeGetCapabilities":        {},
	"NodeGetInfo":                {},
	"ControllerModifyVolume":     {codes.Unimplemented},
	"ControllerGetVolumeHealth":  {codes.Unimplemented},
	"ControllerListVolumeHealth": {codes.Unimplemented},
	"NodeGetVolumeHealth":        {codes.Unimplemented},
	"NodeGetStorageHealth":       {codes.Unimplemented},
}

// Limits of what a call may say: an answer may repeat the request and tell of the few
// volumes there are, an error is for people, a log line for a disk.
const (
	maxAnswer  = 64 << 10
	maxMessage = 8 << 10
	maxLine    = 64 << 10
)

// state is everything that a call can change, by name: the engine's, the host's and
// each file below the arena's root.
func (a *arena) state() map[string]string {
	s := make(map[string]string)
	if a.failing == "Mounts" {
		a.host.Host.Fail("Mounts", nil)
		defer a.host.Host.Fail("Mounts", errTold)
	}
	mounts, err := a.host.Mounts()
	a.must(err)
	for name, v := range map[string]any{
		"volumes": a.engine.Volumes(), "snapshots": a.engine.Snapshots(""), "publications": a.engine.Publications(),
		"attachments": a.engine.Attachments(), "attached": a.attached.List(), "loops": a.host.Attached(), "mounts": mounts,
	} {
		text, err := json.Marshal(v)
		a.must(err)
		s[name] = string(text)
	}
	a.must(filepath.WalkDir(filepath.Dir(a.in), func(path string, e os.DirEntry, err error) error {
		if err == nil {
			s[path], err = describe(path, e)
		}
		return err
	}))
	return s
}

// describe is what a file is: its mode and what it holds.
func describe(path string, e os.DirEntry) (string, error) {
	info, err := e.Info()
	if err != nil {
		return "", err
	}
	text := info.Mode().String()
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		to, err := os.Readlink(path)
		return text + " " + to, err
	case info.Mode().IsRegular():
		data, err := os.ReadFile(path)
		return text + " " + string(data), err
	}
	return text, nil
}

// changes names what is not the same in two states.
func changes(before, after map[string]string) []string {
	var names []string
	for name := range before {
		if after[name] != before[name] {
			names = append(names, name)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (a *arena) invoke(m rpc, req proto.Message) (proto.Message, error) {
	resp := csiMessage(a.t, string(m.out.FullName()))
	return resp, a.conn.Invoke(context.Background(), m.path, req, resp)
}

// check makes a call and looks at everything that holds for any call; it tells whether
// the call changed something.
func (a *arena) check(m rpc, req proto.Message) bool {
	a.t.Helper()
	before := a.last
	resp, err := a.invoke(m, req)
	after := a.state()
	a.last = after
	complain := func(format string, args ...any) {
		a.t.Helper()
		a.t.Errorf("%s {%s}\nanswers %.300v:\n"+format, append([]any{m.name, excerpt(req), err}, args...)...)
	}
	changed := changes(before, after)
	if why := unbearable(m, req.ProtoReflect()); err == nil && why != "" {
		complain("it should be refused: %s", why)
	}
	a.checkCode(m, err, complain)
	a.checkPlaces(req, changed, complain)
	a.checkTexts(req, resp, err, complain)
	switch {
	case err != nil && a.failing != "":
		a.checkUndone(m, before, after, complain)
	case err != nil && len(changed) > 0:
		complain("an error has changed %.300q", changed)
	case err == nil && a.failing == "":
		a.checkAgain(m, req, resp, after, complain)
	}
	return len(changed) > 0
}

type complaint func(format string, args ...any)

func (a *arena) checkCode(m rpc, err error, complain complaint) {
	code := status.Code(err)
	allowed, known := errorCodes[m.name]
	switch {
	case !known:
		complain("no codes are known for this method")
	case code == codes.OK || code == codes.InvalidArgument || slices.Contains(allowed, code):
	case code == codes.Internal && a.failing != "":
	default:
		complain("code %s is not for this method", code)
	}
}

// unbearable says why a request cannot be OK, whatever else it has.
func unbearable(m rpc, r protoreflect.Message) (why string) {
	r.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() != nil && f.IsList():
			for i := range v.List().Len() {
				why = cmp.Or(why, unbearable(m, v.List().Get(i).Message()))
			}
		case f.Message() != nil && !f.IsMap():
			why = cmp.Or(why, unbearable(m, v.Message()))
		case !f.IsList() && !f.IsMap():
			why = cmp.Or(why, unbearableValue(m, f, v))
		}
		return true
	})
	return why
}

func unbearableValue(m rpc, f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.Int64Kind, protoreflect.Int32Kind:
		if v.Int() < 0 {
			return "a negative number"
		}
	case protoreflect.EnumKind:
		_, offered := offeredModes[csi.VolumeCapability_AccessMode_Mode(v.Enum())]
		tells := m.name == "ValidateVolumeCapabilities" || m.name == "GetCapacity" // of what cannot be
		if f.Name() == "mode" && !offered && !tells {
			return "the access mode"
		}
	case protoreflect.StringKind:
		// Where the path of the stage may be given too nobody looks at it.
		extra := f.Name() == "staging_target_path" && (m.name == "NodeGetVolumeStats" || m.name == "NodeExpandVolume")
		path := strings.HasSuffix(string(f.Name()), "_path") && !extra
		if s := v.String(); path && checkPath("path", s) != nil || f.Name() == "name" && checkTestName(s) != nil {
			return string(f.Name())
		}
	}
	return ""
}

// checkPlaces wants new and changed files only where the request says.
func (a *arena) checkPlaces(req proto.Message, changed []string, complain complaint) {
	for _, path := range changed {
		if !filepath.IsAbs(path) {
			continue
		}
		if _, ok := a.precious[path]; ok {
			complain("%q was not the driver's, and has changed", path)
		}
		named := slices.ContainsFunc(texts(req.ProtoReflect()), func(s string) bool { return filepath.IsAbs(s) && resolve(s) == path })
		if !named || !strings.HasPrefix(path, a.in+"/") {
			complain("%q has changed", path)
		}
	}
}

// texts are all strings of a message outside its maps.
func texts(m protoreflect.Message) []string {
	var all []string
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() == protoreflect.StringKind && !f.IsList() && !f.IsMap():
			all = append(all, v.String())
		case f.Message() != nil && !f.IsList() && !f.IsMap():
			all = append(all, texts(v.Message())...)
		}
		return true
	})
	return all
}

// checkTexts wants nothing secret and nothing endless said.
func (a *arena) checkTexts(req, resp proto.Message, err error, complain complaint) {
	logged, message := a.log.take(), status.Convert(err).Message()
	if strings.Contains(logged, canary) {
		complain("a secret is logged: %.500s", logged)
	}
	if len(logged) > maxLine {
		complain("%d bytes are logged for a request of %d", len(logged), proto.Size(req))
	}
	switch {
	case len(message) > maxMessage || err != nil && message == "":
		complain("the message has %d bytes", len(message))
	case proto.Size(resp) > proto.Size(req)+maxAnswer:
		complain("the answer has %d bytes for a request of %d", proto.Size(resp), proto.Size(req))
	}
}

// checkUndone wants no trace on the machine of a stage or publish that failed. That
// mkfs had begun is noted with the volume, and stays so (I11).
func (a *arena) checkUndone(m rpc, before, after map[string]string, complain complaint) {
	if m.name != "NodeStageVolume" && m.name != "NodePublishVolume" {
		return
	}
	if a.failing == "FlushDevice" { // what cannot be flushed is not let go of, unless the volume failed closed
		return
	}
	for _, name := range []string{"attachments", "attached", "loops", "mounts"} {
		if before[name] != after[name] {
			complain("%s failed, %s were %s and are %s", a.failing, name, before[name], after[name])
		}
	}
}

// checkAgain wants the same answer to the same request, and nothing done again.
func (a *arena) checkAgain(m rpc, req, resp proto.Message, after map[string]string, complain complaint) {
	again, err := a.invoke(m, req)
	a.log.take()
	if err != nil || !proto.Equal(settled(resp), settled(again)) {
		complain("%.300s\nthe second time %.300s, %v", excerpt(resp), excerpt(again), err)
	}
	if changed := changes(after, a.state()); len(changed) > 0 {
		complain("the second time changed %q", changed)
	}
}

// settled is an answer without what may progress.
func settled(m proto.Message) proto.Message {
	m = proto.Clone(m)
	if r, ok := m.(*csi.CreateSnapshotResponse); ok {
		r.Snapshot.ReadyToUse = false
	}
	return m
}

func excerpt(m proto.Message) string {
	text, _ := prototext.MarshalOptions{Multiline: false}.Marshal(m)
	if len(text) > 500 {
		return fmt.Sprintf("%s... (%d bytes)", text[:500], len(text))
	}
	return string(text)
}

// take empties the buffer.
func (l *lockedBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// Every field of every request holds every value that is bad for its kind, with
// everything else in order.
func TestHostileFields(t *testing.T) {
	for _, m := range rpcs() {
		t.Run(m.name, func(t *testing.T) {
			a := newArena(t)
			for i := range a.mutations(m.in) {
				// What is done with the volume already makes a difference on the
				// node; FuzzRequests has the other combinations.
				req := a.base(m, a.subjects[i%len(a.subjects)], &choices{})
				a.spoil(m, i, req)
				changed := a.check(m, req)
				switch {
				case strings.HasPrefix(m.name, "Create"):
					a.named++ // the next makes something else
				case changed: // which is in the way of the next
					a.close()
					a = newArena(t)
				}
			}
		})
	}
}

// Whatever fails in a stage or publish, the machine is as it was before.
func TestHostFailuresLeaveNothing(t *testing.T) {
	a := newArena(t)
	for _, failing := range hostMethods {
		for _, m := range rpcs() {
			if m.name != "NodeStageVolume" && m.name != "NodePublishVolume" {
				continue
			}
			for _, c := range []*csi.VolumeCapability{mountCap(""), blockCap()} {
				a.named++
				s := a.subject(fmt.Sprintf("%s-%d", failing, a.named), c)
				if m.name == "NodePublishVolume" {
					a.must(a.stage(s.handle, paths{staging: s.staging}, s.c))
				}
				a.last = a.state()
				a.startFailing(failing)
				a.check(m, a.base(m, s, &choices{}))
				a.stopFailing()
			}
		}
	}
	a.canHalt()
}

// FuzzRequests makes calls out of its input: requests that are in order but for some
// fields. As a test it runs over long inputs of a fixed seed; GRANARY_SEED=n is another.
// Fuzzing begins with short ones, which are tried more often: what is wrong with one call
// shows after few others.
func FuzzRequests(f *testing.F) {
	seed := uint64(20260722)
	if s := os.Getenv("GRANARY_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			f.Fatalf("GRANARY_SEED: %v", err)
		}
		seed = n
	}
	f.Logf("GRANARY_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	methods := rpcs()
	inputs, length, calls := 16, 1500, 200
	if fuzzing := flag.Lookup("test.fuzz").Value.String() != ""; fuzzing {
		inputs, length, calls = 4*len(methods), 48, 8
	}
	for range inputs {
		input := make([]byte, length)
		for i := range input {
			input[i] = byte(random.Uint32())
		}
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		a := newArena(t)
		c := &choices{input}
		for n := 0; n < calls && len(c.input) > 0 && !t.Failed(); n++ {
			a.maybeFail(c)
			m := methods[c.upTo(len(methods))]
			a.check(m, a.request(m, c))
		}
		a.canHalt()
	})
}

var errTold = errors.New("the host is told to fail")

// hostMethods are those that can fail.
var hostMethods = []string{
	"OpenFUSE", "AttachLoop", "Mkfs", "FlushDevice", "Fsck", "ProbeFS", "PrepareCopy", "GrowUnmounted", "Mount",
	"BindMount", "GrowFS", "GrowLoop", "Statfs", "Unmount", "DetachLoop", "Mounts",
}

func (a *arena) startFailing(method string) {
	a.failing = method
	a.host.Host.Fail(method, errTold)
}

func (a *arena) stopFailing() {
	a.host.Host.Fail(a.failing, nil)
	a.failing = ""
}

// maybeFail makes one of the host's methods fail now and then.
func (a *arena) maybeFail(c *choices) {
	a.stopFailing()
	if c.upTo(8) == 7 {
		a.startFailing(hostMethods[c.upTo(len(hostMethods))])
	}
}

// canHalt wants that whatever was done, everything that is used can be let go of.
func (a *arena) canHalt() {
	a.stopFailing()
	for range 3 { // publications first, then stages
		for _, at := range a.attached.List() {
			if len(at.Uses) == 0 {
				a.must(a.unstage(handleOf(at.Volume), paths{staging: filepath.Join(a.in, "empty")}))
			}
			for _, use := range slices.Backward(at.Uses) {
				p := paths{use.Path, use.Path}
				leave := a.unstage
				if strings.HasPrefix(use.Purpose, publishedAs) {
					leave = a.unpublish
				}
				// What else is at a path, or another path, may have to go first.
				if err := leave(handleOf(at.Volume), p); status.Code(err) != codes.FailedPrecondition {
					a.must(err)
				}
			}
		}
	}
	if left := a.state(); left["attachments"] != "null" || left["mounts"] != "[]" || left["loops"] != "[]" {
		a.t.Errorf("left: %s, mounts %s, loops %s", left["attachments"], left["mounts"], left["loops"])
	}
}

// Bytes that are no message, or too many, never reach a handler, and the driver goes on.
func TestBytesThatAreNoRequest(t *testing.T) {
	a := newArena(t)
	before := a.state()
	for name, raw := range map[string][]byte{
		"invalid UTF-8":     {0x0a, 0x02, 0xff, 0xfe},
		"truncated":         {0x0a, 0x7f, 'a'},
		"an endless length": {0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"a group":           {0x0b, 0x0b, 0x0b},
		"8 MiB":             append([]byte{0x0a, 0x80, 0x80, 0x80, 0x04}, make([]byte, 8<<20)...),
	} {
		for _, m := range rpcs() {
			if f := m.in.Fields().ByNumber(1); f == nil || f.Kind() != protoreflect.StringKind {
				continue // such a field is one that a newer CO knows
			}
			var resp []byte
			err := a.conn.Invoke(context.Background(), m.path, &raw, &resp, grpc.ForceCodec(rawCodec{}))
			if err == nil {
				t.Errorf("%s, %s: OK", m.name, name)
			}
		}
	}
	if changed := changes(before, a.state()); len(changed) > 0 {
		t.Errorf("changed: %q", changed)
	}
	_, err := a.Probe(context.Background(), &csi.ProbeRequest{})
	a.must(err)
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

var _ encoding.Codec = rawCodec{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = slices.Clone(data)
	return nil
}
func (rawCodec) Name() string { return "proto" }

// Names go to the engine, which decides: with the real one too, those that are too long
// or that no list could show are INVALID_ARGUMENT.
func TestNames(t *testing.T) {
	s := newSite(t, node)
	ctx := context.Background()
	source, err := s.CreateVolume(ctx, createRequest("source"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat(hostileNames(), []string{"fits-" + strings.Repeat("n", 123), "a b", "Ünïcödé", "..", "-"}) {
		want := codes.OK
		if checkTestName(name) != nil {
			want = codes.InvalidArgument
		}
		_, err := s.CreateVolume(ctx, createRequest(name))
		wantCode(t, fmt.Sprintf("volume %.50q of %d bytes", name, len(name)), err, want)
		_, err = s.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: source.Volume.VolumeId})
		wantCode(t, fmt.Sprintf("snapshot %.50q of %d bytes", name, len(name)), err, want)
	}
}
