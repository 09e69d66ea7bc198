package eventstore

import (
	"weft/domain"
)

// Draft is a batch of appends under construction on one head: it judges each append against the
// streams as the appends before it will leave them, assigns positions, and chains the records. It
// writes nothing. It belongs to the goroutine that owns the head, and is good only as long as the
// mirror it was made from does not move.
type Draft struct {
	mirror   *Mirror
	base     Head
	head     Head
	timeline domain.Timeline
	token    uint64
	streams  map[domain.StreamID]StreamHead
	ids      map[domain.EventID]bool
	entries  []Entry
	size     int
	closed   bool // an append moved the token
}

// NewDraft begins a batch at the mirror's head.
func NewDraft(m *Mirror) *Draft {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d := &Draft{
		mirror: m, base: m.mu.head, head: m.mu.head, timeline: m.timeline(),
		streams: map[domain.StreamID]StreamHead{}, ids: map[domain.EventID]bool{},
	}
	if c := m.streamHead(CoordinationStream); c.Revision >= 0 {
		d.token = TokenAt(c)
	}
	return d
}

// TokenAt is the fencing token that the last event of the coordination stream gives out.
func TokenAt(c StreamHead) uint64 {
	return uint64(c.Position.Timeline())<<48 + uint64(c.Revision)
}

// Add judges one append, which Check has passed, and takes it into the batch. A Duplicate answer
// and an error leave the batch as it was. A ConflictError, an ErrFenced and an ErrElsewhere rest on
// the mirror alone: the engine proves that the mirror is current before it passes them on (E6).
func (d *Draft) Add(s domain.StreamID, e Expect, events []Proposed) (Appended, error) {
	if a, found, err := d.mirror.Find(s, e, events); found || err != nil {
		return a, err
	}
	if closed := domain.Intent(s.Category()) && ClosedAt(d.end(EngineStream).Revision); closed !=
		(e.kind == expectCopied) {
		return Appended{}, domain.Wrap(ErrElsewhere, "eventstore.Append", string(s))
	}
	head := d.end(s)
	if !e.Holds(head.Revision) {
		return Appended{}, &ConflictError{Stream: s, Want: e, Current: head.Revision}
	}
	for i := range events {
		if t := events[i].Token; t != 0 && t != d.token {
			return Appended{}, domain.Wrap(ErrFenced, "eventstore.Append", string(s))
		}
	}
	for i := range events {
		r := Recorded{Header: events[i].Header, Data: events[i].Data, Before: head.Position}
		r.Stream, r.Revision = s, head.Revision+1
		r.Position = domain.PositionOf(d.timeline, d.head.Position.N()+1)
		r.Prev = d.head.Hash
		r.Seal()
		b := AppendRecord(make([]byte, 0, Size(s, &events[i])), &r)
		d.entries, d.size = append(d.entries, Entry{r.Position, b}), d.size+len(b)
		d.ids[r.ID] = true
		d.head = Head{Position: r.Position, Hash: r.Hash}
		head = StreamHead{Revision: r.Revision, Position: r.Position}
	}
	d.streams[s] = head
	d.closed = d.closed || s.Category() == "coordination"
	return Appended{Last: head.Revision, Position: head.Position}, nil
}

// end gives the end of a stream as the appends so far leave it.
func (d *Draft) end(s domain.StreamID) StreamHead {
	if h, touched := d.streams[s]; touched {
		return h
	}
	return d.mirror.StreamHead(s)
}

// Holds tells whether one of the ids stands in this batch, so that nobody knows yet whether it will
// be stored.
func (d *Draft) Holds(events []Proposed) bool {
	for i := range events {
		if d.ids[events[i].ID] {
			return true
		}
	}
	return false
}

// Closed tells whether nothing more may join: an append to a coordination stream moves the token
// that those behind it would be judged by.
func (d *Draft) Closed() bool { return d.closed }

// Base gives the head the batch follows.
func (d *Draft) Base() Head { return d.base }

// Head gives the head the batch leaves.
func (d *Draft) Head() Head { return d.head }

// Entries gives the encoded records in order.
func (d *Draft) Entries() []Entry { return d.entries }

// Bytes is the size of the encoded records.
func (d *Draft) Bytes() int { return d.size }
