package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"weft/adapters/rest"
	"weft/domain"
	"weft/domain/cluster"
	"weft/eventstore"
	"weft/eventstore/duplicate"
	"weft/eventstore/intents"
	"weft/eventstore/kurrent"
	"weft/eventstore/quorum"
)

const (
	// engineAttempts is how often a call to an event store is tried before it counts as away.
	engineAttempts = 3
	// engineDeadline bounds one such try.
	engineDeadline = 3 * time.Second
	// engineFlight is how many calls to an event store run at once, and so how many streams of a copy.
	engineFlight = 16
	// engineRest is the most between two tries of a copy: commands wait for it.
	engineRest = 2 * time.Second
	// engineSaid is the pause between two notes of how far a move is.
	engineSaid = time.Second
	// drainMost bounds what the way back waits for the event store that is given up.
	drainMost = 30 * time.Second
	// moveCursor names the note of how far a move is.
	moveCursor = "engine/move"
)

// openIntents gives the log as commands see it: changes of intent go where the views say.
func openIntents(s *quorum.Store, d *dataDir, v *views, log *slog.Logger) (
	*intents.Store, func(), error,
) {
	i, err := intents.New(intents.Config{
		Embedded: s,
		Where: func() intents.Where {
			e := v.topology.Engine()
			return intents.Where{Address: e.Address, Turn: e.Turn}
		},
		Dial: func(w intents.Where) (eventstore.Store, error) {
			e := v.topology.Engine()
			if e.Address != w.Address || e.Turn != w.Turn {
				return nil, domain.Errorf(domain.Unavailable, "the engine was changed meanwhile")
			}
			return dialEngine(d, e.Address, e.Secret, e.Turn, log)
		},
	})
	if err != nil {
		return nil, nil, err
	}
	return i, func() {
		if err := i.Close(); err != nil {
			log.Error("closing the event store", "err", err)
		}
	}, nil
}

// enginePause waits before something is tried again that failed so often in a row.
func enginePause(ctx context.Context, failures int) error {
	pause(ctx, min(retryFirst<<min(max(failures-1, 0), 16), engineRest))
	return ctx.Err()
}

// dialEngine opens an event store that takes intents. The prefix keeps clusters apart that use the
// same store, and the turns of one. It does not connect yet.
func dialEngine(
	d *dataDir, address, secret string, turn int64, log *slog.Logger,
) (*kurrent.Store, error) {
	user, password := "", ""
	if secret != "" {
		in, _, err := d.credentials(secret)
		if err != nil {
			return nil, err
		}
		user, password = in.User, in.Secret
	}
	k, err := kurrent.New(kurrent.Config{
		Connection: withUser(address, user, password),
		Prefix:     fmt.Sprintf("weft.%s.%d.", d.id.Cluster, turn),
		Unfenced:   true, Clients: engineFlight,
		Attempts: engineAttempts, Deadline: engineDeadline, Pause: enginePause, Log: log,
	})
	if err != nil { // it may quote the password, and what is said here may become an event
		return nil, domain.Errorf(domain.Invalid, "%s is no address of an event store, or user and "+
			"password do not go into one", address)
	}
	return k, nil
}

// engineMarks keep a carrier's mark on a quorum.
type engineMarks struct {
	quorum.Cursors
	name string
	work string      // as it is called among the node's work
	bg   *background // hears of trouble; nil: nobody does
}

func inwardMarks(c quorum.Cursors, address string, turn int64) engineMarks {
	return engineMarks{
		Cursors: c, name: fmt.Sprintf("engine/in/%d/%s", turn, address),
		work: "copying intents from " + address,
	}
}

func outwardMarks(c quorum.Cursors, address string, turn int64) engineMarks {
	return engineMarks{
		Cursors: c, name: fmt.Sprintf("engine/out/%d/%s", turn, address),
		work: "copying the log to " + address,
	}
}

