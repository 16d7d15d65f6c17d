package driver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore"
)

// paginate cuts a page out of a list, in the order of the engine's IDs, which are of the
// kind 'v' or 's'. A token is the ID of the last entry of the page before, so it stays
// good when entries come and go.
func paginate[T any](all []T, kind byte, id func(T) string, token string, entries int32) (page []T, next string, err error) {
	if entries < 0 {
		return nil, "", fmt.Errorf("max entries %d is negative: %w", entries, blockstore.ErrInvalid)
	}
	if token != "" && (token[0] != kind || !enginePattern.MatchString(token)) {
		return nil, "", fmt.Errorf("%q: %w", token, errToken)
	}
	page = slices.DeleteFunc(slices.Clone(all), func(t T) bool { return id(t) <= token })
	slices.SortFunc(page, func(a, b T) int { return strings.Compare(id(a), id(b)) })
	if entries > 0 && len(page) > int(entries) {
		page = page[:entries]
		next = id(page[len(page)-1])
	}
	return page, next, nil
}
