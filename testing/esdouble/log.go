// Package esdouble is an EventStoreDB in memory, for tests: a log that takes any stream name and
// any custom metadata, and gives back what it took. The protocol in front of it is adapters/esdb,
// so the official clients talk to it unmodified.
//
// It behaves as an EventStoreDB where that matters to a client: positions have gaps, events of the
// system and of other applications stand between ours, the same ids at the expected place give the
// old result, and the answer to an append of several events names the place of the first. It can
// be told to fail, and its events can be damaged.
//
// It is not an EventStoreDB: no test on it says how a real cluster behaves.
package esdouble

import (
	"context"
	"iter"
	"math"
	"slices"
	"sort"
	"sync"
	"time"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/eventstore"
)

// Fault is what an injected failure does to one append.
type Fault uint8

// The faults of an append.
const (
	None    Fault = iota
	Lost          // writes nothing and answers "unavailable"
	Applied       // writes it and answers "unavailable"
)

const (
	noiseEvery = 3    // appends between two events that are none of ours
	gap        = 1000 // the least distance of two positions
)

// Event is one stored event.
type Event struct {
	esdb.Foreign
	Stream   domain.StreamID
	Revision domain.Revision
	Position domain.Position
}

// Log is the database. Any number of goroutines may use it.
type Log struct {
	// AppendMax is the most bytes of data and custom metadata in one append; 0 is no limit.
	AppendMax int
	// Fault, when not nil, is asked about every append under the log's mutex.
	Fault func(s domain.StreamID, ev []esdb.Foreign) Fault

	mu struct {
		sync.Mutex
		events  []Event // by position
		streams map[domain.StreamID][]int
		appends int
		last    domain.Position
		ended   bool
		changed chan struct{}
	}
}

var (
	_ eventstore.Store = (*Log)(nil)
	_ esdb.Appender    = (*Log)(nil)
)

// New makes a log that holds what a fresh database holds: an event of its own.
func New() *Log {
	l := &Log{}
	l.mu.streams = map[domain.StreamID][]int{}
	l.mu.changed = make(chan struct{})
	l.put("$settings", esdb.Foreign{
		ID: domain.EventID{UUID: domain.DeriveUUID(domain.UUID{}, "settings")}, Type: "$settings",
		ContentType: "application/json", Data: []byte("{}"),
	})
	return l
}

// put stores one event. The caller holds the mutex, or is alone.
func (l *Log) put(s domain.StreamID, f esdb.Foreign) domain.Position {
	l.mu.last += domain.Position(gap + len(f.Data) + len(f.Custom))
	e := Event{
		Foreign: f, Stream: s, Position: l.mu.last,
		Revision: domain.Revision(len(l.mu.streams[s])),
	}
	l.mu.streams[s] = append(l.mu.streams[s], len(l.mu.events))
	l.mu.events = append(l.mu.events, e)
	return e.Position
}

// noise stores an event of the system and one of another application, now and then.
func (l *Log) noise() {
	if l.mu.appends++; l.mu.appends%noiseEvery != 0 {
		return
	}
	for _, s := range []domain.StreamID{"$stats-0", "orders-17"} {
		id := domain.DeriveUUID(domain.UUID{}, string(s), l.mu.last.String())
		l.put(s, esdb.Foreign{
			ID: domain.EventID{UUID: id}, Type: "$statsCollected", ContentType: "application/json",
			Data: []byte("{}"),
		})
	}
}

// AppendForeign implements esdb.Appender.
func (l *Log) AppendForeign(
	_ context.Context, s domain.StreamID, e eventstore.Expect, ev []esdb.Foreign,
) (eventstore.Appended, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := 0
	for i := range ev {
		size += len(ev[i].Data) + len(ev[i].Custom)
	}
	if l.AppendMax > 0 && size > l.AppendMax {
		return eventstore.Appended{}, domain.Errorf(domain.TooLarge, "%d bytes in one append", size)
	}
	fault := None
	if l.Fault != nil {
		fault = l.Fault(s, ev)
	}
	down := domain.Errorf(domain.Unavailable, "the fault that was asked for")
	if fault == Lost {
		return eventstore.Appended{}, down
	}
	stream := l.mu.streams[s]
	if a, found := l.repeated(stream, e, ev); found {
		if fault == Applied {
			return eventstore.Appended{}, down
		}
		return a, nil
	}
	if current := domain.Revision(len(stream) - 1); !e.Holds(current) {
		return eventstore.Appended{}, &eventstore.ConflictError{Stream: s, Want: e, Current: current}
	}
	var first domain.Position
	for i := range ev {
		if at := l.put(s, ev[i]); first == 0 {
			first = at
		}
	}
	l.noise()
	close(l.mu.changed)
	l.mu.changed = make(chan struct{})
	if fault == Applied {
		return eventstore.Appended{}, down
	}
	return eventstore.Appended{
		Last: domain.Revision(len(l.mu.streams[s]) - 1), Position: first,
	}, nil
}

