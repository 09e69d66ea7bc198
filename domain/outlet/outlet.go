// Package outlet holds outlets: places outside of the cluster to which its events are published, a
// message broker or another event log.
//
// An outlet gets every event it selects in order and at least once, under the event's id. What it
// holds is never read back as truth. An event that it does not take is never passed over in
// silence: the outlet is stuck, which is an event itself, until an operator lets it try again or
// skip that one event.
//
// Invariants:
//
//	X1  No secret stands in an event: an address has no password, a name refers to one.
//	X2  A stuck outlet goes on only by a command of an operator, and skips only the event it is
//	    stuck at.
//	X3  A mirror holds whole streams, so it selects no types.
package outlet

import (
	"strings"

	"weft/domain"
	"weft/domain/tenancy"
)

// Category of an outlet's stream.
const Category = "outlet"

// Limits of outlets.
const (
	AddressMax = 1024 // bytes of an address
	TypesMax   = 100  // selected types
	TextMax    = 256  // bytes of a topic, a type, a secret's name
	ReasonMax  = 512  // bytes of why it is stuck
)

// Kind is what stands at the other end.
type Kind string

// The kinds.
const (
	// NATS is a NATS server with JetStream: an event is a message with JSON in it.
	NATS Kind = "nats"
	// Mirror is an EventStoreDB or KurrentDB: the same streams, revisions, ids and bytes.
	Mirror Kind = "mirror"
)

// Stream gives an outlet's stream.
func Stream(id domain.OutletID) domain.StreamID { return domain.StreamOf(Category, id.UUID) }

// OutletCreated is the first event of an outlet.
type OutletCreated struct {
	Outlet  domain.OutletID `msgpack:"outlet,omitempty"`
	Name    string          `msgpack:"name,omitempty"`
	Kind    string          `msgpack:"kind,omitempty"`
	Address string          `msgpack:"address,omitempty"`
	Topic   string          `msgpack:"topic,omitempty"`  // NATS: the subject
	Types   []string        `msgpack:"types,omitempty"`  // begin so; none: all
	Secret  string          `msgpack:"secret,omitempty"` // name of user and password on each node
	// After is the position behind which it begins.
	After domain.Position `msgpack:"after,omitempty"`
}

// OutletPaused says that nothing is published until OutletResumed.
type OutletPaused struct {
	Outlet domain.OutletID `msgpack:"outlet,omitempty"`
}

// OutletStuck says that the outlet does not take an event.
type OutletStuck struct {
	Outlet   domain.OutletID `msgpack:"outlet,omitempty"`
	At       domain.Position `msgpack:"at,omitempty"`
	Type     string          `msgpack:"type,omitempty"`
	Of       domain.StreamID `msgpack:"of,omitempty"`
	Failures int64           `msgpack:"failures,omitempty"`
	Reason   string          `msgpack:"reason,omitempty"`
}

// OutletResumed lets it go on. Skip is the position of the event it was stuck at when that one is
// to be passed over, else zero.
type OutletResumed struct {
	Outlet domain.OutletID `msgpack:"outlet,omitempty"`
	Skip   domain.Position `msgpack:"skip,omitempty"`
}

// OutletDeleted is its last event.
type OutletDeleted struct {
	Outlet domain.OutletID `msgpack:"outlet,omitempty"`
}

// EventType implements domain.Event.
func (OutletCreated) EventType() string { return "OutletCreated" }

// EventType implements domain.Event.
func (OutletPaused) EventType() string { return "OutletPaused" }

// EventType implements domain.Event.
func (OutletStuck) EventType() string { return "OutletStuck" }

// EventType implements domain.Event.
func (OutletResumed) EventType() string { return "OutletResumed" }

// EventType implements domain.Event.
func (OutletDeleted) EventType() string { return "OutletDeleted" }

// Create makes an outlet. Its name is taken in the cluster's directory first.
type Create struct {
	Cluster domain.ClusterID
	OutletCreated
}

// Pause stops an outlet. Again is no error.
type Pause struct{ Outlet domain.OutletID }

// Stick records that an outlet does not take an event.
type Stick struct{ OutletStuck }

// Resume lets a paused or stuck outlet go on; with Skip without the event it is stuck at.
type Resume struct {
	Outlet domain.OutletID
	Skip   bool
}

// Delete removes an outlet; what it has published stays where it is. Again is no error.
type Delete struct {
	Cluster domain.ClusterID
	Outlet  domain.OutletID
}

// CommandType implements domain.Command.
func (Create) CommandType() string { return "CreateOutlet" }

// Stream implements domain.Command.
func (c Create) Stream() domain.StreamID { return Stream(c.Outlet) }

// Validate implements domain.Validator.
func (c Create) Validate() error {
	var k domain.Checker
	k.Check(tenancy.ValidName(c.Name), "name",
		"%.64q is no name: 1 to %d of a-z, 0-9 and '-', starting with a letter", c.Name, tenancy.NameMax)
	scheme, rest, _ := strings.Cut(c.Address, "://")
	host, _, _ := strings.Cut(rest, "/")
	k.Check(len(c.Address) <= AddressMax && host != "" && !strings.ContainsAny(c.Address, " \n\t"),
		"address", "not an address of at most %d bytes", AddressMax)
	k.Check(!strings.Contains(host, "@"), "address",
		"a password has no place in an event: keep it with weft secret set, and name it")
	switch Kind(c.Kind) {
	case NATS:
		k.Check(scheme == "nats" || scheme == "tls", "address", "nats://host:port or tls://host:port")
		k.Check(validSubject(c.Topic), "topic", "a subject such as weft.events, without wildcards")
	case Mirror:
		k.Check(scheme == "esdb" || scheme == "esdb+discover" || scheme == "kurrentdb" ||
			scheme == "kurrentdb+discover", "address", "esdb://host:port, esdb+discover:// or kurrentdb://")
		k.Check(len(c.Types) == 0, "types", "a mirror holds whole streams")
		k.Check(c.Topic == "", "topic", "a mirror has none")
	default:
		k.Check(false, "kind", "%.64q is neither nats nor mirror", c.Kind)
	}
	k.Check(len(c.Types) <= TypesMax, "types", "over %d", TypesMax)
	for _, t := range append([]string{c.Topic, c.Secret}, c.Types...) {
		k.Check(len(t) <= TextMax, "types", "over %d bytes", TextMax)
	}
	return k.Err("outlet.Create", "")
}

