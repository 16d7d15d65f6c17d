package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"

	"github.com/k8ns/granary/pkg/vfs"
)

// errDead is what every operation answers after the moment at which the simulated
// process died or the power went.
var errDead = fmt.Errorf("simulated death: %w", vfs.ErrDead)

// errInjected marks the errors of planned faults.
var errInjected = errors.New("injected fault")

// simDisk is the file system of a simulation: it hashes every operation into the trace's
// digest, and lets the process die, or operations fail, at an operation chosen before.
type simDisk struct {
	mem *vfs.Mem
	fs  *vfs.Faulty
	rng *rand.Rand

	out    io.Writer // of a trace of the operations; nil: none
	digest uint64
	ops    int64

	plan     simPlan
	dead     bool
	last     bool // the operation under way happens, and its process dies over it
	fired    bool // an error was injected
	unsynced bool // in a sync, since the store was opened: what it was to write is lost
	faulted  bool // an error was injected at some time
	stubborn bool // reads failed again when they were tried again
	syncs    int  // that an error was injected into, those of directories too
	watch    simWatch
	tally    *ioTally         // nil: nobody counts
	visited  map[*ioSite]bool // call sites executed; nil: nobody asks
}

// simPlan says what happens at which operation.
type simPlan struct {
	name  string       // of the fault
	in    int64        // operations until then; 0: nothing is planned
	die   bool         // else operations fail
	err   error        // with this
	kinds []vfs.OpKind // only these fail; nil: all
	times int          // how many
	short bool         // of writes a part is written before
	reads int          // that have failed by it
}

func newSimDisk(rng *rand.Rand) *simDisk {
	d := &simDisk{mem: vfs.NewMem(), rng: rng}
	d.fs = vfs.NewFaulty(d.mem)
	d.fs.SetHook(d.hook)
	return d
}

// mix hashes words into the digest (FNV-1a over 64-bit words).
func (d *simDisk) mix(words ...uint64) {
	for _, w := range words {
		d.digest = (d.digest ^ w) * 1099511628211
	}
}

func (d *simDisk) mixString(s string) {
	d.mix(uint64(len(s)), uint64(crc32.Checksum([]byte(s), castagnoli)))
}

func (d *simDisk) hook(op vfs.Op) error {
	d.ops++
	d.mix(uint64(op.Kind), uint64(op.Off), uint64(op.Len))
	d.mixString(op.Name)
	d.mixString(op.To)
	for _, b := range op.Data {
		d.mix(uint64(crc32.Checksum(b, castagnoli)))
	}
	err := d.fate(op)
	d.count(op, err)
	if err != nil {
		d.mixString(err.Error())
	}
	if d.out != nil {
		fmt.Fprintf(d.out, "    %d %v %s%s %d+%d %v\n", d.ops, op.Kind, op.Name, op.To, op.Off, op.Len, err)
	}
	return err
}

// count notes how an operation ends in the tally of call sites.
func (d *simDisk) count(op vfs.Op, err error) {
	switch {
	case d.tally == nil || errors.Is(err, errDead):
	case err != nil:
		d.tally.note(op.Kind, d.plan.name)
	case d.faulted:
		d.tally.note(op.Kind, ranLater)
	default:
		for _, s := range d.tally.note(op.Kind, ranWell) {
			if d.visited != nil {
				d.visited[s] = true
			}
		}
	}
}

// fate decides how an operation ends.
func (d *simDisk) fate(op vfs.Op) error {
	if d.dead {
		return errDead
	}
	if d.plan.in == 0 {
		return nil
	}
	if len(d.plan.kinds) > 0 {
		hit := false
		for _, k := range d.plan.kinds {
			hit = hit || k == op.Kind
		}
		if !hit {
			return nil
		}
	}
	if d.plan.in > 1 {
		d.plan.in--
		return nil
	}
	err := d.plan.err
	if d.plan.die && d.rng.IntN(3) == 0 {
		d.plan.in, d.last = 0, true
		return nil
	}
	if d.plan.die {
		d.dead, err = true, errDead
	} else if d.plan.times--; d.plan.times <= 0 {
		d.plan.in = 0
	}
	d.fired = true
	if op.Kind == vfs.OpRead {
		d.plan.reads++
		d.stubborn = d.stubborn || d.plan.reads >= 4
	}
	if !d.plan.die {
		d.faulted = true
		if op.Kind == vfs.OpSync || op.Kind == vfs.OpDatasync || op.Kind == vfs.OpSyncDir {
			d.syncs++
			d.unsynced = d.unsynced || op.Kind != vfs.OpSyncDir
		}
	}
	if op.Kind == vfs.OpWrite && (d.plan.short || d.plan.name == "" && d.rng.IntN(2) == 0) {
		n := int(d.rng.Int64N(op.Len/sectorBytes+1)) * sectorBytes
		return vfs.ShortWrite{N: n, Err: err}
	}
	return err
}

// planDeath lets the process die at one of the next operations.
func (d *simDisk) planDeath() {
	n := []int64{4, 20, 100}[d.rng.IntN(3)]
	d.plan = simPlan{in: 1 + d.rng.Int64N(n), die: true}
}

// planFault lets some of the next operations fail.
func (d *simDisk) planFault() {
	p := simPlan{in: 1 + d.rng.Int64N(12), times: 1, err: fmt.Errorf("%w: %w", errInjected, syscall.EIO)}
	switch d.rng.IntN(6) {
	case 0:
		p.err = fmt.Errorf("%w: %w", errInjected, vfs.ErrNoSpace)
		p.kinds = []vfs.OpKind{vfs.OpWrite, vfs.OpCreate, vfs.OpAllocate, vfs.OpRename}
	case 1:
		p.kinds = []vfs.OpKind{vfs.OpSync, vfs.OpDatasync, vfs.OpSyncDir}
	case 2:
		p.kinds = []vfs.OpKind{vfs.OpRead}
	case 3:
		p.kinds = []vfs.OpKind{vfs.OpWrite}
	}
	if d.rng.IntN(3) == 0 {
		p.times = 1 + d.rng.IntN(6)
	}
	d.plan, d.fired = p, false
}

// calm takes back what was planned.
func (d *simDisk) calm() { d.plan, d.fired, d.dead, d.last = simPlan{}, false, false, false }

// ended is the death of the process, or the loss of power, which keeps each unsynced
// unit with probability keep.
func (d *simDisk) ended(power bool, keep float64) {
	d.calm()
	d.unsynced = false
	d.watch.ended()
	if power {
		d.mem.Crash(d.rng, keep)
	} else {
		d.mem.Kill()
	}
	d.mix(binary.LittleEndian.Uint64(d.memDigest()))
}

// memDigest is a digest of the names in the store, a cheap witness of what survived.
func (d *simDisk) memDigest() []byte {
	var all strings.Builder
	for _, sub := range []string{"", dirCatalog, dirChunks, dirJournal, dirReserve} {
		names, _ := d.mem.ReadDir(testDir + "/" + sub)
		all.WriteString(strings.Join(names, "\n"))
	}
	sum := crc32.Checksum([]byte(all.String()), castagnoli)
	return binary.LittleEndian.AppendUint64(nil, uint64(sum))
}
