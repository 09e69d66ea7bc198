package main

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"weft/adapters/peer"
	"weft/domain"
)

// TestOtherPortsAreAudited proves that who is refused at the ports of the log and of other nodes
// stands in the audit like who is refused by the API, by actor as far as it was proved, address
// and an id: in the file of attempts, and as an event.
func TestOtherPortsAreAudited(t *testing.T) {
	n, down, err := Start(t.Context(), Options{
		DataDir: t.TempDir(), DeviceSize: 256 * domain.MiB, API: "127.0.0.1:0", NBD: "off",
		ISCSI: "off", Peer: "127.0.0.1:0", Events: "127.0.0.1:0", VoterGrace: time.Minute,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(down)
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, newHTTP(t)}
	c.tenants("acme")
	kept := func(operation, actor, reason string) {
		t.Helper()
		list := c.must("GET", "/v1/audit/refusals?limit=1", "").body["items"].([]any)
		a := answer{body: list[0].(map[string]any)}
		if a.text("operation") != operation || a.text("actor") != actor || a.text("request") == "" ||
			!strings.HasPrefix(a.text("source"), "127.0.0.1:") ||
			!strings.Contains(a.text("reason"), reason) {
			t.Errorf("kept %v, want %s by %q: %s", a.body, operation, actor, reason)
		}
	}
	dial := func(token string) *esdb.Client {
		cfg, err := esdb.ParseConnectionString("esdb://auditor:" + token + "@" + n.log.addr +
			"?keepAliveInterval=-1&tlsCAFile=" + n.log.ca)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Logger = esdb.NoopLogging()
		db, err := esdb.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	remove := func(db *esdb.Client) {
		t.Helper()
		if _, err := db.DeleteStream(t.Context(), "cluster", esdb.DeleteStreamOptions{}); err == nil {
			t.Error("a stream was deleted")
		}
	}
	remove(dial("weft-" + strings.Repeat("0", 48)))
	kept("events/Delete", "", "token")
	remove(dial(c.user("v", "viewer", "").token))
	kept("events/Delete", "user/v", "by its cluster alone")
	err = dial(c.user("w", "viewer", "acme").token).CreatePersistentSubscriptionToAll(t.Context(), "g",
		esdb.PersistentAllSubscriptionOptions{})
	if err == nil {
		t.Error("a group over the whole log for one who reads a part")
	}
	kept("events/Create", "user/w", "may not read the whole log")

	knock := func(certs ...tls.Certificate) {
		cfg := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a stranger trusts anybody
		if len(certs) > 0 {
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &certs[0], nil
			}
		}
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
		defer h.CloseIdleConnections()
		res, err := h.Post(n.peer.url+"/weft/v1/obey", "application/json", strings.NewReader("{}"))
		if err == nil {
			if _ = res.Body.Close(); res.StatusCode == http.StatusOK {
				t.Error("a stranger is obeyed to")
			}
		}
	}
	knock()
	kept("peer/obey", "", "a certificate of the cluster is needed")
	pin, err := n.peer.id.Authority().Pin()
	if err != nil {
		t.Fatal(err)
	}
	token, err := peer.ParseToken(peer.NewToken(n.dir.id.Cluster, []string{n.peer.url}, pin).String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Join(t.Context(), token, peer.Files{Dir: t.TempDir(), Now: time.Now},
		domain.NodeID{UUID: randomUUID()}, "n2"); err == nil {
		t.Error("a node joined without a token")
	}
	kept("peer/join", "", "token")
	cert, key := selfSigned(t, 1)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	seen := c.watchUntil(t, "peer/handshake", func() { knock(pair) })
	kept("peer/handshake", "", "unknown authority")
	for _, kind := range []string{
		"events/Delete", "events/Create", "peer/obey", "peer/join", "peer/handshake",
	} {
		if !strings.Contains(seen, `"kind":"`+kind+`"`) {
			t.Errorf("no event tells of %s", kind)
		}
	}
}
