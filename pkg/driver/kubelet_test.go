package driver

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/pkg/leaktest"
)

// The sequences of calls that kubelet 1.37 and the sidecars of its time make (attacher
// 4.13, provisioner 6.3, resizer 2.3, snapshotter 8.7) are in testdata/kubelet, a file
// each. A line is a call with what it is about, and => the code it answers, OK if there
// is none; testdata/kubelet/README has the words.
//
// The player makes the requests as they do: kubelet's paths, the access modes that it
// maps, the keys that the provisioner adds. It makes and removes the directories that
// are kubelet's own, and like kubelet it makes some calls only if its files say so.
// After a sequence nothing may be left anywhere.
func TestKubeletSequences(t *testing.T) {
	files, err := filepath.Glob("testdata/kubelet/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sequences: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { newPlayer(t).play(file) })
	}
}

// player is kubelet and the sidecars, beside one driver.
type player struct {
	*world
	root      string // kubelet's directory
	volumes   map[string]*claim
	snapshots map[string]*csi.Snapshot
	gates     map[string]*gate // before methods, by name
	failing   []func()         // mend what is told to fail

	oldModes      bool // kubelet does not know of SINGLE_NODE_MULTI_WRITER yet
	podInfo       bool // CSIDriver.spec.podInfoOnMount
	reconstructed bool // kubelet has found the volumes on its disk
}

// claim is a volume as Kubernetes' objects have it.
type claim struct {
	name, pv, handle string
	modes            []string // RWO, RWOP, ROX, RWX
	block            bool
	fsType           string
	flags            []string          // mountOptions
	context          map[string]string // volumeAttributes
	attachment       map[string]string // VolumeAttachment.status.attachmentMetadata
}

// call is a line of a sequence: a word, names, and key=value.
type call struct {
	word    string
	names   []string
	options map[string]string
}

func (c call) name(i int) string {
	if i < len(c.names) {
		return c.names[i]
	}
	return ""
}

func (c call) has(option string) bool { return slices.Contains(c.names, option) }

func newPlayer(t *testing.T) *player {
	leaktest.Check(t)
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &player{
		world: newWorld(t), root: filepath.Join(root, "var/lib/kubelet"), volumes: make(map[string]*claim),
		snapshots: make(map[string]*csi.Snapshot), gates: map[string]*gate{"Mkfs": newGate(), "CreateVolume": newGate()},
	}
	for _, dir := range []string{"pods", "plugins/kubernetes.io/csi/" + Name, "plugins/kubernetes.io/csi/volumeDevices/staging", "plugins/kubernetes.io/csi/volumeDevices/publish"} {
		p.must(os.MkdirAll(filepath.Join(p.root, dir), 0o750))
	}
	p.hold()
	return p
}

// gate is before something that takes long. It is open but for sequences that close it.
type gate struct {
	reached chan struct{} // somebody waits at the closed gate
	mu      sync.Mutex
	closed  chan struct{} // nil: it is open
}

func newGate() *gate { return &gate{reached: make(chan struct{}, 1)} }

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.closed)
	g.closed = nil
}

func (g *gate) pass() {
	g.mu.Lock()
	closed := g.closed
	g.mu.Unlock()
	if closed != nil {
		g.reached <- struct{}{}
		<-closed
	}
}

// hold puts the gates where they belong.
func (p *player) hold() {
	p.driver.host = gatedHost{p.driver.host, p.gates["Mkfs"]}
	p.driver.store = gatedStore{p.driver.store, p.gates["CreateVolume"]}
}

type gatedHost struct {
	export.Host
	mkfs *gate
}

func (h gatedHost) Mkfs(ctx context.Context, device, fsType string, options []string) error {
	h.mkfs.pass()
	return h.Host.Mkfs(ctx, device, fsType, options)
}

type gatedStore struct {
	Store
	createVolume *gate
}

func (s gatedStore) CreateVolume(spec blockstore.VolumeSpec) (blockstore.VolumeInfo, error) {
	s.createVolume.pass()
	return s.Store.CreateVolume(spec)
}

