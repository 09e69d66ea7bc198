package cluster

import (
	"strings"

	"weft/domain"
)

// EngineCategory is the category of the stream that opens and closes the log to intents.
const EngineCategory = "engine"

// EngineStream is that stream. Its events take turns, which is how a log knows what it takes.
const EngineStream domain.StreamID = "engine-intents"

// EngineEmbedded names the log that the cluster keeps itself, as an engine.
const EngineEmbedded = "embedded"

// EngineAddressMax is the longest address of an event store, in bytes.
const EngineAddressMax = 1024

// IntentsClosed says that the embedded log takes intents as copies of another log alone.
type IntentsClosed struct {
	Why string `msgpack:"why,omitempty"`
}

// IntentsOpened says that the embedded log takes intents itself again.
type IntentsOpened struct {
	Why string `msgpack:"why,omitempty"`
}

// EngineMoveStarted says that the log is being copied to an event store that shall take intents.
type EngineMoveStarted struct {
	To     string `msgpack:"to,omitempty"`
	Secret string `msgpack:"secret,omitempty"` // name of user and password on each node
}

// EngineMoveFailed says that it came to nothing.
type EngineMoveFailed struct {
	To  string `msgpack:"to,omitempty"`
	Why string `msgpack:"why,omitempty"`
}

// EngineMigrated says that another log than before takes intents from here on. Up to Position both
// hold the same events, compared one by one; Content is SHA-256 over the contents of all of them,
// stream by stream. Towards the embedded log both are empty: it holds everything that was
// acknowledged.
type EngineMigrated struct {
	From     string          `msgpack:"from,omitempty"`
	To       string          `msgpack:"to,omitempty"`
	Secret   string          `msgpack:"secret,omitempty"`
	Position domain.Position `msgpack:"position,omitempty"`
	Content  []byte          `msgpack:"content,omitempty"`
	Events   uint64          `msgpack:"events,omitempty"`
}

// EventType implements domain.Event.
func (IntentsClosed) EventType() string { return "IntentsClosed" }

// EventType implements domain.Event.
func (IntentsOpened) EventType() string { return "IntentsOpened" }

// EventType implements domain.Event.
func (EngineMoveStarted) EventType() string { return "EngineMoveStarted" }

// EventType implements domain.Event.
func (EngineMoveFailed) EventType() string { return "EngineMoveFailed" }

// EventType implements domain.Event.
func (EngineMigrated) EventType() string { return "EngineMigrated" }

// CloseIntents closes the embedded log to intents, OpenIntents opens it. Again is no error.
type CloseIntents struct{ Why string }

// OpenIntents is the opposite of CloseIntents.
type OpenIntents struct{ Why string }

// MoveEngine asks for another log to take intents: EngineEmbedded, or an event store's address.
type MoveEngine struct {
	Cluster    domain.ClusterID
	To, Secret string
}

// EndMove records how a move ended: EngineMigrated or EngineMoveFailed. One that was called off
// meanwhile is a Conflict.
type EndMove struct {
	Cluster domain.ClusterID
	Fact    domain.Event
}

// CommandType implements domain.Command.
func (CloseIntents) CommandType() string { return "CloseIntents" }

// Stream implements domain.Command.
func (CloseIntents) Stream() domain.StreamID { return EngineStream }

// CommandType implements domain.Command.
func (OpenIntents) CommandType() string { return "OpenIntents" }

// Stream implements domain.Command.
func (OpenIntents) Stream() domain.StreamID { return EngineStream }

// CommandType implements domain.Command.
func (MoveEngine) CommandType() string { return "MoveEngine" }

// Stream implements domain.Command.
func (c MoveEngine) Stream() domain.StreamID { return Stream(c.Cluster) }

// CommandType implements domain.Command.
func (EndMove) CommandType() string { return "EndEngineMove" }

// Stream implements domain.Command.
func (c EndMove) Stream() domain.StreamID { return Stream(c.Cluster) }

// Validate implements domain.Validator.
func (c MoveEngine) Validate() error {
	var k domain.Checker
	if c.To != EngineEmbedded {
		scheme, rest, _ := strings.Cut(c.To, "://")
		host, _, _ := strings.Cut(rest, "/")
		scheme = strings.TrimSuffix(scheme, "+discover")
		k.Check(scheme == "esdb" || scheme == "kurrentdb" || scheme == "kurrent", "to",
			"embedded, esdb://host:port, esdb+discover://, kurrentdb:// or kurrent://")
		k.Check(len(c.To) <= EngineAddressMax && host != "" && !strings.ContainsAny(c.To, " \n\t"),
			"to", "not an address of at most %d bytes", EngineAddressMax)
		k.Check(!strings.Contains(host, "@"), "to",
			"a password has no place in an event: keep it with weft secret set, and name it")
	}
	k.Check(len(c.Secret) <= 63, "secret", "over 63 bytes")
	k.Check(c.To != EngineEmbedded || c.Secret == "", "secret", "the embedded log needs none")
	return k.Err("cluster.MoveEngine", "")
}

