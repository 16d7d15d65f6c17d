package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/driver"
	"github.com/k8ns/granary/pkg/export"
	"github.com/k8ns/granary/pkg/export/exporttest"
)

const (
	csiDir  = "/store"
	csiNode = "node-1"
)

// csiViolation is the panic with which a seed ends that shows something wrong.
type csiViolation string

// csiWorld is one seed: the real engine on a disk that crashes, the real driver with all
// its interceptors above it, a machine that exists in tables, and a CO that repeats each
// call until it is answered well.
type csiWorld struct {
	seed uint64
	rng  *rand.Rand
	disk *blockstore.SimDisk
	o    blockstore.Options
	out  io.Writer // of a trace; nil: none
	now  time.Time
	dir  string // of the mount points; the same for every run of the seed
	host *exporttest.Host

	// Of one life of the process.
	s    *blockstore.Store
	d    *driver.Driver
	conn *grpc.ClientConn
	coll *blockstore.Collection
	csi.ControllerClient
	csi.NodeClient

	vols  []*csiVolume
	snaps []*csiSnapshot
	names int

	step, crashes, inside int
	doing                 string
}

// csiBuffers are shared by all devices of all seeds.
var csiBuffers = func() *export.Buffers {
	b, err := export.NewBuffers(8)
	if err != nil {
		panic(err)
	}
	return b
}()

func newCSIWorld(seed uint64, out io.Writer) *csiWorld {
	w := &csiWorld{seed: seed, rng: rand.New(rand.NewPCG(seed, 17)), out: out, now: time.Unix(1e9, 0), host: exporttest.NewHost()}
	w.disk = blockstore.NewSimDisk(rand.New(rand.NewPCG(seed, 18)))
	w.disk.TraceTo(out)
	base := filepath.Join(os.TempDir(), "granary-sim")
	w.ok(os.MkdirAll(base, 0o700), "mount points")
	for w.dir = filepath.Join(base, fmt.Sprint(seed)); os.Mkdir(w.dir, 0o700) != nil; w.dir += "x" { // another run has it
	}
	segment := pick(w.rng, int64(64<<10), 96<<10)
	w.o = blockstore.Options{
		Now:          func() time.Time { w.now = w.now.Add(time.Millisecond); return w.now },
		SegmentBytes: segment, JournalBytes: 12 * segment, CatalogBytes: 64 << 10,
		ChunkFileBytes: pick(w.rng, int64(32<<10), 128<<10), CacheBytes: 256 << 10, NodeCache: 16, ListCache: 8,
		ReserveBytes: 64 << 10, Workers: 1,
	}
	return w
}

func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

func (w *csiWorld) fail(format string, args ...any) {
	panic(csiViolation(fmt.Sprintf("seed %d step %d (%s): %s", w.seed, w.step, w.doing, fmt.Sprintf(format, args...))))
}

func (w *csiWorld) ok(err error, what string, args ...any) {
	if err != nil {
		w.fail("%s: %v", fmt.Sprintf(what, args...), err)
	}
}

func (w *csiWorld) trace(format string, args ...any) {
	if w.out != nil {
		fmt.Fprintf(w.out, "%d: %s\n", w.step, fmt.Sprintf(format, args...))
	}
}

