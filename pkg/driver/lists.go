package driver

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore"
)

// paginate cuts a page out of a list that is sorted by key. A token names the last
// entry of the page before, so it stays good when entries come and go.
func paginate[T any](all []T, key func(T) string, token string, entries int32) (page []T, next string, err error) {
	if entries < 0 {
		return nil, "", fmt.Errorf("max entries %d is negative: %w", entries, blockstore.ErrInvalid)
	}
	start := 0
	if token != "" {
		last, err := strconv.Unquote(token)
		if err != nil || !strings.HasPrefix(token, `"`) {
			return nil, "", fmt.Errorf("%q: %w", token, errToken)
		}
		for start < len(all) && key(all[start]) <= last {
			start++
		}
	}
	page = all[start:]
	if entries > 0 && len(page) > int(entries) {
		page = page[:entries]
		next = strconv.Quote(key(page[len(page)-1]))
	}
	return page, next, nil
}