func (p *player) play(file string) {
	f, err := os.Open(file)
	p.must(err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan() && !p.t.Failed(); n++ {
		if text := strings.TrimSpace(lines.Text()); text != "" && text[0] != '#' {
			if why := p.line(text); why != "" {
				p.t.Errorf("%s:%d: %s\n%s", file, n, text, why)
			}
		}
	}
	p.must(lines.Err())
	if !p.t.Failed() {
		p.checkEmpty()
	}
}

// line plays one line; it says what is wrong.
func (p *player) line(text string) string {
	text, want, ok := strings.Cut(text, "=>")
	if !ok {
		want = "OK"
	}
	words := strings.Fields(text)
	retry := words[0] == "retry"
	if retry {
		words = words[1:]
	}
	c := call{word: words[0], options: make(map[string]string)}
	for _, word := range words[1:] {
		if key, value, ok := strings.Cut(word, "="); ok {
			c.options[key] = value
		} else {
			c.names = append(c.names, word)
		}
	}
	err := p.do(c)
	for end := time.Now().Add(10 * time.Second); retry && status.Code(err) == codes.Aborted && time.Now().Before(end); err = p.do(c) {
		time.Sleep(2 * time.Millisecond)
	}
	if got := outcome(err); got != strings.TrimSpace(want) {
		return fmt.Sprintf("outcome %s, want %s: %v", got, strings.TrimSpace(want), err)
	}
	return ""
}

// errSkipped is a call that kubelet does not make; errWrong an effect that is not as it
// should be.
var (
	errSkipped = errors.New("kubelet makes no call")
	errWrong   = errors.New("wrong")
)

func outcome(err error) string {
	switch {
	case errors.Is(err, errSkipped):
		return "skipped"
	case errors.Is(err, errWrong):
		return "wrong"
	}
	return status.Code(err).String()
}

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errWrong, fmt.Sprintf(format, args...))
}

func (p *player) do(c call) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if c.has("impatient") {
		go p.giveUp(cancel)
	}
	calls := map[string]func(context.Context, call) error{
		"CreateVolume": p.createVolume, "DeleteVolume": p.deleteVolume, "ListVolumes": p.listVolumes,
		"ControllerPublishVolume": p.attach, "ControllerUnpublishVolume": p.detach, "ControllerExpandVolume": p.expand,
		"CreateSnapshot": p.createSnapshot, "DeleteSnapshot": p.deleteSnapshot, "ListSnapshots": p.listSnapshots, "GetSnapshot": p.getSnapshot,
		"NodeStageVolume": p.nodeStage, "NodeUnstageVolume": p.nodeUnstage, "NodePublishVolume": p.nodePublish, "NodeUnpublishVolume": p.nodeUnpublish,
		"NodeExpandVolume": p.nodeExpand, "NodeGetVolumeStats": p.nodeStats,
		"have": p.have, "steps": p.checkSteps, "fail": p.fail, "mend": p.mend, "close": p.closeGate, "open": p.openGate,
		"kubelet": p.kubelet, "daemon": p.daemon, "lost": p.lost,
	}
	do := calls[c.word]
	if do == nil {
		return wrong("no such word")
	}
	return do(ctx, c)
}

// giveUp ends a call when it hangs: what kubelet's two minutes do.
func (p *player) giveUp(cancel context.CancelFunc) {
	select {
	case <-p.gates["Mkfs"].reached:
	case <-p.gates["CreateVolume"].reached:
	}
	cancel()
}

// Words that are no calls.

// kubelet restarts, or is another one.
func (p *player) kubelet(_ context.Context, c call) error {
	p.reconstructed = p.reconstructed || c.has("restart")
	p.oldModes = c.has("old-modes") || p.oldModes && !c.has("new-modes")
	p.podInfo = p.podInfo || c.has("pod-info")
	return nil
}

// daemon is killed and comes back: devices and mounts are gone, directories stay.
func (p *player) daemon(context.Context, call) error {
	p.kill()
	p.hold()
	return nil
}

// lost is a target, or staging path, that somebody has unmounted and removed.
func (p *player) lost(_ context.Context, c call) error {
	path := p.staging(p.volumes[c.name(0)])
	if c.name(1) != "" {
		path = p.target(p.volumes[c.name(0)], c.name(1))
	}
	p.must(p.world.host.Unmount(path))
	return os.RemoveAll(filepath.Dir(path))
}

func (p *player) fail(_ context.Context, c call) error {
	set := p.engine.Fail
	if c.name(0) == "host" {
		set = p.world.host.Host.Fail
	}
	set(c.name(1), errors.New("told to fail"))
	p.failing = append(p.failing, func() { set(c.name(1), nil) })
	return nil
}

