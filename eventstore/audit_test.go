package eventstore

import (
	"errors"
	"testing"
	"time"

	"weft/domain"
)

// chainOf gives k sound records of one stream.
func chainOf(k int) []Recorded {
	out := make([]Recorded, k)
	for i := range out {
		r := &out[i]
		r.ID = domain.EventID{UUID: domain.DeriveUUID(domain.UUID{}, "chain", string(rune('a'+i)))}
		r.Type, r.Created, r.Stream = "T", time.Unix(1, 0).UTC(), "a-1"
		r.Revision, r.Position, r.Before = domain.Revision(i), domain.Position(i+1), domain.Position(i)
		if i > 0 {
			r.Prev = out[i-1].Hash
		}
		r.Seal()
	}
	return out
}

// A record that is sound in itself and does not belong where it stands is found when the log is
// loaded and when it is audited: another predecessor, another revision, another place in its
// stream, a gap, a timeline that falls (E1, E2).
func TestRecordOutOfPlace(t *testing.T) {
	for name, c := range map[string]struct {
		change func([]Recorded)
		at     domain.Position
	}{
		"prev":     {func(rs []Recorded) { rs[2].Prev[5] ^= 1; rs[2].Seal() }, 3},
		"revision": {func(rs []Recorded) { rs[2].Revision++; rs[2].Seal() }, 3},
		"before":   {func(rs []Recorded) { rs[2].Before-- }, 3},
		"gap":      {func(rs []Recorded) { rs[2].Position++; rs[2].Seal() }, 3},
		"twice":    {func(rs []Recorded) { rs[2] = rs[1] }, 3},
		"timeline": {func(rs []Recorded) {
			rs[1].Position = domain.PositionOf(2, 2)
			rs[1].Seal()
			rs[2].Prev, rs[2].Before = rs[1].Hash, rs[1].Position
			rs[2].Seal()
		}, domain.PositionOf(2, 3)},
	} {
		rs := chainOf(3)
		c.change(rs)
		var m Mirror
		var a Auditor
		for i := range rs {
			e := Entry{rs[i].Position, AppendRecord(nil, &rs[i])}
			loaded, audited := m.Extend(e), a.Next(e)
			if i < 2 {
				if loaded != nil || audited != nil {
					t.Fatalf("%s: %v, %v", name, loaded, audited)
				}
				continue
			}
			for _, err := range []error{loaded, audited} {
				var corrupt *CorruptError
				if !errors.As(err, &corrupt) || corrupt.Position != c.at {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if m.Head() != a.Head() || m.Head().Position.N() != 2 {
			t.Errorf("%s: the bad record was taken in", name)
		}
	}
}
