package cluster

import (
	"testing"
	"time"

	"weft/domain"
)

var (
	now    = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	token  = domain.UUID{9}
	secret = make([]byte, 32)
)

// play runs commands on one aggregate and gives the last error.
func play[S any](a domain.Aggregate[S], s *S, commands ...domain.Command) (err error) {
	for _, c := range commands {
		var evs []domain.Event
		evs, err = a.Decide(*s, domain.Request{Command: c, Stamped: now})
		for _, ev := range evs {
			*s = a.Evolve(*s, ev)
		}
	}
	return err
}

func use(n byte, at time.Time) UseToken {
	return UseToken{Token: token, Hash: secret, Node: domain.NodeID{UUID: domain.UUID{n}}, Now: at}
}

// A token lets as many nodes in as it says, each as often as it asks, until its time is over; no
// other secret opens anything, and every node gets a number of its own.
func TestJoinToken(t *testing.T) {
	var s State
	issue := IssueToken{JoinTokenIssued: JoinTokenIssued{
		Token: token, Hash: secret, Expires: now.Add(time.Hour), Uses: 2,
	}}
	if err := play(Aggregate(), &s, Init{}, issue, use(1, now), use(1, now), use(2, now)); err != nil {
		t.Fatal(err)
	}
	if s.Last != 3 || len(s.Tokens[0].Used) != 2 {
		t.Fatalf("%+v", s)
	}
	other := use(1, now)
	other.Hash = append([]byte{1}, secret[1:]...)
	for name, c := range map[string]domain.Command{
		"used up": use(3, now), "another secret": other,
	} {
		if err := play(Aggregate(), &s, c); !domain.IsKind(err, domain.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	issue.Token, issue.Uses = domain.UUID{8}, 5
	late := use(4, now.Add(time.Hour))
	late.Token = issue.Token
	if err := play(Aggregate(), &s, issue, late); !domain.IsKind(err, domain.Denied) {
		t.Errorf("expired: %v", err)
	}
	early := late
	early.Now = now
	if err := play(Aggregate(), &s, RevokeToken{Token: issue.Token}, early); !domain.IsKind(err,
		domain.Denied) {
		t.Errorf("revoked: %v", err)
	}
	for _, ttl := range []time.Duration{0, TokenLifeMax + time.Hour} {
		issue.Token, issue.Expires = domain.UUID{7}, now.Add(ttl)
		if err := play(Aggregate(), &s, issue); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("good for %s: %v", ttl, err)
		}
	}
}

// A node leaves in order: drained, empty, removed; and it never comes back under its id.
func TestNodeLeaves(t *testing.T) {
	var s Node
	id := domain.NodeID{UUID: domain.UUID{1}}
	start := StartNode{NodeJoined: NodeJoined{Node: id, Name: "n", Incarnation: 1}}
	down, back := Notice{id, &NodeDown{Incarnation: 1}}, Notice{id, &NodeReturned{Incarnation: 1}}
	if err := play(NodeAggregate(), &s, start, down, down, back, back); err != nil || s.Down {
		t.Fatalf("%+v, %v", s, err)
	}
	remove := Remove{Node: id}
	if err := play(NodeAggregate(), &s, remove); !domain.IsKind(err, domain.Conflict) {
		t.Errorf("removed while it takes part: %v", err)
	}
	full := Remove{Node: id, Serves: 1}
	if err := play(NodeAggregate(), &s, Drain{Node: id}, full); !domain.IsKind(err, domain.Conflict) {
		t.Errorf("removed with volumes: %v", err)
	}
	if err := play(NodeAggregate(), &s, remove, remove); err != nil || !s.Removed {
		t.Fatalf("%+v, %v", s, err)
	}
	start.Incarnation = 2
	if err := play(NodeAggregate(), &s, start); !domain.IsKind(err, domain.Denied) {
		t.Errorf("a removed node started: %v", err)
	}
}