func (p *player) mend(context.Context, call) error {
	for _, mend := range p.failing {
		mend()
	}
	return nil
}

func (p *player) closeGate(_ context.Context, c call) error {
	p.gates[c.name(0)].close()
	return nil
}

func (p *player) openGate(_ context.Context, c call) error {
	p.gates[c.name(0)].open()
	return nil
}

// checkSteps looks at what was done to engine and host since the last time: nothing, or
// among other things what is named.
func (p *player) checkSteps(_ context.Context, c call) error {
	steps := p.trace.Steps()
	for _, name := range c.names {
		if name == "none" && len(steps) > 0 || name != "none" && !slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, name) }) {
			return wrong("steps are %q", steps)
		}
	}
	return nil
}

// have compares all that there is with what a line says.
func (p *player) have(_ context.Context, c call) error {
	mounts, err := p.world.host.Mounts()
	p.must(err)
	got := make(map[string][]string)
	for _, m := range mounts {
		text := p.placeOf(m.Target)
		if slices.Contains(m.Options, "ro") {
			text += ":ro"
		}
		got["mounts"] = append(got["mounts"], text)
	}
	for _, at := range p.engine.Attachments() {
		got["attached"] = append(got["attached"], p.claimOf(at.Volume))
	}
	for id := range p.engine.Publications() {
		got["published"] = append(got["published"], p.claimOf(id))
	}
	for _, what := range []string{"attached", "mounts", "published"} {
		slices.Sort(got[what])
		want := strings.FieldsFunc(c.options[what], func(r rune) bool { return r == ',' })
		slices.Sort(want)
		if !slices.Equal(got[what], want) {
			return wrong("%s: have %q", what, got[what])
		}
	}
	return nil
}

func (p *player) claimOf(id string) string {
	for name, v := range p.volumes {
		if h, _ := ParseHandle(v.handle); h.ID == id {
			return name
		}
	}
	return id
}

// placeOf is a short name of a path of kubelet's.
func (p *player) placeOf(path string) string {
	for name, v := range p.volumes {
		if path == p.staging(v) {
			return "stage/" + name
		}
		for _, dir := range p.podDirs() {
			pod := podName(dir)
			switch path {
			case p.target(v, pod):
				return "pod/" + pod + "/" + name
			case p.mapped(v, pod):
				return "map/" + pod + "/" + name
			}
		}
	}
	return path
}

// checkEmpty wants nothing left, on the node or in the store. Empty directories of pods
// are swept up by kubelet when a pod is gone.
func (p *player) checkEmpty() {
	if err := p.have(context.Background(), call{}); err != nil {
		p.t.Errorf("left: %v", err)
	}
	if v, s, l := p.engine.Volumes(), p.engine.Snapshots(""), p.world.host.Attached(); len(v)+len(s)+len(l) > 0 {
		p.t.Errorf("left: volumes %v, snapshots %v, devices %v", v, s, l)
	}
	var left []string
	p.must(filepath.WalkDir(p.root, func(path string, e os.DirEntry, err error) error {
		below, _ := filepath.Rel(p.root, path)
		depth := len(strings.Split(below, "/"))
		base := strings.HasPrefix(below, "plugins") && (depth <= 4 || strings.Contains(below, "/volumeDevices/") && depth == 5)
		inPod := strings.HasPrefix(below, "pods") && e.IsDir() && filepath.Base(path) != "mount"
		if below != "." && !(base && e.IsDir()) && !inPod || strings.HasSuffix(below, "kubernetes.io~csi") && !empty(path) {
			left = append(left, below)
		}
		return err
	}))
	if len(left) > 0 {
		p.t.Errorf("left below kubelet's directory: %q", left)
	}
}

func empty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0
}

// What kubelet names things.

