package peer

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/domain"
	"weft/domain/command"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	cluster = domain.ClusterID{UUID: domain.UUID{1}}
	one     = domain.NodeID{UUID: domain.UUID{11}}
	two     = domain.NodeID{UUID: domain.UUID{12}}
)

// clock is a time that tests move.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Unix())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(c.at.Load(), 0).UTC() }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d / time.Second)) }

func files(t *testing.T, c *clock) Files {
	write := func(p string, b []byte) error { return os.WriteFile(p, b, 0o600) }
	return Files{Dir: filepath.Join(t.TempDir(), "tls"), Now: c.now, Write: write}
}

func identity(t *testing.T, c *clock, ca Authority, node domain.NodeID) *Identity {
	t.Helper()
	f := files(t, c)
	if err := CreateIdentity(f, ca, cluster, node); err != nil {
		t.Fatal(err)
	}
	id, err := OpenIdentity(f, cluster, node)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func authority(t *testing.T, c *clock) Authority {
	t.Helper()
	ca, err := NewAuthority(cluster, c.now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// far is the other side: it notes orders and knows who was removed.
type far struct {
	got     []command.Order
	removed domain.NodeID
	err     error
	refused chan Refusal // nil: nobody listens
}

func (f *far) Refused(r Refusal) {
	if f.refused != nil {
		f.refused <- r
	}
}

func (f *far) Obey(_ context.Context, o command.Order) command.Outcome {
	f.got = append(f.got, o)
	return command.Outcome{ID: o.ID, Err: f.err, Size: o.Size, At: time.Unix(7, 0).UTC()}
}

func (f *far) Ask(_ context.Context, q command.Question) (command.Answer, error) {
	return command.Answer{
		Next: q.From, Ranges: []domain.Extent{{Off: 1, Len: 2, Zero: true}}, Failing: failing(),
	}, f.err
}

func failing() []command.Failing {
	return []command.Failing{{
		What: "w", Since: time.Unix(8, 0).UTC(), Failures: 2, Error: "e", Position: 1<<48 + 9,
	}}
}

func (f *far) Admitted(n domain.NodeID) bool { return n != f.removed }

func (f *far) Join(_ context.Context, r JoinRequest) (Welcome, error) {
	return Welcome{Number: 7, Name: r.Name, CA: []byte("x")}, f.err
}

// door serves an identity; the log behind it answers "log".
func door(t *testing.T, id *Identity, f *far) string {
	t.Helper()
	s, err := Listen(Config{
		Addr: "127.0.0.1:0", Identity: id, Logger: slog.New(slog.DiscardHandler),
		Log: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "log")
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Open(f, f)
	t.Cleanup(func() { _ = s.Close() })
	return "https://" + s.Addr()
}

func obey(t *testing.T, id *Identity, url string, to domain.NodeID) error {
	t.Helper()
	c := NewClient(id)
	defer c.Close()
	o := command.Order{ID: domain.CommandID{UUID: domain.UUID{9}}, Node: to}
	return c.Obey(t.Context(), url, o).Err
}

// An order reaches the node it is for, whole, and its outcome comes back with its kind.
func TestObey(t *testing.T) {
	c := newClock()
	ca := authority(t, c)
	f := &far{}
	url := door(t, identity(t, c, ca, one), f)
	near := identity(t, c, ca, two)
	client := NewClient(near)
	defer client.Close()
	o := command.Order{
		ID: domain.CommandID{UUID: domain.UUID{9}}, Token: 1<<48 + 3, Kind: command.ExportVolume,
		Node: one, Size: 5, Epoch: 6, Export: command.Export{NBD: "n", Initiators: []string{"a"}},
	}
	if out := client.Obey(t.Context(), url, o); out.Err != nil || out.ID != o.ID {
		t.Fatal(out)
	}
	if out := client.Obey(t.Context(), url, o); out.Size != o.Size || out.At.Unix() != 7 {
		t.Errorf("what the outcome says besides: %+v", out)
	}
	q := command.Question{Ask: command.AskAllocated, Node: one, From: 4096}
	want := command.Answer{
		Next: 4096, Ranges: []domain.Extent{{Off: 1, Len: 2, Zero: true}}, Failing: failing(),
	}
	if a, err := client.Ask(t.Context(), url, q); err != nil || !reflect.DeepEqual(a, want) {
		t.Errorf("%+v, %v", a, err)
	}
	if len(f.got) != 2 || f.got[0].Token != o.Token || f.got[0].Export.NBD != "n" {
		t.Fatalf("%+v", f.got)
	}
	f.err = domain.Errorf(domain.Stale, "an old token")
	if out := client.Obey(t.Context(), url, o); !domain.IsKind(out.Err, domain.Stale) {
		t.Fatal(out.Err)
	}
	if _, err := client.Ask(t.Context(), url, q); !domain.IsKind(err, domain.Stale) {
		t.Fatal(err)
	}
}

// Who has no certificate, a foreign one, an expired one, or one of a removed node is refused, at
// the door of orders and at that of the log (T1, T2), and the gate hears of each, by address and
// as far as it was proved who it was; and a node that answers for another is not obeyed to (T4).
func TestStrangersAreRefused(t *testing.T) {
	c := newClock()
	ca := authority(t, c)
	f := &far{removed: domain.NodeID{UUID: domain.UUID{66}}, refused: make(chan Refusal, 16)}
	url := door(t, identity(t, c, ca, one), f)
	told := func(call string, node domain.NodeID, reason string) {
		t.Helper()
		r := <-f.refused
		if r.Call != call || r.Node != node || !strings.HasPrefix(r.Source, "127.0.0.1:") ||
			!strings.Contains(r.Reason, reason) {
			t.Errorf("the gate heard %+v, want %s: %s", r, call, reason)
		}
	}
	old := identity(t, c, ca, two)
	trusting := func(id *Identity) *tls.Config {
		cfg := id.clientTLS(domain.NodeID{})
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = nil
		return cfg
	}
	get := func(cfg *tls.Config) string {
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
		defer h.CloseIdleConnections()
		res, err := h.Get(url + "/raft")
		if err != nil {
			return "handshake"
		}
		defer func() { _ = res.Body.Close() }()
		b, _ := io.ReadAll(res.Body)
		return strings.TrimSpace(string(b))
	}
	good := identity(t, c, ca, two)
	if got := get(trusting(good)); got != "log" {
		t.Fatalf("a node of the cluster got %q", got)
	}
	none := trusting(good)
	none.GetClientCertificate = nil
	if got := get(none); got == "log" || !strings.Contains(got, "certificate") {
		t.Errorf("without a certificate: %q", got)
	}
	told("log", domain.NodeID{}, "a certificate of the cluster is needed")
	if got := get(trusting(identity(t, c, authority(t, c), two))); got != "handshake" {
		t.Errorf("a foreign certificate: %q", got)
	}
	told("handshake", domain.NodeID{}, "unknown authority")
	if got := get(trusting(identity(t, c, ca, f.removed))); !strings.Contains(got, "removed") {
		t.Errorf("a removed node: %q", got)
	}
	told("log", f.removed, "was removed")
	if err := obey(t, good, url, two); !domain.IsKind(err, domain.Denied) {
		t.Errorf("an order for another node: %v", err)
	}
	if len(f.got) != 0 {
		t.Errorf("%d orders went through", len(f.got))
	}
	c.advance(CertLife + time.Minute) // the server's own has expired too: it renews, the other not
	if got := get(trusting(old)); got != "handshake" {
		t.Errorf("an expired certificate: %q", got)
	}
	told("handshake", domain.NodeID{}, "expired")
	if len(f.refused) != 0 {
		t.Errorf("and %+v", <-f.refused)
	}
}

// A machine whose join is refused is told of, by its address.
func TestRefusedJoinIsTold(t *testing.T) {
	c := newClock()
	ca := authority(t, c)
	pin, err := ca.Pin()
	if err != nil {
		t.Fatal(err)
	}
	f := &far{err: domain.Errorf(domain.Denied, "no such token"), refused: make(chan Refusal, 1)}
	url := door(t, identity(t, c, ca, one), f)
	token, err := ParseToken(NewToken(cluster, []string{url}, pin).String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), token, files(t, c), two, "n2"); !domain.IsKind(err, domain.Denied) {
		t.Fatal(err)
	}
	if r := <-f.refused; r.Call != "join" || r.Reason != "no such token" ||
		!strings.HasPrefix(r.Source, "127.0.0.1:") {
		t.Errorf("%+v", r)
	}
}

// A call that has no end of its own, as a watch of the log, ends when its node is removed (T2).
func TestRemovedNodeIsExpelled(t *testing.T) {
	c := newClock()
	ca := authority(t, c)
	f := &leaving{}
	begun, ended := make(chan struct{}), make(chan struct{})
	s, err := Listen(Config{
		Addr: "127.0.0.1:0", Identity: identity(t, c, ca, one), Logger: slog.New(slog.DiscardHandler),
		Log: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
			close(ended)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	s.Open(&f.far, f)
	near := identity(t, c, ca, two)
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: near.clientTLS(one)}}
	defer h.CloseIdleConnections()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if res, err := h.Get("https://" + s.Addr() + "/watch"); err == nil {
			_ = res.Body.Close()
		}
	}()
	<-begun
	f.gone.Store(true)
	<-ended
	<-answered
}

// leaving removes every node once told.
type leaving struct {
	far
	gone atomic.Bool
}

func (l *leaving) Admitted(domain.NodeID) bool { return !l.gone.Load() }

// A certificate is replaced after its time without a restart: the next handshake shows the new one,
// at the server and at the client, and other libraries find it in the file.
func TestRotation(t *testing.T) {
	c := newClock()
	ca := authority(t, c)
	f := &far{}
	server, near := identity(t, c, ca, one), identity(t, c, ca, two)
	url := door(t, server, f)
	for round := range 3 {
		if err := obey(t, near, url, one); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		c.advance(RenewAfter + time.Minute)
		for _, id := range []*Identity{server, near} {
			before := id.Expires()
			if done, err := id.Renew(); !done || err != nil || !id.Expires().After(before) {
				t.Fatalf("round %d: renewed %v, %v", round, done, err)
			}
			if done, err := id.Renew(); done || err != nil {
				t.Fatalf("round %d: twice, %v", round, err)
			}
		}
	}
	cert, key, _ := near.Paths()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil || !pair.Leaf.NotAfter.Equal(near.Expires()) {
		t.Errorf("the file: %v", err)
	}
}

// A machine joins by a token alone, and trusts nobody else than whom the token names (T3).
func TestJoinTrustsThePin(t *testing.T) {
	c := newClock()
	ca := authority(t, c)
	pin, err := ca.Pin()
	if err != nil {
		t.Fatal(err)
	}
	f := &welcoming{ca: ca}
	s := identity(t, c, ca, one)
	url := door2(t, s, f)
	token, err := ParseToken(NewToken(cluster, []string{url}, pin).String())
	if err != nil {
		t.Fatal(err)
	}
	to := files(t, c)
	w, err := Join(t.Context(), token, to, two, "n2")
	if err != nil || w.Number != 2 || f.asked.Node != two {
		t.Fatalf("%+v, %v", w, err)
	}
	id, err := OpenIdentity(to, cluster, two)
	if err != nil {
		t.Fatal(err)
	}
	if err := obey(t, id, url, one); err != nil {
		t.Fatal(err)
	}
	token.Pin[3] ^= 1
	to, f.asked = files(t, c), JoinRequest{}
	if _, err := Join(t.Context(), token, to, two, "n2"); err == nil || HasIdentity(to.Dir) {
		t.Fatalf("another authority: %v", err)
	}
	if len(f.asked.Secret) > 0 {
		t.Error("the secret was told to an authority that the token does not name")
	}
	if _, err := ParseToken(token.String()[:40]); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("half a token: %v", err)
	}
}

type welcoming struct {
	far
	ca    Authority
	asked JoinRequest
}

func (w *welcoming) Join(_ context.Context, r JoinRequest) (Welcome, error) {
	w.asked = r
	return Welcome{Number: 2, CA: w.ca.Cert, CAKey: w.ca.Key}, nil
}

func door2(t *testing.T, id *Identity, f *welcoming) string {
	t.Helper()
	s, err := Listen(Config{
		Addr: "127.0.0.1:0", Identity: id, Logger: slog.New(slog.DiscardHandler),
		Log: http.NotFoundHandler(),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Open(&f.far, f)
	t.Cleanup(func() { _ = s.Close() })
	return "https://" + s.Addr()
}
