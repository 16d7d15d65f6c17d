package driver

import (
	"fmt"

	"github.com/k8ns/granary/pkg/blockstore"
)

// maxPage is how many entries a list has at most, whatever the CO asks for: gRPC clients
// take no more than 4 MiB in a message by default.
const maxPage = 1000

// paginate makes one page of a list in the order of the engine's IDs, which are of the
// kind 'v' or 's'. A token is the ID of the last entry of the page before, so it stays
// good when entries come and go. list returns at most limit entries behind an ID.
func paginate[T any](list func(after string, limit int) []T, kind byte, id func(T) string, token string, entries int32) (page []T, next string, err error) {
	if entries < 0 {
		return nil, "", fmt.Errorf("max entries %d is negative: %w", entries, blockstore.ErrInvalid)
	}
	if token != "" && (token[0] != kind || !enginePattern.MatchString(token)) {
		return nil, "", fmt.Errorf("%q: %w", token, errToken)
	}
	limit := maxPage
	if entries > 0 {
		limit = min(limit, int(entries))
	}
	page = list(token, limit+1) // one more tells whether there is a next page
	if len(page) > limit {
		page = page[:limit]
		next = id(page[limit-1])
	}
	return page, next, nil
}
