package rig

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// Records is a writer whose work can be judged afterwards: it appends tagged,
// checksummed records to a file, one at a time, with an fsync after each, and notes
// when each was begun and when its fsync had returned.
type Records struct {
	Path string
	Tag  uint32        // told apart from other writers by this
	Size int           // bytes of a record
	Rest time.Duration // between two records

	stop chan struct{}
	done chan struct{}

	mu struct {
		sync.Mutex
		times []times // of every record begun
		err   error   // what ended it
	}
}

type times struct{ begun, synced time.Time } // synced is zero until the fsync returned

// recordHead is length of tag, number and checksum at the head of a record.
const recordHead = 16

// StartRecords begins to write. The file must not exist.
func StartRecords(path string, tag uint32, size int, rest time.Duration) (*Records, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	w := &Records{Path: path, Tag: tag, Size: size, Rest: rest, stop: make(chan struct{}), done: make(chan struct{})}
	go w.run(f)
	return w, nil
}

func (w *Records) run(f *os.File) {
	defer close(w.done)
	defer f.Close()
	for n := 0; ; n++ {
		select {
		case <-w.stop:
			return
		case <-time.After(w.Rest):
		}
		if err := w.append(f, n); err != nil {
			w.mu.Lock()
			w.mu.err = err
			w.mu.Unlock()
			return
		}
	}
}

func (w *Records) append(f *os.File, n int) error {
	record := makeRecord(w.Tag, n, w.Size)
	w.mu.Lock()
	w.mu.times = append(w.mu.times, times{begun: time.Now()})
	w.mu.Unlock()
	if _, err := f.Write(record); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	w.mu.Lock()
	w.mu.times[n].synced = time.Now()
	w.mu.Unlock()
	return nil
}

// makeRecord is record n of the writer with the tag: head, then words that
// compress about as well as a log does.
func makeRecord(tag uint32, n, size int) []byte {
	b := make([]byte, recordHead, size+16)
	r := rand.New(rand.NewPCG(uint64(tag), uint64(n)))
	for len(b) < size {
		b = append(b, words[r.IntN(len(words))]...)
		b = binary.AppendUvarint(b, uint64(r.IntN(1<<14)))
	}
	b = b[:size]
	binary.LittleEndian.PutUint32(b[0:], tag)
	binary.LittleEndian.PutUint64(b[4:], uint64(n))
	binary.LittleEndian.PutUint32(b[12:], recordSum(b))
	return b
}

var words = []string{" accepted ", " request ", " block=", " from ", " took ", " queue ", " volume=", " ms, ", " node ", " retry "}

// recordSum is the checksum over everything but itself.
func recordSum(b []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(b[:12]), crc32.IEEETable, b[recordHead:])
}

// Stop ends the writer between two records and waits until it has ended. It returns
// the error that had ended it before, if any.
func (w *Records) Stop() error {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.err
}

// Ended tells whether an error has ended the writer.
func (w *Records) Ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.err != nil
}

// Synced is the number of records whose fsync had returned at t.
func (w *Records) Synced(t time.Time) int {
	return w.count(func(r times) bool { return !r.synced.IsZero() && !r.synced.After(t) })
}

// Begun is the number of records that were begun by t.
func (w *Records) Begun(t time.Time) int {
	return w.count(func(r times) bool { return !r.begun.After(t) })
}

func (w *Records) count(is func(times) bool) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, r := range w.mu.times {
		if is(r) {
			n++
		}
	}
	return n
}

// Longest is the longest time that a record took, of those under way at some moment
// between from and to.
func (w *Records) Longest(from, to time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var longest time.Duration
	for _, r := range w.mu.times {
		if !r.synced.IsZero() && !r.synced.Before(from) && !r.begun.After(to) {
			longest = max(longest, r.synced.Sub(r.begun))
		}
	}
	return longest
}

// Judge reads a file that this writer wrote, or a copy of it as of some moment, and
// returns how many records are in it. There must be at least and at most so many,
// whole and in order.
func (w *Records) Judge(path string, atLeast, atMost int) (int, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) && atLeast == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	for b := make([]byte, w.Size); ; n++ {
		if _, err := io.ReadFull(f, b); err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		} else if err != nil {
			return n, fmt.Errorf("record %d: %w", n, err)
		}
		if recordSum(b) != binary.LittleEndian.Uint32(b[12:]) ||
			binary.LittleEndian.Uint32(b) != w.Tag || binary.LittleEndian.Uint64(b[4:]) != uint64(n) {
			break // torn or never written: fine behind the last that must be there
		}
	}
	if n < atLeast || n > atMost {
		return n, fmt.Errorf("%s: %d good records, must be %d to %d", path, n, atLeast, atMost)
	}
	return n, nil
}
