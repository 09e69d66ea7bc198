package main

import (
	"context"
	"time"

	"weft/adapters/rest"
	"weft/projections/access"
)

// Identify implements rest.Backend: the node's own administrator, or a user by a token of theirs.
func (b *backend) Identify(_ context.Context, token string) (access.Principal, error) {
	if b.dir.Admin(token) {
		return access.Bootstrap(), nil
	}
	return b.views.access.Bearer(token, time.Now())
}

// Refused implements rest.Backend.
func (b *backend) Refused(a rest.Attempt) { b.refused.note(a) }

// Refusals implements rest.Backend.
func (b *backend) Refusals(limit int) ([]rest.Attempt, error) { return b.refused.newest(limit) }
