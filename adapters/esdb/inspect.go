package esdb

import (
	"cmp"
	"context"
	"math"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/persistent"

	"weft/domain"
)

// cut ends a group's consumers; it opens again with whoever comes next.
func (g *groups) cut(key string) {
	g.mu.Lock()
	x := g.mu.open[key]
	g.mu.Unlock()
	if x != nil {
		g.shut(x, errCut)
	}
}

// remove deletes a group.
func (g *groups) remove(ctx context.Context, key string) error {
	g.making.Lock()
	defer g.making.Unlock()
	g.mu.Lock()
	x := g.mu.open[key]
	g.mu.Unlock()
	if x != nil {
		g.shut(x, errDeleted)
	}
	return g.server.config.Cursors.Delete(ctx, key)
}

// ReplayParked implements persistent.PersistentSubscriptionsServer: parked events are delivered
// again, before all others. Consumers are cut and come back to them.
func (c consumers) ReplayParked(ctx context.Context, req *persistent.ReplayParkedReq) (
	*persistent.ReplayParkedResp, error,
) {
	o := req.GetOptions()
	stream := domain.StreamID(o.GetStreamIdentifier().GetStreamName())
	key, _, err := c.find(ctx, stream, o.GetGroupName())
	if err != nil {
		return nil, err
	}
	c.s.groups.making.Lock()
	defer c.s.groups.making.Unlock()
	c.s.groups.cut(key)
	m, _, err := c.s.groups.load(ctx, key)
	if err != nil {
		return nil, fail(err)
	}
	n := len(m.Parked)
	if o.GetNoLimit() == nil && o.GetStopAt() > 0 {
		n = int(min(int64(n), o.GetStopAt()))
	}
	m.Replay = append(append([]domain.Position(nil), m.Replay...), m.Parked[:n]...)
	m.Parked = m.Parked[n:]
	if err := c.s.groups.store(ctx, key, m); err != nil {
		return nil, fail(err)
	}
	return &persistent.ReplayParkedResp{}, nil
}

// GetInfo implements persistent.PersistentSubscriptionsServer.
func (c consumers) GetInfo(ctx context.Context, req *persistent.GetInfoReq) (
	*persistent.GetInfoResp, error,
) {
	o := req.GetOptions()
	stream := domain.StreamID(o.GetStreamIdentifier().GetStreamName())
	key, m, err := c.find(ctx, stream, o.GetGroupName())
	if err != nil {
		return nil, err
	}
	return &persistent.GetInfoResp{SubscriptionInfo: c.info(ctx, key, m)}, nil
}

// List implements persistent.PersistentSubscriptionsServer.
func (c consumers) List(ctx context.Context, req *persistent.ListReq) (
	*persistent.ListResp, error,
) {
	if err := c.lead(ctx, trailerOf(ctx)); err != nil {
		return nil, err
	}
	keys, memos, err := c.s.groups.list(ctx, principal(ctx).Tenant)
	if err != nil {
		return nil, fail(err)
	}
	out := &persistent.ListResp{}
	only := req.GetOptions().GetListForStream()
	for i, m := range memos {
		stream := domain.StreamID(only.GetStream().GetStreamName())
		if only == nil || m.Source.Stream == stream {
			out.Subscriptions = append(out.Subscriptions, c.info(ctx, keys[i], m))
		}
	}
	if only != nil && len(out.Subscriptions) == 0 {
		return nil, missing(trailerOf(ctx), shown(domain.StreamID(only.GetStream().GetStreamName())), "")
	}
	return out, nil
}

// info tells about a group what is known of it here.
func (c consumers) info(ctx context.Context, key string, m memo) *persistent.SubscriptionInfo {
	s := &m.Settings
	out := &persistent.SubscriptionInfo{
		EventSource: shown(m.Source.Stream), GroupName: m.Name, Status: "NotReady",
		StartFrom: place(m.Start), LastCheckpointedEventPosition: place(m.At),
		MaxRetryCount:               int32(cmp.Or(s.Retries, retriesDefault)),
		MessageTimeoutMilliseconds:  millis(cmp.Or(s.Timeout, timeoutDefault)),
		CheckPointAfterMilliseconds: millis(cmp.Or(s.SaveAfter, saveDefault)),
		MinCheckPointCount:          int32(cmp.Or(s.SaveMany, saveManyDefault)),
		MaxSubscriberCount:          int32(s.Consumers),
		NamedConsumerStrategy:       cmp.Or(s.Strategy, roundRobin),
		ParkedMessageCount:          int64(len(m.Parked)),
	}
	if head, err := c.s.config.Store.Head(ctx); err == nil {
		out.LastKnownEventPosition = place(head.Position)
	}
	c.s.groups.mu.Lock()
	g := c.s.groups.mu.open[key]
	c.s.groups.mu.Unlock()
	if g == nil {
		return out
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	out.Status = "Live"
	for _, w := range g.mu.pending {
		if w.owner != nil {
			out.TotalInFlightMessages++
		} else if w.retries > 0 {
			out.RetryBufferCount++
		}
	}
	out.OutstandingMessagesCount = out.TotalInFlightMessages
	for _, x := range g.mu.consumers {
		out.TotalItems += x.total
		out.Connections = append(out.Connections, &persistent.SubscriptionInfo_ConnectionInfo{
			From: x.from, Username: x.actor, TotalItems: x.total,
			AvailableSlots: int32(x.window - x.held), InFlightMessages: int32(x.held),
		})
	}
	return out
}

// place writes a position as the clients read it.
func place(p domain.Position) string {
	return "C:" + decimal(uint64(p)) + "/P:" + decimal(uint64(p))
}

func millis(d time.Duration) int32 {
	return int32(min(max(d.Milliseconds(), 0), math.MaxInt32))
}