// uid is a stable UID for a name.
func uid(name string) string {
	h := fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
	return fmt.Sprintf("%s-%s-%s-%s-%s.%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:32], name)
}

func podName(uid string) string { return uid[strings.IndexByte(uid, '.')+1:] }

func (p *player) podDirs() []string {
	entries, err := os.ReadDir(filepath.Join(p.root, "pods"))
	p.must(err)
	// A raw device's pod may have no directory of its own yet.
	devices, _ := filepath.Glob(filepath.Join(p.root, "plugins/kubernetes.io/csi/volumeDevices/publish/*/*"))
	names := make(map[string]bool)
	for _, e := range entries {
		names[e.Name()] = true
	}
	for _, path := range devices {
		names[filepath.Base(path)] = true
	}
	return slices.Collect(maps.Keys(names))
}

func (p *player) plugin(parts ...string) string {
	return filepath.Join(append([]string{p.root, "plugins/kubernetes.io/csi"}, parts...)...)
}

// staging is the path of NodeStageVolume.
func (p *player) staging(v *claim) string {
	if v.block {
		return p.plugin("volumeDevices/staging", v.pv)
	}
	return p.plugin(Name, fmt.Sprintf("%x", sha256.Sum256([]byte(v.handle))), "globalmount")
}

// target is the path of NodePublishVolume.
func (p *player) target(v *claim, pod string) string {
	if v.block {
		return p.plugin("volumeDevices/publish", v.pv, uid(pod))
	}
	return filepath.Join(p.root, "pods", uid(pod), "volumes/kubernetes.io~csi", v.pv, "mount")
}

// mapped is where kubelet itself binds a raw device: it asks for the stats of that one.
func (p *player) mapped(v *claim, pod string) string {
	return p.plugin("volumeDevices", v.pv, "dev", uid(pod))
}

const volumeData = "vol_data.json"

// capability is a claim's as kubelet and the attacher make it: of several access modes
// kubelet takes the first.
func (p *player) capability(v *claim, flags ...string) *csi.VolumeCapability {
	return p.capabilityFor(v, v.modes[0], flags...)
}

func (p *player) capabilityFor(v *claim, mode string, flags ...string) *csi.VolumeCapability {
	c := mountCap(v.fsType)
	if v.block {
		c = blockCap()
	} else {
		c.GetMount().MountFlags = append(slices.Clone(v.flags), flags...)
	}
	modes := map[string]csi.VolumeCapability_AccessMode_Mode{
		"RWO": csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, "RWOP": csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		"ROX": csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, "RWX": csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER,
	}
	if p.oldModes {
		modes["RWO"], modes["RWOP"] = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	}
	return withMode(c, modes[mode])
}

// seLinux is the mount option that kubelet adds: quoted, for a label has commas.
func seLinux(c call) []string {
	if c.options["label"] == "" {
		return nil
	}
	return []string{fmt.Sprintf("context=%q", c.options["label"])}
}

// final tells whether kubelet takes an error for the end of an operation, and cleans up
// behind it. After another it takes the volume for uncertain: it tries again, or calls
// the opposite.
func final(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	}
	return true
}

// What kubelet does on its disk.

func (p *player) mounted(path string) bool {
	m, err := export.IsMounted(p.world.host, path)
	p.must(err)
	return m != nil
}

func (p *player) makeDir(path string) { p.must(os.MkdirAll(path, 0o750)) }

func (p *player) saveData(dir string) {
	p.must(os.WriteFile(filepath.Join(dir, volumeData), []byte("{}"), 0o600))
}

func hasData(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, volumeData))
	return err == nil
}

// remove removes a file or an empty directory, or nothing.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// removeMountDir removes a mount point with what kubelet wrote beside it, unless
// something is mounted.
func (p *player) removeMountDir(path string) error {
	if p.mounted(path) {
		return nil
	}
	dir := filepath.Dir(path)
	return errors.Join(remove(path), remove(filepath.Join(dir, volumeData)), remove(dir))
}

// removeDeviceFiles is what kubelet does when a raw device is no longer staged, or its
// stage has failed.
func (p *player) removeDeviceFiles(v *claim) error {
	if err := errors.Join(remove(p.plugin("volumeDevices/publish", v.pv)), remove(p.staging(v))); err != nil {
		return err
	}
	return os.RemoveAll(p.plugin("volumeDevices", v.pv))
}

// mapDevice is what kubelet does with a published raw device: a bind mount of its own
// and a link for the pod.
func (p *player) mapDevice(v *claim, pod string) error {
	m, err := export.IsMounted(p.world.host, p.target(v, pod))
	if err != nil || m == nil {
		return wrong("nothing is at %s: %v", p.target(v, pod), err)
	}
	path := p.mapped(v, pod)
	p.makeDir(filepath.Dir(path))
	if !p.mounted(path) {
		p.must(os.WriteFile(path, nil, 0o640))
		p.must(p.world.host.Host.BindMount(context.Background(), m.Device, path, nil))
	}
	link := filepath.Join(p.root, "pods", uid(pod), "volumeDevices/kubernetes.io~csi", v.pv)
	p.makeDir(filepath.Dir(link))
	return errors.Join(remove(link), os.Symlink(p.target(v, pod), link))
}

