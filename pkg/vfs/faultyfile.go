package vfs

import "errors"

// syncFailer is a file that can lose unsynced data to later syncs.
type syncFailer interface{ failSync() }

// faultyFile is an open file of a Faulty.
type faultyFile struct {
	fs    *Faulty
	inner File
}

// failSync passes a failed sync of a Faulty around this one on to the inner file.
func (f *faultyFile) failSync() {
	if inner, ok := f.inner.(syncFailer); ok {
		inner.failSync()
	}
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	op := Op{Kind: OpRead, Name: f.inner.Name(), Off: off, Len: int64(len(p))}
	if err := f.fs.check(op); err != nil {
		return 0, err
	}
	return f.inner.ReadAt(p, off)
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	op := Op{Kind: OpWrite, Name: f.inner.Name(), Off: off, Len: int64(len(p)), Data: [][]byte{p}}
	err := f.fs.ask(op)
	if err == nil {
		return f.inner.WriteAt(p, off)
	}
	return f.failWrite([][]byte{p}, off, err)
}

func (f *faultyFile) WriteVec(bufs [][]byte, off int64) (int, error) {
	op := Op{Kind: OpWrite, Name: f.inner.Name(), Off: off, Data: bufs}
	for _, b := range bufs {
		op.Len += int64(len(b))
	}
	err := f.fs.ask(op)
	if err == nil {
		return f.inner.WriteVec(bufs, off)
	}
	return f.failWrite(bufs, off, err)
}

// failWrite fails a write with err after what a ShortWrite lets through.
func (f *faultyFile) failWrite(bufs [][]byte, off int64, err error) (int, error) {
	var short ShortWrite
	if !errors.As(err, &short) {
		return 0, err
	}
	n, innerErr := f.inner.WriteVec(head(bufs, short.N), off)
	if innerErr != nil {
		return n, innerErr
	}
	return n, short.Err
}

// head returns the first n bytes of bufs.
func head(bufs [][]byte, n int) [][]byte {
	var out [][]byte
	for _, b := range bufs {
		take := min(len(b), max(n, 0))
		out = append(out, b[:take])
		n -= take
	}
	return out
}

func (f *faultyFile) Sync() error {
	if err := f.fs.check(Op{Kind: OpSync, Name: f.inner.Name()}); err != nil {
		if !errors.Is(err, ErrDead) { // who is dead has not tried
			f.failSync()
		}
		return err
	}
	return f.inner.Sync()
}

func (f *faultyFile) Datasync() error {
	if err := f.fs.check(Op{Kind: OpDatasync, Name: f.inner.Name()}); err != nil {
		if !errors.Is(err, ErrDead) { // who is dead has not tried
			f.failSync()
		}
		return err
	}
	return f.inner.Datasync()
}

func (f *faultyFile) DropCache() error {
	if err := f.fs.check(Op{Kind: OpDropCache, Name: f.inner.Name()}); err != nil {
		return err
	}
	return f.inner.DropCache()
}

func (f *faultyFile) Truncate(size int64) error {
	op := Op{Kind: OpTruncate, Name: f.inner.Name(), Off: size}
	if err := f.fs.check(op); err != nil {
		return err
	}
	return f.inner.Truncate(size)
}

func (f *faultyFile) Allocate(off, n int64) error {
	op := Op{Kind: OpAllocate, Name: f.inner.Name(), Off: off, Len: n}
	if err := f.fs.check(op); err != nil {
		return err
	}
	return f.inner.Allocate(off, n)
}

func (f *faultyFile) Size() (int64, error) {
	if err := f.fs.check(Op{Kind: OpStat, Name: f.inner.Name()}); err != nil {
		return 0, err
	}
	return f.inner.Size()
}

func (f *faultyFile) Name() string { return f.inner.Name() }

func (f *faultyFile) Close() error {
	err := f.fs.check(Op{Kind: OpClose, Name: f.inner.Name()})
	return errors.Join(err, f.inner.Close())
}
