package dedup

import "slices"

// Reread reads the sealed files again of which the disk did not let Open read all, and
// takes in those that can be read now. It tells how many are left: as long as there are
// some, a slot that no file holds may be in one of them. Without any it costs nothing.
func (s *Store) Reread() (left int) {
	s.rereading.Lock()
	defer s.rereading.Unlock()
	s.mu.RLock()
	silent := s.silent
	s.mu.RUnlock()
	for _, old := range silent {
		ff := old // what it was found to be is not kept
		if err := s.read(&ff); err == nil && !ff.silent {
			s.takeIn(&ff)
		}
	}
	return s.Silent()
}

// Silent is how many files Reread would read.
func (s *Store) Silent() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.silent)
}

// takeIn puts a file into the index in place of what Open could read of it. What was known
// to be damaged is believed by its fingerprint only.
func (s *Store) takeIn(ff *foundFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.silent = slices.DeleteFunc(slices.Clone(s.silent), func(o foundFile) bool { return o.Name == ff.Name })
	s.problems = slices.DeleteFunc(slices.Clone(s.problems), func(p Problem) bool { return p.File == ff.Name })
	if old := s.files[ff.num]; old != nil {
		s.unindex(old)
	}
	_ = s.adopt(ff) // of a sealed file it is all in memory
	for at := range s.damage {
		ch := s.index[at.Chunk]
		if ch == nil {
			continue
		}
		for _, c := range ch.copies {
			if c.file.num == ff.num {
				c.setBad(int(at.Slot), int(at.Slot)+1)
			}
		}
	}
}