// repeated looks for an append's ids behind the revision it expects; without one, anywhere in its
// stream. An expectation that holds is no repeat, whatever the ids.
func (l *Log) repeated(
	stream []int, e eventstore.Expect, ev []esdb.Foreign,
) (eventstore.Appended, bool) {
	from := 0
	if rev, exact := e.Exact(); exact {
		if e.Holds(domain.Revision(len(stream) - 1)) {
			return eventstore.Appended{}, false
		}
		from = int(rev) + 1
	} else {
		for from < len(stream) && len(ev) > 0 && l.mu.events[stream[from]].ID != ev[0].ID {
			from++
		}
	}
	if from+len(ev) > len(stream) || len(ev) == 0 {
		return eventstore.Appended{}, false
	}
	for i := range ev {
		if l.mu.events[stream[from+i]].ID != ev[i].ID {
			return eventstore.Appended{}, false
		}
	}
	return eventstore.Appended{
		Last:     domain.Revision(from + len(ev) - 1),
		Position: l.mu.events[stream[from]].Position, Duplicate: true,
	}, true
}

// Foreign implements esdb.Appender.
func (l *Log) Foreign(r *eventstore.Recorded) (esdb.Foreign, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.after(r.Position - 1)
	if i == len(l.mu.events) || l.mu.events[i].Position != r.Position {
		return esdb.Foreign{}, false
	}
	return l.mu.events[i].Foreign, true
}

// after gives the index of the first event above a position.
func (l *Log) after(p domain.Position) int {
	return sort.Search(len(l.mu.events), func(i int) bool { return l.mu.events[i].Position > p })
}

// Events lists the events of the streams that begin with a prefix, in order.
func (l *Log) Events(prefix string) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Event
	f := domain.Filter{StreamPrefix: []string{prefix}}
	for _, e := range l.mu.events {
		if f.Match(e.Stream, e.Type) {
			out = append(out, e)
		}
	}
	return out
}

// Change puts other contents in the place of an event, as damage or a forger would. The function
// must not change the slices it finds in place.
func (l *Log) Change(p domain.Position, f func(*Event)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.events = slices.Clone(l.mu.events)
	f(&l.mu.events[l.after(p-1)])
}

// Append implements eventstore.Store: appends come through the protocol alone.
func (*Log) Append(
	context.Context, domain.StreamID, eventstore.Expect, ...eventstore.Proposed,
) (eventstore.Appended, error) {
	return eventstore.Appended{}, domain.Errorf(domain.Unsupported, "append through the protocol")
}

func (e *Event) recorded() eventstore.Recorded {
	return eventstore.Recorded{Data: e.Data, Header: domain.Header{
		ID: e.ID, Type: e.Type, Stream: e.Stream, Revision: e.Revision, Position: e.Position,
		Created: time.Unix(1_700_000_000, 0).UTC(),
	}}
}

// ReadStream implements eventstore.Store.
func (l *Log) ReadStream(
	_ context.Context, s domain.StreamID, from domain.Revision, d eventstore.Direction, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	l.mu.Lock()
	events, stream := l.mu.events, l.mu.streams[s]
	l.mu.Unlock()
	step, i := 1, int(max(from, 0))
	if d == eventstore.Backward {
		step = -1
		if i = int(from); i < 0 || i >= len(stream) {
			i = len(stream) - 1
		}
	}
	return func(yield func(eventstore.Recorded, error) bool) {
		for ; i >= 0 && i < len(stream) && limit != 0; i, limit = i+step, limit-1 {
			if !yield(events[stream[i]].recorded(), nil) {
				return
			}
		}
	}
}

// ReadAll implements eventstore.Store.
func (l *Log) ReadAll(
	_ context.Context, from domain.Position, d eventstore.Direction, f domain.Filter, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	l.mu.Lock()
	events := l.mu.events
	i, step := l.after(from), 1
	if d == eventstore.Backward {
		if from == 0 {
			i = l.after(math.MaxUint64)
		}
		i, step = i-1, -1
	}
	l.mu.Unlock()
	return func(yield func(eventstore.Recorded, error) bool) {
		for ; i >= 0 && i < len(events) && limit != 0; i += step {
			e := &events[i]
			if !f.Match(e.Stream, e.Type) {
				continue
			}
			limit--
			if !yield(e.recorded(), nil) {
				return
			}
		}
	}
}

// Head implements eventstore.Store.
func (l *Log) Head(context.Context) (eventstore.Head, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return eventstore.Head{Position: l.mu.last}, nil
}

// Close implements eventstore.Store: subscriptions end.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.mu.ended {
		l.mu.ended = true
		close(l.mu.changed)
	}
	return nil
}
