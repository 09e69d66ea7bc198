package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/url"
	"strings"
	"time"

	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"weft/domain"
	"weft/domain/outlet"
	"weft/domain/tenancy"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/feed"
	"weft/eventstore/kurrent"
	"weft/eventstore/quorum"
)

const (
	// retryFirst and retryMost bound the pause after a failure of an outlet.
	retryFirst = 100 * time.Millisecond
	retryMost  = 30 * time.Second
	// brokerWait is how long a broker may take to say that it has a message.
	brokerWait = 10 * time.Second
)

// retryPause waits before something is tried again that failed so often in a row.
func retryPause(ctx context.Context, failures int) error {
	pause(ctx, min(retryFirst<<min(max(failures-1, 0), 16), retryMost))
	return ctx.Err()
}

// publishing runs the outlets on the node that leads. It belongs to one goroutine.
type publishing struct {
	*leading
	runs map[domain.OutletID]*publication
}

// publication is an outlet that is being served.
type publication struct {
	end  context.CancelFunc
	done chan struct{}
}

// run serves the outlets as the view has them until the context ends.
func (p *publishing) run(ctx context.Context) {
	defer p.bg.keep("outlet/", nil)
	defer func() {
		for _, r := range p.runs {
			r.end()
		}
		for _, r := range p.runs {
			<-r.done
		}
	}()
	for ctx.Err() == nil {
		wanted, works := map[domain.OutletID]bool{}, map[string]bool{}
		for _, o := range p.views.outlets.Outlets() {
			if !o.Runs() {
				continue
			}
			wanted[o.Outlet], works[workOf(o)] = true, true
			if p.runs[o.Outlet] == nil {
				p.start(ctx, o)
			}
		}
		p.bg.keep("outlet/", works)
		for id, r := range maps.Clone(p.runs) {
			select {
			case <-r.done:
				delete(p.runs, id) // and it begins again, if it is still wanted
				p.forget(ctx, id)
			default:
				if !wanted[id] {
					r.end()
				}
			}
		}
		pause(ctx, leadRest)
	}
}

// forget removes the cursor of an outlet that was deleted. One that stays is a few bytes.
func (p *publishing) forget(ctx context.Context, id domain.OutletID) {
	if _, ok := p.views.outlets.Outlet(id.String()); ok {
		return
	}
	if err := p.store.Cursors().Delete(ctx, cursorOf(id)); err != nil {
		p.log.Warn("forgetting an outlet's cursor", "outlet", id, "err", err)
	}
}

func (p *publishing) start(ctx context.Context, o outlet.State) {
	ctx, end := context.WithCancel(ctx)
	r := &publication{end, make(chan struct{})}
	p.runs[o.Outlet] = r
	log := p.log.With("outlet", o.Name)
	go func() {
		defer close(r.done)
		defer end()
		err, poison := p.publish(ctx, o, log), (*feed.PoisonError)(nil)
		if err != nil && ctx.Err() == nil && !errors.As(err, &poison) { // that the log tells
			p.bg.note(workOf(o), 0, err)
			log.Warn("the outlet is tried again", "err", err)
			pause(ctx, retryMost/10)
		}
	}()
}

// workOf names an outlet among the work of the node that leads.
func workOf(o outlet.State) string { return "outlet/" + o.Name }

