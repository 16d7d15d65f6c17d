package dedup

import (
	"errors"
	"path"
	"testing"

	"github.com/k8ns/granary/pkg/vfs"
)

var errBroken = errors.New("input/output error")

// begun stores blocks in a session and does not sync it; the caller closes it.
func begun(t *testing.T, s *Store, ns ...int) (*Writer, []Slot) {
	t.Helper()
	w := s.NewWriter(CodecZstd, 3)
	var refs []Ref
	for _, n := range ns {
		r, err := w.Block(block(n), Slot{})
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, r)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	var at []Slot
	for _, r := range refs {
		at = append(at, w.Slot(r))
	}
	return w, at
}

// gone wants slots that no copy holds.
func gone(t *testing.T, s *Store, at []Slot) {
	t.Helper()
	for _, a := range at {
		if _, err := s.ReadNode(a); !errors.Is(err, ErrMissing) {
			t.Errorf("slot %s of an abandoned file: %v", a, err)
		}
	}
}

// afterDeath opens what a power cut leaves, and what a kill leaves; everything of at is
// there and whole.
func afterDeath(t *testing.T, mem *vfs.Mem, at []Slot, ns ...int) {
	t.Helper()
	for what, die := range map[string]func(*vfs.Mem){
		"power cut": func(m *vfs.Mem) { m.Crash(nil, 0) }, "kill": func(m *vfs.Mem) { m.Kill() },
	} {
		m := mem.Clone()
		die(m)
		s := open(t, m, 7)
		check(t, s, at, ns...)
		verify(t, s)
		invariants(t, s)
		if t.Failed() {
			t.Fatalf("after a %s", what)
		}
	}
}

// I8: a chunk whose append ends after the file's sync failed is not taken for one that is
// there: it goes into the next file. Nothing more is written to the first, and it is not
// synced again.
func TestAppendMeetsAFailedSync(t *testing.T) {
	mem := vfs.NewMem()
	faulty := vfs.NewFaulty(mem)
	s := open(t, faulty, 1, func(o *Options) { o.FileBytes = 1 << 20 })
	at := put(t, s, seq(0, 10)...)
	name := path.Join(testDir, s.Files()[0].Name)
	durable := s.Files()[0].Size
	first, lost := begun(t, s, seq(10, 20)...)
	defer first.Close()

	entered, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	writes := 0
	faulty.SetHook(func(op vfs.Op) error {
		switch {
		case op.Name == name && op.Kind == vfs.OpWrite:
			if writes++; writes == 1 {
				close(entered)
				<-goOn
				return nil
			}
			t.Error("a write to a file that was given up")
		case op.Name == name && op.Kind == vfs.OpDatasync:
			return errBroken
		}
		return nil
	})
	var second []Slot
	go func() {
		var err error
		second, err = tryPut(s, seq(20, 30)...)
		ended <- err
	}()
	<-entered
	if err := first.Sync(); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	faulty.SetHook(func(op vfs.Op) error {
		if op.Name == name && (op.Kind == vfs.OpWrite || op.Kind == vfs.OpDatasync || op.Kind == vfs.OpSync || op.Kind == vfs.OpRename) {
			t.Errorf("%v of a file that was given up", op.Kind)
		}
		return nil
	})
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatalf("a session that another file could take: %v", err)
	}
	at = append(at, second...)
	if files := s.Files(); len(files) != 2 || !files[0].Failed || files[0].Size != durable || files[1].Failed {
		t.Errorf("%+v", files)
	}
	gone(t, s, lost)
	invariants(t, s)
	ns := append(seq(0, 10), seq(20, 30)...)
	check(t, s, at, ns...)
	afterDeath(t, mem, at, ns...)
	at, ns = append(at, put(t, s, seq(10, 20)...)...), append(ns, seq(10, 20)...) // the fold is repeated
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	afterDeath(t, mem, at, ns...)
}