// Load implements intents.Marks.
func (m engineMarks) Load(ctx context.Context) (k intents.Mark, err error) {
	b, err := m.Cursors.Load(ctx, m.name)
	if err != nil || b == nil {
		return k, err
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, &domain.Error{Kind: domain.Corrupt, Ref: m.name, Msg: "mark", Err: err}
	}
	return k, nil
}

// Save implements intents.Marks.
func (m engineMarks) Save(ctx context.Context, k intents.Mark) error {
	var trouble error
	if k.Trouble != "" {
		trouble = errors.New(k.Trouble)
	}
	m.bg.note(m.work, k.Position, trouble)
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return m.Store(ctx, m.name, b)
}

// moveNote is how far a move is.
type moveNote struct {
	To      string          `json:"to"`
	Events  uint64          `json:"events"`
	Copied  uint64          `json:"copied"`
	Through domain.Position `json:"through"`
	Rest    uint64          `json:"rest"`
	Pace    uint64          `json:"pace"`
	Growth  uint64          `json:"growth"`
	Trouble string          `json:"trouble,omitempty"`
}

// engineer makes the log take intents where the cluster wants them, on the node that leads. It
// belongs to one goroutine.
type engineer struct{ *leading }

// step does what the views ask for, until they ask for something else.
func (m *engineer) step(ctx context.Context) error {
	e := m.views.topology.Engine()
	here, end := context.WithCancel(ctx)
	defer end()
	var watch sync.WaitGroup
	defer watch.Wait()
	defer end()
	watch.Go(func() {
		for here.Err() == nil {
			if now := m.views.topology.Engine(); now.Address != e.Address || now.To != e.To {
				end()
				return
			}
			pause(here, leadRest)
		}
	})
	var err error
	switch {
	case e.To != "":
		err = m.move(here, e)
	case e.Address != "":
		err = m.carry(here, e)
	case e.Closed:
		err = m.back(here, e)
	}
	if here.Err() != nil {
		return nil // the views ask for something else, or the term has ended
	}
	return err
}

// do runs a command under the token of this term.
func (m *engineer) do(ctx context.Context, c domain.Command) (domain.Position, error) {
	_, token := m.views.topology.Leader()
	res, err := m.exec.Do(ctx, domain.Request{
		Command: c, Token: token, Caller: domain.Caller{Actor: "reconciler/" + m.dir.id.Node.String()},
	})
	if err != nil {
		return 0, err
	}
	return res.Position, m.run.Wait(ctx, res.Position)
}

// move copies the log, closes it to intents and makes the event store take them. What failed for
// good ends the move, anything else begins anew.
func (m *engineer) move(ctx context.Context, e cluster.Engine) error {
	open := func(ctx context.Context) error {
		_, err := m.do(ctx, cluster.OpenIntents{Why: "the move to " + e.To + " did not end"})
		return err
	}
	if e.Closed { // a move that was cut short; the way back that was, is done by the same
		if err := m.back(ctx, e); err != nil {
			return err
		}
	}
	to, err := dialEngine(m.dir, e.To, e.ToSecret, e.Turn, m.log)
	if err != nil {
		return m.failed(ctx, e, err)
	}
	defer func() { _ = to.Close() }() // what it acknowledged was read back
	said := time.Now()
	moved, err := intents.Move(ctx, intents.MoveConfig{
		Embedded: m.store, Other: to, Open: open, Flight: engineFlight, Clock: time.Now,
		Close: func(ctx context.Context) (domain.Position, error) {
			return m.do(ctx, cluster.CloseIntents{Why: "the log moves to " + e.To})
		},
		Progress: func(p intents.Progress) {
			if time.Since(said) >= engineSaid {
				said = time.Now()
				m.note(ctx, moveNote{
					To: e.To, Events: p.Events, Copied: p.Copied, Through: p.Through,
					Rest: p.Rest, Pace: p.Pace, Growth: p.Growth,
				})
			}
		},
	})
	if err != nil {
		return m.failed(ctx, e, err)
	}
	c, r := m.store.Cursors(), moved.Report
	err = errors.Join(
		inwardMarks(c, e.To, e.Turn).Save(ctx, intents.Mark{Position: moved.Behind}),
		outwardMarks(c, e.To, e.Turn).Save(ctx, intents.Mark{Position: r.Through}),
	)
	if err == nil {
		_, err = m.do(ctx, cluster.EndMove{Cluster: m.dir.id.Cluster, Fact: &cluster.EngineMigrated{
			To: e.To, Position: r.Through, Content: r.Digest[:], Events: r.Events,
		}})
	}
	return err // left closed, it is looked at anew
}

