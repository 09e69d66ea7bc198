package main

import (
	"context"
	"errors"

	"weft/domain"
	"weft/domain/identity"
	"weft/domain/tenancy"
	"weft/projections/access"
)

// DestroyKey implements rest.Backend.
func (b *backend) DestroyKey(ctx context.Context, user domain.UserID) error {
	return b.vault.Destroy(ctx, user)
}

// Bundle implements rest.Backend.
func (b *backend) Bundle(ctx context.Context, passphrase string) ([]byte, int, error) {
	return b.vault.Bundle(ctx, b.dir.id.Cluster, passphrase)
}

// SealSource implements rest.Backend.
func (b *backend) SealSource(
	ctx context.Context, user domain.UserID, request, source string,
) (string, error) {
	box, err := b.vault.Seal(ctx, user, access.SourceLabel(request), source)
	if err != nil {
		return "", err
	}
	return access.SealedSource(box), nil
}

// eraser destroys the keys of users whom the log says are erased, where whoever recorded that did
// not come so far. It looks when a term begins and at each new erasure, and belongs to one
// goroutine.
type eraser struct {
	*leading
	settled int // erasures whose keys are known to be gone
}

func (e *eraser) step(ctx context.Context) error {
	list := e.views.access.ErasedUsers()
	if len(list) == e.settled {
		return nil
	}
	kept, err := e.vault.Kept(ctx)
	for _, id := range kept {
		if gone, _ := e.views.access.Erased(id); gone {
			err = errors.Join(err, e.vault.Destroy(ctx, id))
		}
	}
	if err == nil {
		e.settled = len(list)
	}
	return err
}

// shown gives an event as whoever may read it sees it now: what is sealed is opened, and what
// events say of an erased user is replaced, also where an older one says it in clear.
func (b *backend) shown(ctx context.Context, h *domain.Header, ev domain.Event) domain.Event {
	if n, ok := ev.(*tenancy.NameTaken); ok && n.Kind == "user" && n.Name != "" {
		if gone, _ := b.views.access.Erased(domain.UserID{UUID: n.Object}); gone {
			out := *n
			out.Name = identity.ErasedName(domain.UserID{UUID: n.Object})
			return &out
		}
	}
	if r, ok := ev.(*identity.CommandRefused); ok {
		out := *r
		out.Source = b.views.access.Source(ctx, r.Who, r.Request, r.Source)
		out.Who = b.views.access.Actor(ctx, r.Who)
		return &out
	}
	return b.codec.Show(ev, func(u domain.UserID, field string, p domain.Personal) domain.Personal {
		return b.views.access.Reveal(ctx, h, u, field, p)
	})
}
