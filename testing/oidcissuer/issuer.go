// Package oidcissuer is an issuer of OpenID Connect for tests: discovery, keys that rotate, ID
// tokens with any claims, and the device grant with its polling, over TLS with a certificate of its
// own. It is no part of the product.
package oidcissuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Client is the id of the one client that the issuer knows.
const Client = "weft-tests"

// Issuer is a running issuer.
type Issuer struct {
	t    testing.TB
	http *httptest.Server

	mu     sync.Mutex
	keys   []jose.JSONWebKey // the last one signs
	grants map[string]*grant // by device code
	asked  int
	down   bool
}

type grant struct {
	user    string
	decided bool
	claims  map[string]any // nil once decided: refused
}

// Serve starts an issuer that ends with the test.
func Serve(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{t: t, grants: map[string]*grant{}}
	i.Rotate()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", i.discovery)
	mux.HandleFunc("GET /keys", i.jwks)
	mux.HandleFunc("POST /device", i.device)
	mux.HandleFunc("POST /token", i.token)
	i.http = httptest.NewTLSServer(mux)
	t.Cleanup(i.http.Close)
	return i
}

// URL is the issuer's name.
func (i *Issuer) URL() string { return i.http.URL }

// CA is the certificate that it is trusted by, PEM.
func (i *Issuer) CA() string {
	return string(pem.EncodeToMemory(&pem.Block{
		Type: "CERTIFICATE", Bytes: i.http.Certificate().Raw,
	}))
}

// Rotate replaces the keys: tokens signed before verify no more.
func (i *Issuer) Rotate() {
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = []jose.JSONWebKey{{
		Key: secret, KeyID: random(), Algorithm: string(jose.ES256), Use: "sig",
	}}
}

// Down lets the issuer answer nothing but errors.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Asked counts the questions for keys.
func (i *Issuer) Asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// Claims are those of a good token for a user with a verified address, from now for an hour.
func (i *Issuer) Claims(subject, email string, now time.Time) map[string]any {
	return map[string]any{
		"iss": i.URL(), "aud": Client, "sub": subject, "email": email, "email_verified": true,
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
}

// Sign makes a token of any claims with the issuer's key.
func (i *Issuer) Sign(claims map[string]any) string {
	i.mu.Lock()
	key := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	return SignWith(i.t, jose.ES256, key, claims)
}

// Public gives the key that the issuer shows now.
func (i *Issuer) Public() jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1].Public()
}

// SignWith makes a token of any claims with any key.
func SignWith(t testing.TB, a jose.SignatureAlgorithm, key any, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: a, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Decide answers the device grant of a user code: with the claims of an ID token, or nil to refuse.
func (i *Issuer) Decide(code string, claims map[string]any) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, g := range i.grants {
		if g.user == code {
			g.decided, g.claims = true, claims
			return nil
		}
	}
	return fmt.Errorf("no grant has the code %q", code)
}

func random() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	i.answer(w, http.StatusOK, map[string]any{
		"issuer": i.URL(), "jwks_uri": i.URL() + "/keys", "token_endpoint": i.URL() + "/token",
		"device_authorization_endpoint":         i.URL() + "/device",
		"id_token_signing_alg_values_supported": []string{"ES256"},
	})
}

func (i *Issuer) jwks(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	i.asked++
	var set jose.JSONWebKeySet
	for _, k := range i.keys {
		set.Keys = append(set.Keys, k.Public())
	}
	i.mu.Unlock()
	i.answer(w, http.StatusOK, set)
}

func (i *Issuer) device(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("client_id") != Client {
		i.answer(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client"})
		return
	}
	g, code := &grant{user: random()}, random()
	i.mu.Lock()
	i.grants[code] = g
	i.mu.Unlock()
	i.answer(w, http.StatusOK, map[string]any{
		"device_code": code, "user_code": g.user, "verification_uri": i.URL() + "/go",
		"expires_in": 600, "interval": 1,
	})
}

func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	g := i.grants[r.FormValue("device_code")]
	decided := g != nil && g.decided
	if decided {
		delete(i.grants, r.FormValue("device_code"))
	}
	i.mu.Unlock()
	switch {
	case g == nil || r.FormValue("client_id") != Client ||
		r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:device_code":
		i.answer(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant"})
	case !decided:
		i.answer(w, http.StatusBadRequest, map[string]string{"error": "authorization_pending"})
	case g.claims == nil:
		i.answer(w, http.StatusBadRequest, map[string]string{"error": "access_denied"})
	default:
		i.answer(w, http.StatusOK, map[string]any{
			"access_token": random(), "token_type": "Bearer", "id_token": i.Sign(g.claims),
		})
	}
}

func (i *Issuer) answer(w http.ResponseWriter, code int, body any) {
	i.mu.Lock()
	if i.down {
		code = http.StatusServiceUnavailable
	}
	i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}