// Engine is which log takes intents, folded. Addresses are empty for the embedded log.
type Engine struct {
	Address, Secret string
	// To is where a move is under way to.
	To, ToSecret string
	// Was is the event store whose last decisions are still to be copied before the embedded log is
	// opened.
	Was, WasSecret string
	// Failed says why the last move came to nothing.
	Failed string
	// Closed says that the embedded log takes copies of intents alone.
	Closed bool
	// Migrated is the last change, zero before the first.
	Migrated EngineMigrated
	// Turn counts the ways back. Each turn has streams of its own in an event store, because what
	// nobody was told of may stay there.
	Turn int64
}

// After folds one event; those of other matters change nothing.
func (e Engine) After(ev domain.Event) Engine {
	switch ev := ev.(type) {
	case *EngineMoveStarted:
		e.To, e.ToSecret, e.Failed = ev.To, ev.Secret, ""
	case *EngineMoveFailed:
		e.To, e.ToSecret, e.Failed = "", "", ev.Why
	case *EngineMigrated:
		e.To, e.ToSecret, e.Failed = "", "", ""
		if ev.To != EngineEmbedded && !e.Closed { // opened before it, so that the copy is not whole
			e.Failed = "the log was opened to intents before the move had ended"
			return e
		}
		e.Migrated = *ev
		if ev.To == EngineEmbedded {
			e.Was, e.WasSecret, e.Address, e.Secret = e.Address, e.Secret, "", ""
			e.Turn++
		} else {
			e.Was, e.WasSecret, e.Address, e.Secret = "", "", ev.To, ev.Secret
		}
	case *LogRestored: // the event store is the business of the cluster that the backup is of
		e = Engine{Closed: e.Closed, Migrated: e.Migrated, Turn: e.Turn + 1}
	case *IntentsClosed:
		e.Closed = true
	case *IntentsOpened:
		e.Closed, e.Was, e.WasSecret = false, "", ""
	}
	return e
}

// Name gives the engine by the name that commands know it by.
func (e Engine) Name() string {
	if e.Address == "" {
		return EngineEmbedded
	}
	return e.Address
}

func (e Engine) decideMove(c MoveEngine) ([]domain.Event, error) {
	switch {
	case c.To == e.Name() && e.To == "":
		return nil, nil
	case c.To == EngineEmbedded && e.To != "":
		return []domain.Event{&EngineMoveFailed{e.To, "called off"}}, nil
	case c.To == EngineEmbedded:
		return []domain.Event{&EngineMigrated{From: e.Address, To: EngineEmbedded}}, nil
	case e.To == c.To && e.ToSecret == c.Secret:
		return nil, nil
	case e.To != "":
		return nil, domain.Errorf(domain.Conflict, "a move to %s is under way; call it off first: "+
			"weft events migrate --to embedded", e.To)
	case e.Address != "":
		return nil, domain.Errorf(domain.Conflict, "%s takes intents; go back first: "+
			"weft events migrate --to embedded", e.Address)
	}
	return []domain.Event{&EngineMoveStarted{c.To, c.Secret}}, nil
}

// whyMax bounds the reasons in events, bytes.
const whyMax = 512

func (e Engine) decideEnd(c EndMove) ([]domain.Event, error) {
	switch ev := c.Fact.(type) {
	case *EngineMigrated:
		if e.To != ev.To {
			return nil, domain.Errorf(domain.Conflict, "the move to %s was called off", ev.To)
		}
		out := *ev
		out.From, out.Secret = e.Name(), e.ToSecret
		return []domain.Event{&out}, nil
	case *EngineMoveFailed:
		if e.To != ev.To {
			return nil, nil
		}
		out := *ev
		out.Why = out.Why[:min(len(out.Why), whyMax)]
		return []domain.Event{&out}, nil
	}
	return nil, domain.Errorf(domain.Internal, "cluster: no end of a move: %T", c.Fact)
}

// EngineAggregate is the stream that opens and closes the log, for the executor. Its state is
// whether the log is closed.
func EngineAggregate() domain.Aggregate[bool] {
	return domain.Aggregate[bool]{
		Category: EngineCategory,
		Evolve: func(closed bool, ev domain.Event) bool {
			switch ev.(type) {
			case *IntentsClosed:
				return true
			case *IntentsOpened:
				return false
			}
			return closed
		},
		Decide: func(closed bool, r domain.Request) ([]domain.Event, error) {
			switch c := r.Command.(type) {
			case CloseIntents:
				if closed {
					return nil, nil
				}
				return []domain.Event{&IntentsClosed{c.Why}}, nil
			case OpenIntents:
				if !closed {
					return nil, nil
				}
				return []domain.Event{&IntentsOpened{c.Why}}, nil
			}
			return nil, domain.Errorf(domain.Internal, "engine: unknown command %T", r.Command)
		},
	}
}
