package rest

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"weft/domain"
	"weft/domain/identity"
	"weft/projections/access"
	"weft/projections/desired"
)

// nobody is a backend without objects.
type nobody struct {
	Backend
	v Views
}

func (n nobody) Now() Views { return n.v }

func bare() *Server {
	return New(Config{
		Backend: nobody{v: Views{Desired: desired.New(), Access: access.New(nil)}},
		Logger:  slog.New(slog.DiscardHandler),
	})
}

// TestEveryOperationIsDeclared proves that each operation of the document says which verb it needs
// and where, that health alone is open, and that it is open as a path, too.
func TestEveryOperationIsDeclared(t *testing.T) {
	s := bare()
	ops := map[string]string{}
	for path, item := range s.api.OpenAPI().Paths {
		for _, op := range []struct {
			method string
			id     string
		}{
			{"GET", idOf(item.Get)},
			{"POST", idOf(item.Post)},
			{"PUT", idOf(item.Put)},
			{"PATCH", idOf(item.Patch)},
			{"DELETE", idOf(item.Delete)},
			{"HEAD", idOf(item.Head)},
			{"OPTIONS", idOf(item.Options)},
			{"TRACE", idOf(item.Trace)},
		} {
			if op.id != "" {
				ops[op.id] = path
			}
		}
	}
	if len(ops) < 40 {
		t.Fatalf("only %d operations", len(ops))
	}
	for id, path := range ops {
		n, ok := s.needs[id]
		if !ok || n.place == undeclared || n.verb == identity.None {
			t.Errorf("%s needs nothing of its caller", id)
		}
		open := s.open(path)
		if (n.place == anywhere) != open || open != (id == "health" || id == "list-sign-in") {
			t.Errorf("%s: open as an operation %v, as a path %v", id, n.place == anywhere, open)
		}
	}
	got := slices.Sorted(maps.Keys(ops))
	if want := slices.Sorted(maps.Keys(s.needs)); !slices.Equal(got, want) {
		t.Errorf("documented %v, declared %v", got, want)
	}
}

// TestGuardDeniesByDefault proves that an operation that declares nothing lets not even the
// administrator in, and that a caller who is nobody gets nowhere but where all may.
func TestGuardDeniesByDefault(t *testing.T) {
	s := bare()
	admin := context.WithValue(t.Context(), principalKey{}, access.Bootstrap())
	for _, n := range []need{{}, {verb: identity.Read}} {
		if err := s.guard(admin, n, &struct{}{}); !domain.IsKind(err, domain.Denied) {
			t.Errorf("%v: %v", n, err)
		}
	}
	for _, n := range []need{
		readOwn, operateOwn, readTenant, operateTenant, administerGrants, readCluster, operateCluster,
		administerCluster,
	} {
		for _, in := range []any{&struct{}{}, &At{Tenant: "default"}, &GrantIn{}} {
			if err := s.guard(t.Context(), n, in); err == nil {
				t.Errorf("%v is open to nobody", n)
			}
		}
	}
	if err := s.guard(t.Context(), openToAll, nil); err != nil {
		t.Error(err)
	}
}

func idOf(op *huma.Operation) string {
	if op == nil {
		return ""
	}
	return op.OperationID
}

// TestWhatIsKept proves which answers are kept as refused attempts: what was not let in or
// understood, and every change that its caller did not hear to be done.
func TestWhatIsKept(t *testing.T) {
	for _, c := range []struct {
		code         int
		read, change bool
	}{
		{200, false, false},
		{304, false, false},
		{400, true, true},
		{401, true, true},
		{403, true, true},
		{404, false, true},
		{409, true, true},
		{412, true, true},
		{429, false, true},
		{500, false, true},
		{503, false, true},
		{504, false, true},
		{507, true, true},
	} {
		for method, want := range map[string]bool{"GET": c.read, "HEAD": c.read, "POST": c.change} {
			a := Attempt{}
			if got := a.refused(method, c.code); got != want || want && a.Reason == "" {
				t.Errorf("%s %d: %v %q, want %v", method, c.code, got, a.Reason, want)
			}
		}
	}
}

// stamped is a backend whose log ends with an event of a known time.
type stamped struct {
	Backend
	at time.Time
}

func (b stamped) Events(
	_ context.Context, from domain.Position, newest bool, _ domain.Filter, limit int,
) ([]Event, error) {
	if from != 7 || !newest || limit != 1 {
		return nil, errors.New("not the last event up to the position")
	}
	return []Event{{Header: domain.Header{Created: b.at}}}, nil
}

// TestClockOfTheMoment proves by what time a state of the past is judged: the one that was asked
// for, or that of the last event up to the position; and the present by the node's clock.
func TestClockOfTheMoment(t *testing.T) {
	at := func(h int) time.Time { return time.Date(2026, 1, 2, h, 0, 0, 0, time.UTC) }
	s := &Server{b: stamped{at: at(5)}}
	s.cfg.Now = func() time.Time { return at(9) }
	for text, want := range map[string]time.Time{
		"": at(9), "7": at(5), "2026-01-02T07:00:00Z": at(7),
	} {
		got, err := s.clock(t.Context(), Views{Position: 7}, text)
		if err != nil || !got.Equal(want) {
			t.Errorf("at %q it is %s, want %s, %v", text, got, want, err)
		}
	}
	life := identity.Token{TokenIssued: identity.TokenIssued{Expires: at(6)}}
	v := Views{Access: access.New(nil)}
	for h, want := range map[int]string{5: "valid", 6: "expired", 7: "expired"} {
		if d := tokenIn(v, life, at(h)); d.State != want {
			t.Errorf("at %d the token is %s, want %s", h, d.State, want)
		}
	}
}
