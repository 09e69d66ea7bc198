package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"weft/domain"
)

// Limits of the client.
const (
	// TriesMax is how often a call is tried when the Config does not say.
	TriesMax = 4
	// answerMax bounds an answer.
	answerMax = 64 << 20
	// pauseFirst and pauseMax bound the pause between two tries; it doubles.
	pauseFirst = 100 * time.Millisecond
	pauseMax   = 2 * time.Second
	// retryAfterMax bounds what a Retry-After may ask for.
	retryAfterMax = 5 * time.Second
	// tryTime bounds one try of a call that answers at once.
	tryTime = 30 * time.Second
)

// Config says which node and how. URL is required.
type Config struct {
	URL   string // "http://127.0.0.1:7780"; without a scheme, https but for this machine's addresses
	Token string // bearer token; empty sends none
	// CA is a file of authorities that vouch for an https URL, besides those of the system.
	CA    string
	Agent string // User-Agent
	Tries int    // of one call; 0: TriesMax
	// HTTP carries the requests. Nil: a transport of the client's own.
	HTTP *http.Client
	// Now and After are the clock; nil: the real one.
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
}

// Client calls one node.
type Client struct {
	cfg  Config
	base *url.URL
}

// New makes a client and connects to nothing yet. It returns Invalid for a URL that is none.
func New(cfg Config) (*Client, error) {
	if !strings.Contains(cfg.URL, "://") {
		cfg.URL = "http://" + cfg.URL
		if u, err := url.Parse(cfg.URL); err == nil && !here(u.Hostname()) {
			cfg.URL = "https" + strings.TrimPrefix(cfg.URL, "http")
		}
	}
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, &domain.Error{
			Kind: domain.Invalid, Msg: fmt.Sprintf("%q is no API address", cfg.URL),
			Remedy: "write it as http://127.0.0.1:7780, or https://node1.example.org:7780",
		}
	}
	if cfg.Tries == 0 {
		cfg.Tries = TriesMax
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.After == nil {
		cfg.After = time.After
	}
	if cfg.HTTP == nil {
		trust := &tls.Config{MinVersion: tls.VersionTLS12}
		if cfg.CA != "" && u.Scheme == "https" {
			if trust.RootCAs, err = authorities(cfg.CA); err != nil {
				return nil, err
			}
		}
		cfg.HTTP = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: 10 * time.Second, TLSClientConfig: trust, ForceAttemptHTTP2: true,
		}}
	}
	own := *cfg.HTTP
	// A redirect would carry the token to a place nobody named.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	cfg.HTTP = &own
	return &Client{cfg, u}, nil
}

// here tells whether a host is this machine by a name that never leaves it.
func here(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// authorities gives those of the system and those in a file.
func authorities(file string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a system without any
	}
	b, err := os.ReadFile(file)
	if err == nil && !pool.AppendCertsFromPEM(b) {
		err = errors.New("it holds no certificate")
	}
	if err != nil {
		return nil, &domain.Error{
			Kind: domain.Invalid, Ref: file, Msg: "the authority's file", Err: err,
			Remedy: "give --ca the file tls/ca.pem of any node of the cluster",
		}
	}
	return pool, nil
}

// URL gives the address of the node.
func (c *Client) URL() string { return c.base.String() }

// Close gives idle connections up. The client can still be used.
func (c *Client) Close() { c.cfg.HTTP.CloseIdleConnections() }

// Reply is a decoded answer with what its headers say.
type Reply[T any] struct {
	Value    T
	Position domain.Position // of the log, which the answer shows or led to
	ETag     string
}

// At says at which state of the log a reading looks. The zero value is the present.
type At struct {
	Tenant string          // empty: default
	At     string          // the state as it was there: a position, or an RFC 3339 time
	Min    domain.Position // not before the views hold it
}

func (a At) query() url.Values {
	q := url.Values{}
	if a.Tenant != "" {
		q.Set("tenant", a.Tenant)
	}
	if a.At != "" {
		q.Set("at_position", a.At)
	}
	if a.Min != 0 {
		q.Set("min_position", a.Min.String())
	}
	return q
}

// Change says how a change is made. The zero value is an unconditional change.
type Change struct {
	Tenant  string // empty: default
	IfMatch string // refuse with Conflict unless the object has this ETag
	// Key makes the change idempotent over several calls; empty: one is drawn for this call.
	Key string
}

func (ch Change) query() url.Values { return At{Tenant: ch.Tenant}.query() }

// request is one call, whatever number of tries it takes.
type request struct {
	method, path string
	query        url.Values
	body         any
	change       *Change // nil: not a change
	slow         bool    // may take longer than tryTime
}

// failure is a try that failed.
type failure struct {
	err   error
	again bool
	after time.Duration // asked for by the server
}

