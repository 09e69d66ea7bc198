package eventstore

import "weft/domain"

// verify decodes the record found at a place and checks everything about it and its place:
// checksum, content, hash, that it follows the record before it (E1, E2), and that it follows its
// stream.
func verify(
	e Entry, next domain.Position, prev [32]byte, of func(domain.StreamID) StreamHead,
) (Recorded, error) {
	if err := inPlace(e.At, next); err != nil {
		return Recorded{}, err
	}
	r, err := DecodeRecord(e.At, e.Record)
	if err == nil {
		err = follows(&r, prev, of)
	}
	if err != nil {
		return Recorded{}, err
	}
	return r, nil
}

// inPlace checks that the record found is the next one.
func inPlace(at, next domain.Position) error {
	if at.N() != next.N() || at.Timeline() < next.Timeline() {
		return &CorruptError{Position: next, What: "is missing; found position " + at.String()}
	}
	return nil
}

// follows checks that a record continues the log and its stream.
func follows(r *Recorded, prev [32]byte, of func(domain.StreamID) StreamHead) error {
	if r.Prev != prev {
		return &CorruptError{Position: r.Position, What: "does not follow the record before it"}
	}
	if head := of(r.Stream); r.Revision != head.Revision+1 || r.Before != head.Position {
		return &CorruptError{Position: r.Position, What: "does not follow its stream"}
	}
	return nil
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
	r, err := verify(e, a.next(), a.head.Hash, a.end)
	if err == nil {
		a.note(&r)
	}
	return err
}

// Follow is Next for a record that is decoded, and so verified, already.
func (a *Auditor) Follow(r *Recorded) error {
	err := inPlace(r.Position, a.next())
	if err == nil {
		err = follows(r, a.head.Hash, a.end)
	}
	if err == nil {
		a.note(r)
	}
	return err
}

func (a *Auditor) next() domain.Position {
	return domain.PositionOf(a.head.Position.Timeline(), a.head.Position.N()+1)
}

func (a *Auditor) note(r *Recorded) {
	if a.streams == nil {
		a.streams = map[domain.StreamID]StreamHead{}
	}
	a.streams[r.Stream] = StreamHead{Revision: r.Revision, Position: r.Position}
	a.head = Head{Position: r.Position, Hash: r.Hash}
}

// Head gives the last record checked.
func (a *Auditor) Head() Head { return a.head }

// end gives the end of a stream among the records checked.
func (a *Auditor) end(s domain.StreamID) StreamHead {
	if h, ok := a.streams[s]; ok {
		return h
	}
	return StreamHead{Revision: domain.NoRevision}
}
