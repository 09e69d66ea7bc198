package oidc

import (
	"context"
	"errors"
	"net/http"

	"golang.org/x/oauth2"

	"weft/domain"
)

// SignIn is one sign-in with the device grant (RFC 8628).
type SignIn struct {
	Issuer, Client, CA string
	// Show tells the user where to go and which code to enter there; complete is the address with the
	// code in it, empty where the provider has none.
	Show func(address, code, complete string)
}

// Run signs in and gives the ID token. It waits until the user has decided, the code has expired or
// ctx ends. The error is of kind Denied when the user or the provider refuses, Expired when nobody
// decided, Unsupported when the provider has no device grant, Unavailable when it does not answer.
func (s *SignIn) Run(ctx context.Context) (string, error) {
	c, err := clientFor(s.CA)
	if err != nil {
		return "", s.fail(domain.Invalid, err)
	}
	doc, err := discover(ctx, c, s.Issuer)
	if err != nil {
		return "", s.fail(domain.Unavailable, err)
	}
	if doc.Device == "" || doc.Token == "" {
		return "", s.fail(domain.Unsupported, errors.New("it has no device grant"))
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{
		Transport: c.Transport, CheckRedirect: c.CheckRedirect,
	})
	config := oauth2.Config{
		ClientID: s.Client, Scopes: []string{"openid", "email", "profile"},
		Endpoint: oauth2.Endpoint{
			// A public client names itself in the form. To find out by trying would use the grant up.
			DeviceAuthURL: doc.Device, TokenURL: doc.Token, AuthStyle: oauth2.AuthStyleInParams,
		},
	}
	grant, err := config.DeviceAuth(ctx)
	if err != nil {
		return "", s.fail(domain.Unavailable, err)
	}
	s.Show(grant.VerificationURI, grant.UserCode, grant.VerificationURIComplete)
	t, err := config.DeviceAccessToken(ctx, grant)
	if err != nil {
		return "", s.refused(ctx, err)
	}
	id, _ := t.Extra("id_token").(string)
	if id == "" {
		return "", s.fail(domain.Denied, errors.New("it gave no ID token"))
	}
	return id, nil
}

func (s *SignIn) refused(ctx context.Context, err error) error {
	var answer *oauth2.RetrieveError
	switch {
	case ctx.Err() != nil:
		return s.fail(domain.Aborted, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded):
		return s.fail(domain.Expired, errors.New("nobody entered the code in time"))
	case errors.As(err, &answer) && answer.ErrorCode == "expired_token":
		return s.fail(domain.Expired, errors.New("nobody entered the code in time"))
	case errors.As(err, &answer) && answer.ErrorCode != "":
		return s.fail(domain.Denied, errors.New(answer.ErrorCode+" "+answer.ErrorDescription))
	}
	return s.fail(domain.Unavailable, err)
}

func (s *SignIn) fail(k domain.Kind, err error) error {
	return &domain.Error{Kind: k, Op: "sign in at " + s.Issuer, Err: err}
}
