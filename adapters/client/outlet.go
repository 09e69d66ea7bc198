package client

import "context"

// OutletBody asks for an outlet.
type OutletBody struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"` // "nats", "mirror"
	Address string   `json:"address"`
	Topic   string   `json:"topic,omitempty"`
	Types   []string `json:"types,omitempty"`
	Secret  string   `json:"secret,omitempty"`
	FromNow bool     `json:"from_now,omitempty"`
}

// Outlet is a place where events are published.
type Outlet struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Kind      string   `json:"kind"`
	Address   string   `json:"address"`
	Topic     string   `json:"topic,omitempty"`
	Types     []string `json:"types,omitempty"`
	Secret    string   `json:"secret,omitempty"`
	State     string   `json:"state"` // "running", "paused", "stuck"
	Published string   `json:"published"`
	Behind    int      `json:"behind"`
	Stuck     *StuckAt `json:"stuck,omitempty"`
}

// StuckAt is the event that an outlet does not take.
type StuckAt struct {
	Position string `json:"position"`
	Type     string `json:"type"`
	Stream   string `json:"stream"`
	Failures int64  `json:"failures"`
	Reason   string `json:"reason"`
}

// Outlets lists the outlets.
func (c *Client) Outlets(ctx context.Context, at At) (Reply[List[Outlet]], error) {
	at.Tenant = ""
	return get[List[Outlet]](ctx, c, "/v1/outlets", at.query())
}

// CreateOutlet makes an outlet; Exists if the name is taken.
func (c *Client) CreateOutlet(ctx context.Context, b OutletBody) (Reply[Outlet], error) {
	return change[Outlet](ctx, c, "POST", "/v1/outlets", b, Change{})
}

// PauseOutlet stops an outlet.
func (c *Client) PauseOutlet(ctx context.Context, name string) (Reply[Outlet], error) {
	return change[Outlet](ctx, c, "POST", "/v1/outlets/"+seg(name)+"/pause", nil, Change{})
}

// ResumeOutlet lets an outlet go on, with skip without the event it is stuck at; Conflict when
// there is none.
func (c *Client) ResumeOutlet(ctx context.Context, name string, skip bool) (Reply[Outlet], error) {
	body := struct {
		Skip bool `json:"skip,omitempty"`
	}{skip}
	return change[Outlet](ctx, c, "POST", "/v1/outlets/"+seg(name)+"/resume", body, Change{})
}

// DeleteOutlet removes an outlet.
func (c *Client) DeleteOutlet(ctx context.Context, name string) (Reply[Gone], error) {
	return change[Gone](ctx, c, "DELETE", "/v1/outlets/"+seg(name), nil, Change{})
}
