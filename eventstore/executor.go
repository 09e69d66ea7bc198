package eventstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"weft/domain"
)

// Codec turns events into stored bytes and back. The codec room implements it.
type Codec interface {
	// Encode gives the schema and the bytes of an event of a stream, with personal text sealed. An
	// event of an unregistered type is of kind Internal.
	Encode(ctx context.Context, s domain.StreamID, e domain.Event) (
		schema uint16, data []byte, err error)
	// Decode gives what a stored event means today: one record, or several where a later schema
	// split it. Event is nil for an optional type that this build does not know; a required one is
	// of kind Unsupported. Bytes that do not decode are of kind Corrupt.
	Decode(h domain.Header, data []byte) ([]domain.Record, error)
	// Canonical gives bytes that are equal exactly for equal commands.
	Canonical(c domain.Command) ([]byte, error)
}

// ExecutorConfig is what an Executor works with. Store, Codec and Clock are required.
type ExecutorConfig struct {
	Store Store
	Codec Codec
	// Clock gives the time that events are stamped with.
	Clock func() time.Time
	// Random gives command ids to requests without one. Default: the system's source.
	Random io.Reader
}

// Result is what a command led to. Revision and Position are those of its last event; for a command
// that decided nothing, those the stream and the log had. Duplicate means that it was done before:
// the rest is the old result.
type Result struct {
	Stream    domain.StreamID
	Revision  domain.Revision
	Position  domain.Position
	Events    []domain.Event
	Duplicate bool
}

// Executor runs commands: it folds the command's stream, looks whether the command was done before,
// lets the aggregate decide, and appends. Commands on one stream run one after another, others side
// by side. It starts no goroutine and is safe for many. Register every aggregate before the first
// Do.
type Executor struct {
	cfg   ExecutorConfig
	kinds map[string]aggregate
	lanes lanes // one command at a time on each stream
	twins lanes // one request at a time under each command id, where commands are taken back
	cache stateCache
}

// aggregate is domain.Aggregate with its state's type hidden.
type aggregate struct {
	zero   func() any
	evolve func(any, domain.Event) any
	decide func(any, domain.Request) ([]domain.Event, error)
}

// NewExecutor makes an Executor. An incomplete configuration is of kind Invalid.
func NewExecutor(cfg ExecutorConfig) (*Executor, error) {
	var c domain.Checker
	c.Check(cfg.Store != nil, "store", "missing")
	c.Check(cfg.Codec != nil, "codec", "missing")
	c.Check(cfg.Clock != nil, "clock", "missing")
	if err := c.Err("eventstore.NewExecutor", ""); err != nil {
		return nil, err
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	return &Executor{cfg: cfg, kinds: map[string]aggregate{}}, nil
}

// Register lets an Executor run the commands on one category of streams. A second aggregate of the
// same category replaces the first.
func Register[S any](x *Executor, a domain.Aggregate[S]) {
	// A state is only ever stored by this aggregate, so the assertion cannot fail.
	of := func(state any) S {
		s, _ := state.(S)
		return s
	}
	x.kinds[a.Category] = aggregate{
		zero:   func() any { var s S; return s },
		evolve: func(s any, e domain.Event) any { return a.Evolve(of(s), e) },
		decide: func(s any, r domain.Request) ([]domain.Event, error) { return a.Decide(of(s), r) },
	}
}

// Do runs a command with what must come before it and what follows it. A nil error means that all
// their events are durable. Repeating a request with the same id is always safe. When the command
// is refused, what came before is taken back if it says how; repeating it is then Expired.
//
// Errors: those of the aggregate and of the command's own Validate; Mismatch for an id used before
// with another request; Expired for a request stamped over CommandAge ago and not found; Conflict
// when IfRevision is not the stream's, or when ConflictRetryMax retries met another writer each
// time; Busy beyond WaitersMax; Unsupported for a category without an aggregate; and those of
// Store.Append. When only what follows failed, the result is that of the command and the error says
// so: repeat the request.
func (x *Executor) Do(ctx context.Context, req domain.Request) (Result, error) {
	return x.do(ctx, req, 0)
}

func (x *Executor) do(ctx context.Context, req domain.Request, depth int) (Result, error) {
	if depth > StepDepthMax {
		return Result{}, domain.Errorf(domain.Internal, "commands nest deeper than %d", StepDepthMax)
	}
	if err := x.complete(&req); err != nil {
		return Result{}, err
	}
	j, err := x.job(req)
	if err != nil {
		return Result{}, err
	}
	if _, ok := req.Command.(domain.Reversal); ok {
		// The same request twice at once: one must not run on what the other is taking back.
		same := domain.StreamID(req.ID.String())
		if err := x.twins.enter(ctx, same); err != nil {
			return Result{}, err
		}
		defer x.twins.leave(same)
	}
	if err := x.prepare(ctx, j, depth); err != nil {
		return Result{}, j.wrap(err)
	}
	res, _, err := j.locked(ctx, j.run)
	if err != nil {
		if j.refused {
			err = x.undo(ctx, j, err, depth)
		}
		return Result{}, j.wrap(err)
	}
	if p, ok := req.Command.(domain.Postlude); ok {
		if _, err := x.steps(ctx, req, "after/", p.After(), depth); err != nil {
			return res, j.wrap(err)
		}
	}
	return res, nil
}

// prepare judges what can be judged without a state and runs what must come before. A request that
// was done, or cannot be, must not reserve anything.
func (x *Executor) prepare(ctx context.Context, j *job, depth int) error {
	v, judged := j.req.Command.(domain.Validator)
	p, needs := j.req.Command.(domain.Prelude)
	if !judged && !needs {
		return nil
	}
	if _, found, err := j.locked(ctx, j.look); found || err != nil {
		return err
	}
	if judged {
		if err := v.Validate(); err != nil {
			return err
		}
	}
	if !needs {
		return nil
	}
	if err := x.undone(ctx, j); err != nil {
		return err
	}
	n, err := x.steps(ctx, j.req, "before/", p.Before(), depth)
	if err != nil && n > 0 && refusal(err) {
		err = x.undo(ctx, j, err, depth)
	}
	return err
}

// refusal tells an answer that stands from a failure that a retry may overcome.
func refusal(err error) bool {
	for _, k := range []domain.Kind{
		domain.Unavailable, domain.Aborted, domain.Busy, domain.Internal, domain.Corrupt,
	} {
		if domain.IsKind(err, k) {
			return false
		}
	}
	return !errors.Is(err, ErrConflict)
}

// undo takes back what came before a command that was refused. It goes on although the caller may
// have left, and adds its own failure to the refusal; what it leaves behind is settled by whoever
// settles commands that were cut short.
func (x *Executor) undo(ctx context.Context, j *job, refused error, depth int) error {
	u, ok := j.req.Command.(domain.Reversal)
	if !ok {
		return refused
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), LinearizableWait)
	defer cancel()
	if _, err := x.steps(within, j.req, undoStep, u.Undo(), depth); err != nil {
		return &domain.Error{
			Kind: domain.KindOf(refused), Msg: "refused, and what came before was not taken back",
			Err: errors.Join(refused, err),
		}
	}
	return refused
}