func (p *player) unmapDevice(v *claim, pod string) error {
	link := filepath.Join(p.root, "pods", uid(pod), "volumeDevices/kubernetes.io~csi", v.pv)
	return errors.Join(remove(link), p.world.host.Host.Unmount(p.mapped(v, pod)), remove(p.mapped(v, pod)))
}

// referenced tells whether the device of a staged filesystem is mounted elsewhere too:
// then kubelet does not unstage.
func (p *player) referenced(v *claim) bool {
	m, err := export.IsMounted(p.world.host, p.staging(v))
	p.must(err)
	if m == nil {
		return false
	}
	mounts, err := p.world.host.Mounts()
	p.must(err)
	return slices.ContainsFunc(mounts, func(o export.Mount) bool { return o.Device == m.Device && o.Target != m.Target })
}

// kubelet's calls.

func (p *player) nodeStage(ctx context.Context, c call) error {
	v := p.volumes[c.name(0)]
	data := filepath.Dir(p.staging(v))
	if v.block {
		data = p.plugin("volumeDevices", v.pv, "data")
	}
	p.makeDir(data)
	p.makeDir(p.staging(v))
	p.saveData(data)
	_, err := p.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.handle, PublishContext: v.attachment, StagingTargetPath: p.staging(v),
		VolumeCapability: p.capability(v, seLinux(c)...), VolumeContext: v.context, Secrets: map[string]string{},
	})
	switch {
	case final(err) && v.block:
		_ = p.removeDeviceFiles(v) // kubelet only logs what it cannot remove
	case final(err):
		p.must(p.removeMountDir(p.staging(v)))
	case err == nil && p.mounted(p.staging(v)) == v.block:
		return wrong("mounted at the staging path: %v", !v.block)
	}
	return err
}

func (p *player) nodeUnstage(ctx context.Context, c call) error {
	v := p.volumes[c.name(0)]
	// A raw device whose staging directory is gone is never unstaged: so the driver must
	// not remove it, and after a stage that failed for good nothing may be attached.
	if _, err := os.Stat(p.staging(v)); v.block && (err != nil || p.mappedAnywhere(v)) {
		return errSkipped
	}
	if !v.block && (!hasData(filepath.Dir(p.staging(v))) || p.referenced(v)) {
		return errSkipped
	}
	_, err := p.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.handle, StagingTargetPath: p.staging(v)})
	switch {
	case err != nil:
		return err
	case p.mounted(p.staging(v)):
		return wrong("still mounted at the staging path")
	case v.block:
		return errors.Join(os.RemoveAll(p.staging(v)), p.removeDeviceFiles(v))
	}
	return p.removeMountDir(p.staging(v))
}

// mappedAnywhere tells whether a pod still has a raw device by kubelet's own mounts.
func (p *player) mappedAnywhere(v *claim) bool {
	entries, err := os.ReadDir(filepath.Dir(p.mapped(v, "x")))
	return err == nil && len(entries) > 0
}

func (p *player) nodePublish(ctx context.Context, c call) error {
	v, pod := p.volumes[c.name(0)], c.name(1)
	target := p.target(v, pod)
	p.makeDir(filepath.Dir(target))
	if !v.block {
		p.saveData(filepath.Dir(target))
	}
	_, err := p.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: v.handle, PublishContext: v.attachment, StagingTargetPath: p.staging(v), TargetPath: target, Readonly: c.has("readonly"),
		VolumeCapability: p.capability(v, seLinux(c)...), VolumeContext: p.podContext(v, pod), Secrets: map[string]string{},
	})
	switch {
	case final(err) && !v.block && !p.reconstructed:
		p.must(p.removeMountDir(target))
	case err == nil && !p.mounted(target):
		return wrong("nothing is mounted at the target")
	case err == nil && v.block:
		return p.mapDevice(v, pod)
	}
	return err
}

// podContext is the volume context with what podInfoOnMount adds.
func (p *player) podContext(v *claim, pod string) map[string]string {
	context := maps.Clone(v.context)
	if p.podInfo {
		for key, value := range map[string]string{
			"pod.name": pod, "pod.namespace": "default", "pod.uid": uid(pod), "serviceAccount.name": "default", "ephemeral": "false",
		} {
			context["csi.storage.k8s.io/"+key] = value
		}
	}
	return context
}

