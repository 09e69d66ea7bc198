package esdb

import (
	"math"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"

	"weft/domain"
	"weft/eventstore"
)

// followAll answers a subscription to the log. The position given is not delivered.
func (c *reading) followAll(o *streams.ReadReq_Options_AllOptions) error {
	after := domain.Position(o.GetPosition().GetCommitPosition())
	if o.GetEnd() != nil || o.GetPosition().GetCommitPosition() == math.MaxUint64 {
		head, err := c.s.config.Store.Head(c.ctx)
		if err != nil {
			return fail(err)
		}
		after = head.Position
	}
	return c.follow(after, domain.NoRevision)
}

// followStream answers a subscription to one stream. The revision given is not delivered.
func (c *reading) followStream(o *streams.ReadReq_Options_StreamOptions) error {
	store := c.s.config.Store
	c.sel.filter = domain.Filter{StreamPrefix: []string{string(c.sel.exact)}}
	c.sel.partial = false
	if o.GetEnd() != nil || o.GetRevision() > math.MaxInt64 {
		head, err := store.Head(c.ctx)
		if err != nil {
			return fail(err)
		}
		return c.follow(head.Position, domain.NoRevision)
	}
	if o.GetStart() != nil {
		return c.follow(0, domain.NoRevision)
	}
	after, least := domain.Position(0), domain.Revision(o.GetRevision())
	for r, err := range store.ReadStream(c.ctx, c.sel.exact, least, eventstore.Forward, 1) {
		if err != nil {
			return fail(err)
		}
		after = r.Position
	}
	return c.follow(after, least)
}

// follow delivers what comes after a cursor and, of one stream, after a revision, until the client
// goes. A filtered subscription hears at intervals how far the log has been looked through, so that
// it can resume there.
func (c *reading) follow(after domain.Position, least domain.Revision) error {
	sub, err := c.s.config.Store.Subscribe(c.ctx, after, c.sel.filter)
	if err != nil {
		return fail(err)
	}
	defer sub.Close() //nolint:errcheck // it ends with the call
	err = c.out.Send(&streams.ReadResp{Content: &streams.ReadResp_Confirmation{
		Confirmation: &streams.ReadResp_SubscriptionConfirmation{
			SubscriptionId: domain.DeriveUUID(c.s.config.Self, "subscription", after.String(),
				c.s.config.Now().String()).String(),
		},
	}})
	told := after // the client knows it is here
	for err == nil {
		var item eventstore.Item
		if item, err = sub.Next(c.ctx); err != nil {
			return fail(err)
		}
		switch item.Kind {
		case eventstore.Event:
			r := &item.Event
			if c.sel.match(r) && (least == domain.NoRevision || r.Revision > least) {
				told = item.Position
				err = c.send(r)
			} else {
				told, err = c.checkpoint(told, item.Position, false)
			}
		case eventstore.Checkpoint:
			told, err = c.checkpoint(told, item.Position, true)
		case eventstore.CaughtUp:
			if told, err = c.checkpoint(told, item.Position, true); err == nil {
				err = c.out.Send(&streams.ReadResp{Content: &streams.ReadResp_CaughtUp_{
					CaughtUp: &streams.ReadResp_CaughtUp{},
				}})
			}
		case eventstore.FellBehind:
			err = c.out.Send(&streams.ReadResp{Content: &streams.ReadResp_FellBehind_{
				FellBehind: &streams.ReadResp_FellBehind{},
			}})
		}
	}
	return err
}

// checkpoint tells a filtered subscription where it is, when that is far from what it knows or when
// it must. It gives what the client knows then.
func (c *reading) checkpoint(told, at domain.Position, must bool) (domain.Position, error) {
	if !c.sel.partial || at == told || !must && at.N()-told.N() < c.sel.every {
		return told, nil
	}
	return at, c.out.Send(&streams.ReadResp{Content: &streams.ReadResp_Checkpoint_{
		Checkpoint: &streams.ReadResp_Checkpoint{
			CommitPosition: uint64(at), PreparePosition: uint64(at),
		},
	}})
}
