package driver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/k8ns/granary/pkg/blockstore"
)

// Each path at which a volume is staged or published is on record with its purpose: a
// text that says how, so that a repeated call can be told from one that contradicts.
// The record comes before the mount and goes after it.

const (
	stagedAs    = "stage "
	publishedAs = "publish "
)

// stagePurpose says how a volume is staged. The access mode is no part of it: of two
// stages that differ in nothing else the second finds everything done.
func stagePurpose(a access, fsType string, readOnly bool) string {
	if a.block {
		return stagedAs + writing(readOnly) + " block"
	}
	return stagedAs + strings.Join(append([]string{writing(readOnly), fsType}, a.flags...), " ")
}

// publishPurpose says how a volume is published.
func publishPurpose(a access, readOnly bool) string {
	return publishedAs + writing(readOnly) + " " + a.String()
}

func writing(readOnly bool) string {
	if readOnly {
		return "ro"
	}
	return "rw"
}

// useAt is what is on record for a path; nil for nothing.
func useAt(uses []blockstore.Use, path string) *blockstore.Use {
	for i := range uses {
		if uses[i].Path == path {
			return &uses[i]
		}
	}
	return nil
}

// usesOf are the uses of a kind (stagedAs, publishedAs).
func usesOf(uses []blockstore.Use, kind string) []blockstore.Use {
	return slices.DeleteFunc(slices.Clone(uses), func(u blockstore.Use) bool { return !strings.HasPrefix(u.Purpose, kind) })
}

// word is the n-th word of a purpose: the kind, then ro or rw, then what it is.
func word(u blockstore.Use, n int) string {
	if words := strings.Fields(u.Purpose); n < len(words) {
		return words[n]
	}
	return ""
}

// isReadOnly tells whether nothing can be written through a use.
func isReadOnly(u blockstore.Use) bool { return word(u, 1) == "ro" }

// isBlock tells whether a stage is of a raw device.
func isBlock(stage blockstore.Use) bool { return word(stage, 2) == "block" }

// isMany tells whether a published use may have others beside it.
func isMany(published blockstore.Use) bool {
	mode := csi.VolumeCapability_AccessMode_Mode_value[word(published, 2)]
	return offeredModes[csi.VolumeCapability_AccessMode_Mode(mode)].many
}

// checkPath refuses a path that is missing, not absolute, or that means no place of
// its own.
func checkPath(what, path string) error {
	switch {
	case path == "":
		return fmt.Errorf("the %s is missing: %w", what, blockstore.ErrInvalid)
	case !filepath.IsAbs(path):
		return fmt.Errorf("the %s %q is not absolute: %w", what, path, blockstore.ErrInvalid)
	case len(path) > maxPath || slices.ContainsFunc(strings.Split(path, "/"), func(s string) bool { return len(s) > maxPathName }):
		return fmt.Errorf("the %s has %d bytes: a path has at most %d, and each name in it %d: %w", what, len(path), maxPath, maxPathName, blockstore.ErrInvalid)
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("the %s %q is no path: it has control characters: %w", what, path, blockstore.ErrInvalid)
	case slices.Contains(strings.Split(path, "/"), "..") || filepath.Clean(path) == "/":
		return fmt.Errorf("the %s %q: a path of its own without '..' is wanted: %w", what, path, blockstore.ErrInvalid)
	}
	return nil
}

// Linux's longest path, and the longest name in one, in bytes.
const (
	maxPath     = 4095
	maxPathName = 255
)

// leadsNowhere tells of an error whether a path has something else than directories
// above its last element: a file, or links in a circle.
func leadsNowhere(err error) bool {
	return errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// resolve gives a path as the mount table has it: without symbolic links above its
// last element. That one is not looked at, it may be a dead mount.
func resolve(path string) string {
	path = filepath.Clean(path)
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return path
}

// place is the path of a stage or a target as the mount table has it, see resolve.
// ErrInvalid for one that would hide or hit the daemon's own files.
func (d *Driver) place(what, path string) (string, error) {
	path = resolve(path)
	for _, private := range d.o.Private {
		if isWithin(path, private) || isWithin(private, path) {
			return "", fmt.Errorf("the %s %q: the daemon's own %s is there: %w", what, path, private, blockstore.ErrInvalid)
		}
	}
	return path, nil
}

// isWithin tells whether a path is dir or in it; both are clean.
func isWithin(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// makeTarget makes what is mounted on: a directory, or a file for a device node. The
// directory above is the CO's to make, so that nothing is left of it afterwards.
func makeTarget(target string, file bool) error {
	info, err := os.Lstat(target)
	switch {
	case err == nil && info.IsDir() && !file:
		return checkEmpty(target)
	case err == nil && info.Mode().IsRegular() && file && info.Size() == 0:
		return nil
	case err == nil && info.Mode().IsRegular() && file:
		return fmt.Errorf("%s is a file with something in it, not a volume's: %w", target, errState)
	case err == nil:
		return fmt.Errorf("%s is there and is %s, not %s: %w", target, kindOf(info.Mode()), wantedKind(file), errState)
	case leadsNowhere(err):
		return fmt.Errorf("make the target: %w: %w", err, errState)
	case !os.IsNotExist(err):
		return fmt.Errorf("make the target: %w", err)
	}
	if file {
		var f *os.File
		if f, err = os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o640); err == nil {
			err = f.Close()
		}
	} else {
		err = os.Mkdir(target, 0o750)
	}
	if os.IsNotExist(err) {
		return fmt.Errorf("the directory above %s is not there, the CO has to make it: %w", target, errState)
	}
	if err != nil {
		return fmt.Errorf("make the target: %w", err)
	}
	return nil
}

func wantedKind(file bool) string {
	if file {
		return "a file"
	}
	return "a directory"
}

func kindOf(mode os.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode.IsRegular():
		return "a file"
	case mode&os.ModeSymlink != 0:
		return "a symbolic link"
	}
	return "a special file"
}

// checkEmpty refuses a directory that is not empty: a mount would hide what is in it.
func checkEmpty(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("look into the target: %w", err)
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	if len(names) > 0 {
		return fmt.Errorf("%s is a directory with something in it (%s), not a volume's: %w", dir, names[0], errState)
	}
	if err != io.EOF {
		return fmt.Errorf("look into the target: %w", err)
	}
	return nil
}

// removeTarget removes what makeTarget makes: an empty directory or an empty file.
// Whatever else is there is not ours: errState. nil if nothing is there.
func removeTarget(target string) error {
	info, err := os.Lstat(target)
	switch {
	case os.IsNotExist(err) || leadsNowhere(err):
		return nil
	case err != nil:
		return fmt.Errorf("remove the target: %w", err)
	case !info.IsDir() && (!info.Mode().IsRegular() || info.Size() > 0):
		return fmt.Errorf("%s is %s with something in it, no target of a volume: %w", target, kindOf(info.Mode()), errState)
	}
	if info.IsDir() {
		if err := checkEmpty(target); err != nil {
			return err
		}
	}
	if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove the target: %w", err)
	}
	return nil
}
