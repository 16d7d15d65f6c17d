package sanity

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The tests of this package are worth what their comparisons find: one byte, one file
// too many, one too few.
func TestCompareFindsDifferences(t *testing.T) {
	i := newImage(1, 0, 20)
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, make([]byte, 32*slotSize), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, m := range map[string]medium{
		"directory": &directory{t.TempDir()},
		"device":    &device{file, 32 * slotSize},
	} {
		if err := fillMedium(m, i); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]struct {
			image image
			loose map[int]bool
			ok    bool
		}{
			"the same":           {image: i, ok: true},
			"one too many":       {image: i.without(7)},
			"one missing":        {image: i.with(newImage(2, 25, 1))},
			"another content":    {image: i.with(image{7: {seed: 3, size: i[7].size}})},
			"a byte longer":      {image: i.with(image{7: {seed: i[7].seed, size: i[7].size + 1 + blockSize}})},
			"loose and there":    {image: i.without(7), loose: map[int]bool{7: true}, ok: true},
			"loose and missing":  {image: i, loose: map[int]bool{25: true}, ok: true},
			"loose, another not": {image: i.without(7, 8), loose: map[int]bool{7: true}},
		} {
			if err := m.compare(want.image, want.loose); (err == nil) != want.ok {
				t.Errorf("%s, %s: %v", what, name, err)
			}
		}
	}
}

func TestContentIsDeterministic(t *testing.T) {
	b := blob{seed: 5, size: slotSize}
	one, two := b.bytes(), b.bytes()
	if string(one) != string(two) {
		t.Error("one seed, two contents")
	}
	if other := (blob{seed: 6, size: slotSize}).bytes(); string(one) == string(other) {
		t.Error("two seeds, one content")
	}
}

func TestLogLinesAreJudged(t *testing.T) {
	for line, fine := range map[string]bool{
		`time=1 level=ERROR msg="CSI call" method=M took=1ms code=NotFound err="no"`:           true,
		`time=1 level=ERROR msg="CSI call" method=M took=1ms code=Internal err="no"`:           false,
		`time=1 level=ERROR msg="CSI call" method=M took=1ms code=Unknown err="code=NotFound"`: false,
		`time=1 level=ERROR msg="CSI call" method=M took=1ms`:                                  false,
		`time=1 level=ERROR msg="fold failed" err="disk"`:                                      false,
	} {
		if isCallersFault(line) != fine {
			t.Errorf("%s: want %v", line, fine)
		}
	}
}

// A copy taken between two moments must hold what was durable before the first, and
// nothing that was begun after the second.
func TestLoadBetween(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	l := &load{
		blobs:  newImage(1, 0, 5),
		begun:  map[int]time.Time{0: at(1), 1: at(3), 2: at(5), 3: at(8)},
		synced: map[int]time.Time{0: at(2), 1: at(5), 2: at(7), 3: at(9)},
	}
	must, loose := l.between(at(4), at(6))
	if len(must) != 1 || must[0] != l.blobs[0] {
		t.Errorf("must hold %v, want blob 0", must)
	}
	if len(loose) != 2 || !loose[1] || !loose[2] {
		t.Errorf("loose are %v, want 1 and 2", loose)
	}
}