// note says how far a move is. That it is not kept harms nothing.
func (m *engineer) note(ctx context.Context, n moveNote) {
	b, err := json.Marshal(n)
	if err == nil {
		err = m.store.Cursors().Store(ctx, moveCursor, b)
	}
	if err != nil {
		m.log.Debug("noting how far the move of the log is", "err", err)
	}
}

// failed ends a move that cannot come to a good end.
func (m *engineer) failed(ctx context.Context, e cluster.Engine, err error) error {
	if slices.Contains([]domain.Kind{
		domain.Mismatch, domain.Corrupt, domain.Invalid, domain.Denied, domain.TooLarge,
		domain.Unsupported,
	}, domain.KindOf(err)) {
		_, end := m.do(ctx, cluster.EndMove{Cluster: m.dir.id.Cluster, Fact: &cluster.EngineMoveFailed{
			To: e.To, Why: err.Error(),
		}})
		return end
	}
	if ctx.Err() == nil {
		m.note(ctx, moveNote{To: e.To, Trouble: err.Error()})
	}
	return err
}

// carry copies both ways until the views say otherwise.
func (m *engineer) carry(ctx context.Context, e cluster.Engine) error {
	other, err := dialEngine(m.dir, e.Address, e.Secret, e.Turn, m.log)
	if err != nil {
		return err
	}
	defer func() { _ = other.Close() }() // what it acknowledged was read back
	in, out, err := m.carriers(other, e.Address, e.Turn)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer func() {
		inward, outward := m.marks(e.Address, e.Turn)
		m.bg.end(inward.work)
		m.bg.end(outward.work)
	}()
	var wg sync.WaitGroup
	var outErr error
	wg.Go(func() {
		defer end()
		outErr = out.Run(ctx)
	})
	err = in.Run(ctx)
	end()
	wg.Wait()
	return errors.Join(err, outErr)
}

// marks keep how far the carriers are, and show what stops them.
func (m *engineer) marks(address string, turn int64) (in, out engineMarks) {
	c := m.store.Cursors()
	in, out = inwardMarks(c, address, turn), outwardMarks(c, address, turn)
	in.bg, out.bg = m.bg, m.bg
	return in, out
}

func (m *engineer) carriers(other eventstore.Store, address string, turn int64) (
	in, out *intents.Carrier, err error,
) {
	inward, outward := m.marks(address, turn)
	in, err = intents.Inward(intents.CarrierConfig{
		From: other, To: m.store, Marks: inward,
		Pause: enginePause, Log: m.log.With("copy", "inward"),
		Check: func(r *eventstore.Recorded) error {
			_, err := m.codec.Decode(r.Header, r.Data)
			return err
		},
	})
	if err != nil {
		return nil, nil, err
	}
	out, err = intents.Outward(intents.CarrierConfig{
		From: m.store, To: other, Marks: outward,
		Flight: engineFlight, Pause: enginePause, Log: m.log.With("copy", "outward"),
	})
	return in, out, err
}

// back opens the embedded log to intents, with what the event store that was given up still has,
// if it can be had. What is left there was never acknowledged.
func (m *engineer) back(ctx context.Context, e cluster.Engine) error {
	why := "no other log takes intents"
	if e.Was != "" {
		why = "intents come back from " + e.Was
		if err := m.drain(ctx, e); err != nil {
			if ctx.Err() != nil {
				return err
			}
			m.log.Warn("some changes that nobody was told of stay in the event store", "err", err)
		}
	}
	_, err := m.do(ctx, cluster.OpenIntents{Why: why})
	return err
}

