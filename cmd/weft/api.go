package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"weft/adapters/oidc"
	"weft/adapters/rest"
	"weft/dataplane/agent"
	"weft/domain"
	"weft/domain/command"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/quorum"
	"weft/eventstore/vault"
	"weft/projections"
	"weft/projections/access"
	"weft/projections/audit"
	"weft/projections/catalog"
	"weft/projections/desired"
	"weft/projections/outlets"
	"weft/projections/topology"
)

const (
	// pastCached is how many past states are kept.
	pastCached = 4
	// heartbeat is how often an idle watch says that it is still there.
	heartbeat = 15 * time.Second
	// waitMax bounds how long a read waits for its own write.
	waitMax = 5 * time.Second
)

// backend joins the API with the log, the views and the node.
type backend struct {
	dir     *dataDir
	store   *quorum.Store
	codec   *codec.Registry
	vault   *vault.Vault
	exec    *eventstore.Executor
	runner  *projections.Runner
	views   *views
	agent   *agent.Agent
	front   *front
	devices *devices
	peer    *peerPort
	to      *dispatcher
	refused *refusals
	idps    *oidc.Verifier

	background *background

	mu   sync.Mutex
	past []rest.Views // most recently used last
}

var _ rest.Backend = (*backend)(nil)

// Do implements rest.Backend.
func (b *backend) Do(ctx context.Context, r domain.Request) (rest.Result, error) {
	res, err := b.exec.Do(ctx, r)
	return rest.Result{
		Stream: res.Stream, Revision: res.Revision, Position: res.Position, Duplicate: res.Duplicate,
	}, damaged(err)
}

// Now implements rest.Backend.
func (b *backend) Now() rest.Views {
	return rest.Views{
		Position: b.runner.Position(), Topology: b.views.topology, Desired: b.views.desired,
		Catalog: b.views.catalog, Audit: b.views.audit, Access: b.views.access,
		Outlets: b.views.outlets,
	}
}