// validSubject tells whether messages can be published to a subject.
func validSubject(s string) bool {
	for _, token := range strings.Split(s, ".") {
		if token == "" || strings.ContainsAny(token, "*> \t\r\n") {
			return false
		}
	}
	return true
}

// Before implements domain.Prelude.
func (c Create) Before() []domain.Command {
	return []domain.Command{tenancy.TakeName{
		Cluster: c.Cluster, Kind: "outlet", Name: c.Name, Object: c.Outlet.UUID,
	}}
}

// Undo implements domain.Reversal.
func (c Create) Undo() []domain.Command {
	return []domain.Command{tenancy.FreeName{Cluster: c.Cluster, Object: c.Outlet.UUID}}
}

// CommandType implements domain.Command.
func (Pause) CommandType() string { return "PauseOutlet" }

// Stream implements domain.Command.
func (c Pause) Stream() domain.StreamID { return Stream(c.Outlet) }

// CommandType implements domain.Command.
func (Stick) CommandType() string { return "StickOutlet" }

// Stream implements domain.Command.
func (c Stick) Stream() domain.StreamID { return Stream(c.Outlet) }

// CommandType implements domain.Command.
func (Resume) CommandType() string { return "ResumeOutlet" }

// Stream implements domain.Command.
func (c Resume) Stream() domain.StreamID { return Stream(c.Outlet) }

// CommandType implements domain.Command.
func (Delete) CommandType() string { return "DeleteOutlet" }

// Stream implements domain.Command.
func (c Delete) Stream() domain.StreamID { return Stream(c.Outlet) }

// After implements domain.Postlude.
func (c Delete) After() []domain.Command {
	return []domain.Command{tenancy.FreeName{Cluster: c.Cluster, Object: c.Outlet.UUID}}
}

// State is an outlet folded.
type State struct {
	OutletCreated
	Paused  bool
	Stuck   *OutletStuck
	Skip    domain.Position // the event that was passed over last
	Resumed int64           // how often it was
	Deleted bool
}

// Runs tells whether it is to publish.
func (s State) Runs() bool {
	return !s.Outlet.IsZero() && !s.Paused && s.Stuck == nil && !s.Deleted
}

// Aggregate is the outlet for the executor.
func Aggregate() domain.Aggregate[State] {
	return domain.Aggregate[State]{Category: Category, Evolve: Evolve, Decide: Decide}
}

// Evolve folds one event.
func Evolve(s State, ev domain.Event) State {
	switch ev := ev.(type) {
	case *OutletCreated:
		s.OutletCreated = *ev
	case *OutletPaused:
		s.Paused = true
	case *OutletStuck:
		s.Stuck = ev
	case *OutletResumed:
		s.Paused, s.Stuck, s.Skip = false, nil, max(s.Skip, ev.Skip)
		s.Resumed++
	case *OutletDeleted:
		s.Deleted = true
	}
	return s
}

// Decide judges one command.
func Decide(s State, r domain.Request) ([]domain.Event, error) {
	if c, ok := r.Command.(Create); ok {
		if !s.Outlet.IsZero() {
			return nil, domain.Errorf(domain.Exists, "outlet %s exists", c.Outlet)
		}
		ev := c.OutletCreated
		return []domain.Event{&ev}, nil
	}
	if _, ok := r.Command.(Delete); ok && s.Deleted {
		return nil, nil
	}
	if s.Outlet.IsZero() || s.Deleted {
		return nil, domain.Errorf(domain.NotFound, "no such outlet")
	}
	switch c := r.Command.(type) {
	case Pause:
		if s.Paused {
			return nil, nil
		}
		return []domain.Event{&OutletPaused{s.Outlet}}, nil
	case Stick:
		if s.Stuck != nil && s.Stuck.At == c.At {
			return nil, nil
		}
		ev := c.OutletStuck
		ev.Reason = ev.Reason[:min(len(ev.Reason), ReasonMax)]
		return []domain.Event{&ev}, nil
	case Resume:
		return s.resume(c)
	case Delete:
		return []domain.Event{&OutletDeleted{s.Outlet}}, nil
	}
	return nil, domain.Errorf(domain.Internal, "outlet: unknown command %T", r.Command)
}

func (s State) resume(c Resume) ([]domain.Event, error) {
	switch {
	case c.Skip && s.Stuck == nil:
		return nil, domain.Errorf(domain.Conflict, "it is stuck at no event that could be skipped")
	case !s.Paused && s.Stuck == nil:
		return nil, nil
	case c.Skip:
		return []domain.Event{&OutletResumed{s.Outlet, s.Stuck.At}}, nil
	}
	return []domain.Event{&OutletResumed{Outlet: s.Outlet}}, nil
}