func (m *engineer) drain(ctx context.Context, e cluster.Engine) error {
	ctx, cancel := context.WithTimeout(ctx, drainMost)
	defer cancel()
	was, err := dialEngine(m.dir, e.Was, e.WasSecret, e.Turn-1, m.log)
	if err != nil {
		return err
	}
	defer func() { _ = was.Close() }() // nothing is written there
	in, _, err := m.carriers(was, e.Was, e.Turn-1)
	if err != nil {
		return err
	}
	return intents.Drain(ctx, in)
}

// Engine implements rest.Backend.
func (b *backend) Engine(ctx context.Context) (rest.Engine, error) {
	e, c := b.views.topology.Engine(), b.store.Cursors()
	out := rest.Engine{Engine: e.Name(), State: "embedded", To: e.To, Reason: e.Failed}
	if e.Migrated.To != "" {
		out.Migrated = e.Migrated.Position.String()
	}
	var err error
	switch {
	case e.To != "":
		err = moving(ctx, c, &out, e)
	case e.Address != "":
		err = b.carried(ctx, c, &out, e)
	case e.Closed:
		out.State = "returning"
	}
	return out, err
}

// moving tells how far a move is.
func moving(
	ctx context.Context, c quorum.Cursors, out *rest.Engine, e cluster.Engine,
) error {
	out.State = "copying"
	if e.Closed {
		out.State = "closed"
	}
	raw, err := c.Load(ctx, moveCursor)
	if err != nil || raw == nil {
		return err
	}
	var n moveNote
	if err := json.Unmarshal(raw, &n); err != nil {
		return &domain.Error{Kind: domain.Corrupt, Ref: moveCursor, Msg: "note", Err: err}
	}
	if n.To == e.To {
		out.Events, out.Through, out.Reason = n.Events, n.Through.String(), n.Trouble
		out.Rest, out.Pace, out.Growth = n.Rest, n.Pace, n.Growth
	}
	return nil
}

// carried tells how far the copies are while another log takes intents.
func (b *backend) carried(
	ctx context.Context, c quorum.Cursors, out *rest.Engine, e cluster.Engine,
) error {
	out.State = "external"
	in, err := inwardMarks(c, e.Address, e.Turn).Load(ctx)
	if err != nil {
		return err
	}
	outward, err := outwardMarks(c, e.Address, e.Turn).Load(ctx)
	if err != nil {
		return err
	}
	out.Through = outward.Position.String()
	for r, err := range b.store.ReadAll(ctx, outward.Position, eventstore.Forward, domain.Filter{},
		behindMax) {
		if err != nil {
			return damaged(err)
		}
		if !domain.Intent(r.Stream.Category()) {
			out.Behind++
		}
	}
	switch {
	case in.Trouble != "":
		out.State, out.Reason = "stuck", "intents are not copied into the log: "+in.Trouble
	case outward.Trouble != "":
		out.State, out.Reason = "stuck", "the log is not copied out: "+outward.Trouble
	}
	return nil
}

// CompareEngine implements rest.Backend. It reads the whole log.
func (b *backend) CompareEngine(ctx context.Context, address, secret string) (
	rest.EngineCopy, error,
) {
	to, err := dialEngine(b.dir, address, secret, b.views.topology.Engine().Turn,
		slog.New(slog.DiscardHandler))
	if err != nil {
		return rest.EngineCopy{}, err
	}
	defer func() { _ = to.Close() }() // nothing is written there
	r, err := duplicate.Run(ctx, b.store, to, duplicate.Options{DryRun: true, Flight: engineFlight})
	return rest.EngineCopy{
		Events: r.Events, Present: r.Present, Missing: r.Copied, Streams: r.Streams,
		Bytes: domain.Bytes(r.Bytes),
	}, err
}
