package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/k8ns/granary/pkg/attach"
	"github.com/k8ns/granary/pkg/blockstore"
	"github.com/k8ns/granary/pkg/export"
)

// Errors that only CSI knows.
var (
	// errForeign is a handle of another node's or store's volume. It comes with
	// ErrNotFound.
	errForeign = errors.New("not of this node")
	// errElsewhere is something that another node might be able to make.
	errElsewhere = errors.New("not possible on this node")
	// errState is a call that cannot be done as things are, as publish before stage.
	errState = errors.New("not possible as things are")
	// errMode is an access mode that a volume cannot have. It comes with ErrInvalid;
	// of a call on the node it is errState, see exceeds.
	errMode = errors.New("not offered for this volume")
	// errToken is a page token that no list call gave out.
	errToken = errors.New("unknown page token")
)

// exceeds gives errors of stage and publish the meaning that CSI has for them there:
// what the volume cannot do is no bad argument, it is more than the volume has.
func exceeds(err error) error {
	if errors.Is(err, errMode) {
		return fmt.Errorf("%w: %w", err, errState)
	}
	return err
}

// maxText is the longest text of an error that is told, in bytes: errors quote what was
// wrong, and that may be a megabyte.
const maxText = 4 << 10

// toStatus is the one place that knows which gRPC code an error is. It keeps the text,
// but not without end.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err // the generated code's own, for calls that are not there
	}
	return status.Error(codeOf(err), shortened(err.Error(), maxText))
}

// shortened cuts the middle out of a text that is too long: its ends say most.
func shortened(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	cut := fmt.Sprintf("[... %d bytes ...]", len(text)-limit)
	return strings.ToValidUTF8(text[:limit/2]+cut+text[len(text)-limit/2:], "")
}

func codeOf(err error) codes.Code {
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(errElsewhere):
		return codes.ResourceExhausted
	case is(errState), is(export.ErrReadOnly):
		return codes.FailedPrecondition
	case is(errToken):
		return codes.Aborted
	case is(blockstore.ErrNotFound):
		return codes.NotFound
	case is(blockstore.ErrExists):
		return codes.AlreadyExists
	case is(blockstore.ErrInUse), is(export.ErrInUse):
		return codes.FailedPrecondition
	case is(blockstore.ErrBusy):
		return codes.Aborted
	case is(blockstore.ErrNoSpace), is(attach.ErrLimit):
		return codes.ResourceExhausted
	case is(blockstore.ErrRange):
		return codes.OutOfRange
	case is(blockstore.ErrInvalid), is(export.ErrInvalid):
		return codes.InvalidArgument
	case is(blockstore.ErrClosed), is(blockstore.ErrLocked):
		return codes.Unavailable
	case is(blockstore.ErrCorrupt), is(blockstore.ErrMissing):
		return codes.DataLoss
	case is(context.Canceled):
		return codes.Canceled
	case is(context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	// ErrFailed, ErrOlder, ErrFormat and ErrVersion too: nothing that the caller
	// does will help, somebody has to look.
	return codes.Internal
}
