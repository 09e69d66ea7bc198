package archive

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
)

// TestForged proves what checksums alone would let through: records that are sound in themselves
// and do not follow each other, and a foot that is sound in itself and says something else than
// the segment holds.
func TestForged(t *testing.T) {
	s := memory.New()
	t.Cleanup(func() { _ = s.Close() })
	for i := range 4 {
		_, err := s.Append(t.Context(), "volume-a", eventstore.Any(),
			storetest.Propose(fmt.Sprint(i), 1)...)
		if err != nil {
			t.Fatal(err)
		}
	}
	var records []eventstore.Recorded
	for r, err := range Of(s)(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	forge := func(pick []int, foot func(*foot)) error {
		var b bytes.Buffer
		w, err := newWriter(&b, head{})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range pick {
			w.foot.hash, w.foot.last = records[i].Prev, 0 // add believes that it follows
			if err := w.add(&records[i]); err != nil {
				t.Fatal(err)
			}
		}
		w.sum.Sum(w.foot.root[:0])
		foot(&w.foot)
		if _, err := w.to.Write(w.foot.encode()); err != nil {
			t.Fatal(err)
		}
		if err := w.to.Flush(); err != nil {
			t.Fatal(err)
		}
		_, _, err = readSegment(&b, int64(b.Len()), func(head) error { return nil },
			func(eventstore.Recorded) error { return nil })
		return err
	}
	same := func(*foot) {}
	if err := forge([]int{0, 1, 2, 3}, same); err != nil {
		t.Errorf("nothing forged: %v", err)
	}
	for name, c := range map[string]struct {
		pick []int
		foot func(*foot)
		at   domain.Position
	}{
		"a record left out":  {[]int{0, 1, 3}, same, 4},
		"two records turned": {[]int{0, 2, 1, 3}, same, 3},
		"a record twice":     {[]int{0, 1, 1, 2}, same, 2},
		"no first record":    {[]int{1, 2}, same, 2},
		"count":              {[]int{0, 1}, func(f *foot) { f.count++ }, 2},
		"bytes":              {[]int{0, 1}, func(f *foot) { f.bytes-- }, 2},
		"last":               {[]int{0, 1}, func(f *foot) { f.last = 9 }, 2},
		"hash":               {[]int{0, 1}, func(f *foot) { f.hash[0] ^= 1 }, 2},
		"root":               {[]int{0, 1}, func(f *foot) { f.root[0] ^= 1 }, 2},
	} {
		err := forge(c.pick, c.foot)
		var bad *eventstore.CorruptError
		if !errors.As(err, &bad) || bad.Position != c.at {
			t.Errorf("%s: %v, want position %s", name, err, c.at)
		}
	}
}