// call runs a request and decodes its answer.
func call[T any](ctx context.Context, c *Client, r request) (Reply[T], error) {
	var out Reply[T]
	header, body, err := c.do(ctx, r)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(body, &out.Value); err != nil {
		return out, &domain.Error{
			Kind: domain.Internal, Ref: r.path, Msg: "the answer is not JSON of Weft's API", Err: err,
			Remedy: "check that --api names a Weft node of this version",
		}
	}
	out.ETag = header.Get("ETag")
	if p := header.Get("Weft-Position"); p != "" {
		if out.Position, err = domain.ParsePosition(p); err != nil {
			return out, err
		}
	}
	return out, nil
}

// do tries until an answer is final (C1, C2).
func (c *Client) do(ctx context.Context, r request) (http.Header, []byte, error) {
	var payload []byte
	if r.body != nil {
		var err error
		if payload, err = json.Marshal(r.body); err != nil {
			return nil, nil, err
		}
	}
	if r.change != nil && r.change.Key == "" {
		ch := *r.change
		ch.Key = c.newKey()
		r.change = &ch
	}
	for try := 1; ; try++ {
		header, body, fail := c.once(ctx, r, payload)
		if fail == nil {
			return header, body, nil
		}
		if !fail.again || try >= c.cfg.Tries {
			return nil, nil, fail.err
		}
		if err := c.pause(ctx, try, fail); err != nil {
			return nil, nil, err
		}
	}
}

// pause waits before the next try.
func (c *Client) pause(ctx context.Context, try int, fail *failure) error {
	d := min(pauseFirst<<min(try-1, 10), pauseMax)
	d = max(d, min(fail.after, retryAfterMax))
	select {
	case <-ctx.Done():
		return ended(ctx, fail.err)
	case <-c.cfg.After(d):
		return nil
	}
}

// ended says that the caller's context ended a call; errors.Is finds the context's own error.
func ended(ctx context.Context, last error) error {
	e := &domain.Error{Kind: domain.Aborted, Msg: "given up", Err: ctx.Err()}
	if last != nil && !errors.Is(last, ctx.Err()) {
		e.Msg += " after: " + last.Error()
	}
	return e
}

// newRequest puts one try together.
func (c *Client) newRequest(ctx context.Context, r request, payload []byte) (*http.Request, error) {
	u := c.base.JoinPath(r.path)
	u.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	if payload != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	if c.cfg.Agent != "" {
		req.Header.Set("User-Agent", c.cfg.Agent)
	}
	if ch := r.change; ch != nil {
		req.Header.Set("Idempotency-Key", ch.Key)
		if ch.IfMatch != "" {
			req.Header.Set("If-Match", ch.IfMatch)
		}
	}
	return req, nil
}

// once makes one try.
func (c *Client) once(ctx context.Context, r request, payload []byte) (
	http.Header, []byte, *failure,
) {
	try := ctx
	if !r.slow {
		var cancel context.CancelFunc
		try, cancel = context.WithTimeout(ctx, tryTime)
		defer cancel()
	}
	req, err := c.newRequest(try, r, payload)
	if err != nil {
		return nil, nil, &failure{err: err}
	}
	res, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return nil, nil, c.broken(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, answerMax+1))
	switch {
	case err != nil:
		return nil, nil, c.broken(ctx, err)
	case len(body) > answerMax:
		return nil, nil, &failure{err: domain.Errorf(domain.TooLarge, "the answer is over %s",
			domain.Bytes(answerMax))}
	case res.StatusCode/100 != 2:
		return nil, nil, refused(res, body)
	}
	return res.Header, body, nil
}

// broken is a connection that could not be made or did not hold.
func (c *Client) broken(ctx context.Context, err error) *failure {
	if ctx.Err() != nil {
		return &failure{err: ended(ctx, err)}
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // its text repeats the method and the address
	}
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return &failure{err: &domain.Error{
			Kind: domain.Denied, Msg: "the certificate of " + c.base.String() + " is not trusted", Err: err,
			Remedy: "give the authority with --ca (env WEFT_CA): tls/ca.pem in the data folder of any " +
				"node of the cluster; and a name or address of the node that the certificate holds",
		}}
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return &failure{err: &domain.Error{
			Kind: domain.Denied, Msg: "the API at " + c.base.Host + " speaks no TLS", Err: err,
			Remedy: "write it as http://" + c.base.Host + " if the network between is your own",
		}}
	}
	return &failure{again: true, err: &domain.Error{
		Kind: domain.Unavailable, Msg: "no Weft node answers at " + c.base.String(), Err: err,
		Remedy: "start one with: weft serve (or weft demo); or name another with --api",
	}}
}

// refused is an answer that is not a success.
func refused(res *http.Response, body []byte) *failure {
	f := &failure{err: problemOf(res, body)}
	switch res.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		f.again = true
		if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
			f.after = time.Duration(min(s, 3600)) * time.Second
		}
	}
	return f
}

// newKey draws a UUIDv7: keys sort by time, and the log's reader sees when a command was first
// tried.
func (c *Client) newKey() string {
	var u domain.UUID
	_, _ = rand.Read(u[:]) // never fails: it ends the program instead
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(c.cfg.Now().UnixMilli()))
	copy(u[:6], ms[2:])
	u[6], u[8] = u[6]&0x0f|0x70, u[8]&0x3f|0x80
	return u.String()
}