// At implements rest.Backend. States of the past never change, so they are kept.
func (b *backend) At(ctx context.Context, p domain.Position) (rest.Views, error) {
	if now := b.runner.Position(); p > now {
		return rest.Views{}, domain.Errorf(domain.OutOfRange, "position %s: the log ends at %s", p, now)
	}
	b.mu.Lock()
	at := slices.IndexFunc(b.past, func(v rest.Views) bool { return v.Position == p })
	if at >= 0 {
		v := b.past[at]
		b.past = append(slices.Delete(b.past, at, at+1), v)
		b.mu.Unlock()
		return v, nil
	}
	b.mu.Unlock()
	past, _, err := projections.AtOnce(ctx, b.runner, p, topology.New(), desired.New(),
		catalog.New(), audit.New(), access.New(b.vault), outlets.New())
	if err != nil {
		return rest.Views{}, err
	}
	v := rest.Views{Position: p}
	for _, x := range past {
		switch x := x.(type) {
		case *topology.View:
			v.Topology = x
		case *desired.View:
			v.Desired = x
		case *catalog.View:
			v.Catalog = x
		case *audit.View:
			v.Audit = x
		case *access.View:
			v.Access = x
		case *outlets.View:
			v.Outlets = x
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.past = append(b.past, v)
	b.past = b.past[max(0, len(b.past)-pastCached):]
	return v, nil
}

// Wait implements rest.Backend.
func (b *backend) Wait(ctx context.Context, p domain.Position) error {
	ctx, cancel := context.WithTimeout(ctx, waitMax)
	defer cancel()
	return b.runner.Wait(ctx, p)
}

// Events implements rest.Backend.
func (b *backend) Events(ctx context.Context, from domain.Position, backward bool, f domain.Filter,
	limit int,
) ([]rest.Event, error) {
	dir := eventstore.Forward
	if backward {
		dir = eventstore.Backward
	}
	var list []rest.Event
	for r, err := range b.store.ReadAll(ctx, from, dir, f, limit) {
		if err != nil {
			return nil, damaged(err)
		}
		e, err := b.event(ctx, r)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

// event decodes a stored event and shows its payload as JSON, what is sealed in it with the keys of
// this moment.
func (b *backend) event(ctx context.Context, r eventstore.Recorded) (rest.Event, error) {
	recs, err := b.codec.Decode(r.Header, r.Data)
	if err != nil {
		return rest.Event{}, err
	}
	e := rest.Event{Header: r.Header}
	for _, rec := range recs {
		if rec.Event == nil {
			continue
		}
		data, err := eventJSON(b.shown(ctx, &r.Header, rec.Event))
		if err != nil {
			return rest.Event{}, err
		}
		e.Data = data
	}
	return e, nil
}

// Watch implements rest.Backend.
func (b *backend) Watch(ctx context.Context, after domain.Position, f domain.Filter,
	fn func(*rest.Event) error,
) error {
	sub, err := b.store.Subscribe(ctx, after, f)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Close() }()
	for {
		wait, cancel := context.WithTimeout(ctx, heartbeat)
		item, err := sub.Next(wait)
		idle := wait.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err != nil && idle:
			if err := fn(nil); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case item.Kind != eventstore.Event:
			continue
		}
		e, err := b.event(ctx, item.Event)
		if err != nil {
			return err
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
}

// Export implements rest.Backend. It ends at the last record that was there when it began.
func (b *backend) Export(
	ctx context.Context, after domain.Position, fn func(record []byte) error,
) (domain.Position, error) {
	var buf []byte
	last := after
	for r, err := range b.store.ReadAll(ctx, after, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if err != nil {
			return last, damaged(err)
		}
		buf = eventstore.AppendRecord(buf[:0], &r)
		if err := fn(buf); err != nil {
			return last, err
		}
		last = r.Position
	}
	return last, nil
}

// Until implements rest.Backend. Clocks of nodes differ a little, so times are not quite in order;
// the last event that is not younger decides.
func (b *backend) Until(ctx context.Context, t time.Time) (domain.Position, error) {
	from := b.runner.Position()
	if from == 0 {
		return 0, nil
	}
	for r, err := range b.store.ReadAll(ctx, from, eventstore.Backward, domain.Filter{},
		eventstore.NoLimit) {
		if err != nil {
			return 0, damaged(err)
		}
		if !r.Created.After(t) {
			return r.Position, nil
		}
	}
	return 0, nil
}

// Replay implements rest.Backend.
func (b *backend) Replay(ctx context.Context, p domain.Position) ([]rest.Replayed, error) {
	var out []rest.Replayed
	for _, v := range newViews(b.vault).list() {
		begin := time.Now()
		r, err := projections.Replay(ctx, b.runner, p, v)
		if err != nil {
			return nil, damaged(err)
		}
		out = append(out, rest.Replayed{
			View: r.View, Version: r.Version, Events: r.Events, Hash: r.Hash, Took: time.Since(begin),
		})
	}
	return out, nil
}

// Verify implements rest.Backend. What is found is the answer, not an error of the call.
func (b *backend) Verify(ctx context.Context) (rest.Verdict, error) {
	var v rest.Verdict
	err := b.store.Verify(ctx, func(p domain.Position) { v.Checked = p })
	var bad *eventstore.CorruptError
	if !errors.As(err, &bad) {
		return v, err
	}
	v.Bad, v.Why, v.Node = bad.Position, bad.Error(), b.dir.id.Name
	var found *quorum.FoundError
	if errors.As(err, &found) {
		v.Part, v.Remedy = string(found.Part), remedy(found.Part, found.Alone)
		for _, n := range b.views.topology.Nodes() {
			if found.Part == quorum.PartDatabase && n.Member != 0 && n.Member == found.Member {
				v.Node = n.Name // a client of the log reads another's
			}
		}
	}
	return v, nil
}

// Digest implements rest.Backend.
func (b *backend) Digest(kind, text string) []byte { return b.vault.Digest(kind, text) }

// PutSecret implements rest.Backend.
func (b *backend) PutSecret(name, user, pass, ownUser, ownPass string) error {
	return b.dir.PutSecret(name, user, pass, ownUser, ownPass)
}

// Ask implements rest.Backend.
func (b *backend) Ask(ctx context.Context, q command.Question) (command.Answer, error) {
	return b.to.Ask(ctx, q)
}

// Live implements rest.Backend.
func (b *backend) Live(id domain.VolumeID) (rest.Live, bool) {
	s, ok := b.agent.Find(id)
	if !ok {
		return rest.Live{}, false
	}
	l := rest.Live{
		NBD:   b.front.NBDURI(s.Export.NBD),
		ISCSI: b.front.ISCSIURI(s.Export.Target, s.Export.LUN),
	}
	for _, o := range s.Disk.Stats() {
		if o.Count > 0 {
			l.Ops = append(l.Ops, rest.LiveOps{
				Op: o.Op.String(), Count: o.Count, Bytes: o.Bytes, Errors: o.Errors,
			})
		}
	}
	if a, err := b.agent.Ask(context.Background(), command.Question{
		Ask: command.AskVolume, Volume: id,
	}); err == nil {
		l.Space, l.Durability = a, a.Durability
	}
	return l, true
}

// LiveDevice implements rest.Backend.
func (b *backend) LiveDevice(id domain.DeviceID) (rest.LiveDevice, bool) {
	if b.devices.nvram != nil && id == b.dir.nvramID() {
		used, size := b.devices.nvramUsed()
		return rest.LiveDevice{
			Used: used, Usable: size, Capacity: size, Mode: b.devices.nvram.Geometry().Durability.String(),
		}, true
	}
	u := b.devices.find(id)
	if u == nil {
		return rest.LiveDevice{}, false
	}
	s, m := u.engine.Stats(), b.devices.moves.of(id)
	return rest.LiveDevice{
		Moving: m.To, Moved: m.Moved, Left: m.Left, Trouble: m.Trouble,
		Garbage: domain.Bytes(s.GarbageBytes),
		Used:    domain.Bytes(s.LiveBytes), Usable: domain.Bytes(s.UsableBytes),
		Capacity: domain.Bytes(s.CapacityBytes), FreeSegments: s.FreeSegments,
		Segments: s.Segments, Corruptions: s.Corruptions, Mode: u.engine.Mode().String(),
	}, true
}

// api is the running REST server.
type api struct {
	server *rest.Server
	addr   string
	url    string // as a client on this machine calls it
	ca     string // file of the authority that clients are to trust; empty: none of the cluster's
}

// startAPI listens and serves. What it prints of the address is where it really listens.
func startAPI(o Options, b *backend, log *slog.Logger) (*api, func(), error) {
	s := rest.New(rest.Config{
		Backend: b, Logger: log, Version: version(), Metrics: newMetrics(b),
		OpenMetrics: loopback(o.API),
	})
	l, err := listen("tcp", o.API, "--api")
	if err != nil {
		return nil, nil, err
	}
	if l == nil {
		return nil, nil, domain.Errorf(domain.Invalid, "the API cannot be off")
	}
	a := &api{server: s, addr: l.Addr().String()}
	safe, look := secured(o.APITLS, o.API), func(context.Context) {}
	a.url = scheme(safe) + reachable(a.addr)
	if safe {
		var cfg *tls.Config
		if cfg, a.ca, look, err = apiTLS(o, b.peer.id, a.addr, b.background, log); err != nil {
			_ = l.Close() // nothing came over it
			return nil, nil, err
		}
		l = tls.NewListener(l, cfg)
	}
	life, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { look(life) })
	wg.Go(func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
			log.Error("api", "err", err)
		}
	})
	return a, func() {
		end()
		if err := s.Close(); err != nil {
			log.Error("closing the api", "err", err)
		}
		wg.Wait()
	}, nil
}

// eventJSON shows an event with the names its fields have in the log.
func eventJSON(ev domain.Event) (json.RawMessage, error) {
	return json.Marshal(plainValue(ev))
}