func (p *player) nodeUnpublish(ctx context.Context, c call) error {
	v, pod := p.volumes[c.name(0)], c.name(1)
	target := p.target(v, pod)
	if v.block {
		p.must(p.unmapDevice(v, pod))
	} else if !hasData(filepath.Dir(target)) && !c.has("asked") {
		return errSkipped
	}
	_, err := p.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.handle, TargetPath: target})
	if err != nil {
		return err
	}
	if _, err := os.Lstat(target); err == nil {
		return wrong("the target is still there")
	}
	if v.block {
		return nil
	}
	return p.removeMountDir(target)
}

// nodeExpand passes what kubelet does: for a raw device the path it was published at.
func (p *player) nodeExpand(ctx context.Context, c call) error {
	v := p.volumes[c.name(0)]
	resp, err := p.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: v.handle, VolumePath: p.target(v, c.name(1)), StagingTargetPath: p.staging(v),
		CapacityRange: &csi.CapacityRange{RequiredBytes: bytesOf(c.options["size"])}, VolumeCapability: p.capability(v), Secrets: map[string]string{},
	})
	return p.checkSize(c, resp.GetCapacityBytes(), err)
}

func (p *player) checkSize(c call, got int64, err error) error {
	want := c.options["answer"]
	if want == "" {
		want = c.options["size"]
	}
	if err == nil && got != bytesOf(want) {
		return wrong("answers %d bytes", got)
	}
	return err
}

// nodeStats asks where kubelet asks: the target, or its own mount of a raw device.
func (p *player) nodeStats(ctx context.Context, c call) error {
	v := p.volumes[c.name(0)]
	path := p.target(v, c.name(1))
	if v.block {
		path = p.mapped(v, c.name(1))
	}
	resp, err := p.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: v.handle, VolumePath: path})
	total := int64(0)
	for _, usage := range resp.GetUsage() {
		if usage.Unit == csi.VolumeUsage_BYTES {
			total = usage.Total
		}
	}
	return p.checkSize(c, total, err)
}

// The sidecars' calls.

func bytesOf(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSuffix(s, "Mi"), 10, 64)
	if err != nil {
		return -1
	}
	return n << 20
}

func list(s string) []string { return strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) }

func (p *player) createVolume(ctx context.Context, c call) error {
	v := &claim{
		name: c.name(0), pv: "pvc-" + uid(c.name(0))[:36], modes: list(cmp.Or(c.options["mode"], "RWO")), block: c.has("block"),
		fsType: c.options["fs"], flags: list(c.options["flags"]), context: map[string]string{"storage.kubernetes.io/csiProvisionerIdentity": "1800000000000-1234-" + Name},
	}
	here := &csi.Topology{Segments: map[string]string{TopologyKey: cmp.Or(c.options["node"], node)}}
	req := &csi.CreateVolumeRequest{
		Name: v.pv, CapacityRange: &csi.CapacityRange{RequiredBytes: bytesOf(cmp.Or(c.options["size"], "8Mi"))},
		Parameters: map[string]string{
			"csi.storage.k8s.io/pvc/name": v.name, "csi.storage.k8s.io/pvc/namespace": "default", "csi.storage.k8s.io/pv/name": v.pv,
		},
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: []*csi.Topology{here}, Preferred: []*csi.Topology{here}},
		VolumeContentSource:       p.source(c.options["from"]),
	}
	for _, mode := range v.modes {
		req.VolumeCapabilities = append(req.VolumeCapabilities, p.capabilityFor(v, mode))
	}
	resp, err := p.CreateVolume(ctx, req)
	if err != nil {
		return err
	}
	v.handle = resp.Volume.VolumeId
	if had := p.volumes[v.name]; had != nil && had.handle != v.handle {
		return wrong("it was %s and is %s", had.handle, v.handle)
	}
	p.volumes[v.name] = v
	return p.checkSize(call{options: map[string]string{"size": cmp.Or(c.options["size"], "8Mi")}}, resp.Volume.CapacityBytes, nil)
}

