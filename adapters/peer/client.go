package peer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"weft/domain"
	"weft/domain/command"
)

// obeyWait bounds one order: a create of a large volume takes its time, a dead node must not.
const obeyWait = 60 * time.Second

// askWait bounds one question: somebody waits for the answer.
const askWait = 10 * time.Second

// Client calls other nodes. It keeps one connection or a few to each.
type Client struct {
	id *Identity
	mu sync.Mutex
	to map[domain.NodeID]*http.Client
}

// NewClient makes a client of this identity.
func NewClient(id *Identity) *Client {
	return &Client{id: id, to: map[domain.NodeID]*http.Client{}}
}

// Close gives up idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.to {
		h.CloseIdleConnections()
	}
}

func (c *Client) client(node domain.NodeID) *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.to[node]
	if h == nil {
		h = &http.Client{Transport: &http.Transport{TLSClientConfig: c.id.clientTLS(node)}}
		c.to[node] = h
	}
	return h
}

// Obey sends an order to the node it is for and gives its outcome. Unavailable means that nobody
// knows whether it was obeyed; orders may be repeated.
func (c *Client) Obey(ctx context.Context, url string, o command.Order) command.Outcome {
	ctx, cancel := context.WithTimeout(ctx, obeyWait)
	defer cancel()
	out, err := call[command.Outcome](ctx, c.client(o.Node), url+obeyPath, o)
	out.ID, out.Err = o.ID, err
	return out
}

// Ask puts a question to the node it is for.
func (c *Client) Ask(ctx context.Context, url string, q command.Question) (command.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	return call[command.Answer](ctx, c.client(q.Node), url+askPath, q)
}

// Join makes a node of this machine: it asks the endpoints of the token in turn, trusts the
// authority that the token names and no other (T3), and leaves the identity in its files.
func Join(
	ctx context.Context, t Token, f Files, node domain.NodeID, name string,
) (Welcome, error) {
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: pinned(t, f.Now)}}
	defer h.CloseIdleConnections()
	var failed error
	for _, url := range t.Endpoints {
		w, err := call[Welcome](ctx, h, url+joinPath, JoinRequest{
			Token: t.ID, Secret: t.Secret, Node: node, Name: name,
		})
		if err == nil {
			return w, adopt(f, w, t, node)
		}
		failed = errors.Join(failed, domain.Wrap(err, "join", url))
		if !domain.IsKind(err, domain.Unavailable) {
			break // it was heard and refused
		}
	}
	return Welcome{}, failed
}

// adopt keeps what the cluster gave, once it is what the token promised.
func adopt(f Files, w Welcome, t Token, node domain.NodeID) error {
	ca := Authority{w.CA, w.CAKey}
	pin, err := ca.Pin()
	if err != nil {
		return err
	}
	if !bytes.Equal(pin[:], t.Pin) {
		return domain.Errorf(domain.Denied, "the answer holds another authority than the token names")
	}
	return CreateIdentity(f, ca, t.Cluster, node)
}

// pinned trusts a server whose chain ends in the authority with the token's fingerprint.
func pinned(t Token, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: ServerName(t.Cluster),
		InsecureSkipVerify: true, // VerifyConnection verifies, by the pin
		VerifyConnection: func(s tls.ConnectionState) error {
			roots := x509.NewCertPool()
			for _, c := range s.PeerCertificates {
				sum := sha256.Sum256(c.Raw)
				if subtle.ConstantTimeCompare(sum[:], t.Pin) == 1 {
					roots.AddCert(c)
				}
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots: roots, DNSName: ServerName(t.Cluster), CurrentTime: now(),
			})
			return err
		},
	}
}

// call sends one request as JSON and reads the answer.
func call[Out any](ctx context.Context, h *http.Client, url string, in any) (Out, error) {
	var a answer[Out]
	b, err := json.Marshal(in)
	if err != nil {
		return a.Out, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		return a.Out, &domain.Error{Kind: domain.Invalid, Err: err}
	}
	res, err := h.Do(req)
	if err != nil {
		return a.Out, &domain.Error{Kind: unreached(err), Err: err}
	}
	defer func() { _ = res.Body.Close() }() // read to its end
	body, err := io.ReadAll(io.LimitReader(res.Body, bodyMax))
	switch {
	case err != nil:
		return a.Out, &domain.Error{Kind: domain.Unavailable, Err: err}
	case res.StatusCode == http.StatusForbidden:
		return a.Out, domain.Errorf(domain.Denied, "%s", bytes.TrimSpace(body))
	case res.StatusCode != http.StatusOK || json.Unmarshal(body, &a) != nil:
		return a.Out, domain.Errorf(domain.Unavailable, "answered %s", res.Status)
	}
	return a.Out, a.err()
}

// unreached tells a certificate that is not trusted from a node that does not answer.
func unreached(err error) domain.Kind {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	if errors.As(err, &unknown) || errors.As(err, &invalid) || errors.As(err, &name) ||
		domain.IsKind(err, domain.Denied) {
		return domain.Denied
	}
	return domain.Unavailable
}
