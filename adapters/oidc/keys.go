package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	refreshMin = 10 * time.Second // between two questions for keys
	refreshAge = time.Hour        // keys in use are asked for again after this
	keysMax    = 24 * time.Hour   // and count no longer than this
	answerMax  = 1 << 20          // bytes of an answer of the provider
	answerTime = 5 * time.Second  // for one answer
)

// algorithms are the signatures that count: none that a public key could forge.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	}
}

// keys are those of one provider. It implements go-oidc's KeySet.
type keys struct {
	url    string
	client *http.Client
	now    func() time.Time

	asking sync.Mutex // one question at a time
	mu     sync.Mutex
	list   []jose.JSONWebKey
	got    time.Time // when list came
	asked  time.Time // when it was asked for last
}

// VerifySignature implements oidc.KeySet.
func (k *keys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSigned(token, algorithms())
	if err != nil {
		return nil, fmt.Errorf("malformed token: %w", err)
	}
	if len(signed.Signatures) != 1 {
		return nil, errors.New("a token with one signature is needed")
	}
	payload, ok := k.verify(signed)
	if ok && !k.older(refreshAge) {
		return payload, nil
	}
	if err := k.refresh(ctx); err != nil && !ok {
		return nil, err
	}
	if payload, ok = k.verify(signed); !ok {
		return nil, errors.New("not signed by a key of the provider")
	}
	return payload, nil
}

// verify tries the known keys.
func (k *keys) verify(signed *jose.JSONWebSignature) ([]byte, bool) {
	if k.older(keysMax) {
		return nil, false
	}
	k.mu.Lock()
	list := k.list
	k.mu.Unlock()
	id := signed.Signatures[0].Header.KeyID
	for i := range list {
		if id != "" && list[i].KeyID != id || list[i].Use != "" && list[i].Use != "sig" {
			continue
		}
		if payload, err := signed.Verify(&list[i]); err == nil {
			return payload, true
		}
	}
	return nil, false
}

// older tells whether the keys are older than that, or there are none.
func (k *keys) older(age time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.got.IsZero() || k.now().Sub(k.got) > age
}

// refresh asks for the keys, unless that was done just now.
func (k *keys) refresh(ctx context.Context) error {
	k.asking.Lock()
	defer k.asking.Unlock()
	k.mu.Lock()
	now := k.now()
	early := !k.asked.IsZero() && now.Sub(k.asked) < refreshMin
	if !early {
		k.asked = now
	}
	k.mu.Unlock()
	if early {
		return nil
	}
	body, err := fetch(ctx, k.client, k.url)
	if err != nil {
		return err
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(body, &set); err != nil {
		return fmt.Errorf("the provider's keys: %w", err)
	}
	var list []jose.JSONWebKey
	for _, key := range set.Keys {
		if key.IsPublic() && key.Valid() { // also no symmetric one
			list = append(list, key)
		}
	}
	k.mu.Lock()
	k.list, k.got = list, now
	k.mu.Unlock()
	return nil
}

// fetch reads an answer of the provider.
func fetch(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, answerMax))
}
