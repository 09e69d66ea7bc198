package eventstore

import (
	"errors"
	"fmt"
	"iter"

	"weft/domain"
)

// Cold is where a mirror finds the records that it holds in memory no more. What it gives is
// verified by whoever reads, record by record (E4), so it need not verify. Many goroutines call it.
type Cold interface {
	// Page gives consecutive records, that of n among them, as they are stored, and the n of the
	// first. The bytes are not changed afterwards by anybody.
	Page(n uint64) (first uint64, records [][]byte, err error)
	// Run gives the place of a stream's events near n, which is one of them: as many as are indexed
	// together.
	Run(s domain.StreamID, n uint64) (Run, error)
}

// Run is a part of one stream: events that follow each other in it.
type Run struct {
	First  domain.Revision // of the first event of the run
	Before uint64          // n of the event before that one, 0 when it begins the stream
	N      []uint64        // n of each event, ascending
}

// Base is all that a mirror must know of the records it leaves to a Cold.
type Base struct {
	Head    Head
	Raises  []Raise                                // ascending
	Streams iter.Seq2[domain.StreamID, StreamHead] // the end of each stream
	IDs     []domain.EventID                       // of the last records, the oldest first
}

// Raise says that the records after n = Floor carry a timeline.
type Raise struct {
	Timeline domain.Timeline
	Floor    uint64
}

// lineage is what a mirror knows of one stream: how many of its events are cold, the n of the last
// of those, and the n of every event that is in memory.
type lineage struct {
	cold uint64
	last uint64
	hot  []uint64
}

func (l *lineage) count() uint64 { return l.cold + uint64(len(l.hot)) }

// end gives the n of the last event, 0 for a stream without one.
func (l *lineage) end() uint64 {
	if k := len(l.hot); k > 0 {
		return l.hot[k-1]
	}
	return l.last
}

// Attach founds an empty mirror on records that stand elsewhere: its head is their head, and reads
// go through both without a seam. The error is of kind Invalid for a mirror that holds something.
func (m *Mirror) Attach(c Cold, b Base) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.count() > 0 {
		return domain.Errorf(domain.Invalid, "the mirror is not empty")
	}
	m.mu.cold, m.mu.base, m.mu.head = c, b.Head.Position.N(), b.Head
	m.mu.raises = b.Raises
	m.mu.streams = map[domain.StreamID]lineage{}
	m.mu.ids = map[domain.EventID]uint64{}
	if b.Streams != nil {
		for id, h := range b.Streams {
			m.mu.streams[id] = lineage{cold: uint64(h.Revision + 1), last: h.Position.N()}
		}
	}
	ids := b.IDs[max(0, len(b.IDs)-IDsMax):]
	for i, id := range ids {
		m.remember(id, m.mu.base-uint64(len(ids)-1-i))
	}
	m.wake()
	return nil
}

// Retire leaves the records up to n to the Cold, which holds them by now, and gives their memory
// back. Readers under way keep what they began with.
func (m *Mirror) Retire(to uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.cold == nil || to <= m.mu.base || to > m.count() {
		return
	}
	k := to - m.mu.base
	for i, b := range m.mu.records[:k] {
		id := streamOf(b)
		l := m.mu.streams[id]
		if n := m.mu.base + uint64(i) + 1; len(l.hot) > 0 && l.hot[0] == n {
			l.cold, l.last, l.hot = l.cold+1, n, l.hot[1:]
			if len(l.hot) == 0 {
				l.hot = nil
			}
			m.mu.streams[id] = l
		}
	}
	m.mu.records = append([][]byte(nil), m.mu.records[k:]...)
	m.mu.base = to
}

// Base gives the n up to which records stand in the Cold.
func (m *Mirror) Base() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mu.base
}

// Hot gives the encoded records behind the base in order, at most limit of them. Nobody changes
// them.
func (m *Mirror) Hot(limit int) []Entry {
	m.mu.RLock()
	s := m.span()
	m.mu.RUnlock()
	k := min(limit, len(s.records))
	out := make([]Entry, k)
	for i, b := range s.records[:k] {
		out[i] = Entry{s.position(s.base + uint64(i) + 1), b}
	}
	return out
}

// page remembers the records last read from the Cold, and the hash of the record last verified, so
// that a reader in order reads nothing twice. It belongs to one reader.
type page struct {
	first   uint64
	records [][]byte
	n       uint64 // of the record last verified
	hash    [32]byte
}

// raw gives the stored bytes of the record of n, unverified.
func (s span) raw(n uint64, pg *page) ([]byte, error) {
	if n > s.base {
		return s.records[n-s.base-1], nil
	}
	if n < pg.first || n >= pg.first+uint64(len(pg.records)) {
		var err error
		if pg.first, pg.records, err = s.cold.Page(n); err != nil {
			pg.records = nil
			return nil, s.damagedAt(n, err)
		}
		if n < pg.first || n >= pg.first+uint64(len(pg.records)) {
			pg.records = nil
			return nil, &CorruptError{Position: s.position(n), What: "is missing from its segment"}
		}
	}
	return pg.records[n-pg.first], nil
}

// damagedAt gives damage that has no place the place of a record.
func (s span) damagedAt(n uint64, err error) error {
	var bad *CorruptError
	if errors.As(err, &bad) && bad.Position == 0 {
		return &CorruptError{Position: s.position(n), What: bad.What, Member: bad.Member}
	}
	return err
}

// walker finds the events of one stream by revision, over what is in memory and what is not.
type walker struct {
	span
	id   domain.StreamID
	line lineage
	ends []uint64 // n of an event in every run between the end of the cold part and run
	run  Run
}

// n gives the place of a revision, which the stream has.
func (w *walker) n(rev uint64) (uint64, error) {
	if rev >= w.line.cold {
		return w.line.hot[rev-w.line.cold], nil
	}
	if len(w.ends) == 0 {
		w.ends = append(w.ends, w.line.last)
		if err := w.load(); err != nil {
			return 0, err
		}
	}
	for rev >= uint64(w.run.First)+uint64(len(w.run.N)) && len(w.ends) > 1 { // towards the end
		w.ends = w.ends[:len(w.ends)-1]
		if err := w.load(); err != nil {
			return 0, err
		}
	}
	for rev < uint64(w.run.First) {
		if w.run.Before == 0 || w.run.Before >= w.run.N[0] {
			return 0, w.lost(rev)
		}
		w.ends = append(w.ends, w.run.Before)
		if err := w.load(); err != nil {
			return 0, err
		}
	}
	i := rev - uint64(w.run.First)
	if i >= uint64(len(w.run.N)) || w.run.N[i] == 0 || w.run.N[i] > w.base {
		return 0, w.lost(rev)
	}
	return w.run.N[i], nil
}

func (w *walker) load() (err error) {
	at := w.ends[len(w.ends)-1]
	if w.run, err = w.cold.Run(w.id, at); err != nil {
		return w.damagedAt(at, err)
	}
	if len(w.run.N) == 0 {
		return w.lost(w.line.cold - 1)
	}
	return nil
}

func (w *walker) lost(rev uint64) error {
	return &CorruptError{
		Position: w.position(w.line.last),
		What:     fmt.Sprintf("the index of its segment misses revision %d", rev),
	}
}
