package eventstore_test

import (
	"reflect"
	"testing"

	"weft/eventstore"
	"weft/eventstore/storetest"
)

// An append survives its way between two nodes byte for byte, whatever it expects.
func TestAppendOnTheWire(t *testing.T) {
	for _, e := range []eventstore.Expect{
		eventstore.NoStream(), eventstore.At(41), eventstore.Any(), eventstore.Exists(),
	} {
		events := storetest.Propose("wire", 3)
		events[1].Data, events[2].Token = []byte{}, 1<<48+7
		s, got, back, err := eventstore.DecodeAppend(eventstore.EncodeAppend("s-1", e, events))
		if err != nil || s != "s-1" || got != e || len(back) != 3 {
			t.Fatalf("%s: %s %s %d events, %v", e, s, got, len(back), err)
		}
		for i := range events {
			if !reflect.DeepEqual(back[i].Header, events[i].Header) ||
				string(back[i].Data) != string(events[i].Data) {
				t.Errorf("event %d: %+v, want %+v", i, back[i], events[i])
			}
		}
	}
}

// Every flipped bit of a forwarded append is refused or changes only what no record covers: the
// expectation, which the sequencer judges, and the stream's name, which the records carry too.
func TestFlippedAppendIsRefused(t *testing.T) {
	whole := eventstore.EncodeAppend("s-1", eventstore.At(0), storetest.Propose("x", 1))
	const body = 11 + len("s-1")
	for bit := 8 * body; bit < 8*len(whole); bit++ {
		b := append([]byte(nil), whole...)
		b[bit/8] ^= 1 << (bit % 8)
		if _, _, _, err := eventstore.DecodeAppend(b); err == nil {
			t.Fatalf("bit %d of byte %d went through", bit%8, bit/8)
		}
	}
}

func FuzzDecodeAppend(f *testing.F) {
	f.Add(eventstore.EncodeAppend("s-1", eventstore.NoStream(), storetest.Propose("seed", 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, e, events, err := eventstore.DecodeAppend(b)
		if err != nil {
			return
		}
		if err := eventstore.Check(s, e, events); err != nil {
			t.Errorf("let through: %v", err)
		}
		if !s.Valid() {
			t.Errorf("stream %q", s)
		}
	})
}
