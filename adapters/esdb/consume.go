package esdb

import (
	"context"
	"errors"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/persistent"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"weft/domain"
	"weft/eventstore"
)

// consumers serves the persistent subscriptions.
type consumers struct {
	persistent.UnimplementedPersistentSubscriptionsServer
	s *Server
}

// lead refuses a call that another node must serve, and names that node as the clients expect it.
func (c consumers) lead(ctx context.Context, trailer func(metadata.MD)) error {
	if p := principal(ctx); p.Sees != nil && !p.Whole {
		method, _ := grpc.Method(ctx)
		c.s.refused(ctx, method, p.Actor, "may not read the whole log")
		trailer(metadata.Pairs(exceptionKey, accessDenied))
		return status.Error(codes.PermissionDenied,
			"persistent subscriptions are for those who may read the whole log")
	}
	m, self := c.s.leader()
	if self {
		return nil
	}
	if m.Address == "" {
		return status.Error(codes.Unavailable, "no node leads at the moment")
	}
	trailer(metadata.Pairs(exceptionKey, notLeader, leaderHostKey, m.Address,
		leaderPortKey, strconv.Itoa(int(m.Port))))
	return status.Error(codes.NotFound, "persistent subscriptions are served by the leader")
}

// missing refuses a call about a group that is not there.
func missing(trailer func(metadata.MD), stream, name string) error {
	trailer(metadata.Pairs(exceptionKey, noSuchGroup, "stream-name", stream, "group-name", name))
	return status.Errorf(codes.NotFound, "no persistent subscription %s of %s", name, stream)
}

func shown(stream domain.StreamID) string {
	if stream == "" {
		return "$all"
	}
	return string(stream)
}

// Create implements persistent.PersistentSubscriptionsServer.
func (c consumers) Create(ctx context.Context, req *persistent.CreateReq) (
	*persistent.CreateResp, error,
) {
	trailer, o := trailerOf(ctx), req.GetOptions()
	if err := c.lead(ctx, trailer); err != nil {
		return nil, err
	}
	m := memo{Name: o.GetGroupName(), Settings: settingsOf(o.GetSettings())}
	m.Source.Tenant = principal(ctx).Tenant
	if m.Name == "" || len(m.Name) > groupNameMax {
		return nil, status.Errorf(codes.InvalidArgument, "group names have 1 to %d bytes", groupNameMax)
	}
	var err error
	if all := o.GetAll(); all != nil {
		err = c.fromAll(ctx, &m, all)
	} else {
		err = c.fromStream(ctx, &m, o)
	}
	if err != nil {
		return nil, err
	}
	if _, err := m.Source.selection(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "pattern: %v", err)
	}
	m.At = m.Start
	key := keyOf(m.Source.Tenant, m.Source.Stream, m.Name)
	c.s.groups.making.Lock()
	defer c.s.groups.making.Unlock()
	names, err := c.s.config.Cursors.Names(ctx)
	if err != nil {
		return nil, fail(err)
	}
	if len(names) >= groupsMax {
		return nil, status.Errorf(codes.ResourceExhausted, "there are %d groups already", groupsMax)
	}
	if _, found, err := c.s.groups.load(ctx, key); err != nil || found {
		if err != nil {
			return nil, fail(err)
		}
		trailer(metadata.Pairs(exceptionKey, groupExists, "stream-name", shown(m.Source.Stream),
			"group-name", m.Name))
		return nil, status.Error(codes.AlreadyExists, "the group exists")
	}
	if err := c.s.groups.store(ctx, key, m); err != nil {
		return nil, fail(err)
	}
	return &persistent.CreateResp{}, nil
}