// publish serves one outlet until the context ends or it is stuck.
func (p *publishing) publish(ctx context.Context, o outlet.State, log *slog.Logger) error {
	s, err := feed.New(feed.Config{
		Store: p.store, Cursors: &outletCursors{p.store.Cursors(), o}, Consumer: "outlet/" + o.Name,
		Filter: domain.Filter{TypePrefix: o.Types}, Pause: retryPause, Log: log,
		Delivered: func(at domain.Position, err error) { p.bg.note(workOf(o), at, err) },
		Poisoned:  func(ctx context.Context, f feed.Failure) error { return p.stuck(ctx, o, f) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	user, secret := "", ""
	if o.Secret != "" {
		in, _, err := p.dir.credentials(o.Secret)
		if err != nil {
			return err
		}
		user, secret = in.User, in.Secret
	}
	if outlet.Kind(o.Kind) == outlet.Mirror {
		return p.mirror(ctx, s, o, user, secret, log)
	}
	return p.nats(ctx, s, o, user, secret)
}

// stuck records an event that the outlet does not take.
func (p *publishing) stuck(ctx context.Context, o outlet.State, f feed.Failure) error {
	_, token := p.views.topology.Leader()
	_, err := p.exec.Do(ctx, domain.Request{
		Command: outlet.Stick{OutletStuck: outlet.OutletStuck{
			Outlet: o.Outlet, At: f.Event.Position, Type: f.Event.Type, Of: f.Event.Stream,
			Failures: int64(f.Failures), Reason: f.Reason,
		}},
		Token: token, Caller: domain.Caller{Actor: "outlet/" + o.Name},
	})
	return err
}

// nats publishes to a broker: JSON, under an id by which JetStream drops what comes twice. The id
// has the outlet in it: JetStream looks for it in all subjects of a stream, where another outlet
// may have published the same event.
func (p *publishing) nats(
	ctx context.Context, s *feed.Subscriber, o outlet.State, user, secret string,
) error {
	options := []nats.Option{nats.Name("weft outlet " + o.Name), nats.MaxReconnects(-1)}
	if user != "" {
		options = append(options, nats.UserInfo(user, secret))
	}
	pub, err := wmnats.NewPublisher(wmnats.PublisherConfig{
		URL: o.Address, NatsOptions: options, Marshaler: &wmnats.NATSMarshaler{},
		JetStream: wmnats.JetStreamConfig{
			TrackMsgId: true, ConnectOptions: []nats.JSOpt{nats.MaxWait(brokerWait)},
		},
	}, nil)
	if err != nil {
		return &domain.Error{Kind: domain.Unavailable, Ref: o.Address, Err: err}
	}
	p.bg.end(workOf(o))                // the broker is there
	defer func() { _ = pub.Close() }() // all that was acknowledged is there
	out := feed.Outlet{
		Publisher: pub, Topic: func(*eventstore.Recorded) string { return o.Topic },
		Shape: func(m *message.Message, r *eventstore.Recorded) (err error) {
			if err = p.hold(ctx, o.Outlet); err != nil {
				return err
			}
			m.UUID += "/" + o.Name
			m.Payload, err = jsonOf(p.codec, r)
			return err
		},
		Permanent: func(err error) bool {
			return errors.Is(err, nats.ErrMaxPayload) || domain.IsKind(err, domain.Unsupported)
		},
	}
	return out.Run(ctx, s)
}

// jsonOf shows an event's payload as JSON, without personal text: an erasure does not reach what
// has left the cluster.
func jsonOf(c *codec.Registry, r *eventstore.Recorded) ([]byte, error) {
	recs, err := c.Decode(r.Header, r.Data)
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		if rec.Event != nil {
			return eventJSON(unnamed(c, rec.Event))
		}
	}
	return nil, domain.Errorf(domain.Unsupported, "this build knows no event %s", r.Type)
}

// unnamed gives an event without personal text, whether the log holds it sealed or in clear.
func unnamed(c *codec.Registry, ev domain.Event) domain.Event {
	if n, ok := ev.(*tenancy.NameTaken); ok && n.Kind == "user" {
		out := *n
		out.Name = ""
		return &out
	}
	return c.Show(ev,
		func(domain.UserID, string, domain.Personal) (none domain.Personal) { return none })
}

// mirror copies into an EventStoreDB.
func (p *publishing) mirror(
	ctx context.Context, s *feed.Subscriber, o outlet.State, user, secret string, log *slog.Logger,
) error {
	to, err := kurrent.New(kurrent.Config{
		Connection: withUser(o.Address, user, secret), Unfenced: true, Pause: retryPause, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }() // all that was acknowledged was read back
	return feed.Mirror(ctx, s, &held{to, func(ctx context.Context) error {
		return p.hold(ctx, o.Outlet)
	}})
}

// withUser puts user and password into an address; without a user it stays as it is.
func withUser(address, user, password string) string {
	if user == "" {
		return address
	}
	scheme, rest, _ := strings.Cut(address, "://")
	return scheme + "://" + url.UserPassword(user, password).String() + "@" + rest
}

// hold waits while an outlet is not to publish: its end follows, but nothing may leave meanwhile.
func (p *publishing) hold(ctx context.Context, id domain.OutletID) error {
	for {
		if o, _ := p.views.outlets.Outlet(id.String()); o.Runs() {
			return nil
		}
		if pause(ctx, leadRest); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// held is a log whose appends wait for leave.
type held struct {
	eventstore.Store
	wait func(ctx context.Context) error
}

// Append implements eventstore.Store.
func (h *held) Append(
	ctx context.Context, id domain.StreamID, e eventstore.Expect, ev ...eventstore.Proposed,
) (eventstore.Appended, error) {
	if err := h.wait(ctx); err != nil {
		return eventstore.Appended{}, err
	}
	return h.Store.Append(ctx, id, e, ev...)
}

// outletCursors keep how far an outlet is, on a quorum. What an operator has resumed counts no
// earlier failures, and what is to be skipped is done.
type outletCursors struct {
	quorum.Cursors
	o outlet.State
}

// outletCursor is what is kept.
type outletCursor struct {
	Position domain.Position `json:"position"`
	Failures int             `json:"failures"`
	Resumed  int64           `json:"resumed"` // how often it had been, when this was kept
}

func cursorOf(id domain.OutletID) string { return "outlet/" + id.String() }

func loadOutlet(ctx context.Context, c quorum.Cursors, id domain.OutletID) (
	outletCursor, bool, error,
) {
	var k outletCursor
	b, err := c.Load(ctx, cursorOf(id))
	if err != nil || b == nil {
		return k, false, err
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, false, &domain.Error{Kind: domain.Corrupt, Ref: cursorOf(id), Msg: "cursor", Err: err}
	}
	return k, true, nil
}

// Load implements feed.Cursors.
func (c *outletCursors) Load(ctx context.Context, _ string) (feed.Cursor, error) {
	k, found, err := loadOutlet(ctx, c.Cursors, c.o.Outlet)
	if err != nil {
		return feed.Cursor{}, err
	}
	if !found {
		k.Position = c.o.After
	}
	if k.Resumed != c.o.Resumed {
		k.Failures = 0
	}
	if c.o.Skip > k.Position {
		k.Position, k.Failures = c.o.Skip, 0
	}
	return feed.Cursor{Position: k.Position, Failures: k.Failures}, nil
}

// Save implements feed.Cursors.
func (c *outletCursors) Save(ctx context.Context, _ string, f feed.Cursor) error {
	b, err := json.Marshal(outletCursor{f.Position, f.Failures, c.o.Resumed})
	if err != nil {
		return err
	}
	return c.Store(ctx, cursorOf(c.o.Outlet), b)
}

// behindMax is how many events are counted that an outlet has not published yet.
const behindMax = 10_000

// Published implements rest.Backend.
func (b *backend) Published(ctx context.Context, o outlet.State) (
	at domain.Position, behind int, err error,
) {
	c := outletCursors{b.store.Cursors(), o}
	k, err := c.Load(ctx, "")
	if err != nil {
		return 0, 0, err
	}
	filter := domain.Filter{TypePrefix: o.Types}
	for _, err := range b.store.ReadAll(ctx, k.Position, eventstore.Forward, filter, behindMax) {
		if err != nil {
			return 0, 0, damaged(err)
		}
		behind++
	}
	return k.Position, behind, nil
}
