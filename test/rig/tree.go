package rig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Entry is what a file or symbolic link holds.
type Entry struct {
	Mode fs.FileMode // permissions, and ModeSymlink
	Size int64
	Sum  [32]byte // SHA-256 of the content
	Link string   // target of a symbolic link
}

// Tree is a set of files: names, relative and slash-separated, and what they hold.
type Tree map[string]Entry

// Names lists the tree's files in order.
func (t Tree) Names() []string {
	names := make([]string, 0, len(t))
	for n := range t {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Bytes is the sum of the files' sizes.
func (t Tree) Bytes() int64 {
	var n int64
	for _, e := range t {
		n += e.Size
	}
	return n
}

// Clone copies the tree.
func (t Tree) Clone() Tree {
	c := make(Tree, len(t))
	for n, e := range t {
		c[n] = e
	}
	return c
}

// Sample is real data that the machine has anyway.
type Sample struct {
	Tree
	source map[string]string // where each file lives
}

// TakeSample picks up to limit bytes of regular files and symbolic links: the Go
// tree first, then parts of /usr, in the order of their names. What cannot be read
// is left out.
func TakeSample(ctx context.Context, limit int64) (*Sample, error) {
	goroot, err := Run(ctx, 0, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	s := &Sample{Tree: Tree{}, source: map[string]string{}}
	roots := []struct{ name, dir string }{
		{"go", goroot},
		{"usr/bin", "/usr/bin"},
		{"usr/sbin", "/usr/sbin"},
		{"usr/lib", "/usr/lib"},
		{"usr/share", "/usr/share"},
	}
	for _, r := range roots {
		if limit, err = s.add(ctx, r.name, r.dir, limit); err != nil {
			return nil, err
		}
	}
	if len(s.Tree) == 0 {
		return nil, errors.New("no sample data found")
	}
	return s, nil
}

// add takes the files below dir until limit is used up; it returns what is left.
func (s *Sample) add(ctx context.Context, name, dir string, limit int64) (int64, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return limit, nil //nolint:nilerr // a machine may lack one of the directories
	}
	err = filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what cannot be read is left out
		}
		info, err := d.Info()
		if err != nil || info.Size() > limit {
			return nil //nolint:nilerr // as above
		}
		entry, err := readEntry(path, info)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		rel, err := filepath.Rel(real, path)
		if err != nil {
			return err
		}
		full := name + "/" + rel
		s.Tree[full], s.source[full] = entry, path
		limit -= entry.Size
		return nil
	})
	return limit, err
}

var errKind = errors.New("neither a file nor a symbolic link")

// readEntry reads a file to its end, or a link.
func readEntry(path string, info fs.FileInfo) (Entry, error) {
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		return Entry{Mode: fs.ModeSymlink, Link: target}, err
	case 0:
		f, err := os.Open(path)
		if err != nil {
			return Entry{}, err
		}
		defer f.Close()
		h := sha256.New()
		n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 256<<10))
		if err != nil {
			return Entry{}, err
		}
		return Entry{Mode: info.Mode().Perm(), Size: n, Sum: [32]byte(h.Sum(nil))}, nil
	}
	return Entry{}, errKind
}

// Copy copies the named files into dir, in the given order, and syncs the file
// system that dir is on.
func (s *Sample) Copy(ctx context.Context, dir string, names []string) error {
	buf := make([]byte, 1<<20)
	for _, name := range names {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.copyOne(filepath.Join(dir, name), name, buf); err != nil {
			return err
		}
	}
	return SyncFS(dir)
}

func (s *Sample) copyOne(to, name string, buf []byte) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	e := s.Tree[name]
	if e.Mode&fs.ModeSymlink != 0 {
		return os.Symlink(e.Link, to)
	}
	in, err := os.Open(s.source[name])
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, buf); err != nil {
		return err
	}
	return errors.Join(out.Chmod(e.Mode), out.Close())
}

// SyncFS syncs the file system that dir is on.
func SyncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// Verify compares everything below dir with the tree: no file more, none less, each
// with its content, permissions and target. Names below an ignored directory are
// left out. It names the first few differences.
func (t Tree) Verify(ctx context.Context, dir string, ignore ...string) error {
	found, err := t.compare(ctx, dir, ignore)
	for name := range t {
		if !found[name] {
			err.add("%s is missing", name)
		}
	}
	return err.result()
}

func (t Tree) compare(ctx context.Context, dir string, ignore []string) (map[string]bool, *differences) {
	type job struct {
		name string
		info fs.FileInfo
	}
	diff := &differences{}
	jobs := make(chan job, 64)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for j := range jobs {
				got, err := readEntry(filepath.Join(dir, j.name), j.info)
				want, known := t[j.name]
				switch {
				case err != nil:
					diff.add("%s: %v", j.name, err)
				case !known:
					diff.add("%s should not be there", j.name)
				case got != want:
					diff.add("%s differs: %s, want %s", j.name, got, want)
				}
			}
		})
	}
	found := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		if d.IsDir() {
			for _, i := range append(ignore, "lost+found") {
				if name == i {
					return fs.SkipDir
				}
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		found[name] = true
		jobs <- job{name, info}
		return nil
	})
	close(jobs)
	workers.Wait()
	if err != nil {
		diff.add("%v", err)
	}
	return found, diff
}

func (e Entry) String() string {
	if e.Link != "" {
		return "link to " + e.Link
	}
	return fmt.Sprintf("%d bytes, mode %v, SHA-256 %.6x", e.Size, e.Mode, e.Sum)
}

// differences collects what differs.
type differences struct {
	mu    sync.Mutex
	first []string
	count int
}

func (d *differences) add(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count++
	if len(d.first) < 5 {
		d.first = append(d.first, fmt.Sprintf(format, args...))
	}
}

func (d *differences) result() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.count == 0 {
		return nil
	}
	return fmt.Errorf("%d differences: %s", d.count, strings.Join(d.first, "; "))
}

// Change overwrites a part in the middle of a copy of a sample file, in place, and
// appends to it. What it holds afterwards is worked out from the original, not read
// back, and returned.
func (s *Sample) Change(dir, name string, with []byte) (Entry, error) {
	content, err := os.ReadFile(s.source[name])
	if err != nil {
		return Entry{}, err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	middle, end := int64(len(content)/2), int64(len(content))
	if _, err := f.WriteAt(with, middle); err != nil {
		return Entry{}, err
	}
	end = max(end, middle+int64(len(with)))
	if _, err := f.WriteAt(with, end); err != nil {
		return Entry{}, err
	}
	content = append(content[:middle], append(bytes.Clone(with), content[min(middle+int64(len(with)), int64(len(content))):]...)...)
	content = append(content, with...)
	return Entry{Mode: s.Tree[name].Mode, Size: int64(len(content)), Sum: sha256.Sum256(content)}, f.Close()
}

// Append writes up to limit bytes of the sample's files, one behind the other, to w.
func (s *Sample) Append(ctx context.Context, w io.Writer, limit int64) (int64, error) {
	var sum int64
	for _, name := range s.Names() {
		if sum >= limit || ctx.Err() != nil {
			break
		}
		if s.Tree[name].Size == 0 {
			continue
		}
		f, err := os.Open(s.source[name])
		if err != nil {
			return sum, err
		}
		n, err := io.Copy(w, io.LimitReader(f, limit-sum))
		f.Close()
		if sum += n; err != nil {
			return sum, err
		}
	}
	return sum, ctx.Err()
}
