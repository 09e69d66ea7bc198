package quorum

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

// A batch is one value, cut where a segment of the archive ends and where it becomes too long; what
// is put together comes apart the same, whatever its records.
func TestValues(t *testing.T) {
	entries := func(first uint64, sizes ...int) []eventstore.Entry {
		var list []eventstore.Entry
		for i, size := range sizes {
			m := &eventstore.Mirror{}
			d := eventstore.NewDraft(m)
			ev := storetest.Propose(fmt.Sprint(i), 1)
			ev[0].Data = make([]byte, size)
			if _, err := d.Add("s-1", eventstore.NoStream(), ev); err != nil {
				t.Fatal(err)
			}
			at := domain.PositionOf(3, first+uint64(i))
			list = append(list, eventstore.Entry{At: at, Record: d.Entries()[0].Record})
		}
		return list
	}
	for name, c := range map[string]struct {
		first uint64
		sizes []int
		last  []uint64 // of the values
	}{
		"one":            {7, []int{10}, []uint64{7}},
		"several":        {1, []int{0, 10, 300}, []uint64{3}},
		"over a bound":   {9, []int{1, 2, 3, 4}, []uint64{10, 12}},
		"behind a bound": {11, []int{1, 2}, []uint64{12}},
		"at bounds":      {10, slices.Repeat([]int{5}, 12), []uint64{10, 20, 21}},
		"long":           {1, []int{40_000, 30_000, 1}, []uint64{1, 3}},
		"one too long":   {1, []int{1, 100_000, 1}, []uint64{1, 2, 3}},
	} {
		want := entries(c.first, c.sizes...)
		var last []uint64
		var got []eventstore.Entry
		for _, v := range valuesOf(want, 10) {
			last = append(last, v.last.N())
			part, err := split(v.last, want[len(got)].At, []byte(v.bytes))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got = append(got, part...)
		}
		same := func(a, b eventstore.Entry) bool {
			return a.At == b.At && string(a.Record) == string(b.Record)
		}
		if !slices.Equal(last, c.last) || !slices.EqualFunc(got, want, same) {
			t.Errorf("%s: values end at %d, want %d", name, last, c.last)
		}
	}
}

// Calls that wait together are one value: one key for all of them.
func TestBatchIsOneValue(t *testing.T) {
	q := open(t, t.TempDir())
	add(t, q, "s-1", eventstore.NoStream(), "one", 7)
	if key, at := stored(t, q, 3); key != q.keys.log(7) || at == 0 {
		t.Errorf("%s at %d", key, at)
	}
	if got := get(t, q, q.keys.log(3)); got != "" {
		t.Errorf("a key of its own, %d bytes", len(got))
	}
}

// A mirror that stands inside of a value goes on from there.
func TestGoesOnInsideOfValue(t *testing.T) {
	q := open(t, t.TempDir())
	add(t, q, "s-1", eventstore.NoStream(), "one", 5)
	add(t, q, "s-1", eventstore.At(4), "two", 4)
	hot := q.mirror.Hot(9)
	for n := range hot {
		m := &eventstore.Mirror{}
		if err := m.Extend(hot[:n]...); err != nil {
			t.Fatal(err)
		}
		l := loader{keys: q.keys, kv: q.client, page: 2}
		if err := l.fill(t.Context(), m); err != nil || m.Head() != q.mirror.Head() {
			t.Errorf("from %d: %v, %+v", n, err, m.Head())
		}
	}
}

// A log of format 1, one key a record and the end of every stream beside them, opens as it is, goes
// on in this format, and loses what nobody brings up to date any more.
func TestFormatOne(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir)
	add(t, q, "s-1", eventstore.NoStream(), "one", 3)
	for _, e := range q.mirror.Hot(3) {
		put(t, q, q.keys.log(e.At), string(e.Record))
	}
	put(t, q, q.keys.heads()+"s-1", "as it was")
	put(t, q, q.keys.format(), formatOne)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q = open(t, dir)
	add(t, q, "s-1", eventstore.At(2), "two", 2)
	if err := q.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if get(t, q, q.keys.format()) != formatValue || get(t, q, q.keys.heads()+"s-1") != "" {
		t.Errorf("format %q, head %q", get(t, q, q.keys.format()), get(t, q, q.keys.heads()+"s-1"))
	}
}

// What a watch tells ends with the first value that is damaged, by its place: what comes behind it
// would be taken for a gap.
func TestHeardUpToDamage(t *testing.T) {
	q := open(t, t.TempDir())
	add(t, q, "s-1", eventstore.NoStream(), "one", 2)
	add(t, q, "s-1", eventstore.At(1), "two", 2)
	add(t, q, "s-1", eventstore.At(3), "three", 2)
	var events []*clientv3.Event
	for _, last := range []domain.Position{2, 4, 6} {
		events = append(events, &clientv3.Event{Kv: &mvccpb.KeyValue{
			Key: []byte(q.keys.log(last)), Value: []byte(get(t, q, q.keys.log(last))),
			CreateRevision: int64(last), ModRevision: int64(last),
		}})
	}
	if got, err := q.keys.heard(events, 1); err != nil || len(got) != 6 {
		t.Errorf("%d records, %v", len(got), err)
	}
	events[1].Kv.Value[5] ^= 1
	var corrupt *eventstore.CorruptError
	got, err := q.keys.heard(events, 1)
	if !errors.As(err, &corrupt) || corrupt.Position != 3 || len(got) != 2 {
		t.Errorf("%d records, %v", len(got), err)
	}
}
