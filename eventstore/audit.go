package eventstore

import "weft/domain"

// verify decodes the record found at a place and checks everything about it and its place:
// checksum, content, hash, that it follows the record before it (E1, E2), and that it follows its
// stream.
func verify(
	e Entry, next domain.Position, prev [32]byte, of func(domain.StreamID) StreamHead,
) (Recorded, error) {
	if e.At.N() != next.N() || e.At.Timeline() < next.Timeline() {
		return Recorded{}, &CorruptError{
			Position: next, What: "is missing; found position " + e.At.String(),
		}
	}
	r, err := DecodeRecord(e.At, e.Record)
	if err != nil {
		return Recorded{}, err
	}
	if r.Prev != prev {
		return Recorded{}, &CorruptError{
			Position: e.At, What: "does not follow the record before it",
		}
	}
	if head := of(r.Stream); r.Revision != head.Revision+1 || r.Before != head.Position {
		return Recorded{}, &CorruptError{Position: e.At, What: "does not follow its stream"}
	}
	return r, nil
}

// Auditor checks a whole log, record by record from the first, and keeps only the heads. The zero
// value stands before the first record. It belongs to one goroutine.
type Auditor struct {
	head    Head
	streams map[domain.StreamID]StreamHead
}

// Next checks the record that comes next. The error is a CorruptError, or of kind Unsupported for a
// record of a newer format.
func (a *Auditor) Next(e Entry) error {
	next := domain.PositionOf(a.head.Position.Timeline(), a.head.Position.N()+1)
	r, err := verify(e, next, a.head.Hash, a.Stream)
	if err != nil {
		return err
	}
	if a.streams == nil {
		a.streams = map[domain.StreamID]StreamHead{}
	}
	a.streams[r.Stream] = StreamHead{Revision: r.Revision, Position: r.Position}
	a.head = Head{Position: r.Position, Hash: r.Hash}
	return nil
}

// Head gives the last record checked.
func (a *Auditor) Head() Head { return a.head }

// Stream gives the end of a stream among the records checked.
func (a *Auditor) Stream(s domain.StreamID) StreamHead {
	if h, ok := a.streams[s]; ok {
		return h
	}
	return StreamHead{Revision: domain.NoRevision}
}

// Streams counts the streams among the records checked.
func (a *Auditor) Streams() int { return len(a.streams) }