// fromAll reads where a group over $all begins, and what it selects.
func (c consumers) fromAll(
	ctx context.Context, m *memo, o *persistent.CreateReq_AllOptions,
) error {
	m.Source.Least = domain.NoRevision
	position := o.GetPosition().GetCommitPosition()
	switch {
	case o.GetEnd() != nil || position == math.MaxUint64:
		head, err := c.s.config.Store.Head(ctx)
		if err != nil {
			return fail(err)
		}
		m.Start = head.Position
	case o.GetPosition() != nil:
		m.Start = domain.Position(position)
	}
	f := o.GetFilter()
	if f == nil {
		return nil
	}
	var sel selection
	if e := f.GetStreamIdentifier(); e != nil {
		if err := sel.narrow(f, e, nil); err != nil {
			return err
		}
		m.Source.Streams = sel.filter.StreamPrefix
		if sel.stream != nil {
			m.Source.StreamLike = sel.stream.String()
		}
	} else if e := f.GetEventType(); e != nil {
		if err := sel.narrow(f, nil, e); err != nil {
			return err
		}
		m.Source.Types = sel.filter.TypePrefix
		if sel.typ != nil {
			m.Source.TypeLike = sel.typ.String()
		}
	}
	return nil
}

// fromStream reads where a group over one stream begins: at a revision, that one included. The
// Node.js clients name the stream in a field of its own that was given up long ago.
func (c consumers) fromStream(
	ctx context.Context, m *memo, o *persistent.CreateReq_Options,
) error {
	s := o.GetStream()
	name := s.GetStreamIdentifier().GetStreamName()
	if len(name) == 0 {
		name = o.GetStreamIdentifier().GetStreamName() //nolint:staticcheck // see above
	}
	m.Source.Stream, m.Source.Least = domain.StreamID(name), domain.NoRevision
	if len(name) == 0 {
		return status.Error(codes.InvalidArgument, "neither a stream nor $all")
	}
	if s.GetEnd() != nil || s.GetRevision() > math.MaxInt64 {
		head, err := c.s.config.Store.Head(ctx)
		if err != nil {
			return fail(err)
		}
		m.Start = head.Position
		return nil
	}
	m.Source.Least = domain.Revision(s.GetRevision()) - 1
	return nil
}

// settingsOf reads the settings that mean something here. Ticks are 100 ns.
func settingsOf(o *persistent.CreateReq_Settings) settings {
	s := settings{
		Retries: int(o.GetMaxRetryCount()), SaveMany: int(o.GetMinCheckpointCount()),
		Consumers: int(o.GetMaxSubscriberCount()), Strategy: o.GetConsumerStrategy(),
		Timeout: time.Duration(o.GetMessageTimeoutTicks())*nanosPerTick +
			time.Duration(o.GetMessageTimeoutMs())*time.Millisecond,
		SaveAfter: time.Duration(o.GetCheckpointAfterTicks())*nanosPerTick +
			time.Duration(o.GetCheckpointAfterMs())*time.Millisecond,
	}
	if s.Strategy == "" {
		named := o.GetNamedConsumerStrategy() //nolint:staticcheck // older clients use it
		s.Strategy = strategyOf(named)
	}
	return s
}

func strategyOf(named persistent.CreateReq_ConsumerStrategy) string {
	switch named {
	case persistent.CreateReq_DispatchToSingle:
		return single
	case persistent.CreateReq_Pinned:
		return pinned
	case persistent.CreateReq_RoundRobin:
	}
	return roundRobin
}

