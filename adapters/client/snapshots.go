package client

import (
	"context"
	"net/url"
	"strconv"

	"weft/domain"
)

// Snapshots lists the snapshots of a tenant.
func (c *Client) Snapshots(ctx context.Context, at At) (Reply[SnapshotList], error) {
	return get[SnapshotList](ctx, c, "/v1/snapshots", at.query())
}

// Snapshot gives one snapshot by id.
func (c *Client) Snapshot(ctx context.Context, id string, at At) (Reply[Snapshot], error) {
	return get[Snapshot](ctx, c, "/v1/snapshots/"+seg(id), at.query())
}

// SnapshotApp takes a snapshot of volumes of an application, all at one instant. Taken waits for
// it.
func (c *Client) SnapshotApp(ctx context.Context, app string, b SnapshotBody, ch Change) (
	Reply[SnapshotList], error,
) {
	return change[SnapshotList](ctx, c, "POST", "/v1/apps/"+seg(app)+"/snapshots", b, ch)
}

// SnapshotVolume takes a snapshot of one volume; an empty name lets one be made up.
func (c *Client) SnapshotVolume(ctx context.Context, app, volume, name string, ch Change) (
	Reply[SnapshotList], error,
) {
	return change[SnapshotList](ctx, c, "POST",
		"/v1/apps/"+seg(app)+"/volumes/"+seg(volume)+"/snapshots", SnapshotBody{Name: name}, ch)
}

// DeleteSnapshot deletes a snapshot by id. SnapshotGone waits for the end.
func (c *Client) DeleteSnapshot(ctx context.Context, id string, ch Change) (Reply[Gone], error) {
	return change[Gone](ctx, c, "DELETE", "/v1/snapshots/"+seg(id), nil, ch)
}

// RestoreVolume rolls a volume back to one of its snapshots; Conflict while hosts use it, unless
// forced. Restored waits for the end.
func (c *Client) RestoreVolume(ctx context.Context, app, volume string, b RestoreBody, ch Change) (
	Reply[Volume], error,
) {
	return change[Volume](ctx, c, "POST",
		"/v1/apps/"+seg(app)+"/volumes/"+seg(volume)+"/restore", b, ch)
}

// Span selects a page of ranges.
type Span struct {
	Tenant string
	From   int64
	To     int64 // 0: the end
	Limit  int   // 0: the node's most
}

func (s Span) query() url.Values {
	q := At{Tenant: s.Tenant}.query()
	for name, v := range map[string]int64{"from": s.From, "to": s.To, "limit": int64(s.Limit)} {
		if v != 0 {
			q.Set(name, strconv.FormatInt(v, 10))
		}
	}
	return q
}

// Allocated gives a page of the ranges where a volume or a snapshot holds data, by id.
func (c *Client) Allocated(ctx context.Context, snapshot bool, id string, s Span) (
	Reply[Ranges], error,
) {
	return get[Ranges](ctx, c, subject(snapshot, id)+"/allocated", s.query())
}

// Changes gives a page of the ranges where a volume or a snapshot differs from an older snapshot.
func (c *Client) Changes(ctx context.Context, snapshot bool, id, since string, s Span) (
	Reply[Ranges], error,
) {
	q := s.query()
	q.Set("since", since)
	return get[Ranges](ctx, c, subject(snapshot, id)+"/changes", q)
}

// Sharing tells what deleting a volume or a snapshot, by id, gives back: its node walks the index.
func (c *Client) Sharing(ctx context.Context, snapshot bool, id, tenant string) (
	Reply[Sharing], error,
) {
	return get[Sharing](ctx, c, subject(snapshot, id)+"/sharing", At{Tenant: tenant}.query())
}

func subject(snapshot bool, id string) string {
	if snapshot {
		return "/v1/snapshots/" + seg(id)
	}
	return "/v1/volumes/" + seg(id)
}

// Taken waits until every snapshot of a group is ready, and gives them. One that failed is an error
// with the reason.
func (c *Client) Taken(ctx context.Context, after domain.Position, tenant, group string) (
	[]Snapshot, error,
) {
	var found []Snapshot
	err := c.Until(ctx, after, func(ctx context.Context, least domain.Position) (bool, error) {
		r, err := c.Snapshots(ctx, At{Tenant: tenant, Min: least})
		if err != nil {
			return false, err
		}
		found = nil
		ready := true
		for _, x := range r.Value.Items {
			if x.Group != group {
				continue
			}
			found = append(found, x)
			ready = ready && x.State == "ready"
			if x.State == "failed" {
				return false, &domain.Error{
					Kind: domain.Unavailable, Ref: "snapshot/" + x.App + "/" + x.Volume + "@" + x.Name,
					Msg: "it could not be taken: " + x.Reason,
				}
			}
		}
		return ready && len(found) > 0, nil
	})
	if err != nil && ctx.Err() != nil {
		return found, &domain.Error{
			Kind: domain.Aborted, Ref: "snapshot", Msg: "not taken yet", Err: ctx.Err(),
			Remedy: "it is taken as soon as the volume's node can; follow it with: weft get snapshots",
		}
	}
	return found, err
}

// SnapshotGone waits until a snapshot is no more.
func (c *Client) SnapshotGone(ctx context.Context, after domain.Position, tenant, id string) error {
	err := c.Until(ctx, after, func(ctx context.Context, least domain.Position) (bool, error) {
		_, err := c.Snapshot(ctx, id, At{Tenant: tenant, Min: least})
		if domain.IsKind(err, domain.NotFound) {
			return true, nil
		}
		return false, err
	})
	if err != nil && ctx.Err() != nil {
		return &domain.Error{
			Kind: domain.Aborted, Ref: "snapshot/" + id, Msg: "not gone yet", Err: ctx.Err(),
			Remedy: "the deletion goes on; follow it with: weft events watch",
		}
	}
	return err
}

// Restored waits until a volume is what it was at the snapshot and served again. A roll-back that
// was refused is Conflict with the reason.
func (c *Client) Restored(ctx context.Context, after domain.Position, tenant, id string) (
	Volume, error,
) {
	var last Volume
	err := c.Until(ctx, after, func(ctx context.Context, least domain.Position) (bool, error) {
		r, err := c.Volume(ctx, id, At{Tenant: tenant, Min: least})
		if err != nil {
			return false, err
		}
		last = r.Value
		if last.Restore == "refused" {
			return false, &domain.Error{
				Kind: domain.Conflict, Ref: "volume/" + last.App + "/" + last.Name,
				Msg: "it was not rolled back: " + last.Refused,
			}
		}
		return last.Restore == "done" && last.State == "online", nil
	})
	if err != nil && ctx.Err() != nil {
		return last, &domain.Error{
			Kind: domain.Aborted, Ref: "volume/" + id, Msg: "not rolled back yet", Err: ctx.Err(),
			Remedy: "it goes on; follow it with: weft events watch",
		}
	}
	return last, err
}