const undoStep = "undo/"

// undone refuses a command that was refused before and whose prelude was taken back: run again, the
// prelude would be found as done although it no longer holds.
func (x *Executor) undone(ctx context.Context, j *job) error {
	u, ok := j.req.Command.(domain.Reversal)
	if !ok {
		return nil
	}
	for i, c := range u.Undo() {
		sub := j.req
		sub.Command, sub.ID = c, j.req.ID.Sub(undoStep+strconv.Itoa(i))
		back, err := x.job(sub)
		if err != nil {
			return err
		}
		_, found, err := back.locked(ctx, func(ctx context.Context) (Result, bool, error) {
			st, err := back.load(ctx)
			if err != nil {
				return Result{}, false, err
			}
			_, ok := st.find(sub.ID)
			return Result{}, ok, nil
		})
		switch {
		case err != nil:
			return err
		case found:
			return domain.Errorf(domain.Expired, "refused before and taken back; use a new key")
		}
	}
	return nil
}

// steps runs commands on behalf of another, each under an id of its own that a retry meets again.
// It gives how many succeeded.
func (x *Executor) steps(
	ctx context.Context, req domain.Request, step string, commands []domain.Command, depth int,
) (int, error) {
	for i, c := range commands {
		sub := req
		sub.Command, sub.ID = c, req.ID.Sub(step+strconv.Itoa(i))
		sub.Hash, sub.IfRevision = [16]byte{}, nil
		sub.Causation = req.ID.EventID(0)
		if _, err := x.do(ctx, sub, depth+1); err != nil {
			return i, err
		}
	}
	return len(commands), nil
}

// complete fills in what the caller left to the Executor.
func (x *Executor) complete(req *domain.Request) error {
	if req.Command == nil || !req.Command.Stream().Valid() {
		return domain.Errorf(domain.Invalid, "a request needs a command with a stream")
	}
	if req.ID.IsZero() {
		if _, err := io.ReadFull(x.cfg.Random, req.ID.UUID[:]); err != nil {
			return domain.Wrap(err, "eventstore.Do", "random")
		}
		req.ID.UUID[6] = req.ID.UUID[6]&0x0f | 0x40 // RFC 9562 version 4
		req.ID.UUID[8] = req.ID.UUID[8]&0x3f | 0x80
	}
	if req.Hash == [16]byte{} {
		b, err := x.cfg.Codec.Canonical(req.Command)
		if err != nil {
			return domain.Wrap(err, "eventstore.Do", req.Command.CommandType())
		}
		sum := sha256.Sum256(b)
		copy(req.Hash[:], sum[:])
	}
	if req.Correlation.IsZero() {
		req.Correlation = domain.EventID{UUID: req.ID.UUID}
	}
	if req.Stamped.IsZero() {
		req.Stamped = x.cfg.Clock()
	}
	return nil
}

// job is one command on its way.
type job struct {
	x       *Executor
	req     domain.Request
	stream  domain.StreamID
	kind    aggregate
	now     time.Time
	created time.Time // now, cut; the same in every retry
	refused bool      // the answer is no, and stays so
}

