package cluster

import (
	"bytes"
	"slices"
	"time"

	"weft/domain"
)

// JoinTokenIssued says that whoever knows the token's secret may join. The secret stands nowhere.
type JoinTokenIssued struct {
	Token   domain.UUID `msgpack:"token,omitempty"`
	Hash    []byte      `msgpack:"hash,omitempty"` // SHA-256 of the secret
	Expires time.Time   `msgpack:"expires,omitempty"`
	Uses    int64       `msgpack:"uses,omitempty"`
}

// JoinTokenUsed says that a node joined by a token and got a number of its own.
type JoinTokenUsed struct {
	Token  domain.UUID       `msgpack:"token,omitempty"`
	Node   domain.NodeID     `msgpack:"node,omitempty"`
	Number domain.NodeNumber `msgpack:"number,omitempty"`
}

// JoinTokenRevoked says that a token opens nothing any more.
type JoinTokenRevoked struct {
	Token domain.UUID `msgpack:"token,omitempty"`
}

// EventType implements domain.Event.
func (JoinTokenIssued) EventType() string { return "JoinTokenIssued" }

// EventType implements domain.Event.
func (JoinTokenUsed) EventType() string { return "JoinTokenUsed" }

// EventType implements domain.Event.
func (JoinTokenRevoked) EventType() string { return "JoinTokenRevoked" }

// IssueToken makes a join token known by the hash of its secret.
type IssueToken struct {
	Cluster domain.ClusterID
	JoinTokenIssued
}

// UseToken admits a node. Now is when it asked.
type UseToken struct {
	Cluster domain.ClusterID
	Token   domain.UUID
	Hash    []byte
	Node    domain.NodeID
	Now     time.Time
}

// RevokeToken takes a token back. A token that is gone already is no error.
type RevokeToken struct {
	Cluster domain.ClusterID
	Token   domain.UUID
}

// CommandType implements domain.Command.
func (IssueToken) CommandType() string { return "IssueJoinToken" }

// Stream implements domain.Command.
func (c IssueToken) Stream() domain.StreamID { return Stream(c.Cluster) }

// CommandType implements domain.Command.
func (UseToken) CommandType() string { return "UseJoinToken" }

// Stream implements domain.Command.
func (c UseToken) Stream() domain.StreamID { return Stream(c.Cluster) }

// CommandType implements domain.Command.
func (RevokeToken) CommandType() string { return "RevokeJoinToken" }

// Stream implements domain.Command.
func (c RevokeToken) Stream() domain.StreamID { return Stream(c.Cluster) }

// Token is a join token folded.
type Token struct {
	JoinTokenIssued
	Used []domain.NodeID
}

// TokenUsesMax and TokenLifeMax bound what one token may open, and for how long.
const (
	TokenUsesMax = 1000
	TokenLifeMax = 30 * 24 * time.Hour
)

func (s State) token(id domain.UUID) int {
	return slices.IndexFunc(s.Tokens, func(t Token) bool { return t.Token == id })
}

// evolveToken folds an event of a token; the slice a caller holds is never changed.
func (s State) evolveToken(ev domain.Event) State {
	s.Tokens = slices.Clone(s.Tokens)
	switch ev := ev.(type) {
	case *JoinTokenIssued:
		s.Tokens = append(s.Tokens, Token{JoinTokenIssued: *ev})
	case *JoinTokenUsed:
		if at := s.token(ev.Token); at >= 0 {
			s.Tokens[at].Used = append(slices.Clip(s.Tokens[at].Used), ev.Node)
		}
		s.Last = max(s.Last, ev.Number)
	case *JoinTokenRevoked:
		s.Tokens = slices.DeleteFunc(s.Tokens, func(t Token) bool { return t.Token == ev.Token })
	}
	return s
}

func (s State) decideIssue(c IssueToken, now time.Time) ([]domain.Event, error) {
	var k domain.Checker
	k.Check(s.Exists, "cluster", "not there")
	k.Check(c.Uses >= 1 && c.Uses <= TokenUsesMax, "uses", "%d is not from 1 to %d", c.Uses,
		TokenUsesMax)
	k.Check(c.Expires.After(now) && c.Expires.Before(now.Add(TokenLifeMax+time.Minute)), "ttl",
		"not from now to %s", TokenLifeMax)
	k.Check(len(c.Hash) == 32, "hash", "no SHA-256")
	if err := k.Err("cluster.IssueToken", ""); err != nil {
		return nil, err
	}
	if s.token(c.Token) >= 0 {
		return nil, nil
	}
	ev := c.JoinTokenIssued
	return []domain.Event{&ev}, nil
}

// decideUse admits a node once per token however often it asks, and says no more than no.
func (s State) decideUse(c UseToken) ([]domain.Event, error) {
	refuse := func(why string) error {
		return &domain.Error{
			Op: "cluster.Join", Kind: domain.Denied, Msg: "the join token " + why,
			Remedy: "make a new one on a node of the cluster with: weft node token",
		}
	}
	at := s.token(c.Token)
	if at < 0 || !bytes.Equal(s.Tokens[at].Hash, c.Hash) {
		return nil, refuse("is not known to this cluster, or was revoked")
	}
	t := s.Tokens[at]
	switch {
	case slices.Contains(t.Used, c.Node):
		return nil, nil
	case !c.Now.Before(t.Expires):
		return nil, refuse("has expired")
	case int64(len(t.Used)) >= t.Uses:
		return nil, refuse("is used up")
	case s.Last == ^domain.NodeNumber(0):
		return nil, domain.Errorf(domain.NoSpace, "the cluster has no node number left")
	}
	return []domain.Event{&JoinTokenUsed{c.Token, c.Node, s.Last + 1}}, nil
}
