package main

import (
	"testing"

	"weft/adapters/client"
	"weft/domain"
)

// TestEveryNodeKnowsTheUser proves that a token issued through one node opens the others alike, and
// that a user shut out or erased through any of them is so on all, once they have the log so far.
// Each opens the name with the keys that they share.
func TestEveryNodeKnowsTheUser(t *testing.T) {
	a := newMachine(t, "a", "--api", ownAddr("127.0.0.1:0"), "--peer", ownAddr("127.0.0.1:0"))
	a.start()
	nodes := append([]*machine{a}, a.join(1, "b")...)
	ctx := t.Context()
	if _, err := a.api.CreateUser(ctx, "ann"); err != nil {
		t.Fatal(err)
	}
	role := client.Grant{Role: "viewer", Tenant: "default"}
	if _, err := a.api.GrantRole(ctx, "ann", role); err != nil {
		t.Fatal(err)
	}
	tok, err := a.api.IssueToken(ctx, client.AccessTokenBody{
		User: "ann", Role: "viewer", TTLSeconds: 3600,
	})
	if err != nil {
		t.Fatal(err)
	}
	sees := func(m *machine, p domain.Position) error {
		if _, err := m.api.Tenants(ctx, client.At{Min: p}); err != nil {
			t.Fatal(err)
		}
		c, err := client.New(client.Config{URL: m.doc.API, Token: tok.Value.Token, Tries: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Apps(ctx, client.At{})
		return err
	}
	for _, m := range nodes {
		if err := sees(m, tok.Position); err != nil {
			t.Errorf("%s does not know ann: %v", m.name, err)
		}
	}
	called := func(m *machine, name string, p domain.Position) {
		t.Helper()
		if _, err := m.api.Tenants(ctx, client.At{Min: p}); err != nil {
			t.Fatal(err)
		}
		l, err := m.api.Users(ctx, client.At{})
		if err != nil || len(l.Value.Items) != 1 || l.Value.Items[0].Name != name {
			t.Errorf("%s shows %+v, %v, want %s", m.name, l.Value.Items, err, name)
		}
	}
	for _, m := range nodes {
		called(m, "ann", tok.Position)
	}
	off, err := nodes[1].api.EnableUser(ctx, "ann", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range nodes {
		if err := sees(m, off.Position); !domain.IsKind(err, domain.Denied) {
			t.Errorf("%s lets ann in: %v", m.name, err)
		}
	}
	gone, err := nodes[1].api.EraseUser(ctx, "ann")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range nodes {
		called(m, gone.Value.Name, gone.Position)
	}
}