// Update implements persistent.PersistentSubscriptionsServer: settings alone, for what a group
// follows is what it is. Its consumers are cut, and come back to the new settings.
func (c consumers) Update(ctx context.Context, req *persistent.UpdateReq) (
	*persistent.UpdateResp, error,
) {
	o := req.GetOptions()
	name := o.GetStream().GetStreamIdentifier().GetStreamName()
	if len(name) == 0 {
		name = o.GetStreamIdentifier().GetStreamName() //nolint:staticcheck // older clients use it
	}
	if o.GetAll() != nil {
		name = nil
	}
	key, _, err := c.find(ctx, domain.StreamID(name), o.GetGroupName())
	if err != nil {
		return nil, err
	}
	n := o.GetSettings()
	changed := settingsOf(&persistent.CreateReq_Settings{
		MaxRetryCount: n.GetMaxRetryCount(), MinCheckpointCount: n.GetMinCheckpointCount(),
		MaxSubscriberCount: n.GetMaxSubscriberCount(),
		ConsumerStrategy: strategyOf(persistent.CreateReq_ConsumerStrategy(
			n.GetNamedConsumerStrategy(),
		)),
		MessageTimeout: &persistent.CreateReq_Settings_MessageTimeoutTicks{
			MessageTimeoutTicks: n.GetMessageTimeoutTicks() +
				int64(n.GetMessageTimeoutMs())*int64(time.Millisecond)/nanosPerTick,
		},
		CheckpointAfter: &persistent.CreateReq_Settings_CheckpointAfterTicks{
			CheckpointAfterTicks: n.GetCheckpointAfterTicks() +
				int64(n.GetCheckpointAfterMs())*int64(time.Millisecond)/nanosPerTick,
		},
	})
	c.s.groups.making.Lock()
	defer c.s.groups.making.Unlock()
	c.s.groups.cut(key)
	m, _, err := c.s.groups.load(ctx, key)
	if err != nil {
		return nil, fail(err)
	}
	m.Settings = changed
	if err := c.s.groups.store(ctx, key, m); err != nil {
		return nil, fail(err)
	}
	return &persistent.UpdateResp{}, nil
}

// find gives a group that the caller may use, or the error to answer with.
func (c consumers) find(ctx context.Context, stream domain.StreamID, name string) (
	string, memo, error,
) {
	trailer := trailerOf(ctx)
	if err := c.lead(ctx, trailer); err != nil {
		return "", memo{}, err
	}
	key := keyOf(principal(ctx).Tenant, stream, name)
	m, found, err := c.s.groups.load(ctx, key)
	if err != nil {
		return "", memo{}, fail(err)
	}
	if !found {
		return "", memo{}, missing(trailer, shown(stream), name)
	}
	return key, m, nil
}

// Delete implements persistent.PersistentSubscriptionsServer.
func (c consumers) Delete(ctx context.Context, req *persistent.DeleteReq) (
	*persistent.DeleteResp, error,
) {
	o := req.GetOptions()
	stream := domain.StreamID(o.GetStreamIdentifier().GetStreamName())
	key, _, err := c.find(ctx, stream, o.GetGroupName())
	if err != nil {
		return nil, err
	}
	if err := c.s.groups.remove(ctx, key); err != nil {
		return nil, fail(err)
	}
	return &persistent.DeleteResp{}, nil
}

// Read implements persistent.PersistentSubscriptionsServer: one consumer, from its first message
// on.
func (c consumers) Read(stream persistent.PersistentSubscriptions_ReadServer) error {
	if err := c.lead(stream.Context(), stream.SetTrailer); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	o := first.GetOptions()
	if o == nil {
		return status.Error(codes.InvalidArgument, "the first message has no options")
	}
	ctx, done := c.s.scope(stream.Context())
	defer done()
	who := principal(ctx)
	x := &consumer{
		window: min(max(int(o.GetBufferSize()), 1), bufferMax), actor: who.Actor,
		gone: make(chan struct{}),
	}
	x.out = make(chan delivery, x.window)
	if p, ok := peer.FromContext(ctx); ok {
		x.from = p.Addr.String()
	}
	name := domain.StreamID(o.GetStreamIdentifier().GetStreamName())
	key := keyOf(who.Tenant, name, o.GetGroupName())
	g, found, full, err := c.s.groups.enter(ctx, key, x)
	switch {
	case err != nil:
		return fail(err)
	case !found:
		return missing(stream.SetTrailer, shown(name), o.GetGroupName())
	case full:
		stream.SetTrailer(metadata.Pairs(exceptionKey, groupFull,
			"stream-name", shown(name), "group-name", o.GetGroupName()))
		return status.Error(codes.FailedPrecondition, "the group has all the consumers it may have")
	}
	defer c.s.groups.exit(g, x)
	err = stream.Send(&persistent.ReadResp{Content: &persistent.ReadResp_SubscriptionConfirmation_{
		SubscriptionConfirmation: &persistent.ReadResp_SubscriptionConfirmation{SubscriptionId: key},
	}})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- listen(stream, g, x) }()
	text := o.GetUuidOption().GetString_() != nil
	for {
		select {
		case d := <-x.out:
			if err := c.deliver(stream, d, text); err != nil {
				return err
			}
		case <-x.gone:
			return c.bye(stream, g, x)
		case err := <-ended:
			return err
		case <-ctx.Done():
			return fail(eventstore.ErrClosed)
		}
	}
}

