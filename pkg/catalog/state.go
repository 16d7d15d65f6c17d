package catalog

import (
	"bytes"
	"iter"
	"strings"

	"github.com/tidwall/btree"
)

// Entry is a named record.
type Entry struct {
	Key      string
	Revision uint64 // number of the commit that has put it
	Value    []byte // must not be changed
}

// View is one consistent state that never changes. It costs nothing to keep but the
// memory of entries that are changed later. Methods may be called concurrently.
type View struct{ state state }

// Commit is the number of the last commit in the view, 0 before the first.
func (v View) Commit() uint64 { return v.state.commit }

// Len is how many entries there are.
func (v View) Len() int { return v.state.tree.Len() }

// Get returns the entry of key.
func (v View) Get(key string) (Entry, bool) { return v.state.tree.Get(Entry{Key: key}) }

// Scan returns the entries whose keys begin with prefix and are greater than after,
// in key order; at most limit of them if limit is above 0.
func (v View) Scan(prefix, after string, limit int) []Entry {
	var found []Entry
	for e := range v.from(max(prefix, after), prefix) {
		if e.Key == after {
			continue
		}
		found = append(found, e)
		if len(found) == limit {
			break
		}
	}
	return found
}

// All goes through the entries whose keys begin with prefix, in key order.
func (v View) All(prefix string) iter.Seq[Entry] { return v.from(prefix, prefix) }

// from goes from the key start on for as long as keys begin with prefix.
func (v View) from(start, prefix string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		v.state.tree.Ascend(Entry{Key: start}, func(e Entry) bool {
			return strings.HasPrefix(e.Key, prefix) && yield(e)
		})
	}
}

// state is the content of a catalog. A copy is immutable as long as nobody applies
// to it; whoever applies owns it alone.
type state struct {
	tree   *btree.BTreeG[Entry]
	commit uint64 // number of the last commit in it
	bytes  int64  // of all entries, encoded
}

func newState() state {
	less := func(a, b Entry) bool { return a.Key < b.Key }
	return state{tree: btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})}
}

// copy is s as it is now; the nodes are shared until s changes.
func (s *state) copy() state {
	return state{tree: s.tree.Copy(), commit: s.commit, bytes: s.bytes}
}

// put sets an entry.
func (s *state) put(e Entry) {
	old, replaced := s.tree.Set(e)
	if replaced {
		s.bytes -= putSize(old.Key, old.Value)
	}
	s.bytes += putSize(e.Key, e.Value)
}

// remove takes an entry away, if there.
func (s *state) remove(key string) {
	if old, ok := s.tree.Delete(Entry{Key: key}); ok {
		s.bytes -= putSize(old.Key, old.Value)
	}
}

// bytesWith is what bytes would be after ops on distinct keys.
func (s *state) bytesWith(ops []Op) int64 {
	total := s.bytes
	for _, op := range ops {
		if old, ok := s.tree.Get(Entry{Key: op.Key}); ok {
			total -= putSize(old.Key, old.Value)
		}
		if op.Value != nil {
			total += putSize(op.Key, op.Value)
		}
	}
	return total
}

// apply makes the changes of one commit; values are copied.
func (s *state) apply(commit uint64, ops []Op) {
	for _, op := range ops {
		if op.Value == nil {
			s.remove(op.Key)
		} else {
			s.put(Entry{Key: op.Key, Revision: commit, Value: bytes.Clone(op.Value)})
		}
	}
	s.commit = commit
}
