package vfs

import (
	"errors"
	"syscall"
)

// noSpaceError makes err, whose text has the path, answer to ErrNoSpace as well.
type noSpaceError struct{ err error }

func (e *noSpaceError) Error() string   { return e.err.Error() }
func (e *noSpaceError) Unwrap() []error { return []error{ErrNoSpace, e.err} }

// mapErr adds the package's sentinels to an error of the operating system.
func mapErr(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &noSpaceError{err}
	}
	return err
}