// bye tells a consumer why its group let go of it.
func (c consumers) bye(
	stream persistent.PersistentSubscriptions_ReadServer, g *group, x *consumer,
) error {
	g.mu.Lock()
	why := x.why
	g.mu.Unlock()
	if errors.Is(why, errMoved) {
		if err := c.lead(stream.Context(), stream.SetTrailer); err != nil {
			return err
		}
	}
	if errors.Is(why, errDeleted) {
		stream.SetTrailer(metadata.Pairs(exceptionKey, groupDropped))
		return status.Error(codes.Canceled, why.Error())
	}
	if why == nil {
		return nil
	}
	return fail(why)
}

// listen takes a consumer's answers until it goes.
func listen(stream persistent.PersistentSubscriptions_ReadServer, g *group, x *consumer) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if a := m.GetAck(); a != nil {
			g.ack(x, parseIDs(a.GetIds()))
		}
		if n := m.GetNack(); n != nil {
			g.nack(x, parseIDs(n.GetIds()), n.GetAction(), n.GetReason())
		}
	}
}

func parseIDs(ids []*shared.UUID) []domain.UUID {
	out := make([]domain.UUID, 0, len(ids))
	for _, id := range ids {
		if u, ok := parseID(id); ok {
			out = append(out, u)
		}
	}
	return out
}

// nack gives events back, as the consumer says: to be parked, skipped, or delivered again. Stop
// ends the consumer, and its events go to the others.
func (g *group) nack(
	c *consumer, ids []domain.UUID, action persistent.ReadReq_Nack_Action, why string,
) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range ids {
		w := g.mu.byID[id]
		if w == nil || w.owner != c {
			continue
		}
		switch action {
		case persistent.ReadReq_Nack_Park:
			g.park(w, why)
		case persistent.ReadReq_Nack_Skip:
			g.done(w)
		case persistent.ReadReq_Nack_Unknown, persistent.ReadReq_Nack_Retry,
			persistent.ReadReq_Nack_Stop:
			g.again(w, why)
		}
	}
	if action == persistent.ReadReq_Nack_Stop {
		c.dismiss(nil)
	}
	g.settle()
}

func (c consumers) deliver(
	stream persistent.PersistentSubscriptions_ReadServer, d delivery, text bool,
) error {
	w, err := c.s.wire(d.event)
	if err != nil {
		return fail(err)
	}
	position := uint64(d.event.Position)
	e := &persistent.ReadResp_ReadEvent_RecordedEvent{
		Id:               identifier(d.event.ID.UUID, text),
		StreamIdentifier: &shared.StreamIdentifier{StreamName: w.stream},
		StreamRevision:   uint64(d.event.Revision),
		PreparePosition:  position, CommitPosition: position,
		Metadata: w.metadata, CustomMetadata: w.custom, Data: w.data,
	}
	return stream.Send(&persistent.ReadResp{Content: &persistent.ReadResp_Event{
		Event: &persistent.ReadResp_ReadEvent{
			Event:    e,
			Position: &persistent.ReadResp_ReadEvent_CommitPosition{CommitPosition: position},
			Count:    &persistent.ReadResp_ReadEvent_RetryCount{RetryCount: int32(d.retries)},
		},
	}})
}