// boot starts a process: the store, what a dead one left cleared, the driver serving. An
// error is a death on the way.
func (w *csiWorld) boot() error {
	var key [32]byte
	key[0], key[1] = byte(w.rng.Uint32()), byte(w.rng.Uint32())
	w.o.Rand = rand.NewChaCha8(key)
	s, err := blockstore.Open(w.disk.FS(), csiDir, w.o)
	if err != nil {
		return err
	}
	w.s, w.coll = s, nil
	attached := attach.New(csiAttachStore{attach.Engine(s), w}, w.host, attach.Options{
		Buffers: csiBuffers, LoopDevices: func() ([]string, error) { return w.host.Attached(), nil },
	})
	if err := attached.ClearDead(context.Background()); err != nil {
		return err
	}
	w.d, err = driver.New(csiStore{s, w}, attached, w.host, driver.Options{NodeID: csiNode, Version: "v1", Now: w.o.Now})
	w.ok(err, "driver")
	ln := bufconn.Listen(64 << 10)
	go func() { _ = w.d.Serve(ln) }()
	w.conn, err = grpc.NewClient("passthrough:///driver", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	w.ok(err, "connection")
	w.ControllerClient, w.NodeClient = csi.NewControllerClient(w.conn), csi.NewNodeClient(w.conn)
	return nil
}

// halt ends what a process has beside its files.
func (w *csiWorld) halt() {
	w.disk.Die()
	if w.conn != nil {
		w.conn.Close()
		w.d.Stop(context.Background())
	}
	for _, device := range w.host.Attached() {
		w.ok(w.host.Kill(device), "kill %s", device)
	}
	if w.s != nil {
		w.s.Abandon()
	}
	w.s, w.d, w.conn = nil, nil, nil
}

// close leaves nothing of the seed on this machine.
func (w *csiWorld) close() {
	w.halt()
	_ = os.RemoveAll(w.dir)
}

// operation is what a CO wants done.
type operation struct {
	what string
	call func() error // may be repeated: it checks that the answers are the same
	// happened changes the model, once; asked tells after a death whether it has
	// happened. asked nil: nothing durable changes that can be seen.
	happened func()
	asked    func() bool
	// once says that a death ends what the CO wanted: the node is another one now.
	once bool
}

// do has the CO repeat an operation until it is answered well. What was done by then is
// done once.
func (w *csiWorld) do(op operation) {
	w.doing = op.what
	done := false
	for try := 0; ; try++ {
		if w.rng.IntN(4) == 0 && try < 3 {
			w.disk.PlanDeath(pick[int64](w.rng, 4, 12, 40))
		}
		err := op.call()
		w.trace("%s: %v", op.what, err)
		dead := w.disk.IsDead()
		w.disk.Calm()
		if err != nil && !dead {
			w.fail("%v", err)
		}
		if err == nil && !done && op.happened != nil {
			op.happened()
			done = true
		}
		if !dead {
			return
		}
		w.disk.Die()
		w.inside++
		w.reboot(func() {
			if !done && op.asked != nil && op.asked() {
				op.happened()
				done = true
			}
		})
		if err == nil || op.once {
			return
		}
	}
}

// reboot lets process or machine die, several times perhaps, then compares what is left
// with the model, once settle has said how the operation under way ended.
func (w *csiWorld) reboot(settle func()) {
	power := false
	for try := 0; ; try++ {
		w.halt()
		w.crashes++
		power = w.rng.IntN(2) == 0
		w.trace("end of the process, power loss %v", power)
		w.disk.Ended(power, pick(w.rng, 0, 1, w.rng.Float64()))
		for _, m := range w.vols {
			m.device, m.target = "", ""
			if power {
				m.data.lose()
			}
		}
		if try < 3 && w.rng.IntN(3) == 0 {
			w.disk.PlanDeath(pick[int64](w.rng, 10, 40, 100))
		}
		err := w.boot()
		if w.disk.IsDead() {
			w.inside++
			continue
		}
		w.disk.Calm()
		w.ok(err, "start")
		break
	}
	settle()
	w.check()
}

// csiStore is the engine to the driver: where the driver would wait for the scheduler,
// the fold is done, or is late.
type csiStore struct {
	*blockstore.Store
	w *csiWorld
}

// CreateVolume implements driver.Store.
func (s csiStore) CreateVolume(spec blockstore.VolumeSpec) (blockstore.VolumeInfo, error) {
	if spec.FromVolume != "" {
		if err := s.w.resolve(spec.FromVolume); err != nil {
			return blockstore.VolumeInfo{}, err
		}
	}
	return s.Store.CreateVolume(spec)
}

// CreateSnapshot implements driver.Store.
func (s csiStore) CreateSnapshot(ctx context.Context, id, name string, labels map[string]string) (blockstore.SnapshotInfo, error) {
	if err := s.w.resolve(id); err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	return s.Store.CreateSnapshot(ctx, id, name, labels)
}

// WaitSnapshot implements driver.Store.
func (s csiStore) WaitSnapshot(_ context.Context, id string) (blockstore.SnapshotInfo, error) {
	if s.w.rng.IntN(2) == 0 {
		return blockstore.SnapshotInfo{}, context.DeadlineExceeded
	}
	if err := s.w.resolve(id); err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	return s.Store.Snapshot(id)
}

// csiAttachStore is the same for what attaches.
type csiAttachStore struct {
	attach.Store
	w *csiWorld
}

// OpenVolume implements attach.Store.
func (s csiAttachStore) OpenVolume(ctx context.Context, id string) (attach.Volume, error) {
	if err := s.w.resolve(id); err != nil {
		return nil, err
	}
	return s.Store.OpenVolume(ctx, id)
}

// resolve folds what a volume or snapshot waits for.
func (w *csiWorld) resolve(id string) error {
	for range 50 {
		source := w.s.WaitsFor(id)
		if source == "" {
			return nil
		}
		if _, err := w.s.Fold(source); err != nil {
			return err
		}
	}
	return errors.New("it gets no root, however often its source is folded")
}

// room folds until a writer would not wait.
func (w *csiWorld) room() error {
	for range 200 {
		if w.s.Room() {
			return nil
		}
		for _, id := range w.s.InMemory() {
			if _, err := w.s.Fold(id); err != nil {
				return err
			}
		}
	}
	return errors.New("the journal has no room although all is folded")
}

func (w *csiWorld) volume(handle string) *csiVolume {
	i := slices.IndexFunc(w.vols, func(m *csiVolume) bool { return m.handle == handle })
	if i < 0 {
		return nil
	}
	return w.vols[i]
}