// I8: a sync that succeeds makes nothing durable of a file that an append has given up
// meanwhile: what was appended before it was cut off.
func TestSyncMeetsAFailedAppend(t *testing.T) {
	mem := vfs.NewMem()
	faulty := vfs.NewFaulty(mem)
	s := open(t, faulty, 1, func(o *Options) { o.FileBytes = 1 << 20 })
	at := put(t, s, seq(0, 10)...)
	name := path.Join(testDir, s.Files()[0].Name)
	durable := s.Files()[0].Size
	first, lost := begun(t, s, seq(10, 20)...)
	defer first.Close()

	entered, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	faulty.SetHook(func(op vfs.Op) error {
		switch {
		case op.Name == name && op.Kind == vfs.OpDatasync:
			close(entered)
			<-goOn
		case op.Name == name && op.Kind == vfs.OpWrite:
			return vfs.ShortWrite{N: 3000, Err: errBroken}
		}
		return nil
	})
	go func() { ended <- first.Sync() }()
	<-entered
	if _, err := tryPut(s, seq(20, 30)...); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	close(goOn)
	if err := <-ended; !errors.Is(err, errAbandoned) {
		t.Errorf("the sync of what was cut off: %v", err)
	}
	if err := first.Flush(); !errors.Is(err, errAbandoned) {
		t.Errorf("the session goes on: %v", err)
	}
	faulty.SetHook(nil)
	if st, err := mem.Stat(name); err != nil || st.Size != durable {
		t.Errorf("%d bytes are left of %d durable ones: %v", st.Size, durable, err)
	}
	gone(t, s, lost)
	invariants(t, s)
	afterDeath(t, mem, at, seq(0, 10)...)
	at = append(at, put(t, s, seq(10, 30)...)...)
	check(t, s, at, seq(0, 30)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	afterDeath(t, mem, at, seq(0, 30)...)
}

// A file that a full disk has let begin and no more is removed when it is to be sealed;
// if that fails, the store goes on and the next start removes it. Its number is not used
// again.
func TestFileWithoutAChunkGoes(t *testing.T) {
	for _, removable := range []bool{true, false} {
		mem := vfs.NewMem()
		faulty := vfs.NewFaulty(mem)
		s := open(t, faulty, 1)
		n := 0
		faulty.SetHook(func(op vfs.Op) error {
			if op.Kind == vfs.OpWrite {
				if n++; n > 1 {
					return vfs.ErrNoSpace
				}
			}
			return nil
		})
		if _, err := tryPut(s, 1); !errors.Is(err, vfs.ErrNoSpace) {
			t.Fatal(err)
		}
		name := s.Files()[0].Name
		files := 0
		faulty.SetHook(func(op vfs.Op) error {
			switch {
			case op.Kind == vfs.OpRemove && !removable:
				return errBroken
			case op.Kind == vfs.OpClose:
				files--
			case op.Kind == vfs.OpSync || op.Kind == vfs.OpDatasync || op.Kind == vfs.OpRename:
				t.Errorf("%v of a file without a chunk", op.Kind)
			}
			return nil
		})
		if err := s.SealOpen(); removable && err != nil || !removable && !errors.Is(err, errBroken) {
			t.Errorf("removable %v: %v", removable, err)
		}
		if len(s.Files()) != 0 || files != -1 {
			t.Errorf("%d files are known, %d descriptors given back", len(s.Files()), -files)
		}
		faulty.SetHook(nil)
		if _, err := mem.Stat(path.Join(testDir, name)); (err == nil) == removable {
			t.Errorf("the file: %v", err)
		}
		at := put(t, s, seq(0, 10)...)
		if next := s.Files()[0].Name; next <= name {
			t.Errorf("after %s comes %s", name, next)
		}
		invariants(t, s)
		afterDeath(t, mem, at, seq(0, 10)...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, mem, 2)
		if _, err := mem.Stat(path.Join(testDir, name)); !errors.Is(err, vfs.ErrNotExist) {
			t.Errorf("after the next start: %v", err)
		}
		check(t, s, at, seq(0, 10)...)
		verify(t, s)
	}
}
