package rest

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"weft/domain"
	"weft/domain/identity"
	"weft/projections/access"
)

// bearers is a Backend that knows two tokens and keeps refusals.
type bearers struct {
	Backend
	refused []Attempt
}

func (b *bearers) Identify(_ context.Context, token string) (access.Principal, error) {
	p := access.Bootstrap()
	switch token {
	case "whole":
		return p, nil
	case "part":
		p.Rights = p.Rights.Within(identity.Grant{
			Role: identity.Viewer, Tenant: domain.TenantID{UUID: domain.UUID{1}},
		})
		return p, nil
	}
	return access.Principal{}, domain.Errorf(domain.Denied, "unknown")
}

func (b *bearers) Refused(a Attempt) { b.refused = append(b.refused, a) }

// TestMetricsNeedAToken proves that the page of metrics is for whoever may read the whole cluster,
// that others are refused and kept in the audit, and that it is open only where that was said.
func TestMetricsNeedAToken(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("weft"))
	})
	for _, c := range []struct {
		open  bool
		token string
		want  int
	}{
		{false, "whole", 200},
		{false, "", 401},
		{false, "wrong", 401},
		{false, "part", 403},
		{true, "", 200},
		{true, "part", 200},
	} {
		b := &bearers{}
		s := New(Config{
			Backend: b, Logger: slog.New(slog.DiscardHandler), Metrics: page, OpenMetrics: c.open,
		})
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody)
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, r)
		if w.Code != c.want || (w.Body.String() == "weft") != (c.want == 200) {
			t.Errorf("open %v, token %q: %d, want %d", c.open, c.token, w.Code, c.want)
		}
		if kept := len(b.refused) == 1; kept != (c.want > 400) {
			t.Errorf("open %v, token %q: %d refusals kept", c.open, c.token, len(b.refused))
		}
	}
}