func (p *player) source(name string) *csi.VolumeContentSource {
	req := new(csi.CreateVolumeRequest)
	switch {
	case name == "":
		return nil
	case p.snapshots[name] != nil:
		fromSnapshot(p.snapshots[name].SnapshotId)(req)
	default:
		fromVolume(p.volumes[name].handle)(req)
	}
	return req.VolumeContentSource
}

func (p *player) deleteVolume(ctx context.Context, c call) error {
	_, err := p.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: p.volumes[c.name(0)].handle})
	return err
}

// attach keeps the answer for kubelet.
func (p *player) attach(ctx context.Context, c call) error {
	v := p.volumes[c.name(0)]
	resp, err := p.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
		VolumeId: v.handle, NodeId: cmp.Or(c.options["node"], node), Readonly: c.has("readonly"), VolumeCapability: p.capability(v), VolumeContext: v.context,
	})
	if err == nil {
		v.attachment = resp.PublishContext
	}
	return err
}

func (p *player) detach(ctx context.Context, c call) error {
	_, err := p.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: p.volumes[c.name(0)].handle, NodeId: cmp.Or(c.options["node"], node)})
	return err
}

// listVolumes reads page by page where volumes are published, as the attacher does.
func (p *player) listVolumes(ctx context.Context, _ call) error {
	listed := make(map[string][]string)
	for token, more := "", true; more; more = token != "" {
		resp, err := p.ControllerClient.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: token, MaxEntries: 2})
		if err != nil {
			return err
		}
		for _, e := range resp.Entries {
			listed[e.Volume.VolumeId] = e.Status.PublishedNodeIds
		}
		token = resp.NextToken
	}
	for name, v := range p.volumes {
		if want := p.listedNodes(v.handle); !slices.Equal(listed[v.handle], want) {
			return wrong("%s is listed at %q, got at %q", name, listed[v.handle], want)
		}
	}
	return nil
}

func (p *player) expand(ctx context.Context, c call) error {
	v := p.volumes[c.name(0)]
	resp, err := p.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: v.handle, CapacityRange: &csi.CapacityRange{RequiredBytes: bytesOf(c.options["size"])}, VolumeCapability: p.capability(v),
	})
	if err == nil && !resp.NodeExpansionRequired {
		return wrong("kubelet is not to call NodeExpandVolume")
	}
	return p.checkSize(c, resp.GetCapacityBytes(), err)
}

func (p *player) createSnapshot(ctx context.Context, c call) error {
	name := c.name(0)
	resp, err := p.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
		Name: "snapshot-" + uid(name)[:36], SourceVolumeId: p.volumes[c.name(1)].handle,
		Parameters: map[string]string{
			"csi.storage.k8s.io/volumesnapshot/name": name, "csi.storage.k8s.io/volumesnapshot/namespace": "default",
			"csi.storage.k8s.io/volumesnapshotcontent/name": "snapcontent-" + uid(name)[:36],
		},
	})
	if err != nil {
		return err
	}
	if had := p.snapshots[name]; had != nil && had.SnapshotId != resp.Snapshot.SnapshotId {
		return wrong("it was %s and is %s", had.SnapshotId, resp.Snapshot.SnapshotId)
	}
	p.snapshots[name] = resp.Snapshot
	return p.checkSnapshot(c, resp.Snapshot)
}

func (p *player) checkSnapshot(c call, s *csi.Snapshot) error {
	if ready := !c.has("unready"); s.GetReadyToUse() != ready || !s.GetCreationTime().AsTime().Equal(p.snapshots[c.name(0)].CreationTime.AsTime()) {
		return wrong("snapshot %v", s)
	}
	return nil
}

func (p *player) deleteSnapshot(ctx context.Context, c call) error {
	_, err := p.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: p.snapshots[c.name(0)].SnapshotId})
	return err
}

func (p *player) listSnapshots(ctx context.Context, c call) error {
	resp, err := p.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: p.snapshots[c.name(0)].SnapshotId})
	switch {
	case err != nil:
		return err
	case c.has("none") && len(resp.Entries) == 0:
		return nil
	case c.has("none") || len(resp.Entries) != 1:
		return wrong("listed %v", resp)
	}
	return p.checkSnapshot(c, resp.Entries[0].Snapshot)
}

func (p *player) getSnapshot(ctx context.Context, c call) error {
	resp, err := p.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: p.snapshots[c.name(0)].SnapshotId})
	if err != nil {
		return err
	}
	return p.checkSnapshot(c, resp.Snapshot)
}
