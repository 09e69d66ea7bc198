package policy

import (
	"slices"

	"weft/domain"
)

// The categories of the streams of plans and of decisions.
const (
	PlanCategory     = "plan"
	DecisionCategory = "decision"
)

// PlanStream gives a plan's stream.
func PlanStream(id domain.PlanID) domain.StreamID { return domain.StreamOf(PlanCategory, id.UUID) }

// DecisionStream gives the stream of the decisions about one object.
func DecisionStream(subject domain.UUID) domain.StreamID {
	return domain.StreamOf(DecisionCategory, subject)
}

// PlanStep is a step as the log keeps it.
type PlanStep struct {
	Command domain.CommandID `msgpack:"command,omitempty"`
	Kind    string           `msgpack:"kind,omitempty"`
	Volume  domain.VolumeID  `msgpack:"volume,omitempty"`
	Name    string           `msgpack:"name,omitempty"`
	Node    domain.NodeID    `msgpack:"node,omitempty"`
	Device  domain.DeviceID  `msgpack:"device,omitempty"`
	Size    domain.Bytes     `msgpack:"size,omitempty"`
	Why     string           `msgpack:"why,omitempty"`
}

// PlanProposed says what the reconciler is about to do, and on which state of the log it relies.
type PlanProposed struct {
	Plan  domain.PlanID   `msgpack:"plan,omitempty"`
	Base  domain.Position `msgpack:"base,omitempty"`
	Steps []PlanStep      `msgpack:"steps,omitempty"`
}

// PlanStepFailed says which step a node could not obey.
type PlanStepFailed struct {
	Command domain.CommandID `msgpack:"command,omitempty"`
	Kind    string           `msgpack:"kind,omitempty"`
	Why     string           `msgpack:"why,omitempty"`
}

// PlanFinished says that every step has its outcome.
type PlanFinished struct {
	Completed int64 `msgpack:"completed,omitempty"`
	Failed    int64 `msgpack:"failed,omitempty"`
}

// PlacementDecided says why a volume stands where it stands.
type PlacementDecided struct {
	Volume     domain.VolumeID `msgpack:"volume,omitempty"`
	Plan       domain.PlanID   `msgpack:"plan,omitempty"`
	Node       domain.NodeID   `msgpack:"node,omitempty"`
	Device     domain.DeviceID `msgpack:"device,omitempty"`
	Considered int64           `msgpack:"considered,omitempty"`
	Rejects    []Reject        `msgpack:"rejects,omitempty"`
	Candidates []Candidate     `msgpack:"candidates,omitempty"`
}

// PlacementImpossible says why a volume stands nowhere, and what would help.
type PlacementImpossible struct {
	Volume     domain.VolumeID `msgpack:"volume,omitempty"`
	Considered int64           `msgpack:"considered,omitempty"`
	Rejects    []Reject        `msgpack:"rejects,omitempty"`
	Remedies   []string        `msgpack:"remedies,omitempty"`
}

// EventType implements domain.Event.
func (PlanProposed) EventType() string { return "PlanProposed" }

// EventType implements domain.Event.
func (PlanStepFailed) EventType() string { return "PlanStepFailed" }

// EventType implements domain.Event.
func (PlanFinished) EventType() string { return "PlanFinished" }

// EventType implements domain.Event.
func (PlacementDecided) EventType() string { return "PlacementDecided" }

// EventType implements domain.Event.
func (PlacementImpossible) EventType() string { return "PlacementImpossible" }

// Note records something about a plan. A plan begins with PlanProposed and ends with PlanFinished.
type Note struct {
	Plan domain.PlanID
	Fact domain.Event
}

// CommandType implements domain.Command.
func (c Note) CommandType() string { return "Note" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c Note) Stream() domain.StreamID { return PlanStream(c.Plan) }

// PlanState is a plan folded.
type PlanState struct{ Proposed, Finished bool }

// PlanAggregate is the plan for the executor.
func PlanAggregate() domain.Aggregate[PlanState] {
	return domain.Aggregate[PlanState]{
		Category: PlanCategory,
		Evolve: func(s PlanState, ev domain.Event) PlanState {
			switch ev.(type) {
			case *PlanProposed:
				s.Proposed = true
			case *PlanFinished:
				s.Finished = true
			}
			return s
		},
		Decide: func(s PlanState, r domain.Request) ([]domain.Event, error) {
			c, ok := r.Command.(Note)
			if !ok {
				return nil, domain.Errorf(domain.Internal, "plan: unknown command %T", r.Command)
			}
			_, first := c.Fact.(*PlanProposed)
			switch {
			case first && s.Proposed:
				return nil, nil
			case !first && !s.Proposed:
				return nil, domain.Errorf(domain.NotFound, "no such plan")
			case s.Finished:
				return nil, domain.Errorf(domain.Conflict, "the plan is finished")
			}
			return []domain.Event{c.Fact}, nil
		},
	}
}

// Decided records a decision about a volume; one that says what the last one said records nothing.
type Decided struct {
	Volume domain.VolumeID
	Fact   domain.Event // PlacementDecided or PlacementImpossible
}

// CommandType implements domain.Command.
func (c Decided) CommandType() string { return "Decided" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c Decided) Stream() domain.StreamID { return DecisionStream(c.Volume.UUID) }

// DecisionState is the last decision about an object.
type DecisionState struct {
	Impossible *PlacementImpossible
}

// DecisionAggregate is the decisions about one object for the executor.
func DecisionAggregate() domain.Aggregate[DecisionState] {
	return domain.Aggregate[DecisionState]{
		Category: DecisionCategory,
		Evolve: func(s DecisionState, ev domain.Event) DecisionState {
			s.Impossible, _ = ev.(*PlacementImpossible)
			return s
		},
		Decide: func(s DecisionState, r domain.Request) ([]domain.Event, error) {
			c, ok := r.Command.(Decided)
			if !ok {
				return nil, domain.Errorf(domain.Internal, "decision: unknown command %T", r.Command)
			}
			if f, again := c.Fact.(*PlacementImpossible); again && s.Impossible != nil &&
				slices.Equal(s.Impossible.Rejects, f.Rejects) {
				return nil, nil
			}
			return []domain.Event{c.Fact}, nil
		},
	}
}
