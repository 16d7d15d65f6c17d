package vfs

import (
	"errors"
	"io"
	"sync"
)

// OpKind says what an operation does.
type OpKind uint8

// The operations that a hook sees.
const (
	OpCreate OpKind = iota + 1
	OpOpen          // Open and OpenReadOnly
	OpRemove
	OpRename
	OpMkdir
	OpReadDir
	OpStat // FS.Stat and File.Size
	OpSyncDir
	OpLock
	OpSpace
	OpRead
	OpWrite // WriteAt and WriteVec
	OpSync
	OpDatasync
	OpTruncate
	OpAllocate
	OpDropCache
	OpClose // of a file or a lock
)

var opNames = [...]string{
	OpCreate: "create", OpOpen: "open", OpRemove: "remove", OpRename: "rename",
	OpMkdir: "mkdir", OpReadDir: "readdir", OpStat: "stat", OpSyncDir: "syncdir",
	OpLock: "lock", OpSpace: "space", OpRead: "read", OpWrite: "write", OpSync: "sync",
	OpDatasync: "datasync", OpTruncate: "truncate", OpAllocate: "allocate", OpDropCache: "dropcache",
	OpClose: "close",
}

func (k OpKind) String() string {
	if int(k) < len(opNames) && opNames[k] != "" {
		return opNames[k]
	}
	return "unknown"
}

// Op is an operation that is about to happen.
type Op struct {
	Kind  OpKind
	Name  string   // file or directory; the old name of a rename
	To    string   // the new name of a rename
	Off   int64    // bytes; the new size of a truncate
	Len   int64    // bytes to be read, written or allocated
	Data  [][]byte // what a write is to write; not to be kept or changed
	Index int64    // operations of the Faulty before this one
}

// ShortWrite is what a hook returns to have a write store its first N bytes and then
// fail with Err. An operation that is no write fails with Err and does nothing.
type ShortWrite struct {
	N   int // bytes
	Err error
}

func (s ShortWrite) Error() string { return "short write: " + s.Err.Error() }

// Unwrap returns Err.
func (s ShortWrite) Unwrap() error { return s.Err }

// Faulty is an FS whose operations a hook can fail before they happen. A failed Sync or
// Datasync loses the unsynced data to later syncs if the FS inside is a Mem. A Close
// closes in any case, whatever the hook says. All methods may be called concurrently.
type Faulty struct {
	inner FS // fixed

	mu struct {
		sync.Mutex
		hook  func(Op) error
		count int64
	}
}

// NewFaulty returns inner with no hook set.
func NewFaulty(inner FS) *Faulty { return &Faulty{inner: inner} }

// SetHook makes every later operation ask hook first; nil means that none fails. The
// hook runs without a lock held, so it may block, use the inner FS and set another
// hook, and it must be safe for concurrent calls if the operations are concurrent.
func (f *Faulty) SetHook(hook func(Op) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.hook = hook
}

// FailNth sets a hook that fails the n-th operation from now with err, counted from 0,
// and all after it if persistent.
func (f *Faulty) FailNth(n int64, err error, persistent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	nth := f.mu.count + n
	f.mu.hook = func(op Op) error {
		if op.Index == nth || persistent && op.Index > nth {
			return err
		}
		return nil
	}
}

// Count returns how many operations there were, failed ones included.
func (f *Faulty) Count() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.count
}

// ask counts op and returns what the hook says about it.
func (f *Faulty) ask(op Op) error {
	f.mu.Lock()
	op.Index = f.mu.count
	f.mu.count++
	hook := f.mu.hook
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(op)
}

// check is ask for operations that are no writes.
func (f *Faulty) check(op Op) error {
	err := f.ask(op)
	var short ShortWrite
	if errors.As(err, &short) {
		return short.Err
	}
	return err
}

// Create implements FS.
func (f *Faulty) Create(name string) (File, error) {
	return f.open(Op{Kind: OpCreate, Name: name}, f.inner.Create)
}

// Open implements FS.
func (f *Faulty) Open(name string) (File, error) {
	return f.open(Op{Kind: OpOpen, Name: name}, f.inner.Open)
}

// OpenReadOnly implements FS.
func (f *Faulty) OpenReadOnly(name string) (File, error) {
	return f.open(Op{Kind: OpOpen, Name: name}, f.inner.OpenReadOnly)
}

func (f *Faulty) open(op Op, open func(string) (File, error)) (File, error) {
	if err := f.check(op); err != nil {
		return nil, err
	}
	inner, err := open(op.Name)
	if err != nil {
		return nil, err
	}
	return &faultyFile{f, inner}, nil
}

// Remove implements FS.
func (f *Faulty) Remove(name string) error {
	if err := f.check(Op{Kind: OpRemove, Name: name}); err != nil {
		return err
	}
	return f.inner.Remove(name)
}

// Rename implements FS.
func (f *Faulty) Rename(oldname, newname string) error {
	if err := f.check(Op{Kind: OpRename, Name: oldname, To: newname}); err != nil {
		return err
	}
	return f.inner.Rename(oldname, newname)
}

// MkdirAll implements FS.
func (f *Faulty) MkdirAll(dir string) error {
	if err := f.check(Op{Kind: OpMkdir, Name: dir}); err != nil {
		return err
	}
	return f.inner.MkdirAll(dir)
}

// ReadDir implements FS.
func (f *Faulty) ReadDir(dir string) ([]string, error) {
	if err := f.check(Op{Kind: OpReadDir, Name: dir}); err != nil {
		return nil, err
	}
	return f.inner.ReadDir(dir)
}

// Stat implements FS.
func (f *Faulty) Stat(name string) (Info, error) {
	if err := f.check(Op{Kind: OpStat, Name: name}); err != nil {
		return Info{}, err
	}
	return f.inner.Stat(name)
}

// SyncDir implements FS.
func (f *Faulty) SyncDir(dir string) error {
	if err := f.check(Op{Kind: OpSyncDir, Name: dir}); err != nil {
		return err
	}
	return f.inner.SyncDir(dir)
}

// Lock implements FS.
func (f *Faulty) Lock(name string) (io.Closer, error) {
	if err := f.check(Op{Kind: OpLock, Name: name}); err != nil {
		return nil, err
	}
	inner, err := f.inner.Lock(name)
	if err != nil {
		return nil, err
	}
	return &faultyLock{f, inner, name}, nil
}

// Space implements FS.
func (f *Faulty) Space(dir string) (Space, error) {
	if err := f.check(Op{Kind: OpSpace, Name: dir}); err != nil {
		return Space{}, err
	}
	return f.inner.Space(dir)
}

type faultyLock struct {
	fs    *Faulty
	inner io.Closer
	name  string
}

func (l *faultyLock) Close() error {
	err := l.fs.check(Op{Kind: OpClose, Name: l.name})
	return errors.Join(err, l.inner.Close())
}