func (x *Executor) job(req domain.Request) (*job, error) {
	s := req.Command.Stream()
	kind, ok := x.kinds[s.Category()]
	if !ok {
		return nil, domain.Errorf(domain.Unsupported, "no aggregate for streams such as %s", s)
	}
	now := x.cfg.Clock().UTC()
	return &job{
		x: x, req: req, stream: s, kind: kind, now: now, created: now.Truncate(createdStep),
	}, nil
}

func (j *job) wrap(err error) error {
	return &domain.Error{
		Op: "command " + j.req.Command.CommandType(), Kind: domain.KindOf(err), Ref: string(j.stream),
		Err: err,
	}
}

// locked runs one step of the job while no other command of this Executor works on the stream.
func (j *job) locked(
	ctx context.Context, f func(context.Context) (Result, bool, error),
) (Result, bool, error) {
	if err := j.x.lanes.enter(ctx, j.stream); err != nil {
		return Result{}, false, err
	}
	defer j.x.lanes.leave(j.stream)
	return f(ctx)
}

// look tells whether the command was done before, and refuses what cannot be done any more.
func (j *job) look(ctx context.Context) (Result, bool, error) {
	st, err := j.load(ctx)
	if err != nil {
		return Result{}, false, err
	}
	return j.past(ctx, st)
}

// past looks for the command in its folded stream (E7).
func (j *job) past(ctx context.Context, st *state) (Result, bool, error) {
	done, ok := st.find(j.req.ID)
	switch {
	case ok && done.hash != j.req.Hash:
		return Result{}, false, domain.Errorf(domain.Mismatch,
			"command %s was used before with another request", j.req.ID)
	case ok:
		res, err := j.old(ctx, done)
		return res, true, err
	case j.now.Sub(j.req.Stamped) > CommandAge:
		return Result{}, false, domain.Errorf(domain.Expired,
			"stamped %s, over %s ago, and not found; use a new key",
			j.req.Stamped.UTC().Format(time.RFC3339), CommandAge)
	case j.req.IfRevision != nil && *j.req.IfRevision != st.head:
		return Result{}, false, &ConflictError{
			Stream: j.stream, Want: At(*j.req.IfRevision), Current: st.head,
		}
	}
	return Result{}, false, nil
}

// old reads the result of a command that was done before.
func (j *job) old(ctx context.Context, d done) (Result, error) {
	res := Result{Stream: j.stream, Revision: d.last, Position: d.position, Duplicate: true}
	n := int(d.last-d.first) + 1
	for r, err := range j.x.cfg.Store.ReadStream(ctx, j.stream, d.first, Forward, n) {
		if err != nil {
			return Result{}, err
		}
		records, err := j.x.cfg.Codec.Decode(r.Header, r.Data)
		if err != nil {
			return Result{}, err
		}
		for i := range records {
			res.Events = append(res.Events, records[i].Event)
		}
	}
	return res, nil
}

// run decides and appends, again after each conflict, at most ConflictRetryMax times.
func (j *job) run(ctx context.Context) (Result, bool, error) {
	for try := 0; ; try++ {
		st, err := j.load(ctx)
		if err != nil {
			return Result{}, false, err
		}
		if res, found, err := j.past(ctx, st); found || err != nil {
			j.refused = !found
			return res, found, err
		}
		res, err := j.attempt(ctx, st)
		if err == nil {
			return res, false, nil
		}
		if j.refused || !errors.Is(err, ErrConflict) || try >= ConflictRetryMax {
			return Result{}, false, err
		}
	}
}

func (j *job) attempt(ctx context.Context, st *state) (Result, error) {
	events, err := j.kind.decide(st.fold, j.req)
	if err != nil {
		j.refused = true
		return Result{}, err
	}
	if len(events) == 0 {
		head, err := j.x.cfg.Store.Head(ctx)
		return Result{Stream: j.stream, Revision: st.head, Position: head.Position}, err
	}
	proposed, err := j.propose(ctx, events)
	if err != nil {
		return Result{}, err
	}
	a, err := j.x.cfg.Store.Append(ctx, j.stream, At(st.head), proposed...)
	if err != nil {
		return Result{}, err
	}
	return Result{
		Stream: j.stream, Revision: a.Last, Position: a.Position, Events: events, Duplicate: a.Duplicate,
	}, nil
}

func (j *job) propose(ctx context.Context, events []domain.Event) ([]Proposed, error) {
	out := make([]Proposed, len(events))
	for i, e := range events {
		schema, data, err := j.x.cfg.Codec.Encode(ctx, j.stream, e)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		out[i] = Proposed{Data: data, Header: domain.Header{
			ID: j.req.ID.EventID(i), Type: e.EventType(), Schema: schema,
			Actor: j.req.Caller.Actor, Tenant: j.req.Caller.Tenant, Source: j.req.Caller.Source,
			RequestID: j.req.Caller.RequestID, Command: j.req.ID, RequestHash: j.req.Hash,
			Correlation: j.req.Correlation, Causation: j.req.Causation, Token: j.req.Token,
			Created: j.created,
		}}
	}
	return out, nil
}
